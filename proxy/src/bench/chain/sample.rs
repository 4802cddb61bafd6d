//! The requests for measuring a chain: from the command line, from a file of JSON lines (written for this purpose,
//! or Tollgate's own access log), or, by default, a few typical ones.
//!
//! They are prepared once, as `exchange` prepares a client's request: the path is normalised, `X-Forwarded-*` and
//! `X-Request-Id` are set. Each run creates a stream from a copy.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
    str::FromStr,
};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{self, Entry},
};
use serde::Deserialize;
use tollgate_abi::spelling;

use super::args::ChainArgs;
use crate::{
    chain::{
        Chain, RequestHead, Stream,
        stream::{ConnectionInfo, IncomingRequest},
    },
    config::model::Listener,
    digest::sha256_hex,
    h1::head::ADDED_BACK,
    http::fields::{Present, add_via, forwarded, remove_hop_by_hop},
};

/// Fields that nearly every request has; added if they are missing.
const USUAL: [(HeaderName, &str); 4] = [
    (header::USER_AGENT, concat!("tollgate-bench/", env!("CARGO_PKG_VERSION"))),
    (header::ACCEPT, "application/json, text/html;q=0.9, */*;q=0.8"),
    (header::ACCEPT_ENCODING, "gzip, br"),
    (header::ACCEPT_LANGUAGE, "en-GB, en;q=0.8"),
];

/// The default requests.
const DEFAULT: [&str; 4] =
    ["GET /", "GET /api/items/8271?expand=prices&page=2", "GET /static/app.4f1c.js", "POST /api/items"];

/// The maximum size of the synthetic body for a line of an access log, in bytes.
const LOGGED_BODY: u64 = 1 << 20;

/// A request as specified by the user.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    method: Method,
    /// Path and query.
    path: String,
    headers: HeaderMap,
    body: Option<Bytes>,
    /// The client; by default the one of the command line.
    client: Option<IpAddr>,
    /// Whether it is from an access log, which also has requests that no filter has seen.
    pub(super) logged: bool,
}

/// The requests that the arguments specify.
pub(super) struct Workload {
    pub(super) asked: Vec<Asked>,
    /// A hash of the requests, equal for comparable runs.
    pub(super) hash: String,
    /// The number of lines of an access log that are not requests.
    pub(super) skipped: usize,
}

impl FromStr for Asked {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Asked> {
        let (method, path) = line.split_once(' ').with_context(|| format!("`{line}` is not `METHOD /path`"))?;
        Asked::new(method, path)
    }
}

impl Asked {
    fn new(method: &str, path: &str) -> anyhow::Result<Asked> {
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| anyhow!("`{method}` is not a method"))?;
        ensure!(method != Method::CONNECT, "CONNECT is rejected before any filter sees it");
        let valid = path.starts_with('/') && http::uri::PathAndQuery::try_from(path).is_ok();
        ensure!(valid || path == "*", "`{path}` is not a path: it must begin with `/` and contain no spaces");
        Ok(Asked { method, path: path.to_owned(), headers: HeaderMap::new(), body: None, client: None, logged: false })
    }

    fn header(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let name = HeaderName::from_str(name).map_err(|_| anyhow!("`{name}` is not a valid header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| anyhow!("`{value}` is not a valid value of `{name}`"))?;
        self.headers.append(name, value);
        Ok(())
    }

    /// Parses a JSON line: an access log line if it has a start time and a listener, otherwise a line written for this
    /// purpose. Returns `None` for an access log line of a rejected client, of a connection, or of a request that no filter has seen.
    fn from_json(line: &str) -> anyhow::Result<Option<Asked>> {
        let line: serde_json::Value = serde_json::from_str(line)?;
        if line.get("start").is_some() && line.get("listener").is_some() {
            let line: LogLine = serde_json::from_value(line)?;
            let (Some(method), Some(path)) = (line.method, line.path) else { return Ok(None) };
            let Ok(mut asked) = Asked::new(&method, &path) else { return Ok(None) };
            asked.logged = true;
            let fields = [("host", line.authority), ("user-agent", line.user_agent), ("referer", line.referer)];
            fields.iter().try_for_each(|(name, value)| value.as_ref().map_or(Ok(()), |v| asked.header(name, v)))?;
            asked.body = Some(zeros(line.request_bytes.min(LOGGED_BODY) as usize));
            asked.client = line.client;
            return Ok(Some(asked));
        }
        let line: Line = serde_json::from_value(line)?;
        let mut asked = Asked::new(line.method.as_deref().unwrap_or("GET"), &line.path)?;
        line.headers.iter().try_for_each(|(name, value)| asked.header(name, value))?;
        asked.body = line.body.map(Bytes::from);
        asked.client = line.client;
        Ok(Some(asked))
    }
}

/// A line that was written for this purpose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    method: Option<String>,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    client: Option<IpAddr>,
}

