//! Addresses for servers that have to be told where to listen, kept from everybody else for as long as they are needed.

use std::{fmt, net::SocketAddr, ops::Deref, sync::Arc};

use socket2::{Domain, Socket, Type};

/// An address that the kernel gives to nobody else while this lives. A socket that is bound and does not listen holds
/// it, so connections are refused until a server that sets SO_REUSEADDR, as servers do, listens there.
#[derive(Clone)]
pub struct Reserved {
    address: SocketAddr,
    _socket: Arc<Socket>,
}

/// Reserves an address on the loopback.
pub fn reserve() -> Reserved {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("SO_REUSEADDR can be set");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    let address = socket.local_addr().expect("its address").as_socket().expect("an IP address");
    Reserved { address, _socket: Arc::new(socket) }
}

impl Deref for Reserved {
    type Target = SocketAddr;

    fn deref(&self) -> &SocketAddr {
        &self.address
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
