//! DNS: the section `dns`, and clusters whose endpoints are looked up.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{
    super::units::{Address, Duration},
    Endpoint, OnEmpty,
};

/// How host names are looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// The name servers: IP addresses with ports. Default: those of `resolv_conf`, with port 53.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "socket_addresses")]
    pub name_servers: Vec<SocketAddr>,
    /// The resolver's configuration: name servers, search domains and options. It is read again when it changes.
    pub resolv_conf: PathBuf,
    /// A file with host names that are not looked up in DNS. It is read again when it changes.
    pub hosts: PathBuf,
    /// How long a name server may take to answer.
    pub timeout: Duration,
    /// How long a start or a reload waits for the first answers about new names, and for those of other kinds of
    /// `discovery`. After that, clusters without answers have no endpoints until the answers arrive.
    pub initial_wait: Duration,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            name_servers: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            timeout: Duration::secs(2),
            initial_wait: Duration::secs(5),
        }
    }
}

/// A name whose addresses are a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsDiscovery {
    /// The host name; with `mode: srv`, the name of the SRV records, such as `_http._tcp.api.internal`. Search domains apply
    /// unless it ends with a dot.
    #[schemars(extend("format" = "tollgate-host-name"))]
    pub name: String,
    /// The port of the endpoints. SRV records have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// What becomes an endpoint.
    #[serde(default)]
    pub mode: DnsMode,
    /// Which addresses are used.
    #[serde(default)]
    pub families: AddressFamilies,
    /// What happens when the name has no addresses any more.
    #[serde(default)]
    pub on_empty: OnEmpty,
    /// The shortest time between two lookups. Answers with a shorter time to live (TTL) are used for this long.
    #[serde(default = "default::min_ttl")]
    pub min_ttl: Duration,
    /// The longest time between two lookups, whatever the TTL.
    #[serde(default = "default::max_ttl")]
    pub max_ttl: Duration,
    /// The most addresses that are used; of more, the lowest.
    #[serde(default = "default::max_addresses")]
    #[schemars(range(min = 1, max = 4096))]
    pub max_addresses: u32,
    /// Name servers for this name. Default: those of the section `dns`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "socket_addresses")]
    pub name_servers: Vec<SocketAddr>,
}

impl DnsDiscovery {
    /// A host name with the default settings.
    pub fn new(name: &str, port: u16) -> DnsDiscovery {
        DnsDiscovery {
            name: name.to_owned(),
            port: Some(port),
            mode: DnsMode::Strict,
            families: AddressFamilies::All,
            on_empty: OnEmpty::Keep,
            min_ttl: default::min_ttl(),
            max_ttl: default::max_ttl(),
            max_addresses: default::max_addresses(),
            name_servers: Vec::new(),
        }
    }

    /// The name that certificates of the endpoints must have, unless the cluster's `tls` says otherwise: for SRV records,
    /// the domain and not the targets, since whoever can forge answers chooses the targets.
    pub fn hostname(&self) -> &str {
        let mut name = self.name.trim_end_matches('.');
        while let (DnsMode::Srv, Some((label, rest))) = (self.mode, name.split_once('.')) {
            match label.starts_with('_') {
                true => name = rest,
                false => break,
            }
        }
        name
    }
}

/// What becomes an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DnsMode {
    /// Each address.
    #[default]
    Strict,
    /// The name: a connection goes to the first of its addresses that accepts it, and stays when the addresses change.
    Logical,
    /// Each address of each target of the name's SRV records (RFC 2782), with their ports, priorities and weights.
    Srv,
}

/// Which addresses are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddressFamilies {
    /// IPv4 and IPv6. If the system has no route to one of the families, only the other.
    #[default]
    All,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// IPv4, or IPv6 if the name has no IPv4 address.
    PreferIpv4,
    /// IPv6, or IPv4 if the name has no IPv6 address.
    PreferIpv6,
}

/// What a cluster looks up in DNS.
#[derive(Debug, Clone, PartialEq)]
pub enum DnsQuery {
    /// A name.
    Name(DnsDiscovery),
    /// A list of endpoints, some of which have host names as addresses.
    Endpoints(Vec<Endpoint>),
}

fn socket_addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "format": "socket-address" } })
}

impl fmt::Display for DnsQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = match self {
            DnsQuery::Name(name) => serde_json::to_string(name),
            DnsQuery::Endpoints(list) => {
                // An address alone reads better than JSON.
                if list.iter().all(|endpoint| *endpoint == Endpoint::new(endpoint.address.clone(), 1)) {
                    let addresses = list.iter().map(|endpoint| endpoint.address.to_string());
                    return f.write_str(&addresses.collect::<Vec<_>>().join(","));
                }
                serde_json::to_string(list)
            }
        };
        f.write_str(&json.map_err(|_| fmt::Error)?)
    }
}

impl FromStr for DnsQuery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |e: serde_json::Error| e.to_string();
        if text.starts_with('{') {
            return serde_json::from_str(text).map(DnsQuery::Name).map_err(read);
        }
        if text.starts_with('[') && text.ends_with(']') {
            return serde_json::from_str(text).map(DnsQuery::Endpoints).map_err(read);
        }
        let all = text.split(',').map(|address| Ok(Endpoint::new(Address::of_endpoint(address)?, 1)));
        all.collect::<Result<_, String>>().map(DnsQuery::Endpoints)
    }
}

mod default {
    use super::Duration;

    pub(super) fn min_ttl() -> Duration {
        Duration::secs(1)
    }
    pub(super) fn max_ttl() -> Duration {
        Duration::secs(300)
    }
    pub(super) fn max_addresses() -> u32 {
        256
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn service_names_what_is_looked_up() {
        let endpoint = |json: serde_json::Value| serde_json::from_value::<Endpoint>(json).unwrap();
        let plain = vec![endpoint(json!({"address": "api.internal:80"})), endpoint(json!({"address": "[::1]:81"}))];
        let weighted = vec![endpoint(json!({"address": "api.internal.:80", "weight": 3, "metadata": {"a": 1}}))];
        let unix = vec![endpoint(json!({"address": "[::1]:80"})), endpoint(json!({"address": "unix:/a"}))];
        let name = DnsDiscovery { mode: DnsMode::Srv, ..DnsDiscovery::new("_http._tcp.api", 80) };
        assert_eq!(DnsQuery::Endpoints(plain.clone()).to_string(), "api.internal:80,[::1]:81");
        for query in
            [DnsQuery::Endpoints(plain), DnsQuery::Endpoints(weighted), DnsQuery::Endpoints(unix), DnsQuery::Name(name)]
        {
            assert_eq!(query.to_string().parse(), Ok(query));
        }
        for text in ["", "web", "{", "[1]"] {
            assert!(text.parse::<DnsQuery>().is_err(), "{text}");
        }
    }

    #[test]
    fn certificates_are_for_the_domain_of_srv_records() {
        let name = |name, mode| DnsDiscovery { mode, ..DnsDiscovery::new(name, 1) }.hostname().to_owned();
        assert_eq!(name("_http._tcp.api.internal.", DnsMode::Srv), "api.internal");
        assert_eq!(name("api.internal", DnsMode::Srv), "api.internal");
        assert_eq!(name("_odd.internal", DnsMode::Strict), "_odd.internal");
    }
}
