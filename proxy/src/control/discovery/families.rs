//! Which addresses of a service or host are used: of one family, or of both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use crate::config::model::AddressFamilies;

/// Returns those of `all` whose addresses are used, IPv4 first.
pub(super) fn of_families<T>(
    all: Vec<T>,
    families: AddressFamilies,
    ip: impl Fn(&T) -> IpAddr,
    is_routable: fn(IpAddr) -> bool,
) -> Vec<T> {
    let (mut v4, v6): (Vec<T>, Vec<T>) = all.into_iter().partition(|one| ip(one).is_ipv4());
    let (uses_v4, uses_v6) = match families {
        AddressFamilies::Ipv4 => (true, false),
        AddressFamilies::Ipv6 => (false, true),
        AddressFamilies::PreferIpv4 => (!v4.is_empty(), v4.is_empty()),
        AddressFamilies::PreferIpv6 => (v6.is_empty(), !v6.is_empty()),
        AddressFamilies::All => match [&v4, &v6].map(|family| family.first().is_some_and(|one| is_routable(ip(one)))) {
            [true, false] => (true, false),
            [false, true] => (false, true),
            _ => (true, true),
        },
    };
    if !uses_v4 {
        v4.clear();
    }
    v4.extend(v6.into_iter().filter(|_| uses_v6));
    v4
}

/// Whether the system has a route to an address (RFC 6724, rule 1). Nothing is sent.
pub(super) fn is_routable(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((ip, 9))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn families_are_chosen() {
        let (v4, v6) = (ips(&["10.0.0.1"]), ips(&["fd00::1"]));
        let both = ips(&["fd00::1", "10.0.0.1"]);
        let chosen = |all: &[IpAddr], families, is_routable| of_families(all.to_vec(), families, |ip| *ip, is_routable);
        let of = |all: &[IpAddr], families| chosen(all, families, |_| true);
        assert_eq!(of(&both, AddressFamilies::All), [&v4[..], &v6].concat());
        assert_eq!((of(&both, AddressFamilies::Ipv4), of(&both, AddressFamilies::Ipv6)), (v4.clone(), v6.clone()));
        let preferred = [AddressFamilies::PreferIpv4, AddressFamilies::PreferIpv6];
        assert_eq!(preferred.map(|families| of(&both, families)), [v4.clone(), v6.clone()]);
        assert_eq!(preferred.map(|families| of(&v6, families)), [v6.clone(), v6.clone()]);
        assert_eq!(preferred.map(|families| of(&v4, families)), [v4.clone(), v4.clone()]);
        // Without a route to a family, the other.
        assert_eq!(chosen(&both, AddressFamilies::All, |ip| ip.is_ipv4()), v4);
        assert_eq!(chosen(&both, AddressFamilies::All, |ip| ip.is_ipv6()), v6);
        assert_eq!(chosen(&both, AddressFamilies::All, |_| false), [&v4[..], &v6].concat());
        assert_eq!(chosen(&v6, AddressFamilies::All, |_| false), v6);
    }
}
