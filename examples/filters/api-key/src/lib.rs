//! Authenticates requests by API key: looks up the key's owner at a service and caches the answer for all workers.
//!
//! | status | reason |
//! |---|---|
//! | 401 | the request has no key |
//! | 403 | the service answered 401, 403 or 404: the key is unknown |
//! | 503 | the service is unavailable, or answered something else |
//!
//! Otherwise the request continues without the key and with the user's name, as returned by the service in `x-user`.
//! The name is also stored as the stream's metadata `user` in the namespace `api-key`.

mod cache;

use serde::Deserialize;
use tollgate_sdk::{now, prelude::*, units::Duration};

use crate::cache::Cache;

/// The header with the user's name, in the service's answer and in the request to the upstream.
const USER: &str = "x-user";

/// The `config:` block of the filter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Cluster of the service.
    cluster: String,
    /// Path of the call; the key is sent in the same header as the client's. Default: `/`.
    #[serde(default = "slash")]
    path: String,
    /// Header with the key. Default: `x-api-key`.
    #[serde(default = "x_api_key")]
    header: String,
    /// Timeout of the call. Default: 500ms.
    #[serde(default = "half_a_second")]
    timeout: Duration,
    /// How long an answer is cached; with `0s`, every request calls the service. Default: 60s.
    #[serde(default = "a_minute")]
    ttl: Duration,
}

fn slash() -> String {
    "/".into()
}

fn x_api_key() -> String {
    "x-api-key".into()
}

fn half_a_second() -> Duration {
    Duration::new(std::time::Duration::from_millis(500))
}

fn a_minute() -> Duration {
    Duration::new(std::time::Duration::from_secs(60))
}

/// The filter.
pub struct ApiKey {
    config: Config,
    key: Name,
    user: Name,
    cache: Cache,
    hits: Counter,
    calls: Histogram,
}

impl AsyncFilter for ApiKey {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mistakes = Mistakes::default();
        if !setup.has_cluster(&config.cluster) {
            mistakes.add("cluster", format!("there is no cluster `{}`", config.cluster));
        }
        if !config.path.starts_with('/') {
            mistakes.add("path", "a path begins with `/`");
        }
        mistakes.finish()?;
        Ok(ApiKey {
            key: setup.name(&config.header),
            user: setup.name(USER),
            cache: Cache::new(config.ttl.get()),
            hits: setup.counter("api_key.hits"),
            calls: setup.histogram("api_key.call_us"),
            config,
        })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        let mut buffer = Buffer::new();
        let Some(key) = request.header(self.key, &mut buffer) else {
            return Err(Reply::new(401).body("missing API key\n").details("no_api_key"));
        };
        match self.user_of(key).await? {
            Some(user) => {
                request.remove_header(self.key);
                // Overrides whatever the client claims.
                request.set_header(self.user, &user);
                // For later filters and the access log: `%metadata(api-key:user)%`. Failure to store it is harmless.
                let _ = stored::set_metadata("api-key", "user", &*String::from_utf8_lossy(&user));
                Ok(())
            }
            None => {
                request.flag(flag::UNAUTHORIZED);
                Err(Reply::new(403).body("unknown API key\n").details("unknown_api_key"))
            }
        }
    }
}

impl ApiKey {
    /// Returns the owner of a key, or `None` if it is unknown.
    async fn user_of(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Reply> {
        if let Some(known) = self.cache.get(key) {
            self.hits.add(1);
            return Ok(known);
        }
        let start = now();
        let call = Call::get(&self.config.cluster, &self.config.path).header(&self.config.header, key);
        let answer = call.timeout(self.config.timeout.get()).send().await;
        self.calls.record((now() - start) / 1000);
        let user = match answer {
            Ok(answer) if answer.status() == 200 => Some(answer.header(USER).unwrap_or_default().to_vec()),
            Ok(answer) if matches!(answer.status(), 401 | 403 | 404) => None,
            _ => {
                return Err(Reply::new(503)
                    .body("API keys cannot be verified at the moment\n")
                    .details("api_key_unchecked"));
            }
        };
        self.cache.set(key, user.as_deref());
        Ok(user)
    }
}

tollgate_sdk::export!(ApiKey);
