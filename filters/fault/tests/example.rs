//! The example next to `Cargo.toml` is valid and does what its comments say.

use std::time::Duration;

use fault::Fault;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::Value;
use tollgate_sdk::testing::TestHost;

#[test]
fn the_example() {
    let yaml = Yaml::load_from_str(include_str!("../example.yaml")).unwrap();
    let host = TestHost::<Fault>::new(json(&yaml[0])).unwrap();

    let mut aborted = 0;
    for _ in 0..1000 {
        assert!(host.request("GET", "/health").send().continued());
        assert!(host.request("GET", "/api/x").header("x-tester", "yes").header("x-skip", "1").send().continued());
        let outcome = host.request("GET", "/api/x").header("x-tester", "yes").send();
        let time = outcome.waits().unwrap();
        assert!(time >= Duration::from_millis(10) && time <= Duration::from_millis(50));
        aborted += u32::from(outcome.wait().status() == Some(503));
    }
    assert!((70..=130).contains(&aborted), "{aborted}");

    let asks = host.request("GET", "/").header("x-envoy-fault-delay-request", "60000").send();
    assert_eq!(asks.waits(), Some(Duration::from_secs(5)));

    let held: Vec<_> = (0..49).map(|_| host.request("GET", "/api").header("x-tester", "yes").send()).collect();
    assert!(held.iter().all(|outcome| outcome.waits().is_some()));
    assert!(host.request("GET", "/api").header("x-tester", "yes").send().continued(), "the 51st");
    assert_eq!(host.metric("fault.overflow_total"), 1);
}

/// Converts YAML to JSON as the proxy does.
fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Value(Scalar::Boolean(value)) => (*value).into(),
        Yaml::Value(Scalar::Integer(value)) => (*value).into(),
        Yaml::Value(Scalar::FloatingPoint(value)) => value.into_inner().into(),
        Yaml::Value(Scalar::String(value)) => value.as_ref().into(),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(pairs) => {
            pairs.iter().map(|(k, v)| (k.as_str().unwrap_or_default().to_string(), json(v))).collect()
        }
        _ => Value::Null,
    }
}
