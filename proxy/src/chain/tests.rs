//! Filters that pause, resume, reply, fail and change bodies, in chains: what [`flow`](super::flow) and [`body`](super::body) make
//! of it. [`Scripted`] also serves the tests of `exchange`.

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use tollgate_abi::fast::flag;

use super::{
    body::{BodyAborted, BodyFlow, FilteredFrame},
    flow::{HeadFlow, Outcome, interrupted},
    stream::{ConnectionInfo, IncomingRequest},
    variants::RouteFilters,
    *,
};

/// The callbacks that the filters of a test were given, in order.
pub(crate) type Log = Rc<RefCell<Vec<String>>>;
/// What a filter does in a callback, which is described like an entry of the log, without the filter's name.
pub(crate) type Act = Box<dyn Fn(&Rc<Stream>, usize, &str) -> Action>;

/// A filter that logs its callbacks and acts as the test says.
pub(crate) struct Scripted {
    name: &'static str,
    phases: u32,
    headers_pause: HeadersPause,
    variants: Variants<dyn Filter>,
    log: Log,
    act: Act,
}

impl Scripted {
    pub(crate) fn filter(name: &'static str, phases: u32, log: &Log, act: Act) -> Rc<dyn Filter> {
        Scripted::with_variants(name, phases, log, act, Vec::new())
    }

    /// One with variants, which log under names of their own.
    fn with_variants(
        name: &'static str,
        phases: u32,
        log: &Log,
        act: Act,
        variants: Variants<dyn Filter>,
    ) -> Rc<dyn Filter> {
        Rc::new(Scripted { name, phases, headers_pause: HeadersPause::StopAll, variants, log: log.clone(), act })
    }

    /// One that is shown the body while it holds the head.
    fn holding_heads(name: &'static str, log: &Log, act: Act) -> Rc<dyn Filter> {
        let headers_pause = HeadersPause::HoldHeaders;
        Rc::new(Scripted { name, phases: phase::ALL, headers_pause, variants: Vec::new(), log: log.clone(), act })
    }

    fn call(&self, stream: &Rc<Stream>, position: usize, event: String) -> Action {
        self.log.borrow_mut().push(format!("{} {event}", self.name));
        // A real filter has a context from its first callback on.
        stream.state.borrow_mut().filters[position].context = 2;
        (self.act)(stream, position, &event)
    }
}

fn message(direction: Direction) -> &'static str {
    ["request", "response"][direction as usize]
}

impl Filter for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn variants(&self) -> Variants<dyn Filter> {
        self.variants.clone()
    }

    fn phases(&self) -> u32 {
        self.phases
    }

    fn headers_pause(&self) -> HeadersPause {
        self.headers_pause
    }

    fn changes_body(&self, _: Direction) -> bool {
        false
    }

    fn on_headers(&self, direction: Direction, stream: &Rc<Stream>, position: usize, end: bool) -> Action {
        self.call(stream, position, format!("{} head{}", message(direction), if end { "." } else { "" }))
    }

    fn on_body(&self, direction: Direction, stream: &Rc<Stream>, position: usize, len: usize, end: bool) -> Action {
        let bytes = stream.state.borrow().buffers[direction as usize].as_ref().unwrap().as_slice().to_vec();
        assert_eq!(bytes.len(), len);
        let (text, end) = (String::from_utf8(bytes).unwrap(), if end { "." } else { "" });
        self.call(stream, position, format!("{} body {text}{end}", message(direction)))
    }

    fn on_trailers(&self, direction: Direction, stream: &Rc<Stream>, position: usize) -> Action {
        self.call(stream, position, format!("{} trailers", message(direction)))
    }

    fn on_end(&self, stream: &Rc<Stream>, position: usize) {
        self.call(stream, position, "end".into());
    }
}

/// Continues always.
pub(crate) fn passing() -> Act {
    Box::new(|_, _, _| Action::Continue)
}

/// Pauses in callbacks that begin like this.
pub(crate) fn pausing(at: &'static str) -> Act {
    acting(at, |_| Action::Pause)
}

/// Does this in callbacks that begin like that, and continues in others.
pub(crate) fn acting(at: &'static str, act: impl Fn(&Rc<Stream>) -> Action + 'static) -> Act {
    Box::new(move |stream, _, event| if event.starts_with(at) { act(stream) } else { Action::Continue })
}

