//! The token of the admin listener, for where its address or its socket's permissions are not enough. It is read from its file for
//! each request, so a new one holds as soon as it is there.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    config::{Diagnostic, Loaded},
    files,
    observe::{LogLimiter, target},
};

/// Fewer characters can be guessed.
const SHORTEST: usize = 16;

/// More bytes are no token.
const LONGEST: u64 = 4096;

/// Who asks has to show it.
pub struct Token {
    file: PathBuf,
    unread: LogLimiter,
}

/// Why a file holds no token.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The system's answer.
    #[error("it cannot be read: {0}")]
    Unread(#[from] io::Error),
    /// It is a folder, a FIFO, or the like, or far too long.
    #[error("it is no file with one line of text")]
    NoText,
    /// Too few characters.
    #[error("it has fewer than {SHORTEST} characters, and can be guessed")]
    Short,
}

impl Token {
    /// The one that the configuration asks for, if it does.
    pub fn of(loaded: &Loaded) -> Option<Token> {
        let file = loaded.source.resolve(loaded.config.admin.token_file.as_ref()?);
        Some(Token { file, unread: LogLimiter::default() })
    }

    /// What is wrong with it.
    pub fn look(loaded: &Loaded) -> Option<Diagnostic> {
        let token = Token::of(loaded)?;
        let wrong = read(&token.file).err()?;
        let message = format!("there is no token for the admin listener in `{}`: {wrong}", token.file.display());
        let help = "for example: head -c 32 /dev/urandom | base64".to_owned();
        Some(loaded.source.diagnostic("/admin/token_file", message, Some(help)))
    }

    /// Whether these fields show it. An error is the answer.
    ///
    /// # Errors
    /// They do not, or nobody can know.
    pub async fn check(&self, fields: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        let file = self.file.clone();
        let token = tokio::task::spawn_blocking(move || read(&file)).await;
        let token = token.unwrap_or_else(|e| Err(io::Error::other(e).into())).map_err(|error| {
            if let Some(left_out) = self.unread.may_warn() {
                tracing::error!(
                    target: target::ADMIN,
                    file = %self.file.display(), left_out, "the admin listener's token cannot be used: {error}"
                );
            }
            (StatusCode::SERVICE_UNAVAILABLE, "the token of this listener cannot be read; the log says why\n")
        })?;
        let shown = fields.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
        match shown {
            Some(shown) if is_equal(shown, token.as_bytes()) => Ok(()),
            Some(_) => Err((StatusCode::UNAUTHORIZED, "this is not the token of this listener (`admin.token_file`)\n")),
            None => {
                Err((StatusCode::UNAUTHORIZED, "show the token of `admin.token_file`: Authorization: Bearer TOKEN\n"))
            }
        }
    }

    /// The field that shows it, for another Tollgate with the same configuration.
    pub(super) fn field(&self) -> String {
        read(&self.file).map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default()
    }
}

/// What follows the scheme, whose case does not matter (RFC 9110 section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// In a time that tells nothing of either, not even how long they are.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (digest(&SHA256, one), digest(&SHA256, other));
    verify_slices_are_equal(one.as_ref(), other.as_ref()).is_ok()
}

fn read(path: &Path) -> Result<String, Unusable> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(Unusable::NoText);
    }
    let mut text = String::new();
    // It may have become a FIFO meanwhile.
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
