//! From answers to endpoints.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    super::families::{is_routable, of_families},
    answer::{Answer, Host, Srv},
};
use crate::config::{
    model::{AddressFamilies, DnsDiscovery, DnsMode, Endpoint},
    units::Address,
};

/// The endpoints that an answer stands for. `template` has everything about them except their addresses. The order does
/// not depend on that of the answer, which name servers rotate.
pub(super) fn endpoints(name: &DnsDiscovery, template: &Endpoint, answer: &Answer) -> Vec<Endpoint> {
    let hostname = template.hostname.clone().unwrap_or_else(|| name.hostname().to_owned());
    let template = Endpoint { hostname: Some(hostname), ..template.clone() };
    let port = name.port.unwrap_or_default();
    let limit = name.max_addresses as usize;
    let mut all = match name.mode {
        DnsMode::Strict => {
            let addresses = sorted(answer.hosts.iter().flat_map(|host| chosen(host, name.families)), limit);
            addresses.into_iter().map(|ip| at(&template, SocketAddr::new(ip, port))).collect()
        }
        DnsMode::Logical => {
            let addresses = answer.hosts.iter().flat_map(|host| chosen(host, name.families));
            let addresses = by_turns(sorted(addresses, limit));
            let resolved: Box<[_]> = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
            let address = Address::Host(name.name.as_str().into(), port);
            vec![Endpoint { address, resolved: Some(Arc::new(resolved)), ..template }]
        }
        DnsMode::Srv => of_srv(name.families, &template, answer),
    };
    all.truncate(limit);
    all
}

/// The endpoints of SRV records (RFC 2782). Priorities become levels from 0. A target's weight is shared by its addresses;
/// a weight of 0 becomes a small chance, as the RFC asks for.
fn of_srv(families: AddressFamilies, template: &Endpoint, answer: &Answer) -> Vec<Endpoint> {
    let target = |host: &'_ Host| {
        let mut addresses = chosen(host, families);
        addresses.sort_unstable();
        addresses.dedup();
        let srv = host.srv.clone().filter(|_| !addresses.is_empty())?;
        Some((srv, addresses))
    };
    let targets: Vec<(Srv, Vec<IpAddr>)> = answer.hosts.iter().filter_map(target).collect();
    let mut levels: Vec<u16> = targets.iter().map(|(srv, _)| srv.priority).collect();
    levels.sort_unstable();
    levels.dedup();
    let mut all: Vec<Endpoint> = Vec::new();
    for (srv, addresses) in &targets {
        let level = levels.iter().position(|level| *level == srv.priority).unwrap_or_default();
        let mut equals = targets.iter().filter(|(other, _)| other.priority == srv.priority);
        let weight = match srv.weight {
            0 if !equals.all(|(other, _)| other.weight == 0) => 1,
            weight => (u32::from(weight.max(1)) * SHARES / addresses.len() as u32).max(1),
        };
        let endpoint = |ip| Endpoint { weight, priority: level as u32, ..at(template, SocketAddr::new(ip, srv.port)) };
        all.extend(addresses.iter().map(|ip| endpoint(*ip)));
    }
    // Two targets may have the same address. The one of the higher priority counts; of one priority, both weights do.
    all.sort_by_key(|endpoint| (endpoint.priority, endpoint.address.clone()));
    let mut known: HashMap<Address, u32> = HashMap::new();
    all.retain(|endpoint| *known.entry(endpoint.address.clone()).or_insert(endpoint.priority) == endpoint.priority);
    all
}

/// The weight of an address in a level of which all weights are equal, so that shares of several addresses are exact
/// enough.
const SHARES: u32 = 60;

fn at(template: &Endpoint, address: SocketAddr) -> Endpoint {
    Endpoint { address: address.into(), ..template.clone() }
}

/// The addresses of a host that are used.
fn chosen(host: &Host, families: AddressFamilies) -> Vec<IpAddr> {
    of_families(host.addresses.clone(), families, |ip| *ip, is_routable)
}

fn sorted(addresses: impl Iterator<Item = IpAddr>, limit: usize) -> Vec<IpAddr> {
    let mut all: Vec<_> = addresses.collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(limit);
    all
}

