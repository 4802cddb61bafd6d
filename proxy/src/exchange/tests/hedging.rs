//! Second attempts for requests whose response is late.

use std::sync::atomic::Ordering::Relaxed;

use super::*;

/// A cluster that hedges after 100 ms.
fn hedging(more: &Value) -> Setup {
    Setup { cluster: merged(json!({"hedging": {"delay": "100ms"}}), more), ..Setup::default() }
}

fn after(millis: u64, status: u16) -> Step {
    Step::AnswerAfter(Duration::from_millis(millis), status)
}

impl Exchange {
    /// Sends a request; returns the status and the milliseconds until the response.
    async fn timed(&self, method: &str, body: Body) -> (u16, u128) {
        let start = Instant::now();
        let Got::Response(status, _) = self.send(method, body).await else { panic!("closed") };
        (status, start.elapsed().as_millis())
    }

    /// Second attempts, and those that have won.
    fn hedges(&self) -> (u64, u64) {
        let stats = self.cluster.stats();
        (stats.hedges.load(Relaxed), stats.hedges_won.load(Relaxed))
    }
}

#[test]
fn first_response_wins_and_the_other_attempt_is_cancelled() {
    for (steps, status, millis, attempts, won) in [
        ([after(50, 200), after(0, 201)], 200, 50, 1, 0),
        ([after(1000, 200), after(50, 201)], 201, 150, 2, 1),
        ([after(150, 200), after(1000, 201)], 200, 150, 2, 0),
    ] {
        run(async move {
            let exchange = hedging(&json!({"retry_budget": {"percent": 0, "min_concurrent": 1}})).start(&steps);
            let (got, took) = exchange.timed("GET", Body::Empty).await;
            // Timers have a resolution of a millisecond.
            assert!(
                got == status && took >= millis && took <= millis + 5,
                "{got} after {took}, not {status} after {millis}"
            );
            let flags: &[_] = if attempts == 2 { &["HG"] } else { &[] };
            assert_eq!(exchange.ended(), ended(flags, "", attempts));
            assert_eq!(exchange.hedges(), (u64::from(attempts) - 1, won));
            let reached = exchange.reached();
            assert!(reached.len() == 1 || reached[0] != reached[1], "{reached:?}");
            let active: u64 = exchange.cluster.members().iter().map(|member| member.endpoint.active()).sum();
            assert_eq!(active, 0);
            assert!(exchange.cluster.try_retry().is_some(), "the place in the budget is free again");
        });
    }
}

#[test]
fn only_what_may_be_repeated_is_hedged() {
    for (config, method, attempts) in [
        (json!({}), "PUT", 2),
        (json!({}), "POST", 1),
        (json!({"hedging": {"delay": "100ms", "methods": ["POST"]}}), "POST", 2),
        (json!({"hedging": {"delay": "100ms", "methods": ["POST"]}}), "GET", 1),
        (json!({"hedging": {"delay": "100ms", "methods": []}}), "GET", 1),
        (json!({"endpoints": [{"address": "10.0.0.1:80"}]}), "GET", 1),
        (json!({"retry_budget": {"percent": 0, "min_concurrent": 0}}), "GET", 1),
    ] {
        run(async move {
            let exchange = hedging(&config).start(&[after(1000, 200), after(0, 200)]);
            exchange.timed(method, Body::full("hello".into())).await;
            let arrived = exchange.upstream.arrived.take();
            assert_eq!((arrived.len(), exchange.ended().attempts), (attempts, attempts as u32), "{method} {config}");
            assert!(arrived.iter().all(|arrived| arrived.body == "hello"), "the whole body is sent to both");
        });
    }
}

#[test]
fn refusal_by_the_budget_is_counted() {
    run(async {
        let exchange = hedging(&json!({"retry_budget": {"percent": 0, "min_concurrent": 0}})).start(&[after(300, 200)]);
        assert_eq!(exchange.timed("GET", Body::Empty).await.0, 200);
        let stats = exchange.cluster.stats();
        assert_eq!(
            (exchange.hedges(), stats.retry_overflows.load(Relaxed), stats.retries.load(Relaxed)),
            ((0, 0), 1, 0)
        );
        assert_eq!(exchange.ended(), ended(&[], "", 1));
    });
}

