//! One request's life: the only place that knows the whole story.
//!
//! [`serve`] takes a request from a connection and gives back its response. In between: [`request`] makes a stream of it,
//! the chain's request filters see it, [`dispatch`] sends it to an upstream (perhaps several times), the response filters
//! see what came back, and [`response`] sends that on. Whatever goes wrong ends in [`reply`], with one status and one flag.
//! [`ending`] settles the accounts, whichever way the stream ended.

mod deadline;
mod dispatch;
mod ending;
mod grpc;
mod methods;
mod mirror;
mod reply;
mod request;
mod response;
mod upload;

use std::{future::poll_fn, rc::Rc, sync::Arc, task::Poll};

use http::{HeaderValue, Method, Request, Response};
use rustc_hash::FxHashMap;
use tollgate_abi::fast::flag;

use crate::{
    chain::{
        Chain, Direction, LocalReply, Route, Stream,
        flow::{HeadFlow, Outcome, interrupted},
        route::RetryPolicy,
        stream::ConnectionInfo,
    },
    config::model::{ListenerLimits, ListenerTimeouts, PathRules},
    http::{body::Body, grpc_web},
    observe::{AccessLog, Counter, Gauge, Histogram},
    upstream::Pools,
};

pub use self::methods::Methods;
use self::{
    deadline::{Bound, Deadline},
    ending::Ending,
    reply::Fault,
    upload::Upload,
};

/// What a worker knows of a listener: the rules of one snapshot.
pub struct Site {
    /// The listener's name.
    pub name: Rc<str>,
    /// Its filters.
    pub chain: Rc<Chain>,
    /// The route of requests that no filter has routed.
    pub default_route: Option<Arc<Route>>,
    /// How many proxies in front are trusted.
    pub trusted_hops: u32,
    /// The value of `Via`.
    pub via: Option<HeaderValue>,
    /// How paths are normalised.
    pub path: PathRules,
    /// Bytes of a body that are held back.
    pub buffered_body: usize,
    /// Whether gRPC-Web is translated.
    pub grpc_web: bool,
    /// What clients may send.
    pub limits: ListenerLimits,
    /// How long clients may take.
    pub timeouts: ListenerTimeouts,
    /// Where requests are logged.
    pub access_log: Option<AccessLog>,
    /// The listener's figures.
    pub figures: Figures,
    /// The clusters' figures, by name.
    pub clusters: FxHashMap<Box<str>, ClusterFigures>,
    /// Retries of clusters, unless a route says otherwise.
    pub retries: FxHashMap<Box<str>, RetryPolicy>,
    /// The way to upstreams.
    pub pools: Pools<Body>,
}

/// A listener's figures.
#[derive(Clone)]
pub struct Figures {
    /// Requests by the class of their status; 0: none was sent.
    pub requests: [Counter; 6],
    /// Seconds from a request's head to the end of its response.
    pub duration: Histogram,
    /// Requests under way.
    pub active: Gauge,
    /// Bytes of bodies, by direction.
    pub bytes: [Counter; 2],
    /// Responses by their flags.
    pub flags: Vec<(u32, Counter)>,
    /// gRPC calls by method.
    pub methods: Arc<Methods>,
}

/// A cluster's figures.
#[derive(Clone)]
pub struct ClusterFigures {
    /// Responses by class; 0: none.
    pub responses: [Counter; 6],
    /// Seconds until a response's head.
    pub latency: Histogram,
}

/// Serves one request.
///
/// # Errors
/// A filter has closed the stream.
pub async fn serve(
    site: Rc<Site>,
    connection: Rc<ConnectionInfo>,
    mut request: Request<Body>,
) -> Result<Response<Body>, Closed> {
    let web = if site.grpc_web { grpc_web::Translation::begin(&mut request) } else { None };
    let head_only = request.method() == Method::HEAD;
    let (parts, incoming) = request.into_parts();
    let (stream, refused) = request::begin(&site, connection, parts);
    let ending = Ending::new(site.clone(), stream.clone());
    let upload = Upload::new(&site, &stream, incoming);
    let outcome = match refused {
        Some(fault) => Err(fault.into_reply(&stream)),
        None => forward(&site, &stream, &upload).await,
    };
    let response = match outcome {
        Ok(from_upstream) => response::from_upstream(&site, ending, from_upstream, head_only).await?,
        Err(Stop::Reply(reply, seen)) => response::local(&site, ending, *reply, seen, head_only).await?,
        Err(Stop::Closed) => return Err(closed(&stream)),
    };
    Ok(match web {
        Some(translation) => translation.end(response),
        None => response,
    })
}

/// A filter has ended the stream without a response: the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("a filter closed the stream")]
pub struct Closed;

