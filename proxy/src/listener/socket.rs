//! Listening sockets: one for each worker, on the same address (SO_REUSEPORT), so that the kernel spreads connections and no
//! worker ever waits for another. Of a unix socket there can be but one, which the workers share.

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

/// Whether another process may have the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClaim {
    /// It must not, even if it is one of ours: that is a mistake, not a partner.
    Sole,
    /// One of ours may, with the same user. It is about to end.
    Shared,
}

/// How long a socket that is to be closed waits for handshakes that have begun, which the system would reset: a round trip to clients
/// that are not very far away. Where a successor shares the address, connections that come in this time may be a second late.
pub const HANDSHAKES: Duration = Duration::from_millis(100);

/// How long an address that is in use is asked for again: a process that ends closes its sockets a little later ([`HANDSHAKES`]).
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

/// Opens `count` sockets on an address. Port 0 gives all of them the same port. Those of TCP do not listen yet: if they are given up
/// again, nobody has connected to them.
///
/// Fails with `AddrInUse` if anybody listens there that must not.
pub fn open(
    address: &Address,
    options: &SocketOptions,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<ListenSocket>> {
    match address {
        Address::Inet(address) => open_inet(*address, options, count, claim),
        Address::Unix(path) => listen_unix(path, options, count, claim),
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

/// Fails if anybody else is there and stays.
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
        // Connections have what their listening socket has.
        socket.set_tcp_keepalive(&keep_alive(idle))?;
    }
    if options.transparent {
        // An IPv6 socket that takes IPv4 connections too is transparent for both.
        let transparent = match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
        };
        transparent.map_err(|e| io::Error::new(e.kind(), format!("`transparent` (needs CAP_NET_ADMIN): {e}")))?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Bytes that the system keeps for a socket of datagrams, if it allows so many (`net.core.rmem_max` and `wmem_max`): who is
/// late for datagrams loses them.
#[cfg(feature = "http3")]
const DATAGRAMS: usize = 2 << 20;

/// Opens `count` sockets for datagrams on an address.
///
/// Fails with `AddrInUse` if anybody has one there that must not.
#[cfg(feature = "http3")]
pub fn listen_datagrams(
    address: SocketAddr,
    count: usize,
    claim: AddressClaim,
) -> io::Result<Vec<std::net::UdpSocket>> {
    let bind = |share: bool| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(share)?;
        // What is not allowed is cut to what is.
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

/// The least and the most that Linux takes for TCP_KEEPIDLE, in seconds.
const KEEP_ALIVE_SECONDS: std::ops::RangeInclusive<u64> = 1..=32767;

/// Linux's own time between two questions, of which nine must stay without an answer.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);

fn keep_alive(idle: Duration) -> TcpKeepalive {
    let seconds = idle.as_secs().clamp(*KEEP_ALIVE_SECONDS.start(), *KEEP_ALIVE_SECONDS.end());
    let idle = Duration::from_secs(seconds);
    TcpKeepalive::new().with_time(idle).with_interval(idle.min(KEEP_ALIVE_INTERVAL))
}

/// How many connections may wait on a socket.
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
    // There can be but one socket of a name, so a shared one is made beside the other and then put in its place.
    let bound = match claim {
        AddressClaim::Sole => path.to_owned(),
        AddressClaim::Shared => path.with_file_name(format!(".{}", std::process::id())),
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&bound)?)?;
    let made = SocketFile::of(&bound)?;
    // Nobody gets in before it listens.
    if let Some(mode) = &options.mode {
        set_mode(&bound, mode)?;
    }
    socket.listen(backlog(options))?;
    socket.set_nonblocking(true)?;
    let file = match claim {
        AddressClaim::Sole => Arc::new(made),
        AddressClaim::Shared => Arc::new(made.rename(path)?),
    };
    let listener: std::os::unix::net::UnixListener = socket.into();
    (0..count).map(|_| Ok(ListenSocket::Unix(file.clone(), listener.try_clone()?))).collect()
}

/// Gives a unix socket's file these permissions, in octal.
///
/// # Errors
/// The system refuses.
pub fn set_mode(path: &Path, mode: &str) -> io::Result<()> {
    let mode = u32::from_str_radix(mode, 8).map_err(io::Error::other)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whether a path is a socket that nobody listens on: what is left of a process that did not end well.
fn is_left_over(path: &Path) -> io::Result<bool> {
    // Connecting to a file of another kind is refused as well.
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        return Ok(false);
    }
    // One that has no room for another connection is alive, and must not be waited for.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket.connect(&SockAddr::unix(path)?).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused))
}

/// Where a connection was going before the system's rules redirected it here (SO_ORIGINAL_DST, for REDIRECT and DNAT).
/// `None`: the system does not know of it, or it is a unix socket's.
///
/// An IPv4 connection on an IPv6 socket has none: the system looks for it among those of IPv6. A connection that came by TPROXY
/// has kept its destination, as its local address.
pub fn original_destination(socket: &net::Socket) -> Option<SocketAddr> {
    let net::Socket::Tcp(stream) = socket else { return None };
    let asked = SockRef::from(stream);
    let original = match stream.local_addr().ok()? {
        SocketAddr::V4(_) => asked.original_dst_v4(),
        SocketAddr::V6(_) => asked.original_dst_v6(),
    };
    original.ok()?.as_socket()
}

/// What the workers of a listener share.
#[derive(Debug, Default)]
pub struct ListenerShared {
    connections: AtomicU32,
    limit: AtomicU32,
}

impl ListenerShared {
    /// Changes the bound on connections; 0: none.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Connections now.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Takes a place for a connection, if there is one.
    pub fn enter(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let place = ConnectionPermit(self.clone());
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        let limit = self.limit.load(Ordering::Relaxed);
        (limit == 0 || before < limit).then_some(place)
    }
}

/// A connection's place; dropping it gives it back.
pub struct ConnectionPermit(Arc<ListenerShared>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
