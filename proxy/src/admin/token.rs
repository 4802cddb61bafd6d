//! The token of the admin listener, for environments where its address or its socket's permissions are not enough. It
//! is read from its file for each request, so a new token is valid immediately.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    config::{Diagnostic, Loaded},
    digest::sha256,
    files,
    observe::{LogLimiter, target},
};

/// Shorter tokens could be guessed.
const SHORTEST: usize = 16;

/// Longer files are not tokens.
const LONGEST: u64 = 4096;

/// The token that requests must carry.
pub struct Token {
    file: PathBuf,
    unread: LogLimiter,
}

/// The reason why a file contains no usable token.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unread(#[from] io::Error),
    /// The file is a directory, a FIFO or similar, or far too long.
    #[error("not a file with one line of text")]
    NoText,
    /// The token is too short.
    #[error("fewer than {SHORTEST} characters, which can be guessed")]
    Short,
}

impl Token {
    /// Returns the configured token, if there is one.
    pub fn of(loaded: &Loaded) -> Option<Token> {
        let file = loaded.source.resolve(loaded.config.admin.token_file.as_ref()?);
        Some(Token { file, unread: LogLimiter::default() })
    }

    /// Returns an error if the configured token cannot be used.
    pub fn look(loaded: &Loaded) -> Option<Diagnostic> {
        let token = Token::of(loaded)?;
        let wrong = read(&token.file).err()?;
        let message = format!("no usable token for the admin listener in `{}`: {wrong}", token.file.display());
        let help = "for example: head -c 32 /dev/urandom | base64".to_owned();
        Some(loaded.source.diagnostic("/admin/token_file", message, Some(help)))
    }

    /// Checks the token in a request's headers. An error is the response to send.
    ///
    /// # Errors The token is missing or wrong, or the file cannot be read.
    pub async fn check(&self, fields: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let file = self.file.clone();
        let token = tokio::task::spawn_blocking(move || read(&file)).await;
        let token = token.unwrap_or_else(|e| Err(io::Error::other(e).into())).map_err(|error| {
            if let Some(left_out) = self.unread.may_warn() {
                tracing::error!(
                    target: target::ADMIN,
                    file = %self.file.display(), left_out, "cannot use the admin listener's token: {error}"
                );
            }
            (StatusCode::SERVICE_UNAVAILABLE, "cannot read the token of this listener; see the log\n")
        })?;
        let shown = fields.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
        match shown {
            Some(shown) if is_equal(shown, token.as_bytes()) => Ok(()),
            Some(_) => Err((StatusCode::UNAUTHORIZED, "wrong token for this listener (`admin.token_file`)\n")),
            None => {
                Err((StatusCode::UNAUTHORIZED, "send the token of `admin.token_file`: Authorization: Bearer TOKEN\n"))
            }
        }
    }

    /// Returns the header with the token, for requests to another Tollgate with the same configuration.
    pub(super) fn field(&self) -> String {
        read(&self.file).map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default()
    }
}

/// Returns the token after the scheme, which is case-insensitive (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// Compares in constant time, which reveals nothing about either, not even the length.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(&sha256(one), &sha256(other)).is_ok()
}

/// Reads a token.
///
/// # Errors The file contains no usable token.
pub fn read(path: &Path) -> Result<String, Unusable> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(Unusable::NoText);
    }
    let mut text = String::new();
    // The file may have become a FIFO meanwhile.
    files::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    let token = text.trim();
    match token.len() {
        ..SHORTEST => Err(Unusable::Short),
        _ if text.len() as u64 > LONGEST || token.contains(|c: char| !c.is_ascii_graphic()) => Err(Unusable::NoText),
        _ => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_token_that_is_in_the_file_now_lets_one_in() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let token = Token { file: file.clone(), unread: LogLimiter::default() };
        let ask = async |value: Option<&str>| {
            let field = value.map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
            token.check(&field.into_iter().collect()).await.map_err(|(status, _)| status.as_u16())
        };
        let right = "0123456789abcdef";
        assert_eq!(ask(Some(&format!("Bearer {right}"))).await, Err(503), "there is no file");
        std::fs::write(&file, format!("{right}\n")).unwrap();
        for (value, answer) in [
            (Some(format!("Bearer {right}")), Ok(())),
            (Some(format!("bearer  {right}")), Ok(())),
            (Some(format!("Bearer {right}x")), Err(401)),
            (Some("Bearer ".to_owned()), Err(401)),
            (Some("Bearer".to_owned()), Err(401)),
            (Some(format!("Basic {right}")), Err(401)),
            (Some(right.to_owned()), Err(401)),
            (None, Err(401)),
        ] {
            assert_eq!(ask(value.as_deref()).await, answer, "{value:?}");
        }
        std::fs::write(&file, "another-token-0123").unwrap();
        assert_eq!(ask(Some(&format!("Bearer {right}"))).await, Err(401), "it has changed");
        assert_eq!(ask(Some("Bearer another-token-0123")).await, Ok(()));
        let longest = "x".repeat(LONGEST as usize);
        std::fs::write(&file, &longest).unwrap();
        assert_eq!(ask(Some(&format!("Bearer {longest}"))).await, Ok(()));
        assert_eq!(token.field(), format!("Authorization: Bearer {longest}\r\n"));
        for unusable in [&format!("{longest}x")[..], "", "\n", "short", "two lines 0123456789\nabcdef"] {
            std::fs::write(&file, unusable).unwrap();
            assert_eq!(ask(Some(&format!("Bearer {unusable}").replace('\n', ""))).await, Err(503), "{unusable:?}");
        }
    }
}
