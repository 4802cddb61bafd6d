//! The body of an answer.

use std::{rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header, response::Parts};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{
    connection::Driver,
    error::{BodyError, explain},
};

/// The limit on the body of an error response that is shown, in bytes.
const MAX_EXCERPT: usize = 4 << 10;

/// The time for the body of an error response.
const EXCERPT_TIME: Duration = Duration::from_secs(5);

/// The body of an answer. It keeps its connection open until it is dropped.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    /// Whether its end can be told from the end of the connection.
    is_delimited: bool,
    waited: Duration,
    _driver: Rc<Driver>,
}

impl Body {
    pub(super) fn new(head: &Parts, incoming: Incoming, waited: Duration, driver: Rc<Driver>) -> Body {
        let has_length = incoming.size_hint().exact().is_some();
        let is_delimited = head.version == Version::HTTP_2 || has_length || is_chunked(&head.headers);
        Body { incoming, is_delimited, waited, _driver: driver }
    }

    /// Returns the time from sending the request to the head of the answer.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Reads the whole body: at most `limit` bytes, within `time`.
    ///
    /// # Errors
    /// The body is larger, takes longer, or is not complete. What was read is dropped.
    pub async fn read(self, limit: u64, time: Duration) -> Result<Bytes, BodyError> {
        if self.incoming.size_hint().exact().is_some_and(|length| length > limit) {
            return Err(BodyError::TooLarge(limit));
        }
        if !self.is_delimited {
            return Err(BodyError::NoLength);
        }
        match timeout(time, read_all(self.incoming, limit)).await {
            Err(_) => Err(BodyError::Late(time)),
            Ok(Err(error)) => Err(BodyError::Incomplete(explain(&error))),
            Ok(Ok(None)) => Err(BodyError::TooLarge(limit)),
            Ok(Ok(Some(body))) => Ok(body),
        }
    }

    /// Returns the beginning of an error response's body, quoted; `None` if it is empty, long or slow.
    pub async fn excerpt(self) -> Option<String> {
        let read = timeout(EXCERPT_TIME, Limited::new(self.incoming, MAX_EXCERPT).collect()).await;
        let text = read.ok()?.ok()?.to_bytes();
        let text: String = String::from_utf8_lossy(&text).trim().chars().take(200).collect();
        (!text.is_empty()).then(|| format!("{text:?}"))
    }

    /// Returns the next part of the content, of any size; `None` at its end.
    ///
    /// # Errors
    /// The connection failed, or the body is not valid. There are no further parts.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            match self.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some(Ok(data)),
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(BodyError::Incomplete(explain(&error)))),
            }
        }
    }

    /// Returns the next part; `None` after the last one.
    pub(super) async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        self.incoming.frame().await
    }

    /// Reads and drops a short body, so that its connection can be used again.
    pub(super) async fn discard(self) {
        // A longer one ends the connection.
        let _ = timeout(EXCERPT_TIME, Limited::new(self.incoming, MAX_EXCERPT).collect()).await;
    }
}

/// Reads a body of at most this many bytes; `None`: it is longer.
pub(super) async fn read_all<B>(mut body: B, limit: u64) -> Result<Option<Bytes>, B::Error>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    // A small body arrives in one piece and is not copied.
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if (first.len() + all.len() + data.len()) as u64 > limit {
            return Ok(None);
        }
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(Some(if all.is_empty() { first } else { all.freeze() }))
}

fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(header::TRANSFER_ENCODING).iter().next_back();
    let last = last.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    last.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
}
