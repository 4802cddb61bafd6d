//! Request matching for filter rules: by path, method and headers.
//!
//! [`RequestMatch`] is the `match` block of a configuration. [`RequestMatch::compile`] turns it into a [`Matcher`],
//! which allocates nothing per request and calls the host only for the headers that it compares.

use std::borrow::Cow;

use serde::Deserialize;
use tollgate_abi::spelling;
pub use tollgate_abi::spelling::{BadPath, Extent, compared, position};

use crate::{Buffer, Mistakes, Name, Request, Setup};

/// Conditions on a request. All given conditions must hold; without any, every request matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestMatch {
    /// The path, without the query.
    pub path: Option<PathMatch>,
    /// Accepted methods. Default: any.
    pub methods: Option<Vec<String>>,
    /// Conditions on headers; all must hold.
    pub headers: Vec<HeaderMatch>,
}

/// Condition on a path: `{prefix: /api}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// A path prefix of whole segments: `/api` (or `/api/`) matches `/api` and `/api/users`, but not `/apis`.
    Prefix(String),
    /// The end of the path, such as `.png`.
    Suffix(String),
}

impl PathMatch {
    /// Reports whether a path (see [`compared_path`]) matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            PathMatch::Exact(exact) => path == exact.as_bytes(),
            PathMatch::Prefix(prefix) => is_below(path, prefix.as_bytes()),
            PathMatch::Suffix(suffix) => path.ends_with(suffix.as_bytes()),
        }
    }
}

/// Reports whether `path` equals `prefix` or lies below it, comparing whole segments.
pub fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|next| *next == b'/'))
}

/// Returns the path of a `:path` in the form in which rules compare it: without the query, and with unnecessary percent
/// escapes decoded, since servers treat `/a%40b` as `/a@b`. The host has already normalized everything else.
pub fn compared_path(target: &[u8]) -> Cow<'_, [u8]> {
    compared(without_query(target))
}

/// Normalizes a path that a filter has built (without a query) in the same way as the host normalizes requests' paths.
/// In particular, it removes dot segments, which an upstream would resolve to another path.
///
/// # Errors
/// Servers would interpret the path differently in any normalized form.
pub fn normal_path(path: &[u8]) -> Result<Cow<'_, [u8]>, BadPath> {
    spelling::path(path, &spelling::PathRules { merge_slashes: false, ..spelling::PathRules::default() })
}

/// Returns the path of a `:path` without its query.
pub fn without_query(path: &[u8]) -> &[u8] {
    position(path, b'?').map_or(path, |query| &path[..query])
}

/// The name and value of a cookie in a request.
pub type Cookie<'a> = (&'a [u8], Cow<'a, [u8]>);

/// Parses a `Cookie` header in the one way that all filters share. Servers tolerate different deviations from the
/// grammar of RFC 6265, and a client must not be able to bypass a rule with a spelling that some server treats as the
/// same cookie. Therefore pairs end at `;` and, since several header fields are joined with commas, also at `,`;
/// whitespace around names and values is ignored; a pair of quotes around a value is removed and its escapes are
/// decoded (`\"` and `\054`, as Python's `http.cookies` writes them). A part without `=` is ignored.
pub fn cookies(header: &[u8]) -> impl Iterator<Item = Cookie<'_>> {
    header.split(|b| matches!(b, b';' | b',')).filter_map(cookie)
}

fn cookie(part: &[u8]) -> Option<Cookie<'_>> {
    let (name, value) = part.split_at(position(part, b'=')?);
    let value = value[1..].trim_ascii();
    let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some((name.trim_ascii(), quoted.map_or(Cow::Borrowed(value), unescaped)))
}

