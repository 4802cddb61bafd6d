//! The exchange on in-process pipes: upstreams are scripts, filters are closures, and time is virtual, so that retries, timeouts and
//! local replies can be changed without starting a proxy. What needs sockets is in `tests/end_to_end`.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, pending},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use serde_json::{Value, json};
use tokio::{
    io::DuplexStream,
    task::{LocalSet, spawn_local},
    time::{Instant, sleep},
};
use tollgate_abi::{
    doc::RetryOn,
    fast::{flag, phase},
};

mod hedging;
mod retry_options;

use super::{ListenerContext, outcome::StreamClosed, serve};
use crate::{
    chain::{
        Action, Direction, Filter, LocalReply, OnFailure, Route,
        slot::SlottedChain,
        stream::ConnectionInfo,
        tests::{Log, Scripted, acting, passing, pausing},
    },
    config::{model, units},
    control::snapshot::SnapshotBuilder,
    http::body::{Body, BodyError},
    net::TokioIo,
    observe::Registry,
    upstream::{Cluster, Clusters, PoolOptions, Pools},
};

/// What the upstream does with one request.
#[derive(Clone, Copy)]
enum Step {
    /// Refuses the connection.
    Refuse,
    /// Reads the request and closes the connection.
    Reset,
    /// Reads the request and never answers.
    Hang,
    Answer(u16),
    AnswerAfter(Duration, u16),
    /// Answers with this field.
    AnswerWith(u16, (&'static str, &'static str)),
}

/// A request that has reached the upstream.
struct Arrived {
    endpoint: String,
    method: String,
    path: String,
    fields: HeaderMap,
    body: Bytes,
}

/// The endpoints of the cluster. Requests take the steps in order, whichever endpoint they reach, and the last one again and again.
struct Upstream {
    steps: RefCell<VecDeque<Step>>,
    arrived: RefCell<Vec<Arrived>>,
}

impl Upstream {
    fn next(&self) -> Step {
        let mut steps = self.steps.borrow_mut();
        if steps.len() > 1 { steps.pop_front() } else { steps.front().copied() }.expect("a step")
    }

