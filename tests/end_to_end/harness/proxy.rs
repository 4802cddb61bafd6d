//! The proxy as a separate process: the shipped binary, with a configuration in a temporary directory.
//!
//! In a configuration, `@main@` (or any other word) stands for an address on a free port; [`Proxy::address`] returns
//! it. The directory is the process's working directory, so files in it need no path.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    client::Client,
    config::Setup,
    entry::Entry,
    frames::H2,
    metrics::Metrics,
    ports::{Reserved, reserve},
    settled, wait_for, wait_until,
    wire::{Message, Wire},
};

/// When no output has arrived for this long, everything logged so far has been read.
const SETTLED: Duration = Duration::from_millis(200);

/// A running proxy. It is killed when dropped. If the test has failed, its log is shown; if not, the test fails if the
/// proxy has panicked, or if something is still in progress without a client.
pub struct Proxy {
    child: Child,
    dir: Arc<TempDir>,
    addresses: BTreeMap<String, Reserved>,
    output: Arc<Mutex<String>>,
    readers: Vec<thread::JoinHandle<()>>,
    leaves: bool,
}

impl Proxy {
    /// Starts it, and waits until it is ready.
    pub fn start(config: impl Into<Setup>) -> Proxy {
        Proxy::start_with(config, &[])
    }

    /// The same, with files next to the configuration (filters, for example).
    pub fn start_with(config: impl Into<Setup>, files: &[(&str, &[u8])]) -> Proxy {
        Proxy::try_start(config, files).unwrap_or_else(|output| panic!("the proxy did not start:\n{output}"))
    }

    /// The same; returns the output if it exits instead.
    pub fn try_start(config: impl Into<Setup>, files: &[(&str, &[u8])]) -> Result<Proxy, String> {
        let config = config.into();
        let mut attempts = 0;
        loop {
            attempts += 1;
            match Proxy::launch(&config, files) {
                // Another process took the port after it was released here and before the proxy bound it.
                Err(output) if output.contains("Address already in use") && attempts < 10 => {}
                result => return result,
            }
        }
    }

    fn launch(config: &Setup, files: &[(&str, &[u8])]) -> Result<Proxy, String> {
        let mut proxy = Proxy::begin(config.clone(), files);
        let ended = wait_for("the proxy to be ready", || match proxy.has_ended() {
            true => Some(true),
            false => proxy.is_ready().then_some(false),
        });
        if ended { Err(proxy.last_words()) } else { Ok(proxy) }
    }

    /// Starts it without waiting.
    pub fn begin(config: impl Into<Setup>, files: &[(&str, &[u8])]) -> Proxy {
        let (dir, addresses) = prepared(&config.into(), files);
        Proxy::spawn(dir, addresses, &[])
    }

    /// Starts it with this standard output and error, which is not read here, and waits until it is ready.
    pub fn start_unheard(config: impl Into<Setup>, output: impl Fn() -> Stdio) -> Proxy {
        let (dir, addresses) = prepared(&config.into(), &[]);
        let mut command = command(&dir, &[]);
        let child = command.stdout(output()).stderr(output()).spawn().expect("the proxy can be run");
        let mut proxy = Proxy { child, dir, addresses, output: Arc::default(), readers: Vec::new(), leaves: false };
        wait_for("the proxy to be ready", || proxy.is_ready().then_some(()));
        assert!(!proxy.has_ended());
        proxy
    }

