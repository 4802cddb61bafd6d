//! State that outlives a request: shared data, queues, metrics, ticks, buckets, time.

use std::{cell::RefCell, time::Duration};

use serde_json::json;
use tollgate_sdk::{
    Metadata, StoreError, Value, doc,
    prelude::*,
    shared::SharedError,
    testing::{Scripted, TestHost},
    unix_time,
};

struct Stateful {
    path: Name,
    seen: Name,
    bucket: Bucket,
    gauge: Gauge,
    histogram: Histogram,
    jobs: Queue,
    keys: RefCell<Vec<u8>>,
}

impl AsyncFilter for Stateful {
    type Config = ();
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        setup.tick(Duration::from_secs(1));
        let bucket = doc::Bucket { name: "b".into(), capacity: 2, fill: 1, interval_ms: 1000, max_keys: 2 };
        Ok(Stateful {
            path: setup.name(":path"),
            seen: setup.name("x-seen"),
            bucket: setup.bucket("", &bucket)?,
            gauge: setup.gauge("keys.size"),
            histogram: setup.histogram("jobs.bytes"),
            jobs: setup.queue("", "jobs")?,
            keys: RefCell::default(),
        })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        let mut buffer = Buffer::new();
        let path = request.header(self.path, &mut buffer).unwrap_or_default();
        match path {
            b"/count" => shared::update("count", |old| {
                let old = old.and_then(|v| std::str::from_utf8(v).ok()).and_then(|v| v.parse().ok()).unwrap_or(0u32);
                Some((old + 1).to_string().into_bytes())
            })
            .map_err(|_| Reply::new(507))?,
            b"/stored" => {
                let user = stored::metadata("auth", "user");
                request.set_header(self.seen, user.as_ref().and_then(Metadata::as_text).unwrap_or("nobody"));
                let large = vec![b'x'; 1000];
                assert_eq!(stored::state("given"), Some(b"before".to_vec()));
                stored::set_state("given", &large).unwrap();
                assert_eq!(stored::state("given"), Some(large), "longer than the first read");
                stored::set_state("gone", "soon").unwrap();
                assert!(stored::remove_state("gone") && !stored::remove_state("gone"));
                for (key, value) in [("n", Value::Integer(-3)), ("x", Value::Number(0.5)), ("b", Value::Bool(true))] {
                    stored::set_metadata("own", key, value).unwrap();
                }
                stored::set_metadata("own", "bytes", &b"\xff"[..]).unwrap();
                assert_eq!(stored::set_metadata("own", "long", "x".repeat(4097).as_str()), Err(StoreError::TooLarge));
                assert!(stored::remove_metadata("auth", "user") && stored::metadata("auth", "user").is_none());
            }
            b"/full" => {
                let set = (0..100u8).take_while(|i| stored::set_state([*i], "").is_ok()).count();
                request.set_header(self.seen, set.to_string());
                assert_eq!(stored::set_state("more", ""), Err(StoreError::Full));
            }
            b"/job" => assert!(self.jobs.push("a job")),
            b"/keys" => request.set_header(self.seen, &*self.keys.borrow()),
            b"/time" => request.set_header(self.seen, unix_time().as_secs().to_string()),
            key => {
                let taken = self.bucket.take(key, 1);
                request.set_header(self.seen, taken.state.remaining.to_string());
            }
        }
        Ok(())
    }

    async fn on_tick(&self) {
        if let Ok(answer) = Call::get("keys", "/").timeout(Duration::from_secs(10)).send().await {
            self.gauge.set(answer.body().len() as i64);
            *self.keys.borrow_mut() = answer.into_body();
        }
    }

    async fn on_queue(&self, queue: Queue, message: Vec<u8>) {
        assert_eq!(queue, self.jobs);
        let answer = Call::post("jobs", "/").body(&message).send().await;
        self.histogram.record(answer.map_or(0, |_| message.len() as u64));
    }
}

fn host() -> TestHost<Stateful> {
    TestHost::new(json!({})).unwrap()
}

fn seen(host: &TestHost<Stateful>, path: &str) -> String {
    host.request("GET", path).send().request_header("x-seen").unwrap_or_default().to_string()
}

