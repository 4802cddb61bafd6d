//! Listening sockets: one for each worker, on the same address (SO_REUSEPORT), so that the kernel spreads connections and no
//! worker ever waits for another. Of a unix socket there can be but one, which the workers share.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net as unix},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::{
    config::{model::SocketOptions, units::Address},
    net::ListenSocket,
};

/// Opens `count` sockets on an address. Port 0 gives all of them the same port.
pub fn listen(address: &Address, options: &SocketOptions, count: usize) -> io::Result<Vec<ListenSocket>> {
    match address {
        Address::Inet(address) => listen_inet(*address, options, count),
        Address::Unix(path) => listen_unix(path, options, count),
    }
}

fn listen_inet(address: SocketAddr, options: &SocketOptions, count: usize) -> io::Result<Vec<ListenSocket>> {
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    // Without SO_REUSEPORT, as a first try: another process on this address, even one of ours, is a mistake, not a partner.
    drop(bind(address, options, false)?);
    for _ in 0..count {
        let socket = bind(address, options, true)?;
        socket.listen(options.backlog.try_into().unwrap_or(i32::MAX))?;
        socket.set_nonblocking(true)?;
        let listener: std::net::TcpListener = socket.into();
        address = listener.local_addr()?;
        sockets.push(ListenSocket::Tcp(listener));
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, options: &SocketOptions, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if let Some(time) = options.keep_alive.bound() {
        // Connections have what their listening socket has.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time))?;
    }
    if options.transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => return Err(io::Error::other("`transparent` is for IPv4 addresses")),
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen_unix(path: &Path, options: &SocketOptions, count: usize) -> io::Result<Vec<ListenSocket>> {
    // A socket that nobody listens on is left over from a process that did not end well.
    let stale = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    if unix::UnixStream::connect(path).as_ref().is_err_and(stale) {
        fs::remove_file(path)?;
    }
    let listener = unix::UnixListener::bind(path)?;
    if let Some(mode) = &options.mode {
        let mode = u32::from_str_radix(mode, 8).map_err(io::Error::other)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    listener.set_nonblocking(true)?;
    (0..count).map(|_| listener.try_clone().map(ListenSocket::Unix)).collect()
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
    pub fn enter(self: &Arc<Self>) -> Option<ConnectionPlace> {
        let place = ConnectionPlace(self.clone());
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        let limit = self.limit.load(Ordering::Relaxed);
        (limit == 0 || before < limit).then_some(place)
    }
}

/// A connection's place; dropping it gives it back.
pub struct ConnectionPlace(Arc<ListenerShared>);

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_workers_listen_on_one_port_and_nobody_else_does() {
        let options = SocketOptions::default();
        let sockets = listen(&"127.0.0.1:0".parse().unwrap(), &options, 3).unwrap();
        let address = |socket: &ListenSocket| match socket {
            ListenSocket::Tcp(socket) => socket.local_addr().unwrap(),
            ListenSocket::Unix(_) => panic!("not TCP"),
        };
        let first = address(&sockets[0]);
        assert!(sockets.iter().all(|s| address(s) == first));
        assert_eq!(listen(&first.into(), &options, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_unix_socket_is_taken_over_only_from_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let address = Address::Unix(path.as_path().into());
        let options = SocketOptions { mode: Some("600".into()), ..SocketOptions::default() };
        let sockets = listen(&address, &options, 2).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&address, &options, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        listen(&address, &options, 1).unwrap();
    }

    #[test]
    fn a_full_listener_lets_nobody_in_until_somebody_leaves() {
        let shared = Arc::new(ListenerShared::default());
        shared.set_limit(2);
        let places: Vec<_> = (0..3).map(|_| shared.enter()).collect();
        assert_eq!(places.iter().filter(|p| p.is_some()).count(), 2);
        drop(places);
        assert!(shared.enter().is_some());
        assert_eq!(shared.connections(), 0);
    }
}
