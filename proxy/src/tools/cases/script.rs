//! Scripted clusters: they respond as the file specifies, over connections within the process, and record the requests.
//! The proxy's side of these connections is production code.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::pending,
    io,
    rc::Rc,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use tokio::{io::DuplexStream, task::spawn_local, time::sleep};

use super::model::{Answer, Fail, List, Message, Text};
use crate::{http::body::Body, net::TokioIo, upstream::Dial};

/// The buffer size of a connection, in bytes.
pub const PIPE: usize = 64 << 10;

/// A request that a cluster received.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub cluster: String,
    /// Whether it is a callout of the filter.
    pub is_call: bool,
    pub method: String,
    pub path: String,
    pub host: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

/// The clusters of a case.
#[derive(Debug)]
pub struct Script {
    clusters: BTreeMap<String, Cluster>,
    arrived: RefCell<Vec<Arrived>>,
}

/// A cluster. Its answers are used in sequence; the last one repeats.
#[derive(Debug)]
struct Cluster {
    answers: Vec<Answer>,
    next: Cell<usize>,
}

impl Script {
    /// Creates the clusters.
    pub fn new<'a>(clusters: impl Iterator<Item = (&'a String, &'a List<Answer>)>) -> Rc<Script> {
        let cluster = |answers: &List<Answer>| Cluster { answers: answers.0.clone(), next: Cell::new(0) };
        let clusters = clusters.map(|(name, answers)| (name.clone(), cluster(answers))).collect();
        Rc::new(Script { clusters, arrived: RefCell::default() })
    }

    /// Returns the clusters' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.clusters.keys().map(String::as_str)
    }

    /// Takes the requests since the last call.
    pub fn take_arrived(&self) -> Vec<Arrived> {
        self.arrived.take()
    }

    /// Returns a function that opens connections to the clusters. `is_call`: for the filter's own callouts.
    pub fn dial(self: &Rc<Self>, is_call: bool) -> Dial {
        let script = self.clone();
        Box::new(move |cluster, _| {
            let name = cluster.name.to_string();
            if script.peek(&name).fail == Some(Fail::Connect) {
                script.answer(&name);
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, theirs) = tokio::io::duplex(PIPE);
            spawn_local(serve(script.clone(), name, is_call, theirs));
            Ok(ours)
        })
    }

    fn peek(&self, cluster: &str) -> Answer {
        let answer = |c: &Cluster| c.answers.get(c.next.get()).or(c.answers.last()).cloned();
        self.clusters.get(cluster).and_then(answer).unwrap_or_default()
    }

    /// Returns the cluster's next answer.
    fn answer(&self, cluster: &str) -> Answer {
        let answer = self.peek(cluster);
        if let Some(cluster) = self.clusters.get(cluster) {
            cluster.next.set(cluster.next.get() + 1);
        }
        answer
    }
}

/// Serves a connection to a cluster.
async fn serve(script: Rc<Script>, cluster: String, is_call: bool, stream: DuplexStream) {
    let service = service_fn(move |request| {
        let (script, cluster) = (script.clone(), cluster.clone());
        async move {
            let arrived = arrived(cluster, is_call, request).await.map_err(io::Error::other)?;
            let answer = script.answer(&arrived.cluster);
            script.arrived.borrow_mut().push(arrived);
            sleep(answer.delay).await;
            match answer.fail {
                Some(Fail::Hang) => pending().await,
                Some(Fail::Reset | Fail::Connect) => Err(io::ErrorKind::ConnectionReset.into()),
                None => response(answer),
            }
        }
    });
    let mut http = http1::Builder::new();
    // The proxy has seen an error as well, as an aborted connection.
    let _ = http.auto_date_header(false).serve_connection(TokioIo::new(stream), service).await;
}

async fn arrived(cluster: String, is_call: bool, request: Request<Incoming>) -> hyper::Result<Arrived> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?;
    let mut headers = parts.headers;
    let host = headers.remove(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    Ok(Arrived {
        cluster,
        is_call,
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        host,
        headers,
        trailers: body.trailers().cloned().unwrap_or_default(),
        body: body.to_bytes(),
    })
}

fn response(answer: Answer) -> io::Result<Response<Body>> {
    let (fields, body) = message(&answer.message).map_err(io::Error::other)?;
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).map_err(io::Error::other)?;
    *response.headers_mut() = fields;
    Ok(response)
}

/// Returns the headers and the body of a message. Trailers are announced, as required.
pub fn message(message: &Message) -> anyhow::Result<(HeaderMap, Body)> {
    let mut fields = map(&message.headers)?;
    let trailers = map(&message.trailers)?;
    if !trailers.is_empty() {
        let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        fields.insert(header::TRAILER, HeaderValue::from_str(&names.join(", "))?);
    }
    Ok((fields, Body::full_with_trailers(message.body.clone().into(), trailers)))
}

fn map(fields: &BTreeMap<String, List<Text>>) -> anyhow::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, values) in fields {
        let name: HeaderName = name.parse().map_err(|_| anyhow::anyhow!("`{name}` is not a header name"))?;
        for Text(value) in &values.0 {
            let value = HeaderValue::from_str(value);
            map.append(&name, value.map_err(|_| anyhow::anyhow!("a value of `{name}` is not a valid header value"))?);
        }
    }
    Ok(map)
}