#[test]
fn body_that_is_too_long_to_keep_or_not_complete_is_not_hedged() {
    run(async {
        let listener = json!({"limits": {"buffered_body": "4KiB"}});
        for (len, attempts) in [(4096, 2), (4097, 1)] {
            let setup = Setup { listener: listener.clone(), ..hedging(&json!({})) };
            let exchange = setup.start(&[after(1000, 200), after(0, 200)]);
            exchange.timed("PUT", Body::full("x".repeat(len).into())).await;
            assert_eq!(exchange.ended().attempts, attempts, "{len}");
        }
        // The delay runs from the end of the request.
        let exchange = hedging(&json!({})).start(&[after(50, 200)]);
        let parts = stream::iter(["a", "b"]).then(|part| async move {
            sleep(Duration::from_secs(1)).await;
            Ok::<_, BodyError>(Frame::data(Bytes::from(part)))
        });
        let (status, took) = exchange.timed("PUT", Body::stream(StreamBody::new(Box::pin(parts)))).await;
        assert!(status == 200 && took >= 2050, "{took}");
        assert_eq!(exchange.ended(), ended(&[], "", 1));
    });
}

#[test]
fn failures_do_not_win_while_the_other_attempt_is_under_way() {
    let on_5xx = retrying(&[RetryOn::ServerError], 1);
    for (retry, steps, expected, attempts) in [
        // A response that the policy lists waits for the other one.
        (on_5xx.clone(), vec![after(200, 503), after(1000, 200)], (200, 1100), 2),
        (on_5xx.clone(), vec![after(1000, 200), after(0, 503)], (200, 1000), 2),
        // Any other response wins.
        (None, vec![after(200, 503), after(1000, 200)], (503, 200), 2),
        (None, vec![after(1000, 200), Step::Reset], (200, 1000), 2),
        (None, vec![after(1000, 200), Step::Refuse], (200, 1000), 2),
        // If both fail, the request is retried, without another second attempt.
        (on_5xx.clone(), vec![after(200, 503), after(50, 503), after(500, 200)], (200, 700), 3),
        (None, vec![after(200, 502), Step::Reset], (502, 200), 2),
    ] {
        run(async move {
            let setup = Setup { retry: retry.clone(), ..hedging(&json!({})) };
            let exchange = setup.start(&steps);
            let (status, took) = exchange.timed("GET", Body::Empty).await;
            // A back-off of 10 ms.
            assert!(
                status == expected.0 && took >= expected.1 && took <= expected.1 + 15,
                "{status} after {took}: {expected:?}"
            );
            assert_eq!((exchange.ended(), exchange.hedges().0), (ended(&["HG"], "", attempts), 1));
        });
    }
}

#[test]
fn both_attempts_end_with_the_requests_timeouts() {
    for (cluster, flags, details) in [
        (json!({"request_timeout": "1s"}), &["UT", "HG"][..], "response_timeout"),
        (json!({}), &["UT", "URX", "HG"], "per_try_timeout"),
    ] {
        run(async move {
            let policy = json!({"on": ["reset"], "attempts": 1, "per_try_timeout": "700ms", "backoff": "0s"});
            let retry = (details == "per_try_timeout").then(|| serde_json::from_value(policy).unwrap());
            let exchange = Setup { retry, ..hedging(&cluster) }.start(&[Step::Hang]);
            assert_eq!(exchange.timed("GET", Body::Empty).await.0, 504);
            assert_eq!(exchange.ended(), ended(flags, details, if details == "per_try_timeout" { 3 } else { 2 }));
            let active: u64 = exchange.cluster.members().iter().map(|member| member.endpoint.active()).sum();
            assert_eq!(active, 0);
        });
    }
}

/// Without a `delay`, a response is late when it is slower than 95 % of those of the last minute.
#[test]
fn delay_follows_the_responses_of_the_last_minute() {
    run(async {
        let mut steps = vec![after(20, 200); 40];
        steps.extend([after(1000, 200), after(0, 201)]);
        let exchange = hedging(&json!({"hedging": {}})).start(&steps);
        for _ in 0..40 {
            assert_eq!(exchange.timed("GET", Body::Empty).await.0, 200);
        }
        // The percentile is computed once per second.
        sleep(Duration::from_secs(1)).await;
        let (status, took) = exchange.timed("GET", Body::Empty).await;
        assert!(status == 201 && (20..30).contains(&took), "{status} after {took}");
        assert_eq!(exchange.hedges(), (1, 1));

        // After a minute without responses, nothing is known.
        sleep(Duration::from_secs(70)).await;
        exchange.upstream.steps.borrow_mut().extend([after(500, 200)]);
        assert_eq!(exchange.timed("GET", Body::Empty).await.0, 201);
        assert_eq!(exchange.timed("GET", Body::Empty).await.0, 200);
        assert_eq!(exchange.hedges(), (1, 1));
    });
}
