//! Path rewrites: replacing the matched part, or matches of a regular expression.

use regex::bytes::Regex;

use tollgate_sdk::matching::{BadPath, normal_path};

use crate::{config::RegexRewrite, matcher, place::Place};

/// The part of a path that was matched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Matched {
    /// The whole path, of this length.
    Exact(usize),
    /// A prefix of this length, without a trailing slash.
    Prefix(usize),
    /// No particular part.
    Other,
}

/// Replaces the matched part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrefixRewrite {
    /// The number of bytes to replace. The rest is empty or begins with a slash.
    pub(crate) strip: usize,
    /// The replacement; empty if the rest becomes the path.
    pub(crate) with: String,
}

impl PrefixRewrite {
    pub(crate) fn compile(with: &str, matched: Matched, place: &Place) -> Option<Self> {
        if !with.starts_with('/') {
            place.wrong("a path begins with `/`");
            return None;
        }
        if with.chars().any(|c| c.is_ascii_control() || " ?#".contains(c)) {
            place.wrong("must not have spaces, a query or a fragment");
            return None;
        }
        match matched {
            Matched::Exact(strip) => Some(PrefixRewrite { strip, with: with.into() }),
            Matched::Prefix(strip) => Some(PrefixRewrite { strip, with: with.trim_end_matches('/').into() }),
            Matched::Other => {
                place.wrong("needs `match.path.exact` or `match.path.prefix`, which it replaces");
                None
            }
        }
    }

    /// Appends the new path.
    pub(crate) fn write(&self, path: &[u8], out: &mut Vec<u8>) {
        let rest = path.get(self.strip..).unwrap_or_default();
        out.extend_from_slice(self.with.as_bytes());
        out.extend_from_slice(rest);
        if self.with.is_empty() && rest.is_empty() {
            out.push(b'/');
        }
    }
}

/// Replaces the matches of a regular expression.
pub(crate) struct PatternRewrite {
    pattern: Regex,
    substitution: Vec<Part>,
}

enum Part {
    Text(Vec<u8>),
    Group(usize),
}

impl PatternRewrite {
    pub(crate) fn compile(config: &RegexRewrite, place: &Place) -> Option<Self> {
        let pattern = place.field("pattern").take(matcher::regex(&config.pattern));
        let substitution = place.field("substitution").take(parts(&config.substitution));
        let (pattern, substitution) = (pattern?, substitution?);
        let groups = pattern.captures_len() - 1;
        let highest = substitution.iter().map(|p| if let Part::Group(n) = p { *n } else { 0 }).max().unwrap_or(0);
        if highest > groups {
            place.field("substitution").wrong(format!("there is no group {highest}: the pattern has {groups}"));
            return None;
        }
        Some(PatternRewrite { pattern, substitution })
    }

    /// Returns the new path in normal form, if it differs.
    ///
    /// # Errors
    /// The result is not a valid path.
    pub(crate) fn rewrite(&self, path: &[u8]) -> Result<Option<Vec<u8>>, BadPath> {
        let (mut out, mut end) = (Vec::new(), 0);
        for captures in self.pattern.captures_iter(path) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(&path[end..whole.start()]);
            for part in &self.substitution {
                match part {
                    Part::Text(text) => out.extend_from_slice(text),
                    // A group that did not participate in the match is empty.
                    Part::Group(n) => out.extend(captures.get(*n).map(|m| m.as_bytes()).unwrap_or_default()),
                }
            }
            end = whole.end();
        }
        out.extend_from_slice(&path[end..]);
        if !out.starts_with(b"/") {
            out.insert(0, b'/');
        }
        if out == path {
            return Ok(None);
        }
        // The replacement may have created a dot segment.
        let spelled = normal_path(&out)?;
        Ok(Some(spelled.into_owned()))
    }
}

/// Parses `\0` to `\9` and `\\`.
fn parts(substitution: &str) -> Result<Vec<Part>, String> {
    if substitution.chars().any(|c| c.is_ascii_control() || " ?#".contains(c)) {
        return Err("must not have spaces, a query or a fragment".into());
    }
    let (mut parts, mut text) = (Vec::new(), Vec::new());
    let mut bytes = substitution.bytes();
    while let Some(byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, false) => text.push(byte),
            (_, true) => match bytes.next() {
                Some(b'\\') => text.push(b'\\'),
                Some(digit @ b'0'..=b'9') => {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                    parts.push(Part::Group((digit - b'0').into()));
                }
                _ => return Err(r"after a backslash there must be a digit or another backslash".into()),
            },
        }
    }
    parts.push(Part::Text(text));
    Ok(parts)
}
