//! A load generator of our own, for the one thing that the others do not do: a TLS connection for each request, none of
//! which resumes an earlier one (wrk and h2load do, whenever a server lets them).
//!
//! It is this same program, started again as `peers connect` on the load generator's processor; it writes a line of JSON.

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

/// Connects with TLS for each request.
#[derive(Debug, Parser)]
pub struct ConnectArgs {
    #[arg(long)]
    pub port: u16,
    #[arg(long)]
    pub path: String,
    #[arg(long)]
    pub seconds: u64,
    /// Requests that are under way at a time, at most
    #[arg(long)]
    pub connections: u32,
    /// Requests a second; else as many as there can be
    #[arg(long)]
    pub rate: Option<u32>,
}

/// What has come of it; times in microseconds, from when a request was due.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connected {
    pub seconds: f64,
    pub errors: u64,
    pub times: Vec<u32>,
}

/// Connects, and writes what has come of it.
pub fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    let config = client()?;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(args.seconds);
    let workers: Vec<_> = (0..args.connections)
        .map(|n| {
            let (config, target) = (config.clone(), (args.port, args.path.clone()));
            // Each has its share of the rate, and they take turns.
            let pace = args.rate.map(|rate| Duration::from_secs(1) * args.connections / rate);
            let first = pace.map_or(begun, |pace| begun + pace * n / args.connections);
            thread::spawn(move || work(&config, &target, first, pace, end))
        })
        .collect();
    let mut all = Connected::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
        all.errors += part.errors;
        all.times.extend(part.times);
    }
    all.seconds = begun.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}

fn work(
    config: &Arc<ClientConfig>,
    (port, path): &(u16, String),
    first: Instant,
    pace: Option<Duration>,
    end: Instant,
) -> Connected {
    let mut connected = Connected::default();
    let mut due = first;
    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match request(config, *port, path) {
            Ok(()) => connected.times.push(due.elapsed().as_micros() as u32),
            Err(_) => connected.errors += 1,
        }
        due = pace.map_or_else(Instant::now, |pace| due + pace);
    }
    connected
}

/// A request on a connection of its own.
fn request(config: &Arc<ClientConfig>, port: u16, path: &str) -> io::Result<()> {
    let longest = Duration::from_secs(5);
    let socket = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), longest)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(longest))?;
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, socket);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: peers/1.0\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::with_capacity(1024);
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(e),
        _ => {}
    }
    if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other("not answered with 200")) }
}

/// As clients are by default, but that nothing is resumed, and any certificate is good.
fn client() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.context("TLS")?.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
