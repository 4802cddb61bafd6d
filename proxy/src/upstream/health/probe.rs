//! Asking one endpoint for its health, once: each time on a connection of its own, so that it is also known whether there
//! could be one.

use std::io;

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
        model::{self, Check, ClusterProtocol, HealthCheck},
        units::Address,
    },
    net::{Socket, TokioIo},
    upstream::Cluster,
};

/// How a check calls itself.
const AGENT: HeaderValue = HeaderValue::from_static("tollgate-health-check");

/// Bytes of a gRPC answer that are read; the right one has two.
const MAX_ANSWER: usize = 4096;

/// Why an endpoint counts as not well.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unwell {
    #[error("no answer in time")]
    Timeout,
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request is not possible: {0}")]
    Request(#[from] http::Error),
    #[error("the status is {0}")]
    Status(StatusCode),
    #[error("the answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the gRPC status is {0}")]
    GrpcStatus(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("it is not serving: the health status is {0}")]
    NotServing(u64),
}

/// Asks an endpoint of a cluster.
pub(super) async fn ask(
    cluster: &Cluster,
    config: &model::Cluster,
    check: &HealthCheck,
    address: &Address,
) -> Result<(), Unwell> {
    let asking = async {
        let socket = connect(cluster, address).await.map_err(Unwell::Connect)?;
        let h2 = config.protocol == ClusterProtocol::H2;
        match &check.check {
            Check::Tcp {} => Ok(()),
            Check::Http { path, host } => http(socket, h2, path, &authority(host.as_deref(), cluster, address)).await,
            Check::Grpc { service } => serving(socket, service, &authority(None, cluster, address)).await,
        }
    };
    timeout(check.timeout.0, asking).await.unwrap_or(Err(Unwell::Timeout))
}

/// A connection as requests to this cluster get it.
async fn connect(cluster: &Cluster, address: &Address) -> io::Result<Socket> {
    Socket::connect(address, cluster.connect_timeout).await.map_err(|(error, _)| error)
}

/// The host that is asked for: as configured, else the cluster's name, else (if that cannot be one) the address.
fn authority(host: Option<&str>, cluster: &Cluster, address: &Address) -> Authority {
    let address = address.inet().map(|address| address.to_string());
    let named = [host, Some(&*cluster.name), address.as_deref()];
    let mut possible = named.into_iter().flatten().filter_map(|name| Authority::try_from(name).ok());
    possible.next().unwrap_or(Authority::from_static("localhost"))
}

async fn http(socket: Socket, h2: bool, path: &str, host: &Authority) -> Result<(), Unwell> {
    let request = if h2 {
        Request::get(absolute(host, path)?)
    } else {
        Request::get(path).header(HOST, host.as_str()).header(CONNECTION, "close")
    };
    let request = request.header(USER_AGENT, AGENT).body(Full::default())?;
    let (response, _driver) = if h2 { send_h2(socket, request).await? } else { send_h1(socket, request).await? };
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(Unwell::Status(status)),
    }
}

async fn serving(socket: Socket, service: &str, host: &Authority) -> Result<(), Unwell> {
    let request = Request::post(absolute(host, grpc::PATH)?)
        .header(USER_AGENT, AGENT)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::from(grpc::request(service)))?;
    let (response, _driver) = send_h2(socket, request).await?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Unwell::Status(head.status));
    }
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Unwell::Body)?;
    // Without a body the status is in the head.
    let status = |fields: Option<&HeaderMap>| fields?.get("grpc-status").cloned();
    match status(body.trailers()).or_else(|| status(Some(&head.headers))) {
        Some(status) if status == "0" => {}
        Some(status) => return Err(Unwell::GrpcStatus(String::from_utf8_lossy(status.as_bytes()).into_owned())),
        None => return Err(Unwell::GrpcStatus("missing".to_owned())),
    }
    match grpc::status(&body.to_bytes())? {
        grpc::SERVING => Ok(()),
        other => Err(Unwell::NotServing(other)),
    }
}

fn absolute(host: &Authority, path: &str) -> Result<Uri, http::Error> {
    Uri::builder().scheme("http").authority(host.clone()).path_and_query(path).build()
}

type Answer = (Response<Incoming>, Driver);

/// hyper's side of a connection, which ends with this.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Driver {
    fn of(connection: impl Future<Output = hyper::Result<()>> + 'static) -> Driver {
        // Its error comes to the request as well.
        Driver(spawn_local(connection).abort_handle())
    }
}

async fn send_h1(socket: Socket, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let driver = Driver::of(connection);
    Ok((sender.send_request(request).await?, driver))
}

async fn send_h2(socket: Socket, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
    let (mut sender, connection) = http2::handshake(Local, TokioIo::new(socket)).await?;
    let driver = Driver::of(connection);
    Ok((sender.send_request(request).await?, driver))
}

/// Runs what hyper wants to run on this thread.
#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
