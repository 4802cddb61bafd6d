//! The proxy between independent clients and servers. `tests/interop/setup.sh` installs them; see [`needs`].

mod chain;
mod curl;
mod grpc;
mod load;
mod nghttp;
mod openssl;
mod proxy_protocol;
mod servers;
mod websocket;

use std::{fs, path::Path, sync::LazyLock};

use crate::harness::{Config, Upstream, answer, peer::needs};

/// Answers with the length of the request's body; for `/large` with 8 MiB.
fn upstream() -> Upstream {
    Upstream::replying(|request| match request.target() {
        "/large" => answer(200, &[], large()),
        _ => answer(200, &["x-upstream: here"], request.body.len().to_string()),
    })
}

/// 8 MiB without repetitions: more than any window.
fn large() -> &'static [u8] {
    static LARGE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..2_u32 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect());
    &LARGE
}

/// The chain of the four standard filters, as in `examples/quickstart.yaml`: a request can ask for a fault, `/admin`
/// and `admin.Service` are denied to all, `/limited` and `limited.Service` allow two requests a day each, and only
/// these, `/` and `test.Echo` are routed.
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

/// `docs/protocols.md` names tests and modules of this directory: they must exist.
#[test]
fn the_protocol_table_names_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tests = root.join("tests/end_to_end");
    let text = fs::read_to_string(root.join("docs/protocols.md")).expect("the table");
    let cells = text.lines().filter(|l| l.starts_with('|')).filter_map(|l| l.trim_end_matches(" |").rsplit_once("| "));
    let names = cells.flat_map(|(_, cell)| cell.split('`').skip(1).step_by(2));
    let mut count = 0;
    for name in names {
        let there = match name.rsplit_once("::") {
            None => tests.join(name).with_extension("rs").exists(),
            Some((module, test)) => {
                let file = tests.join(module.replace("::", "/")).with_extension("rs");
                fs::read_to_string(file).is_ok_and(|source| source.contains(&format!("\nfn {test}() {{")))
            }
        };
        assert!(there, "{name} does not exist");
        count += 1;
    }
    assert!(count > 50, "{count}");
}
