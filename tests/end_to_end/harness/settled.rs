//! Checks a proxy at the end of its test: no panic in its log, and nothing in progress once its clients are gone.

use std::{collections::BTreeMap, fs, io, net::SocketAddr, net::TcpStream, thread, time::Duration, time::Instant};

use super::{DEADLINE, Metrics, wire::Wire};

/// Gauges that return to zero when the last client is gone.
const PASSING: &[&str] = &[
    "tollgate_connections_active",
    "tollgate_requests_active",
    "tollgate_tunnels_active",
    "tollgate_tcp_connections_active",
    "tollgate_cluster_requests_active",
    "tollgate_cluster_requests_pending",
    "tollgate_cluster_uploads",
    "tollgate_cluster_downloads_waiting",
];

/// The first line of a panic of the proxy itself. A filter's panic is a trap, which is logged differently.
pub fn panic_in(output: &str) -> Option<&str> {
    output.lines().find(|line| line.starts_with("thread '") && line.contains(" panicked at "))
}

/// Waits until nothing is in progress; returns what is, at the deadline. Does not wait for a proxy that still has
/// clients, or whose admin listener cannot be queried.
pub fn left_behind(addresses: &BTreeMap<String, SocketAddr>, unseen: bool) -> Option<String> {
    let end = Instant::now() + DEADLINE;
    loop {
        let metrics = scrape(*addresses.get("admin")?).ok()?;
        let left: Vec<_> =
            PASSING.iter().map(|name| (*name, metrics.sum(name, &[]))).filter(|(_, n)| *n != 0.0).collect();
        // Clients over QUIC and Unix sockets do not appear in the tables of TCP connections.
        let may_have_clients = unseen && metrics.sum(PASSING[0], &[]) > 0.0;
        if left.is_empty() || may_have_clients || has_clients(addresses) {
            return None;
        }
        if Instant::now() > end {
            return Some(format!("{left:?}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn scrape(admin: SocketAddr) -> io::Result<Metrics> {
    let mut wire = Wire::new(TcpStream::connect(admin)?);
    wire.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let response = wire.read_response("GET")?;
    match response.status() {
        200 => Ok(Metrics::parse(response.text())),
        _ => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether there is an established connection to one of these addresses.
fn has_clients(addresses: &BTreeMap<String, SocketAddr>) -> bool {
    const ESTABLISHED: &str = "01";
    let ends: Vec<String> = addresses.values().map(|address| format!(":{:04X}", address.port())).collect();
    let is_client = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        let (remote, state) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        state == ESTABLISHED && ends.iter().any(|end| remote.ends_with(end.as_str()))
    };
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .any(|table| fs::read_to_string(table).unwrap_or_default().lines().any(is_client))
}
