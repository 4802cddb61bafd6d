//! A connection's first moments: who is at its other end, whether it is under TLS, and what is spoken on it.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::AsyncRead,
    time::{sleep, timeout},
};
use tokio_rustls::TlsStream;

use super::{
    client_hello::{Hello, MAX_HELLO, client_hello},
    clients::ClientGuard,
    sniff::{PREFACE, Sniffed, sniff},
    socket::original_destination,
};
use crate::{
    chain::stream::ConnectionInfo,
    config::model::{ListenerProxyProtocol, Protocol, TlsMode},
    downstream::connection::ListenerHandle,
    exchange::{ListenerContext, RejectReason, RejectedConnection},
    net::{
        FirstBytes, Prefixed, Socket, Stream, is_tls,
        proxy_protocol::{self, Addresses, Parsed},
    },
    tcp::{self, TcpListenerContext},
    tls::{self, ConnectionTls, HandshakeError, Peer, PeerError, ServerTls},
};

/// Bytes that are looked at first. What a client sends first is nearly always shorter.
const LOOK: usize = 2 << 10;

/// What is spoken on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ConnectionProtocol {
    H1,
    H2,
    /// Nothing that is looked into; TLS that is passed through may ask for a name.
    Tcp(Option<Box<str>>),
}

/// The rules in force for TCP connections; none if the listener takes none.
pub type TcpRules = RefCell<Option<Rc<TcpListenerContext>>>;

/// Serves a connection until it ends.
pub async fn serve(
    handle: Rc<ListenerHandle>,
    tcp: Rc<TcpRules>,
    socket: Socket,
    (peer, local): (SocketAddr, SocketAddr),
    seat: &ClientGuard,
) {
    let site = handle.site();
    // Boxed, so that the connection's task does not carry the space for this all its life.
    let begun = Box::pin(begin(&handle, &site, socket, peer, local)).await;
    let Begun { stream, info, spoken } = match begun {
        Ok(Some(begun)) => begun,
        Ok(None) => return,
        Err(refused) => {
            let protocol = if refused.cause.is_some() { "TLS" } else { "TCP" };
            return site.reject(peer, protocol, &refused);
        }
    };
    drop(site);
    let info = Rc::new(info);
    match spoken {
        ConnectionProtocol::H1 | ConnectionProtocol::H2 => seat.serves_http(&info),
        ConnectionProtocol::Tcp(_) => seat.works(),
    }
    match spoken {
        ConnectionProtocol::H1 => crate::downstream::h1::serve(handle, stream, info).await,
        ConnectionProtocol::H2 => Box::pin(crate::downstream::h2::serve(handle, stream, info)).await,
        ConnectionProtocol::Tcp(name) => {
            let site = tcp.borrow().clone();
            let Some(site) = site else {
                let why = "what the client speaks is not HTTP, and the listener takes nothing else".to_owned();
                return handle.site().reject(info.peer, "TCP", &RejectedConnection::new(RejectReason::Protocol, why));
            };
            let (first, stream) = stream.into_parts();
            let asked = info.tls.as_ref().and_then(|tls| tls.server_name.clone());
            Box::pin(tcp::serve(site, stream, info, first, name.or(asked).as_deref())).await;
        }
    }
}

struct Begun {
    stream: Stream,
    info: ConnectionInfo,
    spoken: ConnectionProtocol,
}

