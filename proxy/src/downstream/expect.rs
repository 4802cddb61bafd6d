//! Bodies of clients that wait for a 100 (Continue) before sending them (RFC 9110 section 10.1.1).

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};

use crate::{
    chain::stream::StreamProgress,
    http::body::{Body, BodyError},
};

/// Returns whether a client waits for a 100 (Continue) before it sends the body.
pub(super) fn expects_continue(fields: &HeaderMap) -> bool {
    fields.get(header::EXPECT).is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A body whose client is sent a 100 (Continue) when the body is first polled.
struct ExpectContinueBody {
    body: Body,
    /// Present until the body is polled for the first time.
    progress: Option<Rc<StreamProgress>>,
}

impl Body {
    /// Wraps the body of a client that waits for a 100 (Continue).
    pub(crate) fn expected(self, progress: &Rc<StreamProgress>) -> Body {
        Body::stream(ExpectContinueBody { body: self, progress: Some(Rc::clone(progress)) })
    }
}

impl http_body::Body for ExpectContinueBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(progress) = self.progress.take() {
            // A client that has already sent some of the body needs no 100.
            match frame.is_pending() {
                true => progress.interims.go_on(),
                false => progress.interims.is_not_awaited(),
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
