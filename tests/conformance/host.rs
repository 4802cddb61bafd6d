//! Runs the proxy with a module under test, and everything that a case relies on: the upstream, clusters to call, the
//! usual request. `README.md` documents this for authors of modules.

use std::{
    cell::Cell,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    harness::{Client, Config, DEADLINE, Message, Proxy, Upstream, Wire, answer, wait_for, wait_until},
    script::{Case, Check},
};

/// Headers of the usual request, without the one that selects the case.
const REQUEST: &str = "POST /conformance?a=b HTTP/1.1\r\nhost: test\r\nx-one: 1\r\nx-two: a\r\nx-two: b\r\nx-empty:\r\n\
    user-agent: conformance\r\nreferer: here\r\nte: trailers\r\ntrailer: x-trailer\r\ntransfer-encoding: chunked\r\n";

const BODY: &str = "5\r\nhello\r\n0\r\nx-trailer: end\r\n\r\n";

/// The upstream's response to the usual request.
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nx-up: yes\r\ntrailer: x-up-trailer\r\ntransfer-encoding: chunked\r\n\r\n\
    5\r\nworld\r\n0\r\nx-up-trailer: end\r\n\r\n";

/// The answer to HTTP calls.
const ANSWER: &str = "HTTP/1.1 200 OK\r\nx-answer: 42\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n\
    6\r\nanswer\r\n0\r\nx-end: yes\r\n\r\n";

/// The proxy and its peers.
pub struct Host {
    pub proxy: Proxy,
    web: Upstream,
    _others: [Upstream; 2],
    /// Number of access log lines before the case.
    logged: Cell<usize>,
}

/// A verdict reported by the module.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Passed,
    Failed(String),
    /// No verdict yet; what is known so far.
    Open(String),
}

impl Host {
    /// Starts the proxy with this module, on a TCP listener too if the module can serve connections.
    pub fn start(module: &[u8], tcp_too: bool) -> Host {
        let web = Upstream::replying(|request| match request.target() {
            target if target.starts_with("/conformance") => RESPONSE.into(),
            "/silent" => answer(204, &[], ""),
            "/plain" => answer(200, &[], "plain"),
            target if target.starts_with("/echo") => {
                let said = format!("{} {target} {}", request.method(), request.field("host").unwrap_or("nobody"));
                answer(200, &[], &said)
            }
            _ => ANSWER.into(),
        });
        let (tcp, grpc) = (welcoming(), grpc());
        let options = "
            root_id: conformance
            vm_id: conformance
            vm_config: the vm
            config: the plugin
            env: {CONFORMANCE: 'yes'}
            limits: {call_time: 5s}";
        let mut config = Config::to(&web).top("workers: 1").module("conformance", module, options);
        if tcp_too {
            config = config.beside("tcp", "chain: [conformance]\ncluster: tcp\nprotocol: tcp");
        }
        let config = config
            .cluster("tcp", &[&tcp], "")
            .cluster("tcp-other", &[&tcp], "")
            .cluster("grpc", &[&grpc], "protocol: h2")
            .cluster("nowhere", &[Upstream::refusing()], "");
        // Some cases call a server that never answers, with the longest possible timeout.
        let proxy = Proxy::start(config).leaving_things_behind();
        Host { proxy, web, _others: [tcp, grpc], logged: Cell::default() }
    }

    /// Sends a request with a header that asks something. Returns the response.
    pub fn ask(&self, name: &str, value: &str) -> Message {
        self.proxy.request("GET", "/ask", &[(name, value)], b"")
    }

    /// Runs a case, which the module knows as `number`. Returns the client's response.
    pub fn run(&self, case: &Case, number: &str) -> Option<Message> {
        self.logged.set(self.proxy.entries().len());
        if case.is_tcp() {
            self.ask("x-arm", number);
            self.connect(&case.id());
            return None;
        }
        let mut client = self.proxy.client();
        let fields: String = case.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let fields = format!("{fields}x-case: {number}\r\n\r\n");
        client.send(match &case.request {
            Some((method, target)) if case.body.is_empty() => {
                format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{fields}")
            }
            Some((method, target)) => {
                let Case { body, .. } = case;
                let length = body.len();
                format!("{method} {target} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n{fields}{body}")
            }
            None => format!("{REQUEST}{fields}{BODY}"),
        });
        read(client)
    }

