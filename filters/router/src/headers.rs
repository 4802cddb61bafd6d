//! Header names and values in the configuration, and header changes.

use std::collections::BTreeMap;

use tollgate_sdk::doc;

use crate::{config::HeaderOps, place::Place};

/// Headers for framing and connection management, which belong to the proxy alone.
const FRAMING: [&str; 6] = ["connection", "content-length", "keep-alive", "te", "transfer-encoding", "upgrade"];

const PSEUDO: [&str; 4] = [":method", ":path", ":authority", ":scheme"];

/// Whether the text is a token (RFC 9110 section 5.6.2), as methods and header names are.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Validates a header name and converts it to lower case.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if is_token(text) { Ok(text.to_ascii_lowercase()) } else { Err(format!("`{text}` is not a valid header name")) }
}

/// The same, but also accepts pseudo-headers.
pub(crate) fn name_or_pseudo(text: &str) -> Result<String, String> {
    if PSEUDO.contains(&text) { Ok(text.into()) } else { name(text) }
}

/// The name of a header that may be changed.
fn changeable(text: &str) -> Result<String, String> {
    let name = name(text)?;
    match name.as_str() {
        "host" => Err("use `host_rewrite` to change the host".into()),
        name if FRAMING.contains(&name) => Err(format!("`{name}` is set by the proxy itself")),
        _ => Ok(name),
    }
}

fn value(text: &str) -> Result<String, String> {
    let wrong = text.chars().any(|c| c.is_ascii_control() && c != '\t');
    if wrong { Err("a header's value must not have control characters".into()) } else { Ok(text.into()) }
}

/// Compiles the names and values at `place`.
pub(crate) fn pairs(pairs: &BTreeMap<String, String>, place: &Place) -> Vec<(String, String)> {
    let pair = |(n, v): (&String, &String)| {
        let place = place.field(n);
        let (name, value) = (place.take(changeable(n)), place.take(value(v)));
        Some((name?, value?))
    };
    pairs.iter().filter_map(pair).collect()
}

/// Compiles the header changes at `place` to the host's form.
pub(crate) fn ops(ops: &HeaderOps, place: &Place) -> doc::HeaderOps {
    let removed = place.field("remove");
    let remove = ops.remove.iter().enumerate().filter_map(|(i, n)| removed.item(i).take(changeable(n))).collect();
    doc::HeaderOps { remove, set: pairs(&ops.set, &place.field("set")), add: pairs(&ops.add, &place.field("add")) }
}

/// Applies header changes to the filter's own responses, as the host does to others.
pub(crate) fn apply(ops: &doc::HeaderOps, headers: &mut Vec<(String, String)>) {
    headers.retain(|(name, _)| !ops.remove.contains(name) && !ops.set.iter().any(|(set, _)| set == name));
    headers.extend(ops.set.iter().chain(&ops.add).cloned());
}