/// Decodes the inside of a quoted value: a backslash escapes the next character, or the one given by three octal
/// digits.
fn unescaped(quoted: &[u8]) -> Cow<'_, [u8]> {
    let Some(mut at) = position(quoted, b'\\') else { return quoted.into() };
    let (mut bytes, mut rest) = (Vec::with_capacity(quoted.len()), quoted);
    loop {
        bytes.extend_from_slice(&rest[..at]);
        let (byte, taken) = match rest[at + 1..] {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 3)
            }
            [other, ..] => (other, 1),
            [] => (b'\\', 0),
        };
        bytes.push(byte);
        rest = &rest[at + 1 + taken..];
        match position(rest, b'\\') {
            Some(next) => at = next,
            None => {
                bytes.extend_from_slice(rest);
                return bytes.into();
            }
        }
    }
}

/// Returns a cookie's value in a canonical form that covers every server's decoding. Many servers decode percent
/// escapes (Express, PHP, Rack), some of these also decode `+` to a space, others decode nothing. `%61+b`, `a%20b` and
/// `a%2Bb` therefore all become `a b`. Values that some server distinguishes may become equal, but spellings of the
/// same value never become different.
pub fn undisguised(value: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if !value.iter().any(|b| matches!(b, b'%' | b'+')) {
        return value;
    }
    let digit = |at: usize| value.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut bytes, mut at) = (Vec::with_capacity(value.len()), 0);
    while let Some(&byte) = value.get(at) {
        let (byte, taken) = match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => ((high << 4 | low) as u8, 3),
            _ => (byte, 1),
        };
        bytes.push(if byte == b'+' { b' ' } else { byte });
        at += taken;
    }
    bytes.into()
}

/// Condition on a header: its name and at most one of the other fields; the name alone means `present: true`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// Name, case-insensitive.
    pub name: String,
    /// The whole value. Several fields of the same name are compared as one value, joined with `, `.
    #[serde(default)]
    pub exact: Option<String>,
    /// The beginning of the value.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The end of the value.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Whether the header must be present (`true`) or absent (`false`).
    #[serde(default)]
    pub present: Option<bool>,
    /// Inverts the condition: it holds if the header is missing or does not match. Default: `false`.
    #[serde(default)]
    pub invert: bool,
}

/// Condition on a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// The whole value.
    Exact(String),
    /// The beginning of the value.
    Prefix(String),
    /// The end of the value.
    Suffix(String),
    /// Whether a value must be present (`true`) or absent (`false`).
    Present(bool),
}

impl StringMatch {
    /// Reports whether a value (`None`: absent) matches.
    pub fn matches(&self, value: Option<&[u8]>) -> bool {
        match (self, value) {
            (StringMatch::Present(present), value) => *present == value.is_some(),
            (_, None) => false,
            (StringMatch::Exact(exact), Some(value)) => value == exact.as_bytes(),
            (StringMatch::Prefix(prefix), Some(value)) => value.starts_with(prefix.as_bytes()),
            (StringMatch::Suffix(suffix), Some(value)) => value.ends_with(suffix.as_bytes()),
        }
    }
}

/// A compiled [`RequestMatch`].
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    path: Option<PathMatch>,
    methods: Option<Vec<String>>,
    headers: Vec<(Name, StringMatch, bool)>,
}

/// Normalizes a path from a configuration as the host does with requests' paths. Fails if no path can match it.
pub fn spelled_path(path: &str, extent: Extent) -> Result<String, String> {
    if let Some(at) = path.find(['?', '#']) {
        let what = if path[at..].starts_with('?') { "query" } else { "fragment" };
        return Err(format!("`{path}` has a {what}, which is not compared; leave it out"));
    }
    if extent != Extent::End && !path.starts_with('/') {
        return Err(format!("a path begins with `/`: write `/{path}`"));
    }
    let spelled = spelling::pattern(path.as_bytes(), extent).map_err(|e| format!("`{path}` matches no path: {e}"))?;
    Ok(String::from_utf8_lossy(&spelled).into_owned())
}

/// Describes why requests' paths can never match this path or part of a path; `None` if they can.
pub fn path_mistake(path: &str, extent: Extent) -> Option<String> {
    match spelled_path(path, extent) {
        Ok(spelled) => (spelled != path).then(|| other_spelling("path", path, &spelled)),
        Err(message) => Some(message),
    }
}

