//! The client of a case: sends a request to the proxy's own code, over a connection within the process.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::Context;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client, server::conn::http1, service::service_fn};
use tokio::{task::spawn_local, time::timeout};

use super::{
    model::Request,
    script::{PIPE, message},
};
use crate::{
    chain::stream::ConnectionInfo,
    exchange::{self, ListenerContext},
    http::body::Body,
    net::TokioIo,
};

/// A request that takes longer than this, by the case's clock, will never finish.
const LONGEST: Duration = Duration::from_secs(3600);

/// What the client received.
#[derive(Debug)]
pub enum Got {
    /// A response.
    Response(Box<Received>),
    /// The connection was closed.
    Closed,
    /// Nothing: the request is held and never released.
    Nothing,
}

/// A response.
#[derive(Debug)]
pub struct Received {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    /// Whether the response is complete.
    pub whole: bool,
}

/// Sends a request, and waits until everything has finished: the response was received, and the filters have seen the
/// end of the stream.
///
/// # Errors The request is not valid HTTP.
pub async fn send(context: &Rc<ListenerContext>, local: SocketAddr, request: &Request) -> anyhow::Result<Got> {
    let peer = SocketAddr::new(request.client, 40_000);
    let request = http_request(request)?;
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let info = Rc::new(ConnectionInfo::new(context.name.clone(), peer, local));
    let context = context.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (context, info) = (context.clone(), info.clone());
        async move {
            let answer = exchange::serve(context, info, Rc::default(), request.map(Body::Incoming)).await?;
            Ok::<_, exchange::StreamClosed>(answer.response)
        }
    });
    let server = spawn_local(async move {
        let mut http = http1::Builder::new();
        // A filter that closes the connection causes an error here, which the client sees.
        let _ = http.auto_date_header(false).serve_connection(TokioIo::new(theirs), service).await;
    });
    let got = timeout(LONGEST, exchange_on(ours, request)).await;
    match got {
        Ok(got) => {
            // The stream ends when the proxy's side has finished.
            let _ = server.await;
            Ok(got)
        }
        Err(_) => {
            server.abort();
            let _ = server.await;
            Ok(Got::Nothing)
        }
    }
}

async fn exchange_on(stream: tokio::io::DuplexStream, request: http::Request<Body>) -> Got {
    let Ok((mut sender, connection)) = client::conn::http1::handshake(TokioIo::new(stream)).await else {
        return Got::Closed;
    };
    spawn_local(connection);
    let Ok(response) = sender.send_request(request).await else { return Got::Closed };
    let (parts, mut incoming) = response.into_parts();
    let (mut body, mut trailers, mut whole) = (Vec::new(), HeaderMap::new(), true);
    while let Some(frame) = incoming.frame().await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => body.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap_or_default(),
            Err(_) => {
                whole = false;
                break;
            }
        }
    }
    let status = parts.status.as_u16();
    Got::Response(Box::new(Received { status, headers: parts.headers, body, trailers, whole }))
}

fn http_request(asked: &Request) -> anyhow::Result<http::Request<Body>> {
    let (fields, body) = message(&asked.message)?;
    let mut request = http::Request::new(body);
    let not = |what: &str, text: &str| format!("`{text}` is not {what}");
    *request.method_mut() =
        Method::from_bytes(asked.method.as_bytes()).with_context(|| not("a method", &asked.method))?;
    *request.uri_mut() = asked.path.parse().with_context(|| not("a path", &asked.path))?;
    *request.headers_mut() = fields;
    let host = HeaderValue::from_str(&asked.host).with_context(|| not("a host", &asked.host))?;
    request.headers_mut().entry(header::HOST).or_insert(host);
    Ok(request)
}
