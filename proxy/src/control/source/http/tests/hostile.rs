//! Servers that send too much, too slowly, or forever.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{Rig, with};

/// Writes a part again and again until the client has closed the connection. Returns the number of bytes that it took.
async fn flood(rig: &mut Rig, part: &[u8]) -> usize {
    let mut written = 0;
    while rig.write(part).await {
        written += part.len();
        assert!(written < 32 << 20, "the client reads everything");
    }
    rig.close();
    written
}

#[tokio::test(start_paused = true)]
async fn endless_informational_heads_are_an_error() {
    for reused in [false, true] {
        with(json!({}), async |mut rig| {
            if reused {
                rig.start().await;
            }
            rig.request().await;
            rig.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            let written = flood(&mut rig, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
            assert!(written < 2 << 20, "{written} bytes");
            let next = rig.request().await;
            assert!(rig.last_error().contains("the head is too large"), "{}", rig.last_error());
            assert_eq!((rig.attempts(), next.connection), (1, 2), "no second attempt without a wait");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn informational_heads_before_an_answer_are_skipped() {
    with(json!({}), async |mut rig| {
        rig.request().await;
        rig.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
        rig.full("\"1\"", "{}").await;
        assert_eq!(rig.apply().await, "{}");
        assert_eq!(rig.request().await.connection, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn endless_or_giant_heads_are_an_error() {
    let giant = format!("X: {}\r\n", "x".repeat(70_000));
    for (part, error) in [(&b"X: y\r\n"[..], "head"), (b"xxxxxxxx", "head"), (giant.as_bytes(), "head")] {
        for reused in [false, true] {
            with(json!({}), async |mut rig| {
                if reused {
                    rig.start().await;
                }
                rig.request().await;
                rig.write("HTTP/1.1 200 OK\r\n").await;
                assert!(flood(&mut rig, part).await < 2 << 20);
                let next = rig.request().await;
                assert!(rig.last_error().contains(error), "{}", rig.last_error());
                assert_eq!((rig.attempts(), next.connection), (1, 2));
            })
            .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn head_that_arrives_slowly_is_awaited_no_longer() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        let asked = rig.request().await;
        let dripping = async {
            for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n".iter().cycle() {
                if !rig.write([*byte]).await {
                    break;
                }
                sleep(Duration::from_secs(7)).await;
            }
        };
        dripping.await;
        rig.close();
        let next = rig.request().await;
        assert_eq!(rig.last_error(), "the server did not answer within 40s");
        assert!(next.at < asked.at + Duration::from_secs(60));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn body_that_arrives_slowly_is_awaited_for_a_minute() {
    for head in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
        with(json!({}), async |mut rig| {
            rig.start().await;
            let asked = rig.request().await;
            rig.write(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}\r\n\r\n")).await;
            while rig.write("1\r\nx\r\n").await {
                sleep(Duration::from_secs(1)).await;
            }
            rig.close();
            let next = rig.request().await;
            assert_eq!(rig.last_error(), "the server's answer did not arrive completely within 60s");
            let pause = next.at - asked.at;
            assert!(pause >= Duration::from_secs(60) && pause < Duration::from_secs(62), "{pause:?}");
            assert_eq!(next.version(), Some("\"1\""));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn endless_delta_is_an_error_and_leads_to_a_request_for_the_full_state() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        rig.request().await;
        let head = "HTTP/1.1 226 IM Used\r\nContent-Type: application/json\r\nIM: resources\r\nETag: \"2\"\r\n";
        rig.write(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await;
        let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
        let written = flood(&mut rig, chunk.as_bytes()).await;
        assert!((16 << 20..18 << 20).contains(&written), "{written} bytes");
        let next = rig.request().await;
        assert!(rig.last_error().contains("too large: at most 16 MiB"), "{}", rig.last_error());
        assert_eq!(next.version(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn endless_body_of_an_error_response_is_not_read() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        rig.request().await;
        rig.write("HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let written = flood(&mut rig, b"10\r\n0123456789abcdef\r\n").await;
        assert!(written < 2 << 20, "{written} bytes");
        rig.request().await;
        assert_eq!(rig.last_error(), "the server answered 500 Internal Server Error");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bytes_after_an_answer_are_not_part_of_the_next_one() {
    with(json!({}), async |mut rig| {
        rig.request().await;
        rig.full("\"1\"", "{}").await;
        rig.full("\"2\"", "{\"clusters\":[]}").await;
        assert_eq!(rig.apply().await, "{}");
        let next = rig.request().await;
        assert_eq!((next.version(), next.connection), (Some("\"1\""), 2));
    })
    .await;
}
