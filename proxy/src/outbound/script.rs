//! A scripted server for tests: it reads requests and writes bytes. Its connections are pipes, so that with tokio's clock
//! paused waits take no time and can be checked to the millisecond.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{ConnectError, Dial, Version};
use crate::config::url::HttpUrl;

/// Longer than anything that a client does by itself.
pub const LONG: Duration = Duration::from_secs(100_000);

/// Connects to the scripted server.
pub struct Pipes {
    url: HttpUrl,
    dialled: mpsc::UnboundedSender<DuplexStream>,
}

impl Dial for Pipes {
    type Io = DuplexStream;

    fn url(&self) -> &HttpUrl {
        &self.url
    }

    async fn dial(&self) -> Result<(DuplexStream, Version), ConnectError> {
        let (ours, theirs) = duplex(64 << 10);
        self.dialled.send(theirs).map_err(|_| ConnectError::NoAddress(self.url.host.clone()))?;
        Ok((ours, Version::Http1))
    }
}

/// A request as the server receives it.
pub struct Asked {
    pub head: String,
    pub at: Instant,
    /// The number of the connection, from 1.
    pub connection: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The version that a conditional request names.
    pub fn version(&self) -> Option<&str> {
        self.header("if-none-match")
    }

    /// The target of the request.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

/// The scripted server.
pub struct Script {
    pub arriving: mpsc::UnboundedReceiver<DuplexStream>,
    pub open: Option<DuplexStream>,
    connections: usize,
}

impl Script {
    /// A server, and the way to connect to it by this URL.
    pub fn at(url: HttpUrl) -> (Pipes, Script) {
        let (dialled, arriving) = mpsc::unbounded_channel();
        (Pipes { url, dialled }, Script { arriving, open: None, connections: 0 })
    }

    /// Returns the next request, on the open connection or on a new one.
    pub async fn request(&mut self) -> Asked {
        let receiving = async {
            loop {
                if self.open.is_none() {
                    self.open = self.arriving.recv().await;
                    self.connections += 1;
                }
                let mut head = Vec::new();
                while let Ok(byte) = self.open.as_mut().expect("the client runs").read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        let head = String::from_utf8(head).unwrap();
                        return Asked { head, at: Instant::now(), connection: self.connections };
                    }
                }
                self.open = None;
            }
        };
        timeout(LONG, receiving).await.expect("the client asks")
    }

    /// Writes bytes; whether the client still reads them.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match &mut self.open {
            Some(open) => open.write_all(bytes.as_ref()).await.is_ok(),
            None => false,
        }
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Writes an answer. `head` is the status and headers, one a line.
    pub async fn answer(&mut self, head: &str, body: &str) {
        let head = head.trim().lines().map(str::trim).collect::<Vec<_>>().join("\r\n");
        let length =
            if head.starts_with("304") { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.write(format!("HTTP/1.1 {head}\r\n{length}\r\n{body}")).await;
    }
}
