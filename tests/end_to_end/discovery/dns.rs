//! Host names as addresses of endpoints, with a scripted name server, which can fail and lie, and with a real one.

mod churn;
mod failures;
mod names;
mod real;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use super::{Farm, bodies, endpoints, shown};
use crate::harness::{
    Config,
    name_server::{A, AAAA, Asked, NameServer, Record, Reply},
};

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
