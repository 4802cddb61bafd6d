//! `example.yaml` is valid and does what its comments say.

use router::Router;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Value, json};
use tollgate_sdk::testing::{RequestBuilder, TestHost};

fn to_json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(b)) => json!(b),
        Yaml::Value(Scalar::Integer(i)) => json!(i),
        Yaml::Value(Scalar::FloatingPoint(f)) => json!(f.into_inner()),
        Yaml::Value(Scalar::String(s)) => json!(s),
        Yaml::Sequence(items) => items.iter().map(to_json).collect(),
        Yaml::Mapping(map) => {
            map.iter().map(|(key, value)| (key.as_str().unwrap().to_string(), to_json(value))).collect()
        }
        other => panic!("the example has no {other:?}"),
    }
}

#[test]
fn the_example_works() {
    let yaml = Yaml::load_from_str(include_str!("../example.yaml")).unwrap();
    let clusters = ["checkout", "checkout-next", "api-next", "recorder", "users", "web"];
    let host = TestHost::<Router>::with_clusters(to_json(&yaml[0]), Some(&clusters)).unwrap();
    let get = |target: &str| host.request("GET", target).host("shop.example.com");
    let route = |request: RequestBuilder<Router>| request.send().route().map(String::from);

    let outcome = get("/checkout/cart").header("cookie", "session=1").send();
    assert_eq!(outcome.route(), Some("shop/checkout"));
    assert!(outcome.selected().unwrap().split.is_some());
    drop(outcome);

    let beta = |target| {
        let request = get(target).header("x-beta", "1").header("accept", "application/json");
        request.header("x-trace", "0123456789abcdef").header("authorization", "Bearer x")
    };
    assert_eq!(route(beta("/api/pets?version=v2&lang=en-GB")).as_deref(), Some("shop/beta-api"));
    assert_eq!(route(beta("/api/pets?version=v2&lang=en&debug")).as_deref(), Some("shop/6"));
    assert_eq!(route(beta("/api/pets?version=v2&lang=en&page=1")).as_deref(), Some("shop/6"));
    assert_eq!(route(beta("/api?version=v2&lang=en").header("user-agent", "curl/8")).as_deref(), Some("shop/6"));

    let outcome = get("/users/42/pets?q").send();
    assert_eq!((outcome.route(), outcome.request_header(":path")), (Some("shop/user"), Some("/u/42/pets?q")));
    drop(outcome);

    let outcome = get("/old/news?q").send();
    assert_eq!(outcome.status(), Some(308));
    assert_eq!(outcome.reply_header("location"), Some("http://shop.example.com/archive/news?q"));
    drop(outcome);

    let outcome = get("/login?q").header("x-forwarded-proto", "http").send();
    assert_eq!(outcome.status(), Some(302));
    assert_eq!(outcome.reply_header("location"), Some("https://login.example.com:8443/start"));
    assert_eq!(outcome.reply_header("strict-transport-security"), Some("max-age=31536000"));
    drop(outcome);

    let outcome = get("/robots.txt").send();
    assert_eq!(outcome.reply_body(), Some(&b"User-agent: *\nDisallow: /\n"[..]));
    drop(outcome);

    assert_eq!(route(get("/anything")).as_deref(), Some("shop/6"));
    assert_eq!(host.request("GET", "/").host("elsewhere").send().status(), Some(410));
}
