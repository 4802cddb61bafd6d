//! The same chain of four standard filters decides the same way over every protocol.

use super::{four_filters, needs};
use crate::harness::{
    Config, Proxy, Upstream, answer,
    peer::{Peer, run, script},
    pki::Authority,
};

/// The statuses of requests that are routed, denied, aborted, not routed; and of three requests with a limit of two.
const DECISIONS: [u16; 7] = [200, 403, 503, 404, 200, 200, 429];

fn proxy(upstream: &Upstream, listener: &str) -> Proxy {
    Proxy::start(four_filters(Config::new().listener(listener).cluster("web", &[upstream], "")))
}

/// The statuses that curl gets for them.
fn decisions(proxy: &Proxy, scheme: &str, args: &[&str]) -> Vec<u16> {
    let curl = crate::harness::peer::tool("curl").expect("it exists");
    let base = format!("{scheme}://web.test:{}", proxy.address("main").port());
    let resolve = format!("web.test:{}:127.0.0.1", proxy.address("main").port());
    let get = |path: &str, more: &[&str]| {
        let url = format!("{base}{path}");
        let common = ["-s", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--resolve", &resolve, &url];
        run(&curl, &[&common[..], args, more].concat()).well()
    };
    let mut said = vec![get("/", &[]), get("/admin/users", &[])];
    said.push(get("/", &["-H", "x-envoy-fault-abort-request: 503"]));
    said.push(get("/nowhere", &[]));
    said.extend((0..3).map(|_| get("/limited", &[])));
    let version = if args.contains(&"--http1.1") { "1.1" } else { "2" };
    said.iter()
        .map(|said| {
            let (status, spoken) = said.split_once(' ').expect("two words");
            assert_eq!(spoken, version);
            status.parse().expect("a status")
        })
        .collect()
}

#[test]
fn decisions_are_equal_over_http1_and_http2_with_and_without_tls() {
    let _curl = needs!("curl");
    let authority = Authority::with(&["web.test"]);
    let (ca, tls) = (authority.path("ca.pem"), authority.tls(&["web.test"], ""));
    let upstream = Upstream::replying(|_| answer(200, &[], "hello"));
    let cases: [(&str, &str, &[&str]); 4] = [
        ("http", "", &["--http1.1"]),
        ("http", "", &["--http2-prior-knowledge"]),
        ("https", &tls, &["--http1.1", "--cacert", &ca]),
        ("https", &tls, &["--http2", "--cacert", &ca]),
    ];
    for (scheme, listener, args) in cases {
        assert_eq!(decisions(&proxy(&upstream, listener), scheme, args), DECISIONS, "{args:?}");
    }
    // Three of seven requests reach the upstream.
    assert_eq!(upstream.requests().len(), 4 * 3);
}

/// The same as gRPC statuses.
#[test]
fn decisions_are_equal_over_grpc() {
    let python = needs!("python");
    let server = Peer::server(&python, "grpc_server", &[]);
    let config = Config::new().cluster("web", &[server.address], "protocol: h2");
    let proxy = Proxy::start(four_filters(config));
    let address = proxy.address("main").to_string();
    script(&python, "grpc_client", &[&address, "refused", "unary", "streams", "bidi", "errors", "shrunk"]).well();
}
