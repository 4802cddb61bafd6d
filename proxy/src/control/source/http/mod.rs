//! The HTTP source: asks a server for resources, again and again. docs/sources.md describes the protocol.
//!
//! [`HttpPoller`] decides when to ask and for what; `request` builds the requests, `answer` judges the answers, and a client
//! of [`outbound`](crate::outbound) carries both. What the documents contain is the receiver's business: it gets each one as a
//! [`Fetched`], and its [`Verdict`] decides about the next request.

mod answer;
mod request;

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use self::{
    answer::{Announced, Answer, Failure},
    request::{Requests, refused_header},
};
use super::status::SourceStatus;
use crate::{
    alloc,
    config::{Format, model::HttpSource},
    digest::sha256,
    outbound::{Client, Dial, Server, TokenFile},
    upstream::Backoff,
};

/// The time that a server gets for an answer's head, in addition to `wait`.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// The time from an answer's head to the end of its body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// The size in bytes from which a document's memory is returned to the system. That takes milliseconds; reading such a
/// document takes longer.
const LARGE_DOCUMENT: usize = 16 << 20;

/// The longest first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest wait after a failure, unless the server requests a longer one.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The shortest wait before asking a server again that has answered immediately that nothing has changed.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// A document that a server has sent.
#[derive(Debug)]
pub struct Fetched {
    /// The source's name.
    pub source: Arc<str>,
    /// The document.
    pub body: Bytes,
    /// The document's format.
    pub format: Format,
    /// The version of the state that the document describes or leads to, verbatim: `"abc"` or `W/"abc"`.
    pub etag: Option<String>,
    /// Whether the document contains only what has changed since the last applied one. Otherwise it is the full state.
    pub is_delta: bool,
    /// When the document was complete.
    pub arrived: Instant,
    /// Takes the result. Nothing is requested before; dropping it means [`Verdict::Unusable`].
    pub verdict: oneshot::Sender<Verdict>,
}

/// The result of applying a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The document is applied, except for refused resources.
    Applied {
        /// All resources refused at this version, as `clusters/NAME` or `endpoints/NAME`.
        refused: Vec<String>,
    },
    /// The document cannot be used, for this reason. The full state is requested next.
    Unusable(String),
}

/// What the receiver has applied last.
#[derive(Debug)]
enum Version {
    /// A state with an ETag, and the header that names refused resources.
    Tagged { etag: HeaderValue, refused: Option<HeaderValue> },
    /// A full state without an ETag: its SHA-256.
    Hashed([u8; 32]),
}

/// How a request ended, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Changed,
    /// The server took this long to answer that nothing has changed.
    Unchanged(Duration),
}

/// The client of one source. It runs as a task of a `LocalSet`.
pub struct HttpPoller<D: Dial = Server> {
    requests: Requests,
    client: Client<D>,
    wait: Duration,
    interval: Duration,
    version: Option<Version>,
    status: Arc<SourceStatus>,
    out: mpsc::Sender<Fetched>,
}

impl HttpPoller {
    /// Creates the client of a source. Relative paths are relative to `dir`.
    ///
    /// # Errors
    /// The URL is invalid.
    pub fn new(
        config: &HttpSource,
        dir: &Path,
        status: Arc<SourceStatus>,
        out: mpsc::Sender<Fetched>,
    ) -> Result<HttpPoller, String> {
        let server = Server::new(config.url.parse()?, config.tls.as_ref(), dir).at(config.address.clone());
        Ok(HttpPoller::dialling(server, config, dir, status, out))
    }
}

impl<D: Dial> HttpPoller<D> {
    /// Creates a client with its own way to connect.
    fn dialling(
        server: D,
        config: &HttpSource,
        dir: &Path,
        status: Arc<SourceStatus>,
        out: mpsc::Sender<Fetched>,
    ) -> HttpPoller<D> {
        let token = config.token_file.as_deref().map(|file| TokenFile::bearer(dir.join(file)));
        HttpPoller {
            requests: Requests::new(server.url(), config.wait.0, token),
            client: Client::new(server),
            wait: config.wait.0,
            interval: config.interval.0.max(SHORTEST_INTERVAL),
            version: None,
            status,
            out,
        }
    }

    /// Continues from a version that an earlier process has stored together with its resources.
    #[must_use]
    pub fn resuming(mut self, etag: &str) -> Self {
        self.version = HeaderValue::from_str(etag).ok().map(|etag| Version::Tagged { etag, refused: None });
        self
    }

