//! Tests of blocking queries against a [scripted server](crate::outbound::script), which follows the rules that Consul
//! documents, and breaks them. The clock is paused.

use std::path::Path;

use serde_json::{Value, json};
use tokio::{sync::mpsc, task::LocalSet};

use super::{
    super::watches::{Report, testing},
    *,
};
use crate::{
    config::units,
    outbound::script::{Asked, Script},
};

/// The server, and what the watch reports.
struct Rig {
    script: Script,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Rig {
    async fn asked(&mut self) -> Asked {
        self.script.request().await
    }

    /// Answers with instances at these addresses.
    async fn answer(&mut self, index: &str, addresses: &[&str]) {
        self.answer_with(&format!("X-Consul-Index: {index}"), addresses).await;
    }

    async fn answer_with(&mut self, headers: &str, addresses: &[&str]) {
        let instance =
            |address: &&str| json!({"Node": {"Node": "n"}, "Service": {"ID": "a", "Address": address, "Port": 80}});
        let body: Vec<Value> = addresses.iter().map(instance).collect();
        self.script.answer(&format!("200 OK\n{headers}"), &json!(body).to_string()).await;
    }

    /// The next report: the addresses, or the error.
    async fn told(&mut self) -> Result<Vec<String>, String> {
        let result = testing::result(self.reports.recv().await.expect("the watch runs"));
        result.map(|answer| answer.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect())
    }
}

/// Runs a watch of the service `web`.
async fn with(settings: Consul, test: impl AsyncFnOnce(Rig)) {
    let url: HttpUrl = "http://127.0.0.1:8500".parse().unwrap();
    let query = ConsulDiscovery::new("web");
    let requests = Requests::new(&url, &settings, &query, Path::new("/"));
    let (pipes, script) = Script::at(url);
    let (reporter, reports) = testing::reporter();
    let tasks = LocalSet::new();
    let wait = settings.wait.0;
    let watch = tasks.spawn_local(async move { Watch::new(pipes, requests, query, wait).run(&reporter).await });
    tasks.run_until(test(Rig { script, reports })).await;
    watch.abort();
}

fn index(asked: &Asked) -> Option<&str> {
    asked.target().split(['?', '&']).find_map(|part| part.strip_prefix("index="))
}

const A: &[&str] = &["10.0.0.1"];
const B: &[&str] = &["10.0.0.2"];

#[tokio::test(start_paused = true)]
async fn each_query_waits_for_a_newer_state_than_the_last_answer() {
    with(Consul::default(), async |mut rig| {
        let first = rig.asked().await;
        assert_eq!(first.target(), "/v1/health/service/web");
        rig.answer("7", A).await;
        assert_eq!(rig.told().await.unwrap(), ["10.0.0.1:80"]);
        let second = rig.asked().await;
        assert_eq!(second.target(), "/v1/health/service/web?index=7&wait=300000ms");
        assert_eq!((second.at, second.connection), (first.at, 1), "at once, on the same connection");
        // Held for almost the longest time.
        sleep(Duration::from_secs(300 + 18)).await;
        rig.answer("7", A).await;
        assert_eq!(rig.told().await.unwrap(), ["10.0.0.1:80"], "no proof of a change");
        assert_eq!(index(&rig.asked().await), Some("7"));
        rig.answer("9", B).await;
        assert_eq!(rig.told().await.unwrap(), ["10.0.0.2:80"]);
        assert_eq!(index(&rig.asked().await), Some("9"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn index_that_goes_backwards_is_forgotten() {
    with(Consul::default(), async |mut rig| {
        rig.asked().await;
        rig.answer("900", A).await;
        assert_eq!(index(&rig.asked().await), Some("900"));
        rig.answer("3", B).await;
        assert_eq!((rig.told().await.unwrap().len(), rig.told().await.unwrap()), (1, vec!["10.0.0.2:80".to_owned()]));
        let next = rig.asked().await;
        assert_eq!(next.target(), "/v1/health/service/web", "it is not held");
        rig.answer("3", B).await;
        assert_eq!(index(&rig.asked().await), Some("3"));
        // Reset to nothing.
        rig.answer("0", B).await;
        assert_eq!(index(&rig.asked().await), None);
        rig.answer("0", B).await;
        assert_eq!(index(&rig.asked().await), Some("1"), "a query with 0 would not be held");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn queries_that_are_not_held_are_paced() {
    for header in ["X-Other: 1", "X-Consul-Index: 0", "X-Consul-Index: 1", "X-Consul-Index: many"] {
        with(Consul::default(), async |mut rig| {
            let first = rig.asked().await;
            rig.answer_with(header, A).await;
            let mut last = first.at;
            for n in 1..100 {
                let next = rig.asked().await;
                assert_eq!(index(&next), Some("1"), "{header}");
                // The burst is of those after the first one, and includes the one with which it ends.
                if n > BURST + 1 {
                    assert!(next.at - last >= GAP, "{header}: the {n}th query");
                }
                last = next.at;
                rig.answer_with(header, A).await;
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn changes_in_a_row_are_followed_at_once() {
    with(Consul::default(), async |mut rig| {
        let first = rig.asked().await;
        for n in 1..=5 {
            rig.answer(&n.to_string(), if n % 2 == 0 { A } else { B }).await;
            assert!(rig.told().await.is_ok());
            assert_eq!(rig.asked().await.at, first.at);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn errors_are_told_and_the_next_query_starts_over() {
    for (status, said) in [
        ("500 Internal Server Error", "No path to datacenter"),
        ("403 Forbidden", "Permission denied"),
        ("404 Not Found", "404 page not found"),
        ("302 Found\nLocation: http://other.test/", ""),
        ("429 Too Many Requests", "Your IP is issuing too many concurrent connections"),
    ] {
        with(Consul::default(), async |mut rig| {
            rig.asked().await;
            rig.answer("7", A).await;
            assert!(rig.told().await.is_ok());
            let asked = rig.asked().await;
            rig.script.answer(status, said).await;
            let error = rig.told().await.unwrap_err();
            let code = status.lines().next().unwrap();
            assert!(error.starts_with(&format!("Consul answered {code}")) && error.contains(said), "{error}");
            let next = rig.asked().await;
            assert_eq!((index(&next), next.connection), (None, 2), "{status}");
            assert!(next.at - asked.at <= FIRST_RETRY, "{status}");
            rig.answer("7", A).await;
            assert!(rig.told().await.is_ok());
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_less_and_less_often() {
    with(Consul::default(), async |mut rig| {
        let mut last = rig.asked().await.at;
        let mut longest = Duration::ZERO;
        for n in 0..40u32 {
            rig.script.answer("500 Internal Server Error", "").await;
            assert!(rig.told().await.is_err());
            let at = rig.asked().await.at;
            let bound = FIRST_RETRY.saturating_mul(1 << n.min(10)).min(LONGEST_RETRY);
            assert!(at - last <= bound.max(GAP), "{n}: {:?}", at - last);
            longest = longest.max(at - last);
            last = at;
        }
        assert!(longest > Duration::from_secs(10), "{longest:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn server_that_limits_the_rate_sets_the_pause() {
    for (status, seconds) in [("429 Too Many Requests", 120), ("503 Service Unavailable", 60)] {
        with(Consul::default(), async |mut rig| {
            let first = rig.asked().await;
            rig.script.answer(&format!("{status}\nRetry-After: {seconds}"), "").await;
            assert!(rig.told().await.is_err());
            assert!(rig.asked().await.at - first.at >= Duration::from_secs(seconds), "{status}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_longer_than_what_consul_may_hold() {
    with(Consul { wait: units::Duration::secs(60), ..Consul::default() }, async |mut rig| {
        let first = rig.asked().await;
        assert!(rig.told().await.unwrap_err().contains("did not answer within 10s"), "it cannot be held");
        assert!(rig.asked().await.at - first.at >= HEAD_TIME);
        rig.answer("7", A).await;
        assert!(rig.told().await.is_ok());
        let held = rig.asked().await;
        assert_eq!(index(&held), Some("7"));
        let error = rig.told().await.unwrap_err();
        assert!(error.contains("did not answer within 73.75s"), "60 s, a sixteenth and 10 s: {error}");
        assert_eq!(index(&rig.asked().await), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn garbage_and_cut_off_answers_are_errors() {
    let head = "HTTP/1.1 200 OK\r\nX-Consul-Index: 8\r\n";
    for bytes in [
        "SSH-2.0-OpenSSH\r\n".to_owned(),
        format!("{head}Content-Length: 100\r\n\r\n[{{"),
        format!("{head}Content-Length: 2\r\n\r\n{{}}"),
        format!("{head}Content-Length: 99999999\r\n\r\n["),
        format!("{head}Content-Length: 0\r\n\r\n"),
        format!("{head}\r\n[]"),
    ] {
        with(Consul::default(), async |mut rig| {
            rig.asked().await;
            rig.answer("7", A).await;
            assert!(rig.told().await.is_ok());
            rig.asked().await;
            rig.script.write(&bytes).await;
            rig.script.close();
            assert!(rig.told().await.is_err(), "{bytes}");
            assert_eq!(index(&rig.asked().await), None, "the index of an unusable answer does not count");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_the_server_closes_between_queries_is_replaced() {
    with(Consul::default(), async |mut rig| {
        rig.asked().await;
        rig.answer("7", A).await;
        assert!(rig.told().await.is_ok());
        assert_eq!(rig.asked().await.connection, 1);
        rig.script.close();
        let again = rig.asked().await;
        assert_eq!((again.connection, index(&again)), (2, Some("7")), "no failure: the query is repeated");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn empty_answers_are_asked_for_again_soon() {
    with(Consul::default(), async |mut rig| {
        rig.asked().await;
        rig.answer("7", &[]).await;
        assert_eq!(rig.told().await.unwrap(), [""; 0]);
        let asked = rig.asked().await;
        assert!(asked.target().ends_with("index=7&wait=10000ms"), "{}", asked.target());
        rig.answer("8", A).await;
        assert!(rig.asked().await.target().ends_with("index=8&wait=300000ms"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn token_is_read_for_every_query_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let settings = Consul { token_file: Some(file.clone()), ..Consul::default() };
    with(settings, async |mut rig| {
        assert!(rig.told().await.unwrap_err().starts_with("the token is not available: "), "the file does not exist");
        std::fs::write(&file, "first-token-1234\n").unwrap();
        assert_eq!(rig.asked().await.header("x-consul-token"), Some("first-token-1234"));
        rig.answer("7", A).await;
        std::fs::write(&file, "second-token-5678").unwrap();
        while rig.told().await.is_err() {}
        let asked = rig.asked().await;
        // It may have been read before it was replaced.
        let token = asked.header("x-consul-token").unwrap().to_owned();
        rig.script.answer("403 Forbidden", &format!("token {token} is not known")).await;
        let error = rig.told().await.unwrap_err();
        assert!(error.contains("Consul answered 403") && !error.contains(&token), "{error}");
        assert_eq!(rig.asked().await.header("x-consul-token"), Some("second-token-5678"));
    })
    .await;
}