    fn connect(self: &Rc<Self>, endpoint: String) -> io::Result<DuplexStream> {
        let refuses = matches!(self.steps.borrow().front(), Some(Step::Refuse));
        if refuses {
            self.next();
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let upstream = self.clone();
        let service = service_fn(move |request| upstream.clone().serve(endpoint.clone(), request));
        spawn_local(async move {
            // An error is what a step asks for.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(theirs), service).await;
        });
        Ok(ours)
    }

    async fn serve(self: Rc<Self>, endpoint: String, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let (method, path) = (parts.method.to_string(), parts.uri.to_string());
        self.arrived.borrow_mut().push(Arrived { endpoint, method, path, fields: parts.headers, body });
        let mut field = None;
        let status = match self.next() {
            Step::Refuse | Step::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
            Step::Hang => pending().await,
            Step::Answer(status) => status,
            Step::AnswerAfter(wait, status) => {
                sleep(wait).await;
                status
            }
            Step::AnswerWith(status, with) => {
                field = Some(with);
                status
            }
        };
        let mut response = Response::new(Full::from("from upstream"));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        if let Some((name, value)) = field {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        Ok(response)
    }
}

/// What the access log would show.
#[derive(Debug, Default, PartialEq)]
struct Ended {
    flags: Vec<&'static str>,
    details: String,
    attempts: u32,
}

/// What the client got.
#[derive(Debug, PartialEq)]
enum Got {
    /// A status and a body.
    Response(u16, String),
    /// A filter closed the stream.
    Closed,
}

fn got(status: u16, body: &str) -> Got {
    Got::Response(status, body.to_owned())
}

fn ended(flags: &[&'static str], details: &str, attempts: u32) -> Ended {
    Ended { flags: flags.to_vec(), details: details.to_owned(), attempts }
}

/// A listener, a cluster `web` of two endpoints, and the filters between them.
#[derive(Default)]
struct Setup {
    listener: Value,
    cluster: Value,
    retry: Option<model::Retry>,
    filters: Vec<Rc<dyn Filter>>,
    unrouted: bool,
}

struct Exchange {
    context: Rc<ListenerContext>,
    cluster: Arc<Cluster>,
    upstream: Rc<Upstream>,
    ended: Rc<RefCell<Ended>>,
}

/// `base` with the members of `more`.
fn merged<T: serde::de::DeserializeOwned>(mut base: Value, more: &Value) -> T {
    for (key, value) in more.as_object().into_iter().flatten() {
        base[key] = value.clone();
    }
    serde_json::from_value(base).expect("a configuration")
}

impl Setup {
    fn start(self, steps: &[Step]) -> Exchange {
        let upstream =
            Rc::new(Upstream { steps: RefCell::new(steps.iter().copied().collect()), arrived: RefCell::default() });
        let dialled = upstream.clone();
        let dial = Box::new(move |_: &Cluster, endpoint: &crate::upstream::Endpoint| {
            dialled.connect(endpoint.address.to_string())
        });
        let endpoints = json!([{"address": "10.0.0.1:80"}, {"address": "10.0.0.2:80"}]);
        let mut config: model::Cluster = merged(json!({"name": "web", "endpoints": endpoints}), &self.cluster);
        config.retry = self.retry.map(Box::new);
        let clusters = Clusters::default();
        let web = clusters.handle("web");
        let cluster = Cluster::new(&config, None);
        clusters.publish(&web, &cluster);

        let seen = Rc::new(RefCell::new(Ended::default()));
        let record = seen.clone();
        let observe = acting("end", move |stream| {
            let state = stream.state.borrow();
            let flags = flag::NAMES.iter().filter(|(bit, _)| state.flags & bit != 0).map(|(_, name)| *name).collect();
            *record.borrow_mut() = Ended { flags, details: state.details.to_string(), attempts: state.attempts };
            Action::Continue
        });
        let observer = Scripted::filter("observer", phase::LOG, &Log::default(), observe);
        let chain = SlottedChain::single(self.filters.into_iter().chain([observer]).collect());

        let listener = merged(json!({"name": "public", "address": "127.0.0.1:80"}), &self.listener);
        let metrics = SnapshotBuilder::listener_metrics(&Registry::new(1), "public", false).expect("metrics");
        let pools = Pools::dialling(PoolOptions::default(), dial);
        let mut context = ListenerContext::new(Arc::new(listener), chain, metrics, pools);
        context.pools.adopt(&clusters);
        context.default_route = (!self.unrouted).then(|| Arc::new(Route::to_cluster(web)));
        Exchange { context: Rc::new(context), cluster, upstream, ended: seen }
    }
}

impl Exchange {
    /// Serves a request, and reads its response to the end.
    async fn send(&self, method: &str, body: Body) -> Got {
        let client = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let connection = Rc::new(ConnectionInfo::new("public".into(), client, client));
        let request = Request::builder().method(method).uri("/path?query").header("host", "example.com").body(body);
        let request = request.expect("a request");
        let served = serve(self.context.clone(), connection, Rc::default(), request).await;
        let Ok(served) = served.map_err(|StreamClosed| ()) else { return Got::Closed };
        let (parts, body) = served.response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Got::Response(parts.status.as_u16(), String::from_utf8(body.to_vec()).expect("text"))
    }

    async fn get(&self) -> Got {
        self.send("GET", Body::Empty).await
    }

    fn ended(&self) -> Ended {
        self.ended.take()
    }

    /// The endpoints that requests have reached since the last time.
    fn reached(&self) -> Vec<String> {
        self.upstream.arrived.take().into_iter().map(|arrived| arrived.endpoint).collect()
    }
}

/// Runs a test as a worker would, in virtual time: timers fire as soon as nothing else can happen.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn retrying(on: &[RetryOn], attempts: u32) -> Option<model::Retry> {
    let policy: model::Retry = serde_json::from_value(json!({"attempts": attempts, "backoff": "10ms"})).ok()?;
    Some(model::Retry { on: on.into(), ..policy })
}

#[test]
fn request_reaches_the_upstream_and_the_response_the_client() {
    run(async {
        let exchange = Setup::default().start(&[Step::Answer(200)]);
        assert_eq!(exchange.send("POST", Body::full("hello".into())).await, got(200, "from upstream"));
        let arrived = exchange.upstream.arrived.take().remove(0);
        assert_eq!((&*arrived.method, &*arrived.path, &*arrived.body), ("POST", "/path?query", &b"hello"[..]));
        assert_eq!(arrived.fields["host"], "example.com");
        assert_eq!(arrived.fields["x-forwarded-for"], "127.0.0.1");
        assert_eq!(exchange.ended(), ended(&[], "", 1));
    });
}

#[test]
fn request_without_route_is_404() {
    run(async {
        let exchange = Setup { unrouted: true, ..Setup::default() }.start(&[Step::Answer(200)]);
        let Got::Response(404, _) = exchange.get().await else { panic!("not 404") };
        assert_eq!(exchange.ended(), ended(&["NR"], "route_not_found", 0));
        assert!(exchange.reached().is_empty());
    });
}

#[test]
fn listed_status_is_retried_on_the_other_endpoint() {
    run(async {
        let retry = retrying(&[RetryOn::ServerError], 1);
        let exchange = Setup { retry, ..Setup::default() }.start(&[Step::Answer(500), Step::Answer(200)]);
        assert_eq!(exchange.get().await, got(200, "from upstream"));
        let reached = exchange.reached();
        assert_eq!(reached.len(), 2);
        assert_ne!(reached[0], reached[1]);
        assert_eq!(exchange.ended(), ended(&[], "", 2));
    });
}

#[test]
fn last_response_is_sent_when_retries_are_used_up() {
    run(async {
        let retry = retrying(&[RetryOn::ServerError], 2);
        let exchange = Setup { retry, ..Setup::default() }.start(&[Step::Answer(503)]);
        assert_eq!(exchange.get().await, got(503, "from upstream"));
        assert_eq!(exchange.ended(), ended(&["URX"], "", 3));
    });
}

#[test]
fn status_that_the_policy_does_not_list_is_not_retried() {
    run(async {
        let retry = retrying(&[RetryOn::GatewayError, RetryOn::Reset], 3);
        let exchange = Setup { retry, ..Setup::default() }.start(&[Step::Answer(500), Step::Answer(200)]);
        assert_eq!(exchange.get().await, got(500, "from upstream"));
        assert_eq!(exchange.ended(), ended(&[], "", 1));
    });
}

#[test]
fn refused_connection_moves_the_request_to_the_other_endpoint_without_a_policy() {
    run(async {
        let exchange = Setup::default().start(&[Step::Refuse, Step::Answer(200)]);
        assert_eq!(exchange.send("POST", Body::full("hello".into())).await, got(200, "from upstream"));
        assert_eq!(exchange.ended(), ended(&[], "", 2));
        // Both refuse: no third attempt.
        let exchange = Setup::default().start(&[Step::Refuse, Step::Refuse, Step::Answer(200)]);
        let Got::Response(503, _) = exchange.get().await else { panic!("not 503") };
        assert_eq!(exchange.ended(), ended(&["UF"], "connect_failure", 2));
    });
}

#[test]
fn reset_on_a_new_connection_is_retried_by_policy_only() {
    run(async {
        let exchange = Setup::default().start(&[Step::Reset, Step::Answer(200)]);
        let Got::Response(502, _) = exchange.get().await else { panic!("not 502") };
        assert_eq!(exchange.ended(), ended(&["UC"], "upstream_reset", 1));

        let retry = retrying(&[RetryOn::Reset], 1);
        let exchange = Setup { retry, ..Setup::default() }.start(&[Step::Reset, Step::Answer(200)]);
        assert_eq!(exchange.get().await, got(200, "from upstream"));
        assert_eq!(exchange.ended().attempts, 2);
    });
}

#[test]
fn reset_of_an_idle_connection_is_repeated_for_idempotent_methods() {
    for (method, expected, attempts) in [("GET", 200, 2), ("POST", 502, 1)] {
        run(async move {
            let one = json!({"endpoints": [{"address": "10.0.0.1:80"}]});
            let exchange =
                Setup { cluster: one, ..Setup::default() }.start(&[Step::Answer(200), Step::Reset, Step::Answer(200)]);
            assert_eq!(exchange.get().await, got(200, "from upstream"));
            exchange.ended();
            let Got::Response(status, _) = exchange.send(method, Body::Empty).await else { panic!("closed") };
            assert_eq!((method, status, exchange.ended().attempts), (method, expected, attempts));
        });
    }
}

#[test]
fn body_that_was_kept_is_sent_again_and_a_longer_one_is_not_retried() {
    for (len, expected, attempts) in [(4096, 200, 2), (4097, 503, 1)] {
        run(async move {
            let retry = retrying(&[RetryOn::ServerError], 1);
            let listener = json!({"limits": {"buffered_body": "4KiB"}});
            let exchange = Setup { retry, listener, ..Setup::default() }.start(&[Step::Answer(503), Step::Answer(200)]);
            let body = Bytes::from("x".repeat(len));
            let Got::Response(status, _) = exchange.send("PUT", Body::full(body.clone())).await else {
                panic!("closed")
            };
            let arrived = exchange.upstream.arrived.take();
            assert!(arrived.iter().all(|arrived| arrived.body == body));
            assert_eq!(
                (len, status, arrived.len(), exchange.ended().attempts),
                (len, expected, attempts, attempts as u32)
            );
        });
    }
}

#[test]
fn attempt_that_takes_too_long_is_retried_within_the_request_timeout() {
    run(async {
        let policy =
            model::Retry { per_try_timeout: Some(units::Duration::secs(1)), ..retrying(&[RetryOn::Reset], 5).unwrap() };
        let slow = Step::AnswerAfter(Duration::from_secs(10), 200);
        let setup =
            || Setup { retry: Some(policy.clone()), cluster: json!({"request_timeout": "2500ms"}), ..Setup::default() };
        let exchange = setup().start(&[slow, Step::Answer(200)]);
        let start = Instant::now();
        assert_eq!(exchange.get().await, got(200, "from upstream"));
        assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_secs(2));
        assert_eq!(exchange.ended(), ended(&[], "", 2));

        let exchange = setup().start(&[Step::Hang]);
        let start = Instant::now();
        let Got::Response(504, _) = exchange.get().await else { panic!("not 504") };
        assert!(start.elapsed() >= Duration::from_millis(2500) && start.elapsed() < Duration::from_secs(3));
        assert_eq!(exchange.ended(), ended(&["UT"], "response_timeout", 3));
    });
}

#[test]
fn timeout_of_the_last_attempt_is_answered_with_504() {
    run(async {
        let policy =
            model::Retry { per_try_timeout: Some(units::Duration::secs(1)), ..retrying(&[RetryOn::Reset], 1).unwrap() };
        let exchange = Setup { retry: Some(policy), ..Setup::default() }.start(&[Step::Hang]);
        let Got::Response(504, _) = exchange.get().await else { panic!("not 504") };
        assert_eq!(exchange.ended(), ended(&["UT", "URX"], "per_try_timeout", 2));
    });
}

#[test]
fn retry_budget_limits_retries() {
    run(async {
        let cluster = json!({"retry_budget": {"percent": 0, "min_concurrent": 0}});
        let retry = retrying(&[RetryOn::ServerError], 3);
        let exchange = Setup { retry, cluster, ..Setup::default() }.start(&[Step::Answer(503), Step::Answer(200)]);
        assert_eq!(exchange.get().await, got(503, "from upstream"));
        assert_eq!(exchange.ended(), ended(&["URX"], "", 1));
    });
}

#[test]
fn cluster_at_its_request_limit_overflows() {
    run(async {
        let cluster = json!({"limits": {"requests": 1}});
        let exchange = Rc::new(Setup { cluster, ..Setup::default() }.start(&[Step::Hang]));
        let first = exchange.clone();
        let first = spawn_local(async move { first.get().await });
        tokio::task::yield_now().await;
        while exchange.upstream.arrived.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        let Got::Response(503, _) = exchange.get().await else { panic!("not 503") };
        assert_eq!(exchange.ended(), ended(&["UO"], "overflow", 0));
        first.abort();
    });
}

#[test]
fn filters_reply_goes_back_only_past_filters_that_saw_the_request() {
    run(async {
        let log = Log::default();
        let deny = |stream: &Rc<crate::chain::Stream>| {
            let reply = LocalReply { status: StatusCode::FORBIDDEN, body: "no".into(), ..LocalReply::default() };
            stream.reply(reply, flag::UNAUTHORIZED);
            Action::Pause
        };
        let heads = phase::REQUEST_HEADERS | phase::RESPONSE_HEADERS;
        let filters = vec![
            Scripted::filter("a", heads, &log, passing()),
            Scripted::filter("b", heads, &log, acting("request head", deny)),
            Scripted::filter("c", heads, &log, passing()),
        ];
        let exchange = Setup { filters, ..Setup::default() }.start(&[Step::Answer(200)]);
        assert_eq!(exchange.get().await, got(403, "no"));
        assert_eq!(exchange.ended(), ended(&["UAEX"], "", 0));
        assert!(exchange.reached().is_empty());
        let log: Vec<_> = log.take().into_iter().filter(|event| !event.ends_with("end")).collect();
        assert_eq!(log, ["a request head.", "b request head.", "b response head", "a response head"]);
    });
}

#[test]
fn filter_can_close_the_stream() {
    run(async {
        let close = acting("request head", |stream| {
            stream.close();
            Action::Pause
        });
        let filters = vec![Scripted::filter("a", phase::ALL, &Log::default(), close)];
        let exchange = Setup { filters, ..Setup::default() }.start(&[Step::Answer(200)]);
        assert_eq!(exchange.get().await, Got::Closed);
        assert_eq!(exchange.ended(), ended(&["LR"], "closed_by_filter", 0));
    });
}

#[test]
fn request_held_by_a_filter_for_too_long_is_answered_with_504() {
    run(async {
        let filters = vec![Scripted::filter("a", phase::REQUEST_HEADERS, &Log::default(), pausing("request head"))];
        let listener = json!({"timeouts": {"idle": "5s"}});
        let exchange = Setup { filters, listener, ..Setup::default() }.start(&[Step::Answer(200)]);
        let start = Instant::now();
        let Got::Response(504, _) = exchange.get().await else { panic!("not 504") };
        assert!(start.elapsed() >= Duration::from_secs(5) && start.elapsed() < Duration::from_secs(6));
        assert_eq!(exchange.ended(), ended(&["SI"], "filter_stalled", 0));
    });
}

#[test]
fn filter_that_resumes_lets_the_request_continue() {
    run(async {
        let later = acting("request head", |stream| {
            let stream = stream.clone();
            spawn_local(async move {
                sleep(Duration::from_secs(2)).await;
                stream.resume(0, Direction::Request);
            });
            Action::Pause
        });
        let filters = vec![Scripted::filter("a", phase::REQUEST_HEADERS, &Log::default(), later)];
        let exchange = Setup { filters, ..Setup::default() }.start(&[Step::Answer(200)]);
        let start = Instant::now();
        assert_eq!(exchange.get().await, got(200, "from upstream"));
        assert!(start.elapsed() >= Duration::from_secs(2));
    });
}

#[test]
fn failed_filter_denies_the_response_or_is_bypassed() {
    for (policy, expected) in [(OnFailure::Deny, 503), (OnFailure::Bypass, 200)] {
        run(async move {
            let fail = acting("response head", move |_| Action::Failed(policy));
            let filters = vec![Scripted::filter("a", phase::RESPONSE_HEADERS, &Log::default(), fail)];
            let exchange = Setup { filters, ..Setup::default() }.start(&[Step::Answer(200)]);
            let Got::Response(status, _) = exchange.get().await else { panic!("closed") };
            assert_eq!(status, expected);
            assert_eq!(exchange.ended().flags.contains(&"FF"), expected == 503);
        });
    }
}

#[test]
fn body_that_stops_arriving_is_the_clients_timeout() {
    run(async {
        let listener = json!({"timeouts": {"idle": "5s"}, "limits": {"read_ahead": "0B"}});
        let exchange = Setup { listener, ..Setup::default() }.start(&[Step::Answer(200)]);
        let first = stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from("part")))]);
        let body = Body::stream(StreamBody::new(first.chain(stream::pending())));
        let Got::Response(408, _) = exchange.send("POST", body).await else { panic!("not 408") };
        assert_eq!(exchange.ended(), ended(&["DT"], "request_body_timeout", 1));
    });
}
