//! The start of a client's connection: reads the PROXY protocol header, performs the TLS handshake and detects the
//! protocol.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::AsyncRead,
    time::{sleep, timeout},
};
use tokio_rustls::TlsStream;

use super::{
    chains::{ActiveChain, ActiveChains, ConnectionFacts},
    client_hello::{Hello, MAX_HELLO, client_hello},
    clients::ClientGuard,
    sniff::{PREFACE, Sniffed, sniff},
    socket::original_destination,
};
use crate::{
    chain::stream::ConnectionInfo,
    config::model::{ListenerProxyProtocol, Protocol, TlsMode},
    downstream::connection::ListenerHandle,
    exchange::{ListenerContext, Overload, RejectReason, RejectedConnection},
    net::{
        FirstBytes, Prefixed, Socket, Stream, is_tls,
        proxy_protocol::{self, Addresses, Parsed},
    },
    tcp,
    tls::{self, ConnectionTls, HandshakeError, Peer, PeerError, ServerTls},
};

/// The size of the first reads, in bytes. A client's first flight is nearly always shorter.
const LOOK: usize = 2 << 10;

/// The detected protocol of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ConnectionProtocol {
    H1,
    H2,
    /// Opaque bytes, with the server name if they are TLS that is passed through.
    Tcp(Option<Box<str>>),
}

/// Serves a connection until it ends.
pub async fn serve(
    chains: Rc<ActiveChains>,
    socket: Socket,
    (peer, local): (SocketAddr, SocketAddr),
    guard: &ClientGuard,
) {
    // Boxed, so that the connection's task does not hold the space for its whole life.
    let opened = Box::pin(begin(&chains, socket, peer, local)).await;
    let Opened { chain, stream, info, protocol } = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(refused) => {
            let protocol = if refused.cause.is_some() { "TLS" } else { "TCP" };
            return chains.first().handle.context().reject(peer, protocol, &refused);
        }
    };
    drop(chains);
    let handle = chain.handle.clone();
    let info = Rc::new(info);
    match protocol {
        ConnectionProtocol::H1 | ConnectionProtocol::H2 => guard.serves_http(&info),
        ConnectionProtocol::Tcp(_) => guard.works(),
    }
    match protocol {
        ConnectionProtocol::H1 => crate::downstream::h1::serve(handle, stream, info).await,
        ConnectionProtocol::H2 => Box::pin(crate::downstream::h2::serve(handle, stream, info)).await,
        ConnectionProtocol::Tcp(name) => {
            let ctx = chain.tcp.borrow().clone();
            let Some(ctx) = ctx else {
                let why = "the client does not speak HTTP, and the listener accepts no other protocol".to_owned();
                return handle.context().reject(
                    info.peer,
                    "TCP",
                    &RejectedConnection::new(RejectReason::Protocol, why),
                );
            };
            if handle.context().overload.as_ref().is_some_and(Overload::sheds) {
                let why = "the proxy is overloaded (`overload`)".to_owned();
                return handle.context().reject(
                    info.peer,
                    "TCP",
                    &RejectedConnection::new(RejectReason::Overload, why),
                );
            }
            let (first, stream) = stream.into_parts();
            let sni = info.tls.as_ref().and_then(|tls| tls.server_name.clone());
            Box::pin(tcp::serve(ctx, stream, info, first, name.or(sni).as_deref())).await;
        }
    }
}

pub(super) struct Opened {
    pub(super) chain: Rc<ActiveChain>,
    stream: Stream,
    info: ConnectionInfo,
    protocol: ConnectionProtocol,
}