    /// Makes a TCP connection for a case, from beginning to end.
    fn connect(&self, id: &str) {
        let stream = TcpStream::connect(self.proxy.address("tcp")).expect("the proxy accepts connections");
        let mut wire = Wire::new(stream);
        // The filter may close the connection at any time.
        let _ = wire.send(format!("CASE {id}\n"));
        if wire.read_exact("welcome\n".len()).is_ok() {
            let _ = wire.send("bye\n");
        }
        wire.finish();
        wire.read_to_end();
    }

    /// Polls for a verdict until it is final; `look` queries the module.
    pub fn verdict(&self, look: impl Fn() -> Verdict) -> Verdict {
        let end = Instant::now() + DEADLINE;
        loop {
            match look() {
                Verdict::Open(_) if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
                verdict => return verdict,
            }
        }
    }

    /// Checks the effects that are visible from outside.
    pub fn check(&self, check: &Check, number: &str, got: Option<&Message>) -> Result<(), String> {
        let Check { who, what, value, line } = check;
        let (kind, name) = what.split_once(' ').unwrap_or((what, ""));
        let wrong = |seen: &str| Err(format!("line {line}: {who} {what}: {seen:?}, not {value:?}"));
        let message = match who.as_str() {
            "log" => {
                wait_until(&format!("{value:?} in the log"), || self.proxy.output().contains(value));
                return Ok(());
            }
            "metric" => {
                let value: f64 = value.parse().map_err(|_| "not a number")?;
                wait_until(what, || self.proxy.metrics().sum(what, &[]) == value);
                return Ok(());
            }
            "access" => {
                let told = || self.proxy.entries().split_off(self.logged.get());
                let said = |entry: Value| match &entry[what] {
                    Value::String(text) => text == value,
                    other => other.to_string().contains(value),
                };
                wait_until(&format!("{what} {value} in the access log"), || told().into_iter().any(said));
                return Ok(());
            }
            "client" if value == "closed" => return if got.is_none() { Ok(()) } else { wrong("a response") },
            "client" => got.cloned(),
            _ => {
                let sent = || self.web.requests().into_iter().rfind(|r| r.all("x-case") == [number]);
                if value == "nothing" {
                    return sent().map_or(Ok(()), |sent| wrong(&sent.start));
                }
                Some(wait_for("the request at the upstream", sent))
            }
        };
        let Some(message) = message else { return wrong("no message") };
        let seen = match kind {
            "status" => message.status().to_string(),
            "body" => message.text().to_owned(),
            "target" => message.target().to_owned(),
            "method" => message.method().to_owned(),
            "header" => some_or_none(&message.all(name)),
            "trailer" => {
                let of = |(n, v): &(String, String)| n.eq_ignore_ascii_case(name).then(|| v.clone());
                message.trailers.iter().find_map(of).unwrap_or_else(|| "none".into())
            }
            _ => return wrong("unknown check"),
        };
        if seen == *value { Ok(()) } else { wrong(&seen) }
    }
}

fn some_or_none(values: &[&str]) -> String {
    if values.is_empty() { "none".to_owned() } else { values.join(", ") }
}

/// Reads the response; `None` if the connection is closed or truncated instead.
fn read(mut client: Client) -> Option<Message> {
    client.wire.whole_response("GET")
}

/// An upstream that sends a greeting when it has received something, and ends when the client has.
fn welcoming() -> Upstream {
    Upstream::scripted(|mut connection| {
        if connection.wire.read_exact(1).is_ok() {
            connection.send("welcome\n");
        }
        connection.wire.read_to_end();
    })
}

/// A gRPC upstream that echoes each message of a call, or fails.
fn grpc() -> Upstream {
    Upstream::replying_by_h2(|h2, stream, request| {
        let head = [(":status", "200"), ("content-type", "application/grpc"), ("x-initial", "1")];
        h2.headers(stream, &head, false);
        if request.field(":path") == Some("/test.Echo/Fail") {
            h2.headers(stream, &[("grpc-status", "7"), ("grpc-message", "denied")], true);
            return;
        }
        h2.data(stream, &request.body, false);
        h2.headers(stream, &[("grpc-status", "0"), ("x-trailing", "2")], true);
    })
}
