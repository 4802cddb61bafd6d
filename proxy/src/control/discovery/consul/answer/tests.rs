//! Tests of answers, in the form that Consul documents.

use serde_json::{Value, json};

use super::*;

/// An instance with the parts that Consul always sends, changed by `more`.
fn instance(id: &str, address: &str, more: Value) -> Value {
    let mut all = json!({
        "Node": {"ID": "40e4", "Node": "node-1", "Address": "10.0.1.1", "Datacenter": "dc1",
            "TaggedAddresses": {"lan": "10.0.1.1", "wan": "198.51.100.1"}, "Meta": {}},
        "Service": {"ID": id, "Service": "web", "Tags": [], "Address": address, "Port": 8080, "Meta": null,
            "TaggedAddresses": {"lan": {"Address": "10.0.2.1", "Port": 8081}, "wan": {"Address": "203.0.113.1", "Port": 80}},
            "Weights": {"Passing": 1, "Warning": 1}},
        "Checks": [{"Node": "node-1", "CheckID": "serfHealth", "Status": "passing"}],
    });
    merge(&mut all, more);
    all
}

fn merge(all: &mut Value, more: Value) {
    match (all, more) {
        (Value::Object(all), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(all.entry(key).or_insert(Value::Null), value));
        }
        (all, more) => *all = more,
    }
}

fn checks(states: &[&str]) -> Value {
    let checks: Vec<_> = states.iter().map(|state| json!({"CheckID": "c", "Status": state})).collect();
    json!({ "Checks": checks })
}

fn web() -> ConsulDiscovery {
    ConsulDiscovery::new("web")
}

fn read_with(
    headers: &[(&'static str, &'static str)],
    body: &Value,
    query: &ConsulDiscovery,
) -> Result<Answer, String> {
    let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    read(&headers, body.to_string().as_bytes(), query)
}

fn answer(instances: &[Value], query: &ConsulDiscovery) -> Answer {
    read_with(&[], &json!(instances), query).unwrap()
}