fn closed(stream: &Stream) -> Closed {
    let mut state = stream.state.borrow_mut();
    if state.flags & flag::IDLE_TIMEOUT != 0 {
        state.details = "filter_stalled".into();
    } else {
        state.flags |= flag::LOCAL_REPLY;
        state.details = "closed_by_filter".into();
    }
    Closed
}

/// Why a request got no response from an upstream.
enum Stop {
    /// It is answered with this; so many filters have seen it.
    Reply(Box<LocalReply>, usize),
    /// It is not answered at all.
    Closed,
}

/// What an upstream has answered.
struct FromUpstream {
    parts: http::response::Parts,
    body: crate::upstream::PooledBody,
    deadline: Deadline,
    /// Held until the response has ended.
    guards: dispatch::Guards,
}

/// Past the request filters, and to an upstream.
async fn forward(site: &Rc<Site>, stream: &Rc<Stream>, upload: &Rc<Upload>) -> Result<FromUpstream, Stop> {
    let mut deadline = Deadline::idle(site, stream);
    let seen = request_filters(stream, upload, &mut deadline).await?;
    stream.times.routed.set(Some(tokio::time::Instant::now()));
    // A body whose length filters may change is awaited until its first part is through, so that the head can tell the truth
    // about it, and so that filters can decide by the body where the request goes.
    if upload.is_filtered() {
        let passed = upload.prime(&mut deadline).await;
        match interrupted(stream) {
            Some(Outcome::Reply(reply)) => return Err(Stop::Reply(Box::new(reply), seen)),
            Some(Outcome::Closed) => return Err(Stop::Closed),
            Some(Outcome::Done) | None => {}
        }
        if let Some(fault) = upload.fault().or_else(|| Some(passed?.fault(upload.has_ended()))) {
            return Err(fault.into_stop(stream, seen));
        }
    }
    let selected = {
        let mut state = stream.state.borrow_mut();
        if state.route.is_none()
            && let Some(route) = &site.default_route
        {
            state.route = Some(crate::chain::Selected::new(route, 0, 0, 0));
        }
        let state = &mut *state;
        if let Some(selected) = &state.route {
            selected.route.rewrite(&mut state.request);
        }
        state.route.clone()
    };
    let Some(selected) = selected else { return Err(Fault::NoRoute.into_stop(stream, seen)) };
    dispatch::run(site, stream, &selected, upload).await.map_err(|stop| match stop {
        Stop::Reply(reply, _) => Stop::Reply(reply, seen),
        Stop::Closed => Stop::Closed,
    })
}

/// Moves the head past the request filters; feeds the body to one that holds the head and wants to see it. Returns how many
/// filters have seen the request.
async fn request_filters(stream: &Rc<Stream>, upload: &Rc<Upload>, deadline: &mut Deadline) -> Result<usize, Stop> {
    let mut head = HeadFlow::new(stream, Direction::Request);
    let outcome = poll_fn(|cx| {
        loop {
            let held = head.held_by();
            let progress = head.poll(stream, upload.is_empty(), cx);
            if let Some(nth) = held
                && head.held_by() != held
                && let Err(fault) = upload.release(nth, head.held_by())
            {
                return Poll::Ready(Err(fault));
            }
            if let Poll::Ready(outcome) = progress {
                return Poll::Ready(Ok(outcome));
            }
            let Some(nth) = head.held_by() else { return Poll::Pending };
            if head.feeds_body(stream) && !upload.is_empty() {
                match upload.poll_held(nth, cx) {
                    // It lets the head go: on with the next filter.
                    Poll::Ready(Ok(true)) => {
                        head.release();
                        if let Err(fault) = upload.release(nth, None) {
                            return Poll::Ready(Err(fault));
                        }
                        continue;
                    }
                    Poll::Ready(Ok(false)) => continue,
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                    Poll::Pending => {}
                }
            }
            return deadline.poll(cx).map(|passed| {
                Err(match passed {
                    Bound::Idle => Fault::FilterStalled,
                    passed => passed.fault(upload.has_ended()),
                })
            });
        }
    })
    .await;
    let seen = head.seen();
    match outcome {
        Ok(Outcome::Done) => Ok(seen),
        Ok(Outcome::Reply(reply)) => Err(Stop::Reply(Box::new(reply), seen)),
        Ok(Outcome::Closed) => Err(Stop::Closed),
        Err(fault) => Err(fault.into_stop(stream, seen)),
    }
}

/// Whether a response has no body whatever its head says (RFC 9112 section 6.3).
fn is_bodiless(status: http::StatusCode, head_only: bool) -> bool {
    head_only || matches!(status.as_u16(), 100..=199 | 204 | 304)
}