/// Finds out all that must be known before anything is served. None: the client has gone, or has said nothing at all.
async fn begin(
    handle: &ListenerHandle,
    site: &ListenerContext,
    socket: Socket,
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<Option<Begun>, RejectedConnection> {
    let config = &site.config;
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
        let late = || format!("the PROXY protocol's header was not there within {limit:?} (`timeouts.handshake`)");
        let said = timeout(limit, proxy_header(&mut stream, rules)).await;
        let said = said.map_err(|_| RejectedConnection::new(RejectReason::Silent, late()))?;
        ends = said?.unwrap_or(ends);
    }
    let info = ConnectionInfo::new(site.name.clone(), ends.source, ends.destination);
    let tls = site.tls.as_ref().filter(|_| config.tls.as_ref().is_some_and(|tls| tls.mode != TlsMode::Disable));
    let first = match (config.protocol, tls.is_some() && !may_be_plain(site)) {
        // It must be TLS, or must be what it is said to be: nobody need look.
        (_, true) => Sniffed::Tls,
        (Protocol::Http1, false) if tls.is_none() => Sniffed::Http1,
        (Protocol::Http2, false) if tls.is_none() => Sniffed::Http2,
        (Protocol::Tcp, false) if tls.is_none() => Sniffed::Other,
        (protocol, false) => {
            let first = first_bytes(handle, site, &mut stream, protocol == Protocol::Auto).await?;
            let Some(first) = first else { return Ok(None) };
            first
        }
    };
    match (first, tls) {
        (Sniffed::Tls, Some(tls)) => match timeout(limit, shake_hands(tls, stream)).await {
            Ok(shaken) => match shaken? {
                Some((stream, facts)) => under_tls(handle, site, stream, facts, info).await,
                None => Ok(None),
            },
            Err(_) => {
                let why = format!("the TLS handshake was not over within {limit:?} (`timeouts.handshake`)");
                Err(RejectedConnection {
                    refusal: RejectReason::Silent,
                    ..RejectedConnection::handshake(HandshakeError::Timeout, why)
                })
            }
        },
        (first, _) => {
            let spoken = match (config.protocol, first) {
                (Protocol::Http, Sniffed::Http2) | (Protocol::Http2, _) | (Protocol::Auto, Sniffed::Http2) => {
                    ConnectionProtocol::H2
                }
                (Protocol::Http | Protocol::Http1, _) | (Protocol::Auto, Sniffed::Http1) => ConnectionProtocol::H1,
                (Protocol::Tcp | Protocol::Auto, _) if config.tcp.sni.is_empty() => ConnectionProtocol::Tcp(None),
                (Protocol::Tcp | Protocol::Auto, _) => {
                    // A client that waits for the server to speak first is no TLS client.
                    let name = timeout(limit, asked_name(&mut stream)).await;
                    ConnectionProtocol::Tcp(name.unwrap_or(Ok(None)).unwrap_or(None))
                }
            };
            Ok(Some(Begun { stream: Stream::Plain(stream), info, spoken }))
        }
    }
}

/// Whether a client of a listener with TLS may do without it. `protocol: auto` is no reason: it tells what is spoken under
/// TLS, and whoever could leave TLS out would leave out the certificate that is asked for, too.
fn may_be_plain(site: &ListenerContext) -> bool {
    site.config.tls.as_ref().is_none_or(|tls| tls.mode == TlsMode::Permissive)
}

/// Reads the header of the PROXY protocol. None: it says nothing of addresses, or there is none and need not be one.
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
                return Err(refused(format!("no header of the PROXY protocol, which is `required`: {first}")));
            }
            Parsed::Invalid(why) => return Err(refused(format!("the PROXY protocol's header: {why}"))),
            Parsed::NeedMore => {
                let limit = stream.seen().len() + LOOK;
                if !stream.look(limit).await.unwrap_or(false) {
                    let why = match stream.seen() {
                        // Somebody who looks whether the port is open says nothing.
                        [] => String::new(),
                        _ => "the client closed the connection within the PROXY protocol's header".to_owned(),
                    };
                    return Err(refused(why));
                }
            }
        }
    }
}

