//! What can be wrong with certificates, keys and revocation lists, in words that name the file.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::observe::access_log::timestamp;

/// Larger files are refused. The largest that are of use are revocation lists of public authorities, which have a few MiB.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// What is wrong with a file, or with two that belong together.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// It is not there.
    #[error("there is no file `{}`", .0.display())]
    Missing(PathBuf),
    /// It is there, but cannot be read.
    #[error("cannot read `{}`: {}", .0.display(), .1)]
    Unreadable(PathBuf, std::io::Error),
    /// It is larger than 64 MiB.
    #[error("`{}` is larger than {} MiB", .0.display(), MAX_BYTES >> 20)]
    TooLarge(PathBuf),
    /// The PEM in it is broken.
    #[error("`{}` is not well-formed PEM: {}", .0.display(), .1)]
    Pem(PathBuf, String),
    /// It holds nothing of the kind that is wanted.
    #[error("there is no {wanted} in `{}`: {found}", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
        /// What is.
        found: Found,
    },
    /// A certificate in it is none.
    #[error("certificate {} in `{}` cannot be used: {}", .1, .0.display(), .2)]
    Certificate(PathBuf, usize, String),
    /// A certificate of ours is over.
    #[error("the certificate in `{}` expired on {}", .0.display(), date(*.1))]
    Expired(PathBuf, i64),
    /// A certificate of ours has not begun.
    #[error("the certificate in `{}` is not valid before {}", .0.display(), date(*.1))]
    NotYetValid(PathBuf, i64),
    /// A private key of a kind, or a size, that is not supported.
    #[error("the private key in `{}` cannot be used: {}", .0.display(), .1)]
    Key(PathBuf, String),
    /// Not this certificate's key.
    #[error("the key in `{}` does not belong to the (first) certificate in `{}`", key.display(), certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        certificate: PathBuf,
    },
    /// A revocation list in it is none, or of a kind that is not supported (RFC 5280: delta and indirect lists).
    #[error("revocation list {} in `{}` cannot be used: {}", .1, .0.display(), .2)]
    RevocationList(PathBuf, usize, String),
    /// A revocation list is older than it may be.
    #[error("a revocation list in `{}` expired on {}", .0.display(), date(*.1))]
    RevocationListExpired(PathBuf, i64),
    /// No authorities in the configuration, and none in the system.
    #[error("the system has no certificates that it trusts{0}")]
    NoSystemRoots(String),
    /// The TLS library refuses what is left.
    #[error("this cannot be used: {0}")]
    Refused(String),
}

impl MaterialError {
    /// What to do about it, if there is something to say.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            MaterialError::Nothing { found: Found::EncryptedKey, .. } => {
                "keys with a passphrase are not supported: `openssl pkey -in KEY -out NEW` writes it without one"
            }
            MaterialError::Nothing { found: Found::Der, wanted: "certificate", .. } => {
                "`openssl x509 -inform DER -in FILE -out NEW` writes it as PEM"
            }
            MaterialError::KeyMismatch { .. } => {
                "while both are being replaced this is so for a moment: it is tried again when the other file changes"
            }
            MaterialError::Expired(..) | MaterialError::NotYetValid(..) => "is the clock right?",
            MaterialError::NoSystemRoots(_) => "name a file with them in `ca`",
            _ => return None,
        };
        Some(help.to_owned())
    }
}

/// What a file holds in place of what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A certificate.
    Certificate,
    /// A private key.
    Key,
    /// A private key with a passphrase.
    EncryptedKey,
    /// A revocation list.
    RevocationList,
    /// DER, or something else that begins like it.
    Der,
    /// Nothing known.
    Nothing,
}

impl Found {
    pub(super) fn of(bytes: &[u8]) -> Found {
        let text = String::from_utf8_lossy(bytes);
        let has = |what: &str| text.contains(what);
        match bytes.first() {
            _ if has("BEGIN ENCRYPTED PRIVATE KEY") || has("Proc-Type: 4,ENCRYPTED") => Found::EncryptedKey,
            _ if has("PRIVATE KEY-----") => Found::Key,
            _ if has("BEGIN CERTIFICATE-----") => Found::Certificate,
            _ if has("BEGIN X509 CRL-----") => Found::RevocationList,
            Some(0x30) => Found::Der,
            _ => Found::Nothing,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::Certificate => "it holds a certificate",
            Found::Key => "it holds a private key",
            Found::EncryptedKey => "it holds a private key with a passphrase",
            Found::RevocationList => "it holds a revocation list",
            Found::Der => "it seems to be DER, not PEM",
            Found::Nothing => "no part of it is PEM of that kind",
        })
    }
}

/// What is wrong, and with which field.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct FieldError {
    /// The field, as a JSON pointer into the `tls` section without the first slash, such as `certificates/0/key`.
    pub place: String,
    /// What is wrong with it.
    pub error: MaterialError,
}

/// A time for people: `2026-11-21T07:20:37Z`, from seconds since 1970.
pub fn date(seconds: i64) -> String {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(distance),
        false => SystemTime::UNIX_EPOCH.checked_add(distance),
    };
    let text = timestamp::text(time.unwrap_or(SystemTime::UNIX_EPOCH));
    // Certificates know no milliseconds.
    format!("{}Z", text.get(..19).unwrap_or(&text))
}

/// An error of the TLS library about what is our own; its words are about a peer's.
pub(super) fn plain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding) => {
            "it is no X.509 certificate".to_owned()
        }
        rustls::Error::InvalidCertificate(error) => error.to_string(),
        rustls::Error::General(error) => error.clone(),
        error => error.to_string(),
    }
}
