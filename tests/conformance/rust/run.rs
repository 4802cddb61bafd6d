//! The cases that the `proxy-wasm` crate can say, for both of its lines: what to call in which callback, and what to expect. The
//! names are those of the case files. `super::sdk` has what the lines have differently.
//!
//! The crate panics on statuses that it does not know of, so a panic of this module is a failure too.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use proxy_wasm::{
    hostcalls as host,
    types::{Action, BufferType as Buffer, LogLevel, MapType as Map, MetricType as Metric, Status},
};

use super::sdk;

/// A callback, with what is told of it.
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

/// What a case does next.
enum Next {
    /// It has passed.
    Passed,
    /// It waits for another callback; this one returns so.
    Then(Action),
}

use At::*;
use Next::*;

const GO_ON: Result<Next, String> = Ok(Then(Action::Continue));
const HOLD: Result<Next, String> = Ok(Then(Action::Pause));
const PASSED: Result<Next, String> = Ok(Passed);

/// One case on its way.
#[derive(Debug, Default, Clone)]
pub struct Run {
    pub case: String,
    context: u32,
    /// Of a call, a queue.
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

/// The answer to a request that asks about a case, if it does.
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

/// The case that a request is for; none if it is for none.
pub fn begin(context: u32) -> Option<Run> {
    let case = header(Map::HttpRequestHeaders, "x-case").filter(|case| !case.is_empty())?;
    Some(Run { case, context, ..Run::default() })
}

/// The case of a TCP connection, by its first line.
pub fn begin_tcp(context: u32, seen: &str) -> Option<Run> {
    let line = buffer(Buffer::DownstreamData)?;
    let case = line.lines().next()?.strip_prefix("CASE ")?.to_owned();
    Some(Run { case, context, seen: seen.to_owned(), ..Run::default() })
}

/// Verdicts of cases that no request is needed for.
pub fn judge(case: &str, verdict: Result<(), String>) {
    VERDICTS.with_borrow_mut(|v| v.insert(case.to_owned(), verdict));
}

/// A callback of the root context: it is for the case that waits for it.
pub fn root(at: At) {
    let Some(mut run) = WAITING.take() else { return };
    run.at(at);
}

impl Run {
    /// Takes a callback.
    pub fn at(&mut self, at: At) -> Action {
        if VERDICTS.with_borrow(|v| v.contains_key(&self.case)) {
            return Action::Continue;
        }
        match self.step(at) {
            Ok(Then(action)) => action,
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

    /// Makes the next callback of the root context this case's.
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
                match self.maps(&function, &about).or_else(|| self.state(&function, &about)) {
                    Some(done) => done,
                    None => self.request(&function, &about, end),
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

    /// Header maps, when the request's head is there.
    fn maps(&mut self, function: &str, about: &str) -> Option<Result<Next, String>> {
        Some((|| {
            let map = Map::HttpRequestHeaders;
            match (function, about) {
                ("proxy_get_header_map_value", "ok") => {
                    same!(header(map, "x-one"), some("1"));
                    same!(header(map, "X-ONE"), some("1"));
                    same!(host::get_map_value_bytes(map, "x-one"), Ok(Some(b"1".to_vec())));
                }
                ("proxy_get_header_map_value", "first-of-several") => same!(header(map, "x-two"), some("a")),
                ("proxy_get_header_map_value", "pseudo-headers") => {
                    for (name, value) in [
                        (":method", "POST"),
                        (":path", "/conformance?a=b"),
                        (":authority", "test"),
                        (":scheme", "http"),
                    ] {
                        same!(header(map, name), some(value));
                    }
                }
                ("proxy_get_header_map_value", "not-found" | "ok-0.1.0-not-there") => {
                    same!(header(map, "x-none"), None);
                    same!(header(map, "no name"), None);
                }
                ("proxy_get_header_map_value", "not-found-in-this-phase") => {
                    for map in [Map::HttpResponseHeaders, Map::HttpRequestTrailers, Map::HttpCallResponseHeaders] {
                        same!(header(map, "x-one"), None);
                    }
                }
                ("proxy_get_header_map_pairs", "ok") => {
                    let all = host::get_map(map).unwrap();
                    yes!(all.contains(&("x-one".into(), "1".into())) && all.contains(&("x-two".into(), "b".into())));
                    yes!(all.contains(&(":method".into(), "POST".into())));
                    same!(host::get_map_bytes(map).unwrap().len(), all.len());
                }
                ("proxy_get_header_map_pairs", "ok-empty-in-other-phases") => {
                    same!(host::get_map(Map::HttpResponseHeaders), Ok(vec![]));
                    same!(host::get_map(Map::HttpCallResponseTrailers), Ok(vec![]));
                }
                ("proxy_set_header_map_pairs", "ok") => {
                    host::set_map(map, vec![("x-set", "1"), ("x-set", "2")]).unwrap();
                    same!((header(map, "x-one"), header(map, "x-set")), (None, some("1")));
                    host::set_map_bytes(map, vec![("x-set", b"3")]).unwrap();
                    same!(header(map, "x-set"), some("3"));
                    same!(header(map, ":method"), some("POST"));
                }
                ("proxy_set_header_map_pairs", "ok-empty") => {
                    host::set_map(map, vec![]).unwrap();
                    same!(header(map, "x-one"), None);
                }
                ("proxy_set_header_map_pairs", "ok-but-refused-and-logged") => {
                    host::set_map(map, vec![("x-good", "1"), ("bad name", "2")]).unwrap();
                    host::set_map(map, vec![("x-good", "1"), ("x-bad", "a\nb")]).unwrap();
                    same!((header(map, "x-good"), header(map, "x-one")), (None, some("1")));
                }
                ("proxy_add_header_map_value", "ok") => {
                    host::add_map_value(map, "x-new", "n").unwrap();
                    host::add_map_value_bytes(map, "x-one", b"2").unwrap();
                    same!((header(map, "x-new"), header(map, "x-one")), (some("n"), some("1")));
                    let all = host::get_map(map).unwrap();
                    same!(all.iter().filter(|(name, _)| name == "x-one").count(), 2);
                }
                ("proxy_add_header_map_value", "ok-but-refused-and-logged") => {
                    host::add_map_value(map, "bad name", "1").unwrap();
                    host::add_map_value(map, "x-bad", "a\nb").unwrap();
                    host::add_map_value(Map::HttpResponseHeaders, "x-early", "1").unwrap();
                    same!(header(map, "x-bad"), None);
                }
                ("proxy_replace_header_map_value", "ok") => {
                    host::set_map_value(map, "x-two", Some("c")).unwrap();
                    host::set_map_value_bytes(map, "x-new", Some(b"n")).unwrap();
                    same!((header(map, "x-two"), header(map, "x-new")), (some("c"), some("n")));
                    let all = host::get_map(map).unwrap();
                    same!(all.iter().filter(|(name, _)| name == "x-two").count(), 1);
                }
                ("proxy_replace_header_map_value", "ok-but-refused-and-logged") => {
                    host::set_map_value(map, ":path", Some("no slash")).unwrap();
                    host::set_map_value(map, "x-one", Some("a\0b")).unwrap();
                    same!((header(map, ":path"), header(map, "x-one")), (some("/conformance?a=b"), some("1")));
                }
                ("proxy_remove_header_map_value", "ok") => {
                    host::set_map_value(map, "x-two", None).unwrap();
                    sdk::remove(map, "X-One");
                    sdk::remove(map, "x-none");
                    same!((header(map, "x-two"), header(map, "x-one")), (None, None));
                }
                ("proxy_remove_header_map_value", "ok-but-refused-and-logged") => {
                    sdk::remove(map, "bad name");
                    sdk::remove(Map::HttpResponseHeaders, "x-up");
                }
                _ => return Ok(Then(Action::Pause)),
            }
            PASSED
        })())
        .filter(|done| !matches!(done, Ok(Then(_))))
    }

    /// What is there without a message: data, queues, metrics, properties.
    fn state(&mut self, function: &str, about: &str) -> Option<Result<Next, String>> {
        Some((|| {
            match (function, about) {
                ("proxy_log", "ok") => {
                    for level in [
                        LogLevel::Trace,
                        LogLevel::Debug,
                        LogLevel::Info,
                        LogLevel::Warn,
                        LogLevel::Error,
                        LogLevel::Critical,
                    ] {
                        same!(host::log(level, "a message of a case"), Ok(()));
                    }
                    same!(host::log(LogLevel::Info, ""), Ok(()));
                }
                ("proxy_get_log_level", "ok") => yes!(sdk::log_level_is_info()),
                ("proxy_get_current_time_nanoseconds", "ok") => {
                    let now = host::get_current_time().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
                    yes!(now.as_secs() > 1_700_000_000);
                }
                ("proxy_set_shared_data", "ok") => {
                    host::set_shared_data("key", Some(b"one"), None).unwrap();
                    let (value, cas) = host::get_shared_data("key").unwrap();
                    same!(value, Some(b"one".to_vec()));
                    yes!(cas.is_some());
                    host::set_shared_data("key", Some(b"two"), cas).unwrap();
                    same!(host::get_shared_data("key").unwrap().0, Some(b"two".to_vec()));
                }
                ("proxy_set_shared_data", "cas-mismatch") => {
                    host::set_shared_data("compared", Some(b"one"), None).unwrap();
                    let (_, cas) = host::get_shared_data("compared").unwrap();
                    host::set_shared_data("compared", Some(b"two"), cas).unwrap();
                    same!(host::set_shared_data("compared", Some(b"three"), cas), Err(Status::CasMismatch));
                }
                ("proxy_get_shared_data", "ok") => {
                    host::set_shared_data("early", Some(b"bird"), None).unwrap();
                    same!(host::get_shared_data("early").unwrap().0, Some(b"bird".to_vec()));
                }
                ("proxy_get_shared_data", "not-found") => {
                    same!(host::get_shared_data("nothing here"), Ok((None, None)));
                }
                ("proxy_register_shared_queue", "ok") => {
                    let first = host::register_shared_queue("first").unwrap();
                    same!(host::register_shared_queue("first"), Ok(first));
                    yes!(host::register_shared_queue("second") != Ok(first));
                }
                ("proxy_resolve_shared_queue", "ok") => {
                    let queue = host::register_shared_queue("resolved").unwrap();
                    same!(host::resolve_shared_queue("conformance", "resolved"), Ok(Some(queue)));
                    same!(host::resolve_shared_queue("", "resolved"), Ok(Some(queue)));
                }
                ("proxy_resolve_shared_queue", "not-found") => {
                    same!(host::resolve_shared_queue("conformance", "nowhere"), Ok(None));
                    same!(host::resolve_shared_queue("another vm", "first"), Ok(None));
                }
                ("proxy_enqueue_shared_queue", "not-found") => {
                    same!(host::enqueue_shared_queue(0x7fff_ffff, Some(b"x")), Err(Status::NotFound));
                }
                ("proxy_dequeue_shared_queue", "ok") => {
                    let queue = host::register_shared_queue("taken").unwrap();
                    host::enqueue_shared_queue(queue, Some(b"one")).unwrap();
                    host::enqueue_shared_queue(queue, Some(b"two")).unwrap();
                    same!(host::dequeue_shared_queue(queue), Ok(Some(b"one".to_vec())));
                    same!(host::dequeue_shared_queue(queue), Ok(Some(b"two".to_vec())));
                }
                ("proxy_dequeue_shared_queue", "empty") => {
                    let queue = host::register_shared_queue("never filled").unwrap();
                    same!(host::dequeue_shared_queue(queue), Ok(None));
                }
                ("proxy_dequeue_shared_queue", "not-found") => {
                    same!(host::dequeue_shared_queue(0x7fff_ffff), Err(Status::NotFound));
                }
                ("proxy_define_metric", "ok") => {
                    let counter = host::define_metric(Metric::Counter, "conformance_counter").unwrap();
                    yes!(host::define_metric(Metric::Gauge, "conformance_gauge") != Ok(counter));
                    yes!(host::define_metric(Metric::Histogram, "conformance_histogram").is_ok());
                }
                ("proxy_increment_metric", "ok") => {
                    let counter = host::define_metric(Metric::Counter, "conformance_incremented").unwrap();
                    same!(host::increment_metric(counter, 3), Ok(()));
                    same!(host::get_metric(counter), Ok(3));
                    let gauge = host::define_metric(Metric::Gauge, "conformance_up_and_down").unwrap();
                    same!((host::increment_metric(gauge, 5), host::increment_metric(gauge, -2)), (Ok(()), Ok(())));
                    same!(host::get_metric(gauge), Ok(3));
                }
                ("proxy_increment_metric", "bad-argument") => {
                    let counter = host::define_metric(Metric::Counter, "conformance_never_down").unwrap();
                    same!(host::increment_metric(counter, -1), Err(Status::BadArgument));
                    let histogram = host::define_metric(Metric::Histogram, "conformance_not_incremented").unwrap();
                    same!(host::increment_metric(histogram, 1), Err(Status::BadArgument));
                }
                ("proxy_increment_metric", "not-found") => {
                    same!(host::increment_metric(100_000, 1), Err(Status::NotFound));
                }
                ("proxy_record_metric", "ok") => {
                    let gauge = host::define_metric(Metric::Gauge, "conformance_set").unwrap();
                    same!(host::record_metric(gauge, 7), Ok(()));
                    same!(host::get_metric(gauge), Ok(7));
                    let histogram = host::define_metric(Metric::Histogram, "conformance_values").unwrap();
                    same!(host::record_metric(histogram, 12), Ok(()));
                }
                ("proxy_record_metric", "not-found") => same!(host::record_metric(100_000, 1), Err(Status::NotFound)),
                ("proxy_get_metric", "ok") => {
                    let counter = host::define_metric(Metric::Counter, "conformance_read").unwrap();
                    same!(host::get_metric(counter), Ok(0));
                }
                ("proxy_get_metric", "bad-argument-histogram") => {
                    let histogram = host::define_metric(Metric::Histogram, "conformance_not_read").unwrap();
                    same!(host::get_metric(histogram), Err(Status::BadArgument));
                }
                ("proxy_get_metric", "not-found") => same!(host::get_metric(100_000), Err(Status::NotFound)),
                ("proxy_get_property", "ok") => same!(text("request.path"), some("/conformance?a=b")),
                ("proxy_get_property", "plugin") => {
                    for name in ["plugin_name", "plugin_root_id", "plugin_vm_id"] {
                        same!(text(name), some("conformance"));
                    }
                }
                ("proxy_get_property", "request") => {
                    for (name, value) in [
                        ("request.url_path", "/conformance"),
                        ("request.query", "a=b"),
                        ("request.host", "test"),
                        ("request.scheme", "http"),
                        ("request.method", "POST"),
                        ("request.protocol", "HTTP/1.1"),
                        ("request.referer", "here"),
                        ("request.useragent", "conformance"),
                        ("request.headers.x-one", "1"),
                    ] {
                        same!(text(name), some(value));
                    }
                    yes!(number("request.time").is_some() && number("request.duration").is_some());
                }
                ("proxy_get_property", "connection") => {
                    yes!(text("source.address").is_some() && number("source.port").is_some());
                    yes!(text("destination.address").is_some() && number("connection.id").is_some());
                    same!(property("connection.mtls"), Some(vec![0]));
                    same!(text("xds.filter_chain_name"), some("main"));
                }
                ("proxy_get_property", "not-found") => {
                    same!((property("request.none"), property("none"), property("response.code")), (None, None, None));
                }
                ("proxy_set_property", "ok") => {
                    host::set_property(vec!["mine"], Some(b"value")).unwrap();
                    same!(text("mine"), some("value"));
                    host::set_property(vec!["a", "path"], Some(b"2")).unwrap();
                    same!(text("a.path"), some("2"));
                }
                ("proxy_set_effective_context", "bad-argument-no-such-stream") => {
                    same!(host::set_effective_context(0x7fff_ffff), Err(Status::BadArgument));
                    same!(header(Map::HttpRequestHeaders, "x-one"), some("1"));
                }
                ("proxy_http_call", "bad-argument") => {
                    same!(call("nobody"), Err(Status::BadArgument));
                    let without = |nth: usize| {
                        let mut head = CALL.to_vec();
                        head.remove(nth);
                        host::dispatch_http_call("web", head, None, vec![], TIME)
                    };
                    same!(
                        (without(0), without(1), without(2)),
                        (Err(Status::BadArgument), Err(Status::BadArgument), Err(Status::BadArgument))
                    );
                }
                ("proxy_grpc_call", "parse-failure") => {
                    same!(grpc("nobody", "Once"), Err(Status::ParseFailure));
                    same!(grpc("web", "Once"), Err(Status::ParseFailure));
                    same!(grpc("grpc", ""), Err(Status::ParseFailure));
                }
                ("proxy_grpc_stream", "parse-failure") => {
                    same!((stream("nobody"), stream("web")), (Err(Status::ParseFailure), Err(Status::ParseFailure)));
                }
                ("proxy_grpc_send", "not-found") => {
                    same!(host::send_grpc_stream_message(0x7fff_ffff, Some(b"x"), true), Err(Status::NotFound));
                }
                ("proxy_grpc_send", "bad-argument-no-stream") => {
                    let call = grpc("grpc", "Once").unwrap();
                    same!(host::send_grpc_stream_message(call, Some(b"y"), true), Err(Status::BadArgument));
                }
                ("proxy_grpc_close", "not-found") => same!(host::close_grpc_stream(0x7fff_ffff), Err(Status::NotFound)),
                ("proxy_grpc_cancel", "not-found") => {
                    same!(host::cancel_grpc_call(0x7fff_ffff), Err(Status::NotFound));
                    same!(host::cancel_grpc_stream(0x7fff_ffff), Err(Status::NotFound));
                }
                ("proxy_grpc_cancel", "ok") => {
                    let call = stream("grpc").unwrap();
                    same!(host::cancel_grpc_stream(call), Ok(()));
                    same!(host::cancel_grpc_stream(call), Err(Status::NotFound));
                }
                ("proxy_get_buffer_bytes", "not-found-in-this-phase") => {
                    same!((buffer(Buffer::HttpRequestBody), buffer(Buffer::HttpCallResponseBody)), (None, None));
                }
                ("proxy_continue_stream" | "proxy_continue_request", "ok-nothing-to-continue") => {
                    host::resume_http_request().unwrap();
                    host::resume_http_response().unwrap();
                }
                ("proxy_call_foreign_function" | "proxy_clear_route_cache", _) => sdk::other(&self.case)?,
                _ => return HOLD,
            }
            PASSED
        })())
        .filter(|done| !matches!(done, Ok(Then(_))))
    }

    /// What begins with the request's head and goes on in other callbacks.
    fn request(&mut self, function: &str, about: &str, end: Option<bool>) -> Result<Next, String> {
        match (function, about) {
            ("proxy_on_request_headers", "end-of-stream") => same!(end, Some(true)),
            ("proxy_on_request_headers", _) => yes!(end != Some(true)),
            ("proxy_set_tick_period_milliseconds" | "proxy_on_tick" | "proxy_set_effective_context", _)
            | ("proxy_continue_stream" | "proxy_continue_request", _) => {
                host::set_tick_period(Duration::from_millis(1)).unwrap();
                self.wait();
                return HOLD;
            }
            ("proxy_enqueue_shared_queue" | "proxy_on_queue_ready", _) => {
                self.id = host::register_shared_queue("told").unwrap();
                host::enqueue_shared_queue(self.id, Some(b"news")).unwrap();
                self.wait();
                return GO_ON;
            }
            ("proxy_send_local_response", "ok") => {
                let fields = vec![("x-own", "1"), ("content-length", "99")];
                host::send_http_response(403, fields, Some(b"go away")).unwrap();
                return HOLD;
            }
            ("proxy_send_local_response", "ok-of-a-grpc-request") => sdk::other(&self.case)?,
            ("proxy_close_stream", "ok") => {
                sdk::other(&self.case)?;
                return HOLD;
            }
            ("proxy_http_call", "ok") | ("proxy_on_http_call_response", _) => {
                let mut head = CALL.to_vec();
                head.push(("x-sent", "1"));
                let sent = host::dispatch_http_call("web", head, Some(b"question"), vec![("x-last", "1")], TIME);
                self.id = sent.unwrap();
                return HOLD;
            }
            ("proxy_http_call", "ok-but-it-fails") => {
                self.id = call("nowhere").unwrap();
                return HOLD;
            }
            ("proxy_grpc_call", "ok-but-it-fails") | ("proxy_get_status", _) => self.id = grpc("grpc", "Fail").unwrap(),
            ("proxy_grpc_call", _) | ("proxy_on_grpc_receive", _) => self.id = grpc("grpc", "Once").unwrap(),
            ("proxy_grpc_stream" | "proxy_grpc_send", _) => {
                self.id = stream("grpc").unwrap();
                same!(host::send_grpc_stream_message(self.id, Some(b"first"), false), Ok(()));
                same!(host::send_grpc_stream_message(self.id, Some(b"second"), true), Ok(()));
            }
            (name, _) if name.contains("grpc") => {
                self.id = stream("grpc").unwrap();
                same!(host::send_grpc_stream_message(self.id, Some(b"first"), false), Ok(()));
                same!(host::close_grpc_stream(self.id), Ok(()));
            }
            _ => return GO_ON,
        }
        // Calls are waited for, so that their stream is there.
        if function.contains("grpc") || function == "proxy_get_status" { HOLD } else { PASSED }
    }

    /// Later parts of the request, and the response.
    fn message(&mut self, function: &str, about: &str, at: At) -> Result<Next, String> {
        match (function, about, at) {
            ("proxy_on_request_body", _, RequestBody { size }) => same!(size, 5),
            ("proxy_on_request_trailers", _, RequestTrailers { count }) => same!(count, 1),
            ("proxy_on_response_headers", _, ResponseHeaders { count, end }) => {
                yes!(count >= 2 && end != Some(true));
            }
            ("proxy_on_response_body", _, ResponseBody { size }) => same!(size, 5),
            ("proxy_on_response_trailers", _, ResponseTrailers { count }) => same!(count, 1),
            ("proxy_on_log", _, Log) => yes!(self.step > 5),
            ("proxy_on_done", _, Done) => {}
            ("proxy_get_header_map_value", "every-map-in-its-phase", RequestTrailers { .. }) => {
                same!(header(Map::HttpRequestTrailers, "x-trailer"), some("end"));
                return GO_ON;
            }
            ("proxy_get_header_map_value", "every-map-in-its-phase", ResponseHeaders { .. }) => {
                same!(header(Map::HttpResponseHeaders, "x-up"), some("yes"));
                return GO_ON;
            }
            ("proxy_get_header_map_value", "every-map-in-its-phase", ResponseTrailers { .. }) => {
                same!(header(Map::HttpResponseTrailers, "x-up-trailer"), some("end"));
            }
            ("proxy_get_buffer_bytes", "ok", RequestBody { .. }) => {
                same!(buffer(Buffer::HttpRequestBody), some("hello"));
                same!(host::get_buffer(Buffer::HttpRequestBody, 1, 3), Ok(Some(b"ell".to_vec())));
                return GO_ON;
            }
            ("proxy_get_buffer_bytes", "ok", ResponseBody { .. }) => {
                same!(buffer(Buffer::HttpResponseBody), some("world"));
            }
            ("proxy_get_buffer_bytes", "ok-nothing-after-the-end", RequestBody { .. }) => {
                same!(host::get_buffer(Buffer::HttpRequestBody, 5, 10), Ok(None));
                same!(host::get_buffer(Buffer::HttpRequestBody, 1000, 10), Ok(None));
            }
            ("proxy_set_buffer_bytes", _, RequestBody { .. }) => {
                let body = Buffer::HttpRequestBody;
                let set = |start, size, text: &str| host::set_buffer(body, start, size, text.as_bytes()).unwrap();
                let wanted = match about {
                    "ok" => {
                        set(0, usize::MAX, "replaced");
                        some("replaced")
                    }
                    "ok-prepend" => {
                        set(0, 0, "a ");
                        some("a hello")
                    }
                    "ok-append" => {
                        set(5, 0, "!");
                        set(1000, 1000, "?");
                        some("hello!?")
                    }
                    "ok-inside" => {
                        set(1, 3, "-");
                        some("h-o")
                    }
                    _ => {
                        set(0, usize::MAX, "");
                        None
                    }
                };
                same!(buffer(body), wanted);
            }
            ("proxy_send_local_response", "ok-in-a-response-callback", ResponseHeaders { .. }) => {
                host::send_http_response(404, vec![], Some(b"mine")).unwrap();
            }
            ("proxy_send_local_response", "ok", ResponseHeaders { .. }) => {
                same!(header(Map::HttpResponseHeaders, ":status"), some("403"));
                same!(header(Map::HttpResponseHeaders, "x-own"), some("1"));
            }
            ("proxy_close_stream", "ok-response", ResponseHeaders { .. }) => sdk::other(&self.case)?,
            ("proxy_close_stream", "ok", Log) => {}
            ("proxy_continue_response", _, ResponseHeaders { .. }) => {
                host::set_tick_period(Duration::from_millis(1)).unwrap();
                self.wait();
                return HOLD;
            }
            ("proxy_get_property", "response", ResponseHeaders { .. }) => {
                same!((number("response.code"), text("response.headers.x-up")), (Some(200), some("yes")));
            }
            ("proxy_get_property", "upstream", ResponseHeaders { .. }) => {
                yes!(text("upstream.address").is_some() && number("upstream.port").is_some());
                same!((text("cluster_name"), number("upstream.request_attempt_count")), (some("web"), Some(1)));
            }
            _ => return GO_ON,
        }
        PASSED
    }

    /// Ticks and messages.
    fn root(&mut self, function: &str, at: At) -> Result<Next, String> {
        match at {
            Tick => {
                host::set_tick_period(Duration::ZERO).unwrap();
                same!(header(Map::HttpRequestHeaders, "x-one"), None);
                same!(host::set_effective_context(self.context), Ok(()));
                same!(header(Map::HttpRequestHeaders, "x-one"), some("1"));
                if function == "proxy_continue_response" {
                    host::resume_http_response().unwrap();
                } else {
                    host::resume_http_request().unwrap();
                }
            }
            QueueReady { queue } => {
                same!(queue, self.id);
                same!(host::dequeue_shared_queue(queue), Ok(Some(b"news".to_vec())));
            }
            _ => return Err(format!("it did not wait for {at:?}")),
        }
        PASSED
    }

    /// Answers to calls.
    fn answer(&mut self, function: &str, about: &str, at: At) -> Result<Next, String> {
        match (function, about, at) {
            ("proxy_http_call", "ok-but-it-fails", HttpCall { call, headers, body, trailers }) => {
                same!((call, headers, body, trailers), (self.id, 0, 0, 0));
                same!(header(Map::HttpCallResponseHeaders, ":status"), None);
            }
            (_, _, HttpCall { call, headers, body, trailers }) => {
                same!((call, headers >= 2, body, trailers), (self.id, true, 6, 1));
                same!(header(Map::HttpCallResponseHeaders, ":status"), some("200"));
                same!(header(Map::HttpCallResponseHeaders, "x-answer"), some("42"));
                same!(header(Map::HttpCallResponseTrailers, "x-end"), some("yes"));
                same!(buffer(Buffer::HttpCallResponseBody), some("answer"));
                // The crate has chosen the stream.
                same!(header(Map::HttpRequestHeaders, "x-one"), some("1"));
            }
            ("proxy_get_status", _, GrpcCall { status, .. }) => {
                same!(status, 7);
                same!(host::get_grpc_status(), Ok((7, some("denied"))));
            }
            ("proxy_grpc_call", "ok-but-it-fails", GrpcCall { call, status, .. }) => {
                same!((call, status), (self.id, 7));
            }
            (_, _, GrpcCall { call, status, size }) => {
                same!((call, status, size), (self.id, 0, 7));
                same!(buffer(Buffer::GrpcReceiveBuffer), some("message"));
            }
            (_, _, GrpcInitial { call, count }) => {
                yes!(call == self.id && count >= 1);
                same!(header(Map::GrpcReceiveInitialMetadata, "x-initial"), some("1"));
                if function != "proxy_on_grpc_receive_initial_metadata" {
                    return HOLD;
                }
            }
            (_, _, GrpcMessage { call, size }) => {
                let message = buffer(Buffer::GrpcReceiveBuffer).unwrap_or_default();
                same!((call, size), (self.id, message.len()));
                self.seen += &message;
                return HOLD;
            }
            (_, _, GrpcTrailing { call, .. }) => {
                same!(call, self.id);
                same!(header(Map::GrpcReceiveTrailingMetadata, "x-trailing"), some("2"));
                if function != "proxy_on_grpc_receive_trailing_metadata" {
                    return HOLD;
                }
            }
            (_, _, GrpcClose { call, status }) => {
                same!((call, status), (self.id, 0));
                let both = ["proxy_grpc_stream", "proxy_grpc_send"].contains(&function);
                same!(&*self.seen, if both { "firstsecond" } else { "first" });
            }
            _ => return HOLD,
        }
        host::resume_http_request().unwrap();
        PASSED
    }

    /// TCP connections; `seen` has what came before the first line.
    fn tcp(&mut self, function: &str, at: At) -> Result<Next, String> {
        match (function, at) {
            ("proxy_on_new_connection", Downstream { .. }) => same!(&*self.seen, "new"),
            ("proxy_on_downstream_data", Downstream { size }) => {
                same!(buffer(Buffer::DownstreamData).map(|data| data.len()), Some(size));
            }
            ("proxy_get_buffer_bytes", Downstream { .. }) => {
                same!(host::get_buffer(Buffer::DownstreamData, 0, 5), Ok(Some(b"CASE ".to_vec())));
                same!(buffer(Buffer::UpstreamData), None);
                same!(header(Map::HttpRequestHeaders, ":path"), None);
            }
            ("proxy_get_property", Downstream { .. }) => {
                yes!(text("source.address").is_some() && number("connection.id").is_some());
                same!((text("xds.filter_chain_name"), property("request.path")), (some("tcp"), None));
            }
            ("proxy_on_upstream_data", Upstream { size }) => {
                same!((size, buffer(Buffer::UpstreamData)), (8, some("welcome\n")));
            }
            ("proxy_set_buffer_bytes", Upstream { .. }) => {
                host::set_buffer(Buffer::UpstreamData, 0, 8, b"changed\n").unwrap();
                same!(buffer(Buffer::UpstreamData), some("changed\n"));
            }
            ("proxy_continue_stream", Downstream { .. }) => {
                sdk::other(&self.case)?;
                return HOLD;
            }
            ("proxy_continue_stream", Upstream { .. }) | ("proxy_close_stream", DownstreamClose) => {}
            ("proxy_close_stream", Downstream { .. }) => {
                sdk::other(&self.case)?;
                return HOLD;
            }
            ("proxy_on_upstream_connection_close", UpstreamClose) => {}
            ("proxy_on_downstream_connection_close", DownstreamClose) => {}
            _ => return GO_ON,
        }
        PASSED
    }
}
