//! Load shedding: connections beyond `limits.connections` are rejected, plain HTTP/1.1 clients with a 503 response.

use std::{cell::Cell, io, net::Shutdown, rc::Rc, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::timeout,
};

use super::sniff::{MAX_SNIFFED, Sniffed, sniff};
use crate::{
    config::model::{Protocol, TlsMode},
    net::Socket,
};

/// The response to rejected clients.
const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The limit on rejected connections kept open until the client has read the response. Any others are closed
/// immediately.
const MOST: u32 = 64;

/// How long a rejected connection stays open.
const LINGER: Duration = Duration::from_secs(1);

/// The limit on bytes read from a rejected connection, so that a client cannot keep sending.
const MAX_READ: usize = 1 << 20;

/// The rejected connections of a listener on a worker that are still open.
#[derive(Debug, Default)]
pub struct RejectedConnections {
    lingering: Rc<Cell<u32>>,
}

impl RejectedConnections {
    /// Rejects a connection of a listener with this protocol and this TLS mode. Does not block; must be called on a
    /// worker.
    ///
    /// A connection that cannot be plain HTTP/1.1 is closed. If it can be HTTP/1.1 or something else, it is closed
    /// unless the client sends the beginning of an HTTP/1.1 request within a second.
    ///
    /// Closing a connection with unread bytes, or with more to come, resets it, and the client's system then discards
    /// the response (RFC 9112 section 9.6). So it stays open for a second, or until the client closes it. If there
    /// are already 64 such connections, or `may_linger` is false, the response is written, received bytes are read,
    /// and the connection is closed: most clients still receive the response.
    pub fn reject(&self, socket: Socket, protocol: Protocol, tls: Option<TlsMode>, may_linger: bool) {
        let wait = match (protocol, tls) {
            (Protocol::Http2 | Protocol::Tcp, _) | (_, Some(TlsMode::Strict)) => return,
            (Protocol::Http | Protocol::Http1, None | Some(TlsMode::Disable)) => false,
            (Protocol::Auto, _) | (_, Some(TlsMode::Permissive)) => true,
        };
        if may_linger && self.lingering.get() < MOST {
            let permit = RejectPermit::take(&self.lingering);
            spawn_local(async move {
                let _ = timeout(LINGER, linger(socket, wait)).await;
                drop(permit);
            });
        } else if !wait {
            answer_now(&socket);
        }
    }

    /// Returns the number of rejected connections that are still open.
    pub fn lingering(&self) -> u32 {
        self.lingering.get()
    }
}

/// One of the [`MOST`] permits; released on drop.
struct RejectPermit(Rc<Cell<u32>>);

impl RejectPermit {
    fn take(count: &Rc<Cell<u32>>) -> RejectPermit {
        count.set(count.get() + 1);
        RejectPermit(count.clone())
    }
}

impl Drop for RejectPermit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Responds, and reads until the client closes. With `wait`, responds only to HTTP/1.1.
async fn linger(mut socket: Socket, wait: bool) -> io::Result<()> {
    // A `Vec`, because an array would be part of the task.
    let mut sink = vec![0; 4 << 10];
    let mut read = 0;
    if wait {
        loop {
            match sniff(&sink[..read]) {
                Sniffed::Http1 => break,
                Sniffed::NeedMore => {}
                _ => return Ok(()),
            }
            match socket.read(&mut sink[read..MAX_SNIFFED]).await? {
                0 => return Ok(()),
                more => read += more,
            }
        }
    }
    socket.write_all(ANSWER).await?;
    socket.shutdown().await?;
    while read < MAX_READ {
        match socket.read(&mut sink).await? {
            0 => break,
            more => read += more,
        }
    }
    Ok(())
}

