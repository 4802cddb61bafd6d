//! The `Date` field for HTTP/2 and HTTP/3 responses that lack one (RFC 9110 section 6.6.1).

use std::{cell::RefCell, time::SystemTime};

use http::HeaderValue;

thread_local! {
    /// The current second and its text, shared by thousands of responses on a busy worker.
    static LATEST: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))) };
}

/// Returns the current time as a field value.
pub(crate) fn now() -> HeaderValue {
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LATEST.with_borrow_mut(|(latest, text)| {
        if *latest != second
            && let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            (*latest, *text) = (second, value);
        }
        text.clone()
    })
}
