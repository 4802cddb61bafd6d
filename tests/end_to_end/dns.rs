//! Host names as addresses of endpoints, with a scripted name server, which can fail and lie, and with a real one.

mod churn;
mod failures;
mod names;
mod real;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use crate::harness::{
    Config, Proxy, Upstream,
    name_server::{A, AAAA, Asked, NameServer, Record, Reply},
};

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

/// The names that a name server knows. The addresses of all others are NXDOMAIN.
#[derive(Clone, Default)]
struct Zone(Arc<Mutex<BTreeMap<String, Reply>>>);

impl Zone {
    /// Sets the last parts of the addresses 127.0.0.x of a name, with a TTL of one second.
    fn set(&self, name: &str, addresses: &[u8]) {
        let record = |n: &u8| Record::address(name, 1, IpAddr::V4(Farm::ip(*n)));
        self.reply(name, Reply::Records(addresses.iter().map(record).collect()));
    }

    fn reply(&self, name: &str, reply: Reply) {
        self.0.lock().unwrap().insert(name.to_owned(), reply);
    }

    /// Answers like a server with this zone. Records of other types than the query's are left out.
    fn answer(&self, asked: &Asked) -> Reply {
        match self.0.lock().unwrap().get(&asked.name) {
            None => Reply::Error(3),
            Some(Reply::Records(records)) if [A, AAAA].contains(&asked.kind) => {
                Reply::Records(records.iter().filter(|record| record.answers(asked.kind)).cloned().collect())
            }
            Some(reply) => reply.clone(),
        }
    }

    fn server(&self) -> NameServer {
        let zone = self.clone();
        NameServer::new(move |asked| zone.answer(asked))
    }
}

/// The section `dns` for a name server, and nothing of the machine's.
fn dns(server: SocketAddr, more: &str) -> String {
    format!("dns: {{name_servers: ['{server}'], resolv_conf: /nonexistent, hosts: /nonexistent, timeout: 500ms{more}}}")
}

/// A configuration whose cluster `web` has these options.
fn config(server: &NameServer, cluster: &str) -> Config {
    Config::new().top(&dns(server.address, "")).listener("cluster: web").cluster("web", &[] as &[&str], cluster)
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

/// The bodies of a few responses, each once.
fn bodies(proxy: &Proxy) -> Vec<String> {
    let mut all: Vec<_> = (0..6).map(|_| proxy.get("/").text().to_owned()).collect();
    all.sort();
    all.dedup();
    all
}
