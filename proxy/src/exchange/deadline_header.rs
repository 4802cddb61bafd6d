//! A request's deadline in a header, in milliseconds (`deadline_header` of the listener): set by a trusted proxy or client in
//! front, and passed on to the upstream less the time used. From others the header is removed, so that nobody can shorten or
//! lengthen a request in another's name.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::{ListenerContext, deadline::Deadline};
use crate::chain::Stream;

/// Reads the deadline of a request that has arrived, or removes the header.
pub(super) fn begin(listener: &ListenerContext, stream: &Stream) {
    let Some(name) = &listener.deadline_header else { return };
    set(listener, stream);
    if stream.deadline.get().is_none() || listener.config.trusted_hops == 0 {
        stream.deadline.set(None);
        stream.state.borrow_mut().request.fields.remove(name);
    }
}

/// Sets a request's deadline from its current head, because filters may have changed, set or removed it.
pub(super) fn set(listener: &ListenerContext, stream: &Stream) {
    let Some(name) = &listener.deadline_header else { return };
    let time = stream.state.borrow().request.fields.get(name).and_then(parse);
    stream.deadline.set(time.and_then(|time| stream.start.checked_add(time)));
}

/// Returns the header with the remaining time, for the upstream.
pub(super) fn time_left(
    listener: &ListenerContext,
    stream: &Stream,
    deadline: &Deadline,
) -> Option<(HeaderName, HeaderValue)> {
    let name = listener.deadline_header.as_ref()?;
    stream.deadline.get()?;
    let left = deadline.left()?;
    // Rounded down, but not to zero: the proxy itself ends the request at its deadline.
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
    Some((name.clone(), millis.into()))
}

/// A number of milliseconds, without a sign or a fraction.
fn parse(value: &HeaderValue) -> Option<Duration> {
    let digits = value.to_str().ok()?;
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some(Duration::from_millis(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_whole_milliseconds() {
        for (value, expected) in [
            ("0", Some(0)),
            ("250", Some(250)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1.5", None),
            ("1s", None),
            (" 1", None),
        ] {
            assert_eq!(parse(&HeaderValue::from_static(value)), expected.map(Duration::from_millis), "{value:?}");
        }
    }
}