/// IPv6 and IPv4 in turns (RFC 8305, section 4).
fn by_turns(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v6, mut v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|ip| ip.is_ipv6());
    let mut all = Vec::with_capacity(v4.len() + v6.len());
    v6.reverse();
    v4.reverse();
    while !(v6.is_empty() && v4.is_empty()) {
        all.extend(v6.pop().into_iter().chain(v4.pop()));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn answer(addresses: &[&str]) -> Answer {
        Answer { hosts: vec![Host { srv: None, addresses: ips(addresses) }] }
    }

    fn texts(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    fn template() -> Endpoint {
        Endpoint::new(Address::Host("api.internal.".into(), 80), 7)
    }

    #[test]
    fn strict_name_has_an_endpoint_per_address_in_a_fixed_order() {
        let name = DnsDiscovery::new("api.internal.", 80);
        let one = endpoints(&name, &template(), &answer(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]));
        assert_eq!(texts(&one), ["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(one, endpoints(&name, &template(), &answer(&["10.0.0.1", "10.0.0.2"])));
        assert!(one.iter().all(|e| e.weight == 7 && e.hostname.as_deref() == Some("api.internal")));
        let own = Endpoint { hostname: Some("other".into()), ..template() };
        assert_eq!(endpoints(&name, &own, &answer(&["10.0.0.1"]))[0].hostname.as_deref(), Some("other"));
    }

    #[test]
    fn number_of_addresses_is_bounded() {
        let many: Vec<IpAddr> = (0..1_000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n * 7919 % 1_000).into()).collect();
        let answer = Answer { hosts: vec![Host { srv: None, addresses: many }] };
        for mode in [DnsMode::Strict, DnsMode::Logical] {
            let name = DnsDiscovery { mode, max_addresses: 3, ..DnsDiscovery::new("a", 80) };
            let all = endpoints(&name, &template(), &answer);
            let addresses = if mode == DnsMode::Strict {
                texts(&all)
            } else {
                all[0].resolved.iter().flat_map(|all| all.iter()).map(ToString::to_string).collect()
            };
            assert_eq!(addresses, ["10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80"]);
        }
        assert_eq!(endpoints(&DnsDiscovery::new("a", 80), &template(), &answer).len(), 256);
    }

    #[test]
    fn logical_name_is_one_endpoint_whose_families_alternate() {
        let name = DnsDiscovery { mode: DnsMode::Logical, ..DnsDiscovery::new("api.internal", 80) };
        let answer = answer(&["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"]);
        let all = endpoints(&DnsDiscovery { families: AddressFamilies::All, ..name }, &template(), &answer);
        assert_eq!(texts(&all), ["api.internal:80"]);
        let mixed = by_turns(ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"]));
        assert_eq!(mixed, ips(&["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2", "10.0.0.3"]));
    }

    #[test]
    fn srv_records_have_ports_priorities_and_weights() {
        let srv = |target: &str, port, priority, weight, addresses: &[&str]| Host {
            srv: Some(Srv { target: target.into(), port, priority, weight }),
            addresses: ips(addresses),
        };
        let hosts = vec![
            srv("spare", 80, 20, 0, &["10.0.0.9", "10.0.0.1"]),
            srv("a", 80, 10, 3, &["10.0.0.1"]),
            srv("b", 81, 10, 1, &["10.0.0.2", "10.0.0.3"]),
            srv("c", 82, 10, 0, &["10.0.0.4"]),
        ];
        let name = DnsDiscovery { mode: DnsMode::Srv, port: None, ..DnsDiscovery::new("_http._tcp.api", 0) };
        let all = endpoints(&name, &template(), &Answer { hosts });
        let shown: Vec<_> = all.iter().map(|e| (e.address.to_string(), e.priority, e.weight)).collect();
        let expected = [
            ("10.0.0.1:80", 0, 180),
            ("10.0.0.2:81", 0, 30),
            ("10.0.0.3:81", 0, 30),
            ("10.0.0.4:82", 0, 1),
            ("10.0.0.9:80", 1, 30),
        ];
        assert_eq!(shown, expected.map(|(address, priority, weight)| (address.to_owned(), priority, weight)));
        assert_eq!(all[0].hostname.as_deref(), Some("api"));
        // Without addresses, a level does not count; equal weights of 0 are equal shares.
        let hosts = vec![srv("a", 80, 1, 5, &[]), srv("b", 80, 2, 0, &["10.0.0.1"]), srv("c", 80, 2, 0, &["10.0.0.2"])];
        let all = endpoints(&name, &template(), &Answer { hosts });
        assert_eq!(all.iter().map(|e| (e.priority, e.weight)).collect::<Vec<_>>(), [(0, 60), (0, 60)]);
    }
}
