//! The admin listener: health, metrics, the running configuration, reload, and the log level. It runs on the control
//! thread and is meant for loopback or a unix socket.

mod connection;
mod guard;
mod probes;
mod socket;
mod token;

use std::{net::SocketAddr, rc::Rc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use self::connection::{BodyNotRead, Connections};
use crate::{
    ca::service::Service,
    control::{
        change::{Order, ReloadOutcome, ReloadRequest, attempt_json},
        status::Status,
    },
    observe::{Registry, log::LogHandle},
};

pub use self::{
    probes::Probes,
    socket::{Socket, cannot_listen, listen, listen_later},
    token::{Token, read as read_token},
};

/// The state of the admin listener.
pub struct State {
    /// The state of the process.
    pub status: Rc<Status>,
    /// The metrics.
    pub registry: Registry,
    /// Tollgate's own log.
    pub log: LogHandle,
    /// Sends reload requests.
    pub changes: mpsc::Sender<ReloadRequest>,
    /// Accepted host names. `None` on a unix socket, which browsers cannot reach.
    pub hosts: Option<Vec<String>>,
    /// The token that requests must carry, if any.
    pub token: Option<Token>,
    /// The certificate authority for workloads, if configured.
    pub ca: Option<Service>,
    /// The socket.
    pub socket: Socket,
}

/// The method, path and description of each endpoint.
const PATHS: &[(&str, &str, &str)] = &[
    ("GET", "/live", "200 while the process runs"),
    ("GET", "/ready", "200 while traffic is accepted, else 503; lists filters without instances"),
    ("GET", "/metrics", "metrics for Prometheus"),
    ("GET", "/config", "the running configuration, its version and hash, and the last attempt to change it"),
    ("GET", "/config/history", "the last configurations that were applied (`admin.history`), newest first"),
    (
        "POST",
        "/config/rollback/VERSION",
        "applies a version of the history again and pins it: changed files are checked, but not applied",
    ),
    ("POST", "/config/resume", "applies the files again, now and whenever they change"),
    ("GET", "/filters", "the running filters: state, hash, instances, memory, traps, last error"),
    ("GET", "/clusters", "the running clusters: endpoints, their health, requests and connections"),
    ("GET", "/resources", "all listeners, filters, clusters and endpoints: version, origin, state, errors"),
    (
        "POST",
        "/reload",
        "reloads the configuration; 200 if it is running, 422 with all errors if it was rejected, 409 if a version is pinned",
    ),
    ("POST", "/yield", "closes this listener if the process is draining, for its successor; else 409"),
    ("GET", "/log", "the log's level"),
    ("POST", "/log", "sets the log's level to the body: `info`, `debug`, `info,tollgate::filter=trace`"),
    ("GET", "/ca/root", "the roots' certificates (PEM), if `admin.ca` is configured"),
    ("POST", "/ca/sign", "signs the request in the body (PKCS #10, PEM) for the bearer of a join token; `?ttl=24h`"),
];

async fn answer(state: Rc<State>, peer: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if let Some(why) = state.hosts.as_ref().and_then(|hosts| guard::refusal(&parts, hosts)) {
        return text(StatusCode::FORBIDDEN, &format!("{why}\n"));
    }
    // Requests below `/ca/` are authorized by join tokens instead.
    if let Some(token) = state.token.as_ref().filter(|_| !path.starts_with("/ca/"))
        && let Err((status, why)) = token.check(&parts.headers).await
    {
        let mut response = text(status, why);
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 15.5.2.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        return response;
    }
    if let Some(answer) = probes::answer(&state.status, &state.registry, &parts.method, path, &parts.headers) {
        return answer;
    }
    match (&parts.method, path) {
        (&(Method::GET | Method::HEAD), "/") => json_response(StatusCode::OK, &index()),
        (&(Method::GET | Method::HEAD), "/config") => json_response(StatusCode::OK, &state.status.config_json()),
        (&(Method::GET | Method::HEAD), "/config/history") => {
            json_response(StatusCode::OK, &state.status.history_json())
        }
        (&Method::POST, "/config/resume") => change(&state, Order::Resume, "resume").await,
        (&Method::POST, rollback) if rollback.starts_with(ROLLBACK) => {
            roll_back(&state, &rollback[ROLLBACK.len()..]).await
        }
        (&(Method::GET | Method::HEAD), "/filters") => json_response(StatusCode::OK, &state.status.filters_json()),
        (&(Method::GET | Method::HEAD), "/clusters") => json_response(StatusCode::OK, &state.status.clusters_json()),
        (&(Method::GET | Method::HEAD), "/resources") => {
            json_response(StatusCode::OK, &state.status.resources_json().await)
        }
        (&(Method::GET | Method::HEAD), "/log") => match state.log.level() {
            Ok(level) => text(StatusCode::OK, &format!("{level}\n")),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{e}\n")),
        },
        (&Method::POST, "/reload") => change(&state, Order::Reload, "admin").await,
        (&Method::POST, "/yield") => match state.give_up_socket() {
            true => text(StatusCode::OK, "closed\n"),
            false => text(StatusCode::CONFLICT, "not draining\n"),
        },
        (&Method::POST, "/log") => set_log(&state, body).await,
        (&(Method::GET | Method::HEAD), "/ca/root") => match &state.ca {
            Some(ca) => match ca.roots() {
                Ok(roots) => response(StatusCode::OK, "application/pem-certificate-chain", roots.into()),
                Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{e}\n")),
            },
            None => no_ca(),
        },
        (&Method::POST, "/ca/sign") => match &state.ca {
            Some(ca) => {
                let (status, said) = ca.sign(peer, &parts, body).await;
                let mut response = json_response(status, &said);
                if status == StatusCode::UNAUTHORIZED {
                    // RFC 9110, section 15.5.2.
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                }
                response
            }
            None => no_ca(),
        },
        _ => match PATHS.iter().find(|(_, known, _)| *known == path || is_rollback(known, path)) {
            Some((method, ..)) => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} requires {method}\n"));
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(method));
                response
            }
            None => json_response(StatusCode::NOT_FOUND, &index()),
        },
    }
}

