//! HTTP/3 on a worker's listener: the UDP socket, QUIC (RFC 9000) with quinn, and the start of connections.
//!
//! quinn's own tasks run on the worker's thread, next to the worker's tasks.

use std::{cell::Cell, io, net::UdpSocket, rc::Rc, sync::Arc, time::Duration};

use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, ServerConfig, TransportConfig, VarInt,
    crypto::{HandshakeTokenKey, rustls::QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use tokio::{sync::watch, time::timeout};

use super::{
    count::{ConnectionCount, ConnectionGuard, full},
    socket::ListenerShared,
};
use crate::{
    chain::stream::ConnectionInfo,
    config::model::Listener,
    downstream::{connection::ListenerHandle, h3},
    exchange::{ListenerContext, RejectReason, RejectedConnection},
    observe::target,
    tls::{ConnectionTls, HandshakeError, Peer, PeerError, ServerTls, cause_of_alert, explain_alert},
};

/// The number of active handshakes from which clients must first prove their address (Retry, RFC 9000 section 8.1.2),
/// so that spoofed addresses cost no more than this many handshakes.
const VALIDATE_FROM: u32 = 64;

/// The limit on active handshakes of a socket.
const MOST_HANDSHAKES: u32 = 1024;

/// The limit on first datagrams waiting to be processed.
const MOST_INCOMING: usize = 1024;

/// The limit on further datagrams buffered after each of these, in bytes.
const INCOMING_BUFFER: u64 = 16 << 10;

/// The limit on a client's unidirectional streams: three are used (RFC 9114 section 6.2), others are rejected.
const ONE_WAY_STREAMS: u32 = 8;

/// The limit on unacknowledged response bytes of a connection.
const SEND_WINDOW: u64 = 4 << 20;

/// HTTP/3 on one address.
pub struct Quic {
    endpoint: Endpoint,
    handle: Rc<ListenerHandle>,
    /// The key for validating clients' addresses. It survives reloads, because clients may be using a token.
    token_key: Arc<dyn HandshakeTokenKey>,
    stop: watch::Sender<bool>,
}

impl Quic {
    /// Accepts connections on a socket.
    pub(crate) fn listen(
        socket: UdpSocket,
        ctx: Rc<ListenerContext>,
        shared: Arc<ListenerShared>,
        connections: Rc<ConnectionCount>,
    ) -> io::Result<Quic> {
        let mut secret = [0; 64];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let token_key = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(&secret);
        let token_key: Arc<dyn HandshakeTokenKey> = Arc::new(token_key);
        let config = server_config(&ctx, &token_key)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime)?;
        let handle = Rc::new(ListenerHandle::new(ctx));
        let (stop, stopped) = watch::channel(false);
        let acceptor = QuicAcceptor {
            endpoint: endpoint.clone(),
            handle: handle.clone(),
            shared,
            connections,
            handshakes: Rc::default(),
        };
        tokio::task::spawn_local(acceptor.accept(stopped));
        Ok(Quic { endpoint, handle, token_key, stop })
    }

    /// Replaces the rules for subsequent requests and handshakes.
    pub fn set_site(&self, ctx: Rc<ListenerContext>) {
        match server_config(&ctx, &self.token_key) {
            Ok(config) => self.endpoint.set_server_config(Some(config)),
            Err(e) => tracing::error!(
                target: target::LISTENER,
                listener = &*ctx.name, "HTTP/3 keeps its previous certificates: {e}"
            ),
        }
        self.handle.set_context(ctx);
    }

    /// Stops accepting connections and drains existing ones. The socket is closed when the last one has ended.
    pub fn end(self) {
        let _ = self.stop.send(true);
        self.endpoint.set_server_config(None);
        self.handle.drain();
    }
}

/// Builds the server configuration.
fn server_config(ctx: &ListenerContext, token_key: &Arc<dyn HandshakeTokenKey>) -> io::Result<ServerConfig> {
    let tls = ctx.tls.as_ref().ok_or_else(|| io::Error::other("TLS is not configured"))?;
    let crypto = QuicServerConfig::try_from(tls.quic_config(&[h3::ALPN])).map_err(io::Error::other)?;
    let mut config = ServerConfig::new(Arc::new(crypto), token_key.clone());
    config
        .transport_config(Arc::new(transport(&ctx.config)))
        // The kernel selects a worker by the client's address; from another address, another worker would get the
        // datagrams.
        .migration(false)
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER * 64);
    Ok(config)
}

fn transport(config: &Listener) -> TransportConfig {
    let (http2, timeouts) = (&config.http2, &config.timeouts);
    let number = |number: u64| VarInt::from_u64(number).unwrap_or(VarInt::MAX);
    // Clients that answer pings may otherwise be silent. Without pings, only this timeout detects a lost client.
    let silence = match http2.ping_clients() {
        Some(interval) => Some(interval.saturating_add(http2.ping_timeout.0)),
        None => timeouts.keep_alive.bound().zip(timeouts.idle.bound()).map(|(a, b)| a.max(b)),
    };
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(http2.max_concurrent_streams.into())
        .max_concurrent_uni_streams(ONE_WAY_STREAMS.into())
        .stream_receive_window(number(http2.stream_window.0))
        .receive_window(number(http2.connection_window.0))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(http2.ping_clients())
        .max_idle_timeout(silence.and_then(|silence| IdleTimeout::try_from(silence).ok()));
    transport
}

