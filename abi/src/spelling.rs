//! The normal form of paths, hosts and methods, so that a rule about `/admin` cannot be bypassed with `/x/../admin`,
//! `/%61dmin` or `//admin`. The host normalizes requests before any filter sees them; filters check the patterns in
//! their configurations with the same code, so that no pattern is accepted that can never match.

use alloc::{borrow::Cow, vec::Vec};
use core::{fmt, net::Ipv6Addr, str::FromStr};

#[cfg(feature = "schema")]
use schemars::JsonSchema;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// Path normalization (RFC 3986 section 6.2.2): dot segments are removed, percent-encoded unreserved characters
/// decoded, and characters that a path must not contain encoded, always; the rest is optional.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields, default))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct PathRules {
    /// Merges consecutive slashes into one.
    pub merge_slashes: bool,
    /// How `%2F` and `%5C` are handled.
    pub escaped_slashes: EscapedSlashes,
    /// How parameters of segments are handled: the part after a `;`, as in `/a;x=1/b`.
    pub parameters: Parameters,
}

impl Default for PathRules {
    fn default() -> Self {
        PathRules { merge_slashes: true, escaped_slashes: EscapedSlashes::Keep, parameters: Parameters::Keep }
    }
}

/// How `%2F` and `%5C` in a path are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum EscapedSlashes {
    /// Kept unchanged; they do not separate segments.
    Keep,
    /// The request is answered with 400.
    Reject,
    /// Decoded to `/` before dot segments are removed.
    Decode,
}

/// How parameters of a path's segments are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum Parameters {
    /// Kept unchanged.
    Keep,
    /// Removed, for filters and for the upstream.
    Strip,
    /// The request is answered with 400.
    Reject,
}

/// Why a path is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPath {
    /// It does not begin with `/`.
    Relative,
    /// A `%` without two hexadecimal digits.
    Encoding,
    /// `%00`.
    Nul,
    /// `%2F` or `%5C` where they are not allowed.
    EscapedSlash,
    /// `;` where it is not allowed.
    Parameters,
    /// `..;x`, `.;x` or `/;x/`: servers that strip parameters see a dot segment or an empty one, others do not.
    HiddenSegment,
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadPath::Relative => "the path does not begin with a slash",
            BadPath::Encoding => "the path has a broken percent-encoding",
            BadPath::Nul => "the path has an encoded NUL",
            BadPath::EscapedSlash => "the path has an escaped slash",
            BadPath::Parameters => "the path has parameters",
            BadPath::HiddenSegment => "the path has an empty segment or a dot segment with parameters",
        })
    }
}

impl core::error::Error for BadPath {}

/// How a byte of a path affects normalization.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Not at all: it is allowed as is (RFC 3986 section 3.3).
    Plain,
    /// Depends on the previous byte: `/`, `.`, `;`.
    Structure,
    /// Requires full normalization: `%`, and bytes that a path must not contain.
    Odd,
}

static CLASSES: [Class; 256] = {
    let mut classes = [Class::Odd; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() {
            classes[byte] = Class::Plain;
        }
        byte += 1;
    }
    let plain = b"-_~!$&'()*+,=:@";
    let mut at = 0;
    while at < plain.len() {
        classes[plain[at] as usize] = Class::Plain;
        at += 1;
    }
    classes[b'/' as usize] = Class::Structure;
    classes[b'.' as usize] = Class::Structure;
    classes[b';' as usize] = Class::Structure;
    classes
};

/// Normalizes a path (without the query).
pub fn path<'a>(path: &'a [u8], rules: &PathRules) -> Result<Cow<'a, [u8]>, BadPath> {
    if path.first() != Some(&b'/') {
        return Err(BadPath::Relative);
    }
    if is_plain(path, rules) {
        return Ok(Cow::Borrowed(path));
    }
    let mut path = recode(path, rules.escaped_slashes)?;
    if path.contains(&b';') {
        path = without_parameters(path, rules.parameters)?;
    }
    if rules.merge_slashes {
        path.dedup_by(|b, a| *a == b'/' && *b == b'/');
    }
    Ok(Cow::Owned(remove_dot_segments(&path)))
}

