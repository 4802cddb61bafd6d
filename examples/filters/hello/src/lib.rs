//! The first filter to read: it adds `x-hello` to every response.
//!
//! Try it while `examples/quickstart.sh` runs: change `GREETING` below, run `cargo filter hello` in another terminal, and ask
//! again with `curl -i http://127.0.0.1:8080/`. The proxy has taken the new code, and no request has noticed.

use serde::Deserialize;
use tollgate_sdk::prelude::*;

/// What it says, unless its configuration has something else.
const GREETING: &str = "hello from a filter";

/// What may stand under `config:` in the proxy's file. The proxy refuses a file in which this is wrong, and says where.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    greeting: String,
}

impl Default for Config {
    fn default() -> Self {
        Config { greeting: GREETING.into() }
    }
}

/// The filter: what has been made of the configuration. One value serves many requests, so nothing of a single request is
/// kept in here (that would be `Stream`, below).
pub struct Hello {
    header: Name,
    greeting: String,
}

impl Filter for Hello {
    type Config = Config;
    // What is kept for a request from one callback to the next: nothing.
    type Stream = ();
    // The callbacks that the proxy shall make. A phase that is not named here costs nothing.
    const PHASES: Phases = Phases::RESPONSE_HEADERS;

    /// Runs once, before the first request. A header's name becomes a number here, so that no text is compared later.
    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.greeting.contains(|c: char| c.is_control()) {
            return Err(ConfigError::new("greeting", "a header cannot carry control characters"));
        }
        Ok(Hello { header: setup.name("x-hello"), greeting: config.greeting })
    }

    /// Runs for each response that comes past: an upstream's, the proxy's own, or that of a filter further along the chain.
    fn on_response(&self, response: &Response, _: &mut ()) -> Flow {
        response.set_header(self.header, &self.greeting);
        Flow::Continue
    }
}

// Makes it a module that a proxy can load.
tollgate_sdk::export!(Hello);