/// The relevant fields of an access log line in JSON.
#[derive(Debug, Deserialize)]
struct LogLine {
    method: Option<String>,
    path: Option<String>,
    authority: Option<String>,
    user_agent: Option<String>,
    referer: Option<String>,
    client: Option<IpAddr>,
    #[serde(default)]
    request_bytes: u64,
}

/// Reads a file of JSON lines, and skips empty ones. Also returns the number of access log lines that are not requests.
fn read(file: &Path) -> anyhow::Result<(Vec<Asked>, usize)> {
    let name = file.display();
    let lines = BufReader::new(File::open(file).with_context(|| format!("cannot read {name}"))?).lines();
    let (mut all, mut skipped) = (Vec::new(), 0);
    for (n, line) in lines.enumerate() {
        let line = line.with_context(|| format!("cannot read {name}"))?;
        if !line.trim().is_empty() {
            match Asked::from_json(&line).with_context(|| format!("{name}, line {}", n + 1))? {
                Some(asked) => all.push(asked),
                None => skipped += 1,
            }
        }
    }
    ensure!(!all.is_empty(), "{name} contains no request");
    Ok((all, skipped))
}

fn zeros(len: usize) -> Bytes {
    vec![0; len].into()
}

/// Collects the requests that the arguments specify.
pub(super) fn asked(args: &ChainArgs) -> anyhow::Result<Workload> {
    let (mut all, skipped) = match &args.requests {
        Some(file) => read(file)?,
        None if args.request.is_empty() => (DEFAULT.into_iter().map(str::parse).collect::<anyhow::Result<_>>()?, 0),
        None => (args.request.clone(), 0),
    };
    for asked in &mut all {
        for (name, value) in &args.headers {
            asked.headers.insert(name, value.clone());
        }
        for (name, value) in USUAL {
            asked.headers.entry(name).or_insert(HeaderValue::from_static(value));
        }
        asked.body.get_or_insert_with(|| zeros(args.body));
        asked.client.get_or_insert(args.client);
    }
    let of = format!("{all:?} {} {}", args.response_body, args.trailers);
    Ok(Workload { asked: all, hash: sha256_hex(of.as_bytes())[..16].to_owned(), skipped })
}

/// A copy as a parser would have created it, with room for more fields. A plain clone has no room, and a filter
/// that adds a field would be charged for a new table.
pub(super) fn as_parsed(fields: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(fields.len() + ADDED_BACK);
    for (name, value) in fields {
        copy.append(name, value.clone());
    }
    copy
}

/// A request, ready to be run repeatedly.
pub(super) struct Sample {
    connection: Rc<ConnectionInfo>,
    client: SocketAddr,
    head: RequestHead,
    original_path: Bytes,
    request_id: HeaderValue,
    /// Its body.
    pub(super) body: Bytes,
}