    /// Starts it with this limit of file descriptors, and waits until it is ready.
    pub fn start_with_descriptors(config: impl Into<Setup>, most: u32) -> Proxy {
        Proxy::start_wrapped(config, &["sh", "-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")])
    }

    /// Starts it through another command, which gets the proxy's command line as its last arguments, and waits until it
    /// is ready.
    pub fn start_wrapped(config: impl Into<Setup>, wrapper: &[&str]) -> Proxy {
        let (dir, addresses) = prepared(&config.into(), &[]);
        let inner = command(&dir, &[]);
        let mut wrapped = Command::new(wrapper[0]);
        wrapped.args(&wrapper[1..]).arg(inner.get_program()).args(inner.get_args());
        wrapped.current_dir(dir.path()).envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let proxy = Proxy::of(wrapped, dir, addresses);
        wait_for("the proxy to be ready", || proxy.is_ready().then_some(()));
        proxy
    }

    /// Starts another executable without an environment, and does not wait.
    pub fn begin_as(executable: &Path, config: impl Into<Setup>) -> Proxy {
        let (dir, addresses) = prepared(&config.into(), &[]);
        let mut bare = Command::new(executable);
        bare.args(command(&dir, &[]).get_args()).current_dir(dir.path()).env_clear();
        Proxy::of(bare, dir, addresses)
    }

    /// Starts another process with the same configuration in the same directory. Does not wait.
    pub fn beside(&self, options: &[&str]) -> Proxy {
        Proxy::spawn(self.dir.clone(), self.addresses.clone(), options)
    }

    fn spawn(dir: Arc<TempDir>, addresses: BTreeMap<String, Reserved>, options: &[&str]) -> Proxy {
        let command = command(&dir, options);
        Proxy::of(command, dir, addresses)
    }

    fn of(mut command: Command, dir: Arc<TempDir>, addresses: BTreeMap<String, Reserved>) -> Proxy {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the proxy can be run");
        let output = Arc::new(Mutex::new(String::new()));
        let readers = vec![capture(child.stdout.take(), &output), capture(child.stderr.take(), &output)];
        Proxy { child, dir, addresses, output, readers, leaves: false }
    }

    /// Its whole output, once it has exited.
    pub fn last_words(&mut self) -> String {
        self.wait_exit();
        self.readers.drain(..).for_each(|reader| reader.join().expect("its output can be read"));
        self.written()
    }

    /// The address that a word between at signs stands for.
    pub fn address(&self, name: &str) -> SocketAddr {
        *self.addresses[name]
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// Its peak resident memory in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, which: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(which)).expect("its memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Allows something to be still in progress when the test ends, such as a mirrored request that is never answered.
    pub fn leaving_things_behind(mut self) -> Proxy {
        self.leaves = true;
        self
    }

    /// The directory of its configuration.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A connection to the listener `main`.
    pub fn client(&self) -> Client {
        Client::connect(self.address("main"))
    }

    /// An HTTP/2 connection to the listener `main`.
    pub fn h2(&self) -> H2 {
        H2::connect(self.address("main"))
    }

    /// Waits until connections to `main` have been rejected for this reason, and asserts that there was exactly one.
    pub fn refused_one(&self, reason: &str) {
        let labels = [("listener", "main"), ("reason", reason)];
        self.wait_for_metric("tollgate_connections_refused_total", &labels, 1.0);
        let all = self.metrics().sum("tollgate_connections_refused_total", &[("listener", "main")]);
        assert_eq!(all, 1.0, "{}", self.admin("GET", "/metrics", "").text());
    }

    /// Sends a request on a new connection and returns its response.
    pub fn request(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Message {
        self.client().request(method, target, fields, body)
    }

    /// Sends a `GET` on a new connection.
    pub fn get(&self, target: &str) -> Message {
        self.request("GET", target, &[], b"")
    }

    /// Sends requests on so many concurrent connections that each worker gets some of them, and waits for all
    /// responses.
    pub fn asks_all_workers(&self) {
        let mut clients: Vec<_> = (0..16).map(|_| self.client()).collect();
        for _ in 0..10 {
            clients.iter_mut().for_each(|client| client.send_request("GET", "/", &[], b""));
            clients.iter_mut().for_each(|client| assert_eq!(client.read().status(), 200));
        }
    }

    /// Sends a request to the admin listener.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> Message {
        self.ask_admin("admin", method, path, &[("Host", "localhost")], body)
    }

    /// The same, with these fields, to the admin listener or the probes listener.
    pub fn ask_admin(&self, listener: &str, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Message {
        Client::connect(self.address(listener)).request(method, path, fields, body.as_bytes())
    }

    fn admin_json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.admin("GET", path, "").body).expect("the admin listener gives JSON")
    }

    /// `GET /config`.
    pub fn config(&self) -> Value {
        self.admin_json("/config")
    }

    /// The version of the running configuration.
    pub fn version(&self) -> u64 {
        self.config()["version"].as_u64().expect("a version")
    }

    /// The filter of this name in `GET /filters`.
    pub fn filter(&self, name: &str) -> Value {
        let filters = self.admin_json("/filters");
        let all = filters["filters"].as_array().expect("a list of filters");
        all.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no filter {name}: {filters}")).clone()
    }

    /// `GET /metrics`.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(self.admin("GET", "/metrics", "").text())
    }

    /// Waits until the sum of a metric's series with these labels is at least this much, or, if this is 0, until there
    /// are none.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        wait_for(&format!("{name} {labels:?} to be {least}"), || {
            let now = self.metrics().sum(name, labels);
            (if least == 0.0 { now == 0.0 } else { now >= least }).then_some(())
        });
    }

    /// Waits until all of a metric's series with these labels are zero. There must be at least one.
    pub fn wait_for_zero(&self, name: &str, labels: &[(&str, &str)]) {
        wait_until(&format!("{name} {labels:?} to be 0"), || {
            let metrics = self.metrics();
            assert!(metrics.has(name, labels), "there is no {name} {labels:?}");
            metrics.sum(name, labels) == 0.0
        });
    }

    /// Whether `/ready` reports ready.
    pub fn is_ready(&self) -> bool {
        let Ok(stream) = TcpStream::connect(self.address("admin")) else { return false };
        let mut wire = Wire::new(stream);
        let asked = wire.send("GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n");
        asked.and_then(|()| wire.read_response("GET")).is_ok_and(|response| response.status() == 200)
    }

    /// `POST /reload`: the status and the response.
    pub fn reload(&self) -> (u16, Value) {
        let response = self.admin("POST", "/reload", "");
        (response.status(), serde_json::from_slice(&response.body).expect("the admin listener gives JSON"))
    }

    /// Replaces a file atomically, as deployment tools do. The proxy notices by itself.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let temporary = self.dir().join(format!(".{name}.new"));
        fs::write(&temporary, content).expect("a file can be written");
        fs::rename(temporary, self.dir().join(name)).expect("a file can be renamed");
    }

    /// Replaces the configuration; words between at signs keep their addresses.
    pub fn put_config(&mut self, config: impl Into<Setup>) {
        let Setup { text, files } = config.into();
        for (name, content) in files {
            // Rewriting the same content is not a change.
            if fs::read(self.dir().join(&name)).ok().as_ref() != Some(&content) {
                self.put(&name, content);
            }
        }
        let text = filled_in(&text, &mut self.addresses);
        self.put("config.yaml", text);
    }

    /// The same, and waits until it is applied.
    pub fn change_config(&mut self, config: impl Into<Setup>) {
        self.put_config(config);
        // Either this reload or the proxy's own file watch applies it first.
        let (status, response) = self.reload();
        assert_eq!(status, 200, "{response:#}");
    }

    /// All lines of the access log so far.
    pub fn entries(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir().join("access.log")).unwrap_or_default();
        // The last line may be incomplete.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line of the access log is JSON")).collect()
    }

    /// Waits for the first matching line of the access log.
    pub fn entry(&self, wanted: impl Fn(&Value) -> bool) -> Entry {
        wait_for("a line in the access log", || self.entries().into_iter().find(|entry| wanted(entry)).map(Entry))
    }

    /// Waits for the first line of the access log for this path.
    pub fn entry_for(&self, path: &str) -> Entry {
        self.entry(|entry| entry["path"] == path)
    }

    /// Its standard output and error so far. A separate thread writes its log, so this waits until no more output
    /// arrives; to wait for a certain line use [`Proxy::wait_for_output`].
    pub fn output(&self) -> String {
        loop {
            let before = self.written();
            thread::sleep(SETTLED);
            if self.written() == before {
                return before;
            }
        }
    }

    fn written(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until it has written this text.
    pub fn wait_for_output(&self, text: &str) {
        wait_for(&format!("{text:?} in the log"), || self.written().contains(text).then_some(()));
    }

    /// Waits until it has logged that it is ready, for cases in which [`Proxy::is_ready`] cannot tell: another process
    /// answers at the same address, or the admin listener requires a token or is a Unix socket.
    pub fn wait_for_ready_line(&self) {
        self.wait_for_output("ready workers=");
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a signal can be sent");
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits until it exits.
    pub fn wait_exit(&mut self) -> ExitStatus {
        wait_for("the proxy's end", || self.child.try_wait().expect("it is our child"))
    }
}

impl Proxy {
    /// What must not be left when the test is over.
    fn left_behind(&mut self) -> Option<String> {
        if self.leaves || thread::panicking() || !matches!(self.child.try_wait(), Ok(None)) {
            return None;
        }
        let addresses = self.addresses.iter().map(|(name, reserved)| (name.clone(), **reserved)).collect();
        let config = fs::read_to_string(self.dir().join("config.yaml")).unwrap_or_default();
        let unseen = config.contains("http3: true") || config.contains("unix:");
        settled::left_behind(&addresses, unseen)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let left = self.left_behind();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let end = Instant::now() + SETTLED;
        // A process that it has started may keep its output open a little longer.
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let written = self.written();
        let panic = settled::panic_in(&written);
        if thread::panicking() || left.is_some() || panic.is_some() {
            eprintln!("--- the proxy's log:\n{written}---");
        }
        if !thread::panicking() {
            assert_eq!(panic, None, "the proxy has panicked");
            assert_eq!(left, None, "the proxy has no clients, and still has something in progress");
        }
    }
}

/// A directory with the configuration and these files, and the addresses of the words between at signs.
fn prepared(setup: &Setup, files: &[(&str, &[u8])]) -> (Arc<TempDir>, BTreeMap<String, Reserved>) {
    let dir = TempDir::new().expect("a folder");
    let own = setup.files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
    for (name, content) in own.chain(files.iter().copied()) {
        fs::write(dir.path().join(name), content).expect("a file can be written");
    }
    let mut addresses = BTreeMap::new();
    fs::write(dir.path().join("config.yaml"), filled_in(&setup.text, &mut addresses)).expect("a file can be written");
    (Arc::new(dir), addresses)
}

/// The command that runs the proxy in a directory.
fn command(dir: &TempDir, options: &[&str]) -> Command {
    // The system's trusted authorities, for tests that bring some.
    let system = dir.path().join("system.pem");
    let mut command = Command::new(tollgate());
    command
        .args(["run", "config.yaml"])
        .args(options)
        .current_dir(dir.path())
        // Compiled filters are cached across all tests.
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("TOLLGATE_LOG")
        .envs(system.exists().then_some(("SSL_CERT_FILE", system)))
        .stdin(Stdio::null());
    command
}

/// Runs `tollgate` in a directory to its end, with an otherwise empty environment: whether it succeeded, and its
/// output.
pub fn run_in(dir: &Path, args: &[&str], env: &[(&str, &Path)]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(args).current_dir(dir).env_clear().envs(env.iter().copied());
    let output = command.output().expect("the binary can be run");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The executable: the one built with the tests, or the one that `TOLLGATE` names, such as a release build.
pub fn tollgate() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_tollgate");
    // Tests run in the package's directory; `TOLLGATE` is relative to the workspace.
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    std::env::var_os("TOLLGATE").map_or_else(|| built.into(), |named| Path::new(workspace).join(named))
}

fn capture(pipe: Option<impl Read + Send + 'static>, output: &Arc<Mutex<String>>) -> thread::JoinHandle<()> {
    let (pipe, output) = (pipe.expect("a pipe"), output.clone());
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            *output.lock().unwrap() += &format!("{line}\n");
        }
    })
}

/// The configuration with addresses for the words between at signs, and an admin listener.
fn filled_in(config: &str, addresses: &mut BTreeMap<String, Reserved>) -> String {
    let admin = if config.contains("admin:") { "" } else { "admin: {address: '@admin@'}\n" };
    let workers = if config.contains("workers:") { "" } else { "workers: 2\n" };
    let mut text = format!("{admin}{workers}{config}");
    while let Some((before, rest)) = text.split_once('@') {
        let (name, after) = rest.split_once('@').expect("a second at sign");
        let address = addresses.entry(name.to_owned()).or_insert_with(reserve);
        text = format!("{before}{address}{after}");
    }
    text
}
