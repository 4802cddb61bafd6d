//! Filters that wait: concurrent streams, the end of a wait, and late events.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::{StreamExt, future::Either, stream::FuturesUnordered};
use serde_json::json;
use tollgate_sdk::{
    prelude::*,
    testing::{Scripted, TestHost},
};

const MS: Duration = Duration::from_millis(1);

thread_local! {
    /// Number of live futures of the kind below, excluding those that have finished or were dropped.
    static ALIVE: Cell<i32> = const { Cell::new(0) };
}

struct Alive;

impl Alive {
    fn new() -> Alive {
        ALIVE.set(ALIVE.get() + 1);
        Alive
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.set(ALIVE.get() - 1);
    }
}

/// Whether the gate is open, and the wakers waiting for it.
type Gate = Rc<RefCell<(bool, Vec<Waker>)>>;

fn open(gate: &Gate) {
    let (open, waiting) = &mut *gate.borrow_mut();
    *open = true;
    waiting.drain(..).for_each(Waker::wake);
}

/// Opens a gate when dropped, as a released slot of a queue would.
struct Opens(Gate);

impl Drop for Opens {
    fn drop(&mut self) {
        open(&self.0);
    }
}

/// Acts as the path specifies.
struct Scenes {
    path: Name,
    seen: Name,
    gate: Gate,
}

#[derive(Default)]
struct Kept {
    path: RefCell<String>,
}