/// Like [`linger`], without waiting. Bypasses tokio, which has not yet polled the socket for readiness.
fn answer_now(socket: &Socket) {
    let socket = match socket {
        Socket::Tcp(stream) => SockRef::from(stream),
        Socket::Unix(stream) => SockRef::from(stream),
    };
    // Received bytes are read last, so that few can arrive before the socket is closed.
    let mut sink = [const { std::mem::MaybeUninit::uninit() }; 4 << 10];
    if socket.send(ANSWER).is_ok() && socket.shutdown(Shutdown::Write).is_ok() {
        let mut read = 0;
        while read < MAX_READ
            && let Ok(more @ 1..) = socket.recv(&mut sink)
        {
            read += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::{
        net::{TcpListener, TcpStream, UnixStream},
        task::LocalSet,
    };

    use super::*;

    fn run<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test)
    }

    async fn pair() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), Socket::Tcp(accepted.unwrap().0))
    }

    async fn read(client: &mut TcpStream) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.map(|_| all)
    }

    #[test]
    fn a_client_gets_the_response_whenever_it_sends() {
        run(async {
            let rejected = RejectedConnections::default();
            for (before, after) in [(true, false), (false, true), (true, true), (false, false)] {
                let (mut client, socket) = pair().await;
                if before {
                    client.write_all(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n").await.unwrap();
                }
                rejected.reject(socket, Protocol::Http, None, true);
                tokio::task::yield_now().await;
                if after {
                    client.write_all(b"hello").await.unwrap();
                }
                assert_eq!(read(&mut client).await.unwrap(), ANSWER);
            }
        });
    }

    #[test]
    fn beyond_the_limit_a_client_gets_the_response_and_is_closed() {
        run(async {
            let rejected = RejectedConnections { lingering: Rc::new(Cell::new(MOST)) };
            let (mut client, socket) = pair().await;
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            match &socket {
                Socket::Tcp(stream) => stream.readable().await.unwrap(),
                Socket::Unix(_) => unreachable!(),
            }
            rejected.reject(socket, Protocol::Http1, None, true);
            assert_eq!(rejected.lingering(), MOST);
            assert_eq!(read(&mut client).await.unwrap(), ANSWER);
        });
    }

    #[test]
    fn a_permit_is_released_when_the_client_closes_or_times_out() {
        run(async {
            let rejected = RejectedConnections::default();
            let ((leaves, first), (_stays, second)) = (pair().await, pair().await);
            rejected.reject(first, Protocol::Http1, None, true);
            rejected.reject(second, Protocol::Http1, None, true);
            assert_eq!(rejected.lingering(), 2);
            drop(leaves);
            while rejected.lingering() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn only_http_1_clients_get_a_response() {
        run(async {
            let rejected = RejectedConnections::default();
            let strict = Some(TlsMode::Strict);
            for (protocol, tls) in [(Protocol::Http2, None), (Protocol::Tcp, None), (Protocol::Http, strict)] {
                let (mut client, socket) = pair().await;
                rejected.reject(socket, protocol, tls, true);
                assert_eq!(read(&mut client).await.unwrap(), b"");
            }
            for (protocol, tls) in [(Protocol::Auto, None), (Protocol::Http, Some(TlsMode::Permissive))] {
                for (sent, expected) in
                    [("GET / HTTP/1.1\r\n", ANSWER), ("\x16\x03\x01", b""), ("*1\r\n", b""), ("G", b"")]
                {
                    let (mut client, socket) = pair().await;
                    client.write_all(sent.as_bytes()).await.unwrap();
                    rejected.reject(socket, protocol, tls, true);
                    // A connection closed with unread bytes is reset.
                    assert_eq!(read(&mut client).await.unwrap_or_default(), expected, "{sent:?}");
                }
            }
        });
    }

    #[test]
    fn unix_sockets_are_rejected_too() {
        run(async {
            let rejected = RejectedConnections { lingering: Rc::new(Cell::new(MOST)) };
            let (mut client, socket) = UnixStream::pair().unwrap();
            rejected.reject(Socket::Unix(socket), Protocol::Http, None, true);
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, ANSWER);
        });
    }
}
