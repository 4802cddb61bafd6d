//! Watches of Kubernetes EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tollgate::fuzzing::endpoint_slices;

use crate::{Outcome, Target, cuts};

/// What is known does not depend on how the watch is split, is counted correctly, and has the services that the events name.
fn check(input: &[u8]) -> Outcome {
    let whole = endpoint_slices(&[input]);
    assert_eq!(whole.services.values().map(Vec::len).sum::<usize>(), whole.endpoints);
    assert!(whole.error.as_ref().is_none_or(|error| !error.is_empty() && error.len() < 4000), "{:?}", whole.error);
    for cut in cuts(input) {
        let (before, after) = input.split_at(cut);
        assert_eq!(endpoint_slices(&[before, after]), whole, "cut at {cut}");
    }
    if let Some((services, version)) = by_hand(input, whole.events) {
        assert_eq!(whole.services.keys().cloned().collect::<BTreeSet<_>>(), services);
        assert_eq!(whole.version, version);
    }
    let kind = whole.error.map(|error| error.split(' ').take(5).map(str::len).collect::<Vec<_>>());
    Outcome::of((whole.events, whole.services, kind))
}

/// The services that have slices after this number of events, and the last version; `None` if it is not known.
fn by_hand(input: &[u8], events: usize) -> Option<(BTreeSet<String>, String)> {
    let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let (mut owners, mut version) = (BTreeMap::new(), "0".to_owned());
    for line in lines.take(events) {
        let event: Value = serde_json::from_slice(line).ok()?;
        let metadata = &event["object"]["metadata"];
        version = metadata["resourceVersion"].as_str()?.to_owned();
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let service = metadata["labels"]["kubernetes.io/service-name"].as_str().filter(|service| !service.is_empty());
        match (event["type"].as_str()?, service) {
            ("ADDED" | "MODIFIED", Some(service)) => _ = owners.insert(name, service.to_owned()),
            ("ADDED" | "MODIFIED", None) | ("DELETED", _) => _ = owners.remove(&name),
            _ => {}
        }
    }
    Some((owners.into_values().collect(), version))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"1\",\"labels\":{\"kubernetes.io/service-name\":\"web\"}},\"addressType\":\"IPv4\",\"endpoints\":[{\"addresses\":[\"10.0.0.1\"]}]}}\n",
        b"{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"2\"}}}\n",
        b"{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"3\"}}}\n",
        b"{\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"EndpointSlice\",\"metadata\":{\"resourceVersion\":\"4\"}}}\n",
        b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"message\":\"too old\"}}\n",
        b"\"conditions\":{\"ready\":false,\"serving\":true,\"terminating\":true}",
        b"\"hints\":{\"forZones\":[{\"name\":\"z\"}]}",
        b"\"ports\":[{\"name\":\"http\",\"port\":80,\"protocol\":\"TCP\"}]",
        b"\"addressType\":\"IPv6\"",
        b"\"addresses\":[\"::1\"]",
        b"null",
        b"\n",
        b"\r\n",
        b"{}",
        b"[]",
        b"\"",
        b",",
        b":",
    ],
    max_len: 2000,
    check,
};
