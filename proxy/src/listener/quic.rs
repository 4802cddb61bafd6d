//! HTTP/3's side of a listener on a worker: the socket for datagrams, QUIC (RFC 9000) by quinn, and connections' first moments.
//!
//! quinn's own tasks run beside the worker's on the same thread, as any that are spawned on its runtime.

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

/// Handshakes under way on a socket, from which on a client must first show that it is where it says it is (Retry, RFC 9000
/// section 8.1.2): so who sends under many false addresses costs no more than so many of them.
const VALIDATE_FROM: u32 = 64;

/// Handshakes under way on a socket, at most.
const MOST_HANDSHAKES: u32 = 1024;

/// First datagrams that wait to be looked at, at most.
const MOST_INCOMING: usize = 1024;

/// Bytes of datagrams that follow one of these, at most.
const INCOMING_BUFFER: u64 = 16 << 10;

/// Streams in one direction that a client may have: three are in use (RFC 9114 section 6.2), others come to be refused.
const ONE_WAY_STREAMS: u32 = 8;

/// Bytes of responses on a connection that its client has not acknowledged, at most.
const SEND_WINDOW: u64 = 4 << 20;

/// HTTP/3 on one address.
pub struct Quic {
    endpoint: Endpoint,
    handle: Rc<ListenerHandle>,
    /// With which clients' addresses are validated. It stays the same, so that clients may be under way with that.
    token_key: Arc<dyn HandshakeTokenKey>,
    stop: watch::Sender<bool>,
}

impl Quic {
    /// Takes connections on a socket.
    pub(crate) fn listen(
        socket: UdpSocket,
        site: Rc<ListenerContext>,
        shared: Arc<ListenerShared>,
        connections: Rc<ConnectionCount>,
    ) -> io::Result<Quic> {
        let mut secret = [0; 64];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let token_key = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(&secret);
        let token_key: Arc<dyn HandshakeTokenKey> = Arc::new(token_key);
        let config = server_config(&site, &token_key)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime)?;
        let handle = Rc::new(ListenerHandle::new(site));
        let (stop, stopped) = watch::channel(false);
        let arrivals = QuicAcceptor {
            endpoint: endpoint.clone(),
            handle: handle.clone(),
            shared,
            connections,
            handshakes: Rc::default(),
        };
        tokio::task::spawn_local(arrivals.accept(stopped));
        Ok(Quic { endpoint, handle, token_key, stop })
    }

    /// Requests and handshakes from now on go by these rules.
    pub fn set_site(&self, site: Rc<ListenerContext>) {
        match server_config(&site, &self.token_key) {
            Ok(config) => self.endpoint.set_server_config(Some(config)),
            Err(e) => tracing::error!(
                target: target::LISTENER,
                listener = &*site.name, "HTTP/3 keeps its certificates: {e}"
            ),
        }
        self.handle.set_site(site);
    }

    /// Takes no more connections, and lets those there are end. The socket is closed when the last one has.
    pub fn end(self) {
        let _ = self.stop.send(true);
        self.endpoint.set_server_config(None);
        self.handle.drain();
    }
}

/// How connections are made by these rules.
fn server_config(site: &ListenerContext, token_key: &Arc<dyn HandshakeTokenKey>) -> io::Result<ServerConfig> {
    let tls = site.tls.as_ref().ok_or_else(|| io::Error::other("there is no TLS"))?;
    let crypto = QuicServerConfig::try_from(tls.quic_config(&[h3::ALPN])).map_err(io::Error::other)?;
    let mut config = ServerConfig::new(Arc::new(crypto), token_key.clone());
    config
        .transport_config(Arc::new(transport(&site.config)))
        // The system gives a client's datagrams to a worker by its address; at another one nobody knows the connection.
        .migration(false)
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER * 64);
    Ok(config)
}

