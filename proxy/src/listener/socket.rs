//! Listening sockets: one for each worker, on the same address (SO_REUSEPORT), so that the kernel spreads connections and no
//! worker ever waits for another.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel keeps until a worker takes them.
const BACKLOG: i32 = 4096;

/// Opens `count` sockets on an address. Port 0 gives all of them the same port.
pub fn listen(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    // Without SO_REUSEPORT, as a first try: another process on this address, even one of ours, is a mistake, not a partner.
    drop(bind(address, false)?);
    for _ in 0..count {
        let socket = bind(address, true)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener: TcpListener = socket.into();
        address = listener.local_addr()?;
        sockets.push(listener);
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
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
        let sockets = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
        assert_eq!(listen(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
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
