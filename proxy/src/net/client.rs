//! The identity of a client where per-client limits or records apply.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A client, identified by its IPv4 address or its IPv6 /64 network: the holder of one IPv6 address controls the whole
/// /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(Ipv6Addr);

impl Client {
    /// Returns the client that `address` belongs to.
    pub fn of(address: IpAddr) -> Client {
        match address.to_canonical() {
            IpAddr::V4(address) => Client(address.to_ipv6_mapped()),
            IpAddr::V6(address) if address.is_loopback() => Client(address),
            IpAddr::V6(address) => Client(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_canonical() {
            IpAddr::V6(network) if !network.is_loopback() => write!(f, "{network}/64"),
            address => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_64_are_one_client() {
        let of = |ip: &str| Client::of(ip.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        let shown = ["::ffff:192.0.2.1", "2001:db8:1:2:3:4:5:6", "::1"].map(|ip| of(ip).to_string());
        assert_eq!(shown, ["192.0.2.1", "2001:db8:1:2::/64", "::1"]);
    }
}
