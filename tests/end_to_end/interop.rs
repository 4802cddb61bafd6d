//! The proxy between clients and servers that nobody here wrote. What they need is brought by `tests/interop/setup.sh`; see
//! [`needs`].

mod chain;
mod curl;
mod grpc;
mod load;
mod nghttp;
mod openssl;
mod proxy_protocol;
mod servers;
mod websocket;

use crate::harness::{Config, Upstream, answer, peer::needs};

/// Answers with the length of the request's body, or for `/large` with 32 MiB.
fn upstream() -> Upstream {
    Upstream::replying(|request| match request.target() {
        "/large" => answer(200, &[], large()),
        _ => answer(200, &["x-upstream: here"], request.body.len().to_string()),
    })
}

/// 32 MiB that do not repeat.
fn large() -> Vec<u8> {
    (0..8_u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

/// The chain of the four standard filters, as in `examples/quickstart.yaml`: what asks for a fault gets one, `/admin` and
/// `admin.Service` are for nobody, two requests in a day for each of `/limited` and `limited.Service`, and nothing else than
/// these, `/` and `test.Echo` is routed.
fn four_filters(config: Config) -> Config {
    config
        .filter(
            "faults",
            "builtin:fault",
            "config: {headers: {delay: {max: 10s, percent: 100}, abort: {percent: 100}}}",
        )
        .filter(
            "access",
            "builtin:authz",
            "config: {policies: [{name: admin, action: deny, rules: [{to: [{operation: {paths: [/admin*]}}]}]}]}",
        )
        .filter(
            "limits",
            "builtin:ratelimit",
            "config:
                limits:
                  - {name: few, match: {path: {prefix: /limited}}, requests: 1, per: 24h, burst: 2}
                  - {name: calls, match: {path: {prefix: /limited.Service}}, requests: 1, per: 24h, burst: 2}",
        )
        .filter(
            "routes",
            "builtin:router",
            "config:
                virtual_hosts:
                  - name: all
                    domains: ['*']
                    routes:
                      - {name: exact, match: {path: {exact: /}}, cluster: web}
                      - {name: limited, match: {path: {prefix: /limited}}, cluster: web}
                      - {name: limited-calls, match: {path: {prefix: /limited.Service}}, cluster: web}
                      - {name: grpc, match: {path: {prefix: /test.Echo/}}, cluster: web}",
        )
}
