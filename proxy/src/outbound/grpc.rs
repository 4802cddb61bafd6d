//! gRPC calls: unary ones, and those that a server answers with a stream. Messages are bytes; encoding them is the
//! caller's business.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use tokio::time::timeout;

use super::{
    body::Body,
    client::Client,
    error::{BodyError, Error, explain, reset},
    server::Dial,
};
use crate::http::grpc::{self, CallStatus, Code};

/// A call, without its message.
#[derive(Debug, Clone)]
pub struct Call {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Additional fields of the request, such as a token.
    pub metadata: HeaderMap,
    /// The limit on a received message, in bytes.
    pub max_message: usize,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server did not answer as a gRPC server.
    #[error(transparent)]
    Client(Error),
    /// The server ended the call with this status, or one that follows from its answer.
    #[error("{}", status_text(*code, message))]
    Status {
        /// The status: see [`Code`].
        code: u32,
        /// Its description.
        message: String,
    },
}

impl From<Error> for CallError {
    fn from(error: Error) -> CallError {
        match error {
            Error::Reset { reason, why } => (Code::of_reset(reason).number(), why).into(),
            error => CallError::Client(error),
        }
    }
}

impl From<CallStatus> for CallError {
    fn from((code, message): CallStatus) -> CallError {
        CallError::Status { code, message }
    }
}

impl<D: Dial> Client<D> {
    /// Makes a call with one message, and returns the message of the answer. `time` is for everything, and the server
    /// is told.
    ///
    /// # Errors
    /// The server cannot be reached, ends the call with an error, or does not send exactly one message.
    pub async fn unary(&mut self, call: &Call, message: &[u8], time: Duration) -> Result<Bytes, CallError> {
        let calling = async {
            let mut messages = self.call(call, message, Some(time), time).await?;
            let Some(only) = messages.next(None).await? else {
                return Err(internal("the answer has no message"));
            };
            match messages.next(None).await? {
                None => Ok(only),
                Some(_) => Err(internal("the answer has more than one message")),
            }
        };
        timeout(time, calling).await.unwrap_or(Err(Error::Late(time).into()))
    }

    /// Makes a call with one message, and returns the stream of the answer's messages. `patience`: the time until the
    /// stream begins, which some servers delay until they have a first message.
    ///
    /// # Errors
    /// The server cannot be reached, or ends the call with an error.
    pub async fn server_stream(
        &mut self,
        call: &Call,
        message: &[u8],
        patience: Duration,
    ) -> Result<Messages, CallError> {
        self.call(call, message, None, patience).await
    }

    async fn call(
        &mut self,
        call: &Call,
        message: &[u8],
        deadline: Option<Duration>,
        patience: Duration,
    ) -> Result<Messages, CallError> {
        let mut request = Request::post(call.path)
            .body(Bytes::from(grpc::framed(message)))
            .map_err(|error| internal(&error.to_string()))?;
        let fields = request.headers_mut();
        fields.extend(call.metadata.clone());
        fields.insert(header::CONTENT_TYPE, grpc::CONTENT_TYPE);
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        if let Some(deadline) = deadline {
            fields.insert(grpc::TIMEOUT, grpc::format_timeout(deadline));
        }
        Messages::of(self.send(request, patience).await?, call.max_message)
    }
}

/// The messages of an answer.
#[derive(Debug)]
pub struct Messages {
    body: Body,
    pending: BytesMut,
    max_message: usize,
    /// The trailers, once the body has ended. A call that ends without them has no status.
    trailers: Option<HeaderMap>,
}

impl Messages {
    fn of(response: Response<Body>, max_message: usize) -> Result<Messages, CallError> {
        let (head, body) = response.into_parts();
        if head.version != Version::HTTP_2 {
            return Err(Error::Invalid("gRPC needs HTTP/2, but the server speaks HTTP/1.1".to_owned()).into());
        }
        // An answer without messages may have its trailers in the head.
        if let Some(code) = grpc::status(&head.headers).filter(|code| *code != Code::Ok.number()) {
            return Err((code, grpc::message(&head.headers)).into());
        }
        if head.status != StatusCode::OK {
            let why = format!("the answer's HTTP status is {}", head.status);
            return Err((Code::of_http(head.status).number(), why).into());
        }
        if !grpc::is_grpc(&head.headers) {
            return Err((Code::Unknown.number(), "the answer is not application/grpc".to_owned()).into());
        }
        let trailers = grpc::status(&head.headers).map(|_| head.headers);
        Ok(Messages { body, pending: BytesMut::new(), max_message, trailers })
    }

    /// Returns the next message; `None` if the call has ended successfully. `idle`: the time for it.
    ///
    /// # Errors
    /// The call has ended with an error, or the next message does not arrive in time. There are no further messages.
    pub async fn next(&mut self, idle: Option<Duration>) -> Result<Option<Bytes>, CallError> {
        match idle {
            None => self.receive().await,
            Some(idle) => {
                let late = Error::Body(BodyError::Late(idle));
                timeout(idle, self.receive()).await.unwrap_or(Err(late.into()))
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = grpc::take_message(&mut self.pending, self.max_message)? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                None => break,
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.pending.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
        let trailers = self.trailers.take().unwrap_or_default();
        match grpc::status(&trailers) {
            Some(0) if self.pending.is_empty() => Ok(None),
            Some(0) => Err(internal("the answer ends within a message")),
            Some(code) => Err((code, grpc::message(&trailers)).into()),
            None => Err((Code::Unknown.number(), "the answer has no status".to_owned()).into()),
        }
    }
}

/// The status of a call whose stream or connection failed.
fn broken(error: &hyper::Error) -> CallError {
    match reset(error) {
        Some(reason) => Error::Reset { reason, why: explain(error) }.into(),
        None => Error::Body(BodyError::Incomplete(explain(error))).into(),
    }
}

fn internal(why: &str) -> CallError {
    (Code::Internal.number(), why.to_owned()).into()
}

fn status_text(code: u32, message: &str) -> String {
    let name = grpc::NAMES.get(code as usize).map_or_else(|| code.to_string(), |name| (*name).to_owned());
    if message.is_empty() { name } else { format!("{name}: {message}") }
}
