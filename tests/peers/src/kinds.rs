//! Filters of each kind: native, WebAssembly in V8, a separate process, and ours. Two scenarios: the cost of one filter, and
//! the effect of a failing filter on other requests.

use std::{borrow::Cow, fs, path::Path, process::Command};

use anyhow::Context;

use crate::{
    scenario::{Column, Program, Scenario, Subject, Work},
    scenarios::{CLOSED, ENVOY, OPEN, P99, TOLLGATE, TOLLGATE_MODULE, column},
};

const RBAC: &str = include_str!("../configs/filter-rbac.yaml");
const V8: &str = include_str!("../configs/filter-v8.yaml");
const NATIVE: &str = include_str!("../configs/filter-native.yaml");
const EXT_AUTHZ: &str = include_str!("../configs/filter-ext-authz.yaml");
const EXT_AUTHZ_CLUSTER: &str = include_str!("../configs/filter-ext-authz-cluster.yaml");

/// The standard authorization filter, compiled for any Proxy-Wasm host.
const AUTHZ: &[&str] = &["portable:authz.wasm"];

/// The filters that `write_offenders` creates.
const WASM_OFFENDER: &[&str] = &["made:offender.wasm"];
const NATIVE_OFFENDER: &[&str] = &["made:offender.so"];

/// A header field that the filters must reject.
const INTRUDER: &str = "user-agent: intruder/1.0";

const CONTAIN: &[Column] = &[
    column("failed_percent", "good requests that failed, %", "%", 2),
    P99,
    column("lives", "process alive at the end", "", 0),
    column("serves", "answers at the end", "", 0),
    column("before_mib", "RSS MiB before", "MiB", 1),
    column("peak_mib", "peak RSS MiB", "MiB", 1),
    column("bad", "bad requests", "", 0),
];

/// Builds the misbehaving filters in a folder.
pub fn write_offenders(folder: &Path) -> anyhow::Result<()> {
    fs::write(folder.join("offender.wasm"), wat::parse_str(include_str!("../offender.wat"))?)?;
    let source = folder.join("offender.c");
    fs::write(&source, include_str!("../offender.c"))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(folder.join("offender.so")).arg(&source);
    let status = compiler.status().context("cannot run the C compiler `cc`")?;
    anyhow::ensure!(status.success(), "cc cannot compile {}: {status}", source.display());
    Ok(())
}

/// Envoy's configuration with one filter before its router.
fn envoy(filter: &str) -> Cow<'static, str> {
    let place = "          http_filters:\n";
    ENVOY.replacen(place, &format!("{place}{filter}"), 1).into()
}

fn subject(label: &str, program: Program, template: impl Into<Cow<'static, str>>) -> Subject {
    Subject { template: template.into(), ..Subject::new(label, program, "") }
}

/// The cost that one filter adds to a request.
pub fn cost() -> Scenario {
    let refuses = |subject: Subject, over| Subject { over: Some(over), refuses: Some(INTRUDER), ..subject };
    let peer = |label, template| {
        let subject = subject(label, Program::Envoy, template).beside("Tollgate, the same module");
        refuses(subject, "Envoy, no filter")
    };
    let asks = envoy(EXT_AUTHZ) + EXT_AUTHZ_CLUSTER;
    let ours = TOLLGATE_MODULE.replacen(
        r#"wasm: "{{module}}"}"#,
        r#"wasm: "{{module}}", config: {policies: [{name: intruder, action: deny, rules: [{when: [{key: "request.headers[user-agent]", values: [intruder/1.0]}]}]}]}}"#,
        1,
    );
    let ours =
        |label, module| refuses(subject(label, Program::Tollgate, ours.clone()).modules(module), "Tollgate, no filter");
    Scenario {
        name: "kinds",
        title: "One filter of each kind",
        about: "One filter that rejects requests with a certain `User-Agent`, which no counted request has: as \
                Envoy's native filter (RBAC); as WebAssembly in Envoy's V8; as a service on the same machine that Envoy calls for \
                each request (ext_authz, over HTTP, an nginx with one `if`), whose processor time and memory count as Envoy's, \
                and which runs on Envoy's processor; and as WebAssembly in Tollgate, once as the same file as in V8 (the standard \
                filter `authz`, compiled for any Proxy-Wasm host), once as the `authz` that comes with Tollgate. Before each run, all \
                of them are checked to reject that `User-Agent`. Latencies at {rate} requests/s{share}.",
        work: Work::Requests { most: 4000, close: false },
        subjects: vec![
            subject("Envoy, no filter", Program::Envoy, ENVOY),
            peer("Envoy, a native filter", envoy(RBAC)),
            peer("Envoy, a filter in V8", envoy(V8)).modules(AUTHZ),
            Subject {
                service: Some(include_str!("../configs/service.conf")),
                ..peer("Envoy, an external process", asks)
            },
            subject("Tollgate, no filter", Program::Tollgate, TOLLGATE),
            ours("Tollgate, the same module", AUTHZ),
            ours("Tollgate, the faster lane", &["authz.wasm"]),
        ],
        columns: CLOSED,
        open: OPEN,
        against: &[],
        slope: false,
    }
}

