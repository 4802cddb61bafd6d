//! What is compared: the scenarios, the proxies in each, and what is shown of the results.

use crate::machine::Places;

/// A question, and the proxies that it is put to in turn.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    pub work: Work,
    pub subjects: Vec<Subject>,
    /// The first one is the main one: plotted, shown with its spread, and compared.
    pub columns: &'static [Column],
    /// Labels of subjects that the others are divided by.
    pub against: &'static [&'static str],
    /// Whether the main figure's growth with the subjects' numbers is shown.
    pub slope: bool,
}

/// What is done to a proxy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Requests as fast as they go, then at a fixed rate.
    Requests { rate: u32, close: bool },
    /// Connections that do nothing.
    Idle,
    /// Requests at a fixed rate, with or without a filter's file replaced every second.
    Swap { rate: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
    Envoy,
    Tollgate,
}

/// A proxy in one configuration.
#[derive(Debug, Clone)]
pub struct Subject {
    pub label: String,
    pub program: Program,
    pub template: &'static str,
    /// How often the repeated part of the template comes.
    pub repeat: usize,
    pub workers: usize,
    pub path: String,
    /// Whether its filter is replaced meanwhile.
    pub swaps: bool,
}

/// A figure of each run.
#[derive(Debug, PartialEq)]
pub struct Column {
    pub key: &'static str,
    pub label: &'static str,
    pub decimals: usize,
}

const fn column(key: &'static str, label: &'static str, decimals: usize) -> Column {
    Column { key, label, decimals }
}

const REQUESTS: &[Column] = &[
    column("cpu_us", "CPU µs/request", 1),
    column("user_us", "user", 1),
    column("system_us", "system", 1),
    column("rate", "requests/s", 0),
    column("busy", "busy %", 0),
    column("p50", "p50 µs", 0),
    column("p99", "p99 µs", 0),
    column("p999", "p99.9 µs", 0),
    column("rss_mib", "RSS MiB", 1),
];

const BODIES: &[Column] = &[
    column("cpu_us", "CPU µs/MiB", 0),
    column("user_us", "user", 0),
    column("system_us", "system", 0),
    column("rate", "MiB/s", 0),
    column("busy", "busy %", 0),
    column("p50", "p50 µs", 0),
    column("p99", "p99 µs", 0),
    column("rss_mib", "RSS MiB", 1),
];

const IDLE: &[Column] = &[
    column("each_kib", "KiB/connection", 1),
    column("connections", "connections", 0),
    column("start_mib", "RSS MiB at the start", 1),
    column("load_mib", "after load", 1),
    column("idle_mib", "with the connections", 1),
];

const SWAP: &[Column] = &[
    column("p99", "p99 µs", 0),
    column("p50", "p50 µs", 0),
    column("p999", "p99.9 µs", 0),
    column("errors", "errors", 0),
    column("swaps", "swaps", 0),
];

const NGINX: &str = include_str!("../configs/nginx.conf");
const HAPROXY: &str = include_str!("../configs/haproxy.cfg");
const ENVOY: &str = include_str!("../configs/envoy.yaml");
const TOLLGATE: &str = include_str!("../configs/tollgate.yaml");

impl Subject {
    fn new(label: &str, program: Program, template: &'static str) -> Subject {
        let path = "/items/42".to_owned();
        Subject { label: label.to_owned(), program, template, repeat: 0, workers: 1, path, swaps: false }
    }

    fn repeat(self, repeat: usize) -> Subject {
        Subject { repeat, ..self }
    }

    fn at(self, path: impl Into<String>) -> Subject {
        Subject { path: path.into(), ..self }
    }

    fn workers(self, workers: usize) -> Subject {
        Subject { workers, ..self }
    }
}

/// The four proxies, each with nothing but what carries a request.
fn bare() -> Vec<Subject> {
    vec![
        Subject::new("nginx", Program::Nginx, NGINX),
        Subject::new("HAProxy", Program::Haproxy, HAPROXY),
        Subject::new("Envoy", Program::Envoy, ENVOY),
        Subject::new("Tollgate", Program::Tollgate, TOLLGATE),
    ]
}

