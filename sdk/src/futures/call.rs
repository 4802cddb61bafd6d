//! HTTP calls to other services.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tollgate_abi::pairs;

use super::executor::calls;
use crate::{
    Flow,
    message::flow::{Asked, Begun},
    sys::{
        self,
        types::{CallError, millis},
    },
};

/// Timeout of a call for which the filter sets none.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// A call to a service, which is one of the clusters in the proxy's configuration.
///
/// ```no_run
/// # async fn example() -> Result<(), tollgate_sdk::CallError> {
/// use std::time::Duration;
/// use tollgate_sdk::Call;
///
/// let call = Call::post("auth", "/check").header("x-user", "ann").body("{}").timeout(Duration::from_millis(300));
/// let answer = call.send().await?;
/// assert_eq!(answer.status(), 200);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "it is sent by `send`"]
pub struct Call<'c> {
    cluster: &'c str,
    authority: &'c str,
    method: &'c str,
    path: &'c str,
    headers: Vec<pairs::Pair<'c>>,
    trailers: Vec<pairs::Pair<'c>>,
    body: &'c [u8],
    timeout: Duration,
}

impl<'c> Call<'c> {
    /// Creates a call with this method. `path` begins with `/` and may include a query.
    pub fn new(cluster: &'c str, method: &'c str, path: &'c str) -> Call<'c> {
        Call {
            cluster,
            authority: cluster,
            method,
            path,
            headers: Vec::new(),
            trailers: Vec::new(),
            body: &[],
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Creates a `GET` call.
    pub fn get(cluster: &'c str, path: &'c str) -> Call<'c> {
        Call::new(cluster, "GET", path)
    }

    /// Creates a `POST` call.
    pub fn post(cluster: &'c str, path: &'c str) -> Call<'c> {
        Call::new(cluster, "POST", path)
    }

    /// Sets the authority (host). Default: the cluster's name.
    pub fn authority(mut self, authority: &'c str) -> Self {
        self.authority = authority;
        self
    }

    /// Adds a header field.
    pub fn header(mut self, name: &'c str, value: &'c (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.headers.push((name.as_bytes(), value.as_ref()));
        self
    }

    /// Adds a trailer field.
    pub fn trailer(mut self, name: &'c str, value: &'c (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.trailers.push((name.as_bytes(), value.as_ref()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: &'c (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.body = body.as_ref();
        self
    }

    /// Sets the time until the answer's last byte, in whole milliseconds (rounded up, at least 1). Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends the call and returns the future of its answer. The call starts immediately, so several can be sent before
    /// the first is awaited. Dropping the future discards the answer; the service still receives the call.
    ///
    /// # Errors
    /// All errors are returned by the future.
    pub fn send(self) -> Sent {
        let call = self.dispatch();
        if let Ok(call) = call {
            calls::sent(call);
        }
        Sent(call)
    }

    /// Sends the call and ignores its answer. Also suitable for filters that cannot wait.
    ///
    /// # Errors
    /// Those detected immediately: `UnknownCluster`, `Invalid`, `TooMany`.
    pub fn forget(self) -> Result<(), CallError> {
        self.dispatch().map(|_| ())
    }

    /// Sends the call and holds the message until [`Filter::on_answer`](crate::Filter::on_answer) is called with the
    /// answer. For a [`Filter`](crate::Filter) with [`Phases::ANSWERS`](crate::Phases::ANSWERS).
    pub fn ask(self, token: u32) -> Flow {
        Flow::Ask(Asked { token, begun: Begun::Http(self.dispatch()) })
    }

    fn dispatch(&self) -> Result<u32, CallError> {
        let pseudo = [(":method", self.method), (":path", self.path), (":authority", self.authority)];
        let pseudo = pseudo.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let (mut headers, mut trailers) = (Vec::new(), Vec::new());
        pairs::encode(pseudo.into_iter().chain(self.headers.iter().copied()), &mut headers);
        if !self.trailers.is_empty() {
            pairs::encode(self.trailers.iter().copied(), &mut trailers);
        }
        sys::http_call(self.cluster, &headers, self.body, &trailers, millis(self.timeout))
    }
}

/// A call that has been sent: the future of its answer.
#[derive(Debug)]
#[must_use = "a future must be awaited; use `Call::forget` to ignore the answer"]
pub struct Sent(Result<u32, CallError>);

impl Future for Sent {
    type Output = Result<Answer, CallError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0 {
            Ok(call) => calls::poll_answer(call, cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Ok(call) = self.0 {
            calls::leave(call);
        }
    }
}

/// The answer to a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    /// In the host's encoding.
    headers: Vec<u8>,
    body: Vec<u8>,
    trailers: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(headers: Vec<u8>, body: Vec<u8>, trailers: Vec<u8>) -> Answer {
        let mut answer = Answer { status: 0, headers, body, trailers };
        let status = answer.header(":status").and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok());
        answer.status = status.unwrap_or(0);
        answer
    }

    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the value of the first field with this name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        find(&self.headers, name)
    }

    /// Iterates over all header fields, including `:status`. Names are in lower case.
    pub fn headers(&self) -> impl Iterator<Item = pairs::Pair<'_>> {
        pairs::decode(&self.headers).unwrap_or_default().into_iter()
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Returns the body without copying it.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Returns the value of the first trailer field with this name, given in lower case.
    pub fn trailer(&self, name: &str) -> Option<&[u8]> {
        find(&self.trailers, name)
    }
}

pub(crate) fn find<'m>(map: &'m [u8], name: &str) -> Option<&'m [u8]> {
    let pairs = pairs::decode(map).unwrap_or_default();
    pairs.into_iter().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
}
