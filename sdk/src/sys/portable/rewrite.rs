//! Path rewriting by a route, as Tollgate does it (`abi/SPEC.md`, "Route").

use crate::doc::PrefixRewrite;

/// Replaces the beginning of the path. The query is kept, and exactly one slash separates the two parts.
pub(super) fn prefix(target: &[u8], rewrite: &PrefixRewrite) -> Vec<u8> {
    let path_len = target.iter().position(|b| *b == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(path_len);
    let rest = path.get(rewrite.strip as usize..).unwrap_or_default();
    let with = rewrite.with.as_bytes();
    let (rest, joint): (_, &[u8]) = match (with.ends_with(b"/"), rest.first()) {
        (true, Some(b'/')) => (&rest[1..], b""),
        (false, Some(first)) if *first != b'/' => (rest, b"/"),
        _ => (rest, b""),
    };
    [with, joint, rest, query].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in `abi/SPEC.md`.
    #[test]
    fn path_prefixes_are_replaced_as_by_tollgate() {
        for (path, strip, with, becomes) in [
            ("/api/users?x=1", 4, "/", "/users?x=1"),
            ("/api", 4, "/", "/"),
            ("/api/users", 4, "/v2", "/v2/users"),
            ("/api/users", 5, "/v2", "/v2/users"),
            ("/apiusers", 4, "/v2", "/v2/users"),
            ("/api?x=1", 4, "/v2", "/v2?x=1"),
            ("/a", 100, "/b", "/b"),
        ] {
            let rewrite = PrefixRewrite { strip, with: with.into() };
            assert_eq!(prefix(path.as_bytes(), &rewrite), becomes.as_bytes(), "{path} {strip} {with}");
        }
    }
}
