//! The standard filters, compiled natively: their configurations, and requests.

use std::time::Duration;

use authz::Authz;
use fault::Fault;
use ratelimit::Ratelimit;
use router::Router;
use serde_json::{Value, json};
use tollgate_abi::spelling::{self, PathRules};
use tollgate_sdk::{Filter, testing::TestHost};

use crate::{Outcome, Target};

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Sent {
    continued: bool,
    status: Option<u16>,
    waits: Option<Duration>,
}

/// A configuration, an empty line, and requests separated by empty lines: `METHOD HOST PATH`, and lines of fields. A
/// rejected configuration has a reason; the same requests have the same outcomes; and each outcome is a possible one.
fn check<F: Filter>(input: &[u8], also: fn(&Value, &[Request<'_>], &[Sent])) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.split("\n\n");
    let Some(Ok(config)) = parts.next().map(serde_json::from_str::<Value>) else { return Outcome::of(()) };
    let requests: Vec<_> = parts.filter_map(Request::read).take(8).collect();
    let sent = match send::<F>(&config, &requests) {
        Ok(sent) => sent,
        Err(why) => {
            assert!(!why.is_empty());
            return Outcome::of(why.len());
        }
    };
    assert_eq!(send::<F>(&config, &requests), Ok(sent.clone()));
    for sent in &sent {
        assert!(sent.continued || sent.status.is_some() || sent.waits.is_some(), "the request is held forever");
        assert!(sent.status.is_none_or(|status| (200..=599).contains(&status)), "{sent:?}");
    }
    also(&config, &requests, &sent);
    Outcome::of((sent, requests.len()))
}

struct Request<'a> {
    method: &'a str,
    host: String,
    path: String,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Request<'a> {
    /// Parses a request as filters see it.
    fn read(text: &'a str) -> Option<Request<'a>> {
        let mut lines = text.lines();
        let mut words = lines.next()?.split(' ');
        let (method, host, target) = (words.next()?, words.next()?, words.next()?);
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        let path = spelling::path(path.as_bytes(), &PathRules::default()).ok()?;
        let host = spelling::host(host.as_bytes())?;
        let host = str::from_utf8(&host).ok()?.to_owned();
        let path = str::from_utf8(&path).ok()?.to_owned() + query;
        let is_value = |value: &str| !value.bytes().any(|byte| byte < b' ' || byte == 0x7f);
        let fields = lines.filter_map(|line| line.split_once(": ")).filter(|(_, value)| is_value(value)).take(8);
        (spelling::is_method(method.as_bytes()) && is_value(&path) && is_value(&host)).then(|| Request {
            method,
            host,
            path,
            fields: fields.collect(),
        })
    }
}

fn send<F: Filter>(config: &Value, requests: &[Request<'_>]) -> Result<Vec<Sent>, String> {
    let host = TestHost::<F>::new(config.clone()).map_err(|e| e.to_string())?;
    let sent = requests.iter().map(|request| {
        let sent = host.request(request.method, &request.path).host(&request.host);
        let sent = request.fields.iter().fold(sent, |sent, (name, value)| sent.header(name, value)).send();
        Sent { continued: sent.continued(), status: sent.status(), waits: sent.waits() }
    });
    Ok(sent.collect())
}

/// Checks that a filter with `dry_run` lets every request pass.
fn dry_run_passes<F: Filter>(config: &Value, requests: &[Request<'_>], _: &[Sent]) {
    let mut tried = config.clone();
    // A list can be deserialized as a struct.
    let Some(tried_out) = tried.as_object_mut() else { return };
    tried_out.insert("dry_run".to_owned(), json!(true));
    let sent = send::<F>(&tried, requests).expect("`dry_run` does not affect validity");
    assert!(sent.iter().all(|sent| sent.continued), "{sent:?}");
}

fn authz(config: &Value, requests: &[Request<'_>], sent: &[Sent]) {
    dry_run_passes::<Authz>(config, requests, sent);
    assert!(sent.iter().all(|sent| sent.continued == (sent.status != Some(403))));
    // An additional deny policy allows nothing new.
    let mut stricter = config.clone();
    if let Some(policies) = stricter.get_mut("policies").and_then(Value::as_array_mut) {
        let name = policies.len().to_string().repeat(40);
        let operation = json!({"methods": ["GET"]});
        policies.push(json!({"name": name, "action": "deny", "rules": [{"to": [{"operation": operation}]}]}));
        let stricter = send::<Authz>(&stricter, requests).expect("every policy is valid");
        for ((request, sent), stricter) in requests.iter().zip(sent).zip(stricter) {
            let denied = request.method == "GET" && config["dry_run"] != true;
            assert_eq!(stricter.continued, sent.continued && !denied, "{} {}", request.method, request.path);
        }
    }
}

fn ratelimit(config: &Value, requests: &[Request<'_>], sent: &[Sent]) {
    dry_run_passes::<Ratelimit>(config, requests, sent);
    let status = config["status"].as_u64().unwrap_or(429);
    assert!(sent.iter().all(|sent| sent.continued || sent.status.map(u64::from) == Some(status)), "{sent:?}");
}

fn fault(_: &Value, _: &[Request<'_>], sent: &[Sent]) {
    assert!(sent.iter().all(|sent| sent.waits.is_none_or(|time| time <= Duration::from_secs(3600))), "{sent:?}");
}

fn router(_: &Value, _: &[Request<'_>], sent: &[Sent]) {
    assert!(sent.iter().all(|sent| sent.waits.is_none()));
}

const REQUESTS: [&[u8]; 6] = [
    b"\n\nGET example.com /a/b?c=d\n",
    b"\n\nPOST a.example:8080 /\n",
    b"cookie: a=b; c=\"d\"\n",
    b"x: y\n",
    b"%2F",
    b"*",
];

/// Defines a filter's target: its type, an additional check, and its own words in addition to those of requests.
macro_rules! target {
    ($filter:ty, $checked:expr, $($word:expr),+ $(,)?) => {
        Target {
            words: &[
                REQUESTS[0], REQUESTS[1], REQUESTS[2], REQUESTS[3], REQUESTS[4], REQUESTS[5], $($word),+
            ],
            max_len: 2000,
            check: |input| check::<$filter>(input, $checked),
        }
    };
}

pub(super) const AUTHZ: Target = target!(
    Authz,
    authz,
    b"\"action\":\"deny\"",
    b"\"dry_run\":true",
    b"\"principal_header\":\"x\"",
    b"\"paths\":[\"/a*\"]",
    b"\"not_hosts\":[\"*.example:8080\"]",
    b"\"not_methods\":[\"GET\"]",
    b"\"ip_blocks\":[\"192.0.2.0/24\"]",
    b"\"principals\":[\"*\"]",
    b"{\"key\":\"request.headers[cookie]\",\"values\":[\"a=b\"]}",
    b"{\"key\":\"source.ip\",\"not_values\":[\"::/0\"]}",
);

pub(super) const FAULT: Target = target!(
    Fault,
    fault,
    b"x-envoy-fault-delay-request: 5\n",
    b"x-envoy-fault-abort-request: 503\n",
    b"x-envoy-fault-abort-request-percentage: 50\n",
    b"\"headers\":true",
    b"\"abort\":{\"status\":503,\"percent\":100}",
    b"\"delay\":{\"fixed\":\"1s\",\"percent\":100}",
    b"\"uniform\":{\"min\":\"1ms\",\"max\":\"1h\"}",
    b"\"exponential\":{\"mean\":\"1s\",\"max\":\"10s\"}",
    b"\"max_active\":1",
    b"\"match\":{\"path\":{\"prefix\":\"/a\"}}",
    b"0.0001",
    b"1e300",
    b"18446744073709551615s",
);

pub(super) const RATELIMIT: Target = target!(
    Ratelimit,
    ratelimit,
    b"\"dry_run\":true",
    b"\"status\":503",
    b"\"headers\":\"off\"",
    b"\"burst\":1",
    b"\"requests\":2147483647",
    b"\"per\":\"1ms\"",
    b"\"per\":\"8760h\"",
    b"\"max_keys\":1",
    b"\"on_missing_key\":\"shared\"",
    b"\"ipv6_prefix\":128",
    b"{\"source\":true}",
    b"{\"header\":\"x\"}",
    b"{\"cookie\":\"a\"}",
);

pub(super) const ROUTER: Target = target!(
    Router,
    router,
    b"\"cluster\":\"a\"",
    b"\"path\":{\"regex\":\"/(a|b)+\"}",
    b"\"prefix_rewrite\":\"/x\"",
    b"\"regex_rewrite\":{\"pattern\":\"a(.)\",\"substitution\":\"\\\\1\"}",
    b"\"redirect\":{\"host\":\"b\",\"status\":308}",
    b"\"respond\":{\"status\":204}",
    b"\"headers\":[{\"name\":\"x\",\"invert\":true}]",
    b"\"query\":[{\"name\":\"c\",\"exact\":\"d\"}]",
    b"\"split\":{\"clusters\":[{\"cluster\":\"a\",\"weight\":1}],\"sticky\":{\"cookie\":\"a\"}}",
    b"\"timeout\":\"1s\"",
    b"(?i)",
    b"{1000}",
);