#[test]
fn shared_data_is_updated_atomically() {
    let host = host();
    for _ in 0..3 {
        assert!(host.request("GET", "/count").send().continued());
    }
    assert_eq!(host.shared("count"), Some(b"3".to_vec()));

    let before = shared::get("count").unwrap();
    host.set_shared("count", "7");
    assert_eq!(shared::set_if("count", "4", before.version), Err(SharedError::Changed));
    assert_eq!(shared::set_if("count", "8", shared::get("count").unwrap().version), Ok(()));
    let mut tries = 0;
    shared::update("count", |old| {
        tries += 1;
        if tries == 1 {
            shared::set("count", "80").unwrap();
        }
        Some([old.unwrap(), b"!"].concat())
    })
    .unwrap();
    assert_eq!((tries, host.shared("count")), (2, Some(b"80!".to_vec())));
    assert_eq!(shared::get("other"), None);
}

#[test]
fn shared_data_is_created_once_and_expires() {
    let host = host();
    shared::create("lock", "mine", Duration::from_secs(2)).unwrap();
    assert_eq!(shared::create("lock", "yours", None), Err(SharedError::Changed));
    host.advance(Duration::from_secs(2));
    assert_eq!(shared::get("lock"), None);
    shared::create("lock", "yours", None).unwrap();
    host.advance(Duration::from_secs(86_400));
    let entry = shared::get("lock").unwrap();
    shared::set_for("lock", "ours", Duration::from_millis(10)).unwrap();
    assert!(!shared::remove_if("lock", entry.version));
    assert!(shared::remove_if("lock", shared::get("lock").unwrap().version));
    assert!(!shared::remove("lock"));
    shared::set("lock", "last").unwrap();
    assert!(shared::remove("lock"));
}

#[test]
fn filters_share_data_through_a_stream() {
    let host = host();
    let outcome = host.request("GET", "/stored").metadata("auth", "user", "ann").state("given", "before").send();
    assert_eq!(outcome.request_header("x-seen"), Some("ann"));
    assert_eq!(outcome.state("given").map(|value| value.len()), Some(1000));
    let own = |key| outcome.metadata("own", key).unwrap();
    assert_eq!([own("n"), own("x")], [Metadata::Integer(-3), Metadata::Number(0.5)]);
    assert_eq!([own("b"), own("bytes")], [Metadata::Bool(true), Metadata::Bytes(vec![0xff])]);
    assert_eq!((outcome.metadata("auth", "user"), outcome.metadata("own", "long")), (None, None));
    assert_eq!(seen(&host, "/full"), "64");
}

#[test]
fn queued_messages_are_handled_outside_of_streams() {
    let host = host();
    host.service("jobs", |_| Scripted::answer(204).after(Duration::from_millis(5)));
    assert!(host.request("GET", "/job").send().continued());
    host.push("jobs", "another one");
    assert_eq!(host.calls().iter().map(|c| c.body.len()).collect::<Vec<_>>(), [5, 11]);
    host.advance(Duration::from_millis(5));
    assert_eq!(host.recorded("jobs.bytes"), [5, 11]);
    assert_eq!(host.pop("jobs"), None);
    assert_eq!(Queue::find("", "nobody's"), None);
}

#[test]
fn tick_can_call_and_waits_for_the_previous_one() {
    let host = host();
    host.tick();
    host.tick();
    assert_eq!(host.calls().len(), 1);
    host.answer(1, Scripted::answer(200).body("secret"));
    assert_eq!((seen(&host, "/keys").as_str(), host.metric("keys.size")), ("secret", 6));
    host.tick();
    assert_eq!(host.calls().len(), 1);
}

#[test]
fn bucket_evicts_the_key_nearest_to_full() {
    let host = host();
    let take = |key| seen(&host, key);
    assert_eq!((take("/a"), take("/a"), take("/b")), ("1".into(), "0".into(), "1".into()));
    assert_eq!(take("/c"), "1", "there is room for two, and `b` is nearer to full than `a`");
    assert_eq!(take("/a"), "0");
    assert_eq!(take("/b"), "1", "it starts full again");
}

#[test]
fn wall_clock_is_simulated() {
    let host = host();
    let before: u64 = seen(&host, "/time").parse().unwrap();
    host.advance(Duration::from_secs(60));
    assert_eq!(seen(&host, "/time").parse(), Ok(before + 60));
}
