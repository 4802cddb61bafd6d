//! EndpointSlices (`discovery.k8s.io/v1`) as the API server sends them: lists, events of a watch, and errors. Only the
//! fields that are needed are read, and a slice is kept in a compact form.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/discovery/endpoint-slice-v1/> defines the fields.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer};

/// A slice: some of the endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    /// The service; `None` if it has no label for it.
    pub(super) service: Option<Arc<str>>,
    /// The TCP ports of all its endpoints.
    pub(super) ports: Box<[Port]>,
    pub(super) endpoints: Box<[SliceEndpoint]>,
    /// How many endpoints can neither be used now nor while no other one is ready.
    pub(super) unready: u32,
}

/// A TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    /// Empty if it has no name.
    pub(super) name: Box<str>,
    /// `None`: any.
    pub(super) number: Option<u16>,
}

/// An endpoint that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    pub(super) ip: IpAddr,
    /// Whether it is ready. Otherwise it terminates, but still serves.
    pub(super) is_ready: bool,
    pub(super) zone: Option<Box<str>>,
    pub(super) node: Option<Box<str>>,
    pub(super) pod: Option<Box<str>>,
    /// The zones that should use it; empty without hints.
    pub(super) hints: Box<[Box<str>]>,
}

/// An object of a list or of an event.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object {
    #[serde(default)]
    kind: Option<Box<str>>,
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    address_type: Option<Box<str>>,
    #[serde(default, deserialize_with = "list")]
    ports: Vec<RawPort>,
    #[serde(default, deserialize_with = "list")]
    endpoints: Vec<RawEndpoint>,
}

/// The metadata of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectMeta {
    #[serde(default)]
    pub(super) name: Box<str>,
    #[serde(default)]
    pub(super) resource_version: Box<str>,
    #[serde(default)]
    labels: Option<Labels>,
}

#[derive(Debug, Deserialize)]
struct Labels {
    /// The name of the service to which the slice belongs.
    #[serde(rename = "kubernetes.io/service-name")]
    service: Option<Box<str>>,
}

#[derive(Debug, Deserialize)]
struct RawPort {
    #[serde(default)]
    name: Option<Box<str>>,
    #[serde(default)]
    protocol: Option<Box<str>>,
    #[serde(default)]
    port: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default, deserialize_with = "list")]
    addresses: Vec<Box<str>>,
    #[serde(default)]
    conditions: Option<Conditions>,
    #[serde(default)]
    zone: Option<Box<str>>,
    #[serde(default)]
    node_name: Option<Box<str>>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
    #[serde(default)]
    hints: Option<Hints>,
}

#[derive(Debug, Default, Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    serving: Option<bool>,
    #[serde(default)]
    terminating: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct TargetRef {
    #[serde(default)]
    kind: Option<Box<str>>,
    #[serde(default)]
    name: Option<Box<str>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints {
    #[serde(default, deserialize_with = "list")]
    for_zones: Vec<ZoneHint>,
}

#[derive(Debug, Deserialize)]
struct ZoneHint {
    name: Box<str>,
}

/// A list, which the server writes as `null` when it is empty.
fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct List {
    kind: Box<str>,
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(default, deserialize_with = "list")]
    pub(super) items: Vec<Object>,
}

/// The metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    #[serde(default)]
    pub(super) resource_version: Box<str>,
    /// Asks for the next page; empty on the last one.
    #[serde(default, rename = "continue")]
    pub(super) token: Box<str>,
}

/// The server's description of an error.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(default)]
    message: Box<str>,
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(default)]
    retry_after_seconds: u32,
}

/// The longest description of an error that is shown, in characters.
const MAX_MESSAGE: usize = 400;

/// The longest wait that a server can request.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

impl Status {
    /// The description, if it is not too long to be shown.
    pub(super) fn text(&self) -> String {
        self.message.chars().take(MAX_MESSAGE).collect()
    }

    /// The wait that the server requests.
    pub(super) fn retry_after(&self) -> Duration {
        let wait = self.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        Duration::from_secs(wait.into()).min(MAX_RETRY_AFTER)
    }
}

