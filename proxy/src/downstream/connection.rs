//! What the connections of a listener on a worker have in common, whichever version of HTTP they speak.

use std::{cell::RefCell, rc::Rc, time::SystemTime};

use tokio::sync::watch;

use crate::{
    chain::stream::ConnectionInfo,
    exchange::ListenerContext,
    observe::{self, Detail, Entry},
};

/// What the connections of a listener on a worker look at.
pub struct ListenerHandle {
    /// The rules in force. Each request takes those of its time.
    site: RefCell<Rc<ListenerContext>>,
    /// Whether connections shall end as soon as they have nothing under way.
    draining: watch::Sender<bool>,
}

impl ListenerHandle {
    /// With these rules.
    pub fn new(site: Rc<ListenerContext>) -> ListenerHandle {
        ListenerHandle { site: RefCell::new(site), draining: watch::channel(false).0 }
    }

    /// The rules in force.
    pub fn site(&self) -> Rc<ListenerContext> {
        self.site.borrow().clone()
    }

    /// Requests from now on go by these rules.
    pub fn set_site(&self, site: Rc<ListenerContext>) {
        *self.site.borrow_mut() = site;
    }

    /// Connections end from now on, each as soon as it can.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Whether connections shall end.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ready when connections shall end.
    pub fn drained(&self) -> impl Future<Output = ()> + use<> {
        let mut draining = self.draining.subscribe();
        async move {
            // An error means that the listener is gone, which drains as well.
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }
}

/// Times that a head of HTTP/2 or HTTP/3 may be longer than it should and still be answered as any other request is, with a word
/// about it. Beyond, the crates h2 and h3 answer by themselves, or end the connection.
pub(super) const LENIENCE: u64 = 4;

/// Counts and logs a request of which nothing was read but that it is wrong; `why`: what is wrong beneath it, if that is known.
pub(super) fn log_refusal(
    site: &ListenerContext,
    info: &ConnectionInfo,
    protocol: &str,
    status: u16,
    flags: u32,
    details: Detail,
    why: &str,
) {
    let shard = observe::shard();
    site.metrics.requests[usize::from(status / 100)].inc(shard);
    site.metrics.flags.iter().filter(|(bit, _)| flags & bit != 0).for_each(|(_, counter)| counter.inc(shard));
    if let Some(log) = &site.access_log {
        let now = Entry::new(SystemTime::now(), &site.name, info.peer);
        let entry = Entry { status, flags, details: details.text(), protocol, downstream_failure: why, ..now };
        log.log(shard, &entry);
    }
}
