//! The trait of TCP filters and the return values of its callbacks.

mod connection;
#[doc(hidden)]
pub mod dispatch;

use std::time::Duration;

use serde::de::DeserializeOwned;
use tollgate_abi::fast::phase;

pub use self::connection::{ClosedBy, Connection, Data};
use crate::{ConfigError, Queue, Setup};

/// A filter of TCP connections: created once from its configuration, then called for every connection of a listener
/// with `protocol: tcp`. Export it with [`export_tcp!`](crate::export_tcp).
///
/// ```
/// use tollgate_sdk::prelude::*;
///
/// /// Accepts only TLS connections.
/// struct TlsOnly;
///
/// impl TcpFilter for TlsOnly {
///     type Config = ();
///     type Stream = ();
///     const PHASES: TcpPhases = TcpPhases::CONNECTION.and(TcpPhases::DOWNSTREAM_DATA);
///
///     fn configure(_: (), _: &mut Setup) -> Result<Self, ConfigError> {
///         Ok(TlsOnly)
///     }
///
///     fn on_connection(&self, _: &Connection, _: &mut ()) -> TcpFlow {
///         // No upstream sees the connection until its first byte is known.
///         TcpFlow::Pause
///     }
///
///     fn on_downstream_data(&self, data: &Data, _: &Connection, _: &mut ()) -> TcpFlow {
///         if data.first(1) == [22] { TcpFlow::Continue } else { TcpFlow::Close }
///     }
/// }
///
/// tollgate_sdk::export_tcp!(TlsOnly);
/// # fn main() {
/// # let host = tollgate_sdk::testing::TcpHost::<TlsOnly>::new(serde_json::json!(null)).unwrap();
/// # let connection = host.connect();
/// # assert!(!connection.is_open());
/// # connection.client_sends(b"\x16\x03");
/// # assert!(connection.is_open());
/// # let other = host.connect();
/// # other.client_sends(b"GET /");
/// # assert!(other.is_closed());
/// # }
/// ```
pub trait TcpFilter: Sized + 'static {
    /// See [`Filter::Config`](crate::Filter::Config).
    type Config: DeserializeOwned + 'static;
    /// State kept per connection between callbacks.
    type Stream: Default + 'static;
    /// The callbacks that the host makes; others cost nothing. If no filter needs a side's bytes, the proxy does not
    /// even copy them through user space.
    const PHASES: TcpPhases;

    /// Creates the filter. Compute here whatever can be computed before the first connection.
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// Called when a client has connected, before the proxy connects to an upstream. After [`TcpFlow::Pause`] or
    /// [`TcpFlow::Wait`], the upstream connection waits until [`on_downstream_data`](Self::on_downstream_data) or
    /// [`on_timer`](Self::on_timer) returns [`TcpFlow::Continue`].
    fn on_connection(&self, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// Called for bytes from the client; after [`TcpFlow::Pause`], for the held bytes and the new ones.
    fn on_downstream_data(&self, _data: &Data, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// Called for bytes from the upstream; after [`TcpFlow::Pause`], for the held bytes and the new ones.
    fn on_upstream_data(&self, _data: &Data, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// Called when the time of a [`TcpFlow::Wait`] has passed; `token` is the one given there. `Continue` releases what
    /// was held.
    fn on_timer(&self, _token: u32, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// Called when the connection has ended.
    fn on_close(&self, _by: ClosedBy, _connection: &Connection, _stream: &mut Self::Stream) {}

    /// See [`Filter::on_tick`](crate::Filter::on_tick).
    fn on_tick(&self) {}

    /// See [`Filter::on_queue`](crate::Filter::on_queue).
    fn on_queue(&self, _queue: Queue, _message: Vec<u8>) {}
}

/// How a connection or its bytes continue after a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpFlow {
    /// The connection or the bytes continue.
    Continue,
    /// Holds bytes until more arrive, or a connection until bytes arrive. The proxy stops reading from a side when a
    /// filter holds the listener's `limits.buffered_body` of its bytes (backpressure), and closes a connection that is
    /// idle for `timeouts.idle`.
    Pause,
    /// Like `Pause`; in addition, [`TcpFilter::on_timer`] is called with the token after this time, whatever arrives
    /// meanwhile.
    Wait(Duration, u32),
    /// Closes the connection after sending what has passed this filter.
    Close,
}

/// A set of callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpPhases(u32);

impl TcpPhases {
    /// [`TcpFilter::on_connection`].
    pub const CONNECTION: TcpPhases = TcpPhases(phase::NEW_CONNECTION);
    /// [`TcpFilter::on_downstream_data`].
    pub const DOWNSTREAM_DATA: TcpPhases = TcpPhases(phase::DOWNSTREAM_DATA);
    /// [`TcpFilter::on_upstream_data`].
    pub const UPSTREAM_DATA: TcpPhases = TcpPhases(phase::UPSTREAM_DATA);
    /// [`TcpFilter::on_close`].
    pub const CLOSE: TcpPhases = TcpPhases(phase::DOWNSTREAM_CLOSE);

    /// Returns the union of both sets.
    pub const fn and(self, other: TcpPhases) -> TcpPhases {
        TcpPhases(self.0 | other.0)
    }

    /// Reports whether the two sets intersect.
    const fn has(self, other: TcpPhases) -> bool {
        self.0 & other.0 != 0
    }
}
