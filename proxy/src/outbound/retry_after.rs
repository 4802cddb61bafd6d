//! The wait that a server asks for.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

/// The longest wait that a server can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Returns the wait of `Retry-After`: seconds or a date (RFC 9110, section 10.2.3), at most five minutes.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let given = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match !given.is_empty() && given.bytes().all(|byte| byte.is_ascii_digit()) {
        true => Duration::from_secs(given.parse().unwrap_or(u64::MAX)),
        false => httpdate::parse_http_date(given).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}