/// A POST request on its way through these filters.
pub(crate) fn stream(filters: Vec<Rc<dyn Filter>>) -> Rc<Stream> {
    let client = SocketAddr::from(([127, 0, 0, 1], 1));
    let head = RequestHead {
        method: Method::POST,
        path: "/".into(),
        authority: "a".into(),
        scheme: "http",
        fields: HeaderMap::new(),
    };
    Stream::new(
        Rc::new(ConnectionInfo::new("l".into(), client, client)),
        Rc::default(),
        Rc::new(Chain::new(filters)),
        IncomingRequest {
            client,
            head,
            original_path: "/".into(),
            version: Version::HTTP_11,
            request_id: HeaderValue::from_static("1"),
        },
    )
}

fn taken(log: &Log) -> Vec<String> {
    std::mem::take(&mut log.borrow_mut())
}

fn poll(flow: &mut HeadFlow, stream: &Rc<Stream>) -> Poll<Outcome> {
    flow.poll(stream, false, &mut Context::from_waker(Waker::noop()))
}

fn is_done(progress: Poll<Outcome>) -> bool {
    matches!(progress, Poll::Ready(Outcome::Done))
}

#[test]
fn request_heads_pass_in_order_and_response_heads_in_reverse() {
    let log = Log::default();
    let stream = stream(vec![
        Scripted::filter("a", phase::ALL, &log, passing()),
        Scripted::filter("b", phase::REQUEST_HEADERS, &log, passing()),
        Scripted::filter("c", phase::ALL, &log, passing()),
    ]);
    assert!(is_done(poll(&mut HeadFlow::new(&stream, Direction::Request), &stream)));
    assert!(is_done(poll(&mut HeadFlow::new(&stream, Direction::Response), &stream)));
    let expected = ["a request head", "b request head", "c request head", "c response head", "a response head"];
    assert_eq!(taken(&log), expected);
    stream.end();
    assert_eq!(taken(&log), ["a end", "b end", "c end"]);
}

#[test]
fn paused_head_waits_for_resume_and_continues_with_the_next_filter() {
    let log = Log::default();
    let stream = stream(vec![
        Scripted::filter("a", phase::ALL, &log, pausing("request head")),
        Scripted::filter("b", phase::ALL, &log, passing()),
    ]);
    let mut flow = HeadFlow::new(&stream, Direction::Request);
    assert!(poll(&mut flow, &stream).is_pending());
    assert_eq!((flow.held_by(), flow.passed(), flow.seen()), (Some(0), 0, 1));
    assert!(poll(&mut flow, &stream).is_pending(), "nothing has resumed it");
    stream.resume(0, Direction::Response);
    assert!(poll(&mut flow, &stream).is_pending(), "that was for the response");
    stream.resume(0, Direction::Request);
    assert!(is_done(poll(&mut flow, &stream)));
    assert_eq!(taken(&log), ["a request head", "b request head"]);
}

#[test]
fn resume_before_a_pause_does_not_release_a_later_one() {
    let log = Log::default();
    let stream = stream(vec![Scripted::filter("a", phase::ALL, &log, pausing("request head"))]);
    stream.resume(0, Direction::Request);
    assert!(poll(&mut HeadFlow::new(&stream, Direction::Request), &stream).is_pending());
}

#[test]
fn local_reply_returns_only_through_filters_that_saw_the_request() {
    let log = Log::default();
    let reply = |stream: &Rc<Stream>| {
        stream.reply(LocalReply { status: StatusCode::FORBIDDEN, ..LocalReply::default() }, flag::LOCAL_REPLY);
        Action::Pause
    };
    let stream = stream(vec![
        Scripted::filter("a", phase::ALL, &log, passing()),
        Scripted::filter("b", phase::ALL, &log, acting("request head", reply)),
        Scripted::filter("c", phase::ALL, &log, passing()),
    ]);
    let mut flow = HeadFlow::new(&stream, Direction::Request);
    let Poll::Ready(Outcome::Reply(reply)) = poll(&mut flow, &stream) else { panic!("no reply") };
    assert_eq!((reply.status, flow.seen(), stream.state.borrow().flags), (StatusCode::FORBIDDEN, 2, flag::LOCAL_REPLY));
    let skipped = stream.chain.filters().len() - flow.seen();
    assert!(is_done(poll(&mut HeadFlow::reply(&stream, skipped), &stream)));
    assert_eq!(taken(&log), ["a request head", "b request head", "b response head", "a response head"]);
}