/// All of them, in the order in which they are run and shown.
pub fn all() -> Vec<Scenario> {
    let requests = |rate| Work::Requests { rate, close: false };
    let filters = include_str!("../configs/tollgate-filters.yaml");
    vec![
        Scenario {
            name: "bare",
            title: "A request, no filters",
            about: "HTTP/1.1 on both sides, connections kept alive, a body of 64 bytes. Latencies at 5,000 requests/s.",
            work: requests(5000),
            subjects: bare(),
            columns: REQUESTS,
            against: &["nginx", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "filters",
            title: "Four filters",
            about: "Fault injection, authorization, a rate limit and routes: Tollgate's WebAssembly filters and Envoy's \
                    native ones, configured for the same work. Beside them the proxies without. Latencies at 5,000 \
                    requests/s.",
            work: requests(5000),
            subjects: vec![
                Subject::new("nginx, bare", Program::Nginx, NGINX),
                Subject::new("Envoy, 4 native filters", Program::Envoy, include_str!("../configs/envoy-filters.yaml")),
                Subject::new("Tollgate, bare", Program::Tollgate, TOLLGATE),
                Subject::new("Tollgate, 4 filters", Program::Tollgate, filters),
            ],
            columns: REQUESTS,
            against: &["nginx, bare", "Envoy, 4 native filters"],
            slope: false,
        },
        Scenario {
            name: "wasm",
            title: "The same Proxy-Wasm filter, once and more often",
            about: "examples/filters/third-party, which reads three headers, sets two and adds one, and counts. Envoy runs \
                    it in V8. Latencies at 4,000 requests/s.",
            work: requests(4000),
            subjects: wasm(),
            columns: REQUESTS,
            against: &[],
            slope: true,
        },
        Scenario {
            name: "connections",
            title: "A connection for each request",
            about: "As the first one, with `Connection: close`; those to the backend are kept. Latencies at 2,000 requests/s.",
            work: Work::Requests { rate: 2000, close: true },
            subjects: bare(),
            columns: REQUESTS,
            against: &["nginx", "Envoy"],
            slope: false,
        },
        Scenario {
            name: "large",
            title: "Bodies of 1 MiB",
            about: "The backend sends a file; a request is a MiB. Latencies at 200 requests/s.",
            work: requests(200),
            subjects: bare().into_iter().map(|s| s.at("/large/1MiB")).collect(),
            columns: BODIES,
            against: &["HAProxy", "nginx"],
            slope: false,
        },
        Scenario {
            name: "idle",
            title: "Idle connections",
            about: "Each has carried one request. What the kernel keeps for them is not counted; it is the same for all.",
            work: Work::Idle,
            subjects: idle(filters),
            columns: IDLE,
            against: &[],
            slope: false,
        },
        Scenario {
            name: "routes",
            title: "Many routes",
            about: "Prefix routes, and a request for the one in the middle. Latencies at 1,000 requests/s.",
            work: requests(1000),
            subjects: routes(),
            columns: REQUESTS,
            against: &["Tollgate, 10 routes"],
            slope: false,
        },
        Scenario {
            name: "swap",
            title: "A filter replaced every second",
            about: "One Proxy-Wasm filter, whose file becomes another module every second, at 5,000 requests/s. The \
                    compiler has to work on the worker's own processor.",
            work: Work::Swap { rate: 5000 },
            subjects: swap(),
            columns: SWAP,
            against: &["no swaps"],
            slope: false,
        },
        Scenario {
            name: "workers",
            title: "More workers",
            about: "As the first one, with 1 to as many workers as there are processors. The load generator and the backend \
                    take their time from the same processors where no others are left. Latencies at 5,000 requests/s.",
            work: requests(5000),
            subjects: workers(),
            columns: REQUESTS,
            against: &[],
            slope: false,
        },
    ]
}

fn wasm() -> Vec<Subject> {
    let programs = [
        ("Tollgate", Program::Tollgate, include_str!("../configs/tollgate-wasm.yaml")),
        ("Envoy", Program::Envoy, include_str!("../configs/envoy-wasm.yaml")),
    ];
    let subject = |(name, program, template), copies| {
        Subject::new(&format!("{name}, {copies}"), program, template).repeat(copies)
    };
    programs.into_iter().flat_map(|p| [1, 2, 4, 8].map(|copies| subject(p, copies))).collect()
}

fn routes() -> Vec<Subject> {
    let programs = [
        ("Tollgate", Program::Tollgate, include_str!("../configs/tollgate-routes.yaml")),
        ("Envoy", Program::Envoy, include_str!("../configs/envoy-routes.yaml")),
    ];
    let subject = |(name, program, template), n: usize| {
        let path = format!("/service-{}/items/42", n / 2);
        Subject::new(&format!("{name}, {n} routes"), program, template).repeat(n).at(path)
    };
    programs.into_iter().flat_map(|p| [10, 1000, 10_000].map(|n| subject(p, n))).collect()
}

fn idle(filters: &'static str) -> Vec<Subject> {
    let mut subjects = bare();
    subjects.push(Subject::new("Tollgate, 4 filters", Program::Tollgate, filters));
    if Places::most_workers() >= 2 {
        subjects.push(Subject::new("Tollgate, 4 filters, 2 workers", Program::Tollgate, filters).workers(2));
    }
    subjects
}

fn swap() -> Vec<Subject> {
    let subject = Subject::new("no swaps", Program::Tollgate, include_str!("../configs/tollgate-wasm.yaml")).repeat(1);
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
