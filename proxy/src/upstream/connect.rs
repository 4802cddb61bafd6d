//! Opening a connection to an endpoint: the socket, and what comes before HTTP on it.

use std::io;

use tokio::time::timeout;

use super::{Cluster, Endpoint};
use crate::{
    config::model::ClusterProtocol,
    net::{Socket, Stream},
};

/// A version of HTTP that is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    H1,
    H2,
}

/// Opens a connection within the cluster's `connect_timeout`, and says what is to be spoken on it. With an error, whether the
/// time was over.
pub(super) async fn open(cluster: &Cluster, endpoint: &Endpoint) -> Result<(Stream, Version), (io::Error, bool)> {
    let opening = async {
        let socket = Socket::connect(&endpoint.address, None).await.map_err(|(e, _)| e)?;
        let version = match cluster.protocol {
            ClusterProtocol::H2 => Version::H2,
            ClusterProtocol::H1 | ClusterProtocol::Auto => Version::H1,
        };
        Ok((Stream::from(socket), version))
    };
    match cluster.connect_timeout {
        None => opening.await.map_err(|e| (e, false)),
        Some(limit) => match timeout(limit, opening).await {
            Ok(opened) => opened.map_err(|e| (e, false)),
            Err(elapsed) => Err((io::Error::new(io::ErrorKind::TimedOut, elapsed), true)),
        },
    }
}