#[test]
fn close_ends_the_stream_before_the_next_filter() {
    let log = Log::default();
    let close = |stream: &Rc<Stream>| {
        stream.close();
        Action::Continue
    };
    let stream = stream(vec![
        Scripted::filter("a", phase::ALL, &log, acting("request head", close)),
        Scripted::filter("b", phase::ALL, &log, passing()),
    ]);
    let outcome = poll(&mut HeadFlow::new(&stream, Direction::Request), &stream);
    assert!(matches!(outcome, Poll::Ready(Outcome::Closed)), "{outcome:?}");
    assert!(matches!(interrupted(&stream), Some(Outcome::Closed)), "it stays closed");
    assert_eq!(taken(&log), ["a request head"]);
}

#[test]
fn failed_filter_denies_or_is_bypassed_as_configured() {
    for (policy, denied) in [(OnFailure::Deny, true), (OnFailure::Bypass, false)] {
        let log = Log::default();
        let stream = stream(vec![
            Scripted::filter("a", phase::ALL, &log, acting("request head", move |_| Action::Failed(policy))),
            Scripted::filter("b", phase::ALL, &log, passing()),
        ]);
        match poll(&mut HeadFlow::new(&stream, Direction::Request), &stream) {
            Poll::Ready(Outcome::Reply(reply)) => {
                assert!(denied);
                assert_eq!((reply.status, &*reply.details), (StatusCode::SERVICE_UNAVAILABLE, "filter_failed"));
                assert_eq!(stream.state.borrow().flags, flag::FILTER_FAILED);
            }
            outcome => assert!(!denied && is_done(outcome)),
        }
        assert_eq!(taken(&log).len(), if denied { 1 } else { 2 });
    }
}

#[test]
fn filter_that_failed_in_another_stream_denies_at_its_next_callback() {
    let log = Log::default();
    let stream = stream(vec![Scripted::filter("a", phase::ALL, &log, pausing("request head"))]);
    let mut flow = HeadFlow::new(&stream, Direction::Request);
    assert!(poll(&mut flow, &stream).is_pending());
    // The filter holds the request; its instance fails, by another stream's doing. The head goes on.
    stream.state.borrow_mut().filters[0].gone = true;
    assert!(is_done(poll(&mut flow, &stream)));
    stream.state.borrow_mut().filters[0].denies = true;
    let outcome = poll(&mut HeadFlow::new(&stream, Direction::Response), &stream);
    assert!(matches!(outcome, Poll::Ready(Outcome::Reply(_))), "{outcome:?}");
    assert!(is_done(poll(&mut HeadFlow::new(&stream, Direction::Response), &stream)), "it denies once");
    assert_eq!(taken(&log), ["a request head"]);
}

#[test]
fn head_holding_filter_is_fed_the_body_and_others_are_not() {
    let log = Log::default();
    let holding = stream(vec![Scripted::holding_heads("a", &log, pausing("request head"))]);
    let stopping = stream(vec![Scripted::filter("a", phase::ALL, &log, pausing("request head"))]);
    for (stream, feeds) in [(holding, true), (stopping, false)] {
        let mut flow = HeadFlow::new(&stream, Direction::Request);
        assert!(!flow.feeds_body(&stream));
        assert!(poll(&mut flow, &stream).is_pending());
        assert_eq!(flow.feeds_body(&stream), feeds);
    }
}

/// A route to the cluster `c` that selects these variants.
pub(super) fn route(filters: &[(&str, &str)]) -> SelectedRoute {
    let filters = filters.iter().map(|(filter, variant)| ((*filter).to_owned(), (*variant).to_owned())).collect();
    let mut route = Route::to_cluster(crate::upstream::Clusters::default().handle("c"));
    route.filters = RouteFilters::new(filters).map(Arc::new);
    SelectedRoute::new(&Arc::new(route), 0, 0, 0)
}