/// Whether the path is already in normal form, as nearly all are.
fn is_plain(path: &[u8], rules: &PathRules) -> bool {
    let mut previous = 0;
    path.iter().all(|&b| {
        let plain = match CLASSES[usize::from(b)] {
            Class::Plain => true,
            Class::Odd => false,
            Class::Structure if b == b'/' => previous != b'/' || !rules.merge_slashes,
            Class::Structure if b == b'.' => previous != b'/',
            Class::Structure => rules.parameters == Parameters::Keep && !matches!(previous, b'/' | b'.'),
        };
        previous = b;
        plain
    })
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|d| d as u8)
}

/// The byte encoded by an escape at the beginning.
fn escape(path: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = path else { return None };
    Some(hex(*high)? << 4 | hex(*low)?)
}

fn put_escape(out: &mut Vec<u8>, byte: u8) {
    let digit = |d: u8| b"0123456789ABCDEF"[usize::from(d)];
    out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Decodes escapes that are unnecessary, encodes what must be encoded, and writes the remaining escapes in upper case.
fn recode(path: &[u8], slashes: EscapedSlashes) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(path.len() + 16);
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        at += 1;
        let encoded = byte == b'%';
        let value = if encoded {
            let value = escape(&path[at - 1..]).ok_or(BadPath::Encoding)?;
            at += 2;
            value
        } else {
            byte
        };
        match value {
            0 => return Err(BadPath::Nul),
            // A bare backslash should have been encoded, and is treated like `%5C`.
            b'/' | b'\\' if (encoded || value == b'\\') && slashes != EscapedSlashes::Keep => {
                if slashes == EscapedSlashes::Reject {
                    return Err(BadPath::EscapedSlash);
                }
                out.push(b'/');
            }
            _ if is_unreserved(value) || (!encoded && CLASSES[usize::from(value)] != Class::Odd) => out.push(value),
            _ => put_escape(&mut out, value),
        }
    }
    Ok(out)
}

fn without_parameters(path: Vec<u8>, parameters: Parameters) -> Result<Vec<u8>, BadPath> {
    if parameters == Parameters::Reject {
        return Err(BadPath::Parameters);
    }
    let mut out = Vec::with_capacity(path.len());
    let mut segments = path.split(|b| *b == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        let last = segments.peek().is_none();
        if name.len() < segment.len() && (name == b"." || name == b".." || (name.is_empty() && !last)) {
            return Err(BadPath::HiddenSegment);
        }
        out.push(b'/');
        out.extend_from_slice(name);
    }
    Ok(if parameters == Parameters::Keep { path } else { out })
}

/// RFC 3986 section 5.2.4; `..` at the root is dropped.
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
        // `/a/.` and `/a/..` name directories, so the trailing slash is kept.
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

/// The first position of a byte. Compares eight bytes at a time: WebAssembly has no vector instructions here, and for
/// short texts it is also faster than a search optimized for long ones.
#[inline]
pub fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let pattern = u64::from(wanted) * ONES;
    let within = |eight: &[u8; 8]| {
        // The lowest set bit belongs to the first matching byte.
        let differences = u64::from_le_bytes(*eight) ^ pattern;
        let same = differences.wrapping_sub(ONES) & !differences & (ONES << 7);
        (same != 0).then(|| (same.trailing_zeros() / 8) as usize)
    };
    let Some(last) = bytes.last_chunk() else { return bytes.iter().position(|byte| *byte == wanted) };
    let (eights, _) = bytes.as_chunks();
    let found = eights.iter().enumerate().find_map(|(i, eight)| Some(i * 8 + within(eight)?));
    // The remaining bytes are checked together with some of those before.
    found.or_else(|| Some(bytes.len() - 8 + within(last)?))
}

/// The form in which normalized paths are compared: characters that are allowed as is are decoded. `/a%40b` and `/a@b`
/// are forwarded as received (RFC 3986 section 2.2 lets a server distinguish them), but hardly any server does, so
/// rules must not either.
#[inline]
pub fn compared(path: &[u8]) -> Cow<'_, [u8]> {
    // Few paths contain an escape.
    match position(path, b'%') {
        Some(_) => Cow::Owned(decode_plain(path)),
        None => Cow::Borrowed(path),
    }
}

