//! Admits TCP connections whose first line is `TOKEN` followed by a known token. The upstream never sees that line, nor
//! anything from other clients. Each token allows a limited number of connections per minute, over all workers.

use std::{collections::HashMap, time::Duration};

use serde::Deserialize;
use tollgate_sdk::{doc, prelude::*};

/// The `config:` block of the filter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens by user.
    tokens: HashMap<String, String>,
    /// Connections per minute of each token.
    per_minute: u32,
}

/// Maximum length of the first line, in bytes; limits how much is held for a client without a token.
const LONGEST: usize = 128;

/// Prefix of the token line.
const BEFORE: &[u8] = b"TOKEN ";

/// How long a client may take to send its first line.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct TcpToken {
    /// User by token.
    users: HashMap<Vec<u8>, String>,
    connections: Bucket,
    refused: Counter,
}

/// State kept per connection.
#[derive(Default)]
pub struct Stream {
    /// Whether a valid token was received.
    known: bool,
}

impl TcpFilter for TcpToken {
    type Config = Config;
    type Stream = Stream;
    const PHASES: TcpPhases = TcpPhases::CONNECTION.and(TcpPhases::DOWNSTREAM_DATA);

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, ConfigError> {
        let mistakes = Mistakes::default();
        for (user, token) in &config.tokens {
            if token.is_empty() || token.len() + BEFORE.len() >= LONGEST || token.contains(['\r', '\n']) {
                mistakes.add(format!("tokens.{user}"), "a token is a line of 1 to 100 characters");
            }
        }
        mistakes.finish()?;
        let connections = doc::Bucket {
            name: "connections".into(),
            capacity: config.per_minute,
            fill: config.per_minute,
            interval_ms: 60_000,
            max_keys: 10_000,
        };
        Ok(TcpToken {
            users: config.tokens.into_iter().map(|(user, token)| (token.into_bytes(), user)).collect(),
            connections: setup.bucket("per_minute", &connections)?,
            refused: setup.counter("tcp_token.refused"),
        })
    }

    /// Holds the connection until `on_downstream_data` continues: no upstream is connected before that.
    fn on_connection(&self, _: &Connection, _: &mut Stream) -> TcpFlow {
        TcpFlow::Wait(PATIENCE, 0)
    }

    fn on_downstream_data(&self, data: &Data, connection: &Connection, stream: &mut Stream) -> TcpFlow {
        if stream.known {
            return TcpFlow::Continue;
        }
        let first = data.first(LONGEST);
        let Some(end) = first.iter().position(|b| *b == b'\n') else {
            // A line may arrive in pieces: held bytes are presented again together with the following ones.
            return match first.len() < LONGEST && !data.is_last() {
                true => TcpFlow::Pause,
                false => self.refuse(connection, "no token", 0),
            };
        };
        let line = first[..end].strip_suffix(b"\r").unwrap_or(&first[..end]);
        let Some(user) = line.strip_prefix(BEFORE).and_then(|token| self.users.get(token)) else {
            return self.refuse(connection, "unknown token", flag::UNAUTHORIZED);
        };
        connection.log_field("user", user);
        if !self.connections.take(user.as_bytes(), 1).allowed {
            return self.refuse(connection, "too many connections", flag::RATE_LIMITED);
        }
        stream.known = true;
        data.replace_first(end + 1, b"");
        TcpFlow::Continue
    }

    /// The client was too slow.
    fn on_timer(&self, _: u32, connection: &Connection, stream: &mut Stream) -> TcpFlow {
        if stream.known { TcpFlow::Continue } else { self.refuse(connection, "timed out waiting for the token", 0) }
    }
}

impl TcpToken {
    fn refuse(&self, connection: &Connection, why: &str, flags: u32) -> TcpFlow {
        self.refused.add(1);
        connection.flag(flags);
        connection.log_field("refused", why);
        connection.send_to_client(format!("ERROR {why}\r\n"));
        TcpFlow::Close
    }
}

// Exports the filter, which makes the crate a module that the proxy can load.
tollgate_sdk::export_tcp!(TcpToken);
