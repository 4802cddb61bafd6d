//! Bodies: read as a whole or in parts, replaced, too long, ended by trailers, and read in between other waits.

use std::time::Duration;

use serde_json::json;
use tollgate_sdk::{
    prelude::*,
    testing::{Scripted, TestHost},
};

const MS: Duration = Duration::from_millis(1);

/// Processes the body as the path specifies.
struct Bodies {
    path: Name,
    seen: Name,
}

impl AsyncFilter for Bodies {
    type Config = ();
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_BODY.and(Phases::RESPONSE_BODY);

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Bodies { path: setup.name(":path"), seen: setup.name("x-seen") })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        let mut buffer = Buffer::new();
        let path = request.header(self.path, &mut buffer).unwrap_or_default().to_vec();
        match path.as_slice() {
            b"/whole" => {
                let body = request.body(10).await?;
                request.set_header(self.seen, &body);
                request.replace_body(&body.to_ascii_uppercase())?;
            }
            b"/chunks" => {
                let mut parts = 0;
                while let Some(chunk) = request.chunk().await {
                    parts += 1;
                    request.replace_body(&chunk.to_ascii_uppercase())?;
                }
                request.set_header(self.seen, parts.to_string());
            }
            b"/first" => {
                let first = request.chunk().await;
                request.set_header(self.seen, first.unwrap_or_default());
            }
            b"/call-body" => {
                let answer = Call::get("scan", "/").send().await?;
                let body = request.body(100).await?;
                request.replace_body(&[answer.body(), &body].concat())?;
            }
            b"/body-call" => {
                let body = request.body(100).await?;
                let answer = Call::post("scan", "/").body(&body).send().await?;
                request.set_header(self.seen, answer.body());
                if answer.status() != 200 {
                    return Err(Reply::new(403));
                }
                assert_eq!(request.replace_body(b"x"), Err(Late));
            }
            b"/chunk-call" => {
                let mut seen = Vec::new();
                while let Some(chunk) = request.chunk().await {
                    Call::post("scan", "/").body(&chunk).send().await?;
                    seen.push(b'|');
                    seen.extend(chunk);
                }
                request.set_header(self.seen, seen);
            }
            b"/impatient" => {
                let part = futures_util::future::select(Box::pin(request.body(100)), sleep(MS)).await;
                let early = matches!(part, futures_util::future::Either::Right(_));
                drop(part);
                let rest = request.body(100).await?;
                request.set_header(self.seen, format!("{early} {}", rest.len()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn on_response(&self, response: &mut Incoming<Response>, _: &()) -> Result<(), Reply> {
        let body = response.body(20).await?;
        response.replace_body(&body.repeat(2))?;
        Ok(())
    }
}

fn host() -> TestHost<Bodies> {
    TestHost::new(json!({})).unwrap()
}

#[test]
fn whole_body_is_held_until_complete() {
    let host = host();
    let stream = host.request("POST", "/whole").streaming().send();
    assert!(stream.continued(), "the headers continue so that the body arrives");
    stream.send_body(b"one ", false);
    assert!(!stream.continued());
    stream.send_body(b"two", true);
    assert!(stream.continued());
    assert_eq!(stream.request_header("x-seen"), Some("one two"));
    assert_eq!(stream.request_body(), b"ONE TWO");
}

#[test]
fn too_long_body_is_detected_early() {
    let host = host();
    let stream = host.request("POST", "/whole").streaming().send();
    stream.send_body(b"0123456789", false);
    assert_eq!(stream.status(), None);
    stream.send_body(b"0", false);
    assert_eq!((stream.status(), stream.details()), (Some(413), Some("body_too_large")));
    assert_eq!(stream.request_body(), b"");
}

#[test]
fn missing_body_reads_as_empty() {
    let host = host();
    for path in ["/whole", "/chunks", "/first"] {
        let stream = host.request("GET", path).send();
        assert!(stream.continued(), "{path}");
    }
}

#[test]
fn parts_continue_one_by_one() {
    let host = host();
    let stream = host.request("POST", "/chunks").streaming().send();
    stream.send_body(b"one ", false);
    assert_eq!(stream.request_body(), b"ONE ");
    stream.send_body(b"two", false);
    stream.send_body(b"", true);
    assert_eq!((stream.request_header("x-seen"), stream.request_body()), (Some("2"), &b"ONE TWO"[..]));
}

#[test]
fn unread_body_passes_unseen() {
    let host = host();
    let stream = host.request("POST", "/first").streaming().send();
    stream.send_body(b"one", false);
    stream.send_body(b"two", true);
    assert_eq!((stream.request_header("x-seen"), stream.request_body()), (Some("one"), &b"onetwo"[..]));
}

#[test]
fn trailers_end_a_body() {
    let host = host();
    for (path, expected) in [("/whole", &b"ONE"[..]), ("/chunks", b"ONE")] {
        let stream = host.request("POST", path).streaming().send();
        stream.send_body(b"one", false);
        stream.send_trailers();
        assert!(stream.continued(), "{path}");
        assert_eq!(stream.request_body(), expected, "{path}");
    }
}

#[test]
fn call_before_the_body_holds_the_headers() {
    let host = host();
    let stream = host.request("POST", "/call-body").body("body").send();
    assert!(!stream.continued());
    host.answer(1, Scripted::answer(200).body("call+"));
    assert_eq!((stream.continued(), stream.request_body()), (true, &b"call+body"[..]));
}

#[test]
fn call_after_the_body_decides_but_cannot_change_it() {
    let host = host();
    let stream = host.request("POST", "/body-call").body("body").send();
    assert!(!stream.continued());
    assert_eq!(host.calls()[0].body, b"body");
    host.answer(1, Scripted::answer(200).body("fine"));
    assert_eq!((stream.continued(), stream.request_body()), (true, &b"body"[..]));

    let refused = host.request("POST", "/body-call").body("body").send();
    host.answer(2, Scripted::answer(400));
    assert_eq!((refused.status(), refused.request_body()), (Some(403), &b""[..]));
}

#[test]
fn body_received_during_a_call_is_kept() {
    let host = host();
    let stream = host.request("POST", "/chunk-call").streaming().send();
    stream.send_body(b"a", false);
    stream.send_body(b"b", false);
    assert_eq!(stream.request_body(), b"", "held while the filter waits");
    host.answer(1, Scripted::answer(200));
    assert_eq!(host.calls()[0].body, b"b");
    stream.send_body(b"c", true);
    host.answer(2, Scripted::answer(200));
    host.answer(3, Scripted::answer(200));
    assert!(stream.continued());
    assert_eq!((stream.request_header("x-seen"), stream.request_body()), (Some("|a|b|c"), &b"abc"[..]));

    let slow = host.request("POST", "/chunk-call").streaming().send();
    slow.send_body(b"a", false);
    host.answer(4, Scripted::answer(200));
    assert_eq!(slow.request_body(), b"a", "the part continues when the next one is awaited");
    slow.send_body(b"", true);
    assert_eq!(slow.request_header("x-seen"), Some("|a"));
}

#[test]
fn wait_for_the_body_can_be_dropped() {
    let host = host();
    let stream = host.request("POST", "/impatient").streaming().send();
    stream.send_body(b"abc", false);
    host.advance(MS);
    stream.send_body(b"def", true);
    assert_eq!(stream.request_header("x-seen"), Some("true 6"));
    assert_eq!(stream.request_body(), b"abcdef");
}

#[test]
fn responses_have_bodies_too() {
    let host = host();
    let stream = host.request("GET", "/").send();
    stream.respond_head(200, &[]);
    stream.respond_body(b"ab", false);
    assert_eq!(stream.response_body(), b"");
    stream.respond_body(b"c", true);
    assert_eq!(stream.response_body(), b"abcabc");
}

/// SplitMix64.
fn dice(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33
}

#[test]
fn any_order_of_parts_and_answers_loses_duplicates_and_blocks_nothing() {
    for seed in 0..300 {
        let (mut state, host) = (seed, host());
        let path = ["/chunk-call", "/call-body", "/body-call", "/chunks", "/impatient"][seed as usize % 5];
        let parts: Vec<Vec<u8>> = (0..1 + dice(&mut state) % 6)
            .map(|_| (0..dice(&mut state) % 4).map(|_| b'a' + (dice(&mut state) % 26) as u8).collect())
            .collect();
        let (mut next, mut ended) = (0, false);
        let stream = host.request("POST", path).streaming().send();
        while !ended || !host.calls().is_empty() || stream.waits().is_some() {
            match dice(&mut state) % 3 {
                0 if next < parts.len() => {
                    let trailers = next + 1 == parts.len() && seed % 2 == 0;
                    stream.send_body(&parts[next], next + 1 == parts.len() && !trailers);
                    next += 1;
                    if trailers {
                        stream.send_trailers();
                    }
                    ended = next == parts.len();
                }
                1 => {
                    if let Some(call) = host.calls().first() {
                        host.answer(call.id, Scripted::answer(200));
                    }
                }
                _ => host.advance(MS),
            }
        }
        let body = parts.concat();
        assert!(stream.continued(), "{path} with seed {seed} is stuck");
        let expected = if path == "/chunks" { body.to_ascii_uppercase() } else { body.clone() };
        assert_eq!(stream.request_body(), expected, "{path} with seed {seed}");
        let seen = stream.request_header("x-seen").unwrap_or_default();
        match path {
            "/chunk-call" => assert_eq!(seen.replace('|', "").as_bytes(), body, "seed {seed}"),
            "/impatient" => {
                let rest = if seen.starts_with("true") { body.len() } else { 0 };
                assert!(seen.ends_with(&format!(" {rest}")), "seed {seed}: {seen}");
            }
            _ => {}
        }
    }
}
