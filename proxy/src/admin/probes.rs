//! What probes and Prometheus ask for: `/live`, `/ready` and `/metrics`. A listener of their own has nothing else, so that nobody
//! needs to open the admin listener to the network for them.

use std::{cell::RefCell, future::ready, io, rc::Rc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::task::spawn_local;

use super::{Connections, response, text};
use crate::{
    control::status::Status,
    net::{ListenSocket, Listener},
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
        let listener = RefCell::new(Some(Listener::try_from(socket)?));
        let (probes, connections) = (Rc::new(self), Connections::new("probes"));
        spawn_local(async move {
            let answer =
                move |_, request: Request<Incoming>| ready(probes.answer(request.method(), request.uri().path()));
            connections.accept(&listener, answer).await;
        });
        Ok(())
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
        "/ready" => {
            let (ready, said) = status.readiness();
            text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &said)
        }
        "/metrics" => response(StatusCode::OK, metrics::CONTENT_TYPE, registry.render().into()),
        _ => return None,
    })
}
