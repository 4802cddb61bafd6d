//! Interfaces that users rely on and that only a running proxy shows, compared with golden texts in
//! `proxy/tests/golden`: metrics with types and labels, and the shapes of the JSON from the admin listener and
//! `tollgate bench load`.

#[path = "../../proxy/tests/golden/compare.rs"]
mod compare;

use std::{collections::BTreeSet, fmt::Write, fs, process::Command};

use self::compare::{compare, shape};
use crate::{
    ca::{Folder, WEB, workload},
    grpc::{GRPC, whole},
    harness::{Client, Config, Message, Proxy, Upstream, answer, pki::Authority, wait_until},
};

/// A proxy in which every metric and every answer of the admin listener has content, after some traffic.
struct Busy {
    proxy: Proxy,
    folder: Folder,
    _authority: Authority,
    _upstream: Upstream,
}

fn busy() -> Busy {
    let upstream = Upstream::replying(|request| match request.field("content-type") {
        Some("application/grpc") => whole(0),
        _ => answer(200, &[], "ok"),
    });
    let (folder, authority) = (Folder::new(), Authority::with(&["web.test"]));
    fs::write(authority.dir().join("list.crl"), authority.crl(9)).expect("a file can be written");
    let (ca, crl) = (authority.path("ca.pem"), authority.path("list.crl"));
    let clients = format!("client_certificates: request, client_ca: [{ca}], crl: [{crl}]");
    let checked = "health_check: {check: {tcp: {}}, interval: 20ms, timeout: 20s}\nretry: {attempts: 2}\noutlier_detection: {}\n\
         subsets: {selectors: [{keys: [version]}], fallback_policy: any_endpoint}";
    let config = Config::new()
        .top(&folder.admin(""))
        .filter("limits", "builtin:ratelimit", "config: {limits: [{name: a, requests: 100, per: 1s}]}")
        .filter("faults", "builtin:fault", "")
        .routes("{match: {path: {exact: /limited}}, cluster: limited}, {cluster: web}")
        .listener("overload: {max_lag: 60s}")
        .cluster("web", &[&upstream], checked)
        .cluster("limited", &[&upstream], "adaptive_concurrency: {min_rtt_calc_params: {fixed_value: 10ms}}")
        .beside("secure", &format!("cluster: web\n{}", authority.tls(&["web.test"], &clients)))
        .beside("raw", "protocol: tcp\ncluster: web");
    let proxy = Proxy::start(config);
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(proxy.get("/limited").status(), 200);
    assert_eq!(proxy.request("POST", "/a.B/C", &GRPC, b"\0\0\0\0\0").status(), 200);
    wait_until("a health check", || proxy.metrics().has("tollgate_cluster_health_checks_total", &[]));
    let mut raw = Client::connect(proxy.address("raw"));
    raw.send_request("GET", "/", &[("Host", "web")], b"");
    assert_eq!(raw.read().status(), 200, "over a TCP connection");
    wait_until("a gRPC call to be counted", || proxy.metrics().has("tollgate_grpc_requests_total", &[]));
    Busy { proxy, folder, _authority: authority, _upstream: upstream }
}

/// `name type {labels}` of each family.
fn families(proxies: &[&Proxy]) -> String {
    let mut lines = BTreeSet::new();
    for proxy in proxies {
        let metrics = proxy.metrics();
        for (name, labels) in metrics.names() {
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = of_histogram.filter(|name| metrics.types.contains_key(*name)).unwrap_or(name);
            let labels: Vec<&str> = labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
            lines.insert(format!("{family} {} {{{}}}\n", metrics.types[family], labels.join(",")));
        }
    }
    lines.into_iter().collect()
}

fn shape_of(answer: &Message) -> String {
    shape(&serde_json::from_slice(&answer.body).expect("the admin listener gives JSON"))
}

#[test]
fn metrics_have_their_types_and_labels() {
    let busy = busy();
    let token = busy.folder.token(WEB, "1h");
    let own = Proxy::start_with(workload(busy.proxy.address("admin"), ""), &[("token", token.as_bytes())]);
    compare("metrics.txt", &families(&[&busy.proxy, &own]));
}

#[test]
fn answers_of_the_admin_listener_have_their_shapes() {
    let mut busy = busy();
    let mut text = String::new();
    for path in ["/", "/config", "/clusters", "/filters"] {
        let _ = write!(text, "GET {path}\n{}\n", shape_of(&busy.proxy.admin("GET", path, "")));
    }
    let _ = write!(text, "POST /reload: unchanged\n{}\n", shape_of(&busy.proxy.admin("POST", "/reload", "")));
    busy.proxy.put_config("drain_timeout: 1s\nlistenrs: []\n");
    let refused = busy.proxy.admin("POST", "/reload", "");
    assert_eq!(refused.status(), 422);
    let _ = write!(text, "POST /reload: refused\n{}\n", shape_of(&refused));
    let last = &busy.proxy.config()["last_attempt"];
    let _ = write!(text, "GET /config: .last_attempt after a refusal\n{}", shape(last));
    compare("admin.txt", &text);
}

#[test]
fn the_report_of_a_load_has_its_shape() {
    let upstream = Upstream::saying("ok");
    let url = format!("http://{}/", upstream.address);
    let options = ["--rate", "200", "--warmup", "0s", "--duration", "50ms", "--connections", "1", "--json"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let output = command.args(["bench", "load", &url, "--tally-header", "content-length"]).args(options).output();
    let output = output.expect("tollgate can be run");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    compare("load.txt", &shape(&report));
}
