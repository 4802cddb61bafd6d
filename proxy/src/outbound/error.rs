//! Why a request failed. The texts say what to change, where that is known.

use std::{error::Error as _, io, time::Duration};

use crate::tls::{self, Peer};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The answer, or its head, did not arrive in time.
    #[error("the server did not answer within {0:?}")]
    Late(Duration),
    /// The answer is not valid, or the connection failed before its head was complete.
    #[error("the server's answer is invalid or incomplete: {0}")]
    Invalid(String),
    /// The server reset the HTTP/2 stream before the head of the answer was complete.
    #[error("the server reset the request: {why}")]
    Reset {
        /// The reason.
        reason: h2::Reason,
        /// The error in words.
        why: String,
    },
    /// A redirect that is not followed, although redirects are.
    #[error("the server redirects to `{to}`, {why}")]
    Redirect {
        /// The `Location` of the answer.
        to: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// The body of the answer cannot be used.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name could not be resolved.
    #[error("cannot resolve `{host}`: {why}")]
    Lookup {
        /// The name.
        host: String,
        /// The cause.
        why: String,
    },
    /// The name has no address.
    #[error("`{0}` has no address")]
    NoAddress(String),
    /// The filter rejects every address of the name.
    #[error("`{host}` has only addresses that are not allowed here: {addresses}")]
    Forbidden {
        /// The name.
        host: String,
        /// Its addresses.
        addresses: String,
    },
    /// No address accepts connections.
    #[error("cannot connect to `{host}`: {attempts}")]
    Failed {
        /// The name, or the path of the socket.
        host: String,
        /// Each address with its error.
        attempts: String,
    },
    /// The files for TLS cannot be used.
    #[error("cannot use the TLS settings: {0}")]
    Tls(String),
}

/// Why a body cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is larger than this number of bytes.
    #[error("the server's answer is too large: at most {0} bytes are allowed")]
    TooLarge(u64),
    /// It did not end in time.
    #[error("the server's answer did not arrive completely within {0:?}")]
    Late(Duration),
    /// It ended early, or is not valid.
    #[error("the server's answer is incomplete: {0}")]
    Incomplete(String),
    /// Only the end of the connection ends it, so a truncated body could not be told from a complete one.
    #[error("the server's answer has neither Content-Length nor chunked encoding")]
    NoLength,
}

/// Returns the reason for which the server reset an HTTP/2 stream, if that is the error.
pub(super) fn reset(error: &hyper::Error) -> Option<h2::Reason> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    error.reason().filter(|_| error.is_reset() && error.is_remote())
}

/// Returns the texts of an error of hyper and its cause.
pub(super) fn explain(error: &hyper::Error) -> String {
    let Some(cause) = error.source() else { return error.to_string() };
    let io = cause.downcast_ref::<io::Error>().or_else(|| cause.downcast_ref::<h2::Error>()?.get_io());
    match io.filter(|io| tls::tls_error(io).is_some()) {
        Some(io) => format!("TLS: {}", tls::explain(io, Peer::Server).1),
        None => format!("{error}: {cause}"),
    }
}
