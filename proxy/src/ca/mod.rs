//! A certificate authority for those who have none: for development, and for meshes that are small enough for one.
//!
//! [`authority`] is the folder with the root's key, and what it signs; [`token`] says who may ask for which identity
//! ([`spiffe`]). `tollgate ca` works on the folder by hand ([`command`]), and replaces its root without a gap ([`rotation`]). A proxy that has the folder signs for others on its
//! admin listener ([`service`]), and a proxy that needs a certificate asks for one and renews it ([`workload`]).

pub mod authority;
pub mod command;
pub mod files;
pub mod request;
pub mod rotation;
pub mod service;
pub mod token;
pub mod workload;

mod certificate;

use std::path::{Path, PathBuf};

/// What can go wrong with a certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {error}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is there and must not be replaced.
    #[error("`{}` is there already", .0.display())]
    Exists(PathBuf),
    /// A process signs with it.
    #[error("a proxy signs with `{}`; `tollgate ca rotate` replaces its root without a gap", .0.display())]
    Used(PathBuf),
    /// A step of a rotation that is not the next one, or comes too early.
    #[error("{0}")]
    Step(String),
    /// A file holds something else than it should.
    #[error("`{}` {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An identity of another trust domain.
    #[error("this is the authority of `{ours}`, and `{asked}` is not in it")]
    TrustDomain {
        /// The authority's.
        ours: crate::config::spiffe::TrustDomain,
        /// What was asked for.
        asked: String,
    },
    /// A name that no certificate can have.
    #[error("{0}")]
    Name(String),
    /// The root's time is over.
    #[error("the root's certificate has ended")]
    Ended,
    /// Making a key or a certificate has failed.
    #[error("no certificate could be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Error {
    fn read(path: &Path, error: std::io::Error) -> Error {
        Error::Read { path: path.to_owned(), error }
    }

    fn write(path: &Path, error: std::io::Error) -> Error {
        Error::Write { path: path.to_owned(), error }
    }

    fn content(path: &Path, what: impl Into<String>) -> Error {
        Error::Content { path: path.to_owned(), what: what.into() }
    }
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