/// Waits for the first bytes, and reads on until they are enough. For HTTP no longer than for a request on a connection that
/// has had some; who may be silent for longer (`speaks_later`) waits for the server to speak first.
async fn first_bytes<T: AsyncRead + Unpin>(
    handle: &ListenerHandle,
    site: &ListenerContext,
    stream: &mut Prefixed<T>,
    speaks_later: bool,
) -> Result<Option<Sniffed>, RejectedConnection> {
    let timeouts = &site.config.timeouts;
    let handshake = timeouts.handshake.bound().unwrap_or(Duration::MAX);
    if stream.seen().is_empty() {
        let first = async {
            tokio::select! {
                looked = stream.look(LOOK) => looked,
                // A request may be on its way; see the connections themselves.
                () = async { handle.drained().await; sleep(crate::downstream::h1::DRAIN_GRACE).await } => Ok(false),
            }
        };
        let keep_alive = timeouts.keep_alive.bound().unwrap_or(Duration::MAX);
        match timeout(if speaks_later { handshake } else { keep_alive }, first).await {
            Ok(Ok(true)) => {}
            Err(_) if speaks_later => return Ok(Some(Sniffed::Other)),
            // As with a connection that has had requests: nobody's fault.
            Ok(Ok(false) | Err(_)) | Err(_) => return Ok(None),
        }
    }
    let rest = async {
        loop {
            match sniff(stream.seen()) {
                // What cannot become HTTP/2 or TLS any more need not be waited for, where all else is HTTP/1.1: it has answers
                // to whatever it is.
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

/// Whether it may become TLS, or HTTP/2.
fn may_be_other(seen: &[u8]) -> bool {
    PREFACE.starts_with(seen) || [22, 3].starts_with(seen)
}

/// The name that a ClientHello asks for, without reading it away.
async fn asked_name(stream: &mut Prefixed<Socket>) -> io::Result<Option<Box<str>>> {
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

/// TLS on a client's socket, with what is looked at first of what comes through it.
type TlsClientStream = Box<Prefixed<TlsStream<Prefixed<Socket>>>>;

/// Shakes hands. None: the client has gone without a word.
async fn shake_hands(
    tls: &ServerTls,
    mut stream: Prefixed<Socket>,
) -> Result<Option<(TlsClientStream, ConnectionTls)>, RejectedConnection> {
    // Looked at before it is read, so that it can be told what it was if it is no TLS.
    if stream.seen().is_empty() && !stream.look(LOOK).await.unwrap_or(false) {
        return Ok(None);
    }
    let first = stream.seen_bytes();
    let stream = tls.acceptor().accept(stream).await.map_err(|error| refused(tls, &first, &error))?;
    drop(first);
    let facts = tls.connection(stream.get_ref().1).map_err(|error| {
        let cause =
            if matches!(error, PeerError::Expired(_)) { HandshakeError::Expired } else { HandshakeError::Certificate };
        RejectedConnection::handshake(cause, error.to_string())
    })?;
    Ok(Some((Box::new(Prefixed::new(Bytes::new(), TlsStream::Server(stream))), facts)))
}

/// Finds out what is spoken under TLS. None: the client has gone without a word.
async fn under_tls(
    handle: &ListenerHandle,
    site: &ListenerContext,
    mut stream: TlsClientStream,
    facts: ConnectionTls,
    info: ConnectionInfo,
) -> Result<Option<Begun>, RejectedConnection> {
    let spoken = match (facts.alpn.as_deref(), site.config.protocol) {
        (_, Protocol::Tcp) => ConnectionProtocol::Tcp(None),
        (Some(b"h2"), _) | (None, Protocol::Http2) => ConnectionProtocol::H2,
        (Some(_), _) | (None, Protocol::Http1) => ConnectionProtocol::H1,
        (None, protocol) => {
            // Without ALPN the client begins as it would without TLS.
            let first = first_bytes(handle, site, &mut *stream, protocol == Protocol::Auto).await?;
            let Some(first) = first else { return Ok(None) };
            match (first, protocol) {
                (Sniffed::Http2, _) => ConnectionProtocol::H2,
                (Sniffed::Http1, _) | (_, Protocol::Http) => ConnectionProtocol::H1,
                _ => ConnectionProtocol::Tcp(None),
            }
        }
    };
    let info = info.with_tls(Some(Rc::new(facts)));
    Ok(Some(Begun { stream: Stream::Tls(stream), info, spoken }))
}

/// Why a handshake has failed with a client that began it like this.
#[cold]
fn refused(tls: &ServerTls, first: &[u8], error: &io::Error) -> RejectedConnection {
    if !is_tls(first) {
        let (cause, what) = match sniff(first) {
            Sniffed::Http1 | Sniffed::Http2 => (HandshakeError::PlainHttp, "speaks HTTP without TLS"),
            _ => (HandshakeError::NotTls, "speaks no TLS"),
        };
        return RejectedConnection::handshake(cause, format!("the client {what}: {}", FirstBytes::of(first)));
    }
    let (cause, mut why) = tls::explain(error, Peer::Client);
    let Hello::Client(hello) = client_hello(first) else { return RejectedConnection::handshake(cause, why) };
    // The TLS library may miss something else first that only newer versions have.
    let old = match hello.version {
        0x0300 => Some("SSL 3.0"),
        0x0301 => Some("TLS 1.0"),
        0x0302 => Some("TLS 1.1"),
        _ => None,
    };
    if let Some(old) = old {
        let why = format!("the client speaks no version of TLS that `min_version` allows: at most {old}");
        return RejectedConnection::handshake(HandshakeError::Version, why);
    }
    if cause == HandshakeError::Alpn {
        let names = |names: &mut dyn Iterator<Item = &[u8]>| {
            names.map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>().join(", ")
        };
        let theirs = names(&mut hello.alpn());
        let ours = names(&mut tls.config().alpn_protocols.iter().map(Vec::as_slice));
        why = format!("the client offers {theirs} by ALPN, and the listener speaks {ours}");
    }
    RejectedConnection::handshake(cause, why)
}