/// The paths that apply a version again.
const ROLLBACK: &str = "/config/rollback/";

fn is_rollback(known: &str, path: &str) -> bool {
    known.starts_with(ROLLBACK) && path.starts_with(ROLLBACK)
}

async fn roll_back(state: &State, version: &str) -> Response<Full<Bytes>> {
    match version.parse().ok().filter(|version| state.status.applied(*version).is_some()) {
        Some(version) => change(state, Order::Rollback(version), "rollback").await,
        None => {
            text(StatusCode::NOT_FOUND, "there is no such version in the history; GET /config/history lists them\n")
        }
    }
}

async fn change(state: &State, order: Order, cause: &'static str) -> Response<Full<Bytes>> {
    let (done, result) = oneshot::channel();
    let _ = state.changes.send(ReloadRequest { order, cause, done: Some(done) }).await;
    match result.await {
        Ok(attempt) => {
            let status = match attempt.result {
                ReloadOutcome::Refused(..) => StatusCode::UNPROCESSABLE_ENTITY,
                ReloadOutcome::Pinned(_) => StatusCode::CONFLICT,
                _ => StatusCode::OK,
            };
            json_response(status, &attempt_json(&attempt))
        }
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn set_log(state: &State, body: Incoming) -> Response<Full<Bytes>> {
    let body = match connection::body(body).await {
        Ok(body) => body,
        Err(unread @ BodyNotRead::TooLarge) => return text(StatusCode::PAYLOAD_TOO_LARGE, &format!("{unread}\n")),
        Err(unread @ BodyNotRead::TooSlow) => return text(StatusCode::REQUEST_TIMEOUT, &format!("{unread}\n")),
    };
    let level = String::from_utf8_lossy(&body).trim().to_owned();
    match state.log.set_level(&level) {
        Ok(()) => text(StatusCode::OK, &format!("{level}\n")),
        Err(e) => {
            let help = e.help().map(|help| format!(": {help}")).unwrap_or_default();
            text(StatusCode::BAD_REQUEST, &format!("{e}{help}\n"))
        }
    }
}

fn no_ca() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "there is no certificate authority here: `admin.ca` is not configured\n")
}

fn index() -> Value {
    let paths = PATHS.iter().map(|(method, path, what)| json!({ "method": method, "path": path, "what": what }));
    json!({ "tollgate": env!("CARGO_PKG_VERSION"), "paths": paths.collect::<Vec<_>>() })
}

fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(body.as_bytes()))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec_pretty(value).unwrap_or_default();
    response(status, "application/json", [body.as_slice(), b"\n"].concat().into())
}
