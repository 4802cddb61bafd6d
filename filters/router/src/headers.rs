//! Names and values of headers in the configuration, and changes to headers.

use std::collections::BTreeMap;

use tollgate_sdk::doc;

use crate::{config::HeaderOps, place::Place};

/// Headers that say how a message is framed or its connection used, which is the proxy's business alone.
const FRAMING: [&str; 6] = ["connection", "content-length", "keep-alive", "te", "transfer-encoding", "upgrade"];

const PSEUDO: [&str; 4] = [":method", ":path", ":authority", ":scheme"];

/// Whether this is a token (RFC 9110 section 5.6.2), as methods and headers' names are.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A header's name in lower case.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if is_token(text) { Ok(text.to_ascii_lowercase()) } else { Err(format!("`{text}` is not a header's name")) }
}

/// A header's name in lower case, or that of a pseudo-header.
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

/// Names and values at `place`.
pub(crate) fn pairs(pairs: &BTreeMap<String, String>, place: &Place) -> Vec<(String, String)> {
    let pair = |(n, v): (&String, &String)| {
        let place = place.field(n);
        let (name, value) = (place.take(changeable(n)), place.take(value(v)));
        Some((name?, value?))
    };
    pairs.iter().filter_map(pair).collect()
}

/// Changes at `place`, as the host is told them.
pub(crate) fn ops(ops: &HeaderOps, place: &Place) -> doc::HeaderOps {
    let removed = place.field("remove");
    let remove = ops.remove.iter().enumerate().filter_map(|(i, n)| removed.item(i).take(changeable(n))).collect();
    doc::HeaderOps { remove, set: pairs(&ops.set, &place.field("set")), add: pairs(&ops.add, &place.field("add")) }
}

/// Makes changes to headers: for responses of the filter itself, as the host makes them to others.
pub(crate) fn apply(ops: &doc::HeaderOps, headers: &mut Vec<(String, String)>) {
    headers.retain(|(name, _)| !ops.remove.contains(name) && !ops.set.iter().any(|(set, _)| set == name));
    headers.extend(ops.set.iter().chain(&ops.add).cloned());
}
