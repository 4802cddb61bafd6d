//! The example filters.

use serde_json::json;

use super::Site;
use crate::harness::{Upstream, answer, peer::needs};

#[test]
fn hello_marks_responses() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("hi");
    let site = || Site::to(upstream.address).filter("hello", json!({"greeting": "good day"}));
    Site::each(&envoy, site, |host| {
        let response = host.get("/", &[]);
        assert_eq!((response.status(), response.text()), (200, "hi"));
        assert_eq!(response.field("x-hello"), Some("good day"));
    });
}

#[test]
fn api_key_asks_a_service_and_caches_the_answer() {
    let envoy = needs!("envoy");
    let upstream = Upstream::replying(|request| answer(200, &[], request.field("x-user").unwrap_or("nobody")));
    let auth = Upstream::replying(|request| match (request.target(), request.field("x-api-key")) {
        ("/whose", Some("open-sesame")) => answer(200, &["x-user: ann"], ""),
        ("/whose", Some("broken")) => answer(500, &[], ""),
        _ => answer(404, &[], ""),
    });
    let site = || {
        let site = Site::to(upstream.address).cluster("auth", auth.address);
        site.filter("api-key", json!({"cluster": "auth", "path": "/whose"}))
    };
    let mut asked = 0;
    let asked = std::cell::Cell::from_mut(&mut asked);
    Site::each(&envoy, site, |host| {
        let known = || host.get("/", &[("x-api-key", "open-sesame"), ("x-user", "root")]);
        for _ in 0..4 {
            let response = known();
            assert_eq!((response.status(), response.text()), (200, "ann"));
        }
        asked.set(asked.get() + 1);
        assert_eq!(auth.requests().len(), asked.get(), "the other answers were cached, for all workers");
        let none = host.get("/", &[]);
        assert_eq!((none.status(), none.text()), (401, "missing API key\n"));
        let unknown = host.get("/", &[("x-api-key", "x")]);
        assert_eq!((unknown.status(), unknown.text()), (403, "unknown API key\n"));
        let broken = host.get("/", &[("x-api-key", "broken")]);
        assert_eq!((broken.status(), broken.text()), (503, "API keys cannot be verified at the moment\n"));
        asked.set(asked.get() + 2);
    });
    assert!(upstream.requests().iter().all(|request| request.field("x-api-key").is_none()));
}

#[test]
fn api_key_denies_all_without_its_service() {
    let envoy = needs!("envoy");
    let upstream = Upstream::saying("hi");
    let site = || {
        let site = Site::to(upstream.address).cluster("auth", Upstream::refusing());
        site.filter("api-key", json!({"cluster": "auth"}))
    };
    Site::each(&envoy, site, |host| {
        let response = host.get("/", &[("x-api-key", "open-sesame")]);
        assert_eq!((response.status(), response.text()), (503, "API keys cannot be verified at the moment\n"));
    });
    assert!(upstream.requests().is_empty());
}

#[test]
fn lookup_gets_responses_by_callbacks() {
    let envoy = needs!("envoy");
    let upstream = Upstream::replying(|request| answer(200, &[], request.field("x-team").unwrap_or("none")));
    let teams = Upstream::replying(|request| match request.target() {
        "/ann" => answer(200, &["x-team: red"], ""),
        "/broken" => answer(500, &[], ""),
        _ => answer(404, &[], ""),
    });
    let site = || {
        let site = Site::to(upstream.address).cluster("teams", teams.address);
        site.filter("lookup", json!({"cluster": "teams"}))
    };
    Site::each(&envoy, site, |host| {
        let ask = |user: &str| {
            let response = host.get("/", &[("x-user", user), ("x-team", "forged")]);
            (response.status(), response.text().to_owned())
        };
        assert_eq!(ask("ann"), (200, "red".into()));
        assert_eq!(ask("bob"), (200, "none".into()));
        assert_eq!(ask(""), (200, "none".into()));
        assert_eq!(ask("broken").0, 503);
    });
}

