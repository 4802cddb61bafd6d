//! The guard before hyper's parser.

use tollgate::http::guard::{Scanner, Violation};

use crate::{Outcome, cuts};

/// Longer than any input, so that the bound on heads, which is hyper's, is never reached.
const MAX_HEAD: usize = 64 << 10;

/// However the bytes come, the same is wrong with them; and a head that the guard has let pass has one meaning.
pub fn check(input: &[u8]) -> Outcome {
    let whole = scan(&[input]);
    for cut in cuts(input) {
        let (head, tail) = input.split_at(cut);
        assert_eq!(scan(&[head, tail]), whole, "cut at {cut}");
    }
    let size = 1 + input.len() % 7;
    assert_eq!(scan(&input.chunks(size).collect::<Vec<_>>()), whole, "in pieces of {size}");
    let heads = if whole.is_none() { walk(input) } else { 0 };
    Outcome::of((whole.map(|v| v as u8), heads, input.len().min(400) / 16))
}

fn scan(parts: &[&[u8]]) -> Option<Violation> {
    let mut scanner = Scanner::new(MAX_HEAD);
    parts.iter().find_map(|part| scanner.scan(part).err()).map(|(_, violation)| violation)
}

/// Follows accepted bytes as hyper would, from head to head, and looks at each of them for what the guard must not have let
/// pass. Returns how many there were.
fn walk(mut input: &[u8]) -> usize {
    let mut heads = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut head = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = head.parse(input) else { return heads };
        heads += 1;
        let all = |name: &str| {
            let of_name = head.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
            of_name.map(|field| field.value.trim_ascii()).collect::<Vec<_>>()
        };
        let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "{lengths:?} and {codings:?}");
        input = &input[len..];
        let body = match (lengths.first(), codings.first()) {
            (Some(length), _) => {
                assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "{length:?}");
                let length = str::from_utf8(length).ok().and_then(|length| length.parse::<usize>().ok());
                length.filter(|length| *length <= input.len())
            }
            (_, Some(coding)) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked"), "{coding:?}");
                chunked(input)
            }
            _ => Some(0),
        };
        let Some(body) = body else { return heads };
        input = &input[body..];
    }
}

/// The length of a chunked body with its trailers (RFC 9112 section 7.1). `None`: it has not ended.
fn chunked(input: &[u8]) -> Option<usize> {
    let line = |at: usize| input[at..].windows(2).position(|two| two == b"\r\n").map(|end| &input[at..at + end]);
    let mut at = 0;
    loop {
        let size = line(at)?;
        at += size.len() + 2;
        let digits = size.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
        let size = usize::from_str_radix(str::from_utf8(digits).expect("digits"), 16).expect("a size");
        if size == 0 {
            break;
        }
        let end = at.checked_add(size).filter(|end| end + 2 <= input.len())?;
        assert_eq!(&input[end..end + 2], b"\r\n");
        at = end + 2;
    }
    loop {
        let trailer = line(at)?;
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Some(at);
        }
    }
}

#[cfg(test)]
#[test]
fn the_guard_before_the_parser() {
    let words: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff",
    ];
    // Shorter than the bound on lines of chunks' sizes and of trailers, which is for lines that come in parts.
    crate::driver::Target { name: "guard", words, max_len: 12_000, check }.run();
}
