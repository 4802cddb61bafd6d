//! From the slices of a service to the endpoints of a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    super::families::{is_routable, of_families},
    slice::{Slice, SliceEndpoint},
};
use crate::config::model::{Endpoint, KubernetesDiscovery, Locality, Metadata, MetadataValue, ServicePort};

/// Why a service has no endpoints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Empty {
    #[error("the namespace `{namespace}` has no EndpointSlices of a service `{service}`")]
    NoService { namespace: String, service: String },
    #[error("the service has no TCP port {wanted}; it has {known}")]
    NoPort { wanted: ServicePort, known: String },
    #[error("the service has several TCP ports, {known}: set `port`")]
    WhichPort { known: String },
    #[error("the service has no endpoint that is ready; {unready} are not")]
    NotReady { unready: u32 },
    #[error("the service has no ready endpoint of the address family in `families`")]
    OtherFamily,
}

/// Where a cluster's service is, and where the proxy is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'p> {
    pub(super) namespace: &'p str,
    /// The region of all endpoints; empty: unknown.
    pub(super) region: &'p str,
    /// The proxy's zone; empty: unknown.
    pub(super) zone: &'p str,
}

/// Returns the endpoints of a service, ordered by address, from its slices. Two slices may have the same endpoint while
/// it moves from one to the other; it is ready if one of them says so. Without any ready endpoint, those that serve while
/// they terminate are used.
///
/// # Errors
/// There are none.
pub(super) fn endpoints<'s>(
    wanted: &KubernetesDiscovery,
    place: Place<'_>,
    slices: impl Iterator<Item = &'s Slice> + Clone,
) -> Result<Vec<Endpoint>, Empty> {
    let Place { namespace, region, zone } = place;
    if slices.clone().next().is_none() {
        return Err(Empty::NoService { namespace: namespace.to_owned(), service: wanted.service.clone() });
    }
    let mut all: BTreeMap<SocketAddr, &SliceEndpoint> = BTreeMap::new();
    let mut unready = 0u32;
    let port = Ports::of(slices.clone()).choose(wanted.port.as_ref())?;
    for slice in slices {
        unready = unready.saturating_add(slice.unready);
        let Some(port) = slice_port(slice, port) else { continue };
        for endpoint in &slice.endpoints {
            let known = all.entry(SocketAddr::new(endpoint.ip, port)).or_insert(endpoint);
            if endpoint.is_ready && !known.is_ready {
                *known = endpoint;
            }
        }
    }
    if all.is_empty() {
        return Err(Empty::NotReady { unready });
    }
    let one_is_ready = all.values().any(|endpoint| endpoint.is_ready);
    let used: Vec<_> = all.into_iter().filter(|(_, endpoint)| endpoint.is_ready || !one_is_ready).collect();
    let used = of_families(used, wanted.families, |(address, _)| address.ip(), is_routable);
    if used.is_empty() {
        return Err(Empty::OtherFamily);
    }
    // Hints count only if they cover all endpoints and the zone has some: Topology Aware Routing, "Safeguards".
    let is_near = |endpoint: &SliceEndpoint| endpoint.hints.iter().any(|hint| **hint == *zone);
    let has_hints = |(_, endpoint): &(_, &SliceEndpoint)| !endpoint.hints.is_empty();
    let follows_hints = wanted.hints && used.iter().all(has_hints) && used.iter().any(|(_, one)| is_near(one));
    let hostname = format!("{}.{namespace}.svc", wanted.service);
    let endpoint = |(address, endpoint): (SocketAddr, &SliceEndpoint)| Endpoint {
        priority: u32::from(follows_hints && !is_near(endpoint)),
        locality: locality(region, endpoint).map(Box::new),
        metadata: metadata(endpoint).map(Box::new),
        hostname: Some(hostname.clone()),
        ..Endpoint::new(address, 1)
    };
    Ok(used.into_iter().map(endpoint).collect())
}

/// Returns the numbers of a service's endpoints by state. Those that neither are ready nor serve are not told apart.
pub(super) fn states<'s>(slices: impl Iterator<Item = &'s Slice>) -> Vec<(&'static str, usize)> {
    let (mut usable, mut unready) = (BTreeMap::<IpAddr, bool>::new(), 0);
    for slice in slices {
        unready += slice.unready as usize;
        slice.endpoints.iter().for_each(|one| *usable.entry(one.ip).or_default() |= one.is_ready);
    }
    let ready = usable.values().filter(|is_ready| **is_ready).count();
    vec![("ready", ready), ("terminating", usable.len() - ready), ("not_ready", unready)]
}