fn transport(config: &Listener) -> TransportConfig {
    let (http2, timeouts) = (&config.http2, &config.timeouts);
    let number = |number: u64| VarInt::from_u64(number).unwrap_or(VarInt::MAX);
    // Who answers pings may be silent otherwise. Nobody else is told that a client has gone.
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

/// What takes connections.
struct QuicAcceptor {
    endpoint: Endpoint,
    handle: Rc<ListenerHandle>,
    shared: Arc<ListenerShared>,
    connections: Rc<ConnectionCount>,
    handshakes: Rc<Cell<u32>>,
}

/// A handshake under way; dropping it ends that.
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
        let (site, peer) = (self.handle.site(), incoming.remote_address());
        let under_way = self.handshakes.get();
        if under_way >= VALIDATE_FROM && !incoming.remote_address_validated() {
            // Who has not been validated can be asked to.
            let _ = incoming.retry();
            return;
        }
        let place = if under_way < MOST_HANDSHAKES { self.shared.enter() } else { None };
        let Some(place) = place else {
            site.reject(peer, "QUIC", &full());
            return incoming.refuse();
        };
        let handshake = Handshake::begin(&self.handshakes);
        let connected = ConnectionGuard::begin(&self.connections, &site, place);
        let (endpoint, handle) = (self.endpoint.clone(), self.handle.clone());
        tokio::task::spawn_local(async move {
            let begun = begin(&endpoint, &site, incoming).await;
            drop((endpoint, handshake));
            match begun {
                Ok((quic, info)) => {
                    drop(site);
                    h3::serve(handle, quic, Rc::new(info)).await;
                }
                Err(refused) => site.reject(peer, "QUIC", &refused),
            }
            drop(connected);
        });
    }
}

/// Shakes hands.
async fn begin(
    endpoint: &Endpoint,
    site: &ListenerContext,
    incoming: Incoming,
) -> Result<(quinn::Connection, ConnectionInfo), RejectedConnection> {
    let failed =
        |error: &dyn std::error::Error| RejectedConnection::handshake(HandshakeError::Other, error.to_string());
    let limit = site.config.timeouts.handshake.bound().unwrap_or(Duration::MAX);
    let connecting = incoming.accept().map_err(|error| failed(&error))?;
    let quic = match timeout(limit, connecting).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => {
            let why = format!("the handshake was not over within {limit:?} (`timeouts.handshake`)");
            return Err(RejectedConnection {
                refusal: RejectReason::Silent,
                ..RejectedConnection::handshake(HandshakeError::Timeout, why)
            });
        }
        Ok(Err(error)) => return Err(refused(&error)),
    };
    let tls = site.tls.as_ref().ok_or(RejectReason::Handshake)?;
    let facts = facts(tls, &quic).map_err(|error| {
        let cause =
            if matches!(error, PeerError::Expired(_)) { HandshakeError::Expired } else { HandshakeError::Certificate };
        RejectedConnection::handshake(cause, error.to_string())
    })?;
    let mut local = endpoint.local_addr().map_err(|error| failed(&error))?;
    if let Some(ip) = quic.local_ip() {
        local.set_ip(ip);
    }
    let info = ConnectionInfo::new(site.name.clone(), quic.remote_address(), local);
    Ok((quic, info.with_tls(Some(Rc::new(facts)))))
}

/// Why a handshake has failed. TLS inside of QUIC reports its alerts as codes (RFC 9001 section 4.8).
fn refused(error: &quinn::ConnectionError) -> RejectedConnection {
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

/// What is known of a connection whose handshake is over. quinn does not tell the cipher suite.
fn facts(tls: &ServerTls, quic: &quinn::Connection) -> Result<ConnectionTls, PeerError> {
    let data = quic.handshake_data().and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let (alpn, name) = data.map_or((None, None), |data| (data.protocol, data.server_name));
    let chain = quic.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = chain.map_or_else(Vec::new, |chain| *chain);
    let local = tls.local(name.as_deref());
    ConnectionTls::new(("TLSv1.3", ""), name.as_deref(), alpn.map(Box::from), &chain, local)
}
