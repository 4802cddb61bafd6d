//! The smallest filter that does something, for measuring: it reads three headers of a request and sets one.
//! `three-headers-standard` is the same with the `proxy-wasm` crate.

use tollgate_sdk::prelude::*;

/// The filter.
pub struct ThreeHeaders {
    read: [Name; 3],
    set: Name,
}

impl Filter for ThreeHeaders {
    type Config = ();
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let read = [":path", "user-agent", "x-request-id"].map(|name| setup.name(name));
        Ok(ThreeHeaders { read, set: setup.name("x-complete") })
    }

    fn on_request(&self, request: &Request, _: &mut ()) -> Flow {
        let mut buffer = Buffer::new();
        let complete = request.headers(self.read, &mut buffer).iter().all(Option::is_some);
        request.set_header(self.set, if complete { "yes" } else { "no" });
        Flow::Continue
    }
}

tollgate_sdk::export!(ThreeHeaders);
