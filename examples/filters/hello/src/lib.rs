//! The first example to read: a filter that adds `x-hello` to every response.
//!
//! Try it while `examples/quickstart.sh` runs: change `GREETING` below, run `cargo filter hello` in another terminal,
//! and repeat `curl -i http://127.0.0.1:8080/`. The proxy reloads the filter without affecting any request.

use serde::Deserialize;
use tollgate_sdk::prelude::*;

/// The greeting if the configuration has none.
const GREETING: &str = "hello from a filter";

/// The `config:` block of the filter. The proxy rejects a configuration with errors in it and reports their location.
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

/// The filter, created from the configuration. One value serves many requests, so state of a single request belongs in
/// `Stream` (below), not here.
pub struct Hello {
    header: Name,
    greeting: String,
}

impl Filter for Hello {
    type Config = Config;
    // State kept per request between callbacks: none.
    type Stream = ();
    // The callbacks that the proxy makes. Phases that are not listed cost nothing.
    const PHASES: Phases = Phases::RESPONSE_HEADERS;

    /// Runs once, before the first request. Header names are registered here, so that requests involve no text
    /// comparison.
    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        if config.greeting.contains(|c: char| c.is_control()) {
            return Err(ConfigError::new("greeting", "a header cannot carry control characters"));
        }
        Ok(Hello { header: setup.name("x-hello"), greeting: config.greeting })
    }

    /// Runs for each response: from an upstream, the proxy or a filter further along the chain.
    fn on_response(&self, response: &Response, _: &mut ()) -> Flow {
        response.set_header(self.header, &self.greeting);
        Flow::Continue
    }
}

// Exports the filter, which makes the crate a module that the proxy can load.
tollgate_sdk::export!(Hello);
