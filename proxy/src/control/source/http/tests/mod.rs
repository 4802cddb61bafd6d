//! Tests of the HTTP source against a scripted server, which reads requests and writes bytes. Where time matters, the
//! connections are pipes and tokio's clock is paused, so that waits take no time and can be checked to the millisecond.

mod failures;
mod hostile;
mod pace;
mod protocol;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{Instant, timeout},
};

use super::{Fetched, HttpPoller, Verdict};
use crate::{
    config::{model::HttpSource, url::HttpUrl},
    control::source::status::SourceStatus,
    observe::Registry,
    outbound::{ConnectError, Dial, Version},
};

/// Longer than anything that the client does by itself.
const LONG: Duration = Duration::from_secs(100_000);

/// Connects to the scripted server.
struct Pipes {
    url: HttpUrl,
    dialled: mpsc::UnboundedSender<DuplexStream>,
}

impl Dial for Pipes {
    type Io = DuplexStream;

    fn url(&self) -> &HttpUrl {
        &self.url
    }

    async fn dial(&self) -> Result<(DuplexStream, Version), ConnectError> {
        let (ours, theirs) = duplex(64 << 10);
        self.dialled.send(theirs).map_err(|_| ConnectError::NoAddress(self.url.host.clone()))?;
        Ok((ours, Version::Http1))
    }
}

/// A request as the server receives it.
struct Asked {
    head: String,
    at: Instant,
    /// The number of the connection, from 1.
    connection: usize,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The version that the request names.
    fn version(&self) -> Option<&str> {
        self.header("if-none-match")
    }
}

/// The scripted server with everything around the client.
struct Rig {
    arriving: mpsc::UnboundedReceiver<DuplexStream>,
    open: Option<DuplexStream>,
    connections: usize,
    fetched: mpsc::Receiver<Fetched>,
    status: Arc<SourceStatus>,
    registry: Registry,
}

impl Rig {
    /// Returns the next request, on the open connection or on a new one.
    async fn request(&mut self) -> Asked {
        let receiving = async {
            loop {
                if self.open.is_none() {
                    self.open = self.arriving.recv().await;
                    self.connections += 1;
                }
                let mut head = Vec::new();
                while let Ok(byte) = self.open.as_mut().expect("the client runs").read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        let head = String::from_utf8(head).unwrap();
                        return Asked { head, at: Instant::now(), connection: self.connections };
                    }
                }
                self.open = None;
            }
        };
        timeout(LONG, receiving).await.expect("the client asks")
    }

    /// Writes bytes; whether the client still reads them.
    async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match &mut self.open {
            Some(open) => open.write_all(bytes.as_ref()).await.is_ok(),
            None => false,
        }
    }

    /// Closes the connection.
    fn close(&mut self) {
        self.open = None;
    }

    /// Writes an answer. `head` is the status and headers, one a line.
    async fn answer(&mut self, head: &str, body: &str) {
        let head = head.trim().lines().map(str::trim).collect::<Vec<_>>().join("\r\n");
        let length =
            if head.starts_with("304") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.write(format!("HTTP/1.1 {head}\r\n{length}\r\n{body}")).await;
    }

    /// Answers with a full state.
    async fn full(&mut self, etag: &str, body: &str) {
        self.answer(&format!("200 OK\nContent-Type: application/json\nETag: {etag}"), body).await;
    }

    /// Answers with a delta.
    async fn delta(&mut self, etag: &str, body: &str) {
        let head = format!("226 IM Used\nContent-Type: application/json\nIM: resources\nETag: {etag}");
        self.answer(&head, body).await;
    }

    /// Returns the next document, still undecided.
    async fn document(&mut self) -> Fetched {
        timeout(LONG, self.fetched.recv()).await.expect("a document arrives").expect("the client runs")
    }

    /// Applies the next document, and returns its text.
    async fn apply(&mut self) -> String {
        self.apply_but(&[]).await
    }

    /// Applies the next document except for some resources.
    async fn apply_but(&mut self, refused: &[&str]) -> String {
        let document = self.document().await;
        document
            .verdict
            .send(Verdict::Applied { refused: refused.iter().map(|name| (*name).to_owned()).collect() })
            .unwrap();
        String::from_utf8(document.body.into()).unwrap()
    }

    /// Serves the first request: version 1.
    async fn start(&mut self) -> Asked {
        let first = self.request().await;
        self.full("\"1\"", "{}").await;
        self.apply().await;
        first
    }

    fn attempts(&self) -> u32 {
        self.status.state().attempts
    }

    fn last_error(&self) -> String {
        self.status.state().last_error.map(|error| error.text).unwrap_or_default()
    }

    /// The number of requests with a result.
    fn count(&self, result: &str) -> u64 {
        let labels = [("source", "central"), ("result", result)];
        self.registry.value("tollgate_source_requests_total", &labels).unwrap() as u64
    }
}

/// A source's configuration with these settings.
fn config(settings: Value) -> HttpSource {
    let mut config = json!({ "url": "http://control.test:8080/v1/resources?proxy=a" });
    config.as_object_mut().unwrap().extend(settings.as_object().cloned().unwrap_or_default());
    serde_json::from_value(config).unwrap()
}

/// Runs a client with a scripted server.
async fn with(settings: Value, test: impl AsyncFnOnce(Rig)) {
    with_token(settings, None, test).await;
}

async fn with_token(settings: Value, token_file: Option<PathBuf>, test: impl AsyncFnOnce(Rig)) {
    resuming(settings, token_file, None, test).await;
}

async fn resuming(settings: Value, token_file: Option<PathBuf>, etag: Option<&str>, test: impl AsyncFnOnce(Rig)) {
    let config = config(settings);
    let (dialled, arriving) = mpsc::unbounded_channel();
    let (out, fetched) = mpsc::channel(1);
    let registry = Registry::new(1);
    let status = SourceStatus::new(&registry, "central").unwrap();
    let config = HttpSource { token_file, ..config };
    let pipes = Pipes { url: config.url.parse().unwrap(), dialled };
    let poller = HttpPoller::dialling(pipes, &config, Path::new(""), status.clone(), out);
    let poller = match etag {
        Some(etag) => poller.resuming(etag),
        None => poller,
    };
    let tasks = LocalSet::new();
    let (end, ended) = oneshot::channel::<()>();
    tasks.spawn_local(async {
        tokio::select! {
            () = poller.run() => {}
            _ = ended => {}
        }
    });
    tasks.run_until(test(Rig { arriving, open: None, connections: 0, fetched, status, registry })).await;
    drop(end);
    timeout(LONG, tasks).await.expect("the client and its connection end");
}
