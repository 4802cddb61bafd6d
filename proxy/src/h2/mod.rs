//! HTTP/2 (RFC 9113) as both sides of the proxy speak it. The crate `h2` does the framing, the heads and the windows; here is what
//! it leaves to its users.
//!
//! A connection is a task, and so is a client's request; a request to an upstream is driven by whoever has it. [`Io`] is what a
//! connection reads from and writes to, [`Incoming`] a body that comes, [`Sending`] one that goes, [`Tunnel`] a stream that
//! carries another protocol, [`measure`] looks at fields, and [`KeepAlive`] finds out whether a silent peer is still
//! there. [`Screened`] stands below all of it and sees what comes first. `downstream/h2` is the side of the clients, `upstream/mux` that of the
//! upstreams.

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
