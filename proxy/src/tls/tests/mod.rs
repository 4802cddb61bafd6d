//! Handshakes between both sides over in-memory pipes, with generated certificates.

mod handshakes;
mod identities;
mod materials;
pub(crate) mod pki;
mod resumption;

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, HandshakeKind, ServerConfig, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{ClientTls, ConnectionTls, FieldError, Loader, ServerTls};
use crate::config::model::{CertificateFiles, ClusterTls, ListenerTls};

pub(crate) fn load<T>(load: impl FnOnce(&mut Loader<'_>) -> T) -> T {
    let resolve = |path: &Path| path.to_owned();
    load(&mut Loader::new(&resolve))
}

fn server(section: &ListenerTls) -> ServerTls {
    try_server(section, None).unwrap_or_else(|e| panic!("{e:?}"))
}

fn try_server(section: &ListenerTls, previous: Option<&ServerTls>) -> Result<ServerTls, Vec<FieldError>> {
    load(|loader| ServerTls::load(section, &[b"h2", b"http/1.1"], loader, previous))
}

fn client(section: &ClusterTls) -> Arc<ClientTls> {
    load(|loader| ClientTls::load(section, "web.test", &[b"http/1.1"], loader, None))
        .unwrap_or_else(|e| panic!("{e:?}"))
}

/// Returns a section with these certificates.
fn listener(certificates: Vec<CertificateFiles>) -> ListenerTls {
    ListenerTls { certificates, ..serde_json::from_str("{}").unwrap() }
}

/// The result of a handshake.
struct Met {
    tls: ConnectionTls,
    /// As seen by the client.
    kind: HandshakeKind,
}

/// The errors of both sides.
#[derive(Debug)]
struct Failed {
    server: String,
    client: String,
}

/// Connects a client to a server and sends a byte each way.
async fn meet(server: &ServerTls, client: &ClientTls) -> Result<Met, Failed> {
    meet_as(server, client, client.server_name(None, None)).await
}

async fn meet_as(server: &ServerTls, client: &ClientTls, name: ServerName<'static>) -> Result<Met, Failed> {
    let (config, client) = (server.config().clone(), client.config().clone());
    raw(config, client, name, |connection| server.connection(connection).map_err(|e| e.to_string())).await
}

async fn raw(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
    know: impl FnOnce(&rustls::ServerConnection) -> Result<ConnectionTls, String>,
) -> Result<Met, Failed> {
    let (ours, theirs) = duplex(1 << 16);
    let serving = async {
        let mut stream = TlsAcceptor::from(server).accept(theirs).await.map_err(|e| e.to_string())?;
        let tls = know(stream.get_ref().1)?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|e| e.to_string())?;
        stream.write_all(&byte).await.map_err(|e| e.to_string())?;
        stream.shutdown().await.map_err(|e| e.to_string())?;
        Ok::<_, String>(tls)
    };
    let asking = async {
        let mut stream = TlsConnector::from(client).connect(name, ours).await.map_err(|e| e.to_string())?;
        // Only the response tells a TLS 1.3 client whether it was accepted; session tickets come with it.
        stream.write_all(b"x").await.map_err(|e| e.to_string())?;
        stream.read_exact(&mut [0]).await.map_err(|e| e.to_string())?;
        Ok::<_, String>(stream.get_ref().1.handshake_kind().unwrap())
    };
    match tokio::join!(serving, asking) {
        (Ok(tls), Ok(kind)) => Ok(Met { tls, kind }),
        (server, client) => {
            Err(Failed { server: server.err().unwrap_or_default(), client: client.err().unwrap_or_default() })
        }
    }
}
