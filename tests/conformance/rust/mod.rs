//! The cases that the `proxy-wasm` crate can express, for both of its lines: what to call in which callback, and what
//! to expect. The names are those of the case files. `super::sdk` has the differences between the lines.
//!
//! The crate panics on unknown statuses, so a panic of this module is a failure too.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use proxy_wasm::{
    hostcalls as host,
    types::{Action, BufferType as Buffer, LogLevel, MapType as Map, MetricType as Metric, Status},
};

use super::sdk;

/// A callback with its arguments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum At {
    RequestHeaders { count: usize, end: Option<bool> },
    RequestBody { size: usize },
    RequestTrailers { count: usize },
    ResponseHeaders { count: usize, end: Option<bool> },
    ResponseBody { size: usize },
    ResponseTrailers { count: usize },
    HttpCall { call: u32, headers: usize, body: usize, trailers: usize },
    GrpcCall { call: u32, status: u32, size: usize },
    GrpcInitial { call: u32, count: u32 },
    GrpcMessage { call: u32, size: usize },
    GrpcTrailing { call: u32, count: u32 },
    GrpcClose { call: u32, status: u32 },
    Tick,
    QueueReady { queue: u32 },
    Done,
    Log,
    Downstream { size: usize },
    Upstream { size: usize },
    DownstreamClose,
    UpstreamClose,
}

/// The next step of a case.
enum Next {
    /// The case has passed.
    Passed,
    /// The case continues in a later callback; the current callback returns this action.
    Then(Action),
    /// This file has no such case.
    NotHere,
}

use At::*;
use Next::*;

const GO_ON: Result<Next, String> = Ok(Then(Action::Continue));
const HOLD: Result<Next, String> = Ok(Then(Action::Pause));
const PASSED: Result<Next, String> = Ok(Passed);

/// A running case.
#[derive(Debug, Default, Clone)]
pub struct Run {
    pub case: String,
    context: u32,
    /// Id of a call or a queue.
    id: u32,
    step: u32,
    seen: String,
}

thread_local! {
    static VERDICTS: RefCell<BTreeMap<String, Result<(), String>>> = const { RefCell::new(BTreeMap::new()) };
    /// The case that waits for a callback of the root context.
    static WAITING: RefCell<Option<Run>> = const { RefCell::new(None) };
}

macro_rules! same {
    ($got:expr, $wanted:expr) => {{
        let (got, wanted) = ($got, $wanted);
        if got != wanted {
            return Err(format!("line {}: {:?}, not {:?}", line!(), got, wanted));
        }
    }};
}

macro_rules! yes {
    ($is:expr) => {
        if !$is {
            return Err(format!("line {}: {} is not so", line!(), stringify!($is)));
        }
    };
}

mod calls;
mod maps;
mod state;
mod streams;

fn header(map: Map, name: &str) -> Option<String> {
    host::get_map_value(map, name).unwrap()
}

fn buffer(which: Buffer) -> Option<String> {
    let bytes = host::get_buffer(which, 0, 1000).unwrap()?;
    Some(String::from_utf8(bytes).unwrap())
}

fn property(path: &str) -> Option<Vec<u8>> {
    host::get_property(path.split('.').collect()).unwrap()
}

fn number(path: &str) -> Option<u64> {
    Some(u64::from_le_bytes(property(path)?.try_into().ok()?))
}

fn text(path: &str) -> Option<String> {
    String::from_utf8(property(path)?).ok()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

const CALL: [(&str, &str); 3] = [(":method", "GET"), (":path", "/call"), (":authority", "called")];
const TIME: Duration = Duration::from_secs(5);

fn call(upstream: &str) -> Result<u32, Status> {
    host::dispatch_http_call(upstream, CALL.to_vec(), None, vec![], TIME)
}

fn grpc(upstream: &str, method: &str) -> Result<u32, Status> {
    host::dispatch_grpc_call(upstream, "test.Echo", method, vec![("x-sent", b"1")], Some(b"message"), TIME)
}

fn stream(upstream: &str) -> Result<u32, Status> {
    host::open_grpc_stream(upstream, "test.Echo", "Each", vec![("x-sent", b"1")])
}

/// Answers a request that lists the cases or asks for a verdict. Returns whether it was one.
pub fn asked(names: &[&str]) -> bool {
    let reply = |status, body: &str| host::send_http_response(status, vec![], Some(body.as_bytes())).unwrap();
    if header(Map::HttpRequestHeaders, "x-cases").is_some() {
        reply(200, &names.join("\n"));
    } else if let Some(name) = header(Map::HttpRequestHeaders, "x-result") {
        match VERDICTS.with_borrow(|v| v.get(&name).cloned()) {
            Some(Ok(())) => reply(200, "ok"),
            Some(Err(why)) => reply(500, &why),
            None => reply(404, "no verdict yet"),
        }
    } else {
        return false;
    }
    true
}

/// Begins the case that a request asks for, if any.
pub fn begin(context: u32) -> Option<Run> {
    let case = header(Map::HttpRequestHeaders, "x-case").filter(|case| !case.is_empty())?;
    Some(Run { case, context, ..Run::default() })
}

/// Begins the case of a TCP connection, given by its first line.
pub fn begin_tcp(context: u32, seen: &str) -> Option<Run> {
    let line = buffer(Buffer::DownstreamData)?;
    let case = line.lines().next()?.strip_prefix("CASE ")?.to_owned();
    Some(Run { case, context, seen: seen.to_owned(), ..Run::default() })
}

/// Records verdicts of cases that need no request.
pub fn judge(case: &str, verdict: Result<(), String>) {
    VERDICTS.with_borrow_mut(|v| v.insert(case.to_owned(), verdict));
}

/// Passes a callback of the root context to the case that waits for it.
pub fn root(at: At) {
    let Some(mut run) = WAITING.take() else { return };
    run.at(at);
}

impl Run {
    /// Handles a callback.
    pub fn at(&mut self, at: At) -> Action {
        if VERDICTS.with_borrow(|v| v.contains_key(&self.case)) {
            return Action::Continue;
        }
        match self.step(at) {
            Ok(Then(action)) => action,
            Ok(NotHere) => Action::Continue,
            Ok(Passed) => {
                judge(&self.case, Ok(()));
                Action::Continue
            }
            Err(why) => {
                judge(&self.case, Err(why));
                Action::Continue
            }
        }
    }

    /// Directs the next callback of the root context to this case.
    fn wait(&self) {
        WAITING.set(Some(self.clone()));
    }

    fn step(&mut self, at: At) -> Result<Next, String> {
        self.step += 1;
        let (function, about) = self.case.split_once('/').unwrap_or_default();
        let (function, about) = (function.to_owned(), about.to_owned());
        match at {
            RequestHeaders { count, end } => {
                yes!(count > 4);
                yes!(end != Some(true) || function == "proxy_on_request_headers" || function.contains("local"));
                match self.maps(&function, &about)? {
                    NotHere => {}
                    done => return Ok(done),
                }
                match self.state(&function, &about)? {
                    NotHere => self.request(&function, &about, end),
                    done => Ok(done),
                }
            }
            Tick | QueueReady { .. } => self.root(&function, at),
            HttpCall { .. }
            | GrpcCall { .. }
            | GrpcInitial { .. }
            | GrpcMessage { .. }
            | GrpcTrailing { .. }
            | GrpcClose { .. } => self.answer(&function, &about, at),
            Downstream { .. } | Upstream { .. } | DownstreamClose | UpstreamClose => self.tcp(&function, at),
            _ => self.message(&function, &about, at),
        }
    }
}
