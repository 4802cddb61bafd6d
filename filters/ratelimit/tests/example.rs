//! The example next to `Cargo.toml` is valid and does what its comments say.

use ratelimit::Ratelimit;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::Value;
use tollgate_sdk::testing::TestHost;

#[test]
fn the_example() {
    let yaml = Yaml::load_from_str(include_str!("../example.yaml")).unwrap();
    let host = TestHost::<Ratelimit>::new(json(&yaml[0])).unwrap();

    let outcome = host.request("GET", "/").source("2001:db8::1").send();
    assert!(outcome.continued());
    let policy = Some("\"everything\";q=5000;w=1, \"client\";q=100;w=60");
    assert_eq!(outcome.response_header("ratelimit-policy"), policy);
    assert_eq!(outcome.response_header("ratelimit"), Some("\"everything\";r=9999;t=2, \"client\";r=99;t=60"));
    let outcome = host.request("GET", "/").source("2001:db8:0:ff::1").send();
    assert_eq!(outcome.response_header("ratelimit"), Some("\"everything\";r=9998;t=2, \"client\";r=98;t=59"));

    let post = |path: &str| host.request("POST", path).send().status();
    assert_eq!([post("/api/a"), post("/api/a"), post("/api/a")], [None, None, Some(429)]);
    assert_eq!([post("/api/b"), post("/other")], [None, None]);
    assert!(host.request("POST", "/api/a").header("x-user", "ann").send().continued());
    assert!(host.request("POST", "/api/a").header("x-internal", "1").send().continued());

    let tried = || host.request("GET", "/").header("cookie", "session=1").send();
    assert_eq!(tried().log_field("ratelimit_dry_run"), None);
    assert_eq!(tried().log_field("ratelimit_dry_run"), Some("rate_limited[sessions]"));
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
