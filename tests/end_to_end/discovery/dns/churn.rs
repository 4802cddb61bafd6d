//! Endpoints that DNS adds and removes under traffic, while the name server fails in all ways.

use std::{thread, time::Duration};

use super::{
    super::{of_round, under_traffic},
    Farm, Zone, bodies, config, endpoints,
};
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
    let mut server = Some(server);
    let sent = under_traffic(&proxy, Duration::ZERO, || {
        for round in 0..100u8 {
            let addresses = of_round(round);
            match round % 10 {
                3 => zone.reply("api.test", Reply::Error(2)),
                5 => zone.reply("api.test", Reply::Garbage(vec![0xff; 700])),
                7 => drop(server.take()),
                8 => zone.reply("api.test", Reply::Records(Vec::new())),
                _ => {}
            }
            thread::sleep(Duration::from_millis(15));
            if server.is_none() {
                let zone = zone.clone();
                server = Some(NameServer::at(address, move |asked| zone.answer(asked)));
            }
            zone.set("api.test", &addresses);
            let expected: Vec<_> = addresses.iter().map(|n| format!("127.0.0.{n}:{}", farm.port)).collect();
            wait_until("the addresses to be used", || endpoints(&proxy, "web") == expected);
        }
    });
    assert!(sent > 1_000, "{sent:?}");
    let failed = proxy.metrics().sum("tollgate_requests_total", &[("class", "5xx")]);
    assert_eq!(failed, 0.0);
    assert!(!bodies(&proxy).is_empty());
}
