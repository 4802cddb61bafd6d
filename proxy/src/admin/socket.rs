//! The socket of the admin listener. A draining process continues to serve it, with 503 for `GET /ready`, until a
//! successor on this machine needs the address: `POST /yield` then closes the socket immediately. Without that, no
//! successor could use the address before the old process has ended.

use std::{cell::RefCell, future::Future, io, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::{sleep, timeout},
};

use super::{Connections, State, Token};
use crate::{
    config::{
        Diagnostic, Diagnostics, Loaded,
        model::{Admin, SocketOptions},
        units::Address,
    },
    listener::socket::{self, AddressClaim},
    net::{ListenSocket, Listener, Socket as Stream},
    observe::target,
};

/// Only the proxy's user has access: there is no other authentication.
const MODE: &str = "600";

/// How long a draining process may take to release its address.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket, while it is open, and its connections.
pub struct Socket {
    listener: RefCell<Option<Listener>>,
    connections: Connections,
}

impl Default for Socket {
    fn default() -> Socket {
        Socket { listener: RefCell::default(), connections: Connections::new("admin") }
    }
}

/// Opens the admin listener's socket. A draining process releases it on request.
///
/// # Errors Another process listens on the address, or the address is unavailable.
pub async fn listen(admin: &Admin, token: Option<&Token>) -> io::Result<ListenSocket> {
    match open(admin) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && yields(&admin.address, token).await => open(admin),
        opened => opened,
    }
}

fn open(admin: &Admin) -> io::Result<ListenSocket> {
    let mode = Some(admin.mode.clone().unwrap_or_else(|| MODE.to_owned()));
    let options = SocketOptions { mode, ..SocketOptions::default() };
    let mut sockets = socket::listen(&admin.address, &options, 1, AddressClaim::Sole)?;
    sockets.pop().ok_or_else(|| io::Error::other("there is no socket"))
}

/// Asks the process that has the address to release it. Returns whether it did, which it does if it drains.
async fn yields(address: &Address, token: Option<&Token>) -> bool {
    let ask = async {
        let mut stream = Stream::connect(address, None).await.ok()?;
        let token = token.map(Token::field).unwrap_or_default();
        let request =
            format!("POST /yield HTTP/1.1\r\nHost: localhost\r\n{token}Content-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.ok()?;
        (status == *b"HTTP/1.1 200").then_some(())
    };
    matches!(timeout(PATIENCE, ask).await, Ok(Some(())))
}

/// Serves as soon as the process that has the address releases it.
pub async fn listen_later(admin: Admin, state: Rc<State>) {
    for tries in 1_u64.. {
        match listen(&admin, state.token.as_ref()).await {
            Ok(socket) => {
                tracing::info!(target: target::ADMIN, "admin listener on {}", admin.url());
                if let Err(e) = state.serve(socket) {
                    tracing::error!(target: target::ADMIN, "admin: {e}");
                }
                return;
            }
            Err(e) if tries == 100 => tracing::warn!(
                target: target::ADMIN,
                "the admin listener is not available yet: {}: {e}", admin.address
            ),
            Err(_) => {}
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the error that the admin listener cannot be opened, located in the configuration.
pub fn cannot_listen(loaded: &Loaded, error: &io::Error) -> Diagnostics {
    let message = format!("cannot listen on {} (the admin listener): {error}", loaded.config.admin.address);
    let help = "set another address with `admin.address`, or disable the listener with `admin.enabled: false`";
    let place = loaded.source.locate("/admin/address", "").filter(|place| place.exact);
    let wrong = Diagnostic::error(place.map(|place| place.span), message).help(help.to_owned());
    Diagnostics::new(loaded.source.clone(), vec![wrong])
}

/// A pending response.
type Answer = Pin<Box<dyn Future<Output = Response<Full<Bytes>>>>>;

impl State {
    /// Serves on a socket until the process ends, or its successor needs the address.
    ///
    /// # Errors The runtime rejects the socket.
    pub fn serve(self: &Rc<Self>, socket: ListenSocket) -> io::Result<()> {
        *self.socket.listener.borrow_mut() = Some(socket.try_into()?);
        let state = self.clone();
        spawn_local(async move { state.socket.connections.accept(&state.socket.listener, state.answerer()).await });
        Ok(())
    }

    /// Closes the socket if the process drains. Existing connections are still served.
    pub(super) fn give_up_socket(self: &Rc<Self>) -> bool {
        if !self.status.is_draining() {
            return false;
        }
        let waiting = self.socket.listener.take().map(Listener::close).unwrap_or_default();
        for (stream, peer) in waiting {
            self.socket.connections.serve(stream, peer, self.answerer());
        }
        true
    }

    fn answerer(self: &Rc<Self>) -> impl Fn(SocketAddr, Request<Incoming>) -> Answer + Clone + use<> {
        let state = self.clone();
        move |peer, request| Box::pin(super::answer(state.clone(), peer, request))
    }
}
