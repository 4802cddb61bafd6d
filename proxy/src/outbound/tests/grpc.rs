//! gRPC calls, and servers that end them in all ways.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;

use super::{
    super::{Call, CallError, Error, Protocol},
    LONG, Listening, listen, local, serve, told,
};
use crate::http::grpc::framed;

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn call(path: &'static str) -> Call {
    let token = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static("Bearer x"))]);
    Call { path, metadata: token, max_message: 100 }
}

/// An answer with these pieces of a body, and trailers.
fn answer(pieces: Vec<Vec<u8>>, trailers: &[(&'static str, &str)]) -> Answer {
    let trailers: HeaderMap =
        trailers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let last = (!trailers.is_empty()).then(|| Frame::trailers(trailers));
    let frames = pieces.into_iter().map(|piece| Frame::data(Bytes::from(piece))).chain(last).map(Ok);
    // What is left open after the frames would be the end of the stream.
    let body = StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<Result<_, Infallible>>>()));
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(body.boxed()).unwrap()
}

fn ended(pieces: Vec<Vec<u8>>) -> Answer {
    answer(pieces, &[("grpc-status", "0")])
}

fn reply(request: &Request<Incoming>) -> Answer {
    let headers = request.headers();
    assert_eq!(headers["te"], "trailers");
    assert_eq!(headers["content-type"], "application/grpc");
    assert_eq!(headers["authorization"], "Bearer x");
    let two = [framed(b"one"), framed(b"two")].concat();
    match request.uri().path() {
        "/a.S/Timeout" => ended(vec![framed(headers["grpc-timeout"].as_bytes())]),
        "/a.S/One" => ended(vec![framed(b"one")]),
        "/a.S/Two" => ended(vec![two]),
        "/a.S/Split" => ended(two.chunks(3).map(<[u8]>::to_vec).collect()),
        "/a.S/None" => ended(vec![]),
        "/a.S/Denied" => answer(vec![], &[("grpc-status", "7"), ("grpc-message", "not%20you")]),
        "/a.S/Late" => answer(vec![framed(b"one")], &[("grpc-status", "14"), ("grpc-message", "gone")]),
        "/a.S/Strange" => answer(vec![framed(b"one")], &[("grpc-status", "99")]),
        "/a.S/Silent" => answer(vec![framed(b"one")], &[("x", "y")]),
        "/a.S/Cut" => ended(vec![framed(b"one"), b"\0\0\0\0\x09x".to_vec()]),
        "/a.S/Packed" => ended(vec![b"\x01\0\0\0\0".to_vec()]),
        "/a.S/Large" => ended(vec![framed(&[b'x'; 101])]),
        "/a.S/Short" => {
            let mut short = answer(vec![], &[]);
            short.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
            short
        }
        "/a.S/Empty" => {
            let mut empty = answer(vec![], &[]);
            empty.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
            empty
        }
        "/a.S/Html" => Response::new(answer(vec![b"<p>".to_vec()], &[]).into_body()),
        _ => {
            let mut unavailable = Response::new(answer(vec![], &[]).into_body());
            *unavailable.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            unavailable
        }
    }
}

async fn start() -> Listening {
    listen(|io, _| serve(io, true, |request| reply(&request))).await
}

#[tokio::test]
async fn unary_call_returns_the_message_or_the_status() {
    local(async || {
        let mut client = start().await.client(Protocol::Http2);
        let time = Duration::from_secs(15);
        for (path, expected) in [
            ("/a.S/One", Ok("one")),
            ("/a.S/Timeout", Ok("15000000u")),
            ("/a.S/Two", Err("INTERNAL: the answer has more than one message")),
            ("/a.S/None", Err("INTERNAL: the answer has no message")),
            ("/a.S/Empty", Err("INTERNAL: the answer has no message")),
            ("/a.S/Denied", Err("PERMISSION_DENIED: not you")),
            ("/a.S/Late", Err("UNAVAILABLE: gone")),
            ("/a.S/Strange", Err("99")),
            ("/a.S/Silent", Err("UNKNOWN: the answer has no status")),
            ("/a.S/Short", Err("NOT_FOUND")),
            ("/a.S/Cut", Err("INTERNAL: the answer ends within a message")),
            ("/a.S/Packed", Err("UNIMPLEMENTED: the message is compressed")),
            ("/a.S/Large", Err("RESOURCE_EXHAUSTED: the message is too large")),
            ("/a.S/Html", Err("UNKNOWN: the answer is not application/grpc")),
            ("/a.S/Other", Err("UNAVAILABLE: the answer's HTTP status is 503")),
        ] {
            match (client.unary(&call(path), b"", time).await, expected) {
                (Ok(message), Ok(text)) => assert_eq!(message, text, "{path}"),
                (Err(error), Err(text)) => assert!(error.to_string().starts_with(text), "{path}: {error}"),
                (result, _) => panic!("{path}: {result:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn stream_returns_its_messages_and_then_the_status() {
    local(async || {
        let listening = start().await;
        let mut client = listening.client(Protocol::Http2);
        for path in ["/a.S/Two", "/a.S/Split"] {
            // Both are open at the same time.
            let mut other = client.server_stream(&call("/a.S/Late"), b"", LONG).await.unwrap();
            let mut messages = client.server_stream(&call(path), b"", LONG).await.unwrap();
            assert_eq!(messages.next(None).await.unwrap().as_deref(), Some(&b"one"[..]));
            assert_eq!(messages.next(Some(LONG)).await.unwrap().as_deref(), Some(&b"two"[..]));
            assert_eq!(messages.next(None).await.unwrap(), None);
            assert_eq!(other.next(None).await.unwrap().as_deref(), Some(&b"one"[..]));
            assert_eq!(other.next(None).await.unwrap_err().to_string(), "UNAVAILABLE: gone");
        }
        assert_eq!(listening.connections.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn stream_that_is_idle_or_reset_is_an_error() {
    local(async || {
        for (is_reset, expected) in [(false, "did not arrive completely within 50ms"), (true, "INTERNAL: ")] {
            let listening = listen(move |io, _| {
                serve(io, true, move |_| {
                    let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from(framed(b"one"))))]);
                    let rest = futures_util::stream::poll_fn(move |_| match is_reset {
                        true => std::task::Poll::Ready(Some(Err(std::io::Error::other("broken")))),
                        false => std::task::Poll::Pending,
                    });
                    let body = StreamBody::new(futures_util::StreamExt::chain(first, rest));
                    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
                })
            })
            .await;
            let mut client = listening.client(Protocol::Http2);
            let calling = async {
                let mut messages = client.server_stream(&call("/a.S/Watch"), b"", LONG).await?;
                drop(client);
                let mut received = 0;
                while messages.next(Some(Duration::from_millis(50))).await?.is_some() {
                    received += 1;
                }
                Ok::<i32, CallError>(received)
            };
            let error = calling.await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn call_over_http1_is_an_error() {
    local(async || {
        let listening = listen(|io, _| serve(io, false, |request| told(&request))).await;
        let error = listening.client(Protocol::Http1).unary(&call("/a.S/One"), b"", LONG).await.unwrap_err();
        assert!(matches!(error, CallError::Client(Error::Invalid(_))), "{error}");
        assert!(error.to_string().contains("gRPC needs HTTP/2"), "{error}");
    })
    .await;
}
