//! The A/B testing filter.

use crate::harness::{Config, Proxy, Upstream, wasm};

fn start(upstream: &Upstream, percent: u32) -> Proxy {
    let options = format!("config: {{cookie: seen, percent: {percent}, moved: [/old/, 'https://new.test/']}}");
    let config = Config::to(upstream).module("variants", &wasm::example("third-party-variants"), &options);
    Proxy::start(config)
}

#[test]
fn a_visitor_keeps_a_variant() {
    let upstream = Upstream::saying("hello");
    for (percent, variant) in [(0, "a"), (100, "b")] {
        let proxy = start(&upstream, percent);
        let response = proxy.request("GET", "/shop?x=1", &[("x-variant", "forged"), ("x-variants", "all")], b"");
        assert_eq!(response.field("set-cookie"), Some(&*format!("seen={variant}; Path=/; HttpOnly")));
        assert_eq!(response.field("vary"), Some("cookie"));
        let request = upstream.requests().pop().expect("a request");
        assert_eq!(request.target(), format!("/{variant}/shop?x=1"));
        assert_eq!((request.field("x-variant"), request.field("x-variants")), (Some(variant), None));
        assert_eq!(request.field("host"), Some("test"));
        proxy.wait_for_output(&format!("variant {variant} was served"));
        for known in ["a", "b"] {
            let cookie = format!("first=1; seen={known}");
            let response = proxy.request("GET", "/", &[("cookie", &cookie)], b"");
            assert_eq!((response.status(), response.field("set-cookie")), (200, None));
            assert_eq!(upstream.requests().pop().expect("a request").target(), format!("/{known}/"));
        }
        let response = proxy.request("GET", "/", &[("cookie", "seen=c")], b"");
        assert!(response.field("set-cookie").is_some(), "an unknown variant is replaced");
        assert_eq!(proxy.metrics().sum("wasmcustom_variants_visitors", &[]), 2.0);
        assert_eq!(proxy.filter("variants")["traps"], 0);
    }
}

#[test]
fn moved_paths_are_redirected() {
    let upstream = Upstream::saying("hello");
    let proxy = start(&upstream, 50);
    let response = proxy.get("/old/a?b=c");
    assert_eq!((response.status(), response.field("location")), (308, Some("https://new.test/a?b=c")));
    assert!(upstream.requests().is_empty());
}
