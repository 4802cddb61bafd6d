//! A scripted upstream that records its requests.

use std::{
    fmt, io, mem,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    frames::{self, H2},
    gate::Gate,
    reserve, wait_until,
    wire::{Message, Wire},
};

/// A server on its own port. It ends with the test, and fails the test if it received a malformed request.
pub struct Upstream {
    /// The address on which it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Message>>,
    connections: AtomicUsize,
    over: AtomicBool,
    malformed: Mutex<Vec<String>>,
    allows_malformed: AtomicBool,
}

/// One connection to an upstream.
pub struct Answers {
    /// The connection itself. What is read through it directly is not recorded.
    pub wire: Wire,
    shared: Arc<Shared>,
}

impl Answers {
    /// Reads and records the next request; `None` when the connection ends.
    pub fn request(&mut self) -> Option<Message> {
        let mut read = self.read_head();
        if let Ok(request) = &mut read
            && let Err(error) = self.wire.read_body(request, false)
        {
            read = Err(error);
        }
        self.record(read)
    }

    /// Reads and records the head of the next request; leaves the body unread.
    pub fn head(&mut self) -> Option<Message> {
        let head = self.read_head();
        self.record(head)
    }

    fn read_head(&mut self) -> io::Result<Message> {
        match self.shared.allows_malformed.load(Ordering::SeqCst) {
            true => self.wire.read_head(),
            false => self.wire.read_request_head(),
        }
    }

    /// Sends bytes; ignores errors if the proxy has closed the connection.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.send(bytes);
    }

    /// Waits until the proxy closes the connection: for silent upstreams.
    pub fn wait_for_end(mut self) {
        let _ = self.wire.read_to_end();
    }

    fn record(&self, read: io::Result<Message>) -> Option<Message> {
        match read {
            Ok(request) => {
                self.shared.requests.lock().unwrap().push(request.clone());
                Some(request)
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.shared.malformed.lock().unwrap().push(error.to_string());
                }
                None
            }
        }
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
    /// Runs `serve` in a separate thread per connection, and closes the connection when it returns.
    pub fn scripted(serve: impl Fn(Answers) + Send + Sync + 'static) -> Upstream {
        Upstream::scripted_on(TcpListener::bind("127.0.0.1:0").expect("a port"), serve)
    }

    /// The same on this socket.
    pub fn scripted_on(listener: TcpListener, serve: impl Fn(Answers) + Send + Sync + 'static) -> Upstream {
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

    /// An HTTP/2 upstream with these settings; `serve` gets each connection and its index from 0.
    pub fn by_h2_with(
        settings: &'static [(u16, u32)],
        serve: impl Fn(&mut H2, usize) + Send + Sync + 'static,
    ) -> Upstream {
        let connections = AtomicUsize::new(0);
        Upstream::scripted(move |connection| {
            let nth = connections.fetch_add(1, Ordering::SeqCst);
            // It may be a port probe.
            let Ok(mut h2) = H2::accept(connection.wire, settings) else { return };
            h2.window(0, 1 << 30);
            serve(&mut h2, nth);
        })
    }

    /// The same with default settings.
    pub fn by_h2(serve: impl Fn(&mut H2) + Send + Sync + 'static) -> Upstream {
        Upstream::by_h2_with(&[], move |h2, _| serve(h2))
    }

    /// The same; `reply` answers each complete request.
    pub fn replying_by_h2(reply: impl Fn(&mut H2, u32, frames::Message) + Send + Sync + 'static) -> Upstream {
        Upstream::by_h2(move |h2| {
            while let Ok((stream, request)) = h2.next_request() {
                reply(h2, stream, request);
            }
        })
    }

    /// Answers each request, with keep-alive, with the bytes that `reply` returns (see [`answer`]).
    pub fn replying(reply: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Upstream {
        Upstream::scripted(move |mut connection| {
            while let Some(request) = connection.request() {
                connection.send(reply(&request));
            }
        })
    }

    /// Records each request's head, calls this with it, and answers with the length of the body once it is complete.
    pub fn reading(then: impl Fn(&Message) + Send + Sync + 'static) -> Upstream {
        Upstream::scripted(move |mut connection| {
            while let Some(mut request) = connection.head() {
                then(&request);
                if connection.wire.read_body(&mut request, false).is_err() {
                    return;
                }
                connection.send(answer(200, &[], request.body.len().to_string()));
            }
        })
    }

    /// The same; requests for targets with this prefix are answered when the gate is open.
    pub fn held(
        gate: &Gate,
        target: &'static str,
        reply: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> Upstream {
        let gate = gate.clone();
        Upstream::replying(move |request| {
            if request.target().starts_with(target) {
                gate.wait();
            }
            reply(request)
        })
    }

    /// Answers each request with 200 and this body.
    pub fn saying(body: &str) -> Upstream {
        let bytes = answer(200, &[], body);
        Upstream::replying(move |_| bytes.clone())
    }

    /// The same on this socket.
    pub fn saying_on(listener: TcpListener, body: &str) -> Upstream {
        let bytes = answer(200, &[], body);
        Upstream::scripted_on(listener, move |mut connection| {
            while connection.request().is_some() {
                connection.send(bytes.clone());
            }
        })
    }

    /// Sends these bytes after each request's head, and closes the connection.
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

    /// Reads the first request of each connection, and resets the connection.
    pub fn resetting() -> Upstream {
        Upstream::scripted(|mut connection| {
            connection.request();
            connection.wire.reset();
        })
    }

    /// An address that refuses connections as long as the tests run: a socket that does not listen is bound to it.
    pub fn refusing() -> SocketAddr {
        let reserved = reserve();
        let address = *reserved;
        mem::forget(reserved);
        address
    }

    /// Allows bytes that are not HTTP/1.1.
    pub fn allow_malformed(self) -> Upstream {
        self.shared.allows_malformed.store(true, Ordering::SeqCst);
        self
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Message> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests since the last call.
    pub fn take_requests(&self) -> Vec<Message> {
        mem::take(&mut self.shared.requests.lock().unwrap())
    }

    /// The only request so far.
    pub fn only_request(&self) -> Message {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// Waits until this many requests were received (completely, or as far as the script reads them).
    pub fn wait_for_requests(&self, count: usize) -> Vec<Message> {
        wait_until("requests at the upstream", || self.shared.requests.lock().unwrap().len() >= count);
        self.requests()
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then frees the port.
        let _ = std::net::TcpStream::connect(self.address);
        let malformed = self.shared.malformed.lock().unwrap();
        if !thread::panicking() && !self.shared.allows_malformed.load(Ordering::SeqCst) {
            assert!(malformed.is_empty(), "malformed requests have reached the upstream: {malformed:?}");
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
