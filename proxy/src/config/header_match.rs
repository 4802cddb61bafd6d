//! Conditions on the headers of a message, as clusters and routes state them: compiled once, when they are configured.

use std::{borrow::Cow, fmt, hash};

use http::{HeaderMap, HeaderName};
use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use tollgate_abi::doc::HeaderMatch;

/// The maximum size of a compiled expression in bytes.
const REGEX_BYTES: usize = 1 << 20;

/// A condition on a header.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "HeaderMatch", into = "HeaderMatch")]
pub struct HeaderMatcher {
    name: HeaderName,
    test: Test,
    /// What it was compiled from, by which it is compared.
    source: HeaderMatch,
}

#[derive(Clone)]
enum Test {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Regex(Regex),
    Present(bool),
}

/// An error: a condition that no value can meet, or that is ambiguous. `field` is the one that is wrong; without one, the
/// combination is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadHeaderMatch {
    /// The field that is wrong.
    pub field: Option<&'static str>,
    /// What is wrong.
    pub message: String,
}

fn wrong(field: &'static str, message: String) -> BadHeaderMatch {
    BadHeaderMatch { field: Some(field), message }
}

impl TryFrom<HeaderMatch> for HeaderMatcher {
    type Error = BadHeaderMatch;

    fn try_from(source: HeaderMatch) -> Result<HeaderMatcher, BadHeaderMatch> {
        let name = HeaderName::from_bytes(source.name.as_bytes())
            .map_err(|_| wrong("name", format!("`{}` is not the name of a header", source.name)))?;
        let text = |text: &String| text.as_str().into();
        let regex = source.regex.as_deref().map(whole).transpose().map_err(|message| wrong("regex", message))?;
        let tests = [
            ("exact", source.exact.as_ref().map(text).map(Test::Exact)),
            ("prefix", source.prefix.as_ref().map(text).map(Test::Prefix)),
            ("suffix", source.suffix.as_ref().map(text).map(Test::Suffix)),
            ("regex", regex.map(Test::Regex)),
            ("present", source.present.map(Test::Present)),
        ];
        let mut given: Vec<_> = tests.into_iter().filter_map(|(name, test)| Some((name, test?))).collect();
        if given.len() > 1 {
            let names: Vec<_> = given.iter().map(|(name, _)| format!("`{name}`")).collect();
            return Err(BadHeaderMatch { field: None, message: format!("give only one of {}", names.join(", ")) });
        }
        let test = given.pop().map_or(Test::Present(true), |(_, test)| test);
        Ok(HeaderMatcher { name, test, source })
    }
}

impl From<HeaderMatcher> for HeaderMatch {
    fn from(matcher: HeaderMatcher) -> HeaderMatch {
        matcher.source
    }
}

/// A regular expression that must match a whole value.
fn whole(pattern: &str) -> Result<Regex, String> {
    let build = |pattern: &str| RegexBuilder::new(pattern).unicode(false).size_limit(REGEX_BYTES).build();
    // Compiled alone first: an unbalanced bracket must not pair with the text added around it.
    build(pattern).and_then(|_| build(&format!(r"\A(?:{pattern})\z"))).map_err(|error| {
        // The crate's message has several lines; the last one has the error.
        let error = error.to_string();
        let error = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("`{pattern}` is not a regular expression: {error}")
    })
}

impl HeaderMatcher {
    /// Whether a message with these fields meets the condition. A missing header meets only `present: false` and any
    /// condition that is negated.
    pub fn matches(&self, fields: &HeaderMap) -> bool {
        let mut values = fields.get_all(&self.name).iter();
        let first = values.next();
        let met = match (&self.test, first) {
            (Test::Present(present), first) => first.is_some() == *present,
            (_, None) => false,
            (test, Some(first)) => {
                let mut value = Cow::Borrowed(first.as_bytes());
                for more in values {
                    let value = value.to_mut();
                    value.extend_from_slice(b", ");
                    value.extend_from_slice(more.as_bytes());
                }
                match test {
                    Test::Exact(text) => *value == *text.as_bytes(),
                    Test::Prefix(text) => value.starts_with(text.as_bytes()),
                    Test::Suffix(text) => value.ends_with(text.as_bytes()),
                    Test::Regex(regex) => regex.is_match(&value),
                    Test::Present(present) => *present,
                }
            }
        };
        met != self.source.invert
    }
}

impl fmt::Debug for HeaderMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl PartialEq for HeaderMatcher {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for HeaderMatcher {}

impl hash::Hash for HeaderMatcher {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.source.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    fn compile(config: Value) -> Result<HeaderMatcher, BadHeaderMatch> {
        serde_json::from_value::<HeaderMatch>(config).unwrap().try_into()
    }

    #[test]
    fn conditions_are_met_by_values_or_their_absence() {
        let fields = |values: &[&'static str]| {
            values.iter().map(|v| (HeaderName::from_static("x-a"), HeaderValue::from_static(v))).collect::<HeaderMap>()
        };
        let name = |mut config: Value| {
            config["name"] = "X-A".into();
            config
        };
        for (config, met, unmet) in [
            (json!({}), &[&["1"][..], &[""]][..], &[&[][..]][..]),
            (json!({"present": false}), &[&[]], &[&["1"]]),
            (json!({"present": true, "invert": true}), &[&[]], &[&["1"]]),
            (json!({"exact": "a"}), &[&["a"]], &[&["A"], &["ab"], &["a", "a"], &[]]),
            (json!({"exact": "a, b"}), &[&["a", "b"], &["a, b"]], &[&["a"], &["b", "a"]]),
            (json!({"exact": "a", "invert": true}), &[&["b"], &[]], &[&["a"]]),
            (json!({"prefix": "ab"}), &[&["abc"], &["ab", "c"]], &[&["a"], &["xab"], &[]]),
            (json!({"suffix": "bc"}), &[&["abc"], &["x", "bc"]], &[&["bcd"], &[]]),
            (json!({"regex": "a|b+"}), &[&["a"], &["bb"]], &[&["ab"], &["xa"], &[]]),
        ] {
            let matcher = compile(name(config)).unwrap();
            for values in met {
                assert!(matcher.matches(&fields(values)), "{matcher:?} {values:?}");
            }
            for values in unmet {
                assert!(!matcher.matches(&fields(values)), "{matcher:?} {values:?}");
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (config, field, message) in [
            (json!({"name": "a b"}), Some("name"), "`a b` is not the name of a header"),
            (json!({"name": ":status"}), Some("name"), "`:status` is not the name of a header"),
            (json!({"name": "a", "exact": "1", "present": true}), None, "give only one of `exact`, `present`"),
            (json!({"name": "a", "regex": "("}), Some("regex"), "`(` is not a regular expression: unclosed group"),
            (
                json!({"name": "a", "regex": "a)(b"}),
                Some("regex"),
                "`a)(b` is not a regular expression: unopened group",
            ),
        ] {
            let error = compile(config.clone()).unwrap_err();
            assert_eq!((error.field, &*error.message), (field, message), "{config}");
        }
    }
}
