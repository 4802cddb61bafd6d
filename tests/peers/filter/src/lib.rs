//! The work of examples/filters/third-party, done with Tollgate's SDK, so that the two can be compared: it counts requests,
//! reads method, path and user agent, tells the upstream what it has seen (`x-seen`), lets nobody else say `x-verified`, and
//! marks responses (`x-third-party`). Asking a service is left out; it is not compared.

use serde::Deserialize;
use tollgate_sdk::prelude::*;

/// As the other one's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    tag: String,
}

/// The filter.
pub struct Same {
    read: [Name; 3],
    seen: Name,
    verified: Name,
    mark: Name,
    tag: String,
    requests: Counter,
}

impl Filter for Same {
    type Config = Config;
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::RESPONSE_HEADERS);

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Same {
            read: [":method", ":path", "user-agent"].map(|name| setup.name(name)),
            seen: setup.name("x-seen"),
            verified: setup.name("x-verified"),
            mark: setup.name("x-third-party"),
            tag: config.tag,
            requests: setup.counter("third_party_same.requests"),
        })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        self.requests.add(1);
        let mut buffer = Buffer::new();
        let [method, path, agent] = request.headers(self.read, &mut buffer).map(Option::unwrap_or_default);
        request.set_header(self.seen, [method, b" ", path, b" by ", agent].concat());
        request.remove_header(self.verified);
        Flow::Continue
    }

    fn on_response(&self, response: &Response, _: &mut ()) -> Flow {
        response.add_header(self.mark, &self.tag);
        Flow::Continue
    }
}

tollgate_sdk::export!(Same);