#[test]
fn body_transform_changes_bodies_in_any_framing() {
    let envoy = needs!("envoy");
    let upstream = Upstream::scripted(|mut connection| {
        while let Some(request) = connection.request() {
            assert_eq!(request.field("accept-encoding"), None, "the response could not be changed");
            match request.target() {
                "/json" => {
                    let body = r#"{"user": {"name": "ann", "password": "x"}}"#;
                    connection.send(answer(200, &["content-type: application/json", "etag: \"1\""], body));
                }
                "/parts" => {
                    connection
                        .send("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n");
                    for part in ["6\r\none co\r\n", "3\r\nlou\r\n", "8\r\nr, ten c\r\n", "5\r\nolour\r\n", "0\r\n\r\n"]
                    {
                        connection.send(part);
                    }
                }
                "/large" => {
                    let body = "colour ".repeat(9000);
                    connection.send(answer(200, &["content-type: text/plain"], body));
                }
                "/gzip" => connection.send(answer(200, &["content-type: text/plain", "content-encoding: gzip"], "x")),
                "/image" => connection.send(answer(200, &["content-type: image/png"], "colour")),
                _ => connection.send(answer(204, &["content-type: text/plain"], "")),
            }
        }
    });
    let config =
        json!({"redact": ["password"], "replace": [{"find": "colour", "with": "color"}], "max_bytes": 100_000});
    let site = || Site::to(upstream.address).filter("body-transform", config.clone());
    Site::each(&envoy, site, |host| {
        let json = host.get("/json", &[("accept-encoding", "gzip")]);
        let body: serde_json::Value = serde_json::from_slice(&json.body).expect("JSON");
        assert_eq!(body, serde_json::json!({"user": {"name": "ann", "password": "***"}}));
        assert_eq!((json.status(), json.field("etag")), (200, None));
        assert_eq!(host.get("/parts", &[]).text(), "one color, ten color");
        assert_eq!(host.get("/large", &[]).text(), "color ".repeat(9000));
        assert_eq!(host.get("/gzip", &[]).status(), 502);
        let image = host.get("/image", &[]);
        assert_eq!(
            (image.text(), image.field("content-length")),
            ("colour", Some("6")),
            "the filter does not change it"
        );
        assert_eq!(host.get("/none", &[]).status(), 204);
    });
}

/// A health service that reports `up` as serving, `down` as not serving, and others as unknown.
fn health() -> Upstream {
    Upstream::replying_by_h2(|h2, stream, request| {
        let watched = request.field(":path") == Some("/grpc.health.v1.Health/Watch");
        let (message, status): (&[u8], _) = match request.body.get(7..) {
            Some(b"up") => (&[0, 0, 0, 0, 2, 8, 1], "0"),
            Some(b"down") => (&[0, 0, 0, 0, 2, 8, 2], "0"),
            _ => (&[], "5"),
        };
        h2.headers(stream, &[(":status", "200"), ("content-type", "application/grpc")], false);
        h2.data(stream, message, false);
        // A watch lasts until the filter ends it.
        if !watched || status != "0" {
            h2.headers(stream, &[("grpc-status", status), ("grpc-message", "who is that")], true);
        }
    })
}

#[test]
fn grpc_health_asks_a_grpc_service_by_calls_and_streams() {
    let envoy = needs!("envoy");
    let (upstream, health) = (Upstream::saying("hi"), health());
    for watch in [false, true] {
        for (service, status, text) in [("up", 200, "hi"), ("down", 503, "not serving\n"), ("other", 503, "")] {
            let config = json!({"cluster": "health", "service": service, "timeout": "60s", "watch": watch});
            let site = || {
                Site::to(upstream.address).h2_cluster("health", health.address).filter("grpc-health", config.clone())
            };
            Site::each(&envoy, site, |host| {
                for _ in 0..2 {
                    let response = host.get("/", &[]);
                    assert_eq!((response.status(), response.text()), (status, text), "{service}, watch: {watch}");
                }
                // A gRPC client gets a gRPC status.
                let fields = [("content-type", "application/grpc"), ("te", "trailers")];
                let response = host.request("POST", "/", &fields, b"");
                let told = (response.status(), response.field("grpc-status"));
                assert_eq!(told, (200, if status == 200 { None } else { Some("14") }), "{service}, watch: {watch}");
            });
        }
    }
}
