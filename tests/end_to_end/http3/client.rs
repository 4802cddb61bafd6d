//! An independent client: aioquic, in `tests/interop/h3_client.py`, which takes commands in JSON. Tests that use it
//! begin with `needs!("aioquic")`.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};

use crate::harness::{DEADLINE, peer::tool};

/// A connection. All its events are kept, so they can be waited for in any order.
pub struct H3 {
    child: Child,
    to: ChildStdin,
    from: mpsc::Receiver<Value>,
    said: Vec<Value>,
    /// The digest of the server's certificate, in hexadecimal.
    pub shown: String,
}

impl H3 {
    /// Connects as a client of `web.test`; trusts the file `ca`, and presents the certificate in `pair`. `None` if the
    /// connection was rejected.
    pub fn try_connect(address: SocketAddr, ca: &Path, pair: Option<(&Path, &Path)>) -> Option<H3> {
        let python = tool("python").expect("a test that asks first");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop/h3_client.py");
        let mut command = Command::new(python);
        command.arg(script).args([address.ip().to_string(), address.port().to_string()]).arg(ca);
        if let Some((certificate, key)) = pair {
            command.args([certificate, key]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python can be run");
        let (to, out) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (said, from) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "text": line }));
                if said.send(value).is_err() {
                    return;
                }
            }
        });
        let mut client = H3 { child, to, from, said: Vec::new(), shown: String::new() };
        let first = client.wait(|said| said["ready"].is_string() || said["refused"] == true || is_closed(said));
        client.shown = first["ready"].as_str()?.to_owned();
        Some(client)
    }

    /// The same for a connection that must succeed.
    pub fn connect(address: SocketAddr, ca: &Path) -> H3 {
        H3::try_connect(address, ca, None).expect("a connection")
    }

    /// Sends it a command.
    pub fn tell(&mut self, command: Value) {
        writeln!(self.to, "{command}").expect("it listens");
    }

    /// The first matching event, past or future.
    pub fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(said) = self.said.iter().find(|said| wanted(said)) {
            return said.clone();
        }
        loop {
            let said = self.from.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("only this: {:#?}", self.said));
            self.said.push(said.clone());
            if wanted(&said) {
                return said;
            }
        }
    }

    /// Starts a request; `more` are its parameters other than its name (see the script).
    pub fn send(&mut self, id: &str, more: Value) {
        let mut command = json!({ "do": "send", "id": id });
        let object = command.as_object_mut().expect("an object");
        object.extend(more.as_object().expect("an object").clone());
        self.tell(command);
    }

    /// Waits for the outcome of a request: `status`, `fields` and so on, or `reset`.
    pub fn end(&mut self, id: &str) -> Value {
        self.wait(|said| said["id"] == id && (said["length"].is_number() || said["answered"].is_number()))
    }

    /// Sends a request and waits for its outcome.
    pub fn request(&mut self, id: &str, more: Value) -> Value {
        self.send(id, more);
        self.end(id)
    }

    /// Waits for the code with which the connection was closed.
    pub fn closed(&mut self) -> u64 {
        self.wait(is_closed)["closed"].as_u64().expect("a code")
    }
}

fn is_closed(said: &Value) -> bool {
    said["closed"].is_number()
}

impl Drop for H3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A field of a response.
pub fn field<'r>(response: &'r Value, name: &str) -> Option<&'r str> {
    let fields = response["fields"].as_array()?;
    fields.iter().find(|field| field[0] == name)?[1].as_str()
}
