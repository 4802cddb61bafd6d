//! Runs the compiler process for one module: this process's executable again, with limits on memory and time; it exits
//! with this process. Input and output are in-memory files, so no folder is needed. [`super::job`] is the child's side.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::Signal,
};

use super::{CompileError, job};
use crate::config::{model::Compile, units};

/// This process's executable, even if its file has been deleted or replaced by another version.
const EXECUTABLE: &str = "/proc/self/exe";

/// The compiler's whole environment. It makes the allocator commit only the memory that it uses: by default, mimalloc
/// starts with a GiB of writable memory, which is the compiler's entire memory limit.
const ENVIRONMENT: [(&str, &str); 2] = [("MIMALLOC_ARENA_EAGER_COMMIT", "0"), ("MIMALLOC_ARENA_RESERVE", "32768")];

/// The wall-clock limit as a multiple of the processor time limit. While traffic uses all processors, a compiler gets
/// about a thirtieth of one; most modules need far less time than the limit.
const PATIENCE: u32 = 10;

/// Maximum bytes kept of the compiler's output on standard error. A module cannot make it print much.
const MAX_OUTPUT: usize = 16 << 10;

/// Cancels all waiting compilations. It is one end of a pipe, because that can be polled together with a process's
/// output.
pub(super) struct CancelSignal {
    reader: OwnedFd,
    /// Closed to cancel.
    writer: Mutex<Option<OwnedFd>>,
}

