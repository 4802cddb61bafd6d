//! SPIFFE IDs, and the scopes of tokens.

use crate::{Outcome, Target};
use tollgate::{
    ca::token::Scope,
    config::spiffe::{SpiffeId, TrustDomain},
};

/// IDs follow the standard's grammar; a scope of all IDs below a path allows exactly those.
fn check(input: &[u8]) -> Outcome {
    let Ok(text) = str::from_utf8(input) else { return Outcome::of(()) };
    let (first, second) = text.split_once('\n').unwrap_or((text, text));
    let id = first.parse::<SpiffeId>();
    assert_eq!(id.is_ok(), is_id(first), "{id:?}");
    if let Ok(id) = &id {
        assert_eq!((id.as_str(), format!("spiffe://{}{}", id.trust_domain(), id.path()).as_str()), (first, first));
        let domain: TrustDomain = id.trust_domain().parse().expect("an ID's trust domain is valid");
        assert_eq!(domain.id().as_str().len(), first.len() - id.path().len());
    }
    let scope = second.parse::<Scope>();
    if let (Ok(id), Ok(scope)) = (&id, &scope) {
        assert_eq!(scope.to_string(), second);
        let expected = match second.strip_suffix('*') {
            Some(above) => first.starts_with(above) && first.len() > above.len(),
            None => first == second,
        };
        assert_eq!(scope.allows(id), expected);
        assert!(!expected || scope.trust_domain() == id.trust_domain());
    }
    let kind = id.map(|id| id.path().len().min(64)).map_err(|error| std::mem::discriminant(&error));
    Outcome::of((format!("{kind:?}"), scope.is_ok(), text.len().min(64)))
}

/// Returns whether a text is a SPIFFE ID (SPIFFE-ID, sections 2.1 to 2.3).
fn is_id(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("spiffe://").filter(|_| text.len() <= 2048) else { return false };
    let mut parts = rest.split('/');
    let domain = parts.next().unwrap_or_default();
    let of_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let of_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=255).contains(&domain.len())
        && domain.bytes().all(of_domain)
        && parts.all(|part| !["", ".", ".."].contains(&part) && part.bytes().all(of_path))
}

pub(super) const TARGET: Target = Target {
    words: &[b"spiffe://", b"mesh.local", b"/", b"/*", b"/..", b"/.", b"//", b"\n", b"*", b"A", b"%2e", b"\xc3\xa9"],
    max_len: 4200,
    check,
};