    /// Asks until the receiver of the documents is dropped.
    pub async fn run(mut self) {
        let out = self.out.clone();
        tokio::select! {
            biased;
            () = out.closed() => {}
            () = self.ask_forever() => {}
        }
    }

    async fn ask_forever(&mut self) {
        let fresh = Backoff::up_to(FIRST_RETRY, LONGEST_RETRY);
        let mut backoff = fresh.clone();
        loop {
            let pause = match self.ask().await {
                Ok(outcome) => {
                    backoff = fresh.clone();
                    self.status.succeeded(outcome == Outcome::Changed);
                    self.pause_after(outcome)
                }
                Err(failure) => {
                    // The next connection may lead to another server.
                    self.client.close();
                    if failure.ask_for_all {
                        self.version = None;
                    }
                    self.status.failed(self.requests.conceal(failure.text));
                    // What was read may have been large.
                    alloc::give_back();
                    failure.retry_after.unwrap_or_default().max(backoff.next_wait())
                }
            };
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    /// Returns the time until the next request. A server that holds requests sets the pace itself.
    fn pause_after(&self, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Changed => Duration::ZERO,
            Outcome::Unchanged(held) if !self.wait.is_zero() && held >= self.wait / 2 => Duration::ZERO,
            Outcome::Unchanged(_) => self.interval,
        }
    }

    /// Sends one request and passes a new document on.
    async fn ask(&mut self) -> Result<Outcome, Failure> {
        if let Some(Version::Tagged { refused, .. }) = &mut self.version
            && let Some(late) = self.status.take_refused()
        {
            *refused = refused_header(&late);
        }
        let request = self.requests.next(self.version.as_ref()).map_err(Failure::new)?;
        let sent = self.client.send(request, self.wait.saturating_add(HEAD_TIME)).await;
        let (head, body) = sent.map_err(|error| Failure::new(error.to_string()))?.into_parts();
        let held = body.waited();
        let announced = match Answer::of(&head, self.etag()) {
            Ok(Answer::Unchanged) => return Ok(Outcome::Unchanged(held)),
            Ok(Answer::Document(announced)) => announced,
            Err(mut failure) => {
                if let Some(said) = body.excerpt().await {
                    failure.text.extend([": ", &said]);
                }
                return Err(failure);
            }
        };
        let document = announced.read(body, BODY_TIME).await?;
        let digest = announced.etag.is_none().then(|| sha256(&document));
        if self.is_known(&announced, digest) {
            return Ok(Outcome::Unchanged(held));
        }
        let is_large = document.len() >= LARGE_DOCUMENT;
        self.deliver(announced, document, digest).await?;
        if is_large {
            alloc::give_back();
        }
        Ok(Outcome::Changed)
    }

    /// The ETag that the request named.
    fn etag(&self) -> Option<&HeaderValue> {
        match &self.version {
            Some(Version::Tagged { etag, .. }) => Some(etag),
            _ => None,
        }
    }

    /// Whether the full state is the one that the receiver has: some servers ignore `If-None-Match`.
    fn is_known(&self, announced: &Announced, digest: Option<[u8; 32]>) -> bool {
        match &self.version {
            Some(Version::Tagged { etag, .. }) => !announced.is_delta && announced.etag.as_ref() == Some(etag),
            Some(Version::Hashed(known)) => digest.as_ref() == Some(known),
            None => false,
        }
    }

    /// Passes a document on, and continues from it if it is applied.
    async fn deliver(&mut self, announced: Announced, body: Bytes, digest: Option<[u8; 32]>) -> Result<(), Failure> {
        let Announced { format, etag, is_delta } = announced;
        let (verdict, decided) = oneshot::channel();
        let fetched = Fetched {
            source: self.status.name().clone(),
            body,
            format,
            etag: etag.as_ref().map(|etag| String::from_utf8_lossy(etag.as_bytes()).into_owned()),
            is_delta,
            arrived: Instant::now(),
            verdict,
        };
        let unusable =
            |why: &str| Failure { ask_for_all: true, ..Failure::new(format!("the document is unusable: {why}")) };
        self.out.send(fetched).await.map_err(|_| unusable("it is not expected any more"))?;
        match decided.await {
            Ok(Verdict::Applied { refused }) => {
                self.version = match (etag, digest) {
                    (Some(etag), _) => Some(Version::Tagged { etag, refused: refused_header(&refused) }),
                    (None, digest) => digest.map(Version::Hashed),
                };
                Ok(())
            }
            Ok(Verdict::Unusable(why)) => Err(unusable(&why)),
            Err(_) => Err(unusable("it was dropped")),
        }
    }
}
