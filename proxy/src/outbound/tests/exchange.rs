//! Requests, answers that break off or never end, redirects, and connections that close.

use std::{cell::RefCell, convert::Infallible, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use tokio::io::AsyncWriteExt;

use super::{
    super::{BodyError, Error, Protocol, body::read_all},
    LONG, ask, get, head, listen, local, ok, raw, serve, told,
};

/// A time in which nothing is expected to happen.
const SHORT: Duration = Duration::from_millis(50);

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Starts a server that writes these bytes for each request, and then closes the connection or leaves it open.
async fn writing(bytes: &'static str, closes: bool) -> super::Listening {
    listen(move |mut stream, _| async move {
        while head(&mut stream).await.is_some() {
            let _ = stream.write_all(bytes.as_bytes()).await;
            if closes {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn body_that_is_not_complete_or_too_large_is_an_error() {
    local(async || {
        for (bytes, closes, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789", true, Ok("0123456789")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n012345678", true, Err("is incomplete: ")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", false, Err("at most 10 bytes")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0", false, Err("did not answer within 50ms")),
            ("HTTP/1.1 200 OK\r\n\r\n0123", true, Err("neither Content-Length nor chunked")),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n0123", true, Err("neither Content-Length nor chunked")),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, Ok("")),
            ("5\r\n01234\r\n0\r\n\r\n", false, Ok("01234")),
            ("5\r\n01234\r\n0\r\nX: y\r\n\r\n", false, Ok("01234")),
            ("5\r\n01234\r\n", true, Err("is incomplete: ")),
            ("5\r\n01234\r\n6\r\n012345\r\n", false, Err("at most 10 bytes")),
            ("5\r\n01234\r\n", false, Err("did not answer within 50ms")),
            ("x\r\n", false, Err("is incomplete: ")),
        ] {
            let bytes: &'static str =
                if bytes.starts_with("HTTP") { bytes } else { format!("{CHUNKED}{bytes}").leak() };
            let mut client = writing(bytes, closes).await.client(Protocol::Http1);
            let time = if expected.is_err_and(|error| error.contains("within")) { SHORT } else { LONG };
            let answer = client.fetch(get("/"), time, 10).await;
            match (answer.map(Response::into_body), expected) {
                (Ok(body), Ok(text)) => assert_eq!(body, text, "{bytes}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{bytes}: {error}"),
                (answer, _) => panic!("{bytes}: {answer:?}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_or_missing_head_is_an_error() {
    local(async || {
        let long: &'static str = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000)).leak();
        for (bytes, closes, expected) in [
            ("", true, "connection closed"),
            ("HTTP/1.1 200 OK\r\nContent-Le", true, "the server's answer is invalid or incomplete: "),
            ("SSH-2.0-OpenSSH_9.2\r\n", true, "the server's answer is invalid or incomplete: "),
            (long, false, "the server's answer is invalid or incomplete: "),
            ("", false, "the server did not answer within 50ms"),
        ] {
            let mut client = writing(bytes, closes).await.client(Protocol::Http1);
            let time = if expected.contains("within") { SHORT } else { LONG };
            let error = client.send(get("/"), time).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{:.40}: {error}", bytes);
        }
    })
    .await;
}

#[tokio::test]
async fn connection_is_kept_while_answers_are_read() {
    local(async || {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let is_http2 = protocol == Protocol::Http2;
            let listening = listen(move |io, _| serve(io, is_http2, |request| told(&request))).await;
            let mut client = listening.client(protocol);
            for path in ["/a", "/b"] {
                assert!(ask(&mut client, path).await.unwrap().ends_with(path));
            }
            assert_eq!(listening.connections.get(), 1);
            let unread = client.send(get("/unread"), LONG).await.unwrap();
            if !is_http2 {
                drop(unread);
            }
            assert!(ask(&mut client, "/c").await.unwrap().ends_with("/c"), "{protocol:?}");
            client.close();
            ask(&mut client, "/d").await.unwrap();
            assert!(listening.connections.get() <= 3, "{protocol:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn body_can_be_read_after_its_client_is_gone() {
    local(async || {
        let listening = raw(|_, _| Some(ok("text"))).await;
        let mut client = listening.client(Protocol::Http1);
        let body = client.send(get("/"), LONG).await.unwrap().into_body();
        drop(client);
        assert_eq!(body.read(10, LONG).await.unwrap(), "text");
    })
    .await;
}

#[tokio::test]
async fn request_on_a_closed_connection_is_repeated_only_if_that_is_harmless() {
    local(async || {
        let heads = Rc::<RefCell<Vec<String>>>::default();
        let seen = heads.clone();
        // Each connection answers one request, and closes when it has received another one.
        let listening = listen(move |mut stream, _| {
            let seen = seen.clone();
            async move {
                for answer in [Some(ok("ok")), None] {
                    let Some(head) = head(&mut stream).await else { return };
                    seen.borrow_mut().push(head.lines().next().unwrap().to_owned());
                    if let Some(answer) = answer {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            }
        })
        .await;
        let mut client = listening.client(Protocol::Http1);
        let send = async |client: &mut super::Client, method: Method| {
            let request = Request::builder().method(method).uri("/").body(Bytes::new()).unwrap();
            client.fetch(request, LONG, 10).await
        };
        send(&mut client, Method::GET).await.unwrap();
        send(&mut client, Method::GET).await.unwrap();
        assert_eq!((listening.connections.get(), heads.borrow().len()), (2, 3), "repeated on a new connection");
        let error = send(&mut client, Method::POST).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert_eq!((listening.connections.get(), heads.borrow().len()), (2, 4), "it may have been processed");
        send(&mut client, Method::POST).await.unwrap();
        assert_eq!((listening.connections.get(), heads.borrow().len()), (3, 5));
    })
    .await;
}

#[tokio::test]
async fn redirects_are_answers_unless_they_are_followed() {
    local(async || {
        let listening = raw(|head, _| {
            let path = head.split(' ').nth(1).unwrap();
            let to = match path {
                "/a" => "/b",
                "/b" => "c",
                "/loop" => "/loop",
                "/away" => "http://127.0.0.1:1/",
                _ => return Some(ok(path)),
            };
            Some(format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 5\r\n\r\nmoved"))
        })
        .await;
        let mut client = listening.client(Protocol::Http1);
        let response = client.fetch(get("/a"), LONG, 10).await.unwrap();
        assert_eq!((response.status(), &response.body()[..]), (StatusCode::FOUND, &b"moved"[..]));
        let mut client = listening.client(Protocol::Http1).following(2);
        assert_eq!(ask(&mut client, "/a").await.unwrap(), "/c");
        assert_eq!(listening.connections.get(), 2, "the connection is used again");
        for (path, expected) in [
            ("/loop", "the server redirects to `/loop`, the last of too many redirects"),
            ("/away", "the server redirects to `http://127.0.0.1:1/`, which is another server"),
        ] {
            let error = ask(&mut client, path).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let post = Request::post("/a").body(Bytes::from_static(b"x")).unwrap();
        assert_eq!(client.send(post, LONG).await.unwrap().status(), StatusCode::FOUND, "its body would be sent again");
    })
    .await;
}

#[tokio::test]
async fn http2_answer_that_is_too_large_is_an_error() {
    local(async || {
        let listening =
            listen(|io, _| serve(io, true, |_| Response::new(Full::<Bytes>::from(vec![b'x'; 100_000])))).await;
        let mut client = listening.client(Protocol::Http2);
        let error = client.fetch(get("/"), LONG, 99_999).await.unwrap_err();
        assert!(matches!(error, Error::Body(BodyError::TooLarge(99_999))), "{error}");
        assert_eq!(client.fetch(get("/"), LONG, 100_000).await.unwrap().body().len(), 100_000);
        assert_eq!(listening.connections.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn document_in_pieces_is_joined_up_to_the_limit() {
    let read = async |pieces: &[&'static str], limit| {
        let frames = pieces.iter().map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece.as_bytes()))));
        read_all(StreamBody::new(futures_util::stream::iter(frames)), limit).await.unwrap()
    };
    for (pieces, whole) in [
        (&[][..], ""),
        (&[""], ""),
        (&["abcdef"], "abcdef"),
        (&["ab", "cd", "ef"], "abcdef"),
        (&["", "ab", "", "cdef", ""], "abcdef"),
    ] {
        assert_eq!(read(pieces, 6).await.as_deref(), Some(whole.as_bytes()), "{pieces:?}");
    }
    for pieces in [&["abcdefg"][..], &["abcdef", "g"], &["a", "b", "cdefg"]] {
        assert_eq!(read(pieces, 6).await, None, "{pieces:?}");
    }
}
