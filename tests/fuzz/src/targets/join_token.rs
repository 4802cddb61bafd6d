//! Join tokens and their content.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use tollgate::ca::token::{Scope, Secret, TokenError, end_of};

use crate::{Outcome, Target};

const KEY: [u8; 32] = *b"a secret that is no secret here.";

static SECRET: LazyLock<Secret> = LazyLock::new(|| Secret::read(&BASE64.encode(KEY)).expect("a secret"));

/// A token that opens is byte for byte the one that was sealed; a token with arbitrary content either opens as that
/// content or is rejected.
fn check(input: &[u8]) -> Outcome {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let opened = str::from_utf8(input).ok().map(|text| {
        let opened = SECRET.open(text, now);
        if let Ok(token) = &opened {
            assert_eq!(SECRET.seal(token), text);
            assert_eq!(end_of(text), Some(token.expires));
        }
        opened.is_ok()
    });
    let body = format!("tollgate-join-1.{}", BASE64.encode(input));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), body.as_bytes());
    let text = format!("{body}.{}", BASE64.encode(tag));
    let inside = SECRET.open(&text, now);
    match &inside {
        Ok(token) => {
            assert!(token.expires > now && text.len() <= 4096);
            assert_eq!(token.scope.to_string().parse::<Scope>().as_ref(), Ok(&token.scope));
            assert!(!token.scope.trust_domain().is_empty());
            // Unknown fields and their order are not preserved.
            let again = SECRET.seal(token);
            assert!(again.len() > 4096 || SECRET.open(&again, now).as_ref() == Ok(token));
        }
        Err(TokenError::Expired(at)) => {
            assert!(*at <= now && end_of(&text) == Some(*at));
            assert!(inside.as_ref().unwrap_err().to_string().ends_with('Z'));
        }
        Err(TokenError::Forged) => assert!(text.len() > 4096 || end_of(&text).is_none()),
    }
    let kind = inside.as_ref().map(|_| ()).map_err(std::mem::discriminant);
    Outcome::of((opened, format!("{kind:?}"), input.len().min(256) / 8))
}

pub(super) const TARGET: Target = Target {
    words: &[
        b"{\"for\":\"spiffe://mesh.local/web\",\"exp\":4000000000,\"id\":\"00\"}",
        b"\"for\":",
        b"\"exp\":",
        b"\"id\":",
        b"18446744073709551615",
        b"9223372036854775807",
        b"spiffe://",
        b"/*",
        b"tollgate-join-1.",
        b".",
        b"=",
        b"\\u0000",
    ],
    max_len: 4200,
    check,
};
