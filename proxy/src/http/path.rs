//! One spelling for each path (RFC 3986 section 6.2.2), before any filter sees it: a rule about `/admin` must not be walked
//! around by `/x/../admin`, `/%61dmin` or `//admin`.

use std::borrow::Cow;

use crate::config::model::{EscapedSlashes, PathRules};

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with `/`.
    #[error("the path does not begin with a slash")]
    Relative,
    /// A `%` without two hexadecimal digits.
    #[error("the path has a broken percent-encoding")]
    Encoding,
    /// `%00`.
    #[error("the path has an encoded NUL")]
    Nul,
    /// `%2F` or `%5C`, where they are not allowed.
    #[error("the path has an escaped slash")]
    EscapedSlash,
}

/// Brings a path (without the query) into its one spelling.
pub fn normalise<'a>(path: &'a [u8], rules: &PathRules) -> Result<Cow<'a, [u8]>, BadPath> {
    if path.first() != Some(&b'/') {
        return Err(BadPath::Relative);
    }
    if is_plain(path, rules) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path, rules.escaped_slashes)?;
    let merged = if rules.merge_slashes { merge_slashes(&decoded) } else { decoded };
    Ok(Cow::Owned(remove_dot_segments(&merged)))
}

/// Whether there is nothing to do, as for nearly all paths.
fn is_plain(path: &[u8], rules: &PathRules) -> bool {
    let mut previous = 0;
    path.iter().all(|&b| {
        let odd = b == b'%' || b == b'\\' || (previous == b'/' && (b == b'.' || (b == b'/' && rules.merge_slashes)));
        previous = b;
        !odd
    })
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|d| d as u8)
}

fn decode(path: &[u8], slashes: EscapedSlashes) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        // A bare backslash is one that should have been encoded.
        let value = match byte {
            b'\\' => byte,
            b'%' => {
                let [high, low, after @ ..] = after else { return Err(BadPath::Encoding) };
                rest = after;
                hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low).ok_or(BadPath::Encoding)?
            }
            _ => {
                out.push(byte);
                continue;
            }
        };
        match value {
            0 => return Err(BadPath::Nul),
            b'/' | b'\\' if slashes == EscapedSlashes::Reject => return Err(BadPath::EscapedSlash),
            b'/' | b'\\' if slashes == EscapedSlashes::Decode => out.push(b'/'),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(value),
            _ => out.extend_from_slice(format!("%{value:02X}").as_bytes()),
        }
    }
    Ok(out)
}

fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|b, a| *a == b'/' && *b == b'/');
    out
}

/// RFC 3986 section 5.2.4; `..` at the root stays there.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    let mut segments = path.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                out.pop();
            }
            _ => {
                out.push(segment);
                continue;
            }
        }
        // `/a/.` and `/a/..` name directories: the slash stays.
        if last {
            out.push(b"");
        }
    }
    let mut joined = Vec::with_capacity(path.len());
    for segment in out {
        joined.push(b'/');
        joined.extend_from_slice(segment);
    }
    if joined.is_empty() {
        joined.push(b'/');
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(path: &str, merge_slashes: bool, escaped_slashes: EscapedSlashes) -> Result<String, BadPath> {
        let rules = PathRules { merge_slashes, escaped_slashes };
        normalise(path.as_bytes(), &rules).map(|p| String::from_utf8(p.into_owned()).unwrap())
    }

    #[test]
    fn each_path_has_one_spelling() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../etc", "/etc"),
            ("//a///b", "/a/b"),
            ("/a//../b", "/b"),
            ("/%61dmin", "/admin"),
            ("/%2e%2e/admin", "/admin"),
            ("/x/%2E%2e/admin", "/admin"),
            ("/%7euser", "/~user"),
            ("/a%2fb", "/a%2Fb"),
            ("/a\\..\\b", "/a%5C..%5Cb"),
            ("/%e4%bd%a0", "/%E4%BD%A0"),
            ("/a.b/.c/..d", "/a.b/.c/..d"),
            ("/%252e%252e/x", "/%252e%252e/x"),
        ] {
            assert_eq!(with(path, true, EscapedSlashes::Keep).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn options_decide_about_slashes() {
        assert_eq!(with("//a", false, EscapedSlashes::Keep).unwrap(), "//a");
        assert_eq!(with("/a%2f..%2fb", true, EscapedSlashes::Decode).unwrap(), "/b");
        assert_eq!(with("/a%5c..%5Cb", true, EscapedSlashes::Decode).unwrap(), "/b");
        assert_eq!(with("/a%2Fb", true, EscapedSlashes::Reject), Err(BadPath::EscapedSlash));
        assert_eq!(with("/a\\b", true, EscapedSlashes::Reject), Err(BadPath::EscapedSlash));
    }

    #[test]
    fn what_cannot_be_spelled_is_refused() {
        for (path, error) in [
            ("a", BadPath::Relative),
            ("", BadPath::Relative),
            ("/%", BadPath::Encoding),
            ("/%4", BadPath::Encoding),
            ("/%zz", BadPath::Encoding),
            ("/%00", BadPath::Nul),
        ] {
            assert_eq!(with(path, true, EscapedSlashes::Keep), Err(error), "{path}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing_more() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let parts = ["/", ".", "..", "%2e", "%2F", "a", "%41", "//", "\\", "%25"];
            let path: String = std::iter::once("/").chain((0..8).map(|_| parts[random.usize(..parts.len())])).collect();
            for slashes in [EscapedSlashes::Keep, EscapedSlashes::Decode] {
                let once = with(&path, true, slashes).unwrap();
                assert_eq!(with(&once, true, slashes).as_ref(), Ok(&once), "{path}");
                assert!(!once.split('/').any(|s| s == "." || s == ".."), "{path} became {once}");
            }
        }
    }
}
