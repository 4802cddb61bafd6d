//! Compares the outcome of a step with the expectations.

use std::collections::BTreeMap;

use http::HeaderMap;
use serde_json::Value as Json;

use super::{
    client::{Got, Received},
    model::{Expect, Gets, Response, Sent},
    observer::Ended,
    script::Arrived,
    want::Want,
};
use crate::tools::counted;

/// An expectation that was not met.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The location of the expectation in the file: a JSON pointer, and a path below it.
    pub pointer: String,
    pub inner: String,
    /// The checked value: `response.status`.
    pub what: String,
    pub expected: String,
    pub actual: String,
}

/// The outcome of a step.
#[derive(Debug, Default)]
pub struct Happened {
    /// `None` if the step was not a request.
    pub got: Option<Got>,
    pub ended: Option<Ended>,
    pub arrived: Vec<Arrived>,
    pub took: std::time::Duration,
    pub logs: Vec<String>,
    /// All metrics, in scrape format.
    pub metrics: String,
}

/// Collects failures.
struct Checks {
    /// Points to the step's `expect`.
    pointer: String,
    failures: Vec<Failure>,
}

/// Compares a step; `pointer` points to its `expect`.
pub fn check(pointer: &str, expect: &Expect, happened: &Happened) -> Vec<Failure> {
    let mut checks = Checks { pointer: pointer.to_owned(), failures: Vec::new() };
    checks.response(expect.response.as_ref(), happened.got.as_ref());
    let ended = happened.ended.clone().unwrap_or_default();
    checks.upstream(expect.upstream.as_ref(), &happened.arrived, &ended);
    checks.calls(expect.calls.as_deref(), &happened.arrived);
    checks.text("route", expect.route.as_ref(), ended.route.as_deref());
    checks.text("cluster", expect.cluster.as_ref(), ended.cluster.as_deref());
    checks.text("details", expect.details.as_ref(), Some(ended.details.as_str()).filter(|d| !d.is_empty()));
    if let Some(flags) = &expect.flags {
        let sorted = |mut flags: Vec<&str>| {
            flags.sort_unstable();
            if flags.is_empty() { "none".to_owned() } else { flags.join(" ") }
        };
        let wanted = sorted(flags.iter().map(String::as_str).collect());
        checks.equal("flags", &wanted, &sorted(ended.flags.clone()));
    }
    for (name, want) in &expect.log_fields {
        let field = ended.log_fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        checks.text(&format!("log_fields.{name}"), Some(want), field);
    }
    if let Some(takes) = expect.takes {
        let wanted = format!("{} ms", takes.0.as_millis());
        checks.equal("takes", &wanted, &format!("{} ms", happened.took.as_millis()));
    }
    for (i, want) in expect.logs.iter().enumerate() {
        if !happened.logs.iter().any(|line| want.is_in(line)) {
            let actual = if happened.logs.is_empty() { "no line".to_owned() } else { happened.logs.join("\n") };
            checks.fail(&format!("logs[{i}]"), want.to_string(), actual);
        }
    }
    for (name, wanted) in &expect.metrics {
        let actual = metric(&happened.metrics, name).map_or("no such metric".to_owned(), |value| value.to_string());
        checks.equal(&format!("metrics.{name}"), &wanted.to_string(), &actual);
    }
    checks.failures
}

impl Checks {
    fn fail(&mut self, what: &str, expected: String, actual: String) {
        self.failures.push(Failure {
            pointer: self.pointer.clone(),
            inner: what.to_owned(),
            what: what.to_owned(),
            expected,
            actual,
        });
    }

    fn equal(&mut self, what: &str, wanted: &str, actual: &str) {
        if wanted != actual {
            self.fail(what, wanted.to_owned(), actual.to_owned());
        }
    }

    fn bytes(&mut self, what: &str, want: Option<&Want>, actual: Option<&[u8]>) {
        let Some(want) = want else { return };
        if !want.accepts(actual) {
            let actual = actual.map_or("nothing".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned());
            self.fail(what, want.to_string(), actual);
        }
    }

    fn text(&mut self, what: &str, want: Option<&Want>, actual: Option<&str>) {
        self.bytes(what, want, actual.map(str::as_bytes));
    }

    /// An empty body counts both as absent and as the empty text.
    fn body(&mut self, what: &str, want: Option<&Want>, actual: &[u8]) {
        let wants_empty = matches!(want, Some(Want::Equal(text)) if text.is_empty());
        self.bytes(what, want, (wants_empty || !actual.is_empty()).then_some(actual));
    }

    fn map(&mut self, what: &str, wants: &BTreeMap<String, Want>, actual: &HeaderMap) {
        for (name, want) in wants {
            let values: Vec<_> = actual.get_all(name.as_str()).iter().map(|value| value.as_bytes()).collect();
            let joined = (!values.is_empty()).then(|| values.join(&b", "[..]));
            self.bytes(&format!("{what}.{name}"), Some(want), joined.as_deref());
        }
    }

