//! Delays before retries that an overloaded upstream requests, in `Retry-After` or a similar header. The rules are those of
//! Envoy's `rate_limited_retry_back_off`.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use tollgate_abi::doc::{ResetFormat, ResetHeader};

/// The headers that hold such a delay, and its maximum.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RateLimitedBackoff {
    headers: Box<[(HeaderName, ResetFormat)]>,
    max: Duration,
}

impl RateLimitedBackoff {
    /// Looks for delays of at most `max` in these headers, in this order. `None`: one of them is not the name of a header.
    pub fn new(headers: &[ResetHeader], max: Duration) -> Option<RateLimitedBackoff> {
        let name = |header: &ResetHeader| HeaderName::from_bytes(header.name.as_bytes()).ok();
        let headers = headers.iter().map(|header| Some((name(header)?, header.format)));
        Some(RateLimitedBackoff { headers: headers.collect::<Option<_>>()?, max })
    }

    /// Returns the time to wait before the request may be sent again: what the first header with a valid delay says, and
    /// up to half of it more, so that clients that were rejected together do not return together.
    pub fn wait(&self, fields: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let requested = |(name, format): &(HeaderName, ResetFormat)| {
            let value = fields.get(name)?.to_str().ok()?;
            delay(value, *format, now).filter(|delay| *delay <= self.max)
        };
        let delay = self.headers.iter().find_map(requested)?;
        Some(delay.mul_f64(1.0 + fastrand::f64() / 2.0))
    }
}

/// Returns for how long the sender of a response or of trailers wants no further requests: `retry-after` (RFC 9110 section
/// 10.2.3), or `grpc-retry-pushback-ms` (gRPC's proposal A6), if it is not negative.
pub(super) fn requested_wait(fields: &HeaderMap) -> Option<Duration> {
    let value = |name: &str| fields.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if let Some(pushback) = value(PUSHBACK) {
        return pushback.parse::<u32>().ok().map(|millis| Duration::from_millis(millis.into()));
    }
    delay(value(RETRY_AFTER.as_str())?, ResetFormat::Seconds, SystemTime::now())
}

const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Returns the delay in a value; `None` if it is not valid, or a time that has passed.
fn delay(value: &str, format: ResetFormat, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let number =
        || value.parse().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit())).map(Duration::from_secs);
    match format {
        ResetFormat::Seconds => number().or_else(|| httpdate::parse_http_date(value).ok()?.duration_since(now).ok()),
        ResetFormat::UnixTimestamp => SystemTime::UNIX_EPOCH.checked_add(number()?)?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(headers: &[(&str, ResetFormat)], fields: &[(&'static str, &'static str)]) -> Option<Duration> {
        let headers: Vec<_> =
            headers.iter().map(|(name, format)| ResetHeader { name: (*name).to_owned(), format: *format }).collect();
        let fields =
            fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        RateLimitedBackoff::new(&headers, Duration::from_secs(300)).unwrap().wait(&fields.collect(), now)
    }

    #[test]
    fn delay_is_what_the_header_says_and_up_to_half_more() {
        use ResetFormat::{Seconds, UnixTimestamp};
        for (format, value, seconds) in [
            (Seconds, "0", Some(0)),
            (Seconds, "12", Some(12)),
            (Seconds, " 300 ", Some(300)),
            (Seconds, "301", None),
            (Seconds, "99999999999999999999", None),
            (Seconds, "-1", None),
            (Seconds, "+1", None),
            (Seconds, "1.5", None),
            (Seconds, "soon", None),
            (Seconds, "", None),
            (Seconds, "Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            (Seconds, "Sun, 06 Nov 1994 08:49:27 GMT", None),
            (UnixTimestamp, "784111787", Some(10)),
            (UnixTimestamp, "784111767", None),
            (UnixTimestamp, "784112078", None),
            (UnixTimestamp, "18446744073709551615", None),
            (UnixTimestamp, "Sun, 06 Nov 1994 08:49:47 GMT", None),
        ] {
            let mut longest = Duration::ZERO;
            for _ in 0..200 {
                let wait = wait(&[("retry-after", format)], &[("retry-after", value)]);
                assert_eq!(wait.is_some(), seconds.is_some(), "{value}: {wait:?}");
                if let (Some(wait), Some(seconds)) = (wait, seconds) {
                    let least = Duration::from_secs(seconds);
                    assert!(wait >= least && wait <= least * 3 / 2, "{value}: {wait:?}");
                    longest = longest.max(wait);
                }
            }
            let expected = Duration::from_secs(seconds.unwrap_or(0)).mul_f64(1.4);
            assert!(longest >= expected, "{value}: at most {longest:?}, so there is no jitter");
        }
    }

    #[test]
    fn endpoint_may_ask_for_no_further_requests() {
        for (fields, millis) in [
            (vec![("retry-after", "12")], Some(12_000)),
            (vec![("grpc-retry-pushback-ms", "250")], Some(250)),
            (vec![("grpc-retry-pushback-ms", "0"), ("retry-after", "12")], Some(0)),
            (vec![("grpc-retry-pushback-ms", "-1"), ("retry-after", "12")], None),
            (vec![("grpc-retry-pushback-ms", "99999999999")], None),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:49:27 GMT")], None),
            (vec![], None),
        ] {
            let fields =
                fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let fields: HeaderMap = fields.collect();
            assert_eq!(requested_wait(&fields), millis.map(Duration::from_millis), "{fields:?}");
        }
    }

    #[test]
    fn first_header_with_a_valid_delay_counts() {
        use ResetFormat::{Seconds, UnixTimestamp};
        let headers = [("x-reset", UnixTimestamp), ("retry-after", Seconds)];
        let is = |wait: Option<Duration>, seconds| {
            wait.is_some_and(|wait| (seconds..=seconds * 1.5).contains(&wait.as_secs_f64()))
        };
        assert!(is(wait(&headers, &[("retry-after", "1"), ("x-reset", "784111797")]), 20.0));
        assert!(is(wait(&headers, &[("retry-after", "1"), ("x-reset", "1")]), 1.0));
        assert!(is(wait(&headers, &[("retry-after", "1")]), 1.0));
        assert_eq!(wait(&headers, &[("x-other", "1")]), None);
        assert!(
            RateLimitedBackoff::new(&[ResetHeader { name: "a b".into(), format: Seconds }], Duration::MAX).is_none()
        );
    }
}
