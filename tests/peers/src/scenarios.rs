//! All scenarios, in the order in which they run and appear on the page.

use crate::{
    kinds,
    machine::Places,
    scenario::{Column, GRPC, Program, Scenario, Subject, TLS_H1, TLS_H2, Work},
};

pub const fn column(key: &'static str, label: &'static str, unit: &'static str, decimals: usize) -> Column {
    Column { key, label, unit, decimals }
}

const CPU: Column = column("cpu_us", "CPU µs/request", "µs", 1);
const P50: Column = column("p50", "p50 µs", "µs", 0);
pub const P99: Column = column("p99", "p99 µs", "µs", 0);
/// Only for runs with enough requests: see `run::TAIL`.
const P999: Column = column("p999", "p99.9 µs", "µs", 0);
const BUSY: Column = column("busy", "busy %", "%", 0);
const RSS: Column = column("rss_mib", "RSS MiB", "MiB", 1);
const SAMPLES: Column = column("samples", "requests", "", 0);

/// Columns of the closed loop: at saturation.
pub const CLOSED: &[Column] = &[
    CPU,
    column("user_us", "user", "µs", 1),
    column("system_us", "system", "µs", 1),
    column("rate", "requests/s", "requests/s", 0),
    BUSY,
    RSS,
];

/// Columns of the open loop: at a fixed rate.
pub const OPEN: &[Column] = &[P50, P99, P999, SAMPLES, column("paced_busy", "busy %", "%", 0)];

/// Columns at half of each run's saturated rate.
const HALF: &[Column] = &[
    P99,
    P50,
    P999,
    column("paced", "at requests/s", "requests/s", 0),
    SAMPLES,
    column("paced_busy", "busy %", "%", 0),
    column("busy", "busy % in the closed loop", "%", 0),
];

const CHAIN: &[Column] = &[
    column("chain_us", "µs/request, median", "µs", 2),
    column("mean_us", "mean", "µs", 2),
    column("p99_us", "p99", "µs", 2),
    column("calls_us", "calls summed up", "µs", 2),
];

const BODIES: &[Column] = &[
    column("cpu_us", "CPU µs/MiB", "µs", 0),
    column("user_us", "user", "µs", 0),
    column("system_us", "system", "µs", 0),
    column("rate", "MiB/s", "MiB/s", 0),
    BUSY,
    RSS,
];

const IDLE: &[Column] = &[
    column("each_kib", "KiB/connection", "KiB", 1),
    column("connections", "connections", "", 0),
    column("start_mib", "RSS MiB at the start", "MiB", 1),
    column("file_mib", "of which file pages", "MiB", 1),
    column("load_mib", "after load", "MiB", 1),
    column("idle_mib", "with the connections", "MiB", 1),
];

const SWAP: &[Column] = &[
    P99,
    P50,
    P999,
    column("errors", "errors", "", 0),
    SAMPLES,
    column("swaps", "swaps", "", 0),
    column("paced_busy", "busy %", "%", 0),
];

const NGINX: &str = include_str!("../configs/nginx.conf");
const HAPROXY: &str = include_str!("../configs/haproxy.cfg");
pub const ENVOY: &str = include_str!("../configs/envoy.yaml");
pub const TOLLGATE: &str = include_str!("../configs/tollgate.yaml");
const FILTERS: &str = include_str!("../configs/tollgate-filters.yaml");
const TOLLGATE_WASM: &str = include_str!("../configs/tollgate-wasm.yaml");
pub const TOLLGATE_MODULE: &str = include_str!("../configs/tollgate-module.yaml");

/// The standard filters, compiled for any Proxy-Wasm host.
const PORTABLE: &[&str] =
    &["portable:fault.wasm", "portable:authz.wasm", "portable:ratelimit.wasm", "portable:router.wasm"];

const THIRD_PARTY: &[&str] = &["third_party.wasm"];

/// A minimal filter, built with the third-party SDK and with ours.
const STANDARD: &[&str] = &["three_headers_standard.wasm"];
const OURS: &[&str] = &["three_headers.wasm"];