/// Determines everything that is needed before serving. `None` if the client disconnected or sent nothing.
pub(super) async fn begin(
    chains: &ActiveChains,
    socket: Socket,
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<Option<Opened>, RejectedConnection> {
    let first = chains.first();
    let rules = first.handle.context();
    let config = &rules.config;
    let limit = config.timeouts.handshake.bound().unwrap_or(Duration::MAX);
    let mut ends = Addresses { source: peer, destination: local };
    if config.socket.original_destination
        && let Some(original) = original_destination(&socket)
    {
        ends.destination = original;
    }
    let mut stream = Prefixed::new(Bytes::new(), socket);
    if let Some(rules) = &config.proxy_protocol
        && rules.trusted.iter().any(|range| range.contains(peer.ip()))
    {
        let late = || format!("the PROXY protocol header was not received within {limit:?} (`timeouts.handshake`)");
        let header = timeout(limit, proxy_header(&mut stream, rules)).await;
        let header = header.map_err(|_| RejectedConnection::new(RejectReason::Silent, late()))?;
        ends = header?.unwrap_or(ends);
    }
    let chain = match first.matches.is_any() {
        true => first,
        false => match timeout(limit, facts(&mut stream)).await {
            Ok(Ok(None) | Err(_)) => return Ok(None),
            Ok(Ok(Some(facts))) => choose(chains, &facts)?,
            // A client that waits for the server to speak first does not speak TLS.
            Err(_) => choose(chains, &ConnectionFacts::default())?,
        },
    };
    let ctx = &*chain.handle.context();
    let info = ConnectionInfo::new(ctx.name.clone(), ends.source, ends.destination);
    let tls = ctx.tls.as_ref();
    let first = match (config.protocol, tls.is_some() && !may_be_plain(ctx)) {
        // The protocol is configured: there is nothing to detect.
        (_, true) => Sniffed::Tls,
        (Protocol::Http1, false) if tls.is_none() => Sniffed::Http1,
        (Protocol::Http2, false) if tls.is_none() => Sniffed::Http2,
        (Protocol::Tcp, false) if tls.is_none() => Sniffed::Other,
        (protocol, false) => {
            let first = first_bytes(&chain.handle, ctx, &mut stream, protocol == Protocol::Auto).await?;
            let Some(first) = first else { return Ok(None) };
            first
        }
    };
    match (first, tls) {
        (Sniffed::Tls, Some(tls)) => match timeout(limit, handshake_with(tls, stream)).await {
            Ok(result) => match result? {
                Some((stream, facts)) => under_tls(chain.clone(), ctx, stream, facts, info).await,
                None => Ok(None),
            },
            Err(_) => {
                let why = format!("the TLS handshake did not complete within {limit:?} (`timeouts.handshake`)");
                Err(RejectedConnection {
                    refusal: RejectReason::Silent,
                    ..RejectedConnection::handshake(HandshakeError::Timeout, why)
                })
            }
        },
        (first, _) => {
            let protocol = match (config.protocol, first) {
                (Protocol::Http, Sniffed::Http2) | (Protocol::Http2, _) | (Protocol::Auto, Sniffed::Http2) => {
                    ConnectionProtocol::H2
                }
                (Protocol::Http | Protocol::Http1, _) | (Protocol::Auto, Sniffed::Http1) => ConnectionProtocol::H1,
                (Protocol::Tcp | Protocol::Auto, _) if config.tcp.sni.is_empty() => ConnectionProtocol::Tcp(None),
                (Protocol::Tcp | Protocol::Auto, _) => {
                    // A client that waits for the server to speak first does not speak TLS.
                    let name = timeout(limit, requested_name(&mut stream)).await;
                    ConnectionProtocol::Tcp(name.unwrap_or(Ok(None)).unwrap_or(None))
                }
            };
            Ok(Some(Opened { chain: chain.clone(), stream: Stream::Plain(stream), info, protocol }))
        }
    }
}

/// Returns whether clients of a listener with TLS may connect without it. `protocol: auto` does not allow it: it
/// detects the protocol inside TLS, and a client that could skip TLS could also skip the required client certificate.
fn may_be_plain(ctx: &ListenerContext) -> bool {
    ctx.config.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Permissive)
}

/// Returns the chain that serves a connection.
fn choose(chains: &ActiveChains, facts: &ConnectionFacts) -> Result<Rc<ActiveChain>, RejectedConnection> {
    chains.choose(facts).ok_or_else(|| {
        let why = format!("no filter chain of the listener matches the connection ({facts})");
        RejectedConnection::new(RejectReason::Protocol, why)
    })
}

/// Determines what filter chains match on, without consuming it. `None` if the client disconnected or sent nothing.
async fn facts(stream: &mut Prefixed<Socket>) -> io::Result<Option<ConnectionFacts>> {
    if stream.seen().is_empty() && !stream.look(LOOK).await? {
        return Ok(None);
    }
    let is_tls = is_tls(stream.seen());
    let server_name = if is_tls { requested_name(stream).await? } else { None };
    Ok(Some(ConnectionFacts { is_tls, server_name }))
}

