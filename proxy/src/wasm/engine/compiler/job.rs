//! The compiler process: reads a module from standard input, compiles it, and writes the machine code to standard
//! output. It has no other descriptors and an almost empty environment. [`super::child`] is the parent's side.

use std::{
    env,
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsFd,
    process::ExitCode,
    thread,
};

use rayon::ThreadPoolBuilder;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
};

/// The hidden command that turns the executable into a compiler process. `--help` does not show it.
pub(super) const COMMAND: &str = "compile-module";

/// Exit status if the module cannot be compiled; standard error has the reason.
pub(super) const INVALID: u8 = 1;

/// Exit status if the compiler ran out of memory and noticed it.
pub(super) const NO_MEMORY: u8 = 2;

/// Exit status if the process cannot start its work.
pub(super) const UNABLE: u8 = 3;

/// The maximum number of threads. More do not help much, and each needs memory: with this many, a module whose
/// functions all have the default maximum size just fits into the default memory limit, however many processors there
/// are.
const MAX_THREADS: usize = 4;

/// Compiles if this process was started for that. An executable that uses
/// [`Compiler::in_child`](super::Compiler::in_child) must call this before anything else.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args().skip(1);
    if arguments.next()? != COMMAND {
        return None;
    }
    let (memory, seconds) = (arguments.next()?.parse().ok()?, arguments.next()?.parse().ok()?);
    let (code, said) = match run(memory, seconds) {
        Ok(()) => return Some(ExitCode::SUCCESS),
        Err(failed) => failed,
    };
    eprintln!("{said}");
    Some(ExitCode::from(code))
}

/// Exit status and reason if compilation failed.
type JobFailure = (u8, String);

fn run(memory: u64, seconds: u64) -> Result<(), JobFailure> {
    let unable = |what: &str, error: &dyn std::fmt::Display| (UNABLE, format!("{what}: {error}"));
    close_inherited();
    die_with_parent().map_err(|e| unable("cannot watch for the proxy's exit", &e))?;
    // This covers everything a compiler allocates: since Linux 4.7, `RLIMIT_DATA` counts all private writable memory.
    // `RLIMIT_AS` would also count reserved address space and the executable.
    limit(Resource::Data, memory, memory).map_err(|e| unable("cannot limit the memory", &e))?;
    // The soft limit ends the process with a signal that identifies the cause; the hard limit cannot be ignored.
    limit(Resource::Cpu, seconds, seconds + 1).map_err(|e| unable("cannot limit the processor time", &e))?;
    let _ = limit(Resource::Core, 0, 0);
    let _ = rustix::thread::set_name(c"tollgate-compile");

    let mut module = Vec::new();
    std::io::stdin().lock().read_to_end(&mut module).map_err(|e| unable("cannot read the module", &e))?;
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| unable("cannot start threads", &e))?;
    let code = pool.install(|| compile(&module)).map_err(|error| {
        let said = format!("{error:#}");
        let code = if is_out_of_memory(&error) { NO_MEMORY } else { INVALID };
        (code, said)
    })?;
    // Bypasses `Stdout`, which would scan for line feeds.
    let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(|e| unable("cannot write the code", &e))?;
    File::from(output).write_all(&code).map_err(|e| unable("cannot write the code", &e))
}

/// Returns machine code for the engine that runs filters.
pub(super) fn compile(module: &[u8]) -> wasmtime::Result<Vec<u8>> {
    // A separate engine: a compiler caches its working memory, tens of MiB, for the next module.
    wasmtime::Engine::new(&super::settings())?.precompile_module(module)
}

/// Closes inherited descriptors beyond the three that are used. The proxy opens nothing that is inherited, but may
/// itself have inherited some.
#[expect(unsafe_code, reason = "closes descriptors that have no owner in this process")]
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The listing's own descriptor is included and already closed.
        if fs::symlink_metadata(format!("/proc/self/fd/{descriptor}")).is_ok() {
            // SAFETY: the descriptor is open, and nothing in this process owns it: there is one thread, which has
            // opened nothing yet.
            unsafe { rustix::io::close(descriptor) }
        }
    }
}

/// Makes this process exit when its parent does.
fn die_with_parent() -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have exited before that; then the other end of standard error is closed.
    let stderr = std::io::stderr();
    let mut reader = [PollFd::new(&stderr, PollFlags::empty())];
    poll(&mut reader, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    match reader[0].revents().contains(PollFlags::ERR) {
        true => Err(rustix::io::Errno::PIPE),
        false => Ok(()),
    }
}

/// Sets a limit, lowered to the hard limit that the process was started with.
fn limit(resource: Resource, soft: u64, hard: u64) -> rustix::io::Result<()> {
    let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    setrlimit(resource, Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) })
}

/// Whether the compiler failed because the system refused memory. If the Rust allocator is refused memory, the process
/// aborts instead.
fn is_out_of_memory(error: &wasmtime::Error) -> bool {
    let is_refusal = |error: &(dyn std::error::Error + 'static)| {
        error.is::<wasmtime::OutOfMemory>()
            || error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
                == Some(rustix::io::Errno::NOMEM.raw_os_error())
            || error.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::NOMEM)
    };
    error.chain().any(is_refusal)
}
