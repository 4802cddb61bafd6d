//! What an answer says: from the instances of a service to endpoints.

use std::{collections::BTreeMap, net::IpAddr};

use http::HeaderMap;
use serde::Deserialize;

use super::super::watches::Answer;
use crate::config::model::{ConsulAddress, ConsulDiscovery, Endpoint, Locality, Metadata, MetadataValue};

/// The most instances that are used.
const MAX_ENDPOINTS: usize = 4096;

/// The greatest weight of an endpoint.
const MAX_WEIGHT: u32 = 65_535;

/// The state of an instance: that of its worst check, of the service or of its node. Maintenance is a critical check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Passing,
    Warning,
    Critical,
}

impl Health {
    const ALL: [Health; 3] = [Health::Passing, Health::Warning, Health::Critical];

    fn as_str(self) -> &'static str {
        match self {
            Health::Passing => "passing",
            Health::Warning => "warning",
            Health::Critical => "critical",
        }
    }

    /// What is unknown is not healthy.
    fn of(status: &str) -> Health {
        match status {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            _ => Health::Critical,
        }
    }
}

/// An instance, as far as it is used. Lists and maps may be null.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    node: String,
    address: String,
    datacenter: String,
    tagged_addresses: Option<BTreeMap<String, String>>,
    locality: Option<ConsulLocality>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    address: String,
    port: i64,
    tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    tagged_addresses: Option<BTreeMap<String, TaggedAddress>>,
    weights: Option<Weights>,
    locality: Option<ConsulLocality>,
}