fn addresses(answer: &Answer) -> Vec<String> {
    answer.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn address_is_the_one_of_the_service_or_else_of_its_node() {
    let all = [instance("a", "10.0.0.1", json!({})), instance("b", "", json!({})), instance("c", "fd00::1", json!({}))];
    let found = answer(&all, &web());
    assert_eq!(addresses(&found), ["10.0.0.1:8080", "10.0.1.1:8080", "[fd00::1]:8080"]);
    assert_eq!(found.note, None);
    let node = ConsulDiscovery { address: ConsulAddress::Node, ..web() };
    assert_eq!(addresses(&answer(&all[..1], &node)), ["10.0.1.1:8080"]);
}

#[test]
fn tagged_addresses_have_their_own_ports() {
    let own = instance("a", "10.0.0.1", json!({}));
    let with = |address| ConsulDiscovery { address, ..web() };
    let one = |instance: &Value, address| addresses(&answer(std::slice::from_ref(instance), &with(address)));
    assert_eq!(one(&own, ConsulAddress::Wan), ["203.0.113.1:80"]);
    assert_eq!(one(&own, ConsulAddress::Lan), ["10.0.2.1:8081"]);
    assert_eq!(one(&own, ConsulAddress::LanIpv6), ["10.0.0.1:8080"], "there is none");
    // As older versions write it, and without a port.
    let lower = json!({"Service": {"TaggedAddresses": {"wan": {"Address": null, "Port": null}}}});
    let mut old = instance("a", "10.0.0.1", lower);
    old["Service"]["TaggedAddresses"] = json!({"wan": {"address": "203.0.113.2", "port": 0}});
    assert_eq!(one(&old, ConsulAddress::Wan), ["203.0.113.2:8080"]);
    // Of the node, if the service has no address of its own.
    let of_node = instance("a", "", json!({"Service": {"TaggedAddresses": null}}));
    assert_eq!(one(&of_node, ConsulAddress::Wan), ["198.51.100.1:8080"]);
    let elsewhere = instance("a", "10.0.0.1", json!({"Service": {"TaggedAddresses": null}}));
    assert_eq!(one(&elsewhere, ConsulAddress::Wan), ["10.0.0.1:8080"], "the node is not where the service is");
}

#[test]
fn worst_check_of_an_instance_counts() {
    let weights = json!({"Service": {"Weights": {"Passing": 10, "Warning": 2}}});
    let with = |n: u8, states: &[&str]| {
        let mut instance = instance("a", &format!("10.0.0.{n}"), weights.clone());
        merge(&mut instance, checks(states));
        instance
    };
    let all = [
        with(1, &["passing", "passing"]),
        with(2, &["passing", "warning"]),
        with(3, &["warning", "critical", "passing"]),
        with(4, &["maintenance"]),
        with(5, &[""]),
        with(6, &[]),
    ];
    let found = answer(&all, &web());
    let shown: Vec<_> = found.endpoints.iter().map(|e| (e.address.to_string(), e.weight)).collect();
    let expected = [("10.0.0.1:8080", 10), ("10.0.0.2:8080", 2), ("10.0.0.6:8080", 10)];
    assert_eq!(shown, expected.map(|(address, weight)| (address.to_owned(), weight)));
    assert_eq!(found.states, [("passing", 2), ("warning", 1), ("critical", 3)]);
    let passing = ConsulDiscovery { only_passing: true, ..web() };
    assert_eq!(addresses(&answer(&all, &passing)), ["10.0.0.1:8080", "10.0.0.6:8080"]);
    let critical = answer(&all[2..5], &web());
    assert_eq!(critical.note.as_deref(), Some("none of the 3 instances is healthy enough"));
}

#[test]
fn weights_are_those_of_the_state_and_bounded() {
    let weight = |weights: Value, states: &[&str]| {
        let mut instance = instance("a", "10.0.0.1", json!({}));
        instance["Service"]["Weights"] = weights;
        merge(&mut instance, checks(states));
        answer(&[instance], &web()).endpoints[0].weight
    };
    assert_eq!(weight(Value::Null, &[]), 1, "older versions have none");
    assert_eq!(weight(json!({"Passing": 3, "Warning": 0}), &["warning"]), 0);
    assert_eq!(weight(json!({"Passing": 1_000_000, "Warning": 0}), &["passing"]), 65_535);
    assert_eq!(weight(json!({"Passing": -1, "Warning": 0}), &["passing"]), 0);
}

#[test]
fn metadata_tags_and_locality_are_passed_on() {
    let more = json!({
        "Service": {"Tags": ["v1", "blue"], "Meta": {"version": "2", "consul.id": "forged"},
            "Locality": {"Region": "eu-west-1", "Zone": "eu-west-1a"}},
    });
    let found = answer(&[instance("web-1", "10.0.0.1", more)], &web());
    let metadata = found.endpoints[0].metadata.as_deref().unwrap();
    let expected = json!({
        "version": "2", "consul.datacenter": "dc1", "consul.id": "web-1", "consul.node": "node-1",
        "consul.status": "passing", "consul.tags": "blue,v1",
    });
    assert_eq!(serde_json::to_value(metadata).unwrap(), expected);
    let locality = found.endpoints[0].locality.as_deref().unwrap();
    assert_eq!((&*locality.region, &*locality.zone), ("eu-west-1", "eu-west-1a"));
    let of_node = json!({"Node": {"Locality": {"Region": "r", "Zone": "z"}}});
    let found = answer(&[instance("a", "10.0.0.1", of_node)], &web());
    assert_eq!(&*found.endpoints[0].locality.as_deref().unwrap().region, "r");
}

#[test]
fn instances_that_cannot_be_connected_to_are_left_out_and_told() {
    let all = [
        instance("a", "10.0.0.1", json!({})),
        instance("b", "db.example.com", json!({})),
        instance("c", "10.0.0.3", json!({"Service": {"Port": 0}})),
        instance("d", "", json!({"Node": {"Address": ""}})),
        instance("e", "10.0.0.5", json!({"Service": {"Port": 65_536}})),
    ];
    let found = answer(&all, &web());
    assert_eq!(addresses(&found), ["10.0.0.1:8080"]);
    let note = "instance `b` of node `node-1` has the host name `db.example.com` as its address, and 3 others cannot be used either";
    assert_eq!(found.note.as_deref(), Some(note));
}

#[test]
fn order_and_duplicates_do_not_matter() {
    let mut warning = instance("a", "10.0.0.1", json!({}));
    merge(&mut warning, checks(&["warning"]));
    let (one, two) = (instance("b", "10.0.0.1", json!({})), instance("c", "10.0.0.2", json!({})));
    let found = answer(&[two.clone(), warning.clone(), one.clone()], &web());
    assert_eq!(addresses(&found), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(found.endpoints[0].metadata.as_ref().unwrap()["consul.status"], MetadataValue::Text("passing".into()));
    assert_eq!(found.endpoints, answer(&[warning, one, two], &web()).endpoints);
}

#[test]
fn number_of_instances_is_bounded() {
    let many: Vec<_> = (0..5_000u32)
        .map(|n| instance("a", &std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), json!({})))
        .collect();
    let found = answer(&many, &web());
    assert_eq!((found.endpoints.len(), found.states[0].1), (4_096, 5_000));
    assert_eq!(found.note.as_deref(), Some("only 4096 of 5000 instances are used"));
}

#[test]
fn empty_answer_counts_only_if_it_is_complete_and_current() {
    let none = json!([]);
    let found = read_with(&[], &none, &web()).unwrap();
    assert_eq!((found.endpoints.len(), found.note.as_deref()), (0, Some("the service has no instances")));
    let filtered = [("x-consul-results-filtered-by-acls", "true")];
    assert_eq!(read_with(&filtered, &none, &web()).unwrap_err(), "the token may not see all instances");
    let stale = [("x-consul-knownleader", "false"), ("x-consul-lastcontact", "5000")];
    assert_eq!(
        read_with(&stale, &none, &web()).unwrap_err(),
        "the server that answered knows no leader (last contact in ms: 5000)"
    );
    // With instances, both are used, and told.
    for headers in [&filtered[..], &stale] {
        let found = read_with(headers, &json!([instance("a", "10.0.0.1", json!({}))]), &web()).unwrap();
        assert!(found.endpoints.len() == 1 && found.note.is_some());
    }
    let good = [("x-consul-results-filtered-by-acls", "false"), ("x-consul-knownleader", "true")];
    assert!(read_with(&good, &none, &web()).is_ok());
}

#[test]
fn what_consul_does_not_send_is_refused() {
    for body in ["", "null", "{}", "[{}]", "[1]", "<html>", r#"[{"Node": {}, "Service": {"Port": "80"}}]"#] {
        let wrong = read(&HeaderMap::new(), body.as_bytes(), &web()).unwrap_err();
        assert!(wrong.starts_with("the answer is not what Consul sends: "), "{body}: {wrong}");
    }
    // Unknown fields are ignored, and missing ones of lesser importance.
    let least = r#"[{"Node": {"Address": "10.0.0.1", "New": 1}, "Service": {"Port": 80}, "Checks": null, "New": {}}]"#;
    assert_eq!(addresses(&read(&HeaderMap::new(), least.as_bytes(), &web()).unwrap()), ["10.0.0.1:80"]);
}
