//! Subscriptions against a scripted API server. The connections are pipes and tokio's clock is paused, so that waits take no
//! time.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::{task::LocalSet, time::timeout};

use super::*;
use crate::outbound::script::{LONG, Script};

/// The scripted server of the namespace `shop`, and the watch of it.
struct Rig {
    server: Script,
    namespaces: Rc<Namespaces>,
    watched: Rc<Watched>,
}

/// Runs a test.
async fn rig(token_file: Option<PathBuf>, test: impl AsyncFnOnce(Rig)) {
    let run = async {
        let (pipes, server) = Script::at("http://api.test".parse().unwrap());
        let watched = Watched::start("shop".to_owned(), ApiServer::new(pipes, token_file));
        test(Rig { server, namespaces: Namespaces::new(&Settings::default()), watched }).await;
    };
    LocalSet::new().run_until(run).await;
}

impl Rig {
    fn subscribe(&self, wanted: Value) -> Subscription {
        Subscription::new(serde_json::from_value(wanted).unwrap(), self.watched.clone())
    }

    /// What a subscription learns next, as text.
    async fn learn(&self, subscription: &mut Subscription) -> String {
        let next = subscription.next(&self.namespaces);
        match timeout(LONG, next).await.expect("there are news") {
            Ok(Answer { note: Some(why), .. }) => format!("empty: {why}"),
            Ok(Answer { endpoints, .. }) => {
                endpoints.iter().map(|one| one.address.to_string()).collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("failed: {error}"),
        }
    }

    /// Returns what the next request asks for: `list`, or `watch VERSION`.
    async fn asked(&mut self) -> String {
        let asked = self.server.request().await;
        let target = asked.target();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        assert_eq!(path, "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices");
        let field = |name: &str| {
            query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
        };
        match field("watch") {
            Some(_) => {
                assert_eq!(field("allowWatchBookmarks").as_deref(), Some("true"));
                let seconds: u64 = field("timeoutSeconds").unwrap().parse().unwrap();
                assert!((120..=180).contains(&seconds), "{seconds}");
                format!("watch {}", field("resourceVersion").unwrap())
            }
            None => {
                let token = field("continue");
                let whole = field("limit").is_none().then(|| "whole".to_owned());
                [Some("list".to_owned()), token, whole].into_iter().flatten().collect::<Vec<_>>().join(" ")
            }
        }
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // The client may have closed the connection.
        self.server.write(bytes).await;
    }

    /// Answers with a page of a list.
    async fn page(&mut self, version: &str, token: &str, items: &[Value]) {
        let metadata = json!({"resourceVersion": version, "continue": token});
        self.server
            .answer("200 OK", &json!({"kind": "EndpointSliceList", "metadata": metadata, "items": items}).to_string())
            .await;
    }

    /// Begins a watch.
    async fn accept(&mut self) {
        self.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    }

    async fn chunk(&mut self, bytes: &str) {
        self.write(format!("{:x}\r\n{bytes}\r\n", bytes.len())).await;
    }

    async fn event(&mut self, kind: &str, object: Value) {
        self.chunk(&format!("{}\n", json!({"type": kind, "object": object}))).await;
    }

    async fn bookmark(&mut self, version: &str) {
        self.event("BOOKMARK", json!({"kind": "EndpointSlice", "metadata": {"resourceVersion": version}})).await;
    }

    /// Ends a watch.
    async fn end(&mut self) {
        self.write("0\r\n\r\n").await;
    }

    /// Serves the first list and begins the first watch.
    async fn start(&mut self, items: &[Value]) {
        assert_eq!(self.asked().await, "list");
        self.page("10", "", items).await;
        assert_eq!(self.asked().await, "watch 10");
        self.accept().await;
    }
}

/// A slice with endpoints at these last parts of addresses.
fn slice(service: &str, version: &str, endpoints: &[u8]) -> Value {
    let endpoints: Vec<_> = endpoints.iter().map(|n| json!({"addresses": [format!("10.0.0.{n}")]})).collect();
    let labels = json!({"kubernetes.io/service-name": service});
    json!({
        "metadata": {"name": format!("{service}-1"), "resourceVersion": version, "labels": labels},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints,
    })
}

#[tokio::test(start_paused = true)]
async fn clusters_share_a_watch_and_learn_what_changes() {
    rig(None, async |mut rig| {
        let (mut web, mut api) = (rig.subscribe(json!({"service": "web"})), rig.subscribe(json!({"service": "api"})));
        rig.start(&[slice("web", "3", &[1]), slice("api", "4", &[2])]).await;
        assert_eq!(rig.learn(&mut web).await, "10.0.0.1:80");
        assert_eq!(rig.learn(&mut api).await, "10.0.0.2:80");
        rig.event("MODIFIED", slice("web", "11", &[1, 3])).await;
        while rig.learn(&mut web).await != "10.0.0.1:80 10.0.0.3:80" {}
        // A cluster of a known namespace has its endpoints without a request.
        let mut late = rig.subscribe(json!({"service": "api"}));
        assert_eq!(rig.learn(&mut late).await, "10.0.0.2:80");
        // Two events in one part, and one event in two.
        let two = format!(
            "{}\n{}\n",
            json!({"type": "MODIFIED", "object": slice("web", "12", &[4])}),
            json!({"type": "DELETED", "object": slice("api", "13", &[2])})
        );
        let (before, after) = two.split_at(two.len() - 20);
        rig.chunk(before).await;
        while rig.learn(&mut web).await != "10.0.0.4:80" {}
        rig.chunk(after).await;
        while !rig.learn(&mut api).await.starts_with("empty: the namespace `shop` has no EndpointSlices") {}
        rig.end().await;
        assert_eq!(rig.asked().await, "watch 13");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn empty_answers_are_repeated_while_the_server_confirms_them() {
    rig(None, async |mut rig| {
        let mut web = rig.subscribe(json!({"service": "web"}));
        rig.start(&[]).await;
        let begun = Instant::now();
        for _ in 0..3 {
            assert!(rig.learn(&mut web).await.starts_with("empty: "));
        }
        let time = begun.elapsed();
        assert!((empty::RETRY..=empty::RETRY * 3).contains(&time), "{time:?}");
        rig.server.close();
        let (begun, mut failures) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(120) {
            rig.server.request().await;
            rig.server.close();
            failures += 1;
            let learnt = rig.learn(&mut web).await;
            assert!(learnt.starts_with("failed: "), "nothing confirms that it is empty: {learnt}");
        }
        assert!(failures > 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn expired_versions_lead_to_lists_and_keep_what_is_known() {
    rig(None, async |mut rig| {
        let mut web = rig.subscribe(json!({"service": "web"}));
        assert_eq!(rig.asked().await, "list");
        rig.page("10", "t1", &[slice("web", "3", &[1])]).await;
        assert_eq!(rig.asked().await, "list t1");
        let gone = json!({"kind": "Status", "message": "The provided continue parameter is too old", "code": 410});
        rig.server.answer("410 Gone", &gone.to_string()).await;
        while !rig.learn(&mut web).await.contains("410 Gone: The provided continue parameter is too old") {}
        assert_eq!(rig.asked().await, "list whole");
        rig.page("12", "", &[slice("web", "3", &[1])]).await;
        assert_eq!(rig.learn(&mut web).await, "10.0.0.1:80");
        // By status, and by event.
        assert_eq!(rig.asked().await, "watch 12");
        rig.server.answer("410 Gone", &gone.to_string()).await;
        assert_eq!(rig.asked().await, "list");
        rig.page("20", "", &[slice("web", "3", &[1, 2])]).await;
        while rig.learn(&mut web).await != "10.0.0.1:80 10.0.0.2:80" {}
        assert_eq!(rig.asked().await, "watch 20");
        rig.accept().await;
        rig.event("ERROR", gone).await;
        assert_eq!(rig.asked().await, "list");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn broken_answers_take_nothing_away() {
    let long = "x".repeat(1 << 20);
    for (answer, expected) in [
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{\"a\":\n\r\n", "not the JSON of an API server"),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n", "missing field `type`"),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\nlength\r\n", "API server"),
        ("200 OK\r\nContent-Length: 0\r\n\r\n", "ended the watch immediately"),
        ("400 Bad Request\r\nContent-Length: 3\r\n\r\nno!", "400 Bad Request: no!"),
        ("500 Oh\r\nContent-Length: 0\r\n\r\n", "500 Internal Server Error"),
        ("", "API server: the server's answer is invalid or incomplete"),
        ("long", "an event of more than 8 MiB"),
    ] {
        rig(None, async |mut rig| {
            let mut web = rig.subscribe(json!({"service": "web"}));
            assert_eq!(rig.asked().await, "list");
            rig.page("10", "", &[slice("web", "3", &[1])]).await;
            assert_eq!(rig.learn(&mut web).await, "10.0.0.1:80");
            rig.asked().await;
            match answer {
                "" => {
                    // On a connection that was used before, it may be the server's time limit: the request is repeated.
                    rig.server.close();
                    rig.asked().await;
                    rig.server.close();
                }
                "long" => {
                    rig.accept().await;
                    for _ in 0..9 {
                        rig.chunk(&long).await;
                    }
                }
                _ => rig.write(format!("HTTP/1.1 {answer}")).await,
            }
            // Whatever it asks next, the endpoints can change again.
            let next = rig.asked().await;
            let error = rig.watched.shared.namespace.borrow().error.clone().unwrap();
            assert!(error.contains(expected), "{answer}: {error}");
            if next == "list" {
                rig.page("11", "", &[slice("web", "5", &[2])]).await;
            } else {
                rig.accept().await;
                rig.event("MODIFIED", slice("web", "11", &[2])).await;
            }
            loop {
                match &*rig.learn(&mut web).await {
                    "10.0.0.1:80" => {}
                    "10.0.0.2:80" => break,
                    other => panic!("{answer}: {other}"),
                }
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn silent_server_is_given_up_and_asked_again_from_the_last_version() {
    rig(None, async |mut rig| {
        let mut web = rig.subscribe(json!({"service": "web"}));
        rig.start(&[slice("web", "3", &[1])]).await;
        rig.bookmark("30").await;
        let begun = Instant::now();
        assert_eq!(rig.asked().await, "watch 30");
        let time = begun.elapsed();
        assert!((WATCH_TIME[0] + WATCH_GRACE..=WATCH_TIME[1] + WATCH_GRACE * 2).contains(&time), "{time:?}");
        // Not even a head.
        while !rig.learn(&mut web).await.contains("did not answer within 15s") {}
        assert_eq!(rig.asked().await, "watch 30");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn server_that_refuses_is_asked_as_it_requests() {
    rig(None, async |mut rig| {
        let mut web = rig.subscribe(json!({"service": "web"}));
        assert_eq!(rig.asked().await, "list");
        let why = "endpointslices.discovery.k8s.io is forbidden: User \"x\" cannot list resource";
        rig.server.answer("403 Forbidden", &json!({"kind": "Status", "message": why, "code": 403}).to_string()).await;
        assert_eq!(rig.learn(&mut web).await, format!("failed: the API server answered 403 Forbidden: {why}"));
        assert_eq!(rig.asked().await, "list");
        let begun = Instant::now();
        rig.server.answer("429 Too Many Requests\r\nRetry-After: 70", "").await;
        assert_eq!(rig.asked().await, "list");
        assert!(begun.elapsed() >= Duration::from_secs(70), "{:?}", begun.elapsed());
        rig.page("10", "", &[slice("web", "3", &[1])]).await;
        while rig.learn(&mut web).await != "10.0.0.1:80" {}
        // In the stream, the wait is in the status.
        assert_eq!(rig.asked().await, "watch 10");
        rig.accept().await;
        let begun = Instant::now();
        rig.event("ERROR", json!({"kind": "Status", "code": 504, "details": {"retryAfterSeconds": 90}})).await;
        assert_eq!(rig.asked().await, "watch 10");
        assert!(begun.elapsed() >= Duration::from_secs(90), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn token_is_read_for_each_request_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    rig(Some(file.clone()), async |mut rig| {
        let mut web = rig.subscribe(json!({"service": "web"}));
        assert!(rig.learn(&mut web).await.contains("the token is not available"));
        std::fs::write(&file, "first-secret\n").unwrap();
        assert_eq!(rig.server.request().await.header("authorization"), Some("Bearer first-secret"));
        rig.server.answer("401 Unauthorized", "who is first-secret?").await;
        while rig.learn(&mut web).await != "failed: the API server answered 401 Unauthorized: who is …" {}
        std::fs::write(&file, "second-secret").unwrap();
        assert_eq!(rig.server.request().await.header("authorization"), Some("Bearer second-secret"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn watch_ends_with_its_last_user() {
    rig(None, async |mut rig| {
        let web = rig.subscribe(json!({"service": "web"}));
        rig.start(&[slice("web", "3", &[1])]).await;
        let Rig { mut server, watched, .. } = rig;
        drop((web, watched));
        while server.write("1\r\n\n\r\n").await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