    fn json(&mut self, what: &str, wanted: Option<&Json>, actual: &[u8]) {
        let Some(wanted) = wanted else { return };
        match serde_json::from_slice::<Json>(actual) {
            Ok(actual) if actual == *wanted => {}
            Ok(actual) => self.fail(what, format!("{wanted:#}"), format!("{actual:#}")),
            Err(_) => self.fail(what, format!("{wanted:#}"), String::from_utf8_lossy(actual).into_owned()),
        }
    }

    fn response(&mut self, wanted: Option<&Gets<Response>>, got: Option<&Got>) {
        let none = "none: the connection is closed".to_owned();
        match (wanted, got) {
            (None, Some(Got::Response(_) | Got::Closed) | None)
            | (Some(Gets::None), Some(Got::Closed))
            | (Some(_), None) => {}
            (_, Some(Got::Nothing)) => {
                self.fail(
                    "response",
                    "a response or a closed connection".to_owned(),
                    "none: the request is held forever".to_owned(),
                );
            }
            (Some(Gets::None), Some(Got::Response(got))) => {
                self.fail("response", none, format!("status {}", got.status))
            }
            (Some(Gets::Some(_)), Some(Got::Closed)) => self.fail("response", "a response".to_owned(), none),
            (Some(Gets::Some(wanted)), Some(Got::Response(got))) => self.received(wanted, got),
        }
    }

    fn received(&mut self, wanted: &Response, got: &Received) {
        if let Some(wanted) = wanted.status {
            self.equal("response.status", &wanted.to_string(), &got.status.to_string());
        }
        self.map("response.headers", &wanted.headers, &got.headers);
        self.body("response.body", wanted.body.as_ref(), &got.body);
        self.json("response.json", wanted.json.as_ref(), &got.body);
        self.map("response.trailers", &wanted.trailers, &got.trailers);
        if !got.whole {
            let broken = format!("aborted after {}", counted(got.body.len(), "byte"));
            self.fail("response", "a complete response".to_owned(), broken);
        }
    }

    fn upstream(&mut self, wanted: Option<&Gets<Sent>>, arrived: &[Arrived], ended: &Ended) {
        // Requests to other clusters are mirrored copies.
        let sent = arrived.iter().rfind(|a| !a.is_call && ended.cluster.as_deref() == Some(a.cluster.as_str()));
        match (wanted, sent) {
            (None, _) | (Some(Gets::None), None) => {}
            (Some(Gets::None), Some(sent)) => {
                self.fail(
                    "upstream",
                    "none".to_owned(),
                    format!("{} {} to `{}`", sent.method, sent.path, sent.cluster),
                );
            }
            (Some(Gets::Some(_)), None) => self.fail("upstream", "a request".to_owned(), "none".to_owned()),
            (Some(Gets::Some(wanted)), Some(sent)) => {
                self.sent("upstream", wanted, sent);
                if let Some(attempts) = wanted.attempts {
                    self.equal("upstream.attempts", &attempts.to_string(), &ended.attempts.to_string());
                }
            }
        }
    }

    fn calls(&mut self, wanted: Option<&[Sent]>, arrived: &[Arrived]) {
        let Some(wanted) = wanted else { return };
        let calls: Vec<_> = arrived.iter().filter(|a| a.is_call).collect();
        for (i, (wanted, call)) in wanted.iter().zip(&calls).enumerate() {
            self.sent(&format!("calls[{i}]"), wanted, call);
        }
        if wanted.len() != calls.len() {
            let made = calls.iter().map(|c| format!("{} {} to `{}`", c.method, c.path, c.cluster)).collect::<Vec<_>>();
            let made = if made.is_empty() { "none".to_owned() } else { made.join("\n") };
            self.fail("calls", counted(wanted.len(), "call"), made);
        }
    }

    fn sent(&mut self, what: &str, wanted: &Sent, sent: &Arrived) {
        let of = |name: &str| format!("{what}.{name}");
        self.text(&of("cluster"), wanted.cluster.as_ref(), Some(&sent.cluster));
        self.text(&of("method"), wanted.method.as_ref(), Some(&sent.method));
        self.text(&of("path"), wanted.path.as_ref(), Some(&sent.path));
        self.text(&of("host"), wanted.host.as_ref(), sent.host.as_deref());
        self.map(&of("headers"), &wanted.headers, &sent.headers);
        self.body(&of("body"), wanted.body.as_ref(), &sent.body);
        self.json(&of("json"), wanted.json.as_ref(), &sent.body);
        self.map(&of("trailers"), &wanted.trailers, &sent.trailers);
    }
}

/// Returns a metric's value from a scrape. The name is the filter's, or, with labels, the scrape's.
fn metric(scraped: &str, name: &str) -> Option<f64> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let own: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    let shown = format!("wasmcustom_{own}");
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series == name || series == shown).then(|| value.parse().ok())?
    };
    scraped.lines().filter(|line| !line.starts_with('#')).find_map(value)
}
