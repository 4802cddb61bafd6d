//! Lets requests pass only while a gRPC service reports that it is serving (`grpc.health.v1.Health`).
//!
//! | status | reason |
//! |---|---|
//! | 503, or the gRPC status 14 | the service is not serving |
//! | 503 or 504 | the service is unavailable |
//!
//! A real filter would poll at an interval instead of calling per request. With more fields than these two, it would
//! leave the encoding to a crate such as `prost`.

use serde::Deserialize;
use tollgate_sdk::{grpc::code, prelude::*, units::Duration};

const HEALTH: &str = "grpc.health.v1.Health";

/// The value `SERVING` of the field `status` in a `HealthCheckResponse`.
const SERVING: u8 = 1;

/// The `config:` block of the filter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Cluster of the service, which must use HTTP/2.
    cluster: String,
    /// Service name to check. Default: the server as a whole.
    #[serde(default)]
    service: String,
    /// Timeout of the answer. Default: 500ms.
    #[serde(default = "half_a_second")]
    timeout: Duration,
    /// Use the first message of the stream `Watch` instead of the answer of `Check`. Default: false.
    #[serde(default)]
    watch: bool,
}

fn half_a_second() -> Duration {
    Duration::new(std::time::Duration::from_millis(500))
}

/// The filter.
pub struct GrpcHealth {
    config: Config,
    /// The encoded request message, which never changes.
    question: Vec<u8>,
    health: Name,
}

impl AsyncFilter for GrpcHealth {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if !setup.has_cluster(&config.cluster) {
            return Err(ConfigError::new("cluster", format!("there is no cluster `{}`", config.cluster)));
        }
        // `HealthCheckRequest`: field 1, bytes, with a one-byte length.
        let question = match u8::try_from(config.service.len()) {
            Ok(0) => Vec::new(),
            Ok(len @ ..128) => [&[0x0a, len], config.service.as_bytes()].concat(),
            _ => return Err(ConfigError::new("service", "has at most 127 bytes")),
        };
        Ok(GrpcHealth { config, question, health: setup.name("x-health") })
    }

    async fn on_request(&self, request: &mut Incoming<Request>, _: &()) -> Result<(), Reply> {
        if self.status().await? != SERVING {
            // gRPC clients get the gRPC status, others the HTTP response.
            let reply = Reply::new(503).grpc_status(code::UNAVAILABLE as u8).body("not serving\n");
            return Err(reply.details("not_serving"));
        }
        request.set_header(self.health, if self.config.watch { "watched" } else { "checked" });
        Ok(())
    }
}

impl GrpcHealth {
    async fn status(&self) -> Result<u8, GrpcError> {
        let call = |method| GrpcCall::new(&self.config.cluster, HEALTH, method).timeout(self.config.timeout.get());
        if !self.config.watch {
            return call("Check").send(&self.question).await.map(|answer| status(&answer));
        }
        // Dropping the stream ends it.
        let mut changes = call("Watch").open()?;
        changes.send_last(&self.question);
        Ok(changes.message().await?.map_or(0, |answer| status(&answer)))
    }
}

/// Decodes field 1 of a `HealthCheckResponse`, a one-byte number; 0 is not encoded.
fn status(answer: &[u8]) -> u8 {
    if let [0x08, status, ..] = answer { *status } else { 0 }
}

tollgate_sdk::export!(GrpcHealth);
