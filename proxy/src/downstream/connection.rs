//! State shared by the connections of a listener on a worker, for all HTTP versions: the active configuration,
//! draining, and the logging of malformed requests. A client's disconnect is noticed in the drivers ([`super::h1`],
//! [`super::h2`]).

use std::{cell::RefCell, rc::Rc, time::SystemTime};

use tokio::sync::watch;

use crate::{
    chain::stream::ConnectionInfo,
    exchange::ListenerContext,
    observe::{self, Detail, Entry},
};

/// A handle through which a worker controls the connections of a listener.
pub struct ListenerHandle {
    /// The active rules. Each request uses the rules active when it begins.
    listener: RefCell<Rc<ListenerContext>>,
    /// Whether connections should end as soon as they have no in-flight requests.
    draining: watch::Sender<bool>,
}

impl ListenerHandle {
    /// Creates a handle with these rules.
    pub fn new(listener: Rc<ListenerContext>) -> ListenerHandle {
        ListenerHandle { listener: RefCell::new(listener), draining: watch::channel(false).0 }
    }

    /// Returns the active rules.
    pub fn context(&self) -> Rc<ListenerContext> {
        self.listener.borrow().clone()
    }

    /// Sets the rules for requests from now on.
    pub fn set_context(&self, listener: Rc<ListenerContext>) {
        *self.listener.borrow_mut() = listener;
    }

    /// Starts draining: each connection ends as soon as it can.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Returns whether the connections are draining.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ready when draining starts.
    pub fn drained(&self) -> impl Future<Output = ()> + use<> {
        let mut draining = self.draining.subscribe();
        async move {
            // An error means that the listener is gone, which drains as well.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }
}

/// The factor by which an HTTP/2 or HTTP/3 head may exceed its limit and still be answered like any other request, with
/// the reason. Beyond that, the crates h2 and h3 respond themselves or end the connection.
pub(super) const LENIENCE: u64 = 4;

/// Counts and logs a request that was malformed and never read further. `why`: the underlying cause, if known.
pub(super) fn log_refusal(
    listener: &ListenerContext,
    info: &ConnectionInfo,
    protocol: &str,
    status: u16,
    flags: u32,
    details: Detail,
    why: &str,
) {
    let shard = observe::shard();
    listener.metrics.requests[usize::from(status / 100)].inc(shard);
    listener.metrics.flags.iter().filter(|(bit, _)| flags & bit != 0).for_each(|(_, counter)| counter.inc(shard));
    if let Some(log) = &listener.access_log {
        let now = Entry::new(SystemTime::now(), &listener.name, info.peer);
        let entry = Entry { status, flags, details: details.text(), protocol, downstream_failure: why, ..now };
        log.log(shard, &entry);
    }
}