/// Decodes the escapes of characters that are allowed in a path as is.
#[cold]
fn decode_plain(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        match escape(&path[at..]) {
            Some(value) if value != b'/' && CLASSES[usize::from(value)] != Class::Odd => {
                out.push(value);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// The part of a path that a pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The whole path.
    Whole,
    /// Its beginning, which may end within a segment.
    Beginning,
    /// Its end, which may begin within a segment.
    End,
}

/// Normalizes a path pattern to the form in which paths are compared; a pattern that differs from it can never match.
pub fn pattern(text: &[u8], extent: Extent) -> Result<Vec<u8>, BadPath> {
    let slash = |b: &u8| *b == b'/';
    // The segment at the open end may continue, so it is not a dot segment even if it looks like one.
    let (open_start, rest, open_end) = match extent {
        Extent::Whole => (&text[..0], text, &text[..0]),
        Extent::Beginning => {
            let at = text.iter().rposition(slash).map_or(0, |at| at + 1);
            (&text[..0], &text[..at], &text[at..])
        }
        Extent::End => {
            let at = text.iter().position(slash).unwrap_or(text.len());
            (&text[..at], &text[at..], &text[..0])
        }
    };
    let mut out = recode(open_start, EscapedSlashes::Keep)?;
    if !rest.is_empty() {
        out.extend_from_slice(&path(rest, &PathRules::default())?);
    }
    out.extend(recode(open_end, EscapedSlashes::Keep)?);
    Ok(compared(&out).into_owned())
}

/// Normalizes a host with an optional port (RFC 3986 sections 6.2.2.1 and 6.2.3): lower case, no trailing dots, no
/// empty port, no leading zeros in the port, and IPv6 addresses as in RFC 5952. `None` if the host is empty or the port
/// invalid.
pub fn host(authority: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (name, port) = split_port(authority);
    let upper_case = name.iter().any(u8::is_ascii_uppercase);
    let plain_port = port.is_none_or(|port| matches!(port, [b'1'..=b'9', rest @ ..] if rest.len() < 4));
    if !upper_case && plain_port && !matches!(name, [] | [b'[', ..] | [.., b'.']) {
        return Some(Cow::Borrowed(authority));
    }
    let mut out = name.to_ascii_lowercase();
    while out.last() == Some(&b'.') {
        out.pop();
    }
    if out.is_empty() {
        return None;
    }
    let inner = out.strip_prefix(b"[").and_then(|inner| inner.strip_suffix(b"]"));
    let address = inner.and_then(|inner| Ipv6Addr::from_str(str::from_utf8(inner).ok()?).ok());
    if let Some(address) = address {
        out = alloc::format!("[{address}]").into_bytes();
    }
    if let Some(digits) = port.filter(|digits| !digits.is_empty()) {
        let number = str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        out.extend_from_slice(alloc::format!(":{}", number.parse::<u16>().ok()?).as_bytes());
    }
    Some(Cow::Owned(out))
}

/// Splits off the port, if there is a colon after the host (and after an IPv6 address's bracket).
pub fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    // An IPv6 address is in brackets and contains colons.
    let from = match authority.first() {
        Some(b'[') => authority.iter().rposition(|b| *b == b']').unwrap_or(0),
        _ => 0,
    };
    match position(&authority[from..], b':') {
        Some(at) => (&authority[..from + at], Some(&authority[from + at + 1..])),
        None => (authority, None),
    }
}

/// Whether a method is in normal form. Methods are case-sensitive (RFC 9110 section 9.1), but some servers accept
/// `delete` for `DELETE`, so methods with lower-case letters are rejected.
pub fn is_method(method: &[u8]) -> bool {
    !method.iter().any(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    fn with(text: &str, merge_slashes: bool, escaped_slashes: EscapedSlashes) -> Result<String, BadPath> {
        of(text, &PathRules { merge_slashes, escaped_slashes, ..PathRules::default() })
    }

    fn of(text: &str, rules: &PathRules) -> Result<String, BadPath> {
        path(text.as_bytes(), rules).map(|p| String::from_utf8(p.into_owned()).unwrap())
    }

    #[test]
    fn paths_are_normalized() {
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
            ("/你", "/%E4%BD%A0"),
            ("/café", "/caf%C3%A9"),
            ("/a\"b{c}d|e^f`g<h>i[j]k\x7f", "/a%22b%7Bc%7Dd%7Ce%5Ef%60g%3Ch%3Ei%5Bj%5Dk%7F"),
            ("/a.b/.c/..d", "/a.b/.c/..d"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/a%40b@c%3b;d", "/a%40b@c%3B;d"),
            ("/a;x=1/..", "/"),
            ("/;x", "/;x"),
            ("/a;b/c", "/a;b/c"),
        ] {
            assert_eq!(with(path, true, EscapedSlashes::Keep).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn normalized_path_is_not_copied() {
        for text in ["/", "/a/b.c;d/e", "/a./b..c/-_~!$&'()*+,=:@"] {
            assert!(matches!(path(text.as_bytes(), &PathRules::default()), Ok(Cow::Borrowed(_))), "{text}");
        }
    }

    #[test]
    fn slashes_are_handled_as_configured() {
        assert_eq!(with("//a", false, EscapedSlashes::Keep).unwrap(), "//a");
        assert_eq!(with("/a%2f..%2fb", true, EscapedSlashes::Decode).unwrap(), "/b");
        assert_eq!(with("/a%5c..%5Cb", true, EscapedSlashes::Decode).unwrap(), "/b");
        assert_eq!(with("/a%2Fb", true, EscapedSlashes::Reject), Err(BadPath::EscapedSlash));
        assert_eq!(with("/a\\b", true, EscapedSlashes::Reject), Err(BadPath::EscapedSlash));
    }

    /// CVE-2026-73551, -73511 and -73553: what some servers read as a dot segment.
    #[test]
    fn parameters_are_handled_as_configured_but_hidden_segments_always_rejected() {
        use Parameters::{Keep, Reject, Strip};
        for (parameters, text, expected) in [
            (Keep, "/a;x/b;y", Ok("/a;x/b;y")),
            (Strip, "/a;x/b;y", Ok("/a/b")),
            (Strip, "/a/;jsessionid=1", Ok("/a/")),
            (Strip, "/a;/b", Ok("/a/b")),
            (Strip, "/a%3Bx", Ok("/a%3Bx")),
            (Reject, "/a;x", Err(BadPath::Parameters)),
            (Reject, "/a%3Bx", Ok("/a%3Bx")),
        ] {
            let rules = PathRules { parameters, ..PathRules::default() };
            assert_eq!(of(text, &rules).as_deref(), expected.as_ref().map(|text| *text), "{parameters:?} {text}");
        }
        for parameters in [Keep, Strip] {
            let rules = PathRules { parameters, ..PathRules::default() };
            for text in ["/a/..;x/b", "/..;", "/.;x", "/%2e%2e;x", "/;x/admin", "/;/admin", "/x/.;/../admin", "/a//;/b"]
            {
                assert_eq!(of(text, &rules), Err(BadPath::HiddenSegment), "{parameters:?} {text}");
            }
        }
    }

    #[test]
    fn invalid_paths_are_rejected() {
        for (path, error) in [
            ("a", BadPath::Relative),
            ("", BadPath::Relative),
            ("/%", BadPath::Encoding),
            ("/%4", BadPath::Encoding),
            ("/%zz", BadPath::Encoding),
            ("/%00", BadPath::Nul),
        ] {
            assert_eq!(with(path, true, EscapedSlashes::Keep), Err(error), "{path}");
            assert!(std::string::ToString::to_string(&error).starts_with("the path "));
        }
    }

    /// A random generator (xorshift), so that this crate needs no dependency.
    fn random(state: &mut u64, below: usize) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state % below as u64) as usize
    }

    #[test]
    fn normalization_is_idempotent() {
        let mut state = 7;
        let parts = ["/", ".", "..", "%2e", "%2F", "a", "%41", "//", "\\", "%25", "é", "%c3", ";", "{", "%3b", "%40"];
        for _ in 0..50_000 {
            let text: String =
                core::iter::once("/").chain((0..8).map(|_| parts[random(&mut state, parts.len())])).collect();
            for escaped_slashes in [EscapedSlashes::Keep, EscapedSlashes::Decode] {
                for parameters in [Parameters::Keep, Parameters::Strip] {
                    let rules = PathRules { merge_slashes: true, escaped_slashes, parameters };
                    let Ok(once) = of(&text, &rules) else {
                        assert!(text.contains(';'), "{text}");
                        continue;
                    };
                    assert_eq!(of(&once, &rules).as_ref(), Ok(&once), "{text}");
                    assert!(!once.split('/').any(|s| s == "." || s == ".."), "{text} became {once}");
                    assert!(!once.split('/').any(|s| s.starts_with(".;") || s.starts_with("..;")), "{text}: {once}");
                    let twice = compared(&compared(once.as_bytes())).into_owned();
                    assert_eq!(twice, compared(once.as_bytes()).into_owned(), "{text}");
                }
            }
        }
    }

    #[test]
    fn equivalent_escapes_are_compared_in_one_form() {
        for (text, expected) in [
            ("/a@b", "/a@b"),
            ("/a%40b%3A%3B%21%2B%3D", "/a@b:;!+="),
            ("/a%2Fb%5C%25%3F%23%20%C3%A9", "/a%2Fb%5C%25%3F%23%20%C3%A9"),
            ("/%2540", "/%2540"),
        ] {
            assert_eq!(compared(text.as_bytes()), expected.as_bytes(), "{text}");
        }
    }

    #[test]
    fn patterns_are_normalized_like_paths() {
        use Extent::{Beginning, End, Whole};
        for (extent, text, expected) in [
            (Whole, "/caf%c3%a9", Ok("/caf%C3%A9")),
            (Whole, "/café", Ok("/caf%C3%A9")),
            (Whole, "/a//b/../c", Ok("/a/c")),
            (Whole, "/a%40b", Ok("/a@b")),
            (Whole, "/a%", Err(BadPath::Encoding)),
            (Whole, "a", Err(BadPath::Relative)),
            (Beginning, "/caf%c3", Ok("/caf%C3")),
            (Beginning, "/a/.", Ok("/a/.")),
            (Beginning, "/a/../", Ok("/")),
            (Beginning, "//x", Ok("/x")),
            (Beginning, "/a%2", Err(BadPath::Encoding)),
            (End, ".png", Ok(".png")),
            (End, "%e9/x", Ok("%E9/x")),
            (End, "./x", Ok("./x")),
            (End, "x/./y", Ok("x/y")),
        ] {
            let spelled = pattern(text.as_bytes(), extent).map(|text| String::from_utf8(text).unwrap());
            assert_eq!(spelled.as_deref(), expected.as_ref().map(|text| *text), "{extent:?} {text}");
        }
    }

    #[test]
    fn hosts_are_normalized() {
        for (text, expected) in [
            ("example.com", Some("example.com")),
            ("example.com:8443", Some("example.com:8443")),
            ("Example.COM", Some("example.com")),
            ("example.com.", Some("example.com")),
            ("example.com..:80", Some("example.com:80")),
            ("example.com:08443", Some("example.com:8443")),
            ("example.com:00", Some("example.com:0")),
            ("example.com:", Some("example.com")),
            ("example.com:65535", Some("example.com:65535")),
            ("example.com:65536", None),
            ("example.com:+80", None),
            ("example.com:x", None),
            ("[2001:DB8:0:0::1]:0443", Some("[2001:db8::1]:443")),
            ("[::FFFF:1.2.3.4]", Some("[::ffff:1.2.3.4]")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("", None),
            (".", None),
            (":80", None),
        ] {
            let spelled = host(text.as_bytes()).map(|host| String::from_utf8(host.into_owned()).unwrap());
            assert_eq!(spelled.as_deref(), expected, "{text}");
            if let Some(once) = spelled {
                assert_eq!(host(once.as_bytes()).as_deref(), Some(once.as_bytes()), "{text}");
            }
        }
    }

    #[test]
    fn lower_case_methods_are_rejected() {
        assert!(is_method(b"DELETE") && is_method(b"M-SEARCH") && is_method(b"X_1"));
        assert!(!is_method(b"delete") && !is_method(b"Get"));
    }
}
