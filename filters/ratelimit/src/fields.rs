//! The response fields for clients: members of `RateLimit-Policy` and `RateLimit`, as in
//! draft-ietf-httpapi-ratelimit-headers-11.

use tollgate_sdk::Take;

/// The parts of a limit's members that are the same for every request.
#[derive(Debug)]
pub(crate) struct Members {
    /// `"NAME";q=100;w=60`
    pub(crate) policy: Vec<u8>,
    /// `"NAME";r=`
    state: Vec<u8>,
    /// The interval and `requests` for computing the seconds per token as a fraction, so that whole numbers stay exact.
    per_ms: f64,
    requests_1000: f64,
}

impl Members {
    pub(crate) fn new(name: &str, requests: u32, per_ms: u64) -> Members {
        // A string in RFC 9651. The name is visible ASCII, so only these two characters need escaping.
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        // Windows are whole seconds; for other intervals, the quota is scaled to the next whole second.
        let window = per_ms.div_ceil(1000).max(1);
        let quota = u128::from(requests) * u128::from(window) * 1000 / u128::from(per_ms.max(1));
        Members {
            policy: format!("\"{name}\";q={quota};w={window}").into_bytes(),
            state: format!("\"{name}\";r=").into_bytes(),
            per_ms: per_ms as f64,
            requests_1000: f64::from(requests) * 1000.0,
        }
    }

    /// Appends the member for the current state: `"NAME";r=99;t=60`. `retry` is `Retry-After`, if this limit denied the
    /// request.
    pub(crate) fn state(&self, take: &Take, retry: Option<u32>, out: &mut Vec<u8>) {
        // Two rules of the draft: `Retry-After` is not before the end of `t`, and `r` over `t` does not exceed the
        // limit's rate, which the time until the bucket is full alone would allow while it is nearly full.
        let t = retry.map_or_else(
            || {
                let gained = (f64::from(take.remaining) * self.per_ms / self.requests_1000).ceil() as u64;
                gained.max(u64::from(take.reset_ms).div_ceil(1000))
            },
            u64::from,
        );
        out.extend_from_slice(&self.state);
        number(take.remaining.into(), out);
        out.extend_from_slice(b";t=");
        number(t, out);
    }
}

/// Starts another member of a list.
pub(crate) fn separate(out: &mut Vec<u8>) {
    if !out.is_empty() {
        out.extend_from_slice(b", ");
    }
}

/// Appends a number in decimal.
pub(crate) fn number(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_whole_seconds() {
        for (name, requests, per_ms, expected) in [
            ("a", 100, 60_000, "\"a\";q=100;w=60"),
            ("a", 10, 100, "\"a\";q=100;w=1"),
            ("a", 3, 1500, "\"a\";q=4;w=2"),
            ("a", 1, 999_999, "\"a\";q=1;w=1000"),
            ("q\"b\\", 1, 1000, "\"q\\\"b\\\\\";q=1;w=1"),
            ("a", i32::MAX as u32, 1, "\"a\";q=2147483647000;w=1"),
        ] {
            assert_eq!(String::from_utf8(Members::new(name, requests, per_ms).policy).unwrap(), expected);
        }
    }

    #[test]
    fn states_never_exceed_the_rate() {
        // 100 per minute.
        for (remaining, reset_ms, retry, expected) in [
            (99, 600, None, "r=99;t=60"),
            (50, 30_000, None, "r=50;t=30"),
            (10, 54_000, None, "r=10;t=54"),
            (0, 60_000, None, "r=0;t=60"),
            (0, 60_000, Some(1), "r=0;t=1"),
            (200, 0, None, "r=200;t=120"),
        ] {
            let mut out = Vec::new();
            Members::new("a", 100, 60_000).state(&Take { remaining, reset_ms, retry_ms: 0 }, retry, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"a\";{expected}"));
        }
    }

    #[test]
    fn numbers() {
        for n in [0, 7, 10, 4_294_967_295, u64::MAX] {
            let mut out = Vec::new();
            number(n, &mut out);
            assert_eq!(out, n.to_string().into_bytes());
        }
    }
}
