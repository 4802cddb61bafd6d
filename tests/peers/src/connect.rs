//! Our own load generator, for two features that the others lack over TLS: an open loop whose latencies count from when a
//! request was due and whose requests are evenly spaced, and one connection per request without session resumption
//! (wrk and h2load resume whenever a server allows it).
//!
//! It is this program, started as `peers connect` on the load generator's processor; it writes one line of JSON.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};

/// Send requests over TLS.
#[derive(Debug, Parser)]
pub struct ConnectArgs {
    #[arg(long)]
    pub port: u16,
    #[arg(long)]
    pub path: String,
    #[arg(long)]
    pub seconds: u64,
    /// Warm up for this many milliseconds, without counting the requests
    #[arg(long, default_value_t = 0)]
    pub warm_up: u64,
    /// Allow this many concurrent requests
    #[arg(long)]
    pub connections: u32,
    /// Send this many requests a second [default: as many as possible]
    #[arg(long)]
    pub rate: Option<u32>,
    /// Reuse connections for several requests
    #[arg(long)]
    pub keep: bool,
}

/// The result; times in microseconds, from when a request was due.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connected {
    pub seconds: f64,
    pub errors: u64,
    pub times: Vec<u32>,
}

/// Connects, and writes the result.
pub fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    let config = client()?;
    let begun = Instant::now();
    let counted = begun + Duration::from_millis(args.warm_up);
    let end = counted + Duration::from_secs(args.seconds);
    let workers: Vec<_> = (0..args.connections)
        .map(|n| {
            let client = Client { config: config.clone(), port: args.port, path: args.path.clone(), keep: args.keep };
            // Each worker has its share of the rate, staggered evenly.
            let pace = args.rate.map(|rate| Duration::from_secs(1) * args.connections / rate);
            let first = pace.map_or(begun, |pace| begun + pace * n / args.connections);
            thread::spawn(move || client.work(first, counted, pace, end))
        })
        .collect();
    let mut all = Connected::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        all.errors += part.errors;
        all.times.extend(part.times);
    }
    all.seconds = counted.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

struct Client {
    config: Arc<ClientConfig>,
    port: u16,
    path: String,
    keep: bool,
}

impl Client {
    fn work(&self, first: Instant, counted: Instant, pace: Option<Duration>, end: Instant) -> Connected {
        let mut connected = Connected::default();
        let mut kept = None;
        let mut due = first;
        while due < end {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let done = self.request(&mut kept);
            if due >= counted {
                match done {
                    Ok(()) => connected.times.push(due.elapsed().as_micros() as u32),
                    Err(_) => connected.errors += 1,
                }
            }
            due = pace.map_or_else(Instant::now, |pace| due + pace);
        }
        connected
    }

    /// Sends a request on the kept connection, or on a new one.
    fn request(&self, kept: &mut Option<Stream>) -> io::Result<()> {
        let mut stream = kept.take().map_or_else(|| self.connect(), Ok)?;
        let (path, close) = (&self.path, if self.keep { "" } else { "Connection: close\r\n" });
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: peers/1.0\r\nAccept: */*\r\n{close}\r\n");
        stream.write_all(head.as_bytes())?;
        let answer = if self.keep { read_one(&mut stream)? } else { read_all(&mut stream)? };
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other("not answered with 200"));
        }
        *kept = Some(stream).filter(|_| self.keep);
        Ok(())
    }

    fn connect(&self) -> io::Result<Stream> {
        let longest = Duration::from_secs(5);
        let socket = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], self.port)), longest)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(longest))?;
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let session = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(session, socket))
    }
}

/// Reads until the connection ends.
fn read_all(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut answer = Vec::with_capacity(1024);
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(e),
        _ => Ok(answer),
    }
}

/// Reads one response, with the length given by its head.
fn read_one(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut answer = Vec::with_capacity(1024);
    let mut part = [0; 4096];
    loop {
        if let Some(length) = whole(&answer)? {
            return if answer.len() == length { Ok(answer) } else { Err(io::Error::other("more than one response")) };
        }
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&part[..n]),
        }
    }
}

/// The response's length, once it was received completely.
fn whole(answer: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let length = head + length.ok_or_else(|| io::Error::other("a response without a length"))?;
    Ok((answer.len() >= length).then_some(length))
}

/// A client that offers exactly `tls::PINNED`, never resumes sessions, and accepts any certificate.
fn client() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    });
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).context("TLS")?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)));
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Accepts any certificate.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_read_to_their_ends() {
        let one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let halves = |at: usize| read_one(&mut one[..at].chain(&one[at..]));
        assert!((0..one.len()).all(|at| halves(at).unwrap() == one));
        assert!(read_one(&mut &one[..one.len() - 1]).is_err());
        assert!(read_one(&mut [one, &one[..]].concat().as_slice()).is_err(), "two responses");
        assert!(read_one(&mut &b"HTTP/1.1 200 OK\r\n\r\n"[..]).is_err());
    }
}
