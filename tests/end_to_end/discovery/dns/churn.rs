//! Endpoints that DNS adds and removes under traffic, while the name server fails in all ways.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use super::{Farm, Zone, bodies, config, endpoints};
use crate::harness::{
    Proxy,
    name_server::{NameServer, Reply},
    wait_until,
};

#[test]
fn no_request_fails_while_addresses_and_name_servers_come_and_go() {
    let (farm, zone) = (Farm::new(5), Zone::default());
    zone.set("api.test", &[1]);
    let server = zone.server();
    let address = server.address;
    let cluster = format!("discovery: {{dns: {{name: api.test., port: {}, min_ttl: 10ms, max_ttl: 10ms}}}}", farm.port);
    let proxy = Proxy::start(config(&server, &cluster));
    let (is_over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut server = Some(server);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while !is_over.load(Ordering::SeqCst) {
                    client.send_request("GET", "/", &[("Host", "api.test")], b"");
                    assert_eq!(client.read().status(), 200);
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..100u8 {
            let addresses: Vec<u8> = (1..=5).filter(|n| (round / 5 + n) % 3 != 0 || round % 5 == *n - 1).collect();
            match round % 10 {
                3 => zone.reply("api.test", Reply::Error(2)),
                5 => zone.reply("api.test", Reply::Garbage(vec![0xff; 700])),
                7 => drop(server.take()),
                8 => zone.reply("api.test", Reply::Records(Vec::new())),
                _ => {}
            }
            thread::sleep(std::time::Duration::from_millis(15));
            if server.is_none() {
                let zone = zone.clone();
                server = Some(NameServer::at(address, move |asked| zone.answer(asked)));
            }
            zone.set("api.test", &addresses);
            let expected: Vec<_> = addresses.iter().map(|n| format!("127.0.0.{n}:{}", farm.port)).collect();
            wait_until("the addresses to be used", || endpoints(&proxy, "web") == expected);
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert!(sent.load(Ordering::SeqCst) > 1_000, "{sent:?}");
    let failed = proxy.metrics().sum("tollgate_requests_total", &[("class", "5xx")]);
    assert_eq!(failed, 0.0);
    assert!(!bodies(&proxy).is_empty());
}