/// Selects a route in the request headers callback.
fn selecting(filters: &'static [(&'static str, &'static str)]) -> Act {
    Box::new(move |stream, position, event| {
        if event.starts_with("request head") {
            stream.select(position, Some(route(filters)));
        }
        Action::Continue
    })
}

#[test]
fn selected_variants_process_the_whole_stream() {
    let log = Log::default();
    let strict = |name| vec![("strict".to_owned(), Scripted::filter(name, phase::ALL, &log, passing()))];
    let filters = vec![
        Scripted::with_variants("before", phase::ALL, &log, passing(), strict("before/strict")),
        Scripted::filter("router", phase::ALL, &log, selecting(&[("before", "strict"), ("a", "strict"), ("b", "off")])),
        Scripted::with_variants("a", phase::REQUEST_HEADERS, &log, passing(), strict("a/strict")),
        Scripted::filter("b", phase::ALL, &log, passing()),
    ];
    let stream = stream(filters);
    let done = |direction| is_done(poll(&mut HeadFlow::new(&stream, direction), &stream));
    assert!(done(Direction::Request));
    assert_eq!(taken(&log), ["before request head", "router request head", "a/strict request head"]);
    let mut body = BodyFlow::new(&stream, Direction::Request, 10);
    body.data(&stream, Bytes::from("x"), false, None).unwrap();
    body.trailers(&stream, trailers("t"), None).unwrap();
    let all = |what: &str| ["before", "router", "a/strict"].map(|name| format!("{name} {what}"));
    assert_eq!(taken(&log), [all("request body x"), all("request trailers")].concat());
    assert!(stream.sees_body(Direction::Response));
    assert!(done(Direction::Response));
    let mut back = all("response head");
    back.reverse();
    assert_eq!(taken(&log), back);
    stream.end();
    assert_eq!(taken(&log), all("end"), "a filter that is off gets no callback at all");
}

#[test]
fn configuration_of_a_filter_no_longer_changes_once_the_request_has_reached_it() {
    for cleared in [false, true] {
        let log = Log::default();
        let strict = |name| vec![("strict".to_owned(), Scripted::filter(name, phase::ALL, &log, passing()))];
        let again: Act = Box::new(move |stream, position, event| {
            if event.starts_with("request head") {
                let other = route(&[("a", "off"), ("b", "off"), ("d", "strict")]);
                stream.select(position, (!cleared).then_some(other));
            }
            Action::Continue
        });
        let first = selecting(&[("a", "strict"), ("b", "off"), ("c", "strict"), ("d", "off")]);
        let stream = stream(vec![
            Scripted::filter("router", phase::REQUEST_HEADERS, &log, first),
            Scripted::with_variants("a", phase::REQUEST_HEADERS, &log, passing(), strict("a/strict")),
            Scripted::filter("b", phase::ALL, &log, passing()),
            Scripted::filter("again", phase::REQUEST_HEADERS, &log, again),
            // These do not subscribe to the request's headers.
            Scripted::with_variants("c", phase::RESPONSE_HEADERS, &log, passing(), strict("c/strict")),
            Scripted::with_variants("d", phase::RESPONSE_HEADERS, &log, passing(), strict("d/strict")),
        ]);
        assert!(is_done(poll(&mut HeadFlow::new(&stream, Direction::Request), &stream)));
        assert_eq!(stream.state.borrow().route.is_none(), cleared);
        let d = if cleared { vec![] } else { vec!["d/strict request head"] };
        let mut expected = vec!["router request head", "a/strict request head", "again request head"];
        expected.extend(&d);
        assert_eq!(taken(&log), expected);
        // It is too late for all of them.
        stream.select(0, Some(route(&[("a", "off"), ("b", "strict"), ("c", "strict"), ("d", "off")])));
        assert!(is_done(poll(&mut HeadFlow::new(&stream, Direction::Response), &stream)));
        let d = if cleared { "d response head" } else { "d/strict response head" };
        assert_eq!(taken(&log), [d, "c response head", "a/strict response head"]);
    }
}

/// A request's body on its way through a chain.
struct Upload {
    stream: Rc<Stream>,
    flow: BodyFlow,
}

