//! A client of one server, with at most one connection.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::Full;
use tokio::time::{Instant, timeout};

use super::{
    body::Body,
    connection::{Connection, Destination},
    error::{BodyError, Error},
    redirect,
    server::{Dial, Server},
};

/// A client of one server. A request waits until the previous one's head has arrived. Over HTTP/1.1, an answer has to be
/// read before the next request, or the connection is replaced.
pub struct Client<D: Dial = Server> {
    server: D,
    destination: Destination,
    /// The number of redirects that are followed.
    redirects: u8,
    /// The connection, while it may be used.
    open: Option<Connection>,
}

impl<D: Dial> Client<D> {
    /// Creates a client, which connects when it sends a request. It follows no redirects: an answer with one is returned
    /// like any other.
    pub fn new(server: D) -> Client<D> {
        let destination = Destination::new(server.url());
        Client { server, destination, redirects: 0, open: None }
    }

    /// Follows up to this many redirects of `GET` and `HEAD` requests, all to the same scheme, host and port.
    #[must_use]
    pub fn following(mut self, redirects: u8) -> Self {
        self.redirects = redirects;
        self
    }

    /// Closes the connection. The next request opens another one, possibly to another address of the server.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Sends a request whose target is a path, and returns the answer when its head has arrived. `patience`: the time
    /// for that once the server is connected.
    ///
    /// # Errors
    /// There is no connection, or no valid head in time. The connection is closed.
    pub async fn send(&mut self, request: Request<Bytes>, patience: Duration) -> Result<Response<Body>, Error> {
        let mut request = request.map(Full::new);
        let mut redirects = self.redirects;
        loop {
            let follows = self.redirects > 0 && [Method::GET, Method::HEAD].contains(request.method());
            let again = follows.then(|| request.clone());
            let response = self.exchange(request, patience).await?;
            let location = response.headers().get(header::LOCATION).filter(|_| redirect::is_one(response.status()));
            let (Some(mut next), Some(location)) = (again, location) else { return Ok(response) };
            if redirects == 0 {
                return Err(redirect::refused(location, "the last of too many redirects"));
            }
            *next.uri_mut() = redirect::target(self.server.url(), next.uri(), location)?;
            response.into_body().discard().await;
            (request, redirects) = (next, redirects - 1);
        }
    }

    /// Sends a request whose target is a path, and returns the answer with its whole body: at most `limit` bytes.
    /// `time` is for everything.
    ///
    /// # Errors
    /// As for [`Client::send`] and [`Body::read`].
    pub async fn fetch(
        &mut self,
        request: Request<Bytes>,
        time: Duration,
        limit: u64,
    ) -> Result<Response<Bytes>, Error> {
        let fetching = async {
            let (head, body) = self.send(request, time).await?.into_parts();
            Ok(Response::from_parts(head, body.read(limit, time).await?))
        };
        match timeout(time, fetching).await {
            Ok(Err(Error::Body(BodyError::Late(_)))) | Err(_) => Err(Error::Late(time)),
            Ok(result) => result,
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>, patience: Duration) -> Result<Response<Body>, Error> {
        // The connection returns to its place only after a valid head.
        if let Some(mut connection) = self.open.take() {
            let asked = Instant::now();
            let sending = connection.send(request.clone(), &self.destination);
            match timeout(patience, sending).await.map_err(|_| Error::Late(patience))? {
                Ok(response) => return Ok(self.keep(connection, response, asked.elapsed())),
                Err(error) if connection.may_repeat(&error, request.method()) => {}
                Err(error) => return Err(connection.failure(&error)),
            }
        }
        let (io, version) = self.server.dial().await?;
        let mut connection = Connection::open(io, version).await?;
        let asked = Instant::now();
        let sending = connection.send(request, &self.destination);
        match timeout(patience, sending).await.map_err(|_| Error::Late(patience))? {
            Ok(response) => Ok(self.keep(connection, response, asked.elapsed())),
            Err(error) => Err(connection.failure(&error)),
        }
    }

    fn keep(
        &mut self,
        connection: Connection,
        response: Response<hyper::body::Incoming>,
        waited: Duration,
    ) -> Response<Body> {
        let (head, incoming) = response.into_parts();
        let body = Body::new(&head, incoming, waited, connection.driver());
        self.open = Some(connection);
        Response::from_parts(head, body)
    }
}
