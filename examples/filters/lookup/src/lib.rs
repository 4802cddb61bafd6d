//! Looks up each user at a service and adds the answer to the request: like `api-key`, but with callbacks instead of
//! futures.
//!
//! Requests without a user, and those of users unknown to the service, continue unchanged. If the service is
//! unavailable, the client gets 503 or 504.

use serde::Deserialize;
use tollgate_sdk::{Answer, Call, CallError, prelude::*};

/// The `config:` block of the filter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Cluster of the service, which is called with the path `/USER`.
    cluster: String,
    /// Request header with the user. Default: `x-user`.
    #[serde(default = "x_user")]
    user: String,
    /// Header in the service's answer that is copied to the request. Default: `x-team`.
    #[serde(default = "x_team")]
    team: String,
}

fn x_user() -> String {
    "x-user".into()
}

fn x_team() -> String {
    "x-team".into()
}

/// The filter.
pub struct Lookup {
    config: Config,
    user: Name,
    team: Name,
}

/// State kept per request during the call.
#[derive(Default)]
pub struct Stream {
    user: String,
}

/// Token of the call. A filter with several calls distinguishes them by token.
const TEAM: u32 = 1;

impl Filter for Lookup {
    type Config = Config;
    type Stream = Stream;
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::ANSWERS);

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if !setup.has_cluster(&config.cluster) {
            return Err(ConfigError::new("cluster", format!("there is no cluster `{}`", config.cluster)));
        }
        Ok(Lookup { user: setup.name(&config.user), team: setup.name(&config.team), config })
    }

    fn on_request(&self, request: &Request, stream: &mut Stream) -> Flow {
        // Only the service may set this.
        request.remove_header(self.team);
        let mut buffer = Buffer::new();
        let user = request.header(self.user, &mut buffer).unwrap_or_default();
        // The user becomes part of a path.
        if user.is_empty() || !user.iter().all(u8::is_ascii_alphanumeric) {
            return Flow::Continue;
        }
        stream.user = String::from_utf8_lossy(user).into_owned();
        Call::get(&self.config.cluster, &format!("/{}", stream.user)).ask(TEAM)
    }

    fn on_answer(&self, _: u32, answer: Result<Answer, CallError>, request: &Request, stream: &mut Stream) -> Flow {
        let answer = match answer {
            Ok(answer) if answer.status() < 500 => answer,
            Ok(_) => return Reply::new(503).details("lookup_failed").into(),
            Err(error) => return Reply::from(error).into(),
        };
        if let Some(team) = answer.header(&self.config.team).filter(|_| answer.status() == 200) {
            request.set_header(self.team, team);
        }
        request.log_field("looked_up", &stream.user);
        Flow::Continue
    }
}

tollgate_sdk::export!(Lookup);
