//! HTTP/2 (RFC 9113) for both sides of the proxy. The crate `h2` handles framing, HPACK and flow control; this module
//! adds what it leaves to its users.
//!
//! A connection is a task, and so is a client's request; a request to an upstream is driven by the task that sends
//! it. [`Io`] is a connection's I/O, [`IncomingBody`] a received body, [`BodySender`] sends one, [`Tunnel`] is a
//! stream that carries another protocol, [`measure`] validates fields, and [`KeepAlive`] detects lost peers.
//! [`ScreenedIo`] inspects frames before h2 does. `downstream/h2` is the clients' side, `upstream/mux` the upstreams'
//! side.

mod body;
mod ends;
mod fields;
pub mod frames;
pub mod hpack;
mod io;
mod keep_alive;
mod peer_settings;
mod screen;
mod tunnel;
mod window;

pub use self::{
    body::{BodySender, IncomingBody, SendError, reset_reason},
    ends::{Ended, StreamEnds, WatchedIo},
    fields::{content_length, has_of_connection, measure, remove_of_connection},
    io::{Io, Turns},
    keep_alive::KeepAlive,
    peer_settings::PeerSettings,
    screen::{Malformed, ScreenedIo},
    tunnel::Tunnel,
    window::{Widening, Window},
};
