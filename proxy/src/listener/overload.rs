//! Connections that are one too many (`limits.connections`): a client that speaks plain HTTP/1.1 is told so.

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

/// What they are told.
const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How many of them are kept at one time until they have read it. Beyond, they are told and closed at once.
const MOST: u32 = 64;

/// How long they are kept.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of theirs that are read, so that none of them can send for as long as it is kept.
const MAX_READ: usize = 1 << 20;

/// The connections of a listener that a worker has refused and not closed yet.
#[derive(Debug, Default)]
pub struct RejectedConnections {
    lingering: Rc<Cell<u32>>,
}

impl RejectedConnections {
    /// Refuses a connection of a listener with this protocol and this mode of its `tls` section. Returns at once; must be called
    /// on a worker.
    ///
    /// A connection that cannot be plain HTTP/1.1 is closed. One that can be something else as well is closed unless its client
    /// begins with HTTP/1.1 within a second.
    ///
    /// A connection that is closed while bytes are unread, or that gets bytes after it, is reset, and its client's system throws
    /// away the answer (RFC 9112 section 9.6). So it is kept for a second, or until the client closes it. When there are 64 such
    /// connections already, or `may_linger` says no, the answer is written, what has come is read, and it is closed: most clients
    /// get to read it.
    pub fn refuse(&self, socket: Socket, protocol: Protocol, tls: Option<TlsMode>, may_linger: bool) {
        let wait = match (protocol, tls) {
            (Protocol::Http2 | Protocol::Tcp, _) | (_, Some(TlsMode::Strict)) => return,
            (Protocol::Http | Protocol::Http1, None | Some(TlsMode::Disable)) => false,
            (Protocol::Auto, _) | (_, Some(TlsMode::Permissive)) => true,
        };
        if may_linger && self.lingering.get() < MOST {
            let place = RejectPermit::take(&self.lingering);
            spawn_local(async move {
                let _ = timeout(LINGER, linger(socket, wait)).await;
                drop(place);
            });
        } else if !wait {
            answer_at_once(&socket);
        }
    }

    /// How many are kept now.
    pub fn lingering(&self) -> u32 {
        self.lingering.get()
    }
}

/// One of [`MOST`]; dropping it gives it back.
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

/// Answers, and reads until the client closes. With `wait`, answers only if the client speaks HTTP/1.1.
async fn linger(mut socket: Socket, wait: bool) -> io::Result<()> {
    // Not an array: it would be part of the task.
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

/// The same as far as it goes without waiting. Around tokio, which has not asked the system yet whether the socket is ready.
fn answer_at_once(socket: &Socket) {
    let socket = match socket {
        Socket::Tcp(stream) => SockRef::from(stream),
        Socket::Unix(stream) => SockRef::from(stream),
    };
    // What has come is read first, so that as little as possible can come between this and closing.
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
    fn a_client_is_told_whenever_it_sends() {
        run(async {
            let refusals = RejectedConnections::default();
            for (before, after) in [(true, false), (false, true), (true, true), (false, false)] {
                let (mut client, socket) = pair().await;
                if before {
                    client.write_all(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n").await.unwrap();
                }
                refusals.refuse(socket, Protocol::Http, None, true);
                tokio::task::yield_now().await;
                if after {
                    client.write_all(b"hello").await.unwrap();
                }
                assert_eq!(read(&mut client).await.unwrap(), ANSWER);
            }
        });
    }

    #[test]
    fn over_the_bound_a_client_is_told_and_closed() {
        run(async {
            let refusals = RejectedConnections { lingering: Rc::new(Cell::new(MOST)) };
            let (mut client, socket) = pair().await;
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            match &socket {
                Socket::Tcp(stream) => stream.readable().await.unwrap(),
                Socket::Unix(_) => unreachable!(),
            }
            refusals.refuse(socket, Protocol::Http1, None, true);
            assert_eq!(refusals.lingering(), MOST);
            assert_eq!(read(&mut client).await.unwrap(), ANSWER);
        });
    }

    #[test]
    fn a_place_is_free_again_when_the_client_closes_or_its_time_is_over() {
        run(async {
            let refusals = RejectedConnections::default();
            let ((leaves, first), (_stays, second)) = (pair().await, pair().await);
            refusals.refuse(first, Protocol::Http1, None, true);
            refusals.refuse(second, Protocol::Http1, None, true);
            assert_eq!(refusals.lingering(), 2);
            drop(leaves);
            while refusals.lingering() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn only_who_speaks_http_1_is_told() {
        run(async {
            let refusals = RejectedConnections::default();
            let strict = Some(TlsMode::Strict);
            for (protocol, tls) in [(Protocol::Http2, None), (Protocol::Tcp, None), (Protocol::Http, strict)] {
                let (mut client, socket) = pair().await;
                refusals.refuse(socket, protocol, tls, true);
                assert_eq!(read(&mut client).await.unwrap(), b"");
            }
            for (protocol, tls) in [(Protocol::Auto, None), (Protocol::Http, Some(TlsMode::Permissive))] {
                for (sent, told) in [("GET / HTTP/1.1\r\n", ANSWER), ("\x16\x03\x01", b""), ("*1\r\n", b""), ("G", b"")]
                {
                    let (mut client, socket) = pair().await;
                    client.write_all(sent.as_bytes()).await.unwrap();
                    refusals.refuse(socket, protocol, tls, true);
                    // With bytes unread a connection is reset, which is as good as closed.
                    assert_eq!(read(&mut client).await.unwrap_or_default(), told, "{sent:?}");
                }
            }
        });
    }

    #[test]
    fn unix_sockets_are_refused_too() {
        run(async {
            let refusals = RejectedConnections { lingering: Rc::new(Cell::new(MOST)) };
            let (mut client, socket) = UnixStream::pair().unwrap();
            refusals.refuse(Socket::Unix(socket), Protocol::Http, None, true);
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, ANSWER);
        });
    }
}