impl AsyncFilter for Scenes {
    type Config = ();
    type Stream = Kept;
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::RESPONSE_HEADERS).and(Phases::END);

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Scenes { path: setup.name(":path"), seen: setup.name("x-seen"), gate: Rc::default() })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, kept: &Kept) -> Result<(), Reply> {
        let _alive = Alive::new();
        let mut buffer = Buffer::new();
        let path = request.header(self.path, &mut buffer).unwrap_or_default();
        let path = String::from_utf8_lossy(path).into_owned();
        *kept.path.borrow_mut() = path.clone();
        let call = |path: &str| Call::get("auth", path).timeout(100 * MS).send();
        match path.as_str() {
            "/sleep" => sleep(20 * MS).await,
            "/twice" => {
                sleep(20 * MS).await;
                sleep(30 * MS).await;
            }
            "/join" => {
                let (a, b) = futures_util::join!(call("/a"), call("/b"));
                request.set_header(self.seen, format!("{} {}", a?.status(), b?.status()));
            }
            "/select" => match futures_util::future::select(call("/a"), sleep(10 * MS)).await {
                Either::Left((answer, _)) => request.set_header(self.seen, answer?.status().to_string()),
                Either::Right(_) => return Err(Reply::new(504)),
            },
            "/unordered" => {
                let mut all: FuturesUnordered<_> = ["/a", "/b", "/c"].into_iter().map(call).collect();
                let mut seen = Vec::new();
                while let Some(answer) = all.next().await {
                    seen.extend_from_slice(answer?.body());
                }
                request.set_header(self.seen, seen);
            }
            "/gate" => {
                poll_fn(|cx| {
                    let (open, waiting) = &mut *self.gate.borrow_mut();
                    if *open {
                        return Poll::Ready(());
                    }
                    waiting.push(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                request.set_header(self.seen, "through");
            }
            "/open" => open(&self.gate),
            "/last" => {
                let _opens = Opens(self.gate.clone());
                std::future::pending().await
            }
            "/opens_at_its_end" => {}
            "/missing" => {
                Call::get("missing", "/").send().await?;
            }
            "/many" => {
                for _ in 0..100 {
                    futures_util::future::select(sleep(MS), sleep(1000 * MS)).await;
                }
            }
            _ => {
                let answer = call(&path).await?;
                request.set_header(
                    self.seen,
                    format!("{} {:?}", answer.status(), answer.header("x-user").map(<[_]>::len)),
                );
                if answer.status() == 403 {
                    return Err(Reply::new(403).body(answer.into_body()).details("refused"));
                }
            }
        }
        Ok(())
    }

    fn on_end(&self, _: &Request, _: &Response, kept: &Kept) {
        if *kept.path.borrow() == "/opens_at_its_end" {
            open(&self.gate);
        }
    }

    async fn on_response(&self, response: &mut Incoming<Response>, kept: &Kept) -> Result<(), Reply> {
        response.set_header(self.seen, &*kept.path.borrow());
        if *kept.path.borrow() == "/sleep" {
            sleep(5 * MS).await;
            response.set_header(self.seen, "later");
        }
        Ok(())
    }
}

#[test]
fn end_of_one_stream_lets_another_continue() {
    for holder in ["/last", "/opens_at_its_end"] {
        let host = host();
        let waiting = host.request("GET", "/gate").send();
        let ends = host.request("GET", holder).send();
        assert!(!waiting.continued(), "{holder}");
        drop(ends);
        assert!(waiting.continued(), "{holder}");
        assert_eq!(waiting.request_header("x-seen"), Some("through"), "{holder}");
    }
}

fn host() -> TestHost<Scenes> {
    ALIVE.set(0);
    TestHost::new(json!({})).unwrap()
}

#[test]
fn answer_decides_whether_the_request_continues() {
    let host = host();
    host.service("auth", |call| match call.path() {
        "/ann" => Scripted::answer(200).header("X-User", "ann"),
        _ => Scripted::answer(403).body("who?"),
    });
    let ann = host.request("GET", "/ann").send();
    assert!(ann.continued());
    assert_eq!(ann.request_header("x-seen"), Some("200 Some(3)"));
    let bob = host.request("GET", "/bob").send();
    assert_eq!((bob.status(), bob.details(), bob.reply_body()), (Some(403), Some("refused"), Some(&b"who?"[..])));
    assert_eq!(ALIVE.get(), 0);
}

#[test]
fn streams_interleave_and_each_gets_its_own_answer() {
    let host = host();
    let streams: Vec<_> = ["/1", "/2", "/3"].map(|path| host.request("GET", path).send()).into();
    assert!(streams.iter().all(|s| !s.continued()));
    let calls = host.calls();
    assert_eq!(calls.iter().map(|c| c.path()).collect::<Vec<_>>(), ["/1", "/2", "/3"]);
    for (call, status) in [(&calls[1], 202), (&calls[2], 203), (&calls[0], 201)] {
        host.answer(call.id, Scripted::answer(status));
    }
    for (stream, seen) in streams.iter().zip(["201 None", "202 None", "203 None"]) {
        assert!(stream.continued());
        assert_eq!(stream.request_header("x-seen"), Some(seen));
    }
}

#[test]
fn stream_end_drops_its_future_and_late_answers_are_ignored() {
    let host = host();
    let (gone, stays) = (host.request("GET", "/gone").send(), host.request("GET", "/stays").send());
    assert_eq!(ALIVE.get(), 2);
    drop(gone);
    assert_eq!(ALIVE.get(), 1);
    for call in host.calls() {
        host.answer(call.id, Scripted::answer(200));
    }
    assert!(stays.continued());
    assert_eq!(ALIVE.get(), 0);
    drop(host.request("GET", "/sleep").send());
    host.advance(100 * MS);
}

#[test]
fn failures_have_names() {
    let host = host();
    for (error, status, details) in [
        (CallError::Reset, 503, "callout_reset"),
        (CallError::TooLarge, 503, "callout_too_large"),
        (CallError::Timeout, 504, "callout_timeout"),
    ] {
        host.service("auth", move |_| Scripted::fail(error).after(3 * MS));
        let outcome = host.request("GET", "/x").send();
        assert_eq!(outcome.status(), None);
        host.advance(3 * MS);
        assert_eq!((outcome.status(), outcome.details()), (Some(status), Some(details)));
    }
    let outcome = host.request("GET", "/missing").send();
    assert_eq!(outcome.details(), Some("callout_unknown_cluster"));

    host.service("auth", |_| Scripted::answer(200).after(101 * MS));
    let slow = host.request("GET", "/x").send();
    host.advance(99 * MS);
    assert_eq!(slow.status(), None);
    host.advance(MS);
    assert_eq!(slow.status(), Some(504));
    host.advance(10 * MS);
}

#[test]
fn timers_belong_to_their_stream() {
    let host = host();
    let once = host.request("GET", "/sleep").send();
    host.advance(10 * MS);
    let twice = host.request("GET", "/twice").send();
    assert_eq!((once.waits(), twice.waits()), (Some(10 * MS), Some(20 * MS)));
    host.advance(10 * MS);
    assert!(once.continued() && !twice.continued());
    host.advance(10 * MS);
    assert_eq!(twice.waits(), Some(30 * MS));
    assert!(twice.wait().continued());
    let once = once.respond(200, &[], b"");
    assert_eq!((once.continued(), once.response_header("x-seen")), (false, Some("/sleep")));
    let once = once.wait();
    assert_eq!((once.continued(), once.response_header("x-seen")), (true, Some("later")));
}

#[test]
fn dropped_sleeps_do_not_use_up_timers() {
    let host = host();
    let many = host.request("GET", "/many").send();
    host.advance(200 * MS);
    assert!(many.continued());
    assert_eq!(host.logs(), [""; 0]);
}

#[test]
fn two_calls_can_be_joined() {
    let host = host();
    let joined = host.request("GET", "/join").send();
    let calls = host.calls();
    host.answer(calls[1].id, Scripted::answer(202));
    assert!(!joined.continued());
    host.answer(calls[0].id, Scripted::answer(201));
    assert!(joined.continued());
    assert_eq!(joined.request_header("x-seen"), Some("201 202"));
}

#[test]
fn first_of_two_calls_can_be_selected() {
    let host = host();
    host.service("auth", |_| Scripted::answer(200).after(5 * MS));
    let answered = host.request("GET", "/select").send();
    host.advance(5 * MS);
    assert_eq!((answered.continued(), answered.request_header("x-seen")), (true, Some("200")));

    host.service("auth", |_| Scripted::answer(200).after(50 * MS));
    let slow = host.request("GET", "/select").send();
    host.advance(10 * MS);
    assert_eq!(slow.status(), Some(504));
    host.advance(50 * MS);
    assert_eq!(ALIVE.get(), 0);
}

#[test]
fn futures_with_custom_wakers_are_woken() {
    let host = host();
    let all = host.request("GET", "/unordered").send();
    for call in host.calls().into_iter().rev() {
        assert!(!all.continued());
        host.answer(call.id, Scripted::answer(200).body(call.path().as_bytes()));
    }
    assert_eq!(all.request_header("x-seen"), Some("/c/b/a"));

    drop(host.request("GET", "/unordered").send());
    assert_eq!(ALIVE.get(), 0);
    host.advance(200 * MS);
}

#[test]
fn one_stream_can_wake_another() {
    let host = host();
    let waiting = [host.request("GET", "/gate").send(), host.request("GET", "/gate").send()];
    drop(host.request("GET", "/gate").send());
    assert!(waiting.iter().all(|s| !s.continued()));
    let open = host.request("GET", "/open").send();
    assert!(open.continued());
    assert_eq!(open.request_header("x-seen"), None);
    for stream in &waiting {
        assert_eq!((stream.continued(), stream.request_header("x-seen")), (true, Some("through")));
    }
}
