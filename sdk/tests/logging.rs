//! The crates `log` and `tracing` write to the proxy's log. Run with `cargo test -p tollgate-sdk --features
//! log,tracing`.
#![cfg(all(feature = "log", feature = "tracing"))]

use serde_json::json;
use tollgate_sdk::{prelude::*, testing::TestHost};

struct Talks;

impl Filter for Talks {
    type Config = ();
    type Stream = ();
    const PHASES: Phases = Phases::REQUEST_HEADERS;

    fn configure(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Talks)
    }

    fn on_request(&self, _: &Request, _: &mut ()) -> Flow {
        log::info!("plain");
        log::debug!("with {}", 1);
        let _span = tracing::info_span!("not shown").entered();
        tracing::warn!(user = "ann", tries = 3, "an event");
        Flow::Continue
    }
}

#[test]
fn both_arrive() {
    let host = TestHost::<Talks>::new(json!({})).unwrap();
    assert!(host.request("GET", "/").send().continued());
    assert_eq!(host.logs(), ["plain", "with 1", "an event user=\"ann\" tries=3"]);
}
