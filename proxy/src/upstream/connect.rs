//! Connecting to an endpoint: the socket, the PROXY protocol header and the TLS handshake.

use std::{cell::Cell, os::fd::AsFd};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsStream, client};

use super::{
    Cluster, Endpoint,
    reason::{ConnectError, ConnectErrorCause, ConnectStep, mismatch},
};
use crate::{
    config::model::ClusterProtocol,
    net::{
        DetectedProtocol, FirstBytes, Prefixed, Socket, Stream,
        descriptors::DescriptorUse,
        is_tls,
        proxy_protocol::{self, Addresses},
    },
    tls::{self, ClientTls, Peer},
};

/// The HTTP version used on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    H1,
    H2 {
        /// Over TLS, but the endpoint chose no protocol by ALPN, so HTTP/2 is only assumed.
        assumed: bool,
    },
}

/// Bytes of an endpoint's first handshake message that are inspected.
const LOOK: usize = 2 << 10;

/// Opens a connection within the cluster's `connect_timeout`, sends the PROXY protocol header if configured, and
/// determines the HTTP version. A connection for the proxy's `own` use may take the last file descriptors; one for a
/// client may not.
pub(super) async fn open(
    cluster: &Cluster,
    endpoint: &Endpoint,
    client: Option<Addresses>,
    own: bool,
) -> Result<(Stream, Version), ConnectError> {
    let (start, step) = (Instant::now(), Cell::new(ConnectStep::Connect));
    let transport = &*endpoint.transport;
    let opening = async {
        let mut socket = Socket::connect(&endpoint.address, None).await.map_err(|(e, _)| e)?;
        if !own && !DescriptorUse::Upstream.may_keep(socket.as_fd()) {
            return Err(std::io::Error::from(Errno::MFILE).into());
        }
        if let Some(version) = transport.proxy_protocol {
            step.set(ConnectStep::ProxyHeader);
            socket.write_all(&proxy_protocol::encode(version, client)).await?;
        }
        let Some(tls) = &transport.tls else {
            let version =
                if transport.protocol == ClusterProtocol::H2 { Version::H2 { assumed: false } } else { Version::H1 };
            return Ok((Stream::from(socket), version));
        };
        step.set(ConnectStep::Handshake);
        let stream = shake_hands(tls, endpoint, socket).await?;
        let version = match (transport.protocol, stream.get_ref().1.alpn_protocol()) {
            (_, Some(b"h2")) => Version::H2 { assumed: false },
            (ClusterProtocol::H2, None) => Version::H2 { assumed: true },
            (ClusterProtocol::H2, Some(other)) => {
                let other = other.escape_ascii();
                return Err(ConnectErrorCause::Tls(format!(
                    "the endpoint chose `{other}` by ALPN, but `protocol: h2` requires h2"
                )));
            }
            _ => Version::H1,
        };
        Ok((Stream::Tls(Box::new(Prefixed::new(Bytes::new(), TlsStream::Client(stream)))), version))
    };
    let opened = match cluster.connect_timeout {
        None => opening.await,
        Some(limit) => timeout(limit, opening).await.unwrap_or(Err(ConnectErrorCause::Late(limit))),
    };
    opened.map_err(|cause| ConnectError::new(step.get(), &cause, start.elapsed()))
}

/// Performs a client handshake. The endpoint's first bytes are peeked at before rustls reads them, so that an error can
/// show them if they are not TLS.
async fn shake_hands(
    tls: &ClientTls,
    endpoint: &Endpoint,
    socket: Socket,
) -> Result<client::TlsStream<Prefixed<Socket>>, ConnectErrorCause> {
    let name = tls.server_name(endpoint.hostname.as_deref(), endpoint.address.inet().map(|address| address.ip()));
    let mut hello = Vec::new();
    let stream = Prefixed::new(Bytes::new(), socket);
    let mut shaking = tls.connector().connect_with(name, stream, |connection| {
        while connection.wants_write() && connection.write_tls(&mut hello).is_ok_and(|written| written > 0) {}
    });
    let mut first = FirstBytes::default();
    if !hello.is_empty()
        && let Some(stream) = shaking.get_mut()
    {
        stream.write_all(&hello).await?;
        if !stream.look(LOOK).await? {
            let why = "the endpoint closed the connection after the ClientHello: does it speak TLS?";
            return Err(ConnectErrorCause::Tls(why.to_owned()));
        }
        first = FirstBytes::of(stream.seen());
    }
    shaking.await.map_err(|error| match is_tls(first.as_slice()) {
        false if !first.is_empty() => ConnectErrorCause::Tls(mismatch(DetectedProtocol::Tls, &first)),
        _ => ConnectErrorCause::Tls(tls::explain(&error, Peer::Server).1),
    })
}