impl Upload {
    fn new(limit: usize, filters: Vec<Rc<dyn Filter>>) -> Upload {
        let stream = stream(filters);
        Upload { flow: BodyFlow::new(&stream, Direction::Request, limit), stream }
    }

    fn data(&mut self, data: &'static str, end: bool) -> Result<bool, BodyAborted> {
        self.flow.data(&self.stream, Bytes::from(data), end, None)
    }

    fn resume(&mut self, position: usize) {
        self.stream.resume(position, Direction::Request);
        self.flow.resume(&self.stream, None).unwrap();
    }

    /// What has passed all filters since the last time: data as it is, trailers as `{name}`.
    fn out(&mut self) -> String {
        std::iter::from_fn(|| self.flow.pop())
            .map(|frame| match frame {
                FilteredFrame::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
                FilteredFrame::Trailers(trailers) => trailers.keys().map(|name| format!("{{{name}}}")).collect(),
            })
            .collect()
    }
}

fn trailers(name: &'static str) -> HeaderMap {
    [(http::HeaderName::from_static(name), HeaderValue::from_static("1"))].into_iter().collect()
}

#[test]
fn body_passes_filters_part_by_part() {
    let log = Log::default();
    let b = Scripted::filter("b", phase::REQUEST_BODY, &log, passing());
    let mut upload = Upload::new(10, vec![Scripted::filter("a", phase::ALL, &log, passing()), b]);
    upload.data("one", false).unwrap();
    assert_eq!((upload.out(), upload.flow.is_over()), ("one".into(), false));
    upload.data("two", true).unwrap();
    assert!(upload.flow.has_ended() && !upload.flow.is_over(), "its last part has not been taken");
    assert_eq!((upload.out(), upload.flow.is_over()), ("two".into(), true));
    assert_eq!(upload.flow.lengths(), (6, 6));
    assert_eq!(taken(&log), ["a request body one", "b request body one", "a request body two.", "b request body two."]);
}

#[test]
fn paused_body_collects_for_the_filter_and_is_released_by_resume() {
    let log = Log::default();
    let mut upload = Upload::new(
        10,
        vec![
            Scripted::filter("a", phase::ALL, &log, pausing("request body")),
            Scripted::filter("b", phase::ALL, &log, passing()),
        ],
    );
    upload.data("ab", false).unwrap();
    upload.data("cd", false).unwrap();
    assert_eq!(taken(&log), ["a request body ab", "a request body abcd"], "it sees all that it holds");
    assert!(!upload.flow.is_ready());
    upload.resume(0);
    assert_eq!((upload.out(), taken(&log)), ("abcd".into(), vec!["b request body abcd".into()]));
    upload.data("ef", true).unwrap();
    assert_eq!((upload.out(), upload.flow.has_ended()), (String::new(), false), "it pauses again");
    upload.resume(0);
    assert_eq!((upload.out(), upload.flow.is_over()), ("ef".into(), true));
}

#[test]
fn filter_that_holds_more_than_the_limit_aborts_the_body() {
    let log = Log::default();
    let mut upload = Upload::new(4, vec![Scripted::filter("a", phase::ALL, &log, pausing("request body"))]);
    upload.data("1234", false).unwrap();
    assert_eq!(upload.data("5", false), Err(BodyAborted::TooLarge));
    // What passes is not held, and so not bounded.
    let mut upload = Upload::new(4, vec![Scripted::filter("a", phase::ALL, &log, passing())]);
    upload.data("12345678", true).unwrap();
    assert_eq!(upload.out(), "12345678");
}

#[test]
fn filter_can_replace_a_body_and_its_length_is_counted() {
    let log = Log::default();
    let replace = |stream: &Rc<Stream>| {
        let mut state = stream.state.borrow_mut();
        let limit = state.buffer_limit;
        let buffer = state.buffers[Direction::Request as usize].as_mut().unwrap();
        let len = buffer.as_slice().len();
        buffer.splice(0, len, b"replaced", limit);
        Action::Continue
    };
    let mut upload = Upload::new(
        10,
        vec![
            Scripted::filter("a", phase::ALL, &log, acting("request body", replace)),
            Scripted::filter("b", phase::ALL, &log, passing()),
        ],
    );
    upload.data("xy", true).unwrap();
    assert_eq!((upload.out(), upload.flow.lengths()), ("replaced".into(), (2, 8)));
    assert_eq!(taken(&log), ["a request body xy.", "b request body replaced."]);
}

