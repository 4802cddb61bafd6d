//! Connecting to an endpoint: the socket, the PROXY protocol header and the TLS handshake.

use std::{cell::Cell, os::fd::AsFd};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};
use tokio_rustls::TlsStream;

use super::{
    Cluster, Endpoint,
    reason::{ConnectError, ConnectErrorCause, ConnectStep, mismatch},
};
use crate::{
    config::{model::ClusterProtocol, units::Address},
    net::{
        DetectedProtocol, Prefixed, Socket, Stream,
        descriptors::DescriptorUse,
        proxy_protocol::{self, Addresses},
    },
    tls::HandshakeFailure,
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
        let mut socket = match endpoint.address {
            Address::Host(..) => Socket::connect_any(&endpoint.resolved()).await?,
            _ => Socket::connect(&endpoint.address, None).await.map_err(|(e, _)| e)?,
        };
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
        let name = tls.server_name(endpoint.hostname.as_deref(), endpoint.address.inet().map(|address| address.ip()));
        let stream = tls.handshake(name, socket).await.map_err(refused)?;
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

/// Describes a failed handshake.
fn refused(failure: HandshakeFailure) -> ConnectErrorCause {
    match failure {
        HandshakeFailure::Io(error) => error.into(),
        HandshakeFailure::Closed => {
            let why = "the endpoint closed the connection after the ClientHello: does it speak TLS?";
            ConnectErrorCause::Tls(why.to_owned())
        }
        HandshakeFailure::NotTls(first) => ConnectErrorCause::Tls(mismatch(DetectedProtocol::Tls, &first)),
        HandshakeFailure::Tls(why) => ConnectErrorCause::Tls(why),
    }
}
