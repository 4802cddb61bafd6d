//! A connection's first moments: who is at its other end, whether it is under TLS, and what is spoken on it.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::time::timeout;

use crate::{
    chain::stream::ConnectionInfo,
    config::model::Protocol,
    exchange::{Refusal, Site},
    http::{self, connection::Handle},
    net::{Prefixed, Socket, Stream},
};

/// Bytes that are looked at to tell what is spoken. What a client sends first is nearly always longer, and nothing of it is
/// lost.
const LOOK: usize = 2 << 10;

/// What an HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    H1,
    H2,
}

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<Handle>, socket: Socket, peer: SocketAddr, local: SocketAddr) {
    let site = handle.site();
    let info = ConnectionInfo::new(site.name.clone(), peer, local);
    // Boxed, so that the connection's task does not carry the space for this all its life.
    let begun = Box::pin(begin(&handle, &site, socket, info)).await;
    let (stream, info, spoken) = match begun {
        Ok(Some(begun)) => begun,
        Ok(None) => return,
        Err(refusal) => {
            tracing::debug!(%peer, ?refusal, "connection refused");
            return site.refuse(refusal);
        }
    };
    drop(site);
    match spoken {
        Spoken::H1 => http::h1::serve(handle, stream, Rc::new(info)).await,
        Spoken::H2 => Box::pin(http::h2::serve(handle, stream, Rc::new(info))).await,
    }
}

type Begun = (Stream, ConnectionInfo, Spoken);

/// Finds out what is spoken. None: the client has gone before it said anything.
async fn begin(handle: &Handle, site: &Site, socket: Socket, info: ConnectionInfo) -> Result<Option<Begun>, Refusal> {
    let mut stream = Prefixed::new(bytes::Bytes::new(), socket);
    let spoken = match site.config.protocol {
        Protocol::Http1 => Spoken::H1,
        Protocol::Http2 => Spoken::H2,
        _ => {
            let Some(spoken) = sniff(handle, site, &mut stream).await? else { return Ok(None) };
            spoken
        }
    };
    Ok(Some((Stream::Plain(stream), info, spoken)))
}

/// Waits for the first bytes, no longer than for a request on a connection that has had some, and reads on until they are
/// enough.
async fn sniff(handle: &Handle, site: &Site, stream: &mut Prefixed<Socket>) -> Result<Option<Spoken>, Refusal> {
    let timeouts = &site.config.timeouts;
    let first = async {
        tokio::select! {
            looked = stream.look(LOOK) => looked,
            // A request may be on its way; see the connections themselves.
            () = async { handle.drained().await; tokio::time::sleep(http::h1::DRAIN_GRACE).await } => Ok(false),
        }
    };
    let limit = timeouts.keep_alive.bound().unwrap_or(Duration::MAX);
    match timeout(limit, first).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false) | Err(_)) => return Ok(None),
        // As with a connection that has had requests: nobody's fault.
        Err(_) => return Ok(None),
    }
    let rest = async {
        loop {
            let seen = stream.seen();
            if !PREFACE.starts_with(&seen[..seen.len().min(PREFACE.len())]) {
                return Ok(Spoken::H1);
            }
            if seen.len() >= PREFACE.len() {
                return Ok(Spoken::H2);
            }
            if !stream.look(LOOK).await? {
                // It has ended in the middle of what may be either: HTTP/1.1 has an answer to that.
                return Ok::<_, io::Error>(Spoken::H1);
            }
        }
    };
    match timeout(timeouts.handshake.bound().unwrap_or(Duration::MAX), rest).await {
        Ok(Ok(spoken)) => Ok(Some(spoken)),
        Ok(Err(_)) => Ok(None),
        Err(_) => Err(Refusal::Silent),
    }
}
