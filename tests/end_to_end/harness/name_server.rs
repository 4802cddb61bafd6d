//! A name server that answers as a test wants, on UDP and TCP, also with what no real server sends.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Types of records.
pub const A: u16 = 1;
pub const CNAME: u16 = 5;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;

/// A query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The name, in lower case, without the dot at the end.
    pub name: String,
    /// The type of record.
    pub kind: u16,
    pub over_tcp: bool,
}

/// An answer.
#[derive(Clone)]
pub enum Reply {
    /// These records; none: the name has no records of this type.
    Records(Vec<Record>),
    /// An error: 2 is SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    Error(u8),
    /// Nothing but the flag that tells clients to ask again over TCP.
    Truncated,
    /// No answer.
    Silence,
    /// These bytes instead of a message.
    Garbage(Vec<u8>),
}

#[derive(Debug, Clone)]
pub struct Record {
    name: String,
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
}

impl Record {
    /// The record of an address.
    pub fn address(name: &str, ttl: u32, ip: IpAddr) -> Record {
        let (kind, data) = match ip {
            IpAddr::V4(ip) => (A, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
        };
        Record { name: name.to_owned(), kind, ttl, data }
    }

    /// Whether a query for this type gets it.
    pub fn answers(&self, kind: u16) -> bool {
        self.kind == kind || self.kind == CNAME
    }

    /// An alias.
    pub fn cname(name: &str, target: &str) -> Record {
        Record { name: name.to_owned(), kind: CNAME, ttl: 1, data: encoded(target) }
    }

    /// A service: priority, weight, port, and target.
    pub fn srv(name: &str, [priority, weight, port]: [u16; 3], target: &str) -> Record {
        let numbers = [priority, weight, port].map(u16::to_be_bytes).concat();
        Record { name: name.to_owned(), kind: SRV, ttl: 1, data: [numbers, encoded(target)].concat() }
    }
}

type Script = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// The server. It ends when dropped.
pub struct NameServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    script: Script,
    asked: Mutex<Vec<Asked>>,
    over: AtomicBool,
}

impl NameServer {
    /// Starts a server.
    pub fn new(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> NameServer {
        loop {
            let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let address = udp.local_addr().expect("an address");
            // The port may be taken on TCP.
            if let Ok(tcp) = TcpListener::bind(address) {
                return NameServer::on(udp, tcp, script);
            }
        }
    }

    /// Starts a server at the address of one that has ended.
    pub fn at(address: SocketAddr, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> NameServer {
        let udp = UdpSocket::bind(address).expect("the port is free");
        NameServer::on(udp, TcpListener::bind(address).expect("the port is free"), script)
    }

    fn on(udp: UdpSocket, tcp: TcpListener, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> NameServer {
        let address = udp.local_addr().expect("an address");
        let over = AtomicBool::new(false);
        let shared = Arc::new(Shared { script: Box::new(script), asked: Mutex::default(), over });
        udp.set_read_timeout(Some(Duration::from_millis(20))).expect("a time limit");
        let (one, other) = (shared.clone(), shared.clone());
        let threads = vec![
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while !one.over.load(Ordering::SeqCst) {
                    let Ok((length, client)) = udp.recv_from(&mut bytes) else { continue };
                    if let Some(answer) = one.answer(&bytes[..length], false) {
                        let _ = udp.send_to(&answer, client);
                    }
                }
            }),
            thread::spawn(move || {
                for stream in tcp.incoming().map_while(Result::ok) {
                    if other.over.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = other.clone();
                    thread::spawn(move || shared.serve(stream));
                }
            }),
        ];
        NameServer { address, shared, threads }
    }

    /// The queries so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How many queries there were for addresses (IPv4) of a name.
    pub fn count(&self, name: &str) -> usize {
        self.asked().iter().filter(|asked| asked.name == name && asked.kind == A).count()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Ends the wait for a connection.
        let _ = TcpStream::connect(self.address);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() && !self.over.load(Ordering::SeqCst) {
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            let Some(answer) = stream.read_exact(&mut query).ok().and_then(|()| self.answer(&query, true)) else {
                return;
            };
            let length = u16::try_from(answer.len()).expect("a short answer").to_be_bytes();
            if stream.write_all(&[&length[..], &answer].concat()).is_err() {
                return;
            }
        }
    }

    /// The answer to a query; `None`: silence.
    fn answer(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let (id, question) = (query.get(..2)?, query.get(12..)?);
        let (mut labels, mut at) = (Vec::new(), 0);
        while let length @ 1.. = usize::from(*question.get(at)?) {
            labels.push(String::from_utf8_lossy(question.get(at + 1..=at + length)?).to_lowercase());
            at += length + 1;
        }
        let question = question.get(..at + 5)?;
        let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
        let asked = Asked { name: labels.join("."), kind, over_tcp };
        self.asked.lock().unwrap().push(asked.clone());
        let reply = (self.script)(&asked);
        let message = |code: u8, is_truncated: bool, records: &[Record]| {
            let flags = [0x81 | (u8::from(is_truncated) << 1), 0x80 | code];
            let counts = [1, records.len() as u16, 0, 0].map(u16::to_be_bytes).concat();
            let mut bytes = [id, &flags, &counts, question].concat();
            for record in records {
                bytes.extend(encoded(&record.name));
                bytes.extend([record.kind, 1].map(u16::to_be_bytes).concat());
                bytes.extend(record.ttl.to_be_bytes());
                bytes.extend((record.data.len() as u16).to_be_bytes());
                bytes.extend(&record.data);
            }
            bytes
        };
        match reply {
            Reply::Records(records) => Some(message(0, false, &records)),
            Reply::Error(code) => Some(message(code, false, &[])),
            Reply::Truncated => Some(message(0, true, &[])),
            Reply::Garbage(bytes) => Some(bytes),
            Reply::Silence => None,
        }
    }
}

/// A name as messages have it.
fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