/// The ports of a service's slices by name.
struct Ports<'s>(BTreeMap<&'s str, BTreeSet<Option<u16>>>);

/// How the port of a slice is found.
#[derive(Clone, Copy)]
enum Choice<'s> {
    Named(&'s str),
    Number(u16),
}

impl<'s> Ports<'s> {
    fn of(slices: impl Iterator<Item = &'s Slice>) -> Ports<'s> {
        let mut all: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
        for port in slices.flat_map(|slice| &slice.ports) {
            all.entry(&port.name).or_default().insert(port.number);
        }
        Ports(all)
    }

    /// Without any port, there is no endpoint either, so nothing is wrong with the wanted port.
    fn choose(&self, wanted: Option<&'s ServicePort>) -> Result<Choice<'s>, Empty> {
        let is_known = |number: &u16| self.0.values().flatten().any(|known| known.is_none_or(|known| known == *number));
        match wanted {
            Some(ServicePort::Name(name)) if self.0.is_empty() || self.0.contains_key(&**name) => {
                Ok(Choice::Named(name))
            }
            Some(ServicePort::Number(number)) if self.0.is_empty() || is_known(number) => Ok(Choice::Number(*number)),
            Some(wanted) => Err(Empty::NoPort { wanted: wanted.clone(), known: self.to_string() }),
            None if self.0.len() > 1 => Err(Empty::WhichPort { known: self.to_string() }),
            None => Ok(Choice::Named(self.0.keys().next().copied().unwrap_or_default())),
        }
    }
}

impl std::fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (name, numbers)) in self.0.iter().enumerate() {
            let numbers = numbers.iter().map(|number| number.map_or("any".to_owned(), |number| number.to_string()));
            let numbers = numbers.collect::<Vec<_>>().join("/");
            let comma = if i == 0 { "" } else { ", " };
            match name.is_empty() {
                true => write!(f, "{comma}{numbers}")?,
                false => write!(f, "{comma}`{name}` ({numbers})")?,
            }
        }
        Ok(())
    }
}

/// The port of a slice's endpoints. Slices may have different numbers under one name.
fn slice_port(slice: &Slice, choice: Choice<'_>) -> Option<u16> {
    match choice {
        Choice::Named(name) => slice.ports.iter().find(|port| *port.name == *name)?.number,
        Choice::Number(number) => {
            let has = slice.ports.iter().any(|port| port.number.is_none_or(|known| known == number));
            has.then_some(number)
        }
    }
}

fn locality(region: &str, endpoint: &SliceEndpoint) -> Option<Locality> {
    let zone = endpoint.zone.as_deref().unwrap_or_default();
    let is_known = !region.is_empty() || !zone.is_empty();
    is_known.then(|| Locality { region: region.to_owned(), zone: zone.to_owned(), sub_zone: String::new() })
}

