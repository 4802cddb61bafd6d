//! Which requests a rule of a filter is for: by path, method and headers.
//!
//! [`RequestMatch`] is what stands in a configuration, under `match`; [`RequestMatch::compile`] makes a [`Matcher`] of it,
//! which costs a request no allocation, and a call of the host only for a header that is asked about.

use serde::Deserialize;

use crate::{Buffer, Mistakes, Name, Request, Setup};

/// What a request must be like. All that is given must hold; nothing given: every request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestMatch {
    /// Its path, without the query.
    pub path: Option<PathMatch>,
    /// One of these methods. Default: any.
    pub methods: Option<Vec<String>>,
    /// Each of these headers.
    pub headers: Vec<HeaderMatch>,
}

/// What a path must be like: `{prefix: /api}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// Exactly this.
    Exact(String),
    /// This, or something below it: `/api` (or `/api/`) is for `/api` and `/api/users`, not for `/apis`.
    Prefix(String),
    /// With this at its end, such as `.png`.
    Suffix(String),
}

impl PathMatch {
    /// Whether a path (without a query) is like this.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            PathMatch::Exact(exact) => path == exact.as_bytes(),
            PathMatch::Prefix(prefix) => is_below(path, prefix.as_bytes()),
            PathMatch::Suffix(suffix) => path.ends_with(suffix.as_bytes()),
        }
    }
}

/// Whether a path is `prefix` or lies below it, by whole segments.
pub fn is_below(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|next| *next == b'/'))
}

/// A path as in `:path`, without its query.
pub fn without_query(path: &[u8]) -> &[u8] {
    position(path, b'?').map_or(path, |query| &path[..query])
}

/// Where a byte is for the first time. Eight bytes at a time: a module looks at single ones a good deal slower than native
/// code does.
pub fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let pattern = u64::from(wanted) * ONES;
    let within = |eight: &[u8; 8]| {
        // Its lowest bit that is set is that of the first byte that is the wanted one.
        let differences = u64::from_le_bytes(*eight) ^ pattern;
        let same = differences.wrapping_sub(ONES) & !differences & (ONES << 7);
        (same != 0).then(|| (same.trailing_zeros() / 8) as usize)
    };
    let Some(last) = bytes.last_chunk() else { return bytes.iter().position(|byte| *byte == wanted) };
    let (eights, _) = bytes.as_chunks();
    let found = eights.iter().enumerate().find_map(|(i, eight)| Some(i * 8 + within(eight)?));
    // What is left after them is looked at together with some of those before.
    found.or_else(|| Some(bytes.len() - 8 + within(last)?))
}

/// What a header must be like: its name and at most one of the others; the name alone is `present: true`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// Its name, in any case.
    pub name: String,
    /// Its value. Several fields of one name are one value, joined by `, `.
    #[serde(default)]
    pub exact: Option<String>,
    /// The beginning of its value.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The end of its value.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Whether it must be there (`true`) or must not (`false`).
    #[serde(default)]
    pub present: Option<bool>,
    /// Turns the answer round: a request without the header, or with another value, is meant. Default: `false`.
    #[serde(default)]
    pub invert: bool,
}

/// What a value must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// Exactly this.
    Exact(String),
    /// With this at its beginning.
    Prefix(String),
    /// With this at its end.
    Suffix(String),
    /// There, whatever it is (`true`); not there (`false`).
    Present(bool),
}

impl StringMatch {
    /// Whether a value, or that there is none, is like this.
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

/// A [`RequestMatch`], ready for requests.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    path: Option<PathMatch>,
    methods: Option<Vec<String>>,
    headers: Vec<(Name, StringMatch, bool)>,
}

