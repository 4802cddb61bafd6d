//! gRPC calls: awaited, streaming and with callbacks; and replies to gRPC clients.

use std::{cell::RefCell, time::Duration};

use serde_json::json;
use tollgate_sdk::{
    Answer, Call, CallError, GrpcCall, GrpcError,
    grpc::code,
    prelude::*,
    testing::{Scripted, TestHost},
};

/// Asks a service whether a user is allowed.
struct Check {
    user: Name,
}

impl AsyncFilter for Check {
    type Config = ();
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Check { user: setup.name("x-user") })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        let mut buffer = Buffer::new();
        let user = request.header(self.user, &mut buffer).unwrap_or_default();
        let call = GrpcCall::new("auth", "test.Auth", "Check").metadata("x-from", "proxy");
        match call.timeout(Duration::from_millis(300)).send(user).await {
            Ok(name) => {
                request.set_header(self.user, name);
                Ok(())
            }
            Err(GrpcError { status: code::PERMISSION_DENIED, message }) => {
                Err(Reply::new(403).grpc_status(7).body(message))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[test]
fn call_is_awaited() {
    let host = TestHost::<Check>::new(json!({})).unwrap();
    host.grpc_service("auth", |call| {
        assert_eq!((&*call.service, &*call.method), ("test.Auth", "Check"));
        assert_eq!(call.metadata, [("x-from".to_string(), b"proxy".to_vec())]);
        match call.messages[0].as_slice() {
            b"ann" => Ok(b"Ann".to_vec()),
            _ => Err(GrpcError { status: code::PERMISSION_DENIED, message: "not you".into() }),
        }
    });
    let ann = host.request("GET", "/").header("x-user", "ann").send();
    assert_eq!((ann.continued(), ann.request_header("x-user")), (true, Some("Ann")));
    let bob = host.request("GET", "/").header("x-user", "bob").send();
    assert_eq!((bob.status(), bob.grpc_status()), (Some(403), Some(7)));
    assert_eq!(bob.reply_body(), Some(&b"not you"[..]));
}

#[test]
fn failed_call_becomes_a_reply() {
    let host = TestHost::<Check>::new(json!({})).unwrap();
    let late = host.request("GET", "/").send();
    let ended = host.request("GET", "/").send();
    assert!(!late.continued());
    let calls = host.grpc_calls();
    host.grpc_close(calls[1].id, code::UNIMPLEMENTED, "");
    assert_eq!((ended.status(), ended.details()), (Some(503), Some("grpc_callout_unimplemented")));
    host.advance(Duration::from_millis(300));
    assert_eq!((late.status(), late.details()), (Some(504), Some("grpc_callout_deadline_exceeded")));

    let host = TestHost::<Check>::with_clusters(json!({}), Some(&["web"])).unwrap();
    let nobody = host.request("GET", "/").send();
    assert_eq!((nobody.status(), nobody.details()), (Some(503), Some("grpc_callout_unavailable")));
}

#[test]
fn call_is_cancelled_when_its_stream_ends() {
    let host = TestHost::<Check>::new(json!({})).unwrap();
    let gone = host.request("GET", "/").send();
    assert_eq!(host.grpc_calls().len(), 1);
    drop(gone);
    assert_eq!(host.grpc_calls(), []);
}

/// Sends each word of a header, and joins the answers.
struct Words {
    words: Name,
    seen: RefCell<Vec<String>>,
}

impl AsyncFilter for Words {
    type Config = ();
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Words { words: setup.name("x-words"), seen: RefCell::default() })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        let mut buffer = Buffer::new();
        let words = request.header(self.words, &mut buffer).unwrap_or_default();
        let mut stream = GrpcCall::new("words", "test.Words", "Join").open()?;
        for word in words.split(|b| *b == b' ') {
            assert!(stream.send(word));
        }
        stream.finish();
        assert!(!stream.send("too late"));
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            self.seen.borrow_mut().push(String::from_utf8(message.clone()).unwrap());
            all.extend(message);
        }
        assert_eq!(stream.initial_metadata("x-begin").as_deref(), Some(&b"yes"[..]));
        all.extend(stream.trailing_metadata("x-end").unwrap_or_default());
        request.set_header(self.words, all);
        Ok(())
    }
}

