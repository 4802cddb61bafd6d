//! The trait of filters with `async` callbacks.

use std::rc::Rc;

use serde::de::DeserializeOwned;

use super::dispatch::{Event, RootEvent};
use crate::{
    ConfigError, Filter, Flow, Incoming, Phases, Queue, Reply, Request, Response, Setup,
    futures::executor::{self, Handle, Kind},
    sys::{self, types::Half},
};

/// A filter that calls other services, waits or reads bodies in straight-line `async` code.
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
/// While a future waits, its message is held and other streams proceed; a waiting future occupies no thread. If its
/// stream ends first, the future is dropped together with whatever it waits for, and a later answer is ignored.
///
/// The future can await a [`Call`](crate::Call), a [`sleep`](crate::futures::sleep), the body (see [`Incoming`]), and
/// anything composed of these or of other futures (`join!`, `select!`, channels). It acts on its own stream regardless
/// of which event woke it. It may hold on to data borrowed from a [`Buffer`](crate::Buffer) while it waits.
// No `Send`: an instance has one thread.
#[allow(async_fn_in_trait)]
pub trait AsyncFilter: Sized + 'static {
    /// See [`Filter::Config`].
    type Config: DeserializeOwned + 'static;
    /// State kept per stream. A stream's request and response can be processed concurrently, so they share it: use
    /// `Cell` and `RefCell` for mutable parts.
    type Stream: Default + 'static;
    /// The callbacks that the proxy makes. A future that reads a body needs [`Phases::REQUEST_BODY`] or
    /// [`Phases::RESPONSE_BODY`] here; without it, [`Incoming::body`] and [`Incoming::chunk`] panic. The body phases
    /// include the header phases.
    const PHASES: Phases;

    /// See [`Filter::configure`].
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// Called when the request's headers were received. `Ok`: the request continues, and the filter does not see the
    /// unread rest of its body. `Err`: the client receives this response, and no upstream sees the request.
    async fn on_request(&self, _request: &mut Incoming<Request>, _stream: &Self::Stream) -> Result<(), Reply> {
        Ok(())
    }

    /// Called when the response's headers are available, from an upstream, another filter or the proxy. `Err`: this
    /// replaces the response if none of it has been sent yet; otherwise the response is aborted.
    async fn on_response(&self, _response: &mut Incoming<Response>, _stream: &Self::Stream) -> Result<(), Reply> {
        Ok(())
    }

    /// Called at the interval set by [`Setup::tick`]; skipped while the previous call is still running. It cannot act
    /// on a stream and cannot sleep.
    async fn on_tick(&self) {}

    /// See [`Filter::on_queue`]. It cannot sleep.
    async fn on_queue(&self, _queue: Queue, _message: Vec<u8>) {}

    /// See [`Filter::on_end`].
    fn on_end(&self, _request: &Request, _response: &Response, _stream: &Self::Stream) {}
}

/// Per-stream state of an [`AsyncFilter`].
#[derive(Debug)]
pub struct Tasks<S> {
    /// `None` for `()`, which needs no allocation.
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
    /// Runs `f` on the state that the stream's futures share.
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
                // A future that has already finished has not seen the body.
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
