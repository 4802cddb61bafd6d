//! Which answers are refused, and what is asked for next.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc::error::TryRecvError;

use super::{super::Verdict, with};

const JSON: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
const DELTA: &str = "HTTP/1.1 226 IM Used\r\nContent-Type: application/json\r\n";

/// Answers that are refused: the bytes, and a part of the error. The connection is closed after them.
const REFUSED: [(&str, &str, &str); 23] = [
    (
        "",
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nbusy\n",
        "answered 503 Service Unavailable: \"busy\"",
    ),
    ("", "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "answered 401 Unauthorized"),
    ("", "HTTP/1.1 204 No Content\r\n\r\n", "answered 204 No Content"),
    ("", "HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\n{}", "answered 206 Partial Content"),
    (
        "",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "answered 101 Switching Protocols",
    ),
    (
        "",
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        "answered 302 Found to `http://127.0.0.1:1/`; redirects are not followed",
    ),
    ("", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no Content-Type: \"{}\""),
    ("", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n<p>", "`text/html`, neither"),
    (JSON, "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "encoded (`Content-Encoding: gzip`)"),
    (JSON, "ETag: \"2\"\r\n\r\n{}", "neither Content-Length nor chunked encoding"),
    (JSON, "ETag: v2\r\nContent-Length: 2\r\n\r\n{}", "ETag `v2` is invalid"),
    (JSON, "ETag: *\r\nContent-Length: 2\r\n\r\n{}", "ETag `*` is invalid"),
    (JSON, "Content-Length: 0\r\n\r\n", "document is empty"),
    (JSON, "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "document is empty"),
    (JSON, "Content-Length: 268435457\r\n\r\n{", "too large: at most 256 MiB are allowed for a full state"),
    (JSON, "ETag: \"2\"\r\nContent-Length: 10\r\n\r\n{}", "incomplete"),
    (JSON, "ETag: \"2\"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "incomplete"),
    (JSON, "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "invalid"),
    (JSON, "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", "incomplete"),
    ("", "HTTP/1.1 200\r\nbroken\r\n\r\n", "invalid"),
    ("", "SSH-2.0-OpenSSH_9.2p1\r\n", "invalid"),
    ("", "HTTP/2.0 200 OK\r\n\r\n", "invalid"),
    (DELTA, "IM: resources\r\nETag: \"2\"\r\nContent-Length: 9\r\n\r\n{}", "incomplete"),
];

/// Deltas that cannot be applied.
const DELTAS: [(&str, &str); 7] = [
    ("ETag: \"2\"\r\nContent-Length: 2\r\n\r\n{}", "answered 226 with `IM: `"),
    ("IM: vcdiff\r\nETag: \"2\"\r\nContent-Length: 2\r\n\r\n{}", "answered 226 with `IM: vcdiff`"),
    ("IM: resources, gzip\r\nETag: \"2\"\r\nContent-Length: 2\r\n\r\n{}", "answered 226 with `IM: resources, gzip`"),
    ("IM: resources\r\nContent-Length: 2\r\n\r\n{}", "226 without an ETag"),
    (
        "IM: resources\r\nDelta-Base: \"0\"\r\nETag: \"2\"\r\nContent-Length: 2\r\n\r\n{}",
        "based on version \"0\", but the proxy has \"1\"",
    ),
    (
        "IM: resources\r\nETag: \"2\"\r\nContent-Length: 16777217\r\n\r\n{",
        "too large: at most 16 MiB are allowed for a delta",
    ),
    ("IM: resources\r\nETag: \"2\"\r\nContent-Length: 0\r\n\r\n", "document is empty"),
];

#[tokio::test(start_paused = true)]
async fn refused_answer_is_an_error_and_the_applied_version_stays() {
    for (head, rest, error) in REFUSED {
        with(json!({}), async |mut rig| {
            rig.start().await;
            rig.request().await;
            let before = rig.status.state().last_answer;
            rig.write(format!("{head}{rest}")).await;
            rig.close();
            let next = rig.request().await;
            assert!(rig.last_error().contains(error), "{head}{rest}: {}", rig.last_error());
            assert_eq!(next.version(), Some("\"1\""), "{head}{rest}");
            assert_eq!((rig.attempts(), rig.status.state().last_answer), (1, before), "{head}{rest}");
            assert_eq!(rig.fetched.try_recv().unwrap_err(), TryRecvError::Empty, "{head}{rest}");
            rig.answer("304 Not Modified", "").await;
            rig.request().await;
            assert_eq!((rig.attempts(), rig.count("failed"), rig.count("unchanged")), (0, 1, 1));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn delta_that_cannot_be_applied_leads_to_a_request_for_the_full_state() {
    for (rest, error) in DELTAS {
        with(json!({}), async |mut rig| {
            rig.start().await;
            let asked = rig.request().await;
            rig.write(format!("{DELTA}{rest}")).await;
            rig.close();
            let next = rig.request().await;
            assert!(rig.last_error().contains(error), "{rest}: {}", rig.last_error());
            assert_eq!((next.version(), next.header("a-im")), (None, None), "{rest}");
            assert!(next.at <= asked.at + Duration::from_secs(6), "{rest}");
            assert_eq!(rig.fetched.try_recv().unwrap_err(), TryRecvError::Empty, "{rest}");
            rig.full("\"3\"", "{}").await;
            assert_eq!(rig.apply().await, "{}");
            assert_eq!(rig.request().await.version(), Some("\"3\""));
            assert_eq!(rig.attempts(), 0);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_need_a_version_are_refused_without_one() {
    with(json!({}), async |mut rig| {
        for (head, error) in [
            ("304 Not Modified", "answered 304 to a request without If-None-Match"),
            (
                "226 IM Used\nContent-Type: application/json\nIM: resources\nETag: \"1\"",
                "answered 226 to a request without A-IM",
            ),
        ] {
            assert_eq!(rig.request().await.version(), None);
            rig.answer(head, "{}").await;
            while !rig.last_error().contains(error) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            rig.close();
        }
        assert_eq!(rig.request().await.version(), None);
        assert_eq!(rig.attempts(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unusable_document_leads_to_a_request_for_the_full_state() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        for is_delta in [true, false, false] {
            rig.request().await;
            match is_delta {
                true => rig.delta("\"2\"", "{}").await,
                false => rig.full("\"2\"", "nonsense").await,
            }
            let document = rig.document().await;
            assert_eq!(document.is_delta, is_delta);
            document.verdict.send(Verdict::Unusable("line 1: nonsense".to_owned())).unwrap();
            while rig.last_error() != "the document is unusable: line 1: nonsense" {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let next = rig.request().await;
        assert_eq!((next.version(), rig.attempts()), (None, 3));
        rig.answer("200 OK\nContent-Type: application/json", "{}").await;
        drop(rig.document().await);
        let next = rig.request().await;
        assert_eq!((next.version(), &*rig.last_error()), (None, "the document is unusable: it was dropped"));
        rig.answer("200 OK\nContent-Type: application/json", "{}").await;
        assert_eq!(rig.apply().await, "{}", "what was not applied is not known");
        rig.request().await;
        assert_eq!(rig.attempts(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn closed_connection_is_opened_again_without_an_error() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        let asked = rig.request().await;
        rig.close();
        let next = rig.request().await;
        assert_eq!((next.at, next.connection, next.version()), (asked.at, 2, Some("\"1\"")));
        assert_eq!((rig.attempts(), rig.count("failed")), (0, 0));
        rig.answer("304 Not Modified\nConnection: close", "").await;
        rig.close();
        let next = rig.request().await;
        assert_eq!((next.connection, rig.attempts()), (3, 0));
        rig.answer("304 Not Modified", "").await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        // While no request is pending.
        rig.close();
        let next = rig.request().await;
        assert_eq!((next.connection, rig.attempts()), (4, 0));
        // A new connection that is closed without an answer is a failure.
        rig.close();
        let next = rig.request().await;
        assert_eq!((next.connection, rig.attempts()), (5, 1));
        assert!(rig.last_error().contains("connection closed"), "{}", rig.last_error());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn server_that_cannot_be_reached_is_an_error() {
    with(json!({}), async |mut rig| {
        rig.script.arriving.close();
        while rig.attempts() < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(rig.last_error(), "`control.test` has no address");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn client_ends_when_documents_are_not_expected_any_more() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        rig.request().await;
        rig.fetched.close();
        drop(rig.fetched);
        let open = rig.script.open.as_mut().unwrap();
        assert_eq!(tokio::io::AsyncReadExt::read(open, &mut [0]).await.unwrap(), 0, "the connection is closed");
        assert!(rig.script.arriving.recv().await.is_none(), "no other connection is opened");
    })
    .await;
}
