//! A QUIC client that leaves HTTP/3 to the test: any bytes on any streams.

use std::{net::SocketAddr, sync::Arc, thread};

use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use rustls::{RootCertStore, pki_types::CertificateDer};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use super::DEADLINE;

/// A connection.
pub struct Raw {
    runtime: Handle,
    /// For everything that this type does not cover.
    pub connection: Connection,
    _endpoint: Endpoint,
    _end: oneshot::Sender<()>,
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Ended after these bytes.
    Finished(Vec<u8>),
    /// Reset.
    Reset(u64),
    /// The connection was closed.
    Closed(u64),
}

/// A frame.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind], &varint(payload.len() as u64)[..], payload].concat()
}

/// An integer in the longest form (RFC 9000 section 16).
pub fn varint(number: u64) -> [u8; 8] {
    (number | 0xc000_0000_0000_0000).to_be_bytes()
}

/// The mandatory fields of a `POST`'s head.
pub const USUAL: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "https"), (":authority", "web.test"), (":path", "/")];

/// The HEADERS frame of a `POST`, with further fields.
pub fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(&[&USUAL, fields].concat())
}

/// A HEADERS frame.
pub fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(1, &section(fields))
}

/// A field section that uses no table (RFC 9204 section 4.5.6).
pub fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0, 0];
    for (name, value) in fields {
        // A literal name's length has a three-bit prefix, a value's length a seven-bit prefix.
        for (first, most, text) in [(0x20, 7, name), (0, 127, value)] {
            match text.len().checked_sub(most) {
                None => block.push(first | text.len() as u8),
                Some(mut more) => {
                    block.push(first | most as u8);
                    while more >= 128 {
                        block.push((more % 128) as u8 | 128);
                        more /= 128;
                    }
                    block.push(more as u8);
                }
            }
            block.extend(text.bytes());
        }
    }
    block
}

/// The beginning of a client's control stream.
pub const CONTROL: [u8; 3] = [0, 4, 0];

/// The configuration for connections to a server with this certificate.
pub fn config(certificate: &CertificateDer<'static>, transport: TransportConfig) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a configuration")));
    config.transport_config(Arc::new(transport));
    config
}

/// A runtime on a separate thread, so that QUIC keeps running while the test does something else; it ends with the
/// sender.
pub fn runtime() -> (Handle, oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    thread::spawn(move || runtime.block_on(ended));
    (handle, end)
}

impl Raw {
    /// Connects to the server at this address, which has this certificate.
    pub fn connect_to(address: SocketAddr, certificate: &CertificateDer<'static>, transport: TransportConfig) -> Raw {
        let config = config(certificate, transport);
        let (runtime, end) = runtime();
        let (endpoint, connection) = runtime.block_on(async {
            let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a socket");
            let connecting = endpoint.connect_with(config, address, "web.test").expect("a start");
            let connection = connecting.await.expect("a connection");
            (endpoint, connection)
        });
        Raw { runtime, connection, _endpoint: endpoint, _end: end }
    }

    /// Opens a request stream, and sends these bytes on it. `None` if the connection has ended.
    pub fn try_open(&self, bytes: &[u8]) -> Option<(SendStream, RecvStream)> {
        self.runtime.block_on(async {
            let (mut send, recv) = self.connection.open_bi().await.ok()?;
            // The proxy may stop reading before everything is sent.
            let _ = send.write_all(bytes).await;
            Some((send, recv))
        })
    }

    /// The same on a connection that must be open.
    pub fn open(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        self.try_open(bytes).expect("a stream")
    }

    /// Opens a unidirectional stream, and sends these bytes on it.
    pub fn one_way(&self, bytes: &[u8]) -> SendStream {
        self.runtime.block_on(async {
            let mut send = self.connection.open_uni().await.expect("a stream");
            let _ = send.write_all(bytes).await;
            send
        })
    }

    /// Sends a whole request, and waits for the stream's end.
    pub fn request(&self, bytes: &[u8]) -> End {
        let Some((mut send, recv)) = self.try_open(bytes) else { return End::Closed(self.closed()) };
        let _ = send.finish();
        self.end(recv)
    }

    /// Sends more on a stream, as far as the peer accepts it.
    pub fn write(&self, send: &mut SendStream, bytes: &[u8]) {
        let _ = self.runtime.block_on(async { timeout(DEADLINE, send.write_all(bytes)).await });
    }

    /// Reads this number of bytes, unless the stream is reset.
    pub fn try_read(&self, recv: &mut RecvStream, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        let read = self.runtime.block_on(async { timeout(DEADLINE, recv.read_exact(&mut bytes)).await });
        read.expect("bytes in time").ok().map(|()| bytes)
    }

    /// Reads this number of bytes.
    pub fn read(&self, recv: &mut RecvStream, count: usize) -> Vec<u8> {
        self.try_read(recv, count).expect("bytes")
    }

    /// Waits for a stream's end.
    pub fn end(&self, mut recv: RecvStream) -> End {
        let read = self.runtime.block_on(async { timeout(DEADLINE, recv.read_to_end(1 << 20)).await });
        match read.expect("an end in time") {
            Ok(bytes) => End::Finished(bytes),
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => End::Reset(code.into_inner()),
            Err(_) => End::Closed(self.closed()),
        }
    }

    /// Waits for the connection's end.
    pub fn closed(&self) -> u64 {
        let closed = self.runtime.block_on(async { timeout(DEADLINE, self.connection.closed()).await });
        match closed.expect("an end in time") {
            quinn::ConnectionError::ApplicationClosed(closed) => closed.error_code.into_inner(),
            other => panic!("{other}"),
        }
    }

    /// Runs a future to its end.
    pub fn run<F: Future>(&self, what: F) -> F::Output {
        self.runtime.block_on(what)
    }

    /// Whether the connection is open.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// The code with which the connection was closed, if any.
    pub fn close_code(&self) -> Option<u64> {
        match self.connection.close_reason()? {
            quinn::ConnectionError::ApplicationClosed(closed) => Some(closed.error_code.into_inner()),
            _ => None,
        }
    }

    /// Cancels a stream.
    pub fn cancel(&self, send: &mut SendStream, recv: &mut RecvStream) {
        let _guard = self.runtime.enter();
        let cancelled = VarInt::from_u32(0x10c);
        let _ = (send.reset(cancelled), recv.stop(cancelled));
    }
}
