//! Endpoints that come and go by themselves.

#[cfg(feature = "consul")]
mod consul;
mod dns;
mod files;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(all(feature = "consul", feature = "kubernetes"))]
mod seen;

use std::{
    net::{Ipv4Addr, TcpListener},
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::harness::{Proxy, Upstream};

/// Upstreams on one port of several loopback addresses, from 127.0.0.1 on; each answers with its address.
struct Farm {
    port: u16,
    upstreams: Vec<Upstream>,
}

impl Farm {
    fn new(count: u8) -> Farm {
        loop {
            let first = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = first.local_addr().expect("an address").port();
            let others = (2..=count).map(|n| TcpListener::bind((Farm::ip(n), port)));
            // The port may be taken on one of them.
            let Ok(others) = others.collect::<Result<Vec<_>, _>>() else { continue };
            let upstream = |listener: TcpListener| {
                let ip = listener.local_addr().expect("an address").ip().to_string();
                Upstream::saying_on(listener, &ip)
            };
            return Farm { port, upstreams: std::iter::once(first).chain(others).map(upstream).collect() };
        }
    }

    fn ip(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 0, n)
    }
}

/// A cluster's state as the admin listener shows it.
fn shown(proxy: &Proxy, cluster: &str) -> Value {
    let all: Value = serde_json::from_slice(&proxy.admin("GET", "/clusters", "").body).expect("JSON");
    let found = all["clusters"].as_array().expect("a list").iter().find(|shown| shown["name"] == cluster);
    found.cloned().unwrap_or_else(|| panic!("{all:#}"))
}

/// The addresses of a cluster's endpoints.
fn endpoints(proxy: &Proxy, cluster: &str) -> Vec<String> {
    let endpoints = shown(proxy, cluster)["endpoints"].clone();
    let address = |endpoint: &Value| endpoint["address"].as_str().expect("text").to_owned();
    endpoints.as_array().expect("a list").iter().map(address).collect()
}

/// Does something while four clients send requests, each with a pause after a response. All get 200. Returns their number.
fn under_traffic(proxy: &Proxy, pause: Duration, work: impl FnOnce()) -> usize {
    let (is_over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while !is_over.load(Ordering::SeqCst) {
                    client.send_request("GET", "/", &[("Host", "api.test")], b"");
                    assert_eq!(client.read().status(), 200);
                    sent.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(pause);
                }
            });
        }
        let result = panic::catch_unwind(AssertUnwindSafe(work));
        is_over.store(true, Ordering::SeqCst);
        result.unwrap_or_else(|panic| panic::resume_unwind(panic));
    });
    sent.into_inner()
}

/// The upstreams of a farm of five that are there in a round: others in each, some of them the same as before.
fn of_round(round: u8) -> Vec<u8> {
    (1..=5).filter(|n| !(round / 5 + n).is_multiple_of(3) || round % 5 == *n - 1).collect()
}

/// The bodies of a few responses, each once.
fn bodies(proxy: &Proxy) -> Vec<String> {
    let mut all: Vec<_> = (0..6).map(|_| proxy.get("/").text().to_owned()).collect();
    all.sort();
    all.dedup();
    all
}
