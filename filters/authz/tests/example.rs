//! The example next to `Cargo.toml` is valid and does what its comments say.

use authz::Authz;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::Value;
use tollgate_sdk::testing::TestHost;

#[test]
fn the_example() {
    let yaml = Yaml::load_from_str(include_str!("../example.yaml")).unwrap();
    let host = TestHost::<Authz>::new(json(&yaml[0])).unwrap();

    assert!(host.request("GET", "/").send().continued());
    let denied = "rbac_access_denied_matched_policy[no-admin-from-outside]";
    assert_eq!(host.request("GET", "/admin").send().details(), Some(denied));
    assert_eq!(host.request("GET", "/").header("x-debug", "1").send().details(), Some(denied));
    let tried = host.request("TRACE", "/").send();
    assert!(tried.continued());
    assert_eq!(tried.log_field("authz_dry_run"), Some("rbac_access_denied_matched_policy[no-trace]"));
    let none = Some("rbac_access_denied_matched_policy[none]");
    for (path, name) in [("/internal", "example.com"), ("/", "internal.example.com"), ("/", "a.example.com")] {
        assert_eq!(host.request("GET", path).host(name).send().details(), none, "{path} {name}");
    }
    assert!(host.request("GET", "/").host("a.example.com:8443").send().continued());

    let service = |name: &str, version: &str| {
        let request = host.request("PUT", "/").source("10.0.0.2").header("x-peer-identity", name);
        request.header("x-version", version).send().continued()
    };
    assert!(service("spiffe://cluster.local/ns/shop/sa/cart", "v1.2"));
    assert!(!service("spiffe://cluster.local/ns/shop/sa/cart", "v1.0"));
    assert!(!service("spiffe://cluster.local/ns/shop/sa/test", "v1.2"));
    assert!(!service("spiffe://cluster.local/ns/shop/sa/batch", "v1.2"));
    assert!(!service("spiffe://cluster.local/ns/bank/sa/cart", "v1.2"));
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
