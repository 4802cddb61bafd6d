//! Tests of the HTTP source against a [scripted server](crate::outbound::script).

mod failures;
mod hostile;
mod pace;
mod protocol;

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::timeout,
};

use super::{Fetched, HttpPoller, Verdict};
use crate::{
    config::model::HttpSource,
    control::source::status::SourceStatus,
    observe::Registry,
    outbound::script::{Asked, LONG, Script},
};

/// The scripted server with everything around the client.
struct Rig {
    script: Script,
    fetched: mpsc::Receiver<Fetched>,
    status: Arc<SourceStatus>,
    registry: Registry,
}

impl Deref for Rig {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.script
    }
}

impl DerefMut for Rig {
    fn deref_mut(&mut self) -> &mut Script {
        &mut self.script
    }
}

impl Rig {
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
    let (pipes, script) = Script::at(config.url.parse().unwrap());
    let (out, fetched) = mpsc::channel(1);
    let registry = Registry::new(1);
    let status = SourceStatus::new(&registry, "central").unwrap();
    let config = HttpSource { token_file, ..config };
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
    tasks.run_until(test(Rig { script, fetched, status, registry })).await;
    drop(end);
    timeout(LONG, tasks).await.expect("the client and its connection end");
}
