//! Tracks client connections, to close the longest idle ones when file descriptors run out. A request updates nothing
//! here: the connection itself records since when it is idle.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Instant,
};

use slab::Slab;
use tokio::task::AbortHandle;

use crate::chain::stream::ConnectionInfo;

/// The divisor for the share of idle connections to close at a time, so that not every new connection has to search.
const PART: usize = 16;

/// The connections of a worker, or of the admin listener.
#[derive(Debug, Default)]
pub struct Clients(RefCell<Slab<Client>>);

#[derive(Debug)]
struct Client {
    state: Rc<State>,
    task: Option<AbortHandle>,
}

#[derive(Debug)]
struct State {
    doing: RefCell<ClientActivity>,
    /// Since when the client has this activity.
    since: Cell<Instant>,
}

#[derive(Debug)]
enum ClientActivity {
    /// It has sent nothing, or nothing that needs a response now.
    Nothing,
    /// It speaks HTTP; the activity is that of its requests.
    Http(Rc<ConnectionInfo>),
    /// It must not be interrupted.
    Work,
}

impl State {
    fn idle_since(&self) -> Option<Instant> {
        match &*self.doing.borrow() {
            ClientActivity::Nothing => Some(self.since.get()),
            ClientActivity::Http(info) => (info.active.get() == 0).then(|| info.idle_since.get()),
            ClientActivity::Work => None,
        }
    }
}

/// A tracked connection; removed on drop.
#[derive(Debug)]
pub struct ClientGuard {
    clients: Rc<Clients>,
    key: usize,
    state: Rc<State>,
}

impl Clients {
    /// Adds a connection. `serve` spawns its task.
    pub fn admit(self: &Rc<Self>, serve: impl FnOnce(ClientGuard) -> AbortHandle) {
        let state = Rc::new(State { doing: RefCell::new(ClientActivity::Nothing), since: Cell::new(Instant::now()) });
        let key = self.0.borrow_mut().insert(Client { state: state.clone(), task: None });
        let task = serve(ClientGuard { clients: self.clone(), key, state });
        if let Some(client) = self.0.borrow_mut().get_mut(key) {
            client.task = Some(task);
        }
    }

    /// Returns the number of connections.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// Closes some of the longest idle connections and returns their number. Their descriptors are free shortly
    /// afterwards.
    pub fn close_idle(&self) -> usize {
        let clients = self.0.borrow();
        let idle = clients.iter().filter(|(_, client)| client.task.as_ref().is_some_and(|task| !task.is_finished()));
        let mut idle: Vec<_> = idle.filter_map(|(key, client)| Some((client.state.idle_since()?, key))).collect();
        let some = idle.len().div_ceil(PART);
        if some > 0 {
            idle.select_nth_unstable(some - 1);
        }
        idle.truncate(some);
        for (_, key) in &idle {
            if let Some(client) = clients.get(*key) {
                // It must not be selected again.
                *client.state.doing.borrow_mut() = ClientActivity::Work;
                client.task.iter().for_each(AbortHandle::abort);
            }
        }
        some
    }
}

impl ClientGuard {
    /// Marks the connection as HTTP.
    pub fn serves_http(&self, info: &Rc<ConnectionInfo>) {
        *self.state.doing.borrow_mut() = ClientActivity::Http(info.clone());
    }

    /// Marks the connection as busy.
    pub fn works(&self) {
        *self.state.doing.borrow_mut() = ClientActivity::Work;
    }

    /// Marks the connection as idle.
    pub fn rests(&self) {
        *self.state.doing.borrow_mut() = ClientActivity::Nothing;
        self.state.since.set(Instant::now());
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.clients.0.borrow_mut().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[test]
    fn the_longest_idle_connections_are_closed_first_and_busy_ones_never() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let clients = Rc::new(Clients::default());
            let open = Rc::new(RefCell::new(Vec::new()));
            for n in 0..33 {
                clients.admit(|guard| {
                    if n % 2 == 1 {
                        guard.works();
                    } else if n == 0 {
                        // It just had a request.
                        guard.state.since.set(Instant::now() + std::time::Duration::from_secs(60));
                    }
                    open.borrow_mut().push(n);
                    let open = open.clone();
                    spawn_local(async move {
                        let _ends = Ends(n, open);
                        let _guard = guard;
                        pending::<()>().await;
                    })
                    .abort_handle()
                });
            }
            yield_now().await;
            assert_eq!(clients.close_idle(), 2);
            yield_now().await;
            yield_now().await;
            assert_eq!(clients.count(), 31);
            assert!(!open.borrow().contains(&2) && !open.borrow().contains(&4) && open.borrow().contains(&0));
            while clients.close_idle() > 0 {
                yield_now().await;
            }
            yield_now().await;
            assert!(open.borrow().iter().all(|n| n % 2 == 1), "{open:?}");
        });

        struct Ends(usize, Rc<RefCell<Vec<usize>>>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.1.borrow_mut().retain(|n| *n != self.0);
            }
        }
    }
}
