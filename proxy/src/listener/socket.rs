//! Listening sockets: one per worker on the same address (SO_REUSEPORT), so that the kernel distributes connections
//! and workers never contend. A Unix socket cannot be bound several times, so the workers share it.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::{
    config::{model::SocketOptions, units::Address},
    net::{self, ListenSocket, SocketFile},
};

/// Whether another process may use the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClaim {
    /// No other process may, not even another Tollgate: that would be a mistake.
    Sole,
    /// A Tollgate of the same user may; it is about to exit.
    Shared,
}

/// How long a socket that is to be closed waits for handshakes that have begun, which the kernel would reset: a round
/// trip to clients that are not very far away. If a successor shares the address, connections from this time may be
/// delayed by a second.
pub const HANDSHAKES: Duration = Duration::from_millis(100);

/// How long binding is retried while an address is in use: an exiting process closes its sockets a little later
/// ([`HANDSHAKES`]).
const IN_USE: Duration = Duration::from_millis(500);

/// Opens `count` sockets on an address and listens. See [`open`].
pub fn listen(
    address: &Address,
    options: &SocketOptions,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<ListenSocket>> {
    let sockets = open(address, options, count, claim)?;
    sockets.iter().try_for_each(|socket| socket.listen(backlog(options)))?;
    Ok(sockets)
}

/// Opens `count` sockets on an address. With port 0, all get the same port. TCP sockets do not listen yet, so that
/// they can be closed before any client has connected.
///
/// Fails with `AddrInUse` if another process listens there and `claim` does not allow it.
pub fn open(
    address: &Address,
    options: &SocketOptions,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<ListenSocket>> {
    match address {
        Address::Inet(address) => open_inet(*address, options, count, claim),
        Address::Unix(path) => listen_unix(path, options, count, claim),
        // Only endpoints have host names.
        Address::Host(..) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn open_inet(
    address: SocketAddr,
    options: &SocketOptions,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<ListenSocket>> {
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    if claim == AddressClaim::Sole {
        drop(bind_alone(address, options)?);
    }
    for _ in 0..count {
        let socket = bind(address, options, true)?;
        socket.set_nonblocking(true)?;
        let listener: std::net::TcpListener = socket.into();
        address = listener.local_addr()?;
        sockets.push(ListenSocket::Tcp(listener));
    }
    Ok(sockets)
}

/// Fails if another process is bound to the address and does not leave in time.
fn bind_alone(address: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let end = Instant::now() + IN_USE;
    loop {
        match bind(address, options, false) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(Duration::from_millis(10));
            }
            bound => return bound,
        }
    }
}

fn bind(address: SocketAddr, options: &SocketOptions, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if let Some(idle) = options.keep_alive.bound() {
        // Connections inherit this from their listening socket.
        socket.set_tcp_keepalive(&keep_alive(idle))?;
    }
    if options.transparent {
        // An IPv6 socket that also accepts IPv4 connections is transparent for both.
        let transparent = match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
        };
        transparent.map_err(|e| io::Error::new(e.kind(), format!("`transparent` (needs CAP_NET_ADMIN): {e}")))?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The buffer size of a UDP socket in bytes, if the system allows it (`net.core.rmem_max` and `wmem_max`): datagrams
/// that do not fit are lost.
#[cfg(feature = "http3")]
const DATAGRAMS: usize = 2 << 20;

/// Opens `count` UDP sockets on an address.
///
/// Fails with `AddrInUse` if another process is bound there and `claim` does not allow it.
#[cfg(feature = "http3")]
pub fn listen_datagrams(
    address: SocketAddr,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<std::net::UdpSocket>> {
    let bind = |share: bool| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(share)?;
        // Linux reduces these to what it allows.
        socket.set_recv_buffer_size(DATAGRAMS)?;
        socket.set_send_buffer_size(DATAGRAMS)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    if claim == AddressClaim::Sole {
        drop(bind(false)?);
    }
    (0..count).map(|_| bind(true).map(Into::into)).collect()
}

/// The range that Linux accepts for TCP_KEEPIDLE, in seconds.
const KEEP_ALIVE_SECONDS: std::ops::RangeInclusive<u64> = 1..=32767;

/// Linux's default interval between keep-alive probes, of which nine must go unanswered.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);

fn keep_alive(idle: Duration) -> TcpKeepalive {
    let seconds = idle.as_secs().clamp(*KEEP_ALIVE_SECONDS.start(), *KEEP_ALIVE_SECONDS.end());
    let idle = Duration::from_secs(seconds);
    TcpKeepalive::new().with_time(idle).with_interval(idle.min(KEEP_ALIVE_INTERVAL))
}

/// Returns the limit on connections that wait to be accepted.
pub fn backlog(options: &SocketOptions) -> i32 {
    options.backlog.try_into().unwrap_or(i32::MAX)
}

fn listen_unix(
    path: &Path,
    options: &SocketOptions,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<ListenSocket>> {
    if is_left_over(path)? {
        fs::remove_file(path)?;
    }
    let is_other_file = |meta: fs::Metadata| !meta.file_type().is_socket();
    if claim == AddressClaim::Shared && fs::symlink_metadata(path).is_ok_and(is_other_file) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // A path can have only one socket, so a shared one is bound to a temporary path and then renamed.
    let bound = match claim {
        AddressClaim::Sole => path.to_owned(),
        AddressClaim::Shared => path.with_file_name(format!(".{}", std::process::id())),
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&bound)?)?;
    let created = SocketFile::of(&bound)?;
    // Permissions are set before it listens, so that no client gets in too early.
    if let Some(mode) = &options.mode {
        set_mode(&bound, mode)?;
    }
    socket.listen(backlog(options))?;
    socket.set_nonblocking(true)?;
    let file = match claim {
        AddressClaim::Sole => Arc::new(created),
        AddressClaim::Shared => Arc::new(created.rename(path)?),
    };
    let listener: std::os::unix::net::UnixListener = socket.into();
    (0..count).map(|_| Ok(ListenSocket::Unix(file.clone(), listener.try_clone()?))).collect()
}

/// Sets the permissions of a Unix socket's file, in octal.
///
/// # Errors The system's errors.
pub fn set_mode(path: &Path, mode: &str) -> io::Result<()> {
    let mode = u32::from_str_radix(mode, 8).map_err(io::Error::other)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Returns whether a path is a socket without a listener, left over by a process that crashed.
fn is_left_over(path: &Path) -> io::Result<bool> {
    // Connecting to another kind of file is refused, too.
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        return Ok(false);
    }
    // A socket with a full backlog is in use; connecting must not block on it.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket.connect(&SockAddr::unix(path)?).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused))
}

/// Returns a connection's destination before the kernel's rules redirected it here (SO_ORIGINAL_DST, for REDIRECT and
/// DNAT). `None` if the kernel has no record of it, or for a Unix socket.
///
/// An IPv4 connection on an IPv6 socket has none: the kernel searches among IPv6 connections. A connection that
/// arrived by TPROXY keeps its destination as its local address.
pub fn original_destination(socket: &net::Socket) -> Option<SocketAddr> {
    let net::Socket::Tcp(stream) = socket else { return None };
    let socket = SockRef::from(stream);
    let original = match stream.local_addr().ok()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    original.ok()?.as_socket()
}

/// The state that a listener's workers share.
#[derive(Debug, Default)]
pub struct ListenerShared {
    connections: AtomicU32,
    limit: AtomicU32,
}

impl ListenerShared {
    /// Sets the limit on connections; 0 is unlimited.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Returns a permit for a connection, unless the limit is reached.
    pub fn enter(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let permit = ConnectionPermit(self.clone());
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        let limit = self.limit.load(Ordering::Relaxed);
        (limit == 0 || before < limit).then_some(permit)
    }
}

/// A counted connection; released on drop.
pub struct ConnectionPermit(Arc<ListenerShared>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