#[derive(Debug, Deserialize)]
struct TaggedAddress {
    #[serde(alias = "Address")]
    address: String,
    #[serde(alias = "Port", default)]
    port: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: i64,
    warning: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConsulLocality {
    region: String,
    zone: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

impl Instance {
    fn health(&self) -> Health {
        let checks = self.checks.iter().flatten();
        checks.map(|check| Health::of(&check.status)).max().unwrap_or(Health::Passing)
    }

    /// The address and the port that are asked for.
    fn address(&self, wanted: ConsulAddress) -> (&str, i64) {
        let Instance { node, service, .. } = self;
        let own = if service.address.is_empty() { &node.address } else { &service.address };
        let Some(tag) = wanted.tag() else {
            return (if wanted == ConsulAddress::Node { &node.address } else { own }, service.port);
        };
        let of_service = service.tagged_addresses.as_ref().and_then(|all| all.get(tag));
        let of_node =
            node.tagged_addresses.as_ref().and_then(|all| all.get(tag)).filter(|_| service.address.is_empty());
        match (of_service, of_node) {
            (Some(tagged), _) if tagged.port == 0 => (&tagged.address, service.port),
            (Some(tagged), _) => (&tagged.address, tagged.port),
            (None, Some(address)) => (address, service.port),
            (None, None) => (own, service.port),
        }
    }

    /// # Errors Its address cannot be connected to.
    fn endpoint(&self, wanted: ConsulAddress, health: Health) -> Result<Endpoint, String> {
        let (address, port) = self.address(wanted);
        let unusable = |why: &str| format!("instance `{}` of node `{}` has {why}", self.service.id, self.node.node);
        let ip: IpAddr = match address.parse() {
            Ok(ip) => ip,
            Err(_) if address.is_empty() => return Err(unusable("no address")),
            Err(_) => return Err(unusable(&format!("the host name `{address}` as its address"))),
        };
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| unusable("no port"))?;
        let weight = self.service.weights.as_ref().map_or(1, |weights| match health {
            Health::Passing => weights.passing,
            Health::Warning | Health::Critical => weights.warning,
        });
        let locality = self.service.locality.as_ref().or(self.node.locality.as_ref());
        let locality = locality.filter(|locality| !locality.region.is_empty() || !locality.zone.is_empty());
        let locality = locality.map(|ConsulLocality { region, zone }| {
            Box::new(Locality { region: region.clone(), zone: zone.clone(), sub_zone: String::new() })
        });
        Ok(Endpoint {
            locality,
            metadata: Some(Box::new(self.metadata(health))),
            ..Endpoint::new(std::net::SocketAddr::new(ip, port), u32::try_from(weight).unwrap_or(0).min(MAX_WEIGHT))
        })
    }

    /// The service's own metadata, and what else is known of the instance.
    fn metadata(&self, health: Health) -> Metadata {
        let text = |text: &str| MetadataValue::Text(text.to_owned());
        let own = self.service.meta.iter().flatten().map(|(name, value)| (name.clone(), text(value)));
        let mut all: Metadata = own.collect();
        let mut tags: Vec<&str> = self.service.tags.iter().flatten().map(String::as_str).collect();
        tags.sort_unstable();
        let known = [
            ("consul.datacenter", &*self.node.datacenter),
            ("consul.id", &self.service.id),
            ("consul.node", &self.node.node),
            ("consul.status", health.as_str()),
            ("consul.tags", &tags.join(",")),
        ];
        all.extend(known.map(|(name, value)| (name.to_owned(), text(value))));
        all
    }
}

/// Reads an answer.
///
/// # Errors It is not one, or it has no instances for another reason than that there are none.
pub(super) fn read(headers: &HeaderMap, body: &[u8], query: &ConsulDiscovery) -> Result<Answer, String> {
    let instances: Vec<Instance> =
        serde_json::from_slice(body).map_err(|e| format!("the answer is not what Consul sends: {e}"))?;
    let is = |name: &str, text: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(text.as_bytes()))
    };
    let mut notes = Vec::new();
    if is("x-consul-results-filtered-by-acls", "true") {
        notes.push("the token may not see all instances".to_owned());
    }
    // Only stale answers can be of such a server. They may be of any age.
    if is("x-consul-knownleader", "false") {
        let age = headers.get("x-consul-lastcontact").and_then(|value| value.to_str().ok()).unwrap_or("unknown");
        notes.push(format!("the server that answered knows no leader (last contact in ms: {age})"));
    }
    if instances.is_empty() && !notes.is_empty() {
        return Err(notes.join("; "));
    }
    let (mut endpoints, mut counts, mut unusable) = (Vec::with_capacity(instances.len()), [0; 3], Vec::new());
    for instance in &instances {
        let health = instance.health();
        counts[health as usize] += 1;
        if health == Health::Critical || health == Health::Warning && query.only_passing {
            continue;
        }
        match instance.endpoint(query.address, health) {
            Ok(endpoint) => endpoints.push((endpoint, health)),
            Err(why) => unusable.push(why),
        }
    }
    // The order of answers changes. Of two instances with the same address, the one in the better state counts.
    endpoints.sort_by(|(a, one), (b, other)| (&a.address, one, b.weight).cmp(&(&b.address, other, a.weight)));
    endpoints.dedup_by(|(b, _), (a, _)| a.address == b.address);
    if endpoints.len() > MAX_ENDPOINTS {
        notes.push(format!("only {MAX_ENDPOINTS} of {} instances are used", endpoints.len()));
        endpoints.truncate(MAX_ENDPOINTS);
    }
    if let Some(first) = unusable.first() {
        let others = match unusable.len() {
            1 => String::new(),
            n => format!(", and {} others cannot be used either", n - 1),
        };
        notes.push(format!("{first}{others}"));
    }
    if endpoints.is_empty() && notes.is_empty() {
        notes.push(match instances.len() {
            0 => "the service has no instances".to_owned(),
            n => format!("none of the {n} instances is healthy enough"),
        });
    }
    let states = Health::ALL.map(|health| (health.as_str(), counts[health as usize]));
    Ok(Answer {
        endpoints: endpoints.into_iter().map(|(endpoint, _)| endpoint).collect(),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        states: states.into(),
    })
}

#[cfg(test)]
mod tests;
