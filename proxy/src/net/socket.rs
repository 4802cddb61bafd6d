//! Stream sockets, TCP or unix: one type for listening sockets and one for connected ones.

use std::{
    ffi::c_int,
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::ioctl::{Getter, Opcode, ioctl};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::timeout,
};

use super::{SocketFile, race};
use crate::config::units::Address;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

/// The peer address reported for a unix socket: a local process.
pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Socket {
    /// Connects within `limit`. The `bool` next to an error tells whether the limit expired.
    pub async fn connect(address: &Address, limit: Option<Duration>) -> Result<Socket, (io::Error, bool)> {
        let connecting = async {
            match address {
                Address::Inet(address) => {
                    let stream = TcpStream::connect(address).await?;
                    // Do not delay small writes until earlier ones are acknowledged (Nagle's algorithm).
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(stream))
                }
                Address::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
                Address::Host(name, _) => Err(io::Error::other(format!("`{name}` was not resolved"))),
            }
        };
        match limit {
            None => connecting.await.map_err(|e: io::Error| (e, false)),
            Some(limit) => match timeout(limit, connecting).await {
                Ok(connected) => connected.map_err(|e| (e, false)),
                Err(elapsed) => Err((io::Error::new(io::ErrorKind::TimedOut, elapsed), true)),
            },
        }
    }

    /// Connects to the first of these addresses that accepts: several are tried at the same time.
    pub async fn connect_any(addresses: &[SocketAddr]) -> io::Result<Socket> {
        let stream = race(addresses, TcpStream::connect).await?;
        stream.set_nodelay(true)?;
        Ok(Socket::Tcp(stream))
    }

    /// Returns this end's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Socket::Tcp(stream) => stream.local_addr(),
            Socket::Unix(_) => Ok(LOCAL),
        }
    }

    /// Returns the number of bytes that were written but not acknowledged by the peer's system.
    ///
    /// # Errors
    /// As `ioctl(TIOCOUTQ)`, which Linux calls `SIOCOUTQ` for sockets.
    #[expect(unsafe_code, reason = "no safe wrapper has this ioctl")]
    pub fn unacknowledged(&self) -> io::Result<usize> {
        // SAFETY: `TIOCOUTQ` writes one `int`, and the getter has room for exactly that (tty_ioctl(4), tcp(7)).
        let count = unsafe { ioctl(self, Getter::<{ libc::TIOCOUTQ as Opcode }, c_int>::new()) }?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}

/// Accepts the next waiting connection, skipping aborted ones. `None` if no connection is waiting.
fn next<T>(mut accept: impl FnMut() -> io::Result<T>) -> Option<T> {
    loop {
        match accept() {
            Ok(accepted) => return Some(accepted),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
            Err(_) => return None,
        }
    }
}

/// A listening socket that is not registered with a runtime yet.
#[derive(Debug)]
pub enum ListenSocket {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket with its file, which is removed first when this is dropped.
    Unix(Arc<SocketFile>, std::os::unix::net::UnixListener),
}

impl ListenSocket {
    /// Starts listening with this `backlog` (maximum number of waiting connections).
    ///
    /// # Errors
    /// As `listen(2)`.
    pub fn listen(&self, backlog: i32) -> io::Result<()> {
        match self {
            ListenSocket::Tcp(socket) => SockRef::from(socket).listen(backlog),
            // A unix socket has been listening since its file was created.
            ListenSocket::Unix(..) => Ok(()),
        }
    }
}

/// A listening socket of a worker.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket with its file, which is removed first when this is dropped.
    Unix(Arc<SocketFile>, UnixListener),
}

impl TryFrom<ListenSocket> for Listener {
    type Error = io::Error;

    fn try_from(socket: ListenSocket) -> io::Result<Listener> {
        match socket {
            ListenSocket::Tcp(socket) => TcpListener::from_std(socket).map(Listener::Tcp),
            ListenSocket::Unix(file, socket) => {
                UnixListener::from_std(socket).map(|socket| Listener::Unix(file, socket))
            }
        }
    }
}

impl Listener {
    /// Leaves new connections to other sockets, including one bound to a wider address; without such a socket they are
    /// refused. Handshakes in progress still complete on this socket. Sockets bound to the same address (SO_REUSEPORT)
    /// keep sharing connections with this one: until those sockets also leave their connections to others, or this one
    /// is closed, clients routed to this one get no reply and retry after a second.
    ///
    /// # Errors
    /// The system does not support it (before Linux 5.7).
    #[expect(unsafe_code, reason = "no safe wrapper has this option on Linux")]
    pub fn leave_to_others(&self) -> io::Result<()> {
        // A unix socket exists only once, and its connections have no handshake.
        let Listener::Tcp(socket) = self else { return Ok(()) };
        // The kernel delivers only packets that arrive on the socket's interface, and none arrive on one that does not
        // exist.
        let interface = c_int::MAX;
        let (value, size) = ((&raw const interface).cast(), size_of_val(&interface) as libc::socklen_t);
        // SAFETY: the value is an `int` that outlives the call, and `size` is its size (socket(7)).
        let failed =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, value, size) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Closes the socket and returns the connections that the system has already accepted, because the system would
    /// reset them.
    pub fn close(self) -> Vec<(Socket, SocketAddr)> {
        // Ask the system rather than the runtime, which may not have been notified of waiting connections yet.
        match self {
            Listener::Tcp(socket) => {
                let Ok(socket) = socket.into_std() else { return Vec::new() };
                let waiting = std::iter::from_fn(|| next(|| socket.accept()));
                let adopt = |(stream, peer): (std::net::TcpStream, _)| {
                    stream.set_nonblocking(true).ok()?;
                    let _ = stream.set_nodelay(true);
                    Some((Socket::Tcp(TcpStream::from_std(stream).ok()?), peer))
                };
                waiting.filter_map(adopt).collect()
            }
            Listener::Unix(file, socket) => {
                // New clients no longer find the socket. Other processes that share it still accept.
                drop(file);
                let Ok(socket) = socket.into_std() else { return Vec::new() };
                let waiting = std::iter::from_fn(|| next(|| socket.accept()));
                let adopt = |(stream, _): (std::os::unix::net::UnixStream, _)| {
                    stream.set_nonblocking(true).ok()?;
                    Some((Socket::Unix(UnixStream::from_std(stream).ok()?), LOCAL))
                };
                waiting.filter_map(adopt).collect()
            }
        }
    }

    /// Accepts the next connection and returns it with its peer's address.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, SocketAddr)>> {
        match self {
            Listener::Tcp(socket) => socket.poll_accept(cx).map_ok(|(stream, peer)| {
                // Do not delay small responses until earlier ones are acknowledged.
                let _ = stream.set_nodelay(true);
                (Socket::Tcp(stream), peer)
            }),
            Listener::Unix(_, socket) => socket.poll_accept(cx).map_ok(|(stream, _)| (Socket::Unix(stream), LOCAL)),
        }
    }

    /// Accepts the next connection.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }
}
