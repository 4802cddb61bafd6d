//! A filter's own responses, and what its response callbacks see of them.

use std::time::Duration;

use serde_json::json;
use tollgate_sdk::{
    prelude::*,
    testing::{Outcome, TestHost},
};

/// Answers as the path specifies, and marks every response that it sees.
struct Gate {
    path: Name,
    seen: Name,
    length: Name,
    status: Name,
}

impl Filter for Gate {
    type Config = ();
    type Stream = ();
    const PHASES: Phases =
        Phases::REQUEST_HEADERS.and(Phases::REQUEST_BODY).and(Phases::RESPONSE_HEADERS).and(Phases::RESPONSE_BODY);

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Gate {
            path: setup.name(":path"),
            seen: setup.name("x-seen"),
            length: setup.name("content-length"),
            status: setup.name(":status"),
        })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        let mut buffer = Buffer::new();
        match request.header(self.path, &mut buffer) {
            Some(b"/head") => Reply::new(401).header("X-Own", "1").body("who?").details("no_key").into(),
            Some(b"/empty") => Reply::new(403).into(),
            Some(b"/wait") => Flow::Wait(Duration::from_millis(5), 0),
            _ => Flow::Continue,
        }
    }

    fn on_timer(&self, _: u32, _: &Request, _: &mut ()) -> Flow {
        Reply::new(504).body("late").into()
    }

    fn on_request_body(&self, _: &Body, request: &Request, _: &mut ()) -> Flow {
        let mut buffer = Buffer::new();
        match request.header(self.path, &mut buffer) {
            Some(b"/body") => Reply::new(413).body("much").into(),
            _ => Flow::Continue,
        }
    }

    fn on_response(&self, response: &Response, _: &mut ()) -> Flow {
        let mut buffer = Buffer::new();
        let [status, length] = response.headers([self.status, self.length], &mut buffer);
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or(b"-")).into_owned();
        let seen = format!("{} {}", text(status), text(length));
        response.add_header(self.seen, seen);
        match status {
            Some(b"502") => Reply::new(503).body("sorry").into(),
            _ => Flow::Continue,
        }
    }

    fn on_response_body(&self, body: &Body, _: &Response, _: &mut ()) -> Flow {
        body.replace(&body.to_vec().to_ascii_uppercase());
        Flow::Continue
    }
}

fn reply(outcome: &Outcome<'_, Gate>) -> (Option<u16>, Option<String>, String) {
    let body = String::from_utf8_lossy(outcome.reply_body().unwrap_or(b"-")).into_owned();
    (outcome.status(), outcome.reply_header("x-seen").map(str::to_owned), body)
}

fn expected(status: u16, seen: Option<&str>, body: &str) -> (Option<u16>, Option<String>, String) {
    (Some(status), seen.map(str::to_owned), body.to_owned())
}

#[test]
fn reply_to_a_request_passes_the_filters_own_response_callbacks() {
    let host = TestHost::<Gate>::new(json!(null)).unwrap();
    let refused = host.request("GET", "/head").send();
    assert_eq!(reply(&refused), expected(401, Some("401 4"), "WHO?"));
    assert_eq!((refused.reply_header("x-own"), refused.details()), (Some("1"), Some("no_key")));
    assert_eq!((refused.response_header("x-seen"), refused.response_body()), (Some("401 4"), &b"WHO?"[..]));
    assert_eq!(reply(&host.request("GET", "/empty").send()), expected(403, Some("403 0"), ""));
    assert_eq!(reply(&host.request("PUT", "/body").body("x").send()), expected(413, Some("413 4"), "MUCH"));
    assert_eq!(reply(&host.request("GET", "/wait").send().wait()), expected(504, Some("504 4"), "LATE"));
}

#[test]
fn reply_replacing_a_response_is_not_seen_again() {
    let host = TestHost::<Gate>::new(json!(null)).unwrap();
    let outcome = host.request("GET", "/").send().respond(502, &[], b"oops");
    assert_eq!(reply(&outcome), expected(503, None, "sorry"));
}

#[test]
fn upstream_response_is_ignored_after_a_reply() {
    let host = TestHost::<Gate>::new(json!(null)).unwrap();
    let refused = host.request("GET", "/head").send().respond(200, &[("x-up", "1")], b"hello");
    assert_eq!(reply(&refused), expected(401, Some("401 4"), "WHO?"));
    assert_eq!(refused.response_header("x-up"), None);
}

#[test]
fn reply_to_a_grpc_client_is_headers_only_with_a_status() {
    let host = TestHost::<Gate>::new(json!(null)).unwrap();
    let refused = host.request("POST", "/head").header("content-type", "application/grpc+proto").send();
    assert_eq!(reply(&refused), expected(200, Some("200 -"), ""));
    let header = |name| refused.reply_header(name);
    assert_eq!((header("grpc-status"), header("grpc-message")), (Some("16"), Some("who?")));
    assert_eq!((header("content-type"), header("x-own")), (Some("application/grpc"), Some("1")));
    assert!(!refused.continued());
}
