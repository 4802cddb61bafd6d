//! The ClientHello of a TLS client.

use rustls::server::Acceptor;
use tollgate::listener::{
    client_hello::{Hello, MAX_HELLO, client_hello},
    sniff::{Sniffed, sniff},
};

use crate::{Outcome, Target, asked_again};

/// The result arrives in time, stays, does not depend on the split into records, and agrees with rustls.
fn check(input: &[u8]) -> Outcome {
    let hello = asked_again(input, &Hello::NeedMore, MAX_HELLO, client_hello);
    if let Hello::Client(asked) = &hello {
        assert_eq!(sniff(input), Sniffed::Tls);
        assert!(asked.alpn().all(|name| !name.is_empty()));
        if let Some(name) = &asked.server_name {
            assert!(!name.is_empty() && !name.ends_with('.') && **name == name.to_ascii_lowercase());
        }
    }
    let message = fragments(input);
    let records = in_records(&message, 1 + input.len() % 700);
    if records.len() <= MAX_HELLO {
        let otherwise = client_hello(&records);
        assert!(!matches!(hello, Hello::Client(_)) || otherwise == hello);
        as_rustls(&message, &records, &otherwise);
    }
    Outcome::of((std::mem::discriminant(&hello), input.len().min(600) / 8, format!("{hello:?}").len()))
}

/// Returns the content of the records.
fn fragments(mut records: &[u8]) -> Vec<u8> {
    let mut fragments = Vec::new();
    while let [22, 3, _, high, low, after @ ..] = records {
        let (fragment, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(after.len()));
        fragments.extend_from_slice(fragment);
        records = after;
    }
    fragments
}

/// Splits a message into records of this size.
fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let header = |fragment: &[u8]| [&[22, 3, 1], &(fragment.len() as u16).to_be_bytes()[..]].concat();
    message.chunks(size).flat_map(|fragment| [&header(fragment), fragment].concat()).collect()
}

/// Checks that what rustls accepts is accepted with the same result.
fn as_rustls(message: &[u8], mut records: &[u8], hello: &Hello) {
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        let Ok(1..) = acceptor.read_tls(&mut records) else { return };
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => break accepted,
            Err(_) => return,
        }
    };
    let theirs = accepted.client_hello();
    let name = theirs.server_name();
    match hello {
        Hello::Client(ours) => {
            assert_eq!(ours.server_name.as_deref(), name.map(|name| name.trim_end_matches('.')));
            assert!(ours.alpn().eq(theirs.alpn().into_iter().flatten()));
        }
        // rustls ignores bytes after the name, OpenSSL does not.
        _ => assert!(name.is_none_or(|name| !names_only(message, name)), "{hello:?}, but rustls accepts it"),
    }
}

/// Returns whether there is an extension with exactly this name, ignoring case.
fn names_only(message: &[u8], name: &str) -> bool {
    let len = name.len() as u16;
    let lengths = [(len + 5).to_be_bytes(), (len + 3).to_be_bytes()].concat();
    let extension = [&[0, 0], &lengths[..], &[0], &len.to_be_bytes(), name.as_bytes()].concat();
    message.windows(extension.len()).any(|window| window.eq_ignore_ascii_case(&extension))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"\x16\x03\x01",
        b"\x01\0",
        b"\0\0\0\x0e\0\x0c\0\0\x09a.example",
        b"\0\x10\0\x05\0\x03\x02h2",
        b"\0\x0d\0\x04\0\x02\x08\x04",
        b"\x13\x01",
        b"\x02h2",
        b".",
        b"xn--",
        b"\xfe\x0d",
    ],
    max_len: MAX_HELLO + 64,
    check,
};