/// Reads the PROXY protocol header. `None` if it states no addresses, or is absent and not required.
async fn proxy_header(
    stream: &mut Prefixed<Socket>,
    rules: &ListenerProxyProtocol,
) -> Result<Option<Addresses>, RejectedConnection> {
    let refused = |why| RejectedConnection::new(RejectReason::ProxyProtocol, why);
    loop {
        match proxy_protocol::parse(stream.seen()) {
            Parsed::Header(header) => {
                let (length, addresses) = (header.length, header.addresses);
                stream.skip(length);
                return Ok(addresses);
            }
            Parsed::NotProxy if !rules.required => return Ok(None),
            Parsed::NotProxy => {
                let first = FirstBytes::of(stream.seen());
                return Err(refused(format!("no PROXY protocol header, which is `required`: {first}")));
            }
            Parsed::Invalid(why) => return Err(refused(format!("invalid PROXY protocol header: {why}"))),
            Parsed::NeedMore => {
                let limit = stream.seen().len() + LOOK;
                if !stream.look(limit).await.unwrap_or(false) {
                    let why = match stream.seen() {
                        // A port scanner sends nothing.
                        [] => String::new(),
                        _ => "the client closed the connection within the PROXY protocol header".to_owned(),
                    };
                    return Err(refused(why));
                }
            }
        }
    }
}

/// Reads the first bytes until they determine the protocol. HTTP clients may take as long as before another request
/// on a kept-alive connection; if the server may have to speak first (`speaks_later`), a silent client is not HTTP.
async fn first_bytes<T: AsyncRead + Unpin>(
    handle: &ListenerHandle,
    ctx: &ListenerContext,
    stream: &mut Prefixed<T>,
    speaks_later: bool,
) -> Result<Option<Sniffed>, RejectedConnection> {
    let timeouts = &ctx.config.timeouts;
    let handshake = timeouts.handshake.bound().unwrap_or(Duration::MAX);
    if stream.seen().is_empty() {
        let first = async {
            tokio::select! {
                looked = stream.look(LOOK) => looked,
                // A request may be in flight; see `downstream::h1`.
                () = async { handle.drained().await; sleep(crate::downstream::h1::DRAIN_GRACE).await } => Ok(false),
            }
        };
        let keep_alive = timeouts.keep_alive.bound().unwrap_or(Duration::MAX);
        match timeout(if speaks_later { handshake } else { keep_alive }, first).await {
            Ok(Ok(true)) => {}
            Err(_) if speaks_later => return Ok(Some(Sniffed::Other)),
            // As on a kept-alive connection, this is not an error.
            Ok(Ok(false) | Err(_)) | Err(_) => return Ok(None),
        }
    }
    let rest = async {
        loop {
            match sniff(stream.seen()) {
                // What can no longer become HTTP/2 or TLS is left to the HTTP/1.1 parser if nothing else is possible:
                // it responds to anything.
                Sniffed::NeedMore if !speaks_later && !may_be_other(stream.seen()) => return Ok(Sniffed::Http1),
                Sniffed::NeedMore => {}
                sniffed => return Ok(sniffed),
            }
            let limit = stream.seen().len() + LOOK;
            if !stream.look(limit).await? {
                return Ok::<_, io::Error>(if speaks_later { Sniffed::Other } else { Sniffed::Http1 });
            }
        }
    };
    match timeout(handshake, rest).await {
        Ok(Ok(sniffed)) => Ok(Some(sniffed)),
        Ok(Err(_)) => Ok(None),
        Err(_) => Ok(Some(if speaks_later { Sniffed::Other } else { Sniffed::Http1 })),
    }
}

/// Returns whether the bytes can still become TLS or HTTP/2.
fn may_be_other(seen: &[u8]) -> bool {
    PREFACE.starts_with(seen) || [22, 3].starts_with(seen)
}

/// Returns the server name in a ClientHello, without consuming it.
async fn requested_name(stream: &mut Prefixed<Socket>) -> io::Result<Option<Box<str>>> {
    loop {
        match client_hello(stream.seen()) {
            Hello::Client(hello) => return Ok(hello.server_name),
            Hello::Invalid => return Ok(None),
            Hello::NeedMore => {
                let limit = (stream.seen().len() + LOOK).min(MAX_HELLO + 1);
                if stream.seen().len() > MAX_HELLO || !stream.look(limit).await? {
                    return Ok(None);
                }
            }
        }
    }
}

