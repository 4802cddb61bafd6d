//! The driver of a client's HTTP/3 connection (RFC 9114): the h3 crate reads requests over quinn, and this module
//! handles timeouts and the end of the connection. Each request is its own task; see [`request`].

mod body;
pub mod framing;
pub mod qpack;
mod request;
mod transport;
mod tunnel;

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use h3::error::{Code, ConnectionError};
use quinn::VarInt;
use tokio::time::{Instant, sleep_until, timeout};

use self::{
    framing::FrameViolation,
    transport::{ConnectionFacts, Transport},
};
use super::{
    connection::{LENIENCE, ListenerHandle},
    flood::ResetLimiter,
};
use crate::{chain::stream::ConnectionInfo, exchange::RejectReason, observe::target};

/// The ALPN identifier (RFC 9114 section 3.1).
pub const ALPN: &[u8] = b"h3";

/// Time for which a draining connection still accepts requests that were sent before the client could know, and then
/// the time for its client to learn which ones were not accepted.
const GRACE: Duration = Duration::from_secs(1);

/// State shared by the tasks of a connection's requests.
struct Connection {
    handle: Rc<ListenerHandle>,
    info: Rc<ConnectionInfo>,
    facts: Rc<ConnectionFacts>,
    resets: ResetLimiter,
    /// Requests whose tasks have not ended. A task ends when its client has acknowledged the whole response.
    in_flight: Cell<u32>,
}

/// The phases of a connection's graceful shutdown.
enum Phase {
    /// Accepting requests.
    Open,
    /// The client was sent a GOAWAY; requests already on their way are accepted until this time.
    Announced(Instant),
    /// No more requests are accepted. The connection ends when its requests are complete, but not before this time.
    Closing(Instant),
}

/// Serves a connection until it ends.
pub async fn serve(handle: Rc<ListenerHandle>, quic: quinn::Connection, info: Rc<ConnectionInfo>) {
    if let Some(refusal) = run(&handle, &quic, info).await {
        handle.context().count_rejected(refusal);
    }
    // Let quinn's task for the connection send what is left.
    tokio::task::yield_now().await;
}

/// Waits briefly for the client to close the connection. It has acknowledged everything, but a client notified of the
/// connection's end may discard what it has not read yet.
async fn linger(quic: &quinn::Connection) {
    let _ = timeout(GRACE, quic.closed()).await;
}

fn code(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

/// Returns the reason if the client is to blame for the end. Unless closed explicitly, the connection closes when h3's
/// connection is dropped.
async fn run(handle: &Rc<ListenerHandle>, quic: &quinn::Connection, info: Rc<ConnectionInfo>) -> Option<RejectReason> {
    let config = handle.context().config.clone();
    let (limits, timeouts) = (&config.limits, &config.timeouts);
    let longest = limits.header_bytes.0.saturating_mul(LENIENCE);
    let facts = ConnectionFacts::new(quic.clone(), longest);
    let mut builder = h3::server::builder();
    // No grease: h3 may lose a frame over it.
    builder.max_field_section_size(longest).send_grease(false);
    let handshake = timeouts.handshake.bound().unwrap_or(Duration::MAX);
    // The handshake needs control streams, which a client may withhold.
    let transport = Transport::new(quic.clone(), facts.clone());
    let mut connection = match timeout(handshake, builder.build::<_, Bytes>(transport)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return blame(&info, &facts, &error),
        Err(_) => return Some(RejectReason::Silent),
    };
    let shared = Rc::new(Connection {
        handle: handle.clone(),
        info: info.clone(),
        facts: facts.clone(),
        resets: ResetLimiter::new(config.trusted_hops > 0),
        in_flight: Cell::new(0),
    });
    let mut drained = std::pin::pin!(handle.drained());
    let retires = timeouts.connection_age.bound().map(|age| Instant::now() + age);
    let most = limits.requests_per_connection;
    let mut draining = false;
    let mut phase = Phase::Open;
    loop {
        let idle = shared.in_flight.get() == 0;
        let now = Instant::now();
        let due = match phase {
            Phase::Open => {
                let since = Instant::from_std(info.idle_since.get());
                let idle = timeouts.keep_alive.bound().filter(|_| idle).map(|limit| since + limit);
                idle.into_iter().chain(retires).min()
            }
            Phase::Announced(until) => Some(until),
            Phase::Closing(until) => idle.then_some(until),
        };
        let full = most != 0 && info.requests.get() >= most;
        match phase {
            Phase::Open if draining || full || due.is_some_and(|due| due <= now) => {
                phase = Phase::Announced(now + GRACE);
                if facts.is_new() {
                    // h3's GOAWAY says that not even the first request is accepted.
                    facts.refuse_more();
                }
                // A client that does not even read the GOAWAY gets no graceful shutdown.
                if !matches!(timeout(GRACE, connection.shutdown(usize::MAX)).await, Ok(Ok(()))) {
                    return None;
                }
                continue;
            }
            Phase::Announced(until) if until <= now => {
                phase = Phase::Closing(now + GRACE);
                facts.refuse_more();
                if !matches!(timeout(GRACE, connection.shutdown(1)).await, Ok(Ok(()))) {
                    return None;
                }
                continue;
            }
            Phase::Closing(until) if idle && until <= now => {
                linger(quic).await;
                return None;
            }
            _ => {}
        }
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Ok(Some(resolver)) => {
                    info.requests.set(info.requests.get() + 1);
                    let watch = facts.latest()?;
                    request::spawn(shared.clone(), watch, resolver);
                }
                // The client has announced that it will send no more requests; wait until it has all responses.
                Ok(None) => {
                    while shared.in_flight.get() > 0 {
                        facts.changed.notified().await;
                    }
                    linger(quic).await;
                    return None;
                }
                Err(error) => return blame(&info, &facts, &error),
            },
            () = &mut drained, if !draining => draining = true,
            () = facts.changed.notified() => {}
            () = timer => {}
        }
        if let Some(violation) = facts.violation() {
            tracing::debug!(target: target::DOWNSTREAM, peer = %info.peer, "HTTP/3: {violation}");
            return Some(refusal(violation));
        }
        if shared.resets.are_too_many() {
            quic.close(code(Code::H3_EXCESSIVE_LOAD), b"");
            return Some(RejectReason::Flood);
        }
    }
}

/// Returns the reject reason for a violation.
fn refusal(violation: FrameViolation) -> RejectReason {
    if violation == FrameViolation::Flood { RejectReason::Flood } else { RejectReason::Http3 }
}

/// Returns a reason if the client violated the protocol, rather than just losing the connection.
fn blame(info: &ConnectionInfo, facts: &ConnectionFacts, error: &ConnectionError) -> Option<RejectReason> {
    tracing::debug!(target: target::DOWNSTREAM, peer = %info.peer, %error, "connection ended");
    // A violation found by h3, not a close initiated here.
    let found = matches!(error, ConnectionError::Local { .. }) && !error.is_h3_no_error();
    facts.violation().map(refusal).or(found.then_some(RejectReason::Http3))
}
