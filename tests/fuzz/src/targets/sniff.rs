//! The detection of a connection's protocol.

use tollgate::listener::sniff::{MAX_SNIFFED, Sniffed, sniff};

use crate::{Outcome, Target, asked_again};

/// The result arrives in time, stays, and accepts everything that hyper would parse.
fn check(input: &[u8]) -> Outcome {
    let sniffed = asked_again(input, &Sniffed::NeedMore, MAX_SNIFFED, sniff);
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    if let Ok(httparse::Status::Complete(_)) = head.parse(input)
        && !matches!(input[0], b'\r' | b'\n')
        && head.method.is_some_and(|method| method.len() <= 32)
    {
        assert_eq!(sniffed, Sniffed::Http1);
    }
    Outcome::of((format!("{sniffed:?}"), input.len().min(MAX_SNIFFED) / 8))
}

pub(super) const TARGET: Target = Target {
    words: &[b"GET ", b" HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"SM\r\n\r\n", b"\x16\x03", b"/", b"\r\n"],
    max_len: 600,
    check,
};
