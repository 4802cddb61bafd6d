//! Runs of small configurations, with few requests.

use clap::Parser;

use super::*;
use crate::{
    config::{self, Format},
    wasm::Compiler,
};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: ChainArgs,
}

fn args(line: &[&str]) -> ChainArgs {
    Cli::try_parse_from([&["chain", "tollgate.yaml"], line].concat()).unwrap().args
}

/// Runs a configuration whose listener has this chain, and another one the reverse; the filters are described by YAML.
fn result(chain: &str, filters: &str, line: &[&str]) -> anyhow::Result<Report> {
    let reverse = chain.split(", ").collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(", ");
    let text = format!(
        "listeners:\n\
         - {{name: public, address: '127.0.0.1:8080', chain: [{chain}], cluster: web}}\n\
         - {{name: other, address: '127.0.0.1:8081', chain: [{reverse}], cluster: web}}\n\
         filters:\n{filters}\n\
         clusters: [{{name: web, endpoints: [{{address: '127.0.0.1:9001'}}]}}]\n"
    );
    let loaded = config::parse("tollgate.yaml", &text, Format::Yaml).unwrap();
    let made = SnapshotBuilder::new(1, Compiler::in_process()).unwrap().build(loaded, None, BuildMode::Trial).unwrap();
    let args = args(line);
    measure(made, &args, sample::asked(&args)?, Duration::ZERO)
}

fn report(chain: &str, filters: &str, line: &[&str]) -> Report {
    result(chain, filters, line).unwrap()
}

const ROUTER: &str = "
  - name: routes
    wasm: builtin:router
    config: {virtual_hosts: [{name: all, domains: ['*'], routes: [{cluster: web}]}]}";

const AUTHZ: &str = "
  - name: access
    wasm: builtin:authz
    config: {policies: [{name: admin, action: deny, rules: [{to: [{operation: {paths: [/admin*]}}]}]}]}";

const DELAY: &str = "
  - name: slow
    wasm: builtin:fault
    config: {delay: {fixed: 1h, percent: 100}}";

#[test]
fn each_filter_and_phase_is_counted() {
    let filters = format!("{ROUTER}{AUTHZ}");
    let report = report("access, routes", &filters, &["--iterations", "10"]);
    let names: Vec<_> = report.filters.iter().map(|f| f.name.as_str()).collect();
    assert_eq!((names, report.requests, report.iterations), (vec!["access", "routes"], 4, 10));
    for filter in &report.filters {
        let phase = |phase| filter.phases.iter().find(|p| p.phase == phase);
        let headers = phase(timed::Phase::RequestHeaders).unwrap();
        assert_eq!(headers.calls, 10);
        assert!(headers.hostcalls >= 1.0 && headers.copied_bytes > 0.0 && headers.figures.median_ns > 0.0);
        assert_eq!(phase(timed::Phase::End).unwrap().calls, 10);
        assert!(phase(timed::Phase::ResponseHeaders).is_none(), "it does not subscribe to them");
        assert!(filter.memory_bytes >= 64 << 10);
    }
    assert!(report.total.median_ns > 0.0 && report.calls.of_medians_ns > 0.0);
    assert_eq!(report.endings, [EndingReport::Response { status: 200, count: 10 }]);

    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    let text = report.text(false);
    assert!(text.contains("access") && text.contains("10 × 200 from upstream") && !text.contains('\x1b'), "{text}");
    assert!(report.text(true).contains('\x1b'));
}

#[test]
fn requests_that_end_early_are_reported_by_status() {
    let lines = ["--request", "GET /admin/x", "--request", "GET /", "--request", "HEAD /admin", "-n", "7"];
    let filters = format!("{ROUTER}{AUTHZ}");
    let report = report("access, routes", &filters, &lines);
    let denied = EndingReport::Reply { status: 403, count: 5 };
    assert_eq!(report.endings, [EndingReport::Response { status: 200, count: 2 }, denied]);
    assert_eq!(report.filters[1].phases[0].calls, 2);
    assert!(report.notes[0].starts_with("71.4% of the requests ended before the upstream"), "{:?}", report.notes);
}

#[test]
fn another_listener_can_run_alternately() {
    let filters = format!("{ROUTER}{AUTHZ}");
    let first = report("access, routes", &filters, &["-n", "300", "--beside", "other"]);
    let names = |report: &Report| report.filters.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
    let beside = first.beside.as_deref().unwrap();
    assert_eq!(
        (names(&first), names(beside)),
        (vec!["access".into(), "routes".into()], vec!["routes".into(), "access".into()])
    );
    assert_eq!((beside.listener.as_str(), beside.iterations, beside.filters[0].phases[0].calls), ("other", 300, 300));
    assert!(first.text(false).contains("\nlistener `other`: 2 filters"), "{}", first.text(false));
    let read: Report = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
    assert_eq!(read, first);
    assert!(
        format!("{:#}", result("routes", ROUTER, &["--beside", "x"]).unwrap_err())
            .contains("there is no such listener")
    );
}

#[test]
fn bodies_and_trailers_bypass_filters_without_subscription() {
    let line = ["-n", "2", "--request", "POST /", "--body", "200000", "--response-body", "100000", "--trailers"];
    let report = report("routes", ROUTER, &line);
    assert_eq!(report.endings, [EndingReport::Response { status: 200, count: 2 }]);
    assert_eq!(report.filters[0].phases.len(), 2);
}

#[test]
fn a_delay_is_not_waited_for() {
    // If the benchmark waited for these hours, the test would not end.
    let report = report("slow, routes", &format!("{ROUTER}{DELAY}"), &["-n", "600"]);
    assert_eq!(report.endings, [EndingReport::Held { filter: "slow".into(), count: 600 }]);
    assert!(report.notes[0].starts_with("100.0% of the requests were held"), "{:?}", report.notes);
    assert!(report.filters[1].phases.is_empty() && report.text(false).contains("never called"));
}

