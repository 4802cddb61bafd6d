//! The contract may only grow: its rendering is compared with `golden.txt`, which is changed only deliberately
//! (`UPDATE_GOLDEN=1 cargo test -p tollgate-abi`).

use std::{fmt::Write, path::Path};

use tollgate_abi::{Function, fast, proxy_wasm, value, wasi};

fn render() -> String {
    let mut out = String::new();
    let mut section = |title: &str, functions: &[Function]| {
        writeln!(out, "# {title}").unwrap();
        for f in functions {
            writeln!(out, "{f}").unwrap();
        }
    };
    section("imports of env", proxy_wasm::HOSTCALLS);
    section("exports", proxy_wasm::CALLBACKS);
    section("imports of wasi_snapshot_preview1", wasi::HOSTCALLS);
    section("imports of tollgate_v1", fast::HOSTCALLS);
    section("exports of tollgate_v1", fast::CALLBACKS);
    writeln!(out, "# imports of wasi_snapshot_preview1 that only answer").unwrap();
    for (f, errno) in wasi::STUBS {
        writeln!(out, "{f} = {errno}").unwrap();
    }
    writeln!(out, "# statuses").unwrap();
    for (status, name) in proxy_wasm::Status::ALL {
        writeln!(out, "{name} {}", *status as i32).unwrap();
    }
    writeln!(out, "# flags").unwrap();
    for (bit, name) in fast::flag::NAMES {
        writeln!(out, "{name} {}", bit.trailing_zeros()).unwrap();
    }
    writeln!(out, "# phases").unwrap();
    for (name, bit) in [
        ("REQUEST_HEADERS", fast::phase::REQUEST_HEADERS),
        ("REQUEST_BODY", fast::phase::REQUEST_BODY),
        ("REQUEST_TRAILERS", fast::phase::REQUEST_TRAILERS),
        ("RESPONSE_HEADERS", fast::phase::RESPONSE_HEADERS),
        ("RESPONSE_BODY", fast::phase::RESPONSE_BODY),
        ("RESPONSE_TRAILERS", fast::phase::RESPONSE_TRAILERS),
        ("LOG", fast::phase::LOG),
        ("LIFECYCLE", fast::phase::LIFECYCLE),
        ("NEW_CONNECTION", fast::phase::NEW_CONNECTION),
        ("DOWNSTREAM_DATA", fast::phase::DOWNSTREAM_DATA),
        ("UPSTREAM_DATA", fast::phase::UPSTREAM_DATA),
        ("DOWNSTREAM_CLOSE", fast::phase::DOWNSTREAM_CLOSE),
        ("UPSTREAM_CLOSE", fast::phase::UPSTREAM_CLOSE),
    ] {
        writeln!(out, "{name} {}", bit.trailing_zeros()).unwrap();
    }
    writeln!(out, "# types of metadata").unwrap();
    for (kind, name) in value::kind::NAMES {
        writeln!(out, "{name} {kind}").unwrap();
    }
    writeln!(out, "# results of variant_exists").unwrap();
    let results = [fast::variant::NO_FILTER, fast::variant::NO_VARIANT, fast::variant::EXISTS];
    writeln!(out, "NO_FILTER {}\nNO_VARIANT {}\nEXISTS {}", results[0], results[1], results[2]).unwrap();
    writeln!(out, "# expected versions").unwrap();
    writeln!(out, "ANY {}\nABSENT {}", fast::expected::ANY, fast::expected::ABSENT).unwrap();
    out
}

#[test]
fn contract_matches_the_golden_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden.txt");
    let now = render();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert!(now == golden, "the ABI differs from abi/golden.txt; it is now:\n{now}");
}