/// The effect of a failing filter on other requests.
pub fn containment() -> Scenario {
    // Envoy's default: without `FAIL_RELOAD`, a VM that has trapped is not replaced.
    let closed: String = V8
        .lines()
        .filter(|line| !line.contains("FAIL_RELOAD") && !line.contains("reload_config"))
        .fold(String::new(), |text, line| text + line + "\n");
    let native = || envoy(NATIVE);
    let peer = |label, template, offence, beside| Subject {
        offence,
        beside: Some(beside),
        ..subject(label, Program::Envoy, template)
    };
    let ours = |label, offence| Subject {
        offence,
        ..subject(label, Program::Tollgate, TOLLGATE_MODULE).modules(WASM_OFFENDER)
    };
    Scenario {
        name: "containment",
        title: "A filter that fails",
        about: "One filter that a request can make fail: by a trap (in native code: `abort`), by an endless loop, or by keeping \
                128 MiB more memory with each such request. 1,000 good requests a second for 3 s, in an open loop, and alongside \
                them three bad ones from another address, one a second. One worker each, with each proxy's default limits. \
                Envoy's V8 is configured to create another virtual machine as soon as possible after a trap (`FAIL_RELOAD`, 2 ms), except in the \
                row that says so. A good request has failed if it is not answered with 200 within 1 s. There is no p99 if \
                more than one in a hundred has failed. A process that has ended is not restarted.",
        work: Work::Contain { rate: 1000 },
        subjects: vec![
            peer("Envoy native, a crash", native(), "trap", "Tollgate, a trap").modules(NATIVE_OFFENDER),
            peer("Envoy native, a loop", native(), "loop", "Tollgate, a loop").modules(NATIVE_OFFENDER),
            peer("Envoy native, a leak", native(), "keep", "Tollgate, a leak").modules(NATIVE_OFFENDER),
            peer("Envoy V8, a trap", envoy(V8), "trap", "Tollgate, a trap").modules(WASM_OFFENDER),
            peer("Envoy V8 by default, a trap", envoy(&closed), "trap", "Tollgate, a trap").modules(WASM_OFFENDER),
            peer("Envoy V8, a loop", envoy(V8), "loop", "Tollgate, a loop").modules(WASM_OFFENDER),
            peer("Envoy V8, a leak", envoy(V8), "keep", "Tollgate, a leak").modules(WASM_OFFENDER),
            ours("Tollgate, a trap", "trap"),
            ours("Tollgate, a loop", "loop"),
            ours("Tollgate, a leak", "keep"),
        ],
        columns: CONTAIN,
        open: &[],
        against: &[],
        slope: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_in_their_proxies() {
        for scenario in [cost(), containment()] {
            for subject in &scenario.subjects {
                let bare = [ENVOY, TOLLGATE].contains(&&*subject.template);
                assert_eq!(bare, subject.over.is_none() && subject.offence.is_empty(), "{}", subject.label);
                assert!(subject.over.is_none_or(|base| scenario.subject(base).is_some()), "{}", subject.label);
                assert!(subject.beside.is_none_or(|ours| scenario.subject(ours).is_some()), "{}", subject.label);
                assert_eq!(subject.template.contains("{{module}}"), !subject.modules.is_empty(), "{}", subject.label);
            }
        }
    }
}