#[test]
fn lines_of_an_access_log_that_no_filter_has_seen_are_skipped_and_counted() {
    let line = |method: &str, path: &str| {
        format!(r#"{{"start":"2026-01-01T00:00:00.000Z","listener":"public","method":{method},"path":{path}}}"#)
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let run = |lines: &[String]| {
        std::fs::write(&file, lines.join("\n")).unwrap();
        result("routes", ROUTER, &["-n", "10", "--requests", file.to_str().unwrap()])
    };
    let seen = [line("\"GET\"", "\"/a\""), line("\"PUT\"", "\"/b\"")];
    // A client whose handshake failed, a rejected tunnel, and an invalid path.
    let unseen = [line("null", "null"), line("\"CONNECT\"", "\"/\""), line("\"GET\"", "\"/%zz\"")];
    let report = run(&[&unseen[..], &seen].concat()).unwrap();
    assert_eq!(report.requests, 2);
    assert!(report.notes[0].starts_with("3 lines of the access log skipped: "), "{:?}", report.notes);
    assert!(!run(&seen).unwrap().notes.iter().any(|note| note.contains("skipped")));
    assert!(format!("{:#}", run(&unseen[..2]).unwrap_err()).ends_with("contains no request"));
    assert!(format!("{:#}", run(&unseen).unwrap_err()).contains("would reject all"));
}

#[test]
fn a_listener_for_tcp_is_rejected() {
    let text = "listeners: [{name: db, address: '127.0.0.1:8080', protocol: tcp, cluster: web}]\n\
                clusters: [{name: web, endpoints: [{address: '127.0.0.1:9001'}]}]\n";
    let loaded = config::parse("tollgate.yaml", text, Format::Yaml).unwrap();
    let made = SnapshotBuilder::new(1, Compiler::in_process()).unwrap().build(loaded, None, BuildMode::Trial).unwrap();
    let args = args(&[]);
    let error = measure(made, &args, sample::asked(&args).unwrap(), Duration::ZERO).err().unwrap();
    assert!(error.to_string().contains("listener `db` is for TCP connections"), "{error}");
}

#[test]
fn listeners_and_requests_that_cannot_run_are_rejected() {
    let problem = |line: &[&str]| format!("{:#}", result("routes", ROUTER, line).unwrap_err());
    assert!(problem(&["--listener", "x"]).ends_with("use one of public, other"));
    assert!(problem(&["--request", "GET /%zz"]).contains("broken percent-encoding"));
    assert!(problem(&["-H", "host: a@b c"]).contains("is not a host"));
    assert!(format!("{:#}", result("", ROUTER, &[]).unwrap_err()).contains("is empty"));
    for line in [
        ["--request", "GET"],
        ["--header", "a"],
        ["--body", "64M"],
        ["--iterations", "0"],
        ["--request=GET /", "--requests=f"],
    ] {
        assert!(Cli::try_parse_from([&["chain", "f.yaml"][..], &line].concat()).is_err(), "{line:?}");
    }
}

fn figures(median_ns: f64, p99_ns: f64) -> PhaseFigures {
    PhaseFigures { median_ns, p99_ns, mean_ns: median_ns, change: None }
}

fn sample_report(filter: &str, median_ns: f64, p99_ns: f64) -> Report {
    let phase = PhaseReport {
        phase: timed::Phase::RequestHeaders,
        calls: 1,
        figures: figures(median_ns, p99_ns),
        hostcalls: 1.0,
        copied_bytes: 0.0,
    };
    Report {
        tollgate: "1".into(),
        listener: "l".into(),
        requests: 1,
        workload: "w".into(),
        iterations: 1,
        clock_ns: 20.0,
        filters: vec![FilterReport { name: filter.into(), memory_bytes: 1, phases: vec![phase] }],
        total: figures(median_ns * 2.0, p99_ns),
        calls: Sums { of_medians_ns: median_ns, of_means_ns: median_ns },
        endings: vec![EndingReport::Response { status: 200, count: 1 }],
        notes: Vec::new(),
        beside: None,
    }
}

#[test]
fn calls_are_summed_up_by_their_number() {
    let mut filters = [sample_report("f", 200.0, 0.0).filters, sample_report("g", 100.0, 0.0).filters].concat();
    filters[0].phases[0].calls = 10;
    filters[1].phases[0].calls = 5;
    assert_eq!(Sums::new(&filters, 10), Sums { of_medians_ns: 250.0, of_means_ns: 250.0 });
}

#[test]
fn a_baseline_shows_differences_in_percent() {
    let before = sample_report("f", 200.0, 0.0);
    let mut now = sample_report("f", 230.0, 50.0);
    now.compare(&before);
    let change = now.filters[0].phases[0].figures.change.unwrap();
    assert_eq!((change.median_percent, change.p99_percent), (15.0, 0.0));
    assert_eq!(now.total.change.unwrap().median_percent, 15.0);
    assert!(now.notes.is_empty());
    let text = now.text(false);
    assert!(text.contains("Δmedian") && text.contains("+15.0%"), "{text}");
    assert!(now.text(true).contains("\x1b[31m   +15.0%"));

    let mut now = Report { workload: "other".into(), endings: Vec::new(), ..sample_report("g", 100.0, 1.0) };
    now.compare(&before);
    assert_eq!((now.total.change.unwrap().median_percent, now.filters[0].phases[0].figures.change), (-50.0, None));
    assert_eq!(now.notes.len(), 4, "other requests, other endings, one filter more and one less: {:?}", now.notes);
}