/// TLS on a client's socket, with the first decrypted bytes buffered.
type TlsClientStream = Box<Prefixed<TlsStream<Prefixed<Socket>>>>;

/// Performs the TLS handshake. `None` if the client disconnected without sending anything.
async fn handshake_with(
    tls: &ServerTls,
    mut stream: Prefixed<Socket>,
) -> Result<Option<(TlsClientStream, ConnectionTls)>, RejectedConnection> {
    // Peeked first, so that bytes that are not TLS can be reported.
    if stream.seen().is_empty() && !stream.look(LOOK).await.unwrap_or(false) {
        return Ok(None);
    }
    let first = stream.seen_bytes();
    let stream = tls.acceptor().accept(stream).await.map_err(|error| handshake_error(tls, &first, &error))?;
    drop(first);
    let facts = tls.connection(stream.get_ref().1).map_err(|error| {
        let cause =
            if matches!(error, PeerError::Expired(_)) { HandshakeError::Expired } else { HandshakeError::Certificate };
        RejectedConnection::handshake(cause, error.to_string())
    })?;
    Ok(Some((Box::new(Prefixed::new(Bytes::new(), TlsStream::Server(stream))), facts)))
}

/// Detects the protocol inside TLS. `None` if the client disconnected without sending anything.
async fn under_tls(
    chain: Rc<ActiveChain>,
    ctx: &ListenerContext,
    mut stream: TlsClientStream,
    facts: ConnectionTls,
    info: ConnectionInfo,
) -> Result<Option<Opened>, RejectedConnection> {
    let protocol = match (facts.alpn.as_deref(), ctx.config.protocol) {
        (_, Protocol::Tcp) => ConnectionProtocol::Tcp(None),
        (Some(b"h2"), _) | (None, Protocol::Http2) => ConnectionProtocol::H2,
        (Some(_), _) | (None, Protocol::Http1) => ConnectionProtocol::H1,
        (None, protocol) => {
            // Without ALPN the protocol is detected as without TLS.
            let first = first_bytes(&chain.handle, ctx, &mut *stream, protocol == Protocol::Auto).await?;
            let Some(first) = first else { return Ok(None) };
            match (first, protocol) {
                (Sniffed::Http2, _) => ConnectionProtocol::H2,
                (Sniffed::Http1, _) | (_, Protocol::Http) => ConnectionProtocol::H1,
                _ => ConnectionProtocol::Tcp(None),
            }
        }
    };
    let info = info.with_tls(Some(Rc::new(facts)));
    Ok(Some(Opened { chain, stream: Stream::Tls(stream), info, protocol }))
}

/// Explains a failed handshake, given the client's first bytes.
#[cold]
fn handshake_error(tls: &ServerTls, first: &[u8], error: &io::Error) -> RejectedConnection {
    if !is_tls(first) {
        let (cause, what) = match sniff(first) {
            Sniffed::Http1 | Sniffed::Http2 => (HandshakeError::PlainHttp, "speaks HTTP without TLS"),
            _ => (HandshakeError::NotTls, "does not speak TLS"),
        };
        return RejectedConnection::handshake(cause, format!("the client {what}: {}", FirstBytes::of(first)));
    }
    let (cause, mut why) = tls::explain(error, Peer::Client);
    let Hello::Client(hello) = client_hello(first) else { return RejectedConnection::handshake(cause, why) };
    // The TLS library may report a missing extension of newer versions first.
    let old = match hello.version {
        0x0300 => Some("SSL 3.0"),
        0x0301 => Some("TLS 1.0"),
        0x0302 => Some("TLS 1.1"),
        _ => None,
    };
    if let Some(old) = old {
        let why = format!("the client supports no TLS version that `min_version` allows: at most {old}");
        return RejectedConnection::handshake(HandshakeError::Version, why);
    }
    if cause == HandshakeError::Alpn {
        let names = |names: &mut dyn Iterator<Item = &[u8]>| {
            names.map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>().join(", ")
        };
        let theirs = names(&mut hello.alpn());
        let ours = names(&mut tls.config().alpn_protocols.iter().map(Vec::as_slice));
        why = format!("no common protocol (ALPN): the client offers {theirs}, the listener supports {ours}");
    }
    RejectedConnection::handshake(cause, why)
}
