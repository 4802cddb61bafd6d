//! What requests say and which answers have changes.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{super::Verdict, resuming, with, with_token};
use crate::config::Format;

#[tokio::test(start_paused = true)]
async fn requests_name_the_applied_version_and_what_was_refused() {
    with(json!({}), async |mut rig| {
        let first = rig.request().await;
        assert!(first.head.starts_with("GET /v1/resources?proxy=a HTTP/1.1\r\n"), "{}", first.head);
        assert_eq!(first.header("host"), Some("control.test:8080"));
        assert_eq!(first.header("accept"), Some("application/json, application/yaml"));
        assert_eq!(first.header("user-agent"), Some(concat!("tollgate/", env!("CARGO_PKG_VERSION"))));
        for name in ["if-none-match", "a-im", "prefer", "authorization", "tollgate-refused"] {
            assert_eq!(first.header(name), None, "{name}");
        }
        rig.full("\"1\"", r#"{"clusters":[]}"#).await;
        let document = rig.document().await;
        assert_eq!((&*document.source, &document.body[..]), ("central", &br#"{"clusters":[]}"#[..]));
        assert_eq!((document.format, document.is_delta), (Format::Json, false));
        assert_eq!(document.etag.as_deref(), Some("\"1\""));
        let refused = ["clusters/a b", "endpoints/x/y,\u{e9}"];
        document.verdict.send(Verdict::Applied { refused: refused.map(str::to_owned).into() }).unwrap();

        let second = rig.request().await;
        assert_eq!(second.version(), Some("\"1\""));
        assert_eq!(second.header("a-im"), Some("resources"));
        assert_eq!(second.header("prefer"), Some("wait=30"));
        assert_eq!(second.header("tollgate-refused"), Some("clusters/a%20b, endpoints/x%2Fy%2C%C3%A9"));
        assert_eq!((second.at, second.connection), (first.at, 1), "asked again immediately, on the same connection");
        rig.answer("304 Not Modified", "").await;

        let third = rig.request().await;
        assert_eq!(
            (third.version(), third.header("tollgate-refused")),
            (second.version(), second.header("tollgate-refused"))
        );
        let head = "226 IM Used
            Content-Type: application/yaml; charset=utf-8
            IM: resources
            Delta-Base: \"1\"
            ETag: W/\"2\"";
        rig.answer(head, "removed: {clusters: [a]}").await;
        let document = rig.document().await;
        assert_eq!((document.format, document.is_delta), (Format::Yaml, true));
        assert_eq!((document.etag.as_deref(), &document.body[..]), (Some("W/\"2\""), &b"removed: {clusters: [a]}"[..]));
        document.verdict.send(Verdict::Applied { refused: Vec::new() }).unwrap();

        let fourth = rig.request().await;
        assert_eq!((fourth.version(), fourth.header("tollgate-refused")), (Some("W/\"2\""), None));
        assert_eq!((fourth.at, fourth.connection), (third.at, 1));
        assert_eq!([rig.count("changed"), rig.count("unchanged"), rig.count("failed")], [2, 1, 0]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn server_that_ignores_the_version_in_requests_is_understood() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        for _ in 0..3 {
            rig.request().await;
            rig.full("\"1\"", "{}").await;
        }
        rig.request().await;
        assert_eq!([rig.count("changed"), rig.count("unchanged")], [1, 3]);
        rig.full("\"2\"", "{}").await;
        rig.apply().await;
        rig.request().await;
        assert_eq!([rig.count("changed"), rig.count("failed")], [2, 0]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn state_without_an_etag_is_compared_by_its_content() {
    let json = "200 OK\nContent-Type: application/json";
    with(json!({}), async |mut rig| {
        let first = rig.request().await;
        rig.answer(json, "{}").await;
        let document = rig.document().await;
        assert_eq!((document.etag, document.is_delta), (None, false));
        document.verdict.send(Verdict::Applied { refused: vec!["clusters/a".to_owned()] }).unwrap();
        let second = rig.request().await;
        assert_eq!((second.at, second.head), (first.at, first.head), "there is no version to name");
        rig.answer(json, "{}").await;
        let third = rig.request().await;
        assert_eq!(third.at, second.at + Duration::from_secs(5), "it was unchanged");
        rig.answer(json, "{} ").await;
        assert_eq!(rig.apply().await, "{} ");
        rig.request().await;
        rig.answer(json, "{}").await;
        assert_eq!(rig.apply().await, "{}", "only the last state counts");
        rig.request().await;
        rig.full("\"1\"", "{}").await;
        assert_eq!(rig.apply().await, "{}", "it has an ETag now");
        assert_eq!(rig.request().await.version(), Some("\"1\""));
        assert_eq!([rig.count("changed"), rig.count("unchanged"), rig.count("failed")], [4, 1, 0]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn list_of_refused_resources_has_at_most_4_kib() {
    with(json!({}), async |mut rig| {
        rig.request().await;
        rig.full("\"1\"", "{}").await;
        // Twelve bytes each, and two between them.
        let long = format!("clusters/{}", "x".repeat(5000));
        let names: Vec<String> = (0..1000).map(|number| format!("clusters/{number:03}")).collect();
        let refused: Vec<&str> = std::iter::once(&*long).chain(names.iter().map(String::as_str)).collect();
        rig.apply_but(&refused).await;
        let request = rig.request().await;
        let list = request.header("tollgate-refused").unwrap();
        let fitting = 292;
        assert_eq!(list, names[..fitting].join(", "));
        assert!(list.len() <= 4096 && list.len() + 14 > 4096, "{}", list.len());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn stored_version_is_named_in_the_first_request() {
    resuming(json!({}), None, Some("\"7\""), async |mut rig| {
        let first = rig.request().await;
        assert_eq!((first.version(), first.header("a-im")), (Some("\"7\""), Some("resources")));
        rig.delta("\"8\"", "{}").await;
        assert!(rig.document().await.is_delta);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn token_is_read_for_every_request() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "one\n").unwrap();
    with_token(json!({}), Some(file.clone()), async |mut rig| {
        assert_eq!(rig.start().await.header("authorization"), Some("Bearer one"));
        let request = rig.request().await;
        assert_eq!(request.header("authorization"), Some("Bearer one"));
        std::fs::write(&file, "two").unwrap();
        rig.full("\"2\"", "{}").await;
        rig.apply().await;
        assert_eq!(rig.request().await.header("authorization"), Some("Bearer two"));
        for content in ["", "a\nb"] {
            std::fs::write(&file, content).unwrap();
            let failed = rig.count("failed");
            rig.answer("304 Not Modified", "").await;
            while rig.count("failed") == failed {
                sleep(Duration::from_millis(100)).await;
            }
            let error = "it does not contain a token";
            assert_eq!(rig.last_error(), format!("the token is not available: {}: {error}", file.display()));
            std::fs::write(&file, "three").unwrap();
            let request = rig.request().await;
            assert_eq!((request.header("authorization"), request.version()), (Some("Bearer three"), Some("\"2\"")));
        }
        std::fs::remove_file(&file).unwrap();
        rig.answer("304 Not Modified", "").await;
        while !rig.last_error().contains("No such file") {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn errors_do_not_contain_the_token_that_a_server_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "hunter2-hunter2\n").unwrap();
    with_token(json!({}), Some(file), async |mut rig| {
        rig.start().await;
        rig.request().await;
        rig.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 19\r\n\r\nnot hunter2-hunter2").await;
        rig.close();
        rig.request().await;
        assert!(rig.last_error().ends_with("401 Unauthorized: \"not …"), "{}", rig.last_error());
    })
    .await;
}