#[test]
fn stream_is_bidirectional() {
    let host = TestHost::<Words>::new(json!({})).unwrap();
    let outcome = host.request("GET", "/").header("x-words", "a b").send();
    let call = host.grpc_calls().remove(0);
    assert_eq!(call.messages, [b"a", b"b"]);
    assert!(call.ended);
    host.grpc_metadata(call.id, false, &[("x-begin", "yes")]);
    host.grpc_message(call.id, "1");
    host.grpc_message(call.id, "");
    host.grpc_message(call.id, "2");
    assert!(!outcome.continued());
    host.grpc_metadata(call.id, true, &[("x-end", "3")]);
    host.grpc_close(call.id, code::OK, "");
    assert!(outcome.continued());
    assert_eq!(outcome.request_header("x-words"), Some("123"));

    let broken = host.request("GET", "/").header("x-words", "a").send();
    let call = host.grpc_calls().remove(0);
    host.grpc_message(call.id, "1");
    host.grpc_close(call.id, code::ABORTED, "enough");
    assert_eq!((broken.status(), broken.details()), (Some(503), Some("grpc_callout_aborted")));
}

/// The same with callbacks: first a gRPC call, then an HTTP call.
struct Steps {
    user: Name,
}

#[derive(Default)]
struct Stream {
    name: Vec<u8>,
}

impl Filter for Steps {
    type Config = ();
    type Stream = Stream;
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::ANSWERS);

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Steps { user: setup.name("x-user") })
    }

    fn on_request(&self, request: &Request, _: &mut Stream) -> Flow {
        let mut buffer = Buffer::new();
        match request.header(self.user, &mut buffer) {
            Some(user) => GrpcCall::new("auth", "test.Auth", "Check").ask(user, 7),
            None => Call::get("missing", "/").ask(8),
        }
    }

    fn on_grpc_answer(&self, token: u32, answer: Result<Vec<u8>, GrpcError>, _: &Request, stream: &mut Stream) -> Flow {
        assert_eq!(token, 7);
        match answer {
            Ok(name) => {
                stream.name = name;
                Call::get("log", "/seen").ask(9)
            }
            Err(error) => Reply::from(error).into(),
        }
    }

    fn on_answer(&self, token: u32, answer: Result<Answer, CallError>, request: &Request, stream: &mut Stream) -> Flow {
        match (token, answer) {
            (9, Ok(answer)) if answer.status() == 200 => {
                request.set_header(self.user, &stream.name);
                Flow::Continue
            }
            (_, Err(error)) => Reply::from(error).into(),
            _ => Reply::new(500).into(),
        }
    }
}

#[test]
fn answers_are_delivered_to_callbacks_of_their_streams() {
    let host = TestHost::<Steps>::new(json!({})).unwrap();
    let (ann, bob) =
        (host.request("GET", "/").header("x-user", "ann"), host.request("GET", "/").header("x-user", "bob"));
    let (ann, bob) = (ann.send(), bob.send());
    assert!(!ann.continued() && !bob.continued());
    let calls = host.grpc_calls();
    host.grpc_message(calls[1].id, "Bob");
    host.grpc_message(calls[0].id, "Ann");
    host.answer(host.calls()[1].id, Scripted::answer(200));
    assert_eq!((bob.continued(), ann.continued(), ann.request_header("x-user")), (false, true, Some("Ann")));
    host.answer(host.calls()[0].id, Scripted::fail(CallError::Timeout));
    assert_eq!(bob.status(), Some(504));

    let unknown = host.request("GET", "/").send();
    assert_eq!((unknown.status(), unknown.details()), (Some(503), Some("callout_unknown_cluster")));

    let gone = host.request("GET", "/").header("x-user", "carl").send();
    let call = host.grpc_calls().remove(0);
    drop(gone);
    host.grpc_message(call.id, "Carl");
    assert!(host.calls().is_empty(), "the stream has ended");
}