/// Accepts connections.
struct QuicAcceptor {
    endpoint: Endpoint,
    handle: Rc<ListenerHandle>,
    shared: Arc<ListenerShared>,
    connections: Rc<ConnectionCount>,
    handshakes: Rc<Cell<u32>>,
}

/// An active handshake; counted until it is dropped.
struct Handshake(Rc<Cell<u32>>);

impl Handshake {
    fn begin(all: &Rc<Cell<u32>>) -> Handshake {
        all.set(all.get() + 1);
        Handshake(all.clone())
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl QuicAcceptor {
    async fn accept(self, mut stopped: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => break,
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.take(incoming),
                    None => break,
                },
            }
        }
    }

    fn take(&self, incoming: Incoming) {
        let (ctx, peer) = (self.handle.context(), incoming.remote_address());
        let active = self.handshakes.get();
        if active >= VALIDATE_FROM && !incoming.remote_address_validated() {
            // A client without a validated address can be asked to retry.
            let _ = incoming.retry();
            return;
        }
        let permit = if active < MOST_HANDSHAKES { self.shared.enter() } else { None };
        let Some(permit) = permit else {
            ctx.reject(peer, "QUIC", &full());
            return incoming.refuse();
        };
        let handshake = Handshake::begin(&self.handshakes);
        let connected = ConnectionGuard::begin(&self.connections, &ctx, permit);
        let (endpoint, handle) = (self.endpoint.clone(), self.handle.clone());
        tokio::task::spawn_local(async move {
            let begun = begin(&endpoint, &ctx, incoming).await;
            drop((endpoint, handshake));
            match begun {
                Ok((quic, info)) => {
                    drop(ctx);
                    h3::serve(handle, quic, Rc::new(info)).await;
                }
                Err(refused) => ctx.reject(peer, "QUIC", &refused),
            }
            drop(connected);
        });
    }
}

/// Performs the handshake.
async fn begin(
    endpoint: &Endpoint,
    ctx: &ListenerContext,
    incoming: Incoming,
) -> Result<(quinn::Connection, ConnectionInfo), RejectedConnection> {
    let failed =
        |error: &dyn std::error::Error| RejectedConnection::handshake(HandshakeError::Other, error.to_string());
    let limit = ctx.config.timeouts.handshake.bound().unwrap_or(Duration::MAX);
    let connecting = incoming.accept().map_err(|error| failed(&error))?;
    let quic = match timeout(limit, connecting).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => {
            let why = format!("the handshake did not complete within {limit:?} (`timeouts.handshake`)");
            return Err(RejectedConnection {
                refusal: RejectReason::Silent,
                ..RejectedConnection::handshake(HandshakeError::Timeout, why)
            });
        }
        Ok(Err(error)) => return Err(handshake_error(&error)),
    };
    let tls = ctx.tls.as_ref().ok_or(RejectReason::Handshake)?;
    let facts = facts(tls, &quic).map_err(|error| {
        let cause =
            if matches!(error, PeerError::Expired(_)) { HandshakeError::Expired } else { HandshakeError::Certificate };
        RejectedConnection::handshake(cause, error.to_string())
    })?;
    let mut local = endpoint.local_addr().map_err(|error| failed(&error))?;
    if let Some(ip) = quic.local_ip() {
        local.set_ip(ip);
    }
    let info = ConnectionInfo::new(ctx.name.clone(), quic.remote_address(), local);
    Ok((quic, info.with_tls(Some(Rc::new(facts)))))
}

/// Explains a failed handshake. TLS in QUIC reports alerts as codes (RFC 9001 section 4.8).
fn handshake_error(error: &quinn::ConnectionError) -> RejectedConnection {
    let alert = |code: quinn::TransportErrorCode| u8::try_from(u64::from(code).checked_sub(0x100)?).ok();
    let (cause, why) = match error {
        quinn::ConnectionError::TransportError(error) => match alert(error.code) {
            Some(alert) => (cause_of_alert(alert), error.reason.clone()),
            None => (HandshakeError::Other, error.to_string()),
        },
        quinn::ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(alert) => (HandshakeError::Alert, explain_alert(alert, Peer::Client)),
            None => (HandshakeError::Closed, error.to_string()),
        },
        quinn::ConnectionError::VersionMismatch => (HandshakeError::Version, error.to_string()),
        quinn::ConnectionError::ApplicationClosed(_) | quinn::ConnectionError::Reset => {
            (HandshakeError::Closed, error.to_string())
        }
        error => (HandshakeError::Other, error.to_string()),
    };
    RejectedConnection::handshake(cause, why)
}

/// Returns the facts about a connection after its handshake. quinn does not reveal the cipher suite.
fn facts(tls: &ServerTls, quic: &quinn::Connection) -> Result<ConnectionTls, PeerError> {
    let data = quic.handshake_data().and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let (alpn, name) = data.map_or((None, None), |data| (data.protocol, data.server_name));
    let chain = quic.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = chain.map_or_else(Vec::new, |chain| *chain);
    let local = tls.local(name.as_deref());
    ConnectionTls::new(("TLSv1.3", ""), name.as_deref(), alpn.map(Box::from), &chain, local)
}
