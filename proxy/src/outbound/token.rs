//! A token in a file, read for every request, so that it can be replaced at any time.

use std::{fmt::Display, path::PathBuf};

use http::HeaderValue;

use crate::files;

/// The limit on a token's file, in bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// A token's file, and what it contained last.
#[derive(Debug)]
pub struct TokenFile {
    file: PathBuf,
    /// What precedes the token in the header.
    prefix: &'static str,
    content: Vec<u8>,
    value: HeaderValue,
}

impl TokenFile {
    /// A token for the header `Authorization: Bearer TOKEN`.
    pub fn bearer(file: PathBuf) -> TokenFile {
        TokenFile { prefix: "Bearer ", ..TokenFile::plain(file) }
    }

    /// A token that is the whole value of a header.
    pub fn plain(file: PathBuf) -> TokenFile {
        TokenFile { file, prefix: "", content: Vec::new(), value: HeaderValue::from_static("") }
    }

    /// Cuts a message off where it quotes the token: a server may repeat what it was sent.
    pub fn conceal(&self, mut message: String) -> String {
        let token = self.value.to_str().ok().and_then(|value| value.strip_prefix(self.prefix)).unwrap_or_default();
        // The quotation may be cut off as well.
        let start = token.get(..8).unwrap_or(token);
        if let Some(at) = message.find(start).filter(|_| !start.is_empty()) {
            message.truncate(at);
            message.push('…');
        }
        message
    }

    /// Returns the header's value for the current content of the file.
    ///
    /// # Errors
    /// The file cannot be read, or does not contain a token.
    pub fn value(&mut self) -> Result<HeaderValue, String> {
        let wrong = |error: &dyn Display| format!("the token is not available: {}: {error}", self.file.display());
        let content = files::read(&self.file, MAX_TOKEN).map_err(|error| wrong(&error))?;
        if content != self.content || content.is_empty() {
            let token = content.trim_ascii();
            let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
            let value = || HeaderValue::try_from([self.prefix.as_bytes(), token].concat()).ok();
            self.value = is_token.then(value).flatten().ok_or_else(|| wrong(&"it does not contain a token"))?;
            self.value.set_sensitive(true);
            self.content = content;
        }
        Ok(self.value.clone())
    }
}
