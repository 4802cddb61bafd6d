//! A client's handshake on a socket. The server's first bytes are inspected, so that an error can show what it speaks
//! instead of TLS.

use std::io;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio_rustls::client::TlsStream;

use super::{
    ClientTls,
    explain::{Peer, explain},
};
use crate::net::{FirstBytes, Prefixed, Socket, is_tls};

/// The bytes of a server's first handshake message that are inspected.
const LOOK: usize = 2 << 10;

/// Why a handshake failed.
#[derive(Debug)]
pub enum HandshakeFailure {
    /// The connection failed.
    Io(io::Error),
    /// The server closed the connection without sending anything.
    Closed,
    /// The server speaks another protocol.
    NotTls(FirstBytes),
    /// Any other reason, in words.
    Tls(String),
}

impl ClientTls {
    /// Performs the handshake with a server of this name.
    ///
    /// # Errors
    /// The server is not accepted, does not accept this client, or does not speak TLS.
    pub async fn handshake(
        &self,
        name: ServerName<'static>,
        socket: Socket,
    ) -> Result<TlsStream<Prefixed<Socket>>, HandshakeFailure> {
        let mut hello = Vec::new();
        let stream = Prefixed::new(Bytes::new(), socket);
        let mut shaking = self.connector().connect_with(name, stream, |connection| {
            while connection.wants_write() && connection.write_tls(&mut hello).is_ok_and(|written| written > 0) {}
        });
        let mut first = FirstBytes::default();
        if !hello.is_empty()
            && let Some(stream) = shaking.get_mut()
        {
            stream.write_all(&hello).await.map_err(HandshakeFailure::Io)?;
            if !stream.look(LOOK).await.map_err(HandshakeFailure::Io)? {
                return Err(HandshakeFailure::Closed);
            }
            first = FirstBytes::of(stream.seen());
        }
        shaking.await.map_err(|error| match is_tls(first.as_slice()) {
            false if !first.is_empty() => HandshakeFailure::NotTls(first),
            _ => HandshakeFailure::Tls(explain(&error, Peer::Server).1),
        })
    }
}
