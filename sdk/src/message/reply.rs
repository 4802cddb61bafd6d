//! A response made by a filter.

use crate::{
    CallError, Flow, Late, TooLarge,
    sys::code,
    sys::{self, types::GrpcError},
};

/// A response made by a filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) details: String,
    pub(crate) grpc_status: Option<u8>,
}

impl Reply {
    /// A response of this status (200 to 599), without a body.
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

    /// Why there is a response: a word or two with underscores, for the access log. The client does not see it.
    pub fn details(mut self, details: impl Into<String>) -> Reply {
        self.details = details.into();
        self
    }

    /// The status that a gRPC client gets (0 to 16, see [`grpc::code`](crate::futures::grpc::code)); others get that of HTTP. Without
    /// it, it follows from that of HTTP (403: 7, 429 and 503: 14, ...). The body becomes the message, if it is text of at most 1024 bytes.
    pub fn grpc_status(mut self, status: u8) -> Reply {
        self.grpc_status = Some(status);
        self
    }

    /// Answers the effective stream with it.
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

/// 504 for a service that was too slow, else 503; so that `?` does for a filter that cannot do without the answer.
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

/// 504 for a service that was too slow, else 503; a gRPC client gets the status that belongs to these. That of the service is
/// in the details only: what it says is said to the filter.
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

/// 500: what was to be changed must not go on as it is.
impl From<Late> for Reply {
    fn from(_: Late) -> Reply {
        Reply::new(500).details("body_changed_too_late")
    }
}
