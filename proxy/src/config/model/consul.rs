//! Consul: the section `consul`, and clusters whose endpoints are the instances of a service in its catalog.

use std::{fmt, path::PathBuf, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::units::{Address, Duration},
    ClusterTls, OnEmpty, is_default,
};

/// How Consul is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Consul {
    /// The URL of an agent, or of a server: `http://` or `https://`, with a host name or an address.
    #[schemars(pattern(r"^https?://[^/?#]+[^?#]*$"))]
    pub url: String,
    /// The address to connect to, instead of the URL's host: `unix:/run/consul.sock`, `10.0.0.1:8500`. The URL still names
    /// the host that requests and the certificate are for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// A file with a token of Consul's ACL system, which requests carry in `X-Consul-Token`. It is read for every request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// TLS settings for `https://`. Default: the system's certificate authorities are trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// How long Consul may hold a query until something changes: from 1 s to 10 min.
    pub wait: Duration,
}

impl Default for Consul {
    fn default() -> Self {
        Consul {
            url: "http://127.0.0.1:8500".to_owned(),
            address: None,
            token_file: None,
            tls: None,
            wait: Duration::secs(300),
        }
    }
}

/// A service in Consul's catalog whose instances are a cluster's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsulDiscovery {
    /// The name of the service.
    #[schemars(length(min = 1))]
    pub service: String,
    /// Tags, all of which an instance must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The datacenter. Default: the one of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub datacenter: Option<String>,
    /// The namespace (Consul Enterprise). Default: the one of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub namespace: Option<String>,
    /// The admin partition (Consul Enterprise). Default: the one of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub partition: Option<String>,
    /// An expression that instances must match, in Consul's language: `Service.Meta.version == "2"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub filter: Option<String>,
    /// Whether instances with a check in the state `warning` are left out. Those with a `critical` one always are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub only_passing: bool,
    /// Which address of an instance is used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub address: ConsulAddress,
    /// Which servers of Consul may answer.
    #[serde(default, skip_serializing_if = "is_default")]
    pub consistency: ConsulConsistency,
    /// What happens when no instance can be used any more.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_empty: OnEmpty,
}

impl ConsulDiscovery {
    /// A service with the default settings.
    pub fn new(service: &str) -> ConsulDiscovery {
        ConsulDiscovery {
            service: service.to_owned(),
            tags: Vec::new(),
            datacenter: None,
            namespace: None,
            partition: None,
            filter: None,
            only_passing: false,
            address: ConsulAddress::Service,
            consistency: ConsulConsistency::Default,
            on_empty: OnEmpty::Keep,
        }
    }
}

/// Which address of an instance is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsulAddress {
    /// The one of the service, or of its node if the service has none.
    #[default]
    Service,
    /// The one of the node.
    Node,
    /// The one tagged `lan`, or else as with `service`.
    Lan,
    /// The one tagged `lan_ipv4`, or else as with `service`.
    LanIpv4,
    /// The one tagged `lan_ipv6`, or else as with `service`.
    LanIpv6,
    /// The one tagged `wan`, or else as with `service`.
    Wan,
    /// The one tagged `wan_ipv4`, or else as with `service`.
    WanIpv4,
    /// The one tagged `wan_ipv6`, or else as with `service`.
    WanIpv6,
}

impl ConsulAddress {
    /// Returns the tag of the address, if it has one.
    pub fn tag(self) -> Option<&'static str> {
        match self {
            ConsulAddress::Service | ConsulAddress::Node => None,
            ConsulAddress::Lan => Some("lan"),
            ConsulAddress::LanIpv4 => Some("lan_ipv4"),
            ConsulAddress::LanIpv6 => Some("lan_ipv6"),
            ConsulAddress::Wan => Some("wan"),
            ConsulAddress::WanIpv4 => Some("wan_ipv4"),
            ConsulAddress::WanIpv6 => Some("wan_ipv6"),
        }
    }
}

/// Which servers of Consul may answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsulConsistency {
    /// The leader, which may have just lost its role.
    #[default]
    Default,
    /// Any server, even if there is no leader. Answers may be old.
    Stale,
    /// The leader, after it has made sure that it still is.
    Consistent,
}

/// The name of the service if the rest are defaults, or else JSON.
impl fmt::Display for ConsulDiscovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == ConsulDiscovery::new(&self.service) && !self.service.starts_with('{') {
            return f.write_str(&self.service);
        }
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for ConsulDiscovery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.starts_with('{') {
            true => serde_json::from_str(text).map_err(|e| e.to_string()),
            false => Ok(ConsulDiscovery::new(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_short_if_possible_and_read_back() {
        assert_eq!(ConsulDiscovery::new("web").to_string(), "web");
        let tagged = ConsulDiscovery { tags: vec!["v1".to_owned()], ..ConsulDiscovery::new("web") };
        assert_eq!(tagged.to_string(), r#"{"service":"web","tags":["v1"]}"#);
        let all = ConsulDiscovery {
            datacenter: Some("dc2".to_owned()),
            address: ConsulAddress::WanIpv6,
            consistency: ConsulConsistency::Stale,
            on_empty: OnEmpty::Remove,
            only_passing: true,
            ..tagged.clone()
        };
        for query in [ConsulDiscovery::new("web"), ConsulDiscovery::new("{web"), tagged, all] {
            assert_eq!(query.to_string().parse(), Ok(query));
        }
        assert!("{".parse::<ConsulDiscovery>().is_err());
    }

    #[test]
    fn tags_of_addresses_are_their_names() {
        for address in [ConsulAddress::Lan, ConsulAddress::LanIpv4, ConsulAddress::LanIpv6, ConsulAddress::Wan] {
            assert_eq!(serde_json::to_value(address).unwrap(), address.tag().unwrap());
        }
        for address in [ConsulAddress::WanIpv4, ConsulAddress::WanIpv6] {
            assert_eq!(serde_json::to_value(address).unwrap(), address.tag().unwrap());
        }
    }
}
