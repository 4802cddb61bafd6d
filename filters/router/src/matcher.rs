//! Match conditions: methods, headers, query parameters, regular expressions.

use regex::bytes::{Regex, RegexBuilder};
use tollgate_sdk::{
    Setup,
    matching::{Extent, header_value_mistake, method_mistake},
};

use crate::{
    config::{HeaderMatch, Match, QueryMatch},
    head::{Head, HeaderNames, Slot},
    headers,
    place::Place,
};

/// All of a rule's conditions except exact paths and prefixes, which the table handles.
#[derive(Default)]
pub(crate) struct Conditions {
    /// Empty: any method.
    methods: Box<[Box<[u8]>]>,
    query: Box<[QueryCondition]>,
    headers: Box<[HeaderCondition]>,
    path: Option<Regex>,
}

struct QueryCondition {
    name: Box<[u8]>,
    value: ValueCondition,
}

struct HeaderCondition {
    slot: Slot,
    value: ValueCondition,
}

struct ValueCondition {
    test: Test,
    invert: bool,
}

enum Test {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Regex(Regex),
    Present(bool),
}

impl Conditions {
    /// Compiles the conditions at `place` and reports errors in them.
    pub(crate) fn compile(config: &Match, place: &Place, names: &mut HeaderNames, setup: &mut Setup) -> Self {
        if config.methods.as_ref().is_some_and(Vec::is_empty) {
            place.field("methods").wrong("an empty list matches no request: leave it out for any method");
        }
        let methods = config.methods.iter().flatten().enumerate();
        let methods = methods.filter_map(|(i, m)| method(m, &place.field("methods").item(i))).collect();
        let query = config.query.iter().enumerate();
        let query = query.filter_map(|(i, q)| QueryCondition::compile(q, &place.field("query").item(i))).collect();
        let headers = config.headers.iter().enumerate();
        let headers = headers
            .filter_map(|(i, h)| HeaderCondition::compile(h, &place.field("headers").item(i), names, setup))
            .collect();
        let path = config.path.as_ref().and_then(|p| p.regex.as_ref());
        let path = path.and_then(|regex| place.field("path").field("regex").take(whole(regex)));
        Conditions { methods, query, headers, path }
    }

    /// Whether a request meets all conditions. Cheap ones are checked first.
    pub(crate) fn met_by(&self, head: &mut Head) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| **m == *head.method))
            && self.query.iter().all(|c| c.value.met_by(head.parameter(&c.name)))
            && self.headers.iter().all(|c| c.value.met_by(head.header(c.slot)))
            && self.path.as_ref().is_none_or(|regex| regex.is_match(head.path))
    }
}

impl QueryCondition {
    fn compile(config: &QueryMatch, place: &Place) -> Option<Self> {
        if config.name.is_empty() {
            place.field("name").wrong("is empty");
        }
        let QueryMatch { name, exact, prefix, regex, present, invert } = config;
        let fields = [
            ("exact", exact.as_deref().map(Given::Text)),
            ("prefix", prefix.as_deref().map(Given::Text)),
            ("regex", regex.as_deref().map(Given::Text)),
            ("present", present.map(Given::Present)),
        ];
        let test = Test::compile(place.at_most_one_of(fields)?, place)?;
        Some(QueryCondition { name: name.as_bytes().into(), value: ValueCondition { test, invert: *invert } })
    }
}

impl HeaderCondition {
    fn compile(config: &HeaderMatch, place: &Place, names: &mut HeaderNames, setup: &mut Setup) -> Option<Self> {
        let name = place.field("name").take(headers::name_or_pseudo(&config.name));
        let HeaderMatch { exact, prefix, suffix, regex, present, invert, .. } = config;
        let fields = [
            ("exact", exact.as_deref().map(Given::Text)),
            ("prefix", prefix.as_deref().map(Given::Text)),
            ("suffix", suffix.as_deref().map(Given::Text)),
            ("regex", regex.as_deref().map(Given::Text)),
            ("present", present.map(Given::Present)),
        ];
        for (field, text, extent) in
            [("exact", exact, Extent::Whole), ("prefix", prefix, Extent::Beginning), ("suffix", suffix, Extent::End)]
        {
            if let Some(message) = text.as_ref().and_then(|text| header_value_mistake(&config.name, text, extent)) {
                place.field(field).wrong(message);
            }
        }
        let test = Test::compile(place.at_most_one_of(fields)?, place)?;
        Some(HeaderCondition { slot: names.slot(&name?, setup), value: ValueCondition { test, invert: *invert } })
    }
}

/// The value of one of the fields that define a test.
enum Given<'c> {
    Text(&'c str),
    Present(bool),
}

impl Test {
    /// The name alone means that the value must be present.
    fn compile(given: Option<(&'static str, Given)>, place: &Place) -> Option<Test> {
        Some(match given {
            None => Test::Present(true),
            Some((_, Given::Present(present))) => Test::Present(present),
            Some(("prefix", Given::Text(text))) => Test::Prefix(text.as_bytes().into()),
            Some(("suffix", Given::Text(text))) => Test::Suffix(text.as_bytes().into()),
            Some(("regex", Given::Text(text))) => Test::Regex(place.field("regex").take(whole(text))?),
            Some((_, Given::Text(text))) => Test::Exact(text.as_bytes().into()),
        })
    }
}

impl ValueCondition {
    fn met_by(&self, value: Option<&[u8]>) -> bool {
        let met = match (&self.test, value) {
            (Test::Present(present), value) => value.is_some() == *present,
            (_, None) => false,
            (Test::Exact(text), Some(value)) => **text == *value,
            (Test::Prefix(text), Some(value)) => value.starts_with(text),
            (Test::Suffix(text), Some(value)) => value.ends_with(text),
            (Test::Regex(regex), Some(value)) => regex.is_match(value),
        };
        met != self.invert
    }
}

/// Validates a method.
pub(crate) fn method(method: &str, place: &Place) -> Option<Box<[u8]>> {
    match method_mistake(method) {
        None => Some(method.as_bytes().into()),
        Some(message) => {
            place.wrong(message);
            None
        }
    }
}

/// A regular expression that must match a whole value.
pub(crate) fn whole(pattern: &str) -> Result<Regex, String> {
    // Compiled alone first: an unbalanced bracket must not pair with the text added around it.
    regex(pattern)?;
    regex(&format!(r"\A(?:{pattern})\z"))
}

/// A regular expression on bytes.
pub(crate) fn regex(pattern: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(pattern);
    // A filter has little memory, so an expression's size limits (also at match time) are well below it.
    builder.unicode(false).size_limit(1 << 20).dfa_size_limit(256 << 10);
    builder.build().map_err(|e| {
        // The crate's message has several lines; the last one has the error.
        let message = e.to_string();
        let line = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("`{pattern}` is not a regular expression: {line}")
    })
}