#[test]
fn trailers_follow_the_body_and_are_held_with_it() {
    let log = Log::default();
    let mut upload = Upload::new(
        10,
        vec![
            Scripted::filter("a", phase::ALL, &log, pausing("request body")),
            Scripted::filter("b", phase::REQUEST_BODY | phase::REQUEST_HEADERS, &log, passing()),
        ],
    );
    upload.data("x", false).unwrap();
    upload.flow.trailers(&upload.stream, trailers("t"), None).unwrap();
    // The trailers' callback of `a` continues, and lets out what its body callback held.
    assert_eq!((upload.out(), upload.flow.is_over()), ("x{t}".into(), true));
    assert_eq!(taken(&log), ["a request body x", "a request trailers", "b request body x"]);
}

#[test]
fn filter_without_trailers_callback_learns_of_the_end_from_its_body_callback() {
    let log = Log::default();
    let until_end: Act = Box::new(|_, _, event| if event.ends_with('.') { Action::Continue } else { Action::Pause });
    let mut upload = Upload::new(10, vec![Scripted::filter("a", phase::REQUEST_BODY, &log, until_end)]);
    upload.data("x", false).unwrap();
    assert_eq!(upload.out(), "");
    upload.flow.trailers(&upload.stream, trailers("t"), None).unwrap();
    assert_eq!(
        (upload.out(), taken(&log)),
        ("x{t}".into(), vec!["a request body x".into(), "a request body x.".into()])
    );
}

#[test]
fn trailers_added_by_a_filter_reach_the_next_filters_callback() {
    let log = Log::default();
    let add: Act = Box::new(|stream, _, event| {
        if event.ends_with('.') {
            stream.state.borrow_mut().trailers[Direction::Request as usize] = Some(trailers("added"));
        }
        Action::Continue
    });
    let mut upload = Upload::new(
        10,
        vec![Scripted::filter("a", phase::ALL, &log, add), Scripted::filter("b", phase::ALL, &log, passing())],
    );
    upload.data("x", true).unwrap();
    assert_eq!((upload.out(), upload.flow.is_over()), ("x{added}".into(), true));
    assert_eq!(taken(&log), ["a request body x.", "b request body x", "b request trailers"]);
}

#[test]
fn failed_filter_denies_a_body_or_lets_out_what_it_held() {
    let log = Log::default();
    let deny = acting("request body", |_| Action::Failed(OnFailure::Deny));
    let mut upload = Upload::new(10, vec![Scripted::filter("a", phase::ALL, &log, deny)]);
    assert_eq!(upload.data("x", false), Err(BodyAborted::FilterFailed));

    let mut upload = Upload::new(10, vec![Scripted::filter("a", phase::ALL, &log, pausing("request body"))]);
    upload.data("x", false).unwrap();
    upload.stream.state.borrow_mut().filters[0].gone = true;
    upload.data("y", true).unwrap();
    assert_eq!((upload.out(), upload.flow.is_over()), ("xy".into(), true));
}

#[test]
fn body_fed_to_a_head_holding_filter_stays_with_it_until_the_head_goes() {
    let log = Log::default();
    let on_b: Act = Box::new(|_, _, event| if event.ends_with("cd") { Action::Continue } else { Action::Pause });
    let mut upload = Upload::new(
        10,
        vec![
            Scripted::filter("a", phase::ALL, &log, passing()),
            Scripted::holding_heads("b", &log, on_b),
            Scripted::filter("c", phase::ALL, &log, passing()),
        ],
    );
    let mut feed = |data: &'static str| upload.flow.data(&upload.stream, data.into(), false, Some(1)).unwrap();
    assert!(!feed("ab"), "it holds the head");
    assert!(feed("cd"), "it lets the head go");
    assert_eq!(upload.out(), "", "the head comes first");
    upload.flow.release(&upload.stream, 1, None).unwrap();
    assert_eq!(upload.out(), "abcd");
    let expected =
        ["a request body ab", "b request body ab", "a request body cd", "b request body abcd", "c request body abcd"];
    assert_eq!(taken(&log), expected);
}