/// The four proxies in their minimal configurations.
fn bare() -> Vec<Subject> {
    vec![
        Subject::new("nginx", Program::Nginx, NGINX),
        Subject::new("HAProxy", Program::Haproxy, HAPROXY),
        Subject::new("Envoy", Program::Envoy, ENVOY),
        Subject::new("Tollgate", Program::Tollgate, TOLLGATE),
    ]
}

/// All scenarios, in the order in which they run and appear on the page.
pub fn all() -> Vec<Scenario> {
    let requests = |most| Work::Requests { most, close: false };
    let with_filters = || Subject::new("Tollgate, 4 filters", Program::Tollgate, FILTERS);
    let encrypted = |spoken| bare().into_iter().map(move |s| s.spoken(spoken));
    vec![
        Scenario {
            name: "bare",
            title: "A request, no filters",
            about: "HTTP/1.1 on both sides, keep-alive connections, a body of 64 bytes. By default, Tollgate adds fields with a request's \
                    origin and an id (`X-Forwarded-For`, `-Proto` and `-Host`, `X-Request-Id`), \
                    and Envoy does about the same; nginx and HAProxy add none, except nginx in the row that says so. \
                    Latencies at {rate} requests/s{share}.",
            work: requests(5500),
            subjects: bare()
                .into_iter()
                .chain([Subject::new("nginx, with the same fields", Program::Nginx, NGINX)
                    .repeat(1)
                    .beside("Tollgate")])
                .collect(),
            columns: CLOSED,
            open: OPEN,
            against: &["nginx", "nginx, with the same fields", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "filters",
            title: "Four filters",
            about: "Fault injection, authorization, a rate limit and routes: Tollgate's WebAssembly filters and Envoy's \
                    native ones, configured for the same work, and Tollgate's in Envoy's V8, compiled for any \
                    Proxy-Wasm host, each in its own virtual machine, as in Tollgate. For comparison, the \
                    proxies without filters. Latencies at {rate} requests/s{share}.",
            work: requests(5500),
            subjects: vec![
                Subject::new("nginx, bare", Program::Nginx, NGINX),
                Subject::new("Envoy, bare", Program::Envoy, ENVOY),
                Subject::new("Envoy, 4 native filters", Program::Envoy, include_str!("../configs/envoy-filters.yaml"))
                    .beside("Tollgate, 4 filters"),
                Subject::new("Envoy, the same 4 in V8", Program::Envoy, include_str!("../configs/envoy-portable.yaml"))
                    .modules(PORTABLE)
                    .beside("Tollgate, 4 filters"),
                Subject::new("Tollgate, bare", Program::Tollgate, TOLLGATE),
                with_filters(),
            ],
            columns: CLOSED,
            open: OPEN,
            against: &["nginx, bare", "Envoy, 4 native filters", "Envoy, the same 4 in V8"],
            slope: false,
        },
        kinds::cost(),
        kinds::containment(),
        Scenario {
            name: "chain",
            title: "Filters alone",
            about: "The cost of filters per request within Tollgate's process, from the first call to the last, measured by `tollgate \
                    bench chain`: no network, no proxy around them. The third-party filter and its equivalent with our SDK are those \
                    of tests/chain, which read three headers and set one.",
            work: Work::Chain,
            subjects: vec![
                with_filters(),
                Subject::new("Tollgate, a third-party filter", Program::Tollgate, TOLLGATE_MODULE).modules(STANDARD),
                Subject::new("Tollgate, the same by our SDK", Program::Tollgate, TOLLGATE_MODULE).modules(OURS),
            ],
            columns: CHAIN,
            open: &[],
            against: &[],
            slope: false,
        },
        Scenario {
            name: "half",
            title: "Half of the saturated rate",
            about: "Latencies in an open loop at half of the rate that each run carried in a closed loop just before: the effect of filters on the \
                    slowest requests of a busy proxy. The absolute rates differ; only the share of each run's own maximum is the same.",
            work: Work::Half,
            subjects: vec![Subject::new("Tollgate, bare", Program::Tollgate, TOLLGATE), with_filters()],
            columns: HALF,
            open: &[],
            against: &["Tollgate, bare"],
            slope: false,
        },
        Scenario {
            name: "wasm",
            title: "The same Proxy-Wasm filter, once and more often",
            about: "Zero, one, four and eight copies of examples/filters/third-party, which reads three headers, sets two, adds one, and \
                    counts. Envoy runs it in V8. Each copy has its own virtual machine in both, except in the \
                    row that says so; sharing one is what Envoy does unless the copies have different names (`vm_id`), and it is cheaper \
                    there. Latencies at {rate} requests/s{share}.",
            work: requests(4000),
            subjects: wasm(),
            columns: CLOSED,
            open: OPEN,
            against: &[],
            slope: true,
        },
        Scenario {
            name: "tls",
            title: "TLS, HTTP/1.1",
            about: "Like the first scenario, with TLS to the client and keep-alive connections. Latencies at {rate} requests/s{share}.",
            work: requests(5500),
            subjects: encrypted(TLS_H1).collect(),
            columns: CLOSED,
            open: OPEN,
            against: &["nginx", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "tls-h2",
            title: "TLS, HTTP/2",
            about: "8 connections with 32 streams each, TLS to the client, HTTP/1.1 to the backend. Latencies at {rate} \
                    requests/s{share}, from when a request was sent: h2load sends due requests every 10 ms, in bursts.",
            work: requests(5500),
            subjects: encrypted(TLS_H2).chain([with_filters().spoken(TLS_H2)]).collect(),
            columns: CLOSED,
            open: OPEN,
            against: &["nginx", "HAProxy", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "grpc",
            title: "gRPC, unary calls",
            about: "HTTP/2 without TLS on both sides, 8 connections with 32 streams each, messages of 64 bytes. Latencies at \
                    {rate} calls/s{share}, from when a call was sent: h2load sends due calls every 10 ms, in bursts.",
            work: requests(3000),
            subjects: encrypted(GRPC).collect(),
            columns: CLOSED,
            open: OPEN,
            against: &["nginx", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "connections",
            title: "One connection per request",
            about: "Like the first scenario, with `Connection: close`; connections to the backend are kept. Latencies at {rate} requests/s{share}.",
            work: Work::Requests { most: 2000, close: true },
            subjects: bare(),
            columns: CLOSED,
            open: OPEN,
            against: &["nginx", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "handshakes",
            title: "One TLS connection per request",
            about: "A full handshake each time, without session resumption; connections to the backend are \
                    kept. Latencies at {rate} requests/s{share}, the handshake included.",
            work: Work::Requests { most: 300, close: true },
            subjects: encrypted(TLS_H1).collect(),
            columns: CLOSED,
            open: OPEN,
            against: &["nginx", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "large",
            title: "Bodies of 1 MiB",
            about: "The backend sends a file of one MiB per request. Latencies at {rate} requests/s{share}.",
            work: requests(200),
            subjects: bare().into_iter().map(|s| s.at("/large/1MiB")).collect(),
            columns: BODIES,
            open: OPEN,
            against: &["HAProxy", "nginx"],
            slope: false,
        },
        Scenario {
            name: "idle",
            title: "Idle connections",
            about: "Each connection has carried one request. Kernel memory is not counted; it is the same for all proxies.",
            work: Work::Idle,
            subjects: idle(),
            columns: IDLE,
            open: &[],
            against: &[],
            slope: false,
        },
        Scenario {
            name: "routes",
            title: "Many routes",
            about: "Prefix routes, and a request for the one in the middle: Tollgate's router, Envoy's routes, nginx's locations, and a \
                    HAProxy map. Latencies at {rate} requests/s{share}.",
            work: requests(1000),
            subjects: routes(),
            columns: CLOSED,
            open: OPEN,
            against: &["Tollgate, 10 routes", "nginx, 10 routes"],
            slope: false,
        },
        Scenario {
            name: "swap",
            title: "A filter replaced every second",
            about: "One Proxy-Wasm filter, whose file is replaced with another module every second, in an open loop at {rate} \
                    requests/s{share}. The compiler has to share the worker's processor.",
            work: Work::Swap { most: 5500 },
            subjects: swap(),
            columns: SWAP,
            open: &[],
            against: &["no swaps"],
            slope: false,
        },
        Scenario {
            name: "workers",
            title: "More workers",
            about: "Like the first scenario, with one worker up to one per processor. The load generator and the backend \
                    run on the same processors if no others are left, so with more than one worker, compare the cost per request, \
                    not the throughput. Latencies at {rate} requests/s{share}.",
            work: requests(5500),
            subjects: workers(),
            columns: CLOSED,
            open: OPEN,
            against: &[],
            slope: false,
        },
    ]
}

/// Numbers of copies of a filter, for the slope.
const COPIES: [usize; 4] = [0, 1, 4, 8];

fn wasm() -> Vec<Subject> {
    let programs = [
        ("Tollgate", Program::Tollgate, TOLLGATE_WASM),
        ("Envoy", Program::Envoy, include_str!("../configs/envoy-wasm.yaml")),
    ];
    let subject = |(name, program, template), copies| {
        Subject::new(&format!("{name}, {copies}"), program, template).repeat(copies).modules(THIRD_PARTY)
    };
    let mut shared = subject(programs[1], 8).beside("Tollgate, 8");
    shared.label = "Envoy, 8 in one VM".into();
    shared.template = shared.template.replace("vm_id: copy-{{i}}", "vm_id: one").into();
    programs.into_iter().flat_map(|p| COPIES.map(|copies| subject(p, copies))).chain([shared]).collect()
}

fn routes() -> Vec<Subject> {
    let programs = [
        ("Tollgate", Program::Tollgate, include_str!("../configs/tollgate-routes.yaml")),
        ("nginx", Program::Nginx, include_str!("../configs/nginx-routes.conf")),
        ("HAProxy", Program::Haproxy, include_str!("../configs/haproxy-routes.cfg")),
        ("Envoy", Program::Envoy, include_str!("../configs/envoy-routes.yaml")),
    ];
    let subject = |(name, program, template), n: usize| {
        let path = format!("/service-{}/items/42", n / 2);
        Subject::new(&format!("{name}, {n} routes"), program, template).repeat(n).at(path)
    };
    programs.into_iter().flat_map(|p| [10, 10_000].map(|n| subject(p, n))).collect()
}

fn idle() -> Vec<Subject> {
    let mut subjects = bare();
    if Places::most_workers() >= 2 {
        subjects.push(Subject::new("Tollgate, 2 workers", Program::Tollgate, TOLLGATE).workers(2));
        subjects.push(Subject::new("Tollgate, 4 filters, 2 workers", Program::Tollgate, FILTERS).workers(2));
    }
    subjects
}

fn swap() -> Vec<Subject> {
    let subject = Subject::new("no swaps", Program::Tollgate, TOLLGATE_WASM).repeat(1).modules(THIRD_PARTY);
    let swaps = Subject { label: "a swap every second".into(), swaps: true, ..subject.clone() };
    vec![subject, swaps]
}

fn workers() -> Vec<Subject> {
    let compared = [("nginx", Program::Nginx, NGINX), ("Tollgate", Program::Tollgate, TOLLGATE)];
    let with = |n| {
        compared.map(|(name, program, template)| Subject::new(&format!("{name}, {n}"), program, template).workers(n))
    };
    (1..=Places::most_workers().min(8)).flat_map(with).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_use_the_measured_rates() {
        for scenario in all() {
            let words: Vec<&str> = scenario.about.split_whitespace().collect();
            let rates: Vec<_> = words.windows(2).filter(|pair| pair[1].contains("/s")).collect();
            let expected = usize::from(scenario.work.most().is_some());
            assert_eq!(rates.len(), expected, "{}: {}", scenario.name, scenario.about);
            for pair in rates {
                assert!(pair[0] == "{rate}" && pair[1].contains("/s{share}"), "{}: {pair:?}", scenario.name);
            }
        }
    }

    #[test]
    fn labels_and_names_are_unique_and_known() {
        let scenarios = all();
        for (i, scenario) in scenarios.iter().enumerate() {
            assert!(scenarios[..i].iter().all(|other| other.name != scenario.name));
            for (j, subject) in scenario.subjects.iter().enumerate() {
                assert!(scenario.subjects[..j].iter().all(|other| other.label != subject.label), "{}", subject.label);
            }
            for base in scenario.against {
                assert!(scenario.subjects.iter().any(|s| s.label == *base), "{base}");
            }
        }
    }
}
