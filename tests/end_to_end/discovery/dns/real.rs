//! The same with unbound, so that not only this project's idea of DNS is tested.

use std::{fmt::Write, fs, path::Path, process::Command};

use serde_json::json;

use super::{Farm, bodies, dns, endpoints, shown};
use crate::harness::{
    Config, Proxy,
    peer::{Peer, needs},
    reserve, wait_until,
};

/// unbound with these records, as `local-data` has them.
struct Unbound {
    peer: Peer,
    dir: tempfile::TempDir,
}

impl Unbound {
    fn start(program: &Path, records: &[String]) -> Unbound {
        let (dir, address) = (tempfile::tempdir().expect("a directory"), reserve());
        write(dir.path(), address.port(), records);
        let file = dir.path().join("unbound.conf").display().to_string();
        let peer = Peer::serve_at(address, program, &["-d", "-d", "-c", &file]);
        Unbound { peer, dir }
    }

    /// Replaces the records.
    fn set(&self, records: &[String]) {
        write(self.dir.path(), self.peer.address.port(), records);
        let status =
            Command::new("kill").args(["-HUP", &self.peer.pid().to_string()]).status().expect("kill can be run");
        assert!(status.success());
    }
}

fn write(dir: &Path, port: u16, records: &[String]) {
    let mut text = format!(
        "server:\n  interface: 127.0.0.1\n  port: {port}\n  access-control: 127.0.0.0/8 allow\n  username: \"\"\n  chroot: \"\"\n  \
         directory: \"{}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  num-threads: 1\n  module-config: \"iterator\"\n  \
         local-zone: \"test.\" static\nremote-control:\n  control-enable: no\nserver:\n",
        dir.display()
    );
    for record in records {
        let _ = writeln!(text, "  local-data: '{record}'");
    }
    fs::write(dir.join("unbound.conf"), text).expect("a file can be written");
}

fn addresses(name: &str, parts: impl IntoIterator<Item = u8>) -> Vec<String> {
    parts.into_iter().map(|n| format!("{name} 1 IN A 127.0.0.{n}")).collect()
}

#[test]
fn unbound_answers_about_addresses_aliases_services_and_what_does_not_exist() {
    let program = needs!("unbound");
    let farm = Farm::new(120);
    let port = farm.port;
    let mut records = addresses("api.test.", [1, 2]);
    records.extend(addresses("many.test.", 1..=120));
    records.extend(addresses("a.test.", [3]));
    records.push("api.test. 1 IN TXT \"other\"".to_owned());
    records.push("six.test. 1 IN AAAA ::1".to_owned());
    records.push("text.test. 1 IN TXT \"only\"".to_owned());
    records.push(format!("_http._tcp.api.test. 1 IN SRV 1 5 {port} a.test."));
    records.push(format!("_http._tcp.api.test. 1 IN SRV 2 5 {port} api.test."));
    let unbound = Unbound::start(&program, &records);
    let named = |config: Config, name: &str| config.cluster(name, &[format!("{name}.test:{port}")], "");
    let mut config = Config::new().top(&dns(unbound.peer.address, "")).listener("cluster: api");
    for name in ["api", "many", "six", "text", "missing"] {
        config = named(config, name);
    }
    let srv = "discovery: {dns: {name: _http._tcp.api.test, mode: srv}}";
    let proxy = Proxy::start(config.cluster("srv", &[] as &[&str], srv));
    assert_eq!(bodies(&proxy), ["127.0.0.1", "127.0.0.2"]);
    assert_eq!(endpoints(&proxy, "many").len(), 120, "over TCP");
    assert_eq!(endpoints(&proxy, "six"), [format!("[::1]:{port}")]);
    for name in ["text", "missing"] {
        assert_eq!(endpoints(&proxy, name), [""; 0], "{name}");
        assert_eq!(shown(&proxy, name)["discovery"]["last_error"]["error"], json!("the name has no addresses"));
    }
    let services = shown(&proxy, "srv")["endpoints"].clone();
    let services: Vec<_> = services.as_array().unwrap().iter().map(|e| json!([e["address"], e["priority"]])).collect();
    let at = |n| format!("127.0.0.{n}:{port}");
    assert_eq!(services, [json!([at(3), 0]), json!([at(1), 1]), json!([at(2), 1])]);

    unbound.set(&addresses("api.test.", [2, 4]));
    wait_until("other addresses", || bodies(&proxy) == ["127.0.0.2", "127.0.0.4"]);
    drop(unbound);
    proxy.wait_for_metric("tollgate_dns_lookups_total", &[("result", "failed")], 2.0);
    assert_eq!(bodies(&proxy), ["127.0.0.2", "127.0.0.4"]);
}
