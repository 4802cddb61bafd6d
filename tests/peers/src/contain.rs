//! Sends bad requests alongside good ones: one a second that makes the filter misbehave. Watches the proxy's memory meanwhile.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::{load::WARM_UP, usage};

/// Duration of the good requests, in seconds, with a bad request in the middle of each second.
pub const SECONDS: u64 = 3;

/// Timeout for the response to a good request, in seconds.
pub const TIMEOUT: u64 = 1;

/// The address that sends the bad requests; the good ones come from another.
const OFFENDER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The result of `offend`.
#[derive(Debug, Default)]
pub struct Offended {
    pub sent: u32,
    /// The process's peak resident memory, sampled every 100 ms.
    pub peak_kib: f64,
}

/// Sends a bad request each second until `over` is set.
pub fn offend(port: u16, path: &str, offence: &str, pid: u32, over: &AtomicBool) -> Offended {
    let mut seen = Offended::default();
    // The responses are not read, but the connections stay open: the proxy might cancel a disconnected client's request.
    let mut asked = Vec::new();
    let mut due = Instant::now() + Duration::from_millis(WARM_UP + 500);
    while !over.load(Ordering::Relaxed) {
        seen.peak_kib = seen.peak_kib.max(usage::resident_kib(pid));
        if Instant::now() >= due {
            due += Duration::from_secs(1);
            // If the process has ended, connecting fails; the good requests show that.
            if let Ok(stream) = ask(port, path, offence) {
                asked.push(stream);
                seen.sent += 1;
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    seen
}

fn ask(port: u16, path: &str, offence: &str) -> anyhow::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddrV4::new(OFFENDER, 0))?;
    connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nx-offence: {offence}\r\n\r\n").as_bytes())?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn bad_requests_say_how_the_filter_fails_and_come_from_another_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asked = ask(listener.local_addr().unwrap().port(), "/items/42", "trap").unwrap();
        let (taken, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), OFFENDER);
        let lines: Vec<_> =
            BufReader::new(taken).lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
        assert_eq!(lines[0], "GET /items/42 HTTP/1.1");
        assert!(lines.contains(&"x-offence: trap".to_owned()), "{lines:?}");
        drop(asked);
    }
}
