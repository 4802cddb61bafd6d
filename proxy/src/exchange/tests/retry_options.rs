//! The options of a retry policy.

use super::*;

fn with_retry(policy: Value) -> Setup {
    let retry = Some(merged(json!({"backoff": "10ms"}), &policy));
    Setup { retry, ..Setup::default() }
}

#[test]
fn responses_are_retried_by_status_and_by_header() {
    for (policy, first, expected) in [
        (json!({"retriable_status_codes": [418, 425]}), Step::Answer(425), 2),
        (json!({"retriable_status_codes": [418]}), Step::Answer(425), 1),
        (json!({"retriable_headers": [{"name": "x-retry", "exact": "1"}]}), Step::AnswerWith(200, ("x-retry", "1")), 2),
        (json!({"retriable_headers": [{"name": "x-retry", "exact": "1"}]}), Step::AnswerWith(200, ("x-retry", "2")), 1),
        (json!({"on": ["5xx"], "retriable_request_headers": [{"name": "x-forwarded-for"}]}), Step::Answer(500), 2),
        (json!({"on": ["5xx"], "retriable_request_headers": [{"name": "x-safe"}]}), Step::Answer(500), 1),
    ] {
        run(async move {
            let exchange = with_retry(policy.clone()).start(&[first, Step::Answer(204)]);
            exchange.get().await;
            assert_eq!(exchange.ended().attempts, expected, "{policy}");
        });
    }
}

#[test]
fn retry_waits_as_long_as_the_upstream_requests() {
    run(async {
        let policy = json!({"on": ["rate_limited"], "rate_limited_backoff": {"max": "10s"}});
        let limited = |seconds| Step::AnswerWith(429, ("retry-after", seconds));
        for (seconds, least, most) in [("8", 8.0, 12.0), ("0", 0.0, 0.0), ("11", 0.0, 0.01), ("soon", 0.0, 0.01)] {
            let exchange = with_retry(policy.clone()).start(&[limited(seconds), Step::Answer(200)]);
            let start = Instant::now();
            assert_eq!(exchange.get().await, got(200, "from upstream"));
            let waited = start.elapsed().as_secs_f64();
            // Timers have a resolution of a millisecond.
            assert!(waited >= least && waited <= most + 0.002, "{seconds}: {waited}");
        }
        let exchange = with_retry(json!({"on": ["rate_limited"]})).start(&[limited("8"), Step::Answer(200)]);
        let start = Instant::now();
        assert_eq!(exchange.get().await, got(200, "from upstream"));
        assert!(start.elapsed() < Duration::from_secs(1), "nothing is waited for unless configured");
    });
}

#[test]
fn response_is_sent_at_once_if_the_requested_wait_exceeds_its_timeout() {
    run(async {
        for timeout in [json!({"request_timeout": "5s"}), json!({"response_head_timeout": "5s"})] {
            let setup = with_retry(json!({"on": ["rate_limited"], "rate_limited_backoff": {}}));
            let limited = Step::AnswerWith(429, ("retry-after", "6"));
            let exchange = Setup { cluster: timeout, ..setup }.start(&[limited, Step::Answer(200)]);
            let start = Instant::now();
            assert_eq!(exchange.get().await, got(429, "from upstream"));
            assert!(start.elapsed() < Duration::from_secs(1));
            assert_eq!(exchange.ended(), ended(&[], "", 1));
        }
    });
}

#[test]
fn idle_attempt_is_retried() {
    run(async {
        let policy = json!({"on": ["reset"], "per_try_idle_timeout": "1s"});
        let exchange = with_retry(policy.clone()).start(&[Step::Hang, Step::Answer(200)]);
        let start = Instant::now();
        assert_eq!(exchange.get().await, got(200, "from upstream"));
        assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_secs(2));
        assert_eq!(exchange.ended(), ended(&[], "", 2));

        let exchange = with_retry(policy).start(&[Step::Hang]);
        let Got::Response(504, _) = exchange.get().await else { panic!("not 504") };
        assert_eq!(exchange.ended(), ended(&["UT", "URX"], "per_try_idle_timeout", 2));
    });
}

/// While the client sends nothing, the upstream cannot do anything either.
#[test]
fn attempt_is_not_idle_while_it_waits_for_the_client() {
    run(async {
        let exchange = with_retry(json!({"on": ["reset"], "per_try_idle_timeout": "1s"})).start(&[Step::Answer(200)]);
        let parts = stream::iter(["a", "b", "c"]).then(|part| async move {
            sleep(Duration::from_secs(3)).await;
            Ok::<_, BodyError>(Frame::data(Bytes::from(part)))
        });
        let body = Body::stream(StreamBody::new(Box::pin(parts)));
        assert_eq!(exchange.send("POST", body).await, got(200, "from upstream"));
        assert_eq!(exchange.upstream.arrived.take()[0].body, "abc");
        assert_eq!(exchange.ended(), ended(&[], "", 1));
    });
}
