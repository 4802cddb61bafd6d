//! A small certificate authority, for development and for meshes that have no other.
//!
//! [`authority`] is the folder with the root's key, and signs; [`token`] decides who may request which identity
//! ([`spiffe`]). `tollgate ca` manages the folder from the command line ([`command`]) and replaces its root without
//! downtime ([`rotation`]). A proxy that has the folder signs for others on its admin listener ([`service`]); a proxy
//! that needs a certificate requests and renews one ([`workload`]).

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

/// An error of the certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{}`: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// A file exists and must not be replaced.
    #[error("`{}` already exists", .0.display())]
    Exists(PathBuf),
    /// A running proxy signs with the authority.
    #[error("a proxy signs with `{}`; use `tollgate ca rotate` to replace its root without downtime", .0.display())]
    Used(PathBuf),
    /// A rotation step that is not the next one, or is too early.
    #[error("{0}")]
    Step(String),
    /// A file has invalid content.
    #[error("`{}` {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is invalid, as a predicate.
        what: String,
    },
    /// An identity of another trust domain.
    #[error("`{asked}` is not in the trust domain of this authority, `{ours}`")]
    TrustDomain {
        /// The authority's trust domain.
        ours: crate::config::spiffe::TrustDomain,
        /// The requested identity.
        asked: String,
    },
    /// A name that a certificate cannot have.
    #[error("{0}")]
    Name(String),
    /// The root certificate has expired.
    #[error("the root certificate has expired")]
    Ended,
    /// Creating a key or a certificate failed.
    #[error("cannot create a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The system's random number generator failed.
    #[error("cannot get random numbers from the system: {0}")]
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
