//! Opening a connection to an endpoint: the socket, and what comes before HTTP on it.

use std::io;

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_rustls::TlsStream;

use super::{Cluster, Endpoint};
use crate::{
    config::model::ClusterProtocol,
    net::{
        Prefixed, Socket, Stream,
        proxy_protocol::{self, Addresses},
    },
};

/// A version of HTTP that is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    H1,
    H2,
}

/// Opens a connection within the cluster's `connect_timeout`, tells the endpoint of the client if the cluster wants that, and
/// says what is to be spoken on it. With an error, whether the
/// time was over.
pub(super) async fn open(
    cluster: &Cluster,
    endpoint: &Endpoint,
    client: Option<Addresses>,
) -> Result<(Stream, Version), (io::Error, bool)> {
    let opening = async {
        let mut socket = Socket::connect(&endpoint.address, None).await.map_err(|(e, _)| e)?;
        if let Some(version) = cluster.proxy_protocol {
            socket.write_all(&proxy_protocol::encode(version, client)).await?;
        }
        let Some(tls) = &cluster.tls else {
            let version = if cluster.protocol == ClusterProtocol::H2 { Version::H2 } else { Version::H1 };
            return Ok((Stream::from(socket), version));
        };
        let name = tls.server_name(endpoint.address.inet().map(|address| address.ip()));
        let stream = tls.connector().connect(name, Prefixed::new(Bytes::new(), socket)).await?;
        let version = match (cluster.protocol, stream.get_ref().1.alpn_protocol()) {
            (_, Some(b"h2")) | (ClusterProtocol::H2, None) => Version::H2,
            (ClusterProtocol::H2, Some(_)) => return Err(io::Error::other("the endpoint has not chosen h2 by ALPN")),
            _ => Version::H1,
        };
        Ok((Stream::Tls(Box::new(Prefixed::new(Bytes::new(), TlsStream::Client(stream)))), version))
    };
    match cluster.connect_timeout {
        None => opening.await.map_err(|e| (e, false)),
        Some(limit) => match timeout(limit, opening).await {
            Ok(opened) => opened.map_err(|e| (e, false)),
            Err(elapsed) => Err((io::Error::new(io::ErrorKind::TimedOut, elapsed), true)),
        },
    }
}
