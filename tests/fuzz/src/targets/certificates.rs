//! The identity in a peer's certificate.

use rustls::pki_types::CertificateDer;
use tollgate::{fuzzing::forwarded_client_cert, tls::Identity};

use crate::{Outcome, Target};

/// Parsed names are safe in header fields and logs: they cannot add anything there.
fn check(input: &[u8]) -> Outcome {
    let Ok(identity) = Identity::parse(&CertificateDer::from(input)) else {
        return Outcome::of(input.len().min(800) / 16);
    };
    let printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    assert!(printable(&identity.subject) && printable(&identity.issuer));
    assert_eq!(identity.sha256.len(), 64);
    assert!(!identity.serial.is_empty() && identity.serial.len().is_multiple_of(2));
    assert!(identity.uri_sans.iter().chain(&identity.dns_sans).all(|name| printable(name)), "{identity:?}");
    let mut known = [&identity.subject].into_iter().chain(&identity.uri_sans).chain(&identity.dns_sans);
    assert!(known.any(|name| **name == *identity.principal()));
    // A name is at most three times as long as in the certificate because of escapes, plus the names of its
    // attributes.
    assert!(identity.subject.len() <= 24 * input.len());
    let element = forwarded_client_cert(&identity);
    let keys = keys(element.to_str().expect("text"));
    let mut expected = vec!["Hash", "Cert", "Subject"];
    expected.extend(vec!["URI"; identity.uri_sans.len().max(1)]);
    expected.extend(vec!["DNS"; identity.dns_sans.len()]);
    assert_eq!(keys, expected, "{element:?}");
    Outcome::of((identity.uri_sans.len(), identity.dns_sans.len(), identity.subject.len() / 8, input.len() / 64))
}

/// Returns the keys of an element, parsed with nothing but the rule that values may be quoted.
fn keys(element: &str) -> Vec<&str> {
    let (mut keys, mut from, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in element.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'=' if !quoted && from <= at => {
                keys.push(&element[from..at]);
                from = element.len();
            }
            b';' if !quoted => from = at + 1,
            b',' if !quoted => panic!("several elements: {element}"),
            _ => {}
        }
    }
    assert!(!quoted, "{element}");
    keys
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\x06\x03\x55\x04\x03\x0c\x01a",
        b"\x06\x03\x55\x04\x0a\x13\x01\"",
        b"\x06\x03\x55\x04\x0b\x1e\x02\0a",
        b"\x06\x03\x55\x1d\x11",
        b"\x86\x0bspiffe://a/",
        b"\x86\x03a;b",
        b"\x82\x03a.b",
        b"\x82\x01,",
        b"\x87\x04\x01\x02\x03\x04",
        b"\x30\x82",
        b"\x31\0",
        b"\x80",
        b"\x84\xff\xff\xff\xff",
        b"\\\";=,",
    ],
    max_len: 1200,
    check,
};