impl CancelSignal {
    pub(super) fn new() -> io::Result<CancelSignal> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(CancelSignal { reader, writer: Mutex::new(Some(writer)) })
    }

    pub(super) fn say(&self) {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Compiles a module in a separate process.
pub(super) fn compile(module: &[u8], limits: &Compile, end: &CancelSignal) -> Result<Vec<u8>, CompileError> {
    let seconds = limits.time.0.as_secs_f64().ceil() as u64;
    let start = || -> io::Result<(Child, File)> {
        let mut input = File::from(memory_file("module")?);
        input.write_all(module)?;
        input.rewind()?;
        let output = File::from(memory_file("code")?);
        let child = Command::new(EXECUTABLE)
            .arg0("tollgate")
            .args([job::COMMAND, &limits.memory.0.to_string(), &seconds.to_string()])
            .env_clear()
            .envs(ENVIRONMENT)
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()?;
        Ok((child, output))
    };
    let (mut child, output) = start().map_err(CompileError::NoProcess)?;
    let patience = units::Duration(limits.time.0.saturating_mul(PATIENCE));
    let said = listen(&mut child, Instant::now() + patience.0, end);
    if said.is_err() {
        // It may have exited by itself just now.
        let _ = child.kill();
    }
    let status = child.wait().map_err(CompileError::NoProcess)?;
    match said.map_err(CompileError::NoProcess)? {
        ChildEvent::Exited(said) => judge(status, &said, limits)?,
        ChildEvent::Cancelled => return Err(CompileError::Ending),
        ChildEvent::TimedOut => return Err(CompileError::Starved(patience, limits.time)),
    }
    read(output).map_err(CompileError::NoProcess)
}

/// The result of waiting for a process.
enum ChildEvent {
    /// The process exited, with this output on standard error.
    Exited(String),
    /// The wait was cancelled.
    Cancelled,
    /// The time limit expired.
    TimedOut,
}

/// Waits until a process exits, which closes its standard error, and collects what it prints there. Kills the process
/// if the wait is cancelled or the time limit expires.
fn listen(child: &mut Child, latest: Instant, end: &CancelSignal) -> io::Result<ChildEvent> {
    let Some(mut stderr) = child.stderr.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
    let mut said = Vec::new();
    loop {
        let left = latest.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(&stderr, PollFlags::IN), PollFd::new(&end.reader, PollFlags::IN)];
        match poll(&mut polled, Some(&timespec(left))) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        let [has_output, ended] = polled.map(|fd| !fd.revents().is_empty());
        if ended || !has_output && left.is_zero() {
            child.kill()?;
            return Ok(if ended { ChildEvent::Cancelled } else { ChildEvent::TimedOut });
        }
        if has_output {
            let mut some = [0; 4096];
            match stderr.read(&mut some) {
                Ok(0) => return Ok(ChildEvent::Exited(String::from_utf8_lossy(&said).into_owned())),
                Ok(n) => said.extend_from_slice(&some[..n.min(MAX_OUTPUT.saturating_sub(said.len()))]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    // Times in the configuration are at most a year.
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}

/// Interprets a process's exit status and output.
fn judge(status: ExitStatus, said: &str, limits: &Compile) -> Result<(), CompileError> {
    const ABORTED: i32 = Signal::ABORT.as_raw();
    const OUT_OF_TIME: i32 = Signal::XCPU.as_raw();
    const KILLED: i32 = Signal::KILL.as_raw();
    let status_is = |code: u8| status.code() == Some(code.into());
    match status.signal() {
        _ if status.success() => Ok(()),
        _ if status_is(job::INVALID) => Err(CompileError::Invalid(said.to_owned())),
        _ if status_is(job::UNABLE) => Err(CompileError::NoProcess(io::Error::other(said.trim().to_owned()))),
        _ if status_is(job::NO_MEMORY) => Err(CompileError::Memory(limits.memory)),
        // The standard library prints this before it aborts.
        Some(ABORTED) if said.contains("memory allocation of ") => Err(CompileError::Memory(limits.memory)),
        Some(OUT_OF_TIME) => Err(CompileError::Time(limits.time)),
        Some(KILLED) => Err(CompileError::Killed),
        _ => {
            let first = said.lines().map(str::trim).find(|line| !line.is_empty());
            Err(CompileError::Crashed(first.map_or_else(|| status.to_string(), |line| format!("{status}: {line}"))))
        }
    }
}

/// Creates an anonymous in-memory file.
fn memory_file(name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Some kernels require the flag, others do not know it.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    }
}

/// Reads what an exited process has written. The file is sealed first, so even a process that still holds it cannot
/// change it.
fn read(mut output: File) -> io::Result<Vec<u8>> {
    fcntl_add_seals(output.as_fd(), SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    let mut code = Vec::with_capacity(usize::try_from(output.metadata()?.len()).unwrap_or(0));
    output.rewind()?;
    output.read_to_end(&mut code)?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The interpretation of a process that exits as this shell script does.
    fn end_of(script: &str) -> String {
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        judge(output.status, &said, &Compile::default()).map_or_else(|e| e.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn each_exit_status_maps_to_its_error() {
        assert_eq!(end_of("exit 0"), "fine");
        assert_eq!(end_of("printf 'bad magic' >&2; exit 1"), "bad magic");
        assert!(
            end_of("echo 'memory allocation of 64 bytes failed' >&2; kill -ABRT $$")
                .contains("`compile.memory` allows (1GiB)")
        );
        assert!(end_of("exit 2").contains("`compile.memory` allows (1GiB)"));
        assert!(end_of("kill -XCPU $$").contains("`compile.time` allows (60s)"));
        assert!(end_of("kill -KILL $$").contains("was killed"));
        let crashed = end_of("printf '\\nthread main has overflowed its stack\\n' >&2; kill -ABRT $$");
        assert!(crashed.starts_with("the compiler failed: signal: 6"), "{crashed}");
        assert!(crashed.ends_with(": thread main has overflowed its stack"), "{crashed}");
    }

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn cancelled_process_is_killed() {
        let (mut child, end) = (shell("exec sleep 1000"), CancelSignal::new().unwrap());
        end.say();
        let heard = listen(&mut child, Instant::now() + Duration::from_secs(1000), &end).unwrap();
        assert!(matches!(heard, ChildEvent::Cancelled));
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    }

    #[test]
    fn process_over_its_time_limit_is_killed() {
        let (mut child, end) = (shell("exec sleep 1000"), CancelSignal::new().unwrap());
        let heard = listen(&mut child, Instant::now() + Duration::from_millis(10), &end).unwrap();
        assert!(matches!(heard, ChildEvent::TimedOut));
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    }

    #[test]
    fn long_output_is_read_to_the_end() {
        let (mut child, end) = (shell("echo first >&2; head -c 1000000 /dev/zero >&2"), CancelSignal::new().unwrap());
        let heard = listen(&mut child, Instant::now() + Duration::from_secs(1000), &end).unwrap();
        let ChildEvent::Exited(said) = heard else { panic!("it was not read to the end") };
        assert!(said.starts_with("first\n"));
        assert_eq!(said.len(), MAX_OUTPUT);
    }

    #[test]
    fn output_is_sealed_once_read() {
        let mut file = File::from(memory_file("test").unwrap());
        file.write_all(b"code").unwrap();
        let mut other = file.try_clone().unwrap();
        assert_eq!(read(file).unwrap(), b"code");
        assert!(other.write_all(b"more").is_err());
        assert!(other.set_len(0).is_err());
    }
}