/// An event of a watch.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// A slice is new or has changed.
    Set { name: Arc<str>, version: Box<str>, slice: Slice },
    /// A slice is gone.
    Removed { name: Arc<str>, version: Box<str> },
    /// Everything up to this version has been sent.
    Bookmark { version: Box<str> },
    /// The watch has failed.
    Error(Status),
}

/// Why what the server sent cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not the JSON of an API server: {0}")]
    Json(#[from] serde_json::Error),
    #[error("`{0}` instead of `{1}`")]
    Kind(Box<str>, &'static str),
    #[error("an object without `metadata.{0}`")]
    Missing(&'static str),
    #[error("an event of the unknown type `{0}`")]
    Event(Box<str>),
}

/// The kinds of objects.
const SLICE: &str = "EndpointSlice";
const LIST: &str = "EndpointSliceList";

impl Event {
    /// Parses a line of a watch.
    ///
    /// # Errors
    /// It is not an event about EndpointSlices.
    pub(super) fn parse(line: &[u8]) -> Result<Event, Malformed> {
        #[derive(Deserialize)]
        struct Type<'e> {
            #[serde(borrow, rename = "type")]
            kind: std::borrow::Cow<'e, str>,
        }
        #[derive(Deserialize)]
        struct With<T> {
            object: T,
        }
        let Type { kind } = serde_json::from_slice(line)?;
        if kind == "ERROR" {
            let With { object } = serde_json::from_slice::<With<Status>>(line)?;
            return Ok(Event::Error(object));
        }
        if !["ADDED", "MODIFIED", "DELETED", "BOOKMARK"].contains(&&*kind) {
            return Err(Malformed::Event(kind.chars().take(40).collect()));
        }
        let With { object } = serde_json::from_slice::<With<Object>>(line)?;
        object.is_slice()?;
        if object.metadata.resource_version.is_empty() {
            return Err(Malformed::Missing("resourceVersion"));
        }
        let version = object.metadata.resource_version.clone();
        Ok(match &*kind {
            "BOOKMARK" => Event::Bookmark { version },
            "DELETED" => Event::Removed { name: object.name()?, version },
            _ => {
                let (name, slice) = object.into_slice()?;
                Event::Set { name, version, slice }
            }
        })
    }
}

impl List {
    /// Parses a page of a list.
    ///
    /// # Errors
    /// It is not a list of EndpointSlices.
    pub(super) fn parse(body: &[u8]) -> Result<List, Malformed> {
        let list: List = serde_json::from_slice(body)?;
        if &*list.kind != LIST {
            return Err(Malformed::Kind(list.kind, LIST));
        }
        if list.metadata.resource_version.is_empty() {
            return Err(Malformed::Missing("resourceVersion"));
        }
        Ok(list)
    }
}

impl Object {
    /// Checks the kind. The items of a list need not have one.
    fn is_slice(&self) -> Result<(), Malformed> {
        match &self.kind {
            Some(kind) if &**kind != SLICE => Err(Malformed::Kind(kind.clone(), SLICE)),
            _ => Ok(()),
        }
    }

    fn name(&self) -> Result<Arc<str>, Malformed> {
        match self.metadata.name.is_empty() {
            true => Err(Malformed::Missing("name")),
            false => Ok((*self.metadata.name).into()),
        }
    }

    /// The name and the content of a slice.
    ///
    /// # Errors
    /// It is not an EndpointSlice, or has no name. What is wrong with a port or an endpoint only makes that unusable.
    pub(super) fn into_slice(self) -> Result<(Arc<str>, Slice), Malformed> {
        self.is_slice()?;
        let name = self.name()?;
        let service = self.metadata.labels.and_then(|labels| labels.service).filter(|service| !service.is_empty());
        let ports = self.ports.into_iter().filter_map(RawPort::into_tcp).collect();
        let is_v4 = match self.address_type.as_deref() {
            Some("IPv4") => Some(true),
            Some("IPv6") => Some(false),
            // `FQDN` is deprecated, and no controller writes it.
            _ => None,
        };
        let all = self.endpoints.len();
        let usable = self.endpoints.into_iter().filter_map(|endpoint| endpoint.into_usable(is_v4?));
        let endpoints: Box<[_]> = usable.collect();
        let unready = u32::try_from(all - endpoints.len()).unwrap_or(u32::MAX);
        Ok((name, Slice { service: service.map(Arc::from), ports, endpoints, unready }))
    }
}

impl RawPort {
    fn into_tcp(self) -> Option<Port> {
        if self.protocol.is_some_and(|protocol| &*protocol != "TCP") {
            return None;
        }
        let number = match self.port {
            None => None,
            Some(port) => Some(u16::try_from(port).ok().filter(|port| *port != 0)?),
        };
        Some(Port { name: self.name.unwrap_or_default(), number })
    }
}

impl RawEndpoint {
    /// Returns an endpoint that is ready, or that serves while it terminates. A condition that is not given is true for
    /// `ready`, equals `ready` for `serving`, and is false for `terminating`.
    fn into_usable(self, is_v4: bool) -> Option<SliceEndpoint> {
        let Conditions { ready, serving, terminating } = self.conditions.unwrap_or_default();
        let is_ready = ready.unwrap_or(true);
        let is_draining = serving.unwrap_or(is_ready) && terminating.unwrap_or(false);
        if !is_ready && !is_draining {
            return None;
        }
        // Only the first address has a meaning.
        let ip: IpAddr = self.addresses.first()?.parse().ok()?;
        if ip.is_ipv4() != is_v4 || ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        let text = |text: Option<Box<str>>| text.filter(|text| !text.is_empty());
        let target = self.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        Some(SliceEndpoint {
            ip,
            is_ready,
            zone: text(self.zone),
            node: text(self.node_name),
            pod: text(target.and_then(|target| target.name)),
            hints: self.hints.into_iter().flat_map(|hints| hints.for_zones).map(|zone| zone.name).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(object: Value) -> Slice {
        serde_json::from_value::<Object>(object).unwrap().into_slice().unwrap().1
    }

    /// The addresses of the endpoints with these conditions; `+` marks ready ones.
    fn usable(all: &[Value]) -> String {
        let endpoint =
            |(n, conditions): (usize, &Value)| json!({"addresses": [format!("10.0.0.{n}")], "conditions": conditions});
        let endpoints: Vec<_> = all.iter().enumerate().map(endpoint).collect();
        let slice = slice(json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": endpoints}));
        let shown = slice.endpoints.iter().map(|one| match one.is_ready {
            true => format!("+{}", one.ip),
            false => one.ip.to_string(),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn missing_conditions_have_their_documented_values() {
        for (conditions, expected) in [
            (Value::Null, "+10.0.0.0"),
            (json!({}), "+10.0.0.0"),
            (json!({"ready": null, "serving": null, "terminating": null}), "+10.0.0.0"),
            (json!({"ready": true, "serving": false}), "+10.0.0.0"),
            (json!({"ready": true, "terminating": true}), "+10.0.0.0"),
            (json!({"ready": false}), ""),
            (json!({"ready": false, "serving": true}), ""),
            (json!({"ready": false, "serving": true, "terminating": true}), "10.0.0.0"),
            (json!({"ready": false, "terminating": true}), ""),
            (json!({"ready": false, "serving": false, "terminating": true}), ""),
        ] {
            assert_eq!(usable(std::slice::from_ref(&conditions)), expected, "{conditions}");
        }
    }

    #[test]
    fn slice_has_what_the_server_says_about_it() {
        let slice = slice(json!({
            "kind": "EndpointSlice",
            "metadata": {"name": "web-abc", "labels": {"kubernetes.io/service-name": "web", "a": "b"}, "managedFields": [1]},
            "addressType": "IPv6",
            "ports": [
                {"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"},
                {"name": null, "port": 9090},
                {"name": "any", "port": null, "protocol": "TCP"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "zero", "port": 0},
                {"name": "large", "port": 65536},
            ],
            "endpoints": [
                {
                    "addresses": ["fd00::1", "fd00::2"],
                    "zone": "eu-1a",
                    "nodeName": "node-1",
                    "targetRef": {"kind": "Pod", "name": "web-0", "namespace": "shop", "uid": "x"},
                    "hints": {"forZones": [{"name": "eu-1a"}, {"name": "eu-1b"}]},
                    "deprecatedTopology": {"x": "y"},
                },
                {"addresses": ["10.0.0.1"]},
                {"addresses": ["web-1.internal"]},
                {"addresses": ["::"]},
                {"addresses": []},
                {"addresses": null, "conditions": {"ready": true}},
                {"addresses": ["fd00::3"], "targetRef": {"kind": "Node", "name": "n"}, "zone": "", "hints": {}},
            ],
        }));
        let port = |name: &str, number| Port { name: name.into(), number };
        assert_eq!(slice.service.as_deref(), Some("web"));
        assert_eq!(*slice.ports, [port("http", Some(8080)), port("", Some(9090)), port("any", None)]);
        let plain = SliceEndpoint {
            ip: "fd00::3".parse().unwrap(),
            is_ready: true,
            zone: None,
            node: None,
            pod: None,
            hints: Box::default(),
        };
        let first = SliceEndpoint {
            ip: "fd00::1".parse().unwrap(),
            zone: Some("eu-1a".into()),
            node: Some("node-1".into()),
            pod: Some("web-0".into()),
            hints: ["eu-1a".into(), "eu-1b".into()].into(),
            ..plain.clone()
        };
        assert_eq!(*slice.endpoints, [first, plain]);
        assert_eq!(slice.unready, 5);
    }

    #[test]
    fn null_lists_and_names_instead_of_addresses_are_empty() {
        let none = slice(
            json!({"metadata": {"name": "a", "labels": null}, "addressType": "IPv4", "endpoints": null, "ports": null}),
        );
        assert!(none.endpoints.is_empty() && none.ports.is_empty() && none.service.is_none());
        let list =
            List::parse(br#"{"kind":"EndpointSliceList","metadata":{"resourceVersion":"7"},"items":null}"#).unwrap();
        assert!(list.items.is_empty() && list.metadata.token.is_empty());
        let named =
            slice(json!({"metadata": {"name": "a"}, "addressType": "FQDN", "endpoints": [{"addresses": ["a.test"]}]}));
        assert!(named.endpoints.is_empty());
    }

    #[test]
    fn events_are_told_apart() {
        let parse = |text: &str| Event::parse(text.as_bytes()).map_err(|wrong| wrong.to_string());
        let object = r#"{"kind":"EndpointSlice","metadata":{"name":"a","resourceVersion":"8"},"addressType":"IPv4","endpoints":[]}"#;
        for kind in ["ADDED", "MODIFIED"] {
            let event = parse(&format!(r#"{{"object":{object},"type":"{kind}"}}"#)).unwrap();
            assert!(matches!(event, Event::Set { ref name, ref version, .. } if &**name == "a" && &**version == "8"));
        }
        let gone = Event::Removed { name: "a".into(), version: "8".into() };
        assert_eq!(parse(&format!(r#"{{"type":"DELETED","object":{object}}}"#)), Ok(gone));
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"EndpointSlice","metadata":{"resourceVersion":"12"},"endpoints":null}}"#;
        assert_eq!(parse(bookmark), Ok(Event::Bookmark { version: "12".into() }));
        let error = r#"{"type":"ERROR","object":{"kind":"Status","message":"too old resource version: 1 (9)","reason":"Expired","code":410}}"#;
        assert!(matches!(parse(error), Ok(Event::Error(Status { code: 410, .. }))));
        for (text, expected) in [
            ("", "not the JSON"),
            ("{", "not the JSON"),
            ("[]", "not the JSON"),
            (r#"{"type":"ADDED"}"#, "missing field `object`"),
            (r#"{"type":"NEWS","object":{}}"#, "unknown type `NEWS`"),
            (
                r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"a","resourceVersion":"1"}}}"#,
                "`Pod` instead",
            ),
            (r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#, "without `metadata.resourceVersion`"),
            (r#"{"type":"DELETED","object":{"metadata":{"resourceVersion":"1"}}}"#, "without `metadata.name`"),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
        assert!(List::parse(br#"{"kind":"PodList","metadata":{"resourceVersion":"1"}}"#).is_err());
        assert!(List::parse(br#"{"kind":"EndpointSliceList","metadata":{}}"#).is_err());
    }
}
