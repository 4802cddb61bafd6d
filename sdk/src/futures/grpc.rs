//! gRPC calls to other services: of one message for one message, and streams of them. Messages are bytes: what is in them
//! is for a crate such as `prost`.

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

/// A gRPC call to one of the clusters in the proxy's configuration, which must be spoken to by HTTP/2.
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
    /// A call of a service's method, such as `test.Users` and `Find`.
    pub fn new(cluster: &'c str, service: &'c str, method: &'c str) -> GrpcCall<'c> {
        GrpcCall { cluster, service, method, metadata: Vec::new(), timeout: call::DEFAULT_TIMEOUT }
    }

    /// Adds a field to the metadata; the name in lower case.
    pub fn metadata(mut self, name: &'c str, value: &'c (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.metadata.push((name.as_bytes(), value.as_ref()));
        self
    }

    /// How long the answer may take, in whole milliseconds (rounded up, from 1). Default: 5 s. Streams have no such bound.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a message, and gives the future of the one that answers it. The call is under way at once; it is cancelled when
    /// the future is dropped.
    ///
    /// # Errors
    /// All come from the future: the service's status, or the proxy's.
    pub fn send(self, message: impl AsRef<[u8]>) -> GrpcSent {
        let call = self.dispatch(message.as_ref());
        if let Ok(call) = call {
            grpc::begun(call, false);
        }
        GrpcSent(call)
    }

    /// Sends a message, and holds the stream's message until the answer comes, for which
    /// [`Filter::on_grpc_answer`](crate::Filter::on_grpc_answer) is called: for a [`Filter`](crate::Filter), with
    /// [`Phases::ANSWERS`](crate::Phases::ANSWERS).
    pub fn ask(self, message: impl AsRef<[u8]>, token: u32) -> Flow {
        Flow::Ask(Asked { token, begun: Begun::Grpc(self.dispatch(message.as_ref())) })
    }

    fn dispatch(&self, message: &[u8]) -> Result<u32, GrpcError> {
        let millis = crate::sys::types::millis(self.timeout);
        sys::grpc_call(self.cluster, self.service, self.method, &self.encoded(), message, millis)
    }

    /// Opens a stream of messages both ways. It is cancelled when it is dropped, unless it has ended.
    ///
    /// # Errors
    /// What is known at once: that there is no such cluster, that too many calls are under way.
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

/// A gRPC call that has been sent: the future of the message that answers it.
#[derive(Debug)]
#[must_use = "a future must be awaited; when it is dropped, the call is cancelled"]
pub struct GrpcSent(Result<u32, GrpcError>);

impl Future for GrpcSent {
    type Output = Result<Vec<u8>, GrpcError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.0 {
            // A service that says that all is well, and nothing else, has broken off.
            Ok(call) => grpc::poll_message(*call, cx)
                .map(|result| result?.ok_or_else(|| GrpcError::new(code::INTERNAL, "there was no message"))),
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
    /// Sends a message. Whether it goes out: not when the stream has ended. It is sent when the filter waits.
    pub fn send(&self, message: impl AsRef<[u8]>) -> bool {
        sys::grpc_send(self.0, message.as_ref(), false)
    }

    /// Sends the last message; those of the other side still come.
    pub fn send_last(&self, message: impl AsRef<[u8]>) -> bool {
        sys::grpc_send(self.0, message.as_ref(), true)
    }

    /// Sends no more messages; those of the other side still come.
    pub fn finish(&self) {
        if grpc::is_open(self.0) {
            sys::grpc_close(self.0);
        }
    }

    /// The next message of the other side; `None` when it has ended well.
    ///
    /// # Errors
    /// Its status, if it has not.
    pub async fn message(&mut self) -> Result<Option<Vec<u8>>, GrpcError> {
        poll_fn(|cx| grpc::poll_message(self.0, cx)).await
    }

    /// The value of a field of the other side's initial metadata, if that has come: with the first message it has.
    pub fn initial_metadata(&self, name: &str) -> Option<Vec<u8>> {
        grpc::metadata(self.0, false, |map| find(map, name).map(<[u8]>::to_vec))
    }

    /// The same of its trailing metadata, which are there when the last message has been read.
    pub fn trailing_metadata(&self, name: &str) -> Option<Vec<u8>> {
        grpc::metadata(self.0, true, |map| find(map, name).map(<[u8]>::to_vec))
    }
}

impl Drop for GrpcStream {
    fn drop(&mut self) {
        grpc::leave(self.0);
    }
}
