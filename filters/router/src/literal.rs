//! The literal beginning of a regular expression: all its matches begin with it, so the expression can be indexed by
//! it.

use regex_syntax::{
    ParserBuilder,
    hir::{Hir, HirKind, Look},
};

/// The whole leading segments of all paths that an expression matches, without a trailing slash, such as `/users` for
/// `/users/\d+`. `None` if they do not even share a leading slash.
pub(crate) fn segments(pattern: &str) -> Option<Vec<u8>> {
    let hir = ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()?;
    let mut prefix = Vec::new();
    extend(&hir, &mut prefix);
    // The part after the last slash may be only the beginning of a segment.
    let end = prefix.iter().rposition(|b| *b == b'/')?;
    prefix.truncate(end);
    (end == 0 || prefix.starts_with(b"/")).then_some(prefix)
}

/// Appends the expression's literal beginning; returns whether that was the whole expression.
fn extend(hir: &Hir, prefix: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(Look::Start) => true,
        HirKind::Literal(literal) => {
            prefix.extend_from_slice(&literal.0);
            true
        }
        HirKind::Capture(group) => extend(&group.sub, prefix),
        HirKind::Concat(parts) => parts.iter().all(|part| extend(part, prefix)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_mandatory_segments_count() {
        for (pattern, expected) in [
            (r"/users/\d+", Some("/users")),
            (r"^/a/(b/c)/d.*", Some("/a/b/c")),
            ("/a/b", Some("/a")),
            ("/a/b/?", Some("/a")),
            ("/a/b*/c", Some("/a")),
            ("/x", Some("")),
            ("/[ab]/c", Some("")),
            ("/a/b|/a/c", None),
            ("(?i)/a/b", Some("")),
            (".*/a", None),
            ("a/b", None),
            ("(/a)?/b", None),
            (r"\*", None),
            ("(", None),
        ] {
            let found = segments(pattern);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{pattern}");
        }
    }
}
