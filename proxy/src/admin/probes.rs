//! What probes and Prometheus ask for: `/live`, `/ready` and `/metrics`. A listener of their own has nothing else, so that nobody
//! needs to open the admin listener to the network for them.

use std::{convert::Infallible, future::poll_fn, io, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use tokio::{task::spawn_local, time::sleep};

use super::{response, text};
use crate::{
    control::status::Status,
    net::{ListenSocket, Listener, TokioIo},
    observe::{Registry, metrics},
};

/// What the listener for probes shows.
pub struct Probes {
    /// What is in force.
    pub status: Rc<Status>,
    /// The metrics.
    pub registry: Registry,
}

impl Probes {
    /// Serves on a socket until the process ends.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn serve(self, socket: ListenSocket) -> io::Result<()> {
        let listener = Listener::try_from(socket)?;
        let probes = Rc::new(self);
        spawn_local(async move {
            loop {
                match poll_fn(|cx| listener.poll_accept(cx)).await {
                    Ok((stream, _)) => _ = spawn_local(probes.clone().converse(TokioIo::new(stream))),
                    Err(e) => {
                        tracing::warn!("probes: cannot accept a connection: {e}");
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        Ok(())
    }

    async fn converse(self: Rc<Self>, stream: TokioIo<crate::net::Socket>) {
        let service = service_fn(|request: Request<Incoming>| {
            let answer = self.answer(request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        });
        let _ = http1::Builder::new().serve_connection(stream, service).await;
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let nothing = || text(StatusCode::NOT_FOUND, "there are /live, /ready and /metrics\n");
        answer(&self.status, &self.registry, method, path).unwrap_or_else(nothing)
    }
}

/// The answer to a probe, if it is one.
pub(super) fn answer(
    status: &Status,
    registry: &Registry,
    method: &Method,
    path: &str,
) -> Option<Response<Full<Bytes>>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    Some(match path {
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" if status.is_ready() => text(StatusCode::OK, "ready\n"),
        "/ready" if status.is_draining() => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => response(StatusCode::OK, metrics::CONTENT_TYPE, registry.render().into()),
        _ => return None,
    })
}
