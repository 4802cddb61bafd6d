//! Child processes that do not outlive this one, each pinned to its own processors, and ports for them.
//!
//! `setpriv --pdeathsig` makes the kernel end a process when this one ends for any reason: Ctrl-C, an error, a kill.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{Read, Write},
    iter::once,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process};

/// Timeout for a process to answer its first request: ten thousand routes take a moment.
const START: Duration = Duration::from_secs(30);
/// Timeout for a process to end after SIGTERM.
const END: Duration = Duration::from_secs(3);

/// A server process that is stopped on drop.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// Starts the server and polls `answers` until it returns true.
    pub fn start(
        command: &[OsString],
        cores: &str,
        port: u16,
        log: &Path,
        answers: impl Fn() -> bool,
    ) -> anyhow::Result<Server> {
        let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut server = Server { child: pinned(command, cores, output.try_clone()?, output)?, port };
        let begun = Instant::now();
        loop {
            if answers() {
                return Ok(server);
            }
            let ended = server.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > START {
                let why = ended.map_or(format!("did not answer within {START:?}"), |status| format!("ended: {status}"));
                return Err(failure(&command[0], &why, log));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        if matches!(wait(&mut self.child, END), Ok(None) | Err(_)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end; returns its standard output.
pub fn output(command: &[OsString], cores: &str, folder: &Path, longest: Duration) -> anyhow::Result<String> {
    let (out, err) = (folder.join("load.out"), folder.join("load.err"));
    let mut child = pinned(command, cores, File::create(&out)?, File::create(&err)?)?;
    let status = wait(&mut child, longest)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    match status {
        Some(status) if status.success() => Ok(fs::read_to_string(&out)?),
        Some(status) => Err(failure(&command[0], &format!("ended: {status}"), &err)),
        None => Err(failure(&command[0], &format!("did not end within {longest:?}"), &err)),
    }
}

/// A program's error, followed by the first lines of its log.
fn failure(program: &OsStr, why: &str, log: &Path) -> anyhow::Error {
    let said = fs::read_to_string(log).unwrap_or_default();
    let lines = said.lines().filter(|line| !line.trim().is_empty()).take(5);
    anyhow!("{}", once(&*format!("{} {why}", program.display())).chain(lines).collect::<Vec<_>>().join("\n"))
}

fn pinned(command: &[OsString], cores: &str, out: File, err: File) -> anyhow::Result<Child> {
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "taskset", "-c", cores])
        .args(command)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .context("cannot run setpriv; install the Debian package util-linux, which also has taskset")
}

fn wait(child: &mut Child, longest: Duration) -> anyhow::Result<Option<std::process::ExitStatus>> {
    let begun = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || begun.elapsed() > longest {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A free port; the kernel does not hand out the same one again immediately.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}

/// Whether a request gets a response with status 200.
pub fn answers(port: u16, path: &str) -> bool {
    matches!(get(port, path), Ok(answer) if answer.starts_with("HTTP/1.1 200"))
}

/// Sends one request on a new connection; returns the response.
pub fn get(port: u16, path: &str) -> anyhow::Result<String> {
    get_with(port, path, "accept: */*")
}

/// The same with an additional header field.
pub fn get_with(port: u16, path: &str, field: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{field}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Finds an executable: a path is used as is, a name is looked up in $PATH and in Debian's folders for servers.
pub fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_program_and_the_beginning_of_its_output() {
        let folder = std::env::temp_dir().join(format!("peers-process-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let cores = crate::machine::Places::of(1).unwrap().proxy;
        let run = |script: &str| {
            let command = ["sh", "-c", script].map(OsString::from);
            output(&command, &cores, &folder, Duration::from_secs(60)).map_err(|e| e.to_string())
        };
        assert_eq!(run("echo 1; echo 2 >&2"), Ok("1\n".into()));
        assert_eq!(run("exit 3"), Err("sh ended: exit status: 3".into()));
        let said = run("for i in 1 2 3 4 5 6; do echo; echo $i; done >&2; exit 1").unwrap_err();
        assert_eq!(said, "sh ended: exit status: 1\n1\n2\n3\n4\n5");
        fs::remove_dir_all(&folder).unwrap();
    }
}