fn metadata(endpoint: &SliceEndpoint) -> Option<Metadata> {
    let text = |text: &Option<Box<str>>| text.as_ref().map(ToString::to_string);
    let hints = (!endpoint.hints.is_empty()).then(|| endpoint.hints.join(","));
    let known = [("node", text(&endpoint.node)), ("pod", text(&endpoint.pod)), ("zone_hints", hints)];
    let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), MetadataValue::Text(value?))));
    Some(known.collect()).filter(|known: &Metadata| !known.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::slice::Object, *};

    /// A slice with a port `http`, and endpoints with these last parts of addresses.
    fn slice(family: &str, port: u16, endpoints: &[(u8, Value)]) -> Slice {
        let address = |n: &u8| if family == "IPv4" { format!("10.0.0.{n}") } else { format!("fd00::{n}") };
        let endpoint = |(n, more): &(u8, Value)| {
            let mut endpoint = json!({"addresses": [address(n)]});
            endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            endpoint
        };
        with_ports(family, json!([{"name": "http", "port": port}]), endpoints.iter().map(endpoint).collect())
    }

    fn with_ports(family: &str, ports: Value, endpoints: Vec<Value>) -> Slice {
        let object = json!({"metadata": {"name": "a"}, "addressType": family, "ports": ports, "endpoints": endpoints});
        serde_json::from_value::<Object>(object).unwrap().into_slice().unwrap().1
    }

    fn wanted(more: Value) -> KubernetesDiscovery {
        let mut all = json!({"service": "web"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn ready() -> Value {
        json!({})
    }

    fn draining() -> Value {
        json!({"conditions": {"ready": false, "serving": true, "terminating": true}})
    }

    const PLACE: Place<'_> = Place { namespace: "shop", region: "", zone: "eu-1a" };

    fn found(wanted: &KubernetesDiscovery, slices: &[Slice]) -> Result<Vec<Endpoint>, Empty> {
        endpoints(wanted, PLACE, slices.iter())
    }

    fn texts(wanted: &KubernetesDiscovery, slices: &[Slice]) -> String {
        match found(wanted, slices) {
            Ok(all) => all.iter().map(|one| one.address.to_string()).collect::<Vec<_>>().join(" "),
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn slices_are_merged_without_duplicates_and_in_a_fixed_order() {
        let (one, two) =
            (slice("IPv4", 80, &[(3, ready()), (1, ready())]), slice("IPv4", 80, &[(1, ready()), (2, ready())]));
        let all = "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80";
        let wanted = wanted(json!({}));
        assert_eq!(texts(&wanted, &[one.clone(), two.clone()]), all);
        assert_eq!(found(&wanted, &[one.clone(), two.clone()]), found(&wanted, &[two, one]));
    }

    #[test]
    fn endpoint_of_two_slices_is_ready_if_one_says_so() {
        let unready = json!({"conditions": {"ready": false}});
        for (a, b) in [(draining(), ready()), (ready(), draining()), (unready.clone(), ready()), (ready(), unready)] {
            let slices = [slice("IPv4", 80, &[(1, a)]), slice("IPv4", 80, &[(1, b), (2, draining())])];
            assert_eq!(texts(&wanted(json!({})), &slices), "10.0.0.1:80");
        }
    }

    #[test]
    fn terminating_endpoints_are_used_only_if_none_is_ready() {
        let unready = json!({"conditions": {"ready": false}});
        let wanted = wanted(json!({}));
        let both = [slice("IPv4", 80, &[(1, draining())]), slice("IPv4", 80, &[(2, ready())])];
        assert_eq!(texts(&wanted, &both), "10.0.0.2:80");
        assert_eq!(texts(&wanted, &[slice("IPv4", 80, &[(1, draining()), (2, unready.clone())])]), "10.0.0.1:80");
        let none = slice("IPv4", 80, &[(2, unready)]);
        assert_eq!(found(&wanted, &[none.clone(), none]), Err(Empty::NotReady { unready: 2 }));
    }

    #[test]
    fn endpoints_are_counted_by_state() {
        let unready = json!({"conditions": {"ready": false}});
        let one = slice("IPv4", 80, &[(1, ready()), (2, draining()), (3, draining()), (4, unready.clone())]);
        let two = slice("IPv4", 80, &[(1, draining()), (3, ready()), (5, unready)]);
        assert_eq!(states([one, two].iter()), [("ready", 2), ("terminating", 1), ("not_ready", 2)]);
    }

    #[test]
    fn port_is_chosen_by_name_or_number() {
        let ports = json!([{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}]);
        let other = json!([{"name": "http", "port": 8081}, {"name": "metrics", "port": 9090}]);
        let one = vec![json!({"addresses": ["10.0.0.1"]})];
        let two = vec![json!({"addresses": ["10.0.0.2"]})];
        let slices = [with_ports("IPv4", ports, one.clone()), with_ports("IPv4", other, two)];
        for (port, expected) in [
            (json!("http"), "10.0.0.1:8080 10.0.0.2:8081"),
            (json!("metrics"), "10.0.0.1:9090 10.0.0.2:9090"),
            (json!(8081), "10.0.0.2:8081"),
            (json!(9090), "10.0.0.1:9090 10.0.0.2:9090"),
            (json!("grpc"), "no TCP port `grpc`; it has `http` (8080/8081), `metrics` (9090)"),
            (json!(80), "no TCP port 80; it has `http` (8080/8081), `metrics` (9090)"),
            (Value::Null, "several TCP ports, `http` (8080/8081), `metrics` (9090): set `port`"),
        ] {
            let texts = texts(&wanted(json!({"port": port})), &slices);
            assert!(texts.contains(expected), "{port}: {texts}");
        }
        let unnamed =
            [with_ports("IPv4", json!([{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]), one.clone())];
        assert_eq!(texts(&wanted(json!({})), &unnamed), "10.0.0.1:80");
        assert!(texts(&wanted(json!({"port": "http"})), &unnamed).contains("it has 80"));
        let any = [with_ports("IPv4", json!([{"name": "any", "port": null}]), one)];
        assert_eq!(texts(&wanted(json!({"port": 7})), &any), "10.0.0.1:7");
        assert!(texts(&wanted(json!({"port": "any"})), &any).contains("no endpoint that is ready"));
    }

    #[test]
    fn slices_without_ports_are_those_of_a_service_without_endpoints() {
        let none = [with_ports("IPv4", Value::Null, Vec::new())];
        for port in [Value::Null, json!("http"), json!(80)] {
            assert_eq!(found(&wanted(json!({"port": port})), &none), Err(Empty::NotReady { unready: 0 }));
        }
        let none = Empty::NoService { namespace: "shop".into(), service: "web".into() };
        assert_eq!(found(&wanted(json!({})), &[]), Err(none));
    }

    #[test]
    fn address_family_is_chosen() {
        let (v4, v6) = (slice("IPv4", 80, &[(1, ready())]), slice("IPv6", 80, &[(1, ready())]));
        let (four, six) = ("10.0.0.1:80", "[fd00::1]:80");
        for (families, expected) in [("prefer_ipv4", four), ("prefer_ipv6", six), ("ipv4", four), ("ipv6", six)] {
            let wanted = wanted(json!({"families": families}));
            assert_eq!(texts(&wanted, &[v4.clone(), v6.clone()]), expected, "{families}");
        }
        assert_eq!(texts(&wanted(json!({})), &[v4.clone(), v6.clone()]), four, "the default");
        assert_eq!(texts(&wanted(json!({})), std::slice::from_ref(&v6)), six);
        assert_eq!(found(&wanted(json!({"families": "ipv4"})), &[v6]), Err(Empty::OtherFamily));
        // A family whose endpoints terminate is not preferred to one whose endpoints are ready.
        let v4 = slice("IPv4", 80, &[(1, draining())]);
        assert_eq!(texts(&wanted(json!({})), &[v4, slice("IPv6", 80, &[(1, ready())])]), six);
    }

    #[test]
    fn hints_are_followed_if_all_endpoints_have_some_and_the_zone_is_among_them() {
        let hint = |zone: &str| json!({"hints": {"forZones": [{"name": zone}, {"name": "eu-1c"}]}});
        let priorities = |more: Value, slices: &[Slice]| {
            let all = found(&wanted(more), slices).unwrap();
            all.iter().map(|one| one.priority).collect::<Vec<_>>()
        };
        let all = [slice("IPv4", 80, &[(1, hint("eu-1b")), (2, hint("eu-1a")), (3, hint("eu-1b"))])];
        assert_eq!(priorities(json!({"hints": true}), &all), [1, 0, 1]);
        assert_eq!(priorities(json!({}), &all), [0, 0, 0]);
        let some = [slice("IPv4", 80, &[(1, hint("eu-1b")), (2, hint("eu-1a")), (3, ready())])];
        assert_eq!(priorities(json!({"hints": true}), &some), [0, 0, 0]);
        let elsewhere = [slice("IPv4", 80, &[(1, hint("eu-1b")), (2, hint("eu-1b"))])];
        assert_eq!(priorities(json!({"hints": true}), &elsewhere), [0, 0]);
    }

    #[test]
    fn endpoint_has_a_locality_metadata_and_a_host_name() {
        let more = json!({
            "zone": "eu-1a", "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "web-0"},
            "hints": {"forZones": [{"name": "eu-1a"}, {"name": "eu-1b"}]},
        });
        let slices = [slice("IPv4", 80, &[(1, more), (2, ready())])];
        let place = Place { region: "eu-1", ..PLACE };
        let all = endpoints(&wanted(json!({})), place, slices.iter()).unwrap();
        let all = serde_json::to_value(all).unwrap();
        let expected = json!([
            {
                "address": "10.0.0.1:80", "weight": 1, "locality": {"region": "eu-1", "zone": "eu-1a"},
                "metadata": {"node": "n1", "pod": "web-0", "zone_hints": "eu-1a,eu-1b"}, "hostname": "web.shop.svc",
            },
            {"address": "10.0.0.2:80", "weight": 1, "locality": {"region": "eu-1"}, "hostname": "web.shop.svc"},
        ]);
        assert_eq!(all, expected);
        let all = found(&wanted(json!({})), &slices).unwrap();
        assert!(all[1].locality.is_none() && all[1].metadata.is_none());
    }
}
