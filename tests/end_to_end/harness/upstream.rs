//! An upstream that does as a test tells it, and remembers the requests that it got.

use std::{
    fmt, mem,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use socket2::{Domain, Socket, Type};

use super::{
    wait_until,
    wire::{Message, Wire},
};

/// A server on a port of its own; it ends with the test.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Message>>,
    connections: AtomicUsize,
    over: AtomicBool,
}

/// One connection to an upstream.
pub struct Answers {
    /// The connection itself. What is read by its own methods is not recorded.
    pub wire: Wire,
    shared: Arc<Shared>,
}

impl Answers {
    /// The next request, recorded; `None` when the connection ends.
    pub fn request(&mut self) -> Option<Message> {
        let request = self.wire.read_request().ok()?;
        self.record(&request);
        Some(request)
    }

    /// The head of the next request, recorded; the body is left unread.
    pub fn head(&mut self) -> Option<Message> {
        let head = self.wire.read_head().ok()?;
        self.record(&head);
        Some(head)
    }

    /// Sends bytes; whether the proxy is still there is not asked.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.send(bytes);
    }

    /// Waits until the proxy ends the connection: for upstreams that stay silent.
    pub fn wait_for_end(mut self) {
        let _ = self.wire.read_to_end();
    }

    fn record(&self, request: &Message) {
        self.shared.requests.lock().unwrap().push(request.clone());
    }
}

/// A response with this body and further fields, each as `name: value`.
pub fn answer(status: u16, fields: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status} Said\r\n{fields}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

impl Upstream {
    /// Each connection gets a thread that runs `serve`; when that returns, the connection is closed.
    pub fn scripted(serve: impl Fn(Answers) + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let (theirs, serve) = (shared.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if theirs.over.load(Ordering::SeqCst) {
                    return;
                }
                theirs.connections.fetch_add(1, Ordering::SeqCst);
                let (shared, serve) = (theirs.clone(), serve.clone());
                thread::spawn(move || serve(Answers { wire: Wire::new(stream), shared }));
            }
        });
        Upstream { address, shared }
    }

    /// Answers each request, with keep-alive, by the bytes that `reply` makes of it (see [`answer`]).
    pub fn replying(reply: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Upstream {
        Upstream::scripted(move |mut connection| {
            while let Some(request) = connection.request() {
                connection.send(reply(&request));
            }
        })
    }

    /// Answers each request with 200 and this body.
    pub fn saying(body: &str) -> Upstream {
        let bytes = answer(200, &[], body);
        Upstream::replying(move |_| bytes.clone())
    }

    /// Sends these bytes after each request's head and closes the connection.
    pub fn canned(bytes: impl Into<Vec<u8>>) -> Upstream {
        let bytes = bytes.into();
        Upstream::scripted(move |mut connection| {
            if connection.request().is_some() {
                connection.send(&bytes);
            }
        })
    }

    /// Reads requests and never answers.
    pub fn silent() -> Upstream {
        Upstream::scripted(|mut connection| {
            connection.request();
            connection.wait_for_end();
        })
    }

    /// Reads the first request of each connection, and ends the connection with RST.
    pub fn resetting() -> Upstream {
        Upstream::scripted(|mut connection| {
            connection.request();
            connection.wire.reset();
        })
    }

    /// An address at which nobody listens, as long as the tests run: a socket that does not listen has it.
    pub fn refusing() -> SocketAddr {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = socket.local_addr().expect("its address").as_socket().expect("an IP address");
        mem::forget(socket);
        address
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Message> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The only request so far.
    pub fn only_request(&self) -> Message {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// Waits until there have been so many requests (that were read as a whole, or as far as the script has read them).
    pub fn wait_for_requests(&self, count: usize) -> Vec<Message> {
        wait_until("requests at the upstream", || self.shared.requests.lock().unwrap().len() >= count);
        self.requests()
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts, and so frees the port.
        let _ = std::net::TcpStream::connect(self.address);
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
