//! Reserved addresses for servers that must be told where to listen.

use std::{fmt, net::SocketAddr, ops::Deref, sync::Arc};

use socket2::{Domain, Socket, Type};

/// An address that the kernel does not assign to others while this value lives. A socket that is bound but does not
/// listen reserves it: connections are refused until a server that sets SO_REUSEADDR, as servers do, listens there.
#[derive(Clone)]
pub struct Reserved {
    address: SocketAddr,
    _socket: Arc<Socket>,
}

/// Reserves an address on the loopback interface.
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
