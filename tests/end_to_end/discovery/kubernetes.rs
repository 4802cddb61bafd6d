//! Endpoints of Kubernetes services, with a scripted API server, which can fail and lie.

mod secure;

use std::time::Duration;

use serde_json::{Value, json};

use super::{Farm, of_round, shown, under_traffic};
use crate::harness::{
    Config, Proxy,
    kubernetes::{Api, Fault},
    wait_until,
};

fn config(api: &Api, cluster: &str) -> Config {
    let top = format!("kubernetes: {{url: 'http://{}'}}", api.server.address);
    Config::new().top(&top).listener("cluster: web").cluster("web", &[] as &[&str], cluster)
}

/// The options of a cluster whose endpoints are those of a service.
fn discovery(more: &str) -> String {
    format!("discovery: {{kubernetes: {{service: web, namespace: shop, port: http{more}}}}}")
}

/// The last parts of the addresses of the cluster's endpoints.
fn endpoints(proxy: &Proxy) -> Vec<u8> {
    let endpoints = shown(proxy, "web")["endpoints"].clone();
    let last = |endpoint: &Value| {
        let address = endpoint["address"].as_str().expect("text").split(':').next().expect("an address");
        address.rsplit('.').next().and_then(|last| last.parse().ok()).expect("a number")
    };
    endpoints.as_array().expect("a list").iter().map(last).collect()
}

fn last_error(proxy: &Proxy) -> String {
    shown(proxy, "web")["discovery"]["last_error"]["error"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn endpoints_of_a_service_are_those_that_are_ready() {
    let (farm, api) = (Farm::new(3), Api::new());
    api.set("web-1", "web", farm.port, &[1]);
    api.set("api-1", "api", farm.port, &[3]);
    let proxy = Proxy::start(config(&api, &discovery("")));
    assert_eq!(proxy.get("/").text(), "127.0.0.1", "the start waits for the first answer");
    assert_eq!(shown(&proxy, "web")["endpoints"][0]["hostname"], "web.shop.svc");

    // A second slice, and a pod that terminates.
    api.set("web-2", "web", farm.port, &[2]);
    wait_until("the second slice", || endpoints(&proxy) == [1, 2]);
    let terminating = json!({"ready": false, "serving": true, "terminating": true});
    let endpoint = json!({"addresses": ["127.0.0.1"], "conditions": terminating, "zone": "eu-1a"});
    api.put("web-1", "web", farm.port, vec![endpoint]);
    wait_until("the pod to be left out", || endpoints(&proxy) == [2]);
    assert_eq!(proxy.get("/").text(), "127.0.0.2");
    api.change("web-2", None);
    wait_until("the pod to be used while no other one is ready", || endpoints(&proxy) == [1]);
    assert_eq!(shown(&proxy, "web")["endpoints"][0]["locality"], json!({"zone": "eu-1a"}));
    let shown = shown(&proxy, "web")["discovery"].clone();
    assert_eq!((&shown["source"], &shown["attempts"]), (&json!("kubernetes"), &json!(0)), "{shown}");
    assert_eq!(shown["states"], json!({"ready": 0, "terminating": 1, "not_ready": 0}));
}

#[test]
fn service_without_ready_endpoints_keeps_the_last_ones_unless_told_otherwise() {
    for (option, left) in [(", on_empty: remove", &[][..]), ("", &[1])] {
        let (farm, api) = (Farm::new(2), Api::new());
        api.set("web-1", "web", farm.port, &[1]);
        let proxy = Proxy::start(config(&api, &discovery(option)));
        assert_eq!(endpoints(&proxy), [1]);
        api.set("web-1", "web", farm.port, &[]);
        wait_until("the answer", || last_error(&proxy).contains("no endpoint"));
        wait_until("its effect", || endpoints(&proxy) == left);
        assert_eq!(proxy.get("/").status(), if left.is_empty() { 503 } else { 200 });
        api.set("web-1", "web", farm.port, &[2]);
        wait_until("the next pod", || endpoints(&proxy) == [2]);
    }
}

#[test]
fn no_request_fails_while_pods_and_the_api_server_come_and_go() {
    let (farm, api) = (Farm::new(5), Api::new());
    api.set("web-0", "web", farm.port, &[1]);
    let proxy = Proxy::start(config(&api, &discovery("")));
    // Not as fast as they can: other tests run at the same time.
    let sent = under_traffic(&proxy, Duration::from_millis(2), || {
        for round in 0..30u8 {
            let pods = of_round(round);
            match round % 6 {
                1 => api.fail(Fault::Garbage),
                2 => api.fail(Fault::Close),
                3 => {
                    api.expire();
                    api.fail(Fault::Gone);
                }
                4 => api.fail(Fault::Error),
                _ => {}
            }
            // Pods move between two slices.
            let (one, two) = pods.split_at(usize::from(round) % (pods.len() + 1));
            api.set("web-1", "web", farm.port, two);
            api.set("web-0", "web", farm.port, one);
            wait_until("the pods to be used", || endpoints(&proxy) == pods);
        }
    });
    assert!(sent > 100, "{sent}");
}

#[test]
fn failures_are_shown_and_take_nothing_away() {
    let (farm, api) = (Farm::new(1), Api::new());
    api.set("web-1", "web", farm.port, &[1]);
    let mut proxy = Proxy::start(config(&api, &discovery("")));
    api.fail_until(Fault::Garbage, "the error", || last_error(&proxy).contains("not the JSON of an API server"));
    assert_eq!(proxy.get("/").text(), "127.0.0.1");

    let cluster = discovery(", on_empty: remove").replace("shop", "elsewhere");
    proxy.change_config(config(&api, &cluster));
    wait_until("the error", || {
        last_error(&proxy).contains("403 Forbidden: endpointslices.discovery.k8s.io is forbidden")
    });
    assert_eq!(proxy.get("/none").status(), 503);
    proxy.entry_for("/none").expect(503, "UH").because("no_endpoint");
    let cluster = discovery(", on_empty: remove").replace("port: http", "port: grpc");
    proxy.change_config(config(&api, &cluster));
    wait_until("the reason", || last_error(&proxy).contains("no TCP port `grpc`"));

    // Outside a Kubernetes cluster there is no API server by default.
    let cluster = discovery("");
    proxy.change_config(Config::new().listener("cluster: web").cluster("web", &[] as &[&str], &cluster));
    wait_until("the reason", || last_error(&proxy).contains("set `kubernetes.url`"));
}
