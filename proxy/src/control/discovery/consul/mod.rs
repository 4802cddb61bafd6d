//! Endpoints from Consul: the instances of a service in its catalog, by [blocking queries][1]. A query is held until
//! something changes, or for `consul.wait`; each service has one, on a connection of its own.
//!
//! `request` builds the queries, `index` says from which state on they wait, and `answer` reads what they return. A return is
//! no proof of a change, and an error starts over with a query that is not held.
//!
//! [1]: https://developer.hashicorp.com/consul/api-docs/features/blocking

mod answer;
mod index;
mod request;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use tokio::time::{Instant, sleep};

use self::{index::Index, request::Requests};
use super::{
    empty,
    pace::Pace,
    watches::{Answer, Reporter},
};
use crate::{
    config::{
        model::{Consul, ConsulDiscovery},
        url::HttpUrl,
    },
    outbound::{Client, Dial, Server, retry_after},
    upstream::Backoff,
};

/// The time for the head of an answer, in addition to the time for which the query may be held.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// The time from an answer's head to the end of its body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// The limit on an answer, in bytes.
const MAX_BODY: u64 = 16 << 20;

/// The longest first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest wait after a failure, unless the server asks for a longer one.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The time between two queries that were not held, after a burst: a catalog may change, or seem to, all the time.
const GAP: Duration = Duration::from_secs(1);

/// How many queries may follow each other without a gap after a pause.
const BURST: u32 = 10;

/// Watches a service. Relative paths are relative to `dir`.
pub(super) async fn watch(query: ConsulDiscovery, settings: Consul, dir: PathBuf, reporter: Reporter) {
    let url: HttpUrl = match settings.url.parse() {
        Ok(url) => url,
        Err(e) => {
            // The configuration's checks have found that.
            reporter.failed(e);
            return std::future::pending().await;
        }
    };
    let requests = Requests::new(&url, &settings, &query, &dir);
    let server = Server::new(url, settings.tls.as_ref(), &dir).at(settings.address.clone());
    Watch::new(server, requests, query, settings.wait.0).run(&reporter).await;
}

/// The watch of a service.
struct Watch<D: Dial> {
    query: ConsulDiscovery,
    requests: Requests,
    client: Client<D>,
    /// For how long queries may be held.
    wait: Duration,
    index: Index,
    /// Whether the last answer was empty.
    is_empty: bool,
    start: Instant,
    pace: Pace,
}

/// Why a query has failed.
#[derive(Debug)]
struct Failure {
    text: String,
    /// The wait that the server asks for.
    retry_after: Option<Duration>,
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure { text, retry_after: None }
    }
}

impl<D: Dial> Watch<D> {
    fn new(server: D, requests: Requests, query: ConsulDiscovery, wait: Duration) -> Watch<D> {
        let (client, index) = (Client::new(server), Index::default());
        Watch {
            query,
            requests,
            client,
            wait,
            index,
            is_empty: false,
            start: Instant::now(),
            pace: Pace::new(GAP, BURST),
        }
    }

    async fn run(mut self, reporter: &Reporter) {
        let fresh = Backoff::up_to(FIRST_RETRY, LONGEST_RETRY);
        let mut backoff = fresh.clone();
        loop {
            match self.ask().await {
                Ok(answer) => {
                    backoff = fresh.clone();
                    self.is_empty = answer.endpoints.is_empty();
                    reporter.answered(answer);
                }
                Err(Failure { text, retry_after }) => {
                    // The next connection may lead to another server, which may have other numbers.
                    self.client.close();
                    self.index = Index::default();
                    reporter.failed(self.requests.conceal(text));
                    sleep(retry_after.unwrap_or_default().max(backoff.next_wait())).await;
                }
            }
            while let Err(at) = self.pace.take(self.start.elapsed()) {
                sleep(at.saturating_sub(self.start.elapsed())).await;
            }
        }
    }

    /// For how long the next query may be held.
    fn wait(&self) -> Duration {
        match self.is_empty {
            true => self.wait.min(empty::RETRY),
            false => self.wait,
        }
    }

    /// Sends one query.
    async fn ask(&mut self) -> Result<Answer, Failure> {
        let wait = self.wait();
        let request = self.requests.next(self.index, wait)?;
        // Consul adds a random time, up to a sixteenth.
        let held = self.index.held_by().map_or(Duration::ZERO, |_| wait + wait / 16);
        let sent = self.client.send(request, held + HEAD_TIME).await;
        let (head, body) = sent.map_err(|error| error.to_string())?.into_parts();
        if head.status != StatusCode::OK {
            let retry_after = retry_after(&head.headers, SystemTime::now());
            let said = body.excerpt().await.map(|said| format!(": {said}")).unwrap_or_default();
            return Err(Failure { text: format!("Consul answered {}{said}", head.status), retry_after });
        }
        let body = body.read(MAX_BODY, BODY_TIME).await.map_err(|error| error.to_string())?;
        let answer = answer::read(&head.headers, &body, &self.query)?;
        let told = head.headers.get("x-consul-index").and_then(|value| value.to_str().ok());
        self.index = self.index.after(told);
        Ok(answer)
    }
}
