//! Certificate signing requests.

use crate::{Outcome, Target};
use base64::{Engine, prelude::BASE64_STANDARD};
use tollgate::{ca::request::read, config::spiffe::SpiffeId};

/// The input as it is, and wrapped in PEM. An accepted request names one identity, which its signature covers: so no
/// mutation of a request can name another one.
fn check(input: &[u8]) -> Outcome {
    let inside = BASE64_STANDARD.encode(input);
    let wrapped = format!("-----BEGIN CERTIFICATE REQUEST-----\n{inside}\n-----END CERTIFICATE REQUEST-----\n");
    let mut outcomes = Vec::new();
    for pem in [input, wrapped.as_bytes()] {
        let asked = read(pem);
        if let Ok(asked) = &asked {
            assert_eq!(asked.spiffe.as_str().parse::<SpiffeId>().as_ref(), Ok(&asked.spiffe));
            assert_eq!(asked.spiffe.as_str(), "spiffe://mesh.local/web", "the signature does not cover this");
        }
        // The part of the error before the quoted name, whose length varies.
        outcomes.push(asked.map(|_| ()).map_err(|why| why.split('`').next().unwrap_or_default().len()));
    }
    Outcome::of((outcomes, input.len().min(600) / 32))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"-----BEGIN CERTIFICATE REQUEST-----\n",
        b"-----END CERTIFICATE REQUEST-----\n",
        b"spiffe://mesh.local/",
        b"\x30\x82",
        b"\x06\x03\x55\x1d\x11",
        b"\x86\x17",
        b"\x82\x01a",
        b"\xa0\x00",
        b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e",
        b"\x80",
        b"\x84\xff\xff\xff\xff",
    ],
    max_len: 1200,
    check,
};
