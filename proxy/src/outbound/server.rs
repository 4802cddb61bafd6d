//! Where a server is: its name, addresses, protocol and TLS settings.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::lookup_host,
    time::timeout,
};
use tokio_rustls::TlsStream;

use super::{error::ConnectError, tls::TlsFiles};
use crate::{
    config::{model::ClusterTls, units::Address, url::HttpUrl},
    net::{Prefixed, Socket, Stream},
    tls::{ClientTls, HandshakeFailure},
};

/// The time for resolving a name.
const LOOKUP_TIME: Duration = Duration::from_secs(10);

/// The time for connecting to one address, with the TLS handshake.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The time after which the system checks a silent connection, and the interval of further checks.
const PROBE_AFTER: Duration = Duration::from_secs(15);

/// The limit on the addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Whether the client may connect to an address.
pub type AddressFilter = Arc<dyn Fn(IpAddr) -> bool>;

/// Which HTTP version is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2; without TLS, with prior knowledge.
    Http2,
    /// HTTP/2 if the server selects it by ALPN, otherwise HTTP/1.1.
    Auto,
}

impl Protocol {
    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Http2 => &[b"h2"],
            Protocol::Auto => &[b"h2", b"http/1.1"],
        }
    }
}

/// The HTTP version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Opens connections to a server.
pub trait Dial {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;

    /// The server's URL. Requests name its host.
    fn url(&self) -> &HttpUrl;

    /// Opens a connection.
    fn dial(&self) -> impl Future<Output = Result<(Self::Io, Version), ConnectError>>;
}

/// A server.
pub struct Server {
    url: HttpUrl,
    address: Option<Address>,
    protocol: Protocol,
    tls: Option<TlsFiles>,
    filter: Option<AddressFilter>,
}

impl Server {
    /// Creates a server that speaks HTTP/1.1. `tls` is for `https://`; by default, the system's authorities are trusted,
    /// and the certificate must be for the URL's host. Relative paths in it are relative to `dir`.
    pub fn new(url: HttpUrl, tls: Option<&ClusterTls>, dir: &Path) -> Server {
        let tls = url.is_tls.then(|| TlsFiles::new(tls.cloned().unwrap_or_default(), url.host.clone(), dir));
        Server { url, address: None, protocol: Protocol::Http1, tls, filter: None }
    }

    /// Connects to this address instead of the URL's host.
    #[must_use]
    pub fn at(mut self, address: Option<Address>) -> Self {
        self.address = address;
        self
    }

    /// Speaks this protocol.
    #[must_use]
    pub fn speaking(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Connects only to addresses that pass the filter. It gets the address that is connected to, so a name cannot
    /// resolve to another one after the check. Unix sockets are not checked.
    #[must_use]
    pub fn only_at(mut self, filter: AddressFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// The addresses to try, in order.
    async fn addresses(&self) -> Result<Vec<Address>, ConnectError> {
        if let Some(Address::Unix(_)) = &self.address {
            return Ok(self.address.iter().cloned().collect());
        }
        let host = &self.url.host;
        let found: Vec<SocketAddr> = match &self.address {
            Some(address) => address.inet().into_iter().collect(),
            None => {
                let lookup = timeout(LOOKUP_TIME, lookup_host((host.as_str(), self.url.port))).await;
                let failed = |why: &dyn Display| ConnectError::Lookup { host: host.clone(), why: why.to_string() };
                let late = |_| failed(&format_args!("timed out after {LOOKUP_TIME:?}"));
                lookup.map_err(late)?.map_err(|error| failed(&error))?.collect()
            }
        };
        let allowed =
            |address: &&SocketAddr| self.filter.as_ref().is_none_or(|allows| allows(address.ip().to_canonical()));
        let addresses: Vec<_> = found.iter().filter(allowed).copied().map(Address::Inet).collect();
        match (addresses.is_empty(), found.is_empty()) {
            (false, _) => Ok(addresses),
            (true, true) => Err(ConnectError::NoAddress(host.clone())),
            (true, false) => {
                Err(ConnectError::Forbidden { host: host.clone(), addresses: list(found.iter().map(SocketAddr::ip)) })
            }
        }
    }

    /// Connects to the first address that accepts. The error lists why each does not.
    pub(super) async fn open_any(&self, addresses: &[Address]) -> Result<(Stream, Version), ConnectError> {
        let tls = match &self.tls {
            Some(files) => Some(files.load(self.protocol.alpn()).await?),
            None => None,
        };
        let mut attempts = Vec::new();
        for address in addresses.iter().take(MAX_ADDRESSES) {
            match timeout(CONNECT_TIME, self.open(address, tls.as_deref())).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => attempts.push(format!("{address}: {error}")),
                Err(_) => attempts.push(format!("{address}: timed out after {CONNECT_TIME:?}")),
            }
        }
        Err(ConnectError::Failed { host: self.url.host.clone(), attempts: attempts.join("; ") })
    }

    async fn open(&self, address: &Address, tls: Option<&ClientTls>) -> Result<(Stream, Version), String> {
        let socket = Socket::connect(address, None).await.map_err(|(error, _)| error.to_string())?;
        if let Socket::Tcp(stream) = &socket {
            // A server holds requests for minutes, and its end may go unnoticed.
            let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER).with_retries(3);
            SockRef::from(stream).set_tcp_keepalive(&keepalive).map_err(|error| error.to_string())?;
        }
        let Some(tls) = tls else {
            let version = if self.protocol == Protocol::Http2 { Version::Http2 } else { Version::Http1 };
            return Ok((Stream::from(socket), version));
        };
        let name = tls.server_name(None, address.inet().map(|address| address.ip()));
        let stream = tls.handshake(name, socket).await.map_err(describe)?;
        let version = match (self.protocol, stream.get_ref().1.alpn_protocol()) {
            (_, Some(b"h2")) | (Protocol::Http2, None) => Version::Http2,
            (Protocol::Http2, Some(other)) => {
                return Err(format!("the server chose `{}` by ALPN, but HTTP/2 is needed", other.escape_ascii()));
            }
            _ => Version::Http1,
        };
        Ok((Stream::Tls(Box::new(Prefixed::new(Bytes::new(), TlsStream::Client(stream)))), version))
    }
}

impl Dial for Server {
    type Io = Stream;

    fn url(&self) -> &HttpUrl {
        &self.url
    }

    async fn dial(&self) -> Result<(Stream, Version), ConnectError> {
        self.open_any(&self.addresses().await?).await
    }
}

/// Describes a failed handshake.
fn describe(failure: HandshakeFailure) -> String {
    match failure {
        HandshakeFailure::Io(error) => format!("TLS: {error}"),
        HandshakeFailure::Closed => "TLS: the server closed the connection: does it speak TLS?".to_owned(),
        HandshakeFailure::NotTls(first) => {
            format!("TLS: the server does not speak TLS ({first}); write http:// in the URL if that is intended")
        }
        HandshakeFailure::Tls(why) => format!("TLS: {why}"),
    }
}

fn list(items: impl Iterator<Item = impl Display>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
