//! Errors in certificates, keys and revocation lists; the messages name the file.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::observe::access_log::timestamp;

/// The limit on a file's size in bytes. The largest useful files are revocation lists of public authorities, with a
/// few MiB.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// An error in a file, or in two files that belong together.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// The file does not exist.
    #[error("there is no file `{}`", .0.display())]
    Missing(PathBuf),
    /// The file exists but cannot be read.
    #[error("cannot read `{}`: {}", .0.display(), .1)]
    Unreadable(PathBuf, std::io::Error),
    /// The file is larger than 64 MiB.
    #[error("`{}` is larger than {} MiB", .0.display(), MAX_BYTES >> 20)]
    TooLarge(PathBuf),
    /// The file is not well-formed PEM.
    #[error("`{}` is not well-formed PEM: {}", .0.display(), .1)]
    Pem(PathBuf, String),
    /// The file has no section of the required type.
    #[error("there is no {wanted} in `{}`: {found}", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// The required type.
        wanted: &'static str,
        /// What the file holds instead.
        found: Found,
    },
    /// An invalid certificate.
    #[error("certificate {} in `{}` cannot be used: {}", .1, .0.display(), .2)]
    Certificate(PathBuf, usize, String),
    /// Our certificate has expired.
    #[error("the certificate in `{}` expired on {}", .0.display(), date(*.1))]
    Expired(PathBuf, i64),
    /// Our certificate is not valid yet.
    #[error("the certificate in `{}` is not valid before {}", .0.display(), date(*.1))]
    NotYetValid(PathBuf, i64),
    /// A private key of an unsupported type or size.
    #[error("the private key in `{}` cannot be used: {}", .0.display(), .1)]
    Key(PathBuf, String),
    /// A key that does not match the certificate.
    #[error("the key in `{}` does not belong to the (first) certificate in `{}`", key.display(), certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// An invalid revocation list, or an unsupported one (RFC 5280: delta and indirect lists).
    #[error("revocation list {} in `{}` cannot be used: {}", .1, .0.display(), .2)]
    RevocationList(PathBuf, usize, String),
    /// An expired revocation list.
    #[error("a revocation list in `{}` expired on {}", .0.display(), date(*.1))]
    RevocationListExpired(PathBuf, i64),
    /// The configuration names no authorities, and the system has none.
    #[error("the system has no trusted certificates{0}")]
    NoSystemRoots(String),
    /// Any other error of the TLS library.
    #[error("rejected by the TLS library: {0}")]
    Refused(String),
}

impl MaterialError {
    /// Returns how to fix the error, if known.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            MaterialError::Nothing { found: Found::EncryptedKey, .. } => {
                "keys with a passphrase are not supported: `openssl pkey -in KEY -out NEW` writes the key without one"
            }
            MaterialError::Nothing { found: Found::Der, wanted: "certificate", .. } => {
                "`openssl x509 -inform DER -in FILE -out NEW` writes it as PEM"
            }
            MaterialError::KeyMismatch { .. } => {
                "this is normal while both files are being replaced: they are read again when the other one changes"
            }
            MaterialError::Expired(..) | MaterialError::NotYetValid(..) => "is the clock right?",
            MaterialError::NoSystemRoots(_) => "name a file with trusted certificates in `ca`",
            _ => return None,
        };
        Some(help.to_owned())
    }
}

/// What a file holds instead of the required type.
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
    /// DER, or something that begins like it.
    Der,
    /// Nothing recognizable.
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
            Found::Nothing => "it has no PEM section of this type",
        })
    }
}

/// An error and the field that it is in.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct FieldError {
    /// The field, as a JSON pointer into the `tls` section without the first slash, such as `certificates/0/key`.
    pub field: String,
    /// The error.
    pub error: MaterialError,
}

/// Formats seconds since 1970 as `2026-11-21T07:20:37Z`.
pub fn date(seconds: i64) -> String {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(distance),
        false => SystemTime::UNIX_EPOCH.checked_add(distance),
    };
    let text = timestamp::text(time.unwrap_or(SystemTime::UNIX_EPOCH));
    // Certificates have no milliseconds.
    format!("{}Z", text.get(..19).unwrap_or(&text))
}

/// Formats an error of the TLS library about our own files; its own message is worded for a peer's certificate.
pub(super) fn plain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding) => {
            "not a valid X.509 certificate".to_owned()
        }
        rustls::Error::InvalidCertificate(error) => error.to_string(),
        rustls::Error::General(error) => error.clone(),
        error => error.to_string(),
    }
}
