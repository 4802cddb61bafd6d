//! A single health probe of one endpoint, always on a new connection, so that it also tests whether connecting works.
//!
//! Probes do not use the client of `outbound`, because they test the path of requests: the cluster's transport, with its
//! connection timeout, PROXY protocol header and choice of HTTP version, and its categories of failures.

use std::{error::Error, io};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONNECTION, CONTENT_TYPE, HOST, TE, USER_AGENT},
    uri::Authority,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use tokio::{
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use super::grpc::{self, Malformed};
use crate::{
    config::{
        model::{Check, HealthCheck},
        units::Address,
    },
    net::{DetectedProtocol, FirstBytes, LocalExecutor, Recording, Stream, TokioIo},
    upstream::{
        Cluster, ConnectError, Endpoint, FailureCategory,
        connect::{self, Version},
        reason::{chain_of, lost, mismatch},
    },
};

/// The `User-Agent` of health checks.
const AGENT: HeaderValue = HeaderValue::from_static("tollgate-health-check");

/// Maximum bytes read of a gRPC answer; a valid one has two.
const MAX_ANSWER: usize = 4096;

/// The reason why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeFailure {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection: {0}")]
    Connect(ConnectError),
    #[error("no answer: {1}")]
    Http(FailureCategory, String),
    #[error("cannot build the request: {0}")]
    Request(#[from] http::Error),
    #[error("the status is {0}")]
    Status(StatusCode),
    #[error("cannot read the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the gRPC status is {0}")]
    GrpcStatus(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it is not serving: the health status is {0}")]
    NotServing(u64),
}

impl ProbeFailure {
    /// Returns the kind of failure.
    pub(super) fn trouble(&self) -> FailureCategory {
        match self {
            ProbeFailure::Timeout => FailureCategory::Timeout,
            ProbeFailure::Connect(error) => error.trouble,
            ProbeFailure::Http(trouble, _) => *trouble,
            _ => FailureCategory::Protocol,
        }
    }

    /// Explains hyper's error: the unexpected protocol received instead, the TLS error, or the I/O error.
    fn http(error: &hyper::Error, expected: DetectedProtocol, first: &FirstBytes) -> ProbeFailure {
        if !first.is_empty() && first.look() != expected {
            return ProbeFailure::Http(FailureCategory::Protocol, mismatch(expected, first));
        }
        let mut source = error.source();
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let (trouble, why) = lost(error);
                return ProbeFailure::Http(trouble, why);
            }
            source = error.source();
        }
        ProbeFailure::Http(FailureCategory::Reset, chain_of(error))
    }
}

/// Probes an endpoint of a cluster.
pub(super) async fn ask(cluster: &Cluster, endpoint: &Endpoint, check: &HealthCheck) -> Result<(), ProbeFailure> {
    for kind in &check.check {
        let one = timeout(check.timeout.0, ask_one(cluster, endpoint, kind));
        one.await.unwrap_or(Err(ProbeFailure::Timeout))?;
    }
    Ok(())
}

async fn ask_one(cluster: &Cluster, endpoint: &Endpoint, kind: &Check) -> Result<(), ProbeFailure> {
    let (socket, version) = connect::open(cluster, endpoint, None, true).await.map_err(ProbeFailure::Connect)?;
    match kind {
        Check::Tcp {} => Ok(()),
        Check::Http { path, host, expected_statuses } => {
            let uri = uri(endpoint, &authority(host.as_deref(), cluster, &endpoint.address), path)?;
            match http(socket, version, uri).await? {
                status if expected_statuses.iter().any(|range| range.contains(status.as_u16())) => Ok(()),
                status => Err(ProbeFailure::Status(status)),
            }
        }
        Check::Grpc { service } => {
            let uri = uri(endpoint, &authority(None, cluster, &endpoint.address), grpc::PATH)?;
            serving(socket, service, uri).await
        }
    }
}

/// Returns the host for the request: the configured one, or else the cluster's name, or else (if that is not a valid
/// host) the address.
fn authority(host: Option<&str>, cluster: &Cluster, address: &Address) -> Authority {
    let address = address.inet().map(|address| address.to_string());
    let named = [host, Some(&*cluster.name), address.as_deref()];
    let mut possible = named.into_iter().flatten().filter_map(|name| Authority::try_from(name).ok());
    possible.next().unwrap_or(Authority::from_static("localhost"))
}

fn uri(endpoint: &Endpoint, host: &Authority, path: &str) -> Result<Uri, http::Error> {
    let scheme = if endpoint.transport.tls.is_some() { "https" } else { "http" };
    Uri::builder().scheme(scheme).authority(host.clone()).path_and_query(path).build()
}

async fn http(socket: Stream, version: Version, uri: Uri) -> Result<StatusCode, ProbeFailure> {
    let request = Request::get(&uri).header(USER_AGENT, AGENT);
    let (response, _driver) = match version {
        Version::H2 { .. } => send_h2(socket, request.body(Full::default())?).await?,
        Version::H1 => {
            let host = uri.authority().map_or("", Authority::as_str);
            let path = uri.path_and_query().map_or("/", |path| path.as_str());
            let request = request.uri(path).header(HOST, host).header(CONNECTION, "close");
            send_h1(socket, request.body(Full::default())?).await?
        }
    };
    Ok(response.status())
}

async fn serving(socket: Stream, service: &str, uri: Uri) -> Result<(), ProbeFailure> {
    let request = Request::post(uri)
        .header(USER_AGENT, AGENT)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::from(grpc::request(service)))?;
    let (response, _driver) = send_h2(socket, request).await?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(ProbeFailure::Status(head.status));
    }
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(ProbeFailure::Body)?;
    // Without a body the status is in the head.
    let status = |fields: Option<&HeaderMap>| fields?.get("grpc-status").cloned();
    match status(body.trailers()).or_else(|| status(Some(&head.headers))) {
        Some(status) if status == "0" => {}
        Some(status) => return Err(ProbeFailure::GrpcStatus(String::from_utf8_lossy(status.as_bytes()).into_owned())),
        None => return Err(ProbeFailure::GrpcStatus("missing".to_owned())),
    }
    match grpc::status(&body.to_bytes())? {
        grpc::SERVING => Ok(()),
        other => Err(ProbeFailure::NotServing(other)),
    }
}

type Answer = (Response<Incoming>, Driver);

/// hyper's connection task, stopped on drop.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Driver {
    fn of(connection: impl Future<Output = hyper::Result<()>> + 'static) -> Driver {
        // The request reports the same error.
        Driver(spawn_local(connection).abort_handle())
    }
}

async fn send_h1(socket: Stream, request: Request<Full<Bytes>>) -> Result<Answer, ProbeFailure> {
    let (socket, first) = Recording::new(socket);
    let failed = |error: hyper::Error| ProbeFailure::http(&error, DetectedProtocol::Http1, &first.get());
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(failed)?;
    let driver = Driver::of(connection);
    Ok((sender.send_request(request).await.map_err(failed)?, driver))
}

async fn send_h2(socket: Stream, request: Request<Full<Bytes>>) -> Result<Answer, ProbeFailure> {
    let (socket, first) = Recording::new(socket);
    let failed = |error: hyper::Error| ProbeFailure::http(&error, DetectedProtocol::Http2, &first.get());
    let (mut sender, connection) = http2::handshake(LocalExecutor, TokioIo::new(socket)).await.map_err(failed)?;
    let driver = Driver::of(connection);
    Ok((sender.send_request(request).await.map_err(failed)?, driver))
}
