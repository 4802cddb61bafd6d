//! Interim responses (RFC 9110 section 15.2) on their way to a client: the upstream's, and the proxy's own 100
//! (Continue).
//!
//! The exchange queues them here while it serves a request. The client's connection polls the exchange and sends the
//! queued responses after each poll. Both run in one task, so no waking is needed.

use std::{
    cell::{Cell, RefCell},
    mem,
};

use http::{Response, StatusCode};

/// The interim responses of the current request.
#[derive(Debug, Default)]
pub struct Interims {
    waiting: RefCell<Vec<Response<()>>>,
    /// How many more the client may receive.
    left: Cell<u32>,
    /// The client waits for a 100 before it sends the body (RFC 9110 section 10.1.1).
    awaited: Cell<bool>,
}

impl Interims {
    /// Starts a request whose client may receive up to `most` interim responses. `awaited`: it waits for a 100 before
    /// it sends the body.
    pub fn begin(&self, most: u32, awaited: bool) {
        self.waiting.borrow_mut().clear();
        self.left.set(most);
        self.awaited.set(awaited);
    }

    /// The final response starts: no interim responses may follow.
    pub fn end(&self) {
        self.begin(0, false);
    }

    /// Whether the client is still waiting for a 100.
    pub fn is_awaited(&self) -> bool {
        self.awaited.get()
    }

    /// The client has started to send its body without waiting for the 100.
    pub fn is_not_awaited(&self) {
        self.awaited.set(false);
    }

    /// Tells the client to send its body, if it is waiting for that.
    pub fn go_on(&self) {
        if self.awaited.replace(false) {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            self.waiting.borrow_mut().push(go_on);
        }
    }

    /// Forwards an upstream's interim response. A 100 that the client is not waiting for is dropped: it was sent
    /// already or never requested.
    pub fn pass(&self, response: Response<()>) {
        if response.status() == StatusCode::CONTINUE {
            self.go_on();
        } else if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            self.waiting.borrow_mut().push(response);
        }
    }

    /// Takes the responses to send now.
    pub fn take(&self) -> Vec<Response<()>> {
        mem::take(&mut self.waiting.borrow_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(interims: &Interims) -> Vec<u16> {
        interims.take().iter().map(|response| response.status().as_u16()).collect()
    }

    fn pass(interims: &Interims, status: u16) {
        interims.pass(Response::builder().status(status).body(()).unwrap());
    }

    #[test]
    fn interim_responses_are_sent_once_in_order_up_to_the_limit() {
        let interims = Interims::default();
        interims.begin(3, false);
        for status in [103, 102, 103, 104] {
            pass(&interims, status);
        }
        assert_eq!(statuses(&interims), [103, 102, 103]);
        assert!(interims.take().is_empty());
    }

    #[test]
    fn continue_is_sent_once_and_only_to_a_waiting_client() {
        let interims = Interims::default();
        for (awaited, told) in [(true, &[100][..]), (false, &[])] {
            interims.begin(3, awaited);
            interims.go_on();
            pass(&interims, 100);
            assert_eq!(statuses(&interims), told);
        }
        interims.begin(3, true);
        interims.is_not_awaited();
        interims.go_on();
        assert!(interims.take().is_empty());
    }

    #[test]
    fn no_interim_response_follows_the_response() {
        let interims = Interims::default();
        interims.begin(3, true);
        interims.end();
        interims.go_on();
        pass(&interims, 103);
        assert!(interims.take().is_empty() && !interims.is_awaited());
    }
}
