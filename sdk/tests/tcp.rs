//! TCP filters in the test host.

use std::time::Duration;

use serde_json::json;
use tollgate_sdk::{doc, prelude::*, testing::TcpHost};

/// Acts as the client specifies, one word at a time.
struct Obedient {
    blue: RouteId,
    slots: Limit,
    closed: Counter,
    ticks: Counter,
}

#[derive(Default)]
struct Stream {
    words: u32,
}

impl TcpFilter for Obedient {
    type Config = ();
    type Stream = Stream;
    const PHASES: TcpPhases =
        TcpPhases::CONNECTION.and(TcpPhases::DOWNSTREAM_DATA).and(TcpPhases::UPSTREAM_DATA).and(TcpPhases::CLOSE);

    fn configure(_: (), setup: &mut Setup) -> Result<Self, ConfigError> {
        let blue = doc::Route {
            name: "blue".into(),
            clusters: vec![doc::WeightedCluster::new("blue", 1)],
            ..doc::Route::default()
        };
        Ok(Obedient {
            blue: setup.route("", &blue)?,
            slots: setup.limit("", "slots", 1)?,
            closed: setup.counter("closed.by_client"),
            ticks: setup.counter("ticks"),
        })
    }

    fn on_connection(&self, connection: &Connection, _: &mut Stream) -> TcpFlow {
        match connection.source().ip().to_string().as_str() {
            "10.0.0.1" => TcpFlow::Close,
            "10.0.0.2" => TcpFlow::Pause,
            "10.0.0.3" => TcpFlow::Wait(Duration::from_secs(1), 3),
            "10.0.0.4" if !self.slots.acquire() => TcpFlow::Close,
            _ => TcpFlow::Continue,
        }
    }

    fn on_downstream_data(&self, data: &Data, connection: &Connection, stream: &mut Stream) -> TcpFlow {
        stream.words += 1;
        match data.to_vec().as_slice() {
            b"hold" => TcpFlow::Pause,
            b"wait" => TcpFlow::Wait(Duration::from_secs(1), 7),
            b"route" => {
                connection.route(self.blue, Selection::default());
                TcpFlow::Continue
            }
            b"nowhere" => {
                connection.clear_route();
                TcpFlow::Continue
            }
            b"echo" => {
                connection.send_to_client("echo");
                data.replace("");
                TcpFlow::Continue
            }
            b"count" => {
                data.replace(stream.words.to_string());
                TcpFlow::Continue
            }
            b"bye" => {
                connection.send_to_client("goodbye");
                TcpFlow::Close
            }
            _ => TcpFlow::Continue,
        }
    }

    fn on_upstream_data(&self, data: &Data, _: &Connection, _: &mut Stream) -> TcpFlow {
        if data.len() < 4 && !data.is_last() {
            return TcpFlow::Pause;
        }
        data.replace_first(0, "> ");
        TcpFlow::Continue
    }

    fn on_timer(&self, token: u32, connection: &Connection, _: &mut Stream) -> TcpFlow {
        connection.log_field("waited", &token.to_string());
        TcpFlow::Continue
    }

    fn on_close(&self, by: ClosedBy, _: &Connection, _: &mut Stream) {
        if by == ClosedBy::Client {
            self.closed.add(1);
        }
    }

    fn on_tick(&self) {
        self.ticks.add(1);
    }
}

fn host() -> TcpHost<Obedient> {
    TcpHost::new(json!(null)).unwrap()
}

#[test]
fn connections_are_held_rejected_and_let_through() {
    let host = host();
    let open = host.connect();
    assert!(open.is_open());
    assert!(host.connect_from("10.0.0.1").is_closed());

    let held = host.connect_from("10.0.0.2");
    assert!(!held.is_open() && !held.is_closed());
    held.client_sends(b"hold");
    assert!(!held.is_open());
    held.client_sends(b" on");
    assert!(held.is_open());
    assert_eq!(held.upstream_got(), b"hold on");

    let waiting = host.connect_from("10.0.0.3");
    assert_eq!(waiting.waits(), Some(Duration::from_secs(1)));
    host.advance(Duration::from_secs(1));
    assert!(waiting.is_open());
    assert_eq!(waiting.log_field("waited").as_deref(), Some("3"));
}

#[test]
fn bytes_are_held_changed_and_added() {
    let host = host();
    let connection = host.connect();
    connection.client_sends(b"wait");
    assert_eq!(connection.upstream_got(), b"");
    host.advance(Duration::from_secs(1));
    assert_eq!(connection.upstream_got(), b"wait");
    connection.client_sends(b"count");
    assert_eq!(connection.upstream_got(), b"wait2");
    connection.client_sends(b"echo");
    assert_eq!(connection.client_got(), b"echo");
    connection.upstream_sends(b"he");
    connection.upstream_sends(b"llo");
    assert_eq!(connection.client_got(), b"echo> hello");
    connection.upstream_sends(b"x");
    connection.upstream_ends();
    assert_eq!(connection.client_got(), b"echo> hello> x");
    connection.client_sends(b"bye");
    assert!(connection.is_closed());
    assert_eq!(connection.client_got(), b"echo> hello> xgoodbye");
    connection.client_sends(b"too late");
    assert_eq!(connection.upstream_got(), b"wait2");
}

#[test]
fn routes_limits_and_closes_are_reported() {
    let host = host();
    let connection = host.connect();
    connection.client_sends(b"route");
    assert_eq!(connection.selected().map(|s| s.route.name), Some("blue".into()));
    connection.client_sends(b"nowhere");
    assert_eq!(connection.selected(), None);

    let first = host.connect_from("10.0.0.4");
    assert!(first.is_open() && host.connect_from("10.0.0.4").is_closed());
    drop(first);
    assert!(host.connect_from("10.0.0.4").is_open(), "its permit was released");

    connection.client_ends();
    assert_eq!(host.metric("closed.by_client"), 0);
    drop(connection);
    assert_eq!(host.metric("closed.by_client"), 1);
    host.tick();
    assert_eq!(host.metric("ticks"), 1);
}
