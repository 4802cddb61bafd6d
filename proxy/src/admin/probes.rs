//! Endpoints for probes and Prometheus: `/live`, `/ready` and `/metrics`. They have a separate listener, so that the
//! admin listener need not be exposed to the network for them.

use std::{cell::RefCell, future::ready, io, rc::Rc};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::task::spawn_local;

use super::{Connections, response, text};
use crate::{
    alloc,
    control::status::Status,
    net::{ListenSocket, Listener},
    observe::{Registry, metrics},
};

/// The state of the probes listener.
pub struct Probes {
    /// The state of the process.
    pub status: Rc<Status>,
    /// The metrics.
    pub registry: Registry,
}

impl Probes {
    /// Serves on a socket until the process ends.
    ///
    /// # Errors The runtime rejects the socket.
    pub fn serve(self, socket: ListenSocket) -> io::Result<()> {
        let listener = RefCell::new(Some(Listener::try_from(socket)?));
        let (probes, connections) = (Rc::new(self), Connections::new("probes"));
        spawn_local(async move {
            let answer = move |_, request: Request<Incoming>| ready(probes.answer(&request));
            connections.accept(&listener, answer).await;
        });
        Ok(())
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let nothing = || text(StatusCode::NOT_FOUND, "not found; this listener serves /live, /ready and /metrics\n");
        let (method, path, fields) = (request.method(), request.uri().path(), request.headers());
        answer(&self.status, &self.registry, method, path, fields).unwrap_or_else(nothing)
    }
}

/// Returns the response to a probe; `None` for other requests.
pub(super) fn answer(
    status: &Status,
    registry: &Registry,
    method: &Method,
    path: &str,
    fields: &HeaderMap,
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
        "/metrics" => scrape(registry, takes_gzip(fields)),
        _ => return None,
    })
}

/// A larger scrape is followed by returning the memory that it took: in bytes.
const LARGE: usize = 64 << 10;

/// Returns a scrape, which compresses well: it consists mostly of repeated names.
fn scrape(registry: &Registry, compressed: bool) -> Response<Full<Bytes>> {
    let mut out = Vec::new();
    let written = if compressed {
        let mut gzip = GzEncoder::new(&mut out, Compression::fast());
        registry.write(&mut gzip).and_then(|()| gzip.finish().map(|_| ()))
    } else {
        registry.write(&mut out)
    };
    if let Err(error) = written {
        return text(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot write the metrics: {error}\n"));
    }
    if out.len() > LARGE {
        alloc::give_back();
    }
    let mut answer = response(StatusCode::OK, metrics::CONTENT_TYPE, out.into());
    if compressed {
        answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    answer
}

/// Whether the client accepts gzip (RFC 9110 section 12.5.3).
fn takes_gzip(fields: &HeaderMap) -> bool {
    let values = fields.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let weight = |coding: &str| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let quality = parameters.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok());
        (name.trim().to_ascii_lowercase(), quality.unwrap_or(1.0))
    };
    let codings: Vec<_> = values.flat_map(|value| value.split(',')).map(weight).collect();
    let of = |name: &str| codings.iter().find(|(coding, _)| coding == name).map(|(_, quality)| *quality > 0.0);
    of("gzip").or_else(|| of("x-gzip")).or_else(|| of("*")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_if_accepted() {
        for (said, takes) in [
            (None, false),
            (Some(""), false),
            (Some("gzip"), true),
            (Some("deflate, GZIP;q=0.5"), true),
            (Some("gzip;q=0, *"), false),
            (Some("gzip; q=0"), false),
            (Some("*"), true),
            (Some("identity"), false),
            (Some("gzipped"), false),
        ] {
            let fields = said.map(|said| (header::ACCEPT_ENCODING, HeaderValue::from_static(said)));
            assert_eq!(takes_gzip(&fields.into_iter().collect()), takes, "{said:?}");
        }
    }
}
