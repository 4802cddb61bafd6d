//! Asks a service whose an API key is, and remembers the answer for a while, for all workers.
//!
//! | the client gets | if |
//! |---|---|
//! | 401 | it sends no key |
//! | 403 | the service answers 401, 403 or 404: nobody has this key |
//! | 503 | the service cannot be asked, or answers something else |
//!
//! Else the request goes on: without the key, and with the user's name, as the service has given it in `x-user`. It is also the
//! stream's metadata `user` in the namespace `api-key`.

mod cache;

use serde::Deserialize;
use tollgate_sdk::{now, prelude::*, units::Duration};

use crate::cache::Cache;

/// The header with the user's name, in the service's answer and for the upstream.
const USER: &str = "x-user";

/// What stands under `config:` in the proxy's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster of the service.
    cluster: String,
    /// The path that is asked for; the key is in the same header as the client has sent it in. Default: `/`.
    #[serde(default = "slash")]
    path: String,
    /// The header with the key. Default: `x-api-key`.
    #[serde(default = "x_api_key")]
    header: String,
    /// How long the service may take. Default: 500ms.
    #[serde(default = "half_a_second")]
    timeout: Duration,
    /// How long an answer counts; `0s`: every request asks. Default: 60s.
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
            return Err(Reply::new(401).body("an API key is needed\n").details("no_api_key"));
        };
        match self.user_of(key).await? {
            Some(user) => {
                request.remove_header(self.key);
                // Whatever the client has said of itself does not count.
                request.set_header(self.user, &user);
                // For filters that come later, and the access log: `%metadata(api-key:user)%`. Without it, all goes on.
                let _ = stored::set_metadata("api-key", "user", &*String::from_utf8_lossy(&user));
                Ok(())
            }
            None => {
                request.flag(flag::UNAUTHORIZED);
                Err(Reply::new(403).body("nobody has this API key\n").details("unknown_api_key"))
            }
        }
    }
}

impl ApiKey {
    /// Whose a key is, if anybody's.
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
            _ => return Err(Reply::new(503).body("API keys cannot be checked now\n").details("api_key_unchecked")),
        };
        self.cache.set(key, user.as_deref());
        Ok(user)
    }
}

tollgate_sdk::export!(ApiKey);
