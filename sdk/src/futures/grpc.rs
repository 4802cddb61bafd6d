//! gRPC calls to other services, unary and streaming. Messages are bytes; use a crate such as `prost` to encode them.

pub use crate::sys::code;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tollgate_abi::pairs;

use super::{
    call::{self, find},
    executor::grpc,
};
pub use crate::sys::types::GrpcError;
use crate::{
    Flow,
    message::flow::{Asked, Begun},
    sys,
};

/// A gRPC call to one of the clusters in the proxy's configuration, which must use HTTP/2.
///
/// ```no_run
/// # async fn example() -> Result<(), tollgate_sdk::GrpcError> {
/// use std::time::Duration;
/// use tollgate_sdk::GrpcCall;
///
/// let call = GrpcCall::new("users", "test.Users", "Find").timeout(Duration::from_millis(300));
/// let user: Vec<u8> = call.send(b"\x0a\x03ann").await?;
///
/// let mut changes = GrpcCall::new("users", "test.Users", "Watch").open()?;
/// changes.send(b"\x0a\x03ann");
/// while let Some(change) = changes.message().await? {
///     // ...
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "it is begun by `send` or `open`"]
pub struct GrpcCall<'c> {
    cluster: &'c str,
    service: &'c str,
    method: &'c str,
    metadata: Vec<pairs::Pair<'c>>,
    timeout: Duration,
}

impl<'c> GrpcCall<'c> {
    /// Creates a call to a service's method, such as `test.Users` and `Find`.
    pub fn new(cluster: &'c str, service: &'c str, method: &'c str) -> GrpcCall<'c> {
        GrpcCall { cluster, service, method, metadata: Vec::new(), timeout: call::DEFAULT_TIMEOUT }
    }

    /// Adds a metadata field; the name must be in lower case.
    pub fn metadata(mut self, name: &'c str, value: &'c (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.metadata.push((name.as_bytes(), value.as_ref()));
        self
    }

    /// Sets the time until the answer, in whole milliseconds (rounded up, at least 1). Default: 5 s. Streams have no
    /// timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a message and returns the future of the answer. The call starts immediately; dropping the future cancels
    /// it.
    ///
    /// # Errors
    /// All errors are returned by the future: the service's status, or the proxy's.
    pub fn send(self, message: impl AsRef<[u8]>) -> GrpcSent {
        let call = self.dispatch(message.as_ref());
        if let Ok(call) = call {
            grpc::begun(call, false);
        }
        GrpcSent(call)
    }

    /// Sends a message and holds the stream's message until [`Filter::on_grpc_answer`](crate::Filter::on_grpc_answer)
    /// is called with the answer. For a [`Filter`](crate::Filter) with [`Phases::ANSWERS`](crate::Phases::ANSWERS).
    pub fn ask(self, message: impl AsRef<[u8]>, token: u32) -> Flow {
        Flow::Ask(Asked { token, begun: Begun::Grpc(self.dispatch(message.as_ref())) })
    }

    fn dispatch(&self, message: &[u8]) -> Result<u32, GrpcError> {
        let millis = crate::sys::types::millis(self.timeout);
        sys::grpc_call(self.cluster, self.service, self.method, &self.encoded(), message, millis)
    }

    /// Opens a bidirectional stream. Dropping it before its end cancels it.
    ///
    /// # Errors
    /// Those detected immediately: the cluster does not exist, or there are too many pending calls.
    pub fn open(self) -> Result<GrpcStream, GrpcError> {
        let call = sys::grpc_stream(self.cluster, self.service, self.method, &self.encoded())?;
        grpc::begun(call, true);
        Ok(GrpcStream(call))
    }

    fn encoded(&self) -> Vec<u8> {
        let mut metadata = Vec::new();
        if !self.metadata.is_empty() {
            pairs::encode(self.metadata.iter().copied(), &mut metadata);
        }
        metadata
    }
}

/// A gRPC call that has been sent: the future of its answer.
#[derive(Debug)]
#[must_use = "a future must be awaited; when it is dropped, the call is cancelled"]
pub struct GrpcSent(Result<u32, GrpcError>);

impl Future for GrpcSent {
    type Output = Result<Vec<u8>, GrpcError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.0 {
            // The service reported success without sending a message.
            Ok(call) => grpc::poll_message(*call, cx)
                .map(|result| result?.ok_or_else(|| GrpcError::new(code::INTERNAL, "the answer contains no message"))),
            Err(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

impl Drop for GrpcSent {
    fn drop(&mut self) {
        if let Ok(call) = self.0 {
            grpc::leave(call);
        }
    }
}

/// A gRPC stream.
#[derive(Debug)]
pub struct GrpcStream(u32);

impl GrpcStream {
    /// Sends a message. Returns `false` if the stream has ended. The message is sent when the filter waits.
    pub fn send(&self, message: impl AsRef<[u8]>) -> bool {
        sys::grpc_send(self.0, message.as_ref(), false)
    }

    /// Sends the last message; the stream remains open for receiving.
    pub fn send_last(&self, message: impl AsRef<[u8]>) -> bool {
        sys::grpc_send(self.0, message.as_ref(), true)
    }

    /// Ends sending; the stream remains open for receiving.
    pub fn finish(&self) {
        if grpc::is_open(self.0) {
            sys::grpc_close(self.0);
        }
    }

    /// Returns the next message; `None` after a successful end.
    ///
    /// # Errors
    /// The status of an unsuccessful end.
    pub async fn message(&mut self) -> Result<Option<Vec<u8>>, GrpcError> {
        poll_fn(|cx| grpc::poll_message(self.0, cx)).await
    }

    /// Returns the value of a field of the peer's initial metadata, which are available once the first message was
    /// received.
    pub fn initial_metadata(&self, name: &str) -> Option<Vec<u8>> {
        grpc::metadata(self.0, false, |map| find(map, name).map(<[u8]>::to_vec))
    }

    /// Returns the value of a field of the peer's trailing metadata, which are available once the last message was
    /// read.
    pub fn trailing_metadata(&self, name: &str) -> Option<Vec<u8>> {
        grpc::metadata(self.0, true, |map| find(map, name).map(<[u8]>::to_vec))
    }
}

impl Drop for GrpcStream {
    fn drop(&mut self) {
        grpc::leave(self.0);
    }
}
