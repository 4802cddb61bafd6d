//! Responses that filters send.

use crate::{
    CallError, Flow, Late, TooLarge,
    sys::code,
    sys::{self, types::GrpcError},
};

/// A response that a filter sends instead of the upstream's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) details: String,
    pub(crate) grpc_status: Option<u8>,
}

impl Reply {
    /// Creates a response with this status (200 to 599) and no body.
    pub fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    /// Adds a header field.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    /// Sets the reason for the response, for the access log: a word or two joined with underscores. The client does not
    /// see it.
    pub fn details(mut self, details: impl Into<String>) -> Reply {
        self.details = details.into();
        self
    }

    /// Sets the status for gRPC clients (0 to 16, see [`grpc::code`](crate::futures::grpc::code)); other clients get
    /// the HTTP status. By default it is derived from the HTTP status (403: 7, 429 and 503: 14, ...). The body becomes
    /// the message if it is text of at most 1024 bytes.
    pub fn grpc_status(mut self, status: u8) -> Reply {
        self.grpc_status = Some(status);
        self
    }

    /// Sends this response to the effective stream.
    pub(crate) fn send(&self) {
        let grpc_status = self.grpc_status.map_or(-1, i32::from);
        sys::send_local_response(self.status, &self.details, &self.headers, &self.body, grpc_status);
    }
}

impl From<Reply> for Flow {
    fn from(reply: Reply) -> Flow {
        Flow::Respond(Box::new(reply))
    }
}

/// 504 if the service timed out, otherwise 503. Lets filters that cannot proceed without the answer use `?`.
impl From<CallError> for Reply {
    fn from(error: CallError) -> Reply {
        let (status, details) = match error {
            CallError::Timeout => (504, "callout_timeout"),
            CallError::Reset => (503, "callout_reset"),
            CallError::TooLarge => (503, "callout_too_large"),
            CallError::UnknownCluster => (503, "callout_unknown_cluster"),
            CallError::Invalid => (503, "callout_invalid"),
            CallError::TooMany => (503, "callout_too_many"),
        };
        Reply::new(status).details(details)
    }
}

/// 504 if the service timed out, otherwise 503; a gRPC client gets the corresponding status. The service's own status
/// appears only in the details, since it was meant for the filter.
impl From<GrpcError> for Reply {
    fn from(error: GrpcError) -> Reply {
        let status = if error.status == code::DEADLINE_EXCEEDED { 504 } else { 503 };
        let mut details = String::from("grpc_callout_");
        details.push_str(code::name(error.status));
        Reply::new(status).details(details)
    }
}

/// 413.
impl From<TooLarge> for Reply {
    fn from(_: TooLarge) -> Reply {
        Reply::new(413).details("body_too_large")
    }
}

/// 500: the message must not continue without the change.
impl From<Late> for Reply {
    fn from(_: Late) -> Reply {
        Reply::new(500).details("body_changed_too_late")
    }
}
