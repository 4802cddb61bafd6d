//! A TLS client: HTTP/1.1, for requests and responses without bodies.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
};

use super::DEADLINE;

/// A TLS connection to `web.test`.
pub struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    /// Connects; trusts these certificates, and presents that one. The handshake happens with the first request.
    pub fn connect(
        address: SocketAddr,
        trusted: &[CertificateDer<'static>],
        shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Secure {
        Secure::over(TcpStream::connect(address).expect("the proxy accepts connections"), trusted, shown)
    }

    /// The same on a connection on which something has been sent already.
    pub fn over(
        socket: TcpStream,
        trusted: &[CertificateDer<'static>],
        shown: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Secure {
        let mut roots = RootCertStore::empty();
        trusted.iter().for_each(|certificate| roots.add(certificate.clone()).expect("a root"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match shown {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).expect("a pair"),
            None => builder.with_no_client_auth(),
        };
        let name = "web.test".try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        Secure(StreamOwned::new(connection, socket))
    }

    /// Completes the handshake without sending anything else.
    pub fn shake_hands(&mut self) -> io::Result<()> {
        self.0.conn.complete_io(&mut self.0.sock).map(drop)
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref())
    }

    /// Reads this number of bytes.
    pub fn read_exact(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends close_notify. Without this call, dropping the value ends the connection without one.
    pub fn close(&mut self) -> io::Result<()> {
        self.0.conn.send_close_notify();
        self.0.conn.complete_io(&mut self.0.sock).map(drop)
    }

    /// Sends a `GET` of a target whose response has no body, and returns the response's head.
    pub fn ask(&mut self, target: &str) -> io::Result<String> {
        self.head(target, "")
    }

    fn head(&mut self, target: &str, fields: &str) -> io::Result<String> {
        self.0.write_all(format!("GET {target} HTTP/1.1\r\nHost: web.test\r\n{fields}\r\n").as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            head.extend(byte);
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    /// Sends `GET /` with these additional fields, and returns the status.
    pub fn get(&mut self, fields: &str) -> io::Result<u16> {
        let head = self.head("/", fields)?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        status.ok_or_else(|| io::Error::other(head))
    }

    /// The certificate that the proxy presented.
    pub fn shown(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().expect("a certificate")[0].clone()
    }
}
