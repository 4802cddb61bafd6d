//! Filters of TCP connections: the trait that one implements, and what its callbacks answer.

mod connection;
#[doc(hidden)]
pub mod dispatch;

use std::time::Duration;

use serde::de::DeserializeOwned;
use tollgate_abi::fast::phase;

pub use self::connection::{ClosedBy, Connection, Data};
use crate::{ConfigError, Queue, Setup};

/// A filter of TCP connections: made once from its configuration, and then told of every connection of a listener with
/// `protocol: tcp`. It is exported by [`export_tcp!`](crate::export_tcp).
///
/// ```
/// use tollgate_sdk::prelude::*;
///
/// /// Lets TLS through, and nothing else.
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
///         // No upstream sees it before its first byte is known.
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
    /// As [`Filter::Config`](crate::Filter::Config).
    type Config: DeserializeOwned + 'static;
    /// What is kept for one connection from one callback to the next.
    type Stream: Default + 'static;
    /// The callbacks that the host shall make; the others cost nothing. Bytes of a side that no filter wants to see are not
    /// even copied through the proxy.
    const PHASES: TcpPhases;

    /// Makes the filter. Whatever can be computed before the first connection is computed here.
    fn configure(config: Self::Config, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// A client has connected; no upstream has been connected to. [`TcpFlow::Pause`] or [`TcpFlow::Wait`]: that waits until
    /// [`on_downstream_data`](Self::on_downstream_data) or [`on_timer`](Self::on_timer) answers [`TcpFlow::Continue`].
    fn on_connection(&self, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// Bytes have come from the client; after [`TcpFlow::Pause`], all that were held and the new ones.
    fn on_downstream_data(&self, _data: &Data, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// Bytes have come from the upstream; after [`TcpFlow::Pause`], all that were held and the new ones.
    fn on_upstream_data(&self, _data: &Data, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// The time of a [`TcpFlow::Wait`] is over; `token` is the one given there. `Continue` lets go on what was held.
    fn on_timer(&self, _token: u32, _connection: &Connection, _stream: &mut Self::Stream) -> TcpFlow {
        TcpFlow::Continue
    }

    /// The connection is over.
    fn on_close(&self, _by: ClosedBy, _connection: &Connection, _stream: &mut Self::Stream) {}

    /// As [`Filter::on_tick`](crate::Filter::on_tick).
    fn on_tick(&self) {}

    /// As [`Filter::on_queue`](crate::Filter::on_queue).
    fn on_queue(&self, _queue: Queue, _message: Vec<u8>) {}
}

/// What becomes of a connection, or of the bytes, after a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpFlow {
    /// It goes on.
    Continue,
    /// It is held: bytes until there are more, a connection until there are bytes. The proxy reads no more of a side when a
    /// filter holds the listener's `limits.buffered_body` of it, and ends a connection on which nothing moves after
    /// `timeouts.idle`.
    Pause,
    /// As `Pause`, and after this time [`TcpFilter::on_timer`] is called with the token, whatever has come meanwhile.
    Wait(Duration, u32),
    /// The connection is closed, once what has passed this filter is sent.
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

    /// Both sets.
    pub const fn and(self, other: TcpPhases) -> TcpPhases {
        TcpPhases(self.0 | other.0)
    }

    /// Whether one of these callbacks is among them.
    const fn has(self, other: TcpPhases) -> bool {
        self.0 & other.0 != 0
    }
}