impl Sample {
    /// Prepares the request as this listener's filters receive it.
    ///
    /// # Errors
    /// The listener would reject it before any filter sees it.
    pub(super) fn new(asked: Asked, listener: &Listener) -> anyhow::Result<Sample> {
        let Asked { method, path, mut headers, body, client, .. } = asked;
        let authority = match headers.remove(header::HOST) {
            Some(host) => Bytes::copy_from_slice(host.as_bytes()),
            None => listener.address.to_string().into(),
        };
        if http::uri::Authority::from_maybe_shared(authority.clone()).is_err() {
            bail!("`{}` is not a host", String::from_utf8_lossy(&authority));
        }
        let authority = spelling::host(&authority).map_or(authority.clone(), |host| Bytes::copy_from_slice(&host));
        let (original_path, query) = path.split_once('?').map_or((&*path, None), |(path, query)| (path, Some(query)));
        let mut normal = match original_path {
            "*" => b"*".to_vec(),
            path => spelling::path(path.as_bytes(), &listener.path).with_context(|| format!("`{path}`"))?.into_owned(),
        };
        if let Some(query) = query {
            normal.extend([b"?", query.as_bytes()].concat());
        }
        let body = body.unwrap_or_default();
        if let (Entry::Vacant(length), false) = (headers.entry(header::CONTENT_LENGTH), body.is_empty()) {
            length.insert(body.len().into());
        }
        let present = Present::of(&headers);
        remove_hop_by_hop(&mut headers, present);
        let via = (!listener.via.is_empty()).then(|| HeaderValue::from_str(&format!("1.1 {}", listener.via)));
        add_via(&mut headers, via.transpose().ok().flatten().as_ref());
        let peer = SocketAddr::new(client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), 40_000);
        let local = listener.address.inet().unwrap_or(crate::net::socket::LOCAL);
        let connection = ConnectionInfo::new(listener.name.as_str().into(), peer, local);
        let value = &connection.peer_value;
        let origin = forwarded(&mut headers, peer, value, &authority, "http", listener.trusted_hops);
        Ok(Sample {
            connection: Rc::new(connection),
            client: origin.client,
            request_id: origin.request_id,
            original_path: Bytes::copy_from_slice(original_path.as_bytes()),
            head: RequestHead { method, path: normal.into(), authority, scheme: "http", fields: headers },
            body,
        })
    }

    fn head(&self) -> RequestHead {
        let RequestHead { method, path, authority, scheme, fields } = &self.head;
        RequestHead {
            method: method.clone(),
            path: path.clone(),
            authority: authority.clone(),
            scheme,
            fields: as_parsed(fields),
        }
    }

    /// Creates a stream of the request.
    pub(super) fn stream(&self, chain: &Rc<Chain>) -> Rc<Stream> {
        Stream::new(
            self.connection.clone(),
            Rc::default(),
            chain.clone(),
            IncomingRequest {
                client: self.client,
                head: self.head(),
                original_path: self.original_path.clone(),
                version: Version::HTTP_11,
                request_id: self.request_id.clone(),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(result: anyhow::Result<Asked>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn request_lines_are_a_method_and_a_path() {
        let asked: Asked = "DELETE /a/b?c=d".parse().unwrap();
        assert_eq!((asked.method, &*asked.path), (Method::DELETE, "/a/b?c=d"));
        for (line, why) in [
            ("/a", "is not `METHOD /path`"),
            ("G@T /a", "`G@T` is not a method"),
            ("GET a", "`a` is not a path"),
            ("GET http://h/a", "is not a path"),
            ("GET /a b", "is not a path"),
            ("CONNECT /", "CONNECT is rejected"),
        ] {
            let said = problem(line.parse());
            assert!(said.contains(why), "{line}: {said}");
        }
    }

    #[test]
    fn lines_written_for_the_purpose() {
        let line = r#"{"method":"POST","path":"/x","headers":{"X-A":"1"},"body":"hi","client":"10.0.0.9"}"#;
        let asked = Asked::from_json(line).unwrap().unwrap();
        assert_eq!((asked.method, asked.headers["x-a"].as_bytes()), (Method::POST, &b"1"[..]));
        assert_eq!((asked.body.as_deref(), asked.client), (Some(&b"hi"[..]), "10.0.0.9".parse().ok()));
        assert_eq!(Asked::from_json(r#"{"path":"/"}"#).unwrap().unwrap().method, Method::GET);
        for (line, why) in [
            (r#"{"path":"/","header":{}}"#, "unknown field `header`"),
            (r#"{"method":"GET"}"#, "missing field `path`"),
            (r#"{"path":"/","headers":{"a b":"1"}}"#, "`a b` is not a valid header name"),
            (r#"{"path":"/","headers":{"a":"1\n"}}"#, "is not a valid value"),
            ("GET /", "expected value"),
        ] {
            let said = problem(Asked::from_json(line).map(Option::unwrap));
            assert!(said.contains(why), "{line}: {said}");
        }
    }

    #[test]
    fn lines_of_the_access_log() {
        let line = r#"{"start":"2025-01-01T00:00:00.000Z","request_id":"r","listener":"public","peer":"10.0.0.7:5",
            "client":"10.0.0.7","method":"PUT","authority":"shop.example","path":"/a?b=c","status":200,"flags":null,
            "request_bytes":3,"user_agent":"curl/8","referer":null,"fields":null}"#;
        let asked = Asked::from_json(line).unwrap().unwrap();
        assert_eq!((asked.method, &*asked.path), (Method::PUT, "/a?b=c"));
        assert!(asked.headers["host"] == "shop.example" && asked.headers["user-agent"] == "curl/8");
        assert_eq!((asked.headers.len(), asked.body.as_deref()), (2, Some(&[0; 3][..])));
        assert_eq!(asked.client, "10.0.0.7".parse().ok());
    }
}