/// Describes why requests' hosts can never match this host (with or without a port, in any case); `None` if they can.
pub fn host_mistake(host: &str) -> Option<String> {
    let lower = host.to_ascii_lowercase();
    match spelling::host(lower.as_bytes()) {
        Some(spelled) if *spelled == *lower.as_bytes() => None,
        Some(spelled) => Some(other_spelling("host", host, &String::from_utf8_lossy(&spelled))),
        None => Some(format!("`{host}` is not a host, such as `example.com` or `example.com:8080`")),
    }
}

fn other_spelling(what: &str, text: &str, spelled: &str) -> String {
    format!("`{text}` matches no {what}: write `{spelled}`")
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Describes why a method name is invalid; `None` if it is valid.
pub fn method_mistake(method: &str) -> Option<String> {
    if !is_token(method) {
        return Some(format!("`{method}` is not a method; a method is a word such as `GET`"));
    }
    let right = method.to_ascii_uppercase();
    (!spelling::is_method(method.as_bytes())).then(|| other_spelling("method", method, &right))
}

/// The pseudo-headers of requests.
const PSEUDO: [&str; 4] = [":method", ":path", ":authority", ":scheme"];

/// Describes why a request header's name is invalid; `None` if it is valid.
pub fn header_name_mistake(name: &str) -> Option<String> {
    match name.strip_prefix(':') {
        Some(_) if PSEUDO.contains(&name) => None,
        Some("host") => Some("`:host` is not a request header: write `:authority`".into()),
        Some(_) => Some(format!("`{name}` is not a request header; the pseudo-headers are `{}`", PSEUDO.join("`, `"))),
        None if is_token(name) => None,
        None => Some(format!("`{name}` is not a valid header name; a name is a word such as `x-user`")),
    }
}

/// Describes why the values of this header can never match `value`; `None` if they can. Pseudo-headers are normalized.
pub fn header_value_mistake(name: &str, value: &str, extent: Extent) -> Option<String> {
    match name.to_ascii_lowercase().as_str() {
        // Includes the query. For a suffix it is unknown whether it ends the path or the query.
        ":path" if extent != Extent::End && value != "*" => match value.split_once('?') {
            Some((path, _)) => path_mistake(path, Extent::Whole),
            None => path_mistake(value, extent),
        },
        ":method" if extent == Extent::Whole => method_mistake(value),
        ":authority" | "host" if value.bytes().any(|b| b.is_ascii_uppercase()) => {
            Some(other_spelling("host", value, &value.to_ascii_lowercase()))
        }
        ":authority" | "host" if extent == Extent::Whole => host_mistake(value),
        _ => None,
    }
}

impl RequestMatch {
    /// Compiles the conditions. `at` is their location in the configuration; errors are added to `mistakes`.
    pub fn compile(self, at: &str, setup: &mut Setup, mistakes: &Mistakes) -> Matcher {
        match &self.path {
            // `OPTIONS *`.
            Some(PathMatch::Exact(path)) if path == "*" => {}
            Some(PathMatch::Suffix(path)) if path.is_empty() => {
                mistakes.add(
                    format!("{at}.path.suffix"),
                    "an empty suffix matches every path: leave it out, or write one such as `.png`",
                );
            }
            Some(path) => {
                let (field, text, extent) = match path {
                    PathMatch::Exact(text) => ("exact", text, Extent::Whole),
                    // Whole segments.
                    PathMatch::Prefix(text) => ("prefix", text, Extent::Whole),
                    PathMatch::Suffix(text) => ("suffix", text, Extent::End),
                };
                if let Some(message) = path_mistake(text, extent) {
                    mistakes.add(format!("{at}.path.{field}"), message);
                }
            }
            None => {}
        }
        if let Some(methods) = &self.methods {
            if methods.is_empty() {
                mistakes.add(format!("{at}.methods"), "an empty list matches no request: leave it out for any method");
            }
            for (i, method) in methods.iter().enumerate() {
                if let Some(message) = method_mistake(method) {
                    mistakes.add(format!("{at}.methods[{i}]"), message);
                }
            }
        }
        let mut headers = Vec::with_capacity(self.headers.len());
        for (i, header) in self.headers.into_iter().enumerate() {
            headers.push(header.compile(&format!("{at}.headers[{i}]"), setup, mistakes));
        }
        Matcher { path: self.path, methods: self.methods, headers }
    }
}

impl HeaderMatch {
    fn compile(self, at: &str, setup: &mut Setup, mistakes: &Mistakes) -> (Name, StringMatch, bool) {
        if let Some(message) = header_name_mistake(&self.name) {
            mistakes.add(format!("{at}.name"), message);
        }
        let given = [
            self.exact.map(StringMatch::Exact),
            self.prefix.map(StringMatch::Prefix),
            self.suffix.map(StringMatch::Suffix),
            self.present.map(StringMatch::Present),
        ];
        let mut given = given.into_iter().flatten();
        let value = given.next().unwrap_or(StringMatch::Present(true));
        if given.next().is_some() {
            mistakes.add(at, "use only one of `exact`, `prefix`, `suffix` and `present`");
        }
        let compared = match &value {
            StringMatch::Exact(text) => Some(("exact", text, Extent::Whole)),
            StringMatch::Prefix(text) => Some(("prefix", text, Extent::Beginning)),
            StringMatch::Suffix(text) => Some(("suffix", text, Extent::End)),
            StringMatch::Present(_) => None,
        };
        if let Some((field, text, extent)) = compared
            && let Some(message) = header_value_mistake(&self.name, text, extent)
        {
            mistakes.add(format!("{at}.{field}"), message);
        }
        (setup.name(&self.name), value, self.invert)
    }
}

impl Matcher {
    /// Reports whether the matcher reads the method or the path. If not, `matches` may be called with empty ones.
    pub fn needs_line(&self) -> bool {
        self.path.is_some() || self.methods.is_some()
    }

    /// Reports whether a request matches. `path` is the result of [`compared_path`]; headers are read one at a time
    /// into `scratch`.
    pub fn matches(&self, method: &[u8], path: &[u8], request: &Request, scratch: &mut Buffer) -> bool {
        self.path.as_ref().is_none_or(|m| m.matches(path))
            && self.methods.as_ref().is_none_or(|all| all.iter().any(|m| m.as_bytes() == method))
            && self.headers.iter().all(|(name, m, invert)| m.matches(request.header(*name, scratch)) != *invert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigError, Filter, Flow, Phases, testing::TestHost};
    use serde_json::{Value, json};

    struct Only(Matcher, [Name; 2]);

    impl Filter for Only {
        type Config = RequestMatch;
        type Stream = ();
        const PHASES: Phases = Phases::REQUEST_HEADERS;

        fn configure(config: RequestMatch, setup: &mut Setup) -> Result<Self, ConfigError> {
            let mistakes = Mistakes::default();
            let matcher = config.compile("match", setup, &mistakes);
            mistakes.finish()?;
            Ok(Only(matcher, [setup.name(":method"), setup.name(":path")]))
        }

        fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
            let (mut buffer, mut scratch) = (Buffer::new(), Buffer::new());
            let [method, path] = request.headers(self.1, &mut buffer).map(Option::unwrap_or_default);
            let meant = self.0.matches(method, &compared_path(path), request, &mut scratch);
            if meant { Flow::Continue } else { crate::Reply::new(404).into() }
        }
    }

    fn meant(config: Value, method: &str, path: &str, headers: &[(&str, &str)]) -> bool {
        let host = TestHost::<Only>::new(config).unwrap();
        headers.iter().fold(host.request(method, path), |r, (n, v)| r.header(n, v)).send().continued()
    }

    #[test]
    fn first_wanted_byte_is_found_at_any_position() {
        for len in 0..40 {
            for others in [0, b'>', b'@', 0x80 | b'?', 0xff] {
                assert_eq!(position(&vec![others; len], b'?'), None);
                for (first, second) in (0..len).flat_map(|first| (first..len).map(move |second| (first, second))) {
                    let mut bytes = vec![others; len];
                    (bytes[first], bytes[second]) = (b'?', b'?');
                    assert_eq!(position(&bytes, b'?'), Some(first), "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn cookies_are_parsed_in_one_way() {
        for spelling in [
            "role=admin",
            " role = admin ",
            "role=\tadmin",
            "role=\"admin\"",
            "role\t= \"admin\" ",
            "role=admin,",
            ";,role=admin",
            r#"role="\141dmin""#,
            r#"role="\a\144m\151n""#,
        ] {
            assert!(cookies(spelling.as_bytes()).eq([(&b"role"[..], b"admin"[..].into())]), "{spelling:?}");
        }
        let header = br#"a=1,b=x=y; c="; d=""; ; e; =f; "g"=""h"""#;
        let expected = [("a", "1"), ("b", "x=y"), ("c", "\""), ("d", ""), ("", "f"), ("\"g\"", "\"h\"")];
        assert!(cookies(header).eq(expected.map(|(name, value)| (name.as_bytes(), value.as_bytes().into()))));
        let escaped = [(r#"a="b\054c\"d\\""#, r#"b,c"d\"#), (r#"a="\400\08\""#, r"40008\"), (r"a=\141", r"\141")];
        for (header, value) in escaped {
            assert!(cookies(header.as_bytes()).eq([(&b"a"[..], value.as_bytes().into())]), "{header}");
        }
        assert_eq!(cookies(b"").count(), 0);
    }

    #[test]
    fn all_encodings_of_a_value_are_equal() {
        for (value, plain) in [
            ("%61dmin", "admin"),
            ("%61%64%6D%69%6e", "admin"),
            ("a+b", "a b"),
            ("a%20b", "a b"),
            ("a%2Bb", "a b"),
            ("100%", "100%"),
            ("%6", "%6"),
            ("%zz%61", "%zza"),
            ("%2561", "%61"),
            ("%+1", "% 1"),
            ("", ""),
        ] {
            assert_eq!(undisguised(value.as_bytes().into()), plain.as_bytes(), "{value}");
        }
        assert!(matches!(undisguised(b"admin"[..].into()), Cow::Borrowed(b"admin")));
    }

    #[test]
    fn paths_match_whole_segments_without_the_query() {
        let table = [
            (json!({}), "/any", true),
            (json!({"path": {"exact": "/a"}}), "/a?q=1", true),
            (json!({"path": {"exact": "/a"}}), "/a/", false),
            (json!({"path": {"prefix": "/a"}}), "/a", true),
            (json!({"path": {"prefix": "/a"}}), "/a/b", true),
            (json!({"path": {"prefix": "/a"}}), "/ab", false),
            (json!({"path": {"prefix": "/a/"}}), "/a", true),
            (json!({"path": {"prefix": "/a/"}}), "/ab", false),
            (json!({"path": {"prefix": "/"}}), "/x", true),
            (json!({"path": {"exact": "/a@b"}}), "/a%40b", true),
            (json!({"path": {"prefix": "/a;b"}}), "/a%3Bb/c", true),
            (json!({"path": {"suffix": "+.png"}}), "/x%2B.png", true),
            (json!({"path": {"suffix": ".png"}}), "/x.png?y=.gif", true),
            (json!({"path": {"suffix": ".png"}}), "/x.gif?y=.png", false),
        ];
        for (config, path, expected) in table {
            assert_eq!(meant(config.clone(), "GET", path, &[]), expected, "{config} {path}");
        }
    }

    #[test]
    fn headers_match_by_value_or_presence() {
        let table = [
            (json!({"name": "X-A"}), Some("1"), true),
            (json!({"name": "x-a"}), None, false),
            (json!({"name": "x-a", "exact": "1"}), Some("1"), true),
            (json!({"name": "x-a", "exact": "1"}), Some("12"), false),
            (json!({"name": "x-a", "prefix": "1"}), Some("12"), true),
            (json!({"name": "x-a", "suffix": "2"}), Some("12"), true),
            (json!({"name": "x-a", "suffix": "2"}), None, false),
            (json!({"name": "x-a", "present": false}), None, true),
            (json!({"name": "x-a", "present": false}), Some(""), false),
            (json!({"name": "x-a", "exact": "1", "invert": true}), None, true),
            (json!({"name": "x-a", "exact": "1", "invert": true}), Some("1"), false),
        ];
        for (header, value, expected) in table {
            let headers: Vec<_> = value.iter().map(|v| ("x-a", *v)).collect();
            assert_eq!(meant(json!({"headers": [header]}), "GET", "/", &headers), expected, "{header} {value:?}");
        }
        let both = json!({"headers": [{"name": "x-a", "exact": "1, 2"}], "methods": ["PUT", "POST"]});
        assert!(meant(both.clone(), "POST", "/", &[("x-a", "1"), ("x-a", "2")]));
        assert!(!meant(both, "GET", "/", &[("x-a", "1"), ("x-a", "2")]));
    }

    #[test]
    fn every_error_has_a_location() {
        let table = [
            (json!({"path": {"exact": "a"}}), "match.path.exact: a path begins with `/`: write `/a`"),
            (
                json!({"path": {"exact": "/login?x"}}),
                "match.path.exact: `/login?x` has a query, which is not compared; leave it out",
            ),
            (
                json!({"path": {"exact": "/a#b"}}),
                "match.path.exact: `/a#b` has a fragment, which is not compared; leave it out",
            ),
            (
                json!({"path": {"prefix": "/caf%c3%a9"}}),
                "match.path.prefix: `/caf%c3%a9` matches no path: write `/caf%C3%A9`",
            ),
            (json!({"path": {"prefix": "//x"}}), "match.path.prefix: `//x` matches no path: write `/x`"),
            (json!({"path": {"exact": "/a%40b"}}), "match.path.exact: `/a%40b` matches no path: write `/a@b`"),
            (
                json!({"path": {"exact": "/a/..;/b"}}),
                "match.path.exact: `/a/..;/b` matches no path: the path has an empty segment or a dot segment with parameters",
            ),
            (
                json!({"headers": [{"name": ":host"}]}),
                "match.headers[0].name: `:host` is not a request header: write `:authority`",
            ),
            (
                json!({"headers": [{"name": ":status"}]}),
                "match.headers[0].name: `:status` is not a request header; the pseudo-headers are `:method`, `:path`, `:authority`, `:scheme`",
            ),
            (
                json!({"headers": [{"name": "Host", "exact": "Example.com"}]}),
                "match.headers[0].exact: `Example.com` matches no host: write `example.com`",
            ),
            (
                json!({"headers": [{"name": ":authority", "exact": "example.com."}]}),
                "match.headers[0].exact: `example.com.` matches no host: write `example.com`",
            ),
            (
                json!({"headers": [{"name": ":path", "prefix": "/%61?x"}]}),
                "match.headers[0].prefix: `/%61` matches no path: write `/a`",
            ),
            (
                json!({"headers": [{"name": ":method", "exact": "get"}]}),
                "match.headers[0].exact: `get` matches no method: write `GET`",
            ),
            (json!({"path": {"prefix": "a"}}), "match.path.prefix: a path begins with `/`: write `/a`"),
            (
                json!({"path": {"suffix": ""}}),
                "match.path.suffix: an empty suffix matches every path: leave it out, or write one such as `.png`",
            ),
            (json!({"methods": []}), "match.methods: an empty list matches no request: leave it out for any method"),
            (
                json!({"methods": ["GET", "put", "a b"]}),
                "match.methods[1]: `put` matches no method: write `PUT`; \
                 match.methods[2]: `a b` is not a method; a method is a word such as `GET`",
            ),
            (
                json!({"headers": [{"name": "x y", "exact": "1", "present": true}]}),
                "match.headers[0].name: `x y` is not a valid header name; a name is a word such as `x-user`; \
                 match.headers[0]: use only one of `exact`, `prefix`, `suffix` and `present`",
            ),
        ];
        for (config, expected) in table {
            let error = TestHost::<Only>::new(config).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
