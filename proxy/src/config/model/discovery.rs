//! Clusters whose endpoints are not listed: where they come from.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConsulDiscovery, DnsDiscovery, DnsQuery, KubernetesDiscovery};

/// Where a cluster's endpoints come from, if they are not listed in the cluster: one of the fields, or `source` with
/// `service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Discovery {
    /// The name of the source that supplies the endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The name under which the source supplies them. Default: the cluster's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A name in DNS whose addresses are the endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsDiscovery>,
    /// A service in Consul's catalog whose instances are the endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulDiscovery>,
    /// A service of Kubernetes whose ready endpoints are the endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesDiscovery>,
    /// A file with the field `endpoints`, as a cluster has it. It is read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Discovery {
    /// The fields that say where the endpoints come from.
    pub const KINDS: [&str; 5] = ["source", "dns", "consul", "kubernetes", "file"];

    /// Returns what has to be looked for; `None` if a source supplies the endpoints.
    pub fn query(&self) -> Option<Query> {
        let dns = self.dns.clone().map(|dns| Query::Dns(DnsQuery::Name(dns)));
        let consul = || self.consul.clone().map(|consul| Query::Consul(Box::new(consul)));
        let kubernetes = || self.kubernetes.clone().map(|service| Query::Kubernetes(Box::new(service)));
        dns.or_else(consul).or_else(kubernetes).or_else(|| self.file.clone().map(Query::File))
    }
}

/// What happens when there are no endpoints any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnEmpty {
    /// The endpoints stay until at least three answers in a row were empty, over at least 30 s.
    #[default]
    Keep,
    /// The endpoints are removed.
    Remove,
}

/// What a cluster asks for, if its endpoints are neither listed nor supplied by a source.
///
/// Its text, `KIND:WHAT`, is the name of the service under which the result is a resource, so clusters that ask for the same
/// share it.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// The addresses of names.
    Dns(DnsQuery),
    /// The instances of a service in Consul's catalog.
    Consul(Box<ConsulDiscovery>),
    /// The ready endpoints of a service of Kubernetes.
    Kubernetes(Box<KubernetesDiscovery>),
    /// What a file contains.
    File(PathBuf),
}

impl Query {
    /// The kinds of which each service has a watch of its own.
    pub const WATCHED: [&str; 3] = ["consul", "kubernetes", "file"];

    /// Returns the kind of source.
    pub fn kind(&self) -> &'static str {
        match self {
            Query::Dns(_) => "dns",
            Query::Consul(_) => "consul",
            Query::Kubernetes(_) => "kubernetes",
            Query::File(_) => "file",
        }
    }

    /// Returns what happens when there are no endpoints any more.
    pub fn on_empty(&self) -> OnEmpty {
        match self {
            Query::Dns(DnsQuery::Name(name)) => name.on_empty,
            Query::Dns(DnsQuery::Endpoints(_)) => OnEmpty::Keep,
            Query::Consul(service) => service.on_empty,
            Query::Kubernetes(service) => service.on_empty,
            // Somebody has written that there are none.
            Query::File(_) => OnEmpty::Remove,
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind())?;
        match self {
            Query::Dns(query) => query.fmt(f),
            Query::Consul(service) => service.fmt(f),
            Query::Kubernetes(service) => f.write_str(&serde_json::to_string(service).map_err(|_| fmt::Error)?),
            Query::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Query {
    type Err = String;

    fn from_str(service: &str) -> Result<Self, String> {
        let (kind, what) = service.split_once(':').ok_or("its kind is missing")?;
        match kind {
            "dns" => what.parse().map(Query::Dns),
            "consul" => what.parse().map(|service| Query::Consul(Box::new(service))),
            "kubernetes" => serde_json::from_str(what).map(Query::Kubernetes).map_err(|e| e.to_string()),
            "file" => Ok(Query::File(Path::new(what).to_owned())),
            _ => Err(format!("unknown kind `{kind}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::units::Address, Endpoint},
        *,
    };

    #[test]
    fn queries_are_read_back() {
        let endpoint = |address: &str| Endpoint::new(Address::of_endpoint(address).unwrap(), 1);
        let plain = DnsQuery::Endpoints(vec![endpoint("api.internal:80"), endpoint("[::1]:81")]);
        assert_eq!(Query::Dns(plain.clone()).to_string(), "dns:api.internal:80,[::1]:81");
        let consul = Query::Consul(Box::new(ConsulDiscovery::new("web")));
        assert_eq!(consul.to_string(), "consul:web");
        let kubernetes =
            Query::Kubernetes(serde_json::from_str(r#"{"service":"web","port":80,"hints":true}"#).unwrap());
        for query in [Query::Dns(plain), consul, kubernetes, Query::File("/etc/tollgate/a:b.yaml".into())] {
            assert_eq!(query.to_string().parse(), Ok(query));
        }
        for text in ["", "web", "dns:web", "other:web"] {
            assert!(text.parse::<Query>().is_err(), "{text}");
        }
    }
}
