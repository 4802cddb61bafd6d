//! The trait of filters that wait for things.

use std::rc::Rc;

use serde::de::DeserializeOwned;

use super::dispatch::{Event, RootEvent};
use crate::{
    ConfigError, Filter, Flow, Incoming, Phases, Queue, Reply, Request, Response, Setup,
    futures::executor::{self, Handle, Kind},
    sys::{self, types::Half},
};

/// A filter that asks other services, waits, or reads bodies, in the order in which it is written.
///
/// ```
/// use std::time::Duration;
/// use tollgate_sdk::prelude::*;
///
/// struct Ask {
///     path: Name,
/// }
///
/// impl AsyncFilter for Ask {
///     type Config = ();
///     type Stream = ();
///     const PHASES: Phases = Phases::REQUEST_HEADERS;
///
///     fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
///         Ok(Ask { path: setup.name(":path") })
///     }
///
///     async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
///         let mut buffer = Buffer::new();
///         let path = request.header(self.path, &mut buffer).unwrap_or_default();
///         let call = Call::get("auth", "/check").header("x-path", path).timeout(Duration::from_millis(300));
///         match call.send().await?.status() {
///             200 => Ok(()),
///             _ => Err(Reply::new(403)),
///         }
///     }
/// }
///
/// tollgate_sdk::export!(Ask);
/// # fn main() {}
/// ```
///
/// While a future waits, its message is held and other streams go on; a future takes no thread and nobody else's time. One
/// that is still waiting when its stream ends is dropped, and with it what it waits for: an answer that comes later finds
/// nobody.
///
/// Within the future, [`Call`](crate::Call), [`sleep`](crate::futures::sleep) and the body (see [`Incoming`]) can be awaited, and
/// whatever is made of them or of other futures (`join!`, `select!`, channels). It works on its own stream, wherever it is
/// woken. What it borrows of a [`Buffer`](crate::Buffer) it may keep while it waits.
// No `Send`: an instance has one thread.
#[allow(async_fn_in_trait)]
pub trait AsyncFilter: Sized + 'static {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned + 'static;
    /// What is kept for one stream. A stream's request and its response can be dealt with at the same time, so they share
    /// it: use `Cell` and `RefCell` for what changes.
    type Stream: Default + 'static;
    /// The callbacks that the proxy makes. A future that reads a body needs [`Phases::REQUEST_BODY`] or
    /// [`Phases::RESPONSE_BODY`] here: without it, [`Incoming::body`] and [`Incoming::chunk`] panic. Bodies bring their heads
    /// with them.
    const PHASES: Phases;

    /// As [`Filter::configure`].
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// The request's head has come. `Ok`: it goes on, and what has not been read of its body passes unseen. `Err`: it is
    /// answered with this; no upstream sees it.
    async fn on_request(&self, _request: &mut Incoming<Request>, _stream: &Self::Stream) -> Result<(), Reply> {
        Ok(())
    }

    /// The response's head has come, from an upstream, another filter or the proxy. `Err`: this replaces the response, if
    /// nothing of it has been sent; else it is cut off.
    async fn on_response(&self, _response: &mut Incoming<Response>, _stream: &Self::Stream) -> Result<(), Reply> {
        Ok(())
    }

    /// The tick set by [`Setup::tick`] is due; left out while the one before is still busy. It acts on no stream and cannot
    /// sleep.
    async fn on_tick(&self) {}

    /// As [`Filter::on_queue`]. It cannot sleep.
    async fn on_queue(&self, _queue: Queue, _message: Vec<u8>) {}

    /// As [`Filter::on_end`].
    fn on_end(&self, _request: &Request, _response: &Response, _stream: &Self::Stream) {}
}

/// What is kept for a stream of an [`AsyncFilter`].
#[derive(Debug)]
pub struct Tasks<S> {
    /// Not for `()`, which needs no place.
    shared: Option<Rc<S>>,
    request: Option<Handle>,
    response: Option<Handle>,
}

impl<S: Default> Default for Tasks<S> {
    fn default() -> Self {
        Tasks { shared: (size_of::<S>() > 0).then(Rc::default), request: None, response: None }
    }
}

impl<S: Default> Tasks<S> {
    /// Runs `f` on what the stream's futures share.
    fn with_shared<T>(&self, f: impl FnOnce(&S) -> T) -> T {
        match &self.shared {
            Some(shared) => f(shared),
            None => f(&S::default()),
        }
    }

    fn task(&mut self, half: Half) -> &mut Option<Handle> {
        match half {
            Half::Request => &mut self.request,
            Half::Response => &mut self.response,
        }
    }
}

impl<F: AsyncFilter> Filter for F {
    type Config = F::Config;
    type Stream = Tasks<F::Stream>;
    const PHASES: Phases = F::PHASES.with_heads();
    const ASYNC: bool = true;

    fn configure(config: F::Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        <F as AsyncFilter>::configure(config, setup)
    }

    fn on_end(&self, request: &Request, response: &Response, stream: &mut Self::Stream) {
        stream.with_shared(|shared| AsyncFilter::on_end(self, request, response, shared));
    }

    fn drive(self: &Rc<Self>, event: Event, stream: &mut Self::Stream) -> Flow {
        match event {
            Event::Head { context, half, end } => {
                let (filter, shared) = (self.clone(), stream.shared.clone());
                let fed = F::PHASES.has(half.body());
                let future = async move {
                    let unit;
                    let shared = match &shared {
                        Some(shared) => &**shared,
                        None => {
                            unit = F::Stream::default();
                            &unit
                        }
                    };
                    match half {
                        Half::Request => {
                            let mut request = Incoming::new(Request { end_of_stream: end }, fed, end);
                            AsyncFilter::on_request(&*filter, &mut request, shared).await
                        }
                        Half::Response => {
                            let mut response = Incoming::new(Response { end_of_stream: end }, fed, end);
                            AsyncFilter::on_response(&*filter, &mut response, shared).await
                        }
                    }
                };
                let (flow, handle) = executor::begin(context, half, end, Box::pin(future));
                // One that is done has seen nothing of the body.
                if handle.is_some() && fed && !end {
                    sys::body_may_change(half);
                }
                *stream.task(half) = handle;
                flow
            }
            Event::Body { half, len, end } => match stream.task(half) {
                Some(task) => executor::body(task, len, end),
                None => Flow::Continue,
            },
        }
    }

    fn drive_root(self: &Rc<Self>, root: u32, event: RootEvent) {
        let filter = self.clone();
        match event {
            RootEvent::Tick if executor::is_busy(root, Kind::Tick) => {}
            RootEvent::Tick => {
                let future = async move {
                    AsyncFilter::on_tick(&*filter).await;
                    Ok(())
                };
                executor::begin_root(root, Kind::Tick, Box::pin(future));
            }
            RootEvent::Message(queue, message) => {
                let future = async move {
                    AsyncFilter::on_queue(&*filter, queue, message).await;
                    Ok(())
                };
                executor::begin_root(root, Kind::Queued, Box::pin(future));
            }
        }
    }
}
