//! The server of an HTTP source: resolving its name, connecting, and TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{net::lookup_host, time::timeout};
use tokio_rustls::TlsStream;

use super::Dial;
use crate::{
    config::{model::HttpSource, units::Address, url::HttpUrl},
    net::{Prefixed, Socket, Stream},
    tls::{self, ClientTls, FieldError, Loader, Peer},
};

/// The time for resolving a name.
const LOOKUP_TIME: Duration = Duration::from_secs(10);

/// The time for connecting to one address, with the TLS handshake.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The limit on the addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A server.
#[derive(Debug)]
pub struct Server {
    url: HttpUrl,
    tls: Option<Arc<ClientTls>>,
}

impl Server {
    /// Creates a server; `tls` comes from [`client_tls`].
    pub fn new(url: HttpUrl, tls: Option<Arc<ClientTls>>) -> Server {
        Server { url, tls }
    }

    /// Returns the server's URL.
    pub fn url(&self) -> &HttpUrl {
        &self.url
    }

    async fn open(&self, address: SocketAddr) -> Result<Stream, String> {
        let socket = Socket::connect(&Address::Inet(address), None).await.map_err(|(error, _)| error.to_string())?;
        let Some(tls) = &self.tls else { return Ok(Stream::from(socket)) };
        let name = tls.server_name(None, Some(address.ip()));
        let connecting = tls.connector().connect(name, Prefixed::new(Bytes::new(), socket));
        let stream = connecting.await.map_err(|error| format!("TLS: {}", tls::explain(&error, Peer::Server).1))?;
        Ok(Stream::Tls(Box::new(Prefixed::new(Bytes::new(), TlsStream::Client(stream)))))
    }

    /// Connects to the first address that accepts. The error lists why each does not.
    pub(super) async fn open_any(&self, addresses: impl Iterator<Item = SocketAddr>) -> Result<Stream, String> {
        let mut errors = Vec::new();
        for address in addresses.take(MAX_ADDRESSES) {
            match timeout(CONNECT_TIME, self.open(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => errors.push(format!("{address}: {error}")),
                Err(_) => errors.push(format!("{address}: timed out after {CONNECT_TIME:?}")),
            }
        }
        match errors.is_empty() {
            true => Err(format!("`{}` has no address", self.url.host)),
            false => Err(format!("cannot connect to `{}`: {}", self.url.host, errors.join("; "))),
        }
    }
}

impl Dial for Server {
    type Io = Stream;

    async fn dial(&self) -> Result<Stream, String> {
        let resolving = timeout(LOOKUP_TIME, lookup_host((self.url.host.as_str(), self.url.port)));
        match resolving.await {
            Ok(Ok(addresses)) => self.open_any(addresses).await,
            Ok(Err(error)) => Err(format!("cannot resolve `{}`: {error}", self.url.host)),
            Err(_) => Err(format!("cannot resolve `{}`: timed out after {LOOKUP_TIME:?}", self.url.host)),
        }
    }
}

/// Builds the TLS settings for a server; `None` for `http://`. By default, the certificate must be for the URL's host.
pub fn client_tls(
    config: &HttpSource,
    url: &HttpUrl,
    loader: &mut Loader<'_>,
    previous: Option<&Arc<ClientTls>>,
) -> Result<Option<Arc<ClientTls>>, Vec<FieldError>> {
    if !url.is_tls {
        return Ok(None);
    }
    let section = config.tls.clone().unwrap_or_default();
    ClientTls::load(&section, &url.host, &[b"http/1.1"], loader, previous).map(Some)
}