/// The methods that everybody knows, to tell a method in lower case from one that somebody has made up.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// What is wrong with the name of a method, which is compared case-sensitively.
pub fn method_mistake(method: &str) -> Option<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if method.is_empty() || !method.bytes().all(token) {
        return Some(format!("`{method}` is not a method; a method is a word such as `GET`"));
    }
    let upper = METHODS.iter().find(|known| known.eq_ignore_ascii_case(method) && **known != method)?;
    Some(format!("methods are case-sensitive: write `{upper}` instead of `{method}`"))
}

/// What is wrong with the name of a header.
pub fn header_name_mistake(name: &str) -> Option<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let bare = name.strip_prefix(':').unwrap_or(name);
    (bare.is_empty() || !bare.bytes().all(token))
        .then(|| format!("`{name}` is not a header's name; a name is a word such as `x-user`"))
}

impl RequestMatch {
    /// Makes it ready. `at` is where it stands in the configuration; what is wrong goes to `mistakes`.
    pub fn compile(self, at: &str, setup: &mut Setup, mistakes: &Mistakes) -> Matcher {
        match &self.path {
            Some(PathMatch::Exact(path)) if !path.starts_with('/') && path != "*" => {
                mistakes.add(format!("{at}.path.exact"), format!("a path begins with `/`: write `/{path}`"));
            }
            Some(PathMatch::Prefix(path)) if !path.starts_with('/') => {
                mistakes.add(format!("{at}.path.prefix"), format!("a path begins with `/`: write `/{path}`"));
            }
            Some(PathMatch::Suffix(path)) if path.is_empty() => {
                mistakes.add(format!("{at}.path.suffix"), "every path ends with nothing: leave it out, or say more");
            }
            _ => {}
        }
        if let Some(methods) = &self.methods {
            if methods.is_empty() {
                mistakes.add(format!("{at}.methods"), "an empty list is for no request: leave it out for any method");
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
            mistakes.add(at, "give one of `exact`, `prefix`, `suffix` and `present`, not several");
        }
        (setup.name(&self.name), value, self.invert)
    }
}

impl Matcher {
    /// Whether the request's method or path is asked about. If not, `matches` may be given empty ones.
    pub fn needs_line(&self) -> bool {
        self.path.is_some() || self.methods.is_some()
    }

    /// Whether a request is meant. `path` is without the query; `scratch` is for the headers, read one at a time.
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
            let meant = self.0.matches(method, without_query(path), request, &mut scratch);
            if meant { Flow::Continue } else { crate::Reply::new(404).into() }
        }
    }

    fn meant(config: Value, method: &str, path: &str, headers: &[(&str, &str)]) -> bool {
        let host = TestHost::<Only>::new(config).unwrap();
        headers.iter().fold(host.request(method, path), |r, (n, v)| r.header(n, v)).send().continued()
    }

    #[test]
    fn the_first_byte_that_is_wanted_is_found_wherever_it_is() {
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
    fn paths_match_by_whole_segments_and_without_their_query() {
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
    fn every_mistake_has_its_place() {
        let table = [
            (json!({"path": {"exact": "a"}}), "match.path.exact: a path begins with `/`: write `/a`"),
            (json!({"path": {"prefix": "a"}}), "match.path.prefix: a path begins with `/`: write `/a`"),
            (
                json!({"path": {"suffix": ""}}),
                "match.path.suffix: every path ends with nothing: leave it out, or say more",
            ),
            (json!({"methods": []}), "match.methods: an empty list is for no request: leave it out for any method"),
            (
                json!({"methods": ["GET", "put", "a b"]}),
                "match.methods[1]: methods are case-sensitive: write `PUT` instead of `put`; \
                 match.methods[2]: `a b` is not a method; a method is a word such as `GET`",
            ),
            (
                json!({"headers": [{"name": "x y", "exact": "1", "present": true}]}),
                "match.headers[0].name: `x y` is not a header's name; a name is a word such as `x-user`; \
                 match.headers[0]: give one of `exact`, `prefix`, `suffix` and `present`, not several",
            ),
        ];
        for (config, expected) in table {
            let error = TestHost::<Only>::new(config).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
