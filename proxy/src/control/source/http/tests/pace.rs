//! When the client asks again.

use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::time::sleep;

use super::{Asked, Rig, with};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Answers a request that nothing has changed, after some time. Returns the time until the next request.
async fn unchanged_after(rig: &mut Rig, asked: &Asked, held: Duration) -> (Asked, Duration) {
    sleep(held).await;
    rig.answer("304 Not Modified", "").await;
    let next = rig.request().await;
    let pause = next.at - asked.at - held;
    (next, pause)
}

#[tokio::test(start_paused = true)]
async fn server_that_holds_requests_sets_the_pace() {
    with(json!({ "wait": "20s", "interval": "3s" }), async |mut rig| {
        rig.start().await;
        let mut asked = rig.request().await;
        assert_eq!(asked.header("prefer"), Some("wait=20"));
        for (held, expected) in [(0, 3000), (9_999, 3000), (10_000, 0), (20_000, 0), (29_999, 0), (1, 3000)] {
            let (next, pause) = unchanged_after(&mut rig, &asked, ms(held)).await;
            assert_eq!(pause, ms(expected), "an answer after {held} ms");
            assert_eq!((next.connection, next.version()), (1, Some("\"1\"")));
            asked = next;
        }
        assert_eq!([rig.count("unchanged"), rig.count("failed")], [6, 0]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_a_wait_the_interval_is_the_pace() {
    with(json!({ "wait": "0s", "interval": "3s" }), async |mut rig| {
        rig.start().await;
        let mut asked = rig.request().await;
        assert_eq!(asked.header("prefer"), None);
        for held in [0, 5000] {
            let (next, pause) = unchanged_after(&mut rig, &asked, ms(held)).await;
            assert_eq!(pause, ms(3000));
            asked = next;
        }
    })
    .await;
    with(json!({ "wait": "1500ms", "interval": "0s" }), async |mut rig| {
        rig.start().await;
        let asked = rig.request().await;
        assert_eq!(asked.header("prefer"), Some("wait=2"), "seconds, rounded up");
        let (_, pause) = unchanged_after(&mut rig, &asked, ms(0)).await;
        assert_eq!(pause, ms(10), "never a busy loop");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn answer_is_awaited_for_the_wait_and_ten_seconds() {
    with(json!({ "wait": "20s" }), async |mut rig| {
        rig.start().await;
        let asked = rig.request().await;
        let next = rig.request().await;
        assert_eq!(rig.last_error(), "the server did not answer within 30s");
        let pause = next.at - asked.at;
        assert!(pause >= ms(30_000) && pause <= ms(30_500), "{pause:?}");
        assert_eq!((next.connection, next.version()), (2, Some("\"1\"")));
        let (_, pause) = unchanged_after(&mut rig, &next, ms(29_999)).await;
        assert_eq!((pause, rig.attempts()), (ms(0), 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_with_exponential_backoff_and_jitter() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        let mut last = rig.request().await;
        let mut pauses = Vec::new();
        for failures in 1..=60 {
            rig.answer("500 Internal Server Error", "").await;
            let next = rig.request().await;
            assert_eq!((rig.attempts(), next.version()), (failures, Some("\"1\"")));
            pauses.push(next.at - last.at);
            last = next;
        }
        for (pause, doubled) in pauses.iter().zip(0..) {
            let ceiling = ms(500 << doubled.min(6)).min(ms(30_000));
            // Timers have a resolution of a millisecond.
            assert!(*pause <= ceiling + ms(1), "{pauses:?}");
        }
        // Each of 53 waits is drawn from 30 s: that none is in a third of them has a probability of 5e-10.
        assert!(pauses.iter().any(|pause| *pause > ms(20_000)), "{pauses:?}");
        assert!(pauses[7..].iter().any(|pause| *pause < ms(10_000)), "{pauses:?}");
        let (next, _) = unchanged_after(&mut rig, &last, ms(0)).await;
        assert_eq!(rig.attempts(), 0);
        rig.answer("500 Internal Server Error", "").await;
        let after = rig.request().await.at - next.at;
        assert!(after <= ms(501), "an answer resets the waits: {after:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn server_can_request_a_longer_wait_of_up_to_five_minutes() {
    with(json!({}), async |mut rig| {
        rig.start().await;
        let soon = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(60));
        let late = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(86_400));
        for (retry_after, least, most) in [
            ("120", 120_000, 120_001),
            ("100000", 300_000, 300_001),
            ("99999999999999999999999", 300_000, 300_001),
            (&*late, 300_000, 300_001),
            (&*soon, 0, 501),
            ("-1", 0, 501),
            ("a while", 0, 501),
            ("", 0, 501),
        ] {
            let asked = rig.request().await;
            rig.answer(&format!("503 Service Unavailable\nRetry-After: {retry_after}"), "").await;
            let next = rig.request().await;
            let pause = next.at - asked.at;
            assert!(pause >= ms(least) && pause <= ms(most), "{retry_after:?}: {pause:?}");
            // A success in between, so that the waits do not grow.
            rig.full("\"1\"", "{}").await;
        }
    })
    .await;
}
