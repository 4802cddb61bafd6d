//! Independent programs as clients and servers. `tests/interop/setup.sh` installs them; for a missing one see
//! [`not_run`].

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use super::{
    not_run,
    ports::{Reserved, reserve},
    wait_for, wait_until,
};

/// The directory of the scripts.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/interop");

/// The time limit of a client's run, in seconds; see [`super::DEADLINE`].
const PATIENCE: &str = "120";

/// The path of a program. `None` if it is missing, which was reported.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let python = || {
        let python = Path::new(SCRIPTS).join("../../target/interop/venv/bin/python");
        python.exists().then_some(python)
    };
    let found = match name {
        "python" => python(),
        "envoy" => Some(Path::new(SCRIPTS).join("../../target/interop/envoy/envoy/_bin/envoy")).filter(|f| f.exists()),
        // Python's packages are checked, too: the environment may be older than the need for them.
        "aioquic" => python().filter(|python| run(python, &["-c", "import aioquic"]).success),
        _ => env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()),
    };
    if found.is_none() {
        not_run::missing(name, "tests/interop/setup.sh");
    }
    found
}

/// A module in another language (`assemblyscript/gate`). `None` if it was not built, which was reported.
pub fn module(name: &str) -> Option<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/conformance");
    let bytes = fs::read(folder.join(name).with_extension("wasm")).ok();
    if bytes.is_none() {
        not_run::missing(name, "tests/conformance/setup.sh");
    }
    bytes
}

/// The paths of these programs; without one of them, the test ends here.
macro_rules! needs {
    ($($name:literal),+) => {
        ($(match $crate::harness::peer::tool($name) {
            Some(tool) => tool,
            None => return,
        }),+)
    };
}
pub(crate) use needs;

/// The output of a client.
#[derive(Debug)]
pub struct Said {
    pub success: bool,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its output, if it succeeded.
    pub fn well(self) -> String {
        assert!(self.success, "{}\n{}", self.out, self.err);
        self.out
    }
}

/// Runs a client to its end.
pub fn run(program: &Path, args: &[&str]) -> Said {
    run_with(program, args, b"")
}

/// The same, with standard input.
pub fn run_with(program: &Path, args: &[&str], input: &[u8]) -> Said {
    let mut child = Command::new("timeout")
        .arg(PATIENCE)
        .arg(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program can be run");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_vec();
    // It may end before it has read everything.
    thread::spawn(move || _ = stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { success: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a script of `tests/interop/` to its end.
pub fn script(python: &Path, name: &str, args: &[&str]) -> Said {
    let file = format!("{SCRIPTS}/{name}.py");
    run(python, &[&[file.as_str()], args].concat())
}

/// A program that runs during the test. It is killed when dropped; its output is shown if the test has failed.
pub struct Peer {
    /// The address on which it listens, if it is a server.
    pub address: SocketAddr,
    _reserved: Reserved,
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Peer {
    /// Starts a program; `{address}` and `{port}` in its arguments stand for a port reserved for it.
    pub fn start(program: &Path, args: &[&str]) -> Peer {
        Peer::start_at(reserve(), program, args)
    }

    fn start_at(address: Reserved, program: &Path, args: &[&str]) -> Peer {
        let filled =
            |arg: &&str| arg.replace("{address}", &address.to_string()).replace("{port}", &address.port().to_string());
        let mut child = Command::new(program)
            .args(args.iter().map(filled))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a program can be run");
        let output = Arc::new(Mutex::new(String::new()));
        capture(child.stdout.take(), &output);
        capture(child.stderr.take(), &output);
        Peer { address: *address, _reserved: address, child, output }
    }

    /// Starts a server, and waits until it accepts connections.
    pub fn serve(program: &Path, args: &[&str]) -> Peer {
        Peer::serve_at(reserve(), program, args)
    }

    /// The same for a server that is configured elsewhere to listen on this address.
    pub fn serve_at(address: Reserved, program: &Path, args: &[&str]) -> Peer {
        let mut peer = Peer::start_at(address, program, args);
        wait_until("a server to be ready", || {
            let ended = peer.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "it has ended: {}", peer.output());
            TcpStream::connect(peer.address).is_ok()
        });
        peer
    }

    /// Starts a script of `tests/interop/`.
    pub fn script(python: &Path, name: &str, args: &[&str]) -> Peer {
        let file = format!("{SCRIPTS}/{name}.py");
        Peer::start(python, &[&[file.as_str()], args].concat())
    }

    /// The same, with the address before its arguments; waits until it reports that it is ready.
    pub fn server(python: &Path, name: &str, args: &[&str]) -> Peer {
        let peer = Peer::script(python, name, &[&["{address}"], args].concat());
        peer.wait_for("ready");
        peer
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until it has written this line.
    pub fn wait_for(&self, line: &str) {
        wait_until(&format!("{line:?} from a program"), || self.output().lines().any(|l| l == line));
    }

    /// Writes to its standard input.
    pub fn tell(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("its input");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("it reads");
    }

    /// Closes its standard input, and waits until it has exited successfully.
    pub fn finish(&mut self) {
        drop(self.child.stdin.take());
        let status = wait_for("a program's end", || self.child.try_wait().expect("it is our child"));
        assert!(status.success(), "{status}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- a program's output:\n{}---", self.output());
        }
    }
}

fn capture(pipe: Option<impl Read + Send + 'static>, output: &Arc<Mutex<String>>) {
    let (pipe, output) = (pipe.expect("a pipe"), output.clone());
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            *output.lock().unwrap() += &format!("{line}\n");
        }
    });
}
