//! What the compiler's process does: it reads a module from standard input, compiles it, and writes the machine code to
//! standard output. It has no other descriptors and no environment. [`super::child`] is the other side.

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

/// The command by which the executable becomes a compiler. It is no part of the command line that is shown to people.
pub(super) const COMMAND: &str = "compile-module";

/// The exit status if the module cannot be compiled; standard error says why.
pub(super) const INVALID: u8 = 1;

/// The exit status if there was too little memory, and that was noticed.
pub(super) const NO_MEMORY: u8 = 2;

/// The exit status if the process cannot begin.
pub(super) const UNABLE: u8 = 3;

/// More threads than this do not help much, and each of them takes memory. With so many, a module whose functions are all as large as
/// they may be by default has just enough by default, however many processors there are.
const MOST_THREADS: usize = 4;

/// Compiles, if that is what this process was started for. An executable whose process makes a
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

/// What came of it, if not machine code: the exit status, and why.
type JobFailure = (u8, String);

fn run(memory: u64, seconds: u64) -> Result<(), JobFailure> {
    let unable = |what: &str, error: &dyn std::fmt::Display| (UNABLE, format!("{what}: {error}"));
    close_inherited();
    die_with_parent().map_err(|e| unable("the end of the proxy cannot be heard of", &e))?;
    // The system knows more ways to take memory than this one, but none that a compiler uses: since Linux 4.7 it counts all
    // memory that is private and can be written to. `RLIMIT_AS` would count what is only reserved, and the executable.
    limit(Resource::Data, memory, memory).map_err(|e| unable("its memory cannot be limited", &e))?;
    // The first bound ends the process with a signal that tells what it is, and the second one could not be ignored.
    limit(Resource::Cpu, seconds, seconds + 1).map_err(|e| unable("its time cannot be limited", &e))?;
    let _ = limit(Resource::Core, 0, 0);
    let _ = rustix::thread::set_name(c"tollgate-compile");

    let mut module = Vec::new();
    std::io::stdin().lock().read_to_end(&mut module).map_err(|e| unable("the module cannot be read", &e))?;
    let threads = thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_THREADS);
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| unable("its threads cannot be started", &e))?;
    let code = pool.install(|| compile(&module)).map_err(|error| {
        let said = format!("{error:#}");
        let code = if is_want_of_memory(&error) { NO_MEMORY } else { INVALID };
        (code, said)
    })?;
    // Not by way of `Stdout`, which would look for line feeds.
    let output =
        std::io::stdout().as_fd().try_clone_to_owned().map_err(|e| unable("the code cannot be written", &e))?;
    File::from(output).write_all(&code).map_err(|e| unable("the code cannot be written", &e))
}

/// Machine code for the engine that runs filters.
pub(super) fn compile(module: &[u8]) -> wasmtime::Result<Vec<u8>> {
    // Not the engine that runs filters: a compiler keeps what it has worked with for the next time, tens of MiB.
    wasmtime::Engine::new(&super::settings())?.precompile_module(module)
}

/// Closes what this process was started with beyond the three that it uses. The proxy opens nothing that others inherit, but it may
/// have inherited something itself.
#[expect(unsafe_code, reason = "descriptors that nobody owns")]
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // The folder itself is among them, and is closed already.
        if fs::symlink_metadata(format!("/proc/self/fd/{descriptor}")).is_ok() {
            // SAFETY: it is open, and nothing in this process has opened it: there is one thread, which has done nothing before.
            unsafe { rustix::io::close(descriptor) }
        }
    }
}

/// Ends this process when the one that wants the code does.
fn die_with_parent() -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that. Then nobody is at the other end of standard error.
    let stderr = std::io::stderr();
    let mut reader = [PollFd::new(&stderr, PollFlags::empty())];
    poll(&mut reader, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    match reader[0].revents().contains(PollFlags::ERR) {
        true => Err(rustix::io::Errno::PIPE),
        false => Ok(()),
    }
}

/// Sets a limit, which may be lower than asked for if the process was given a lower one.
fn limit(resource: Resource, soft: u64, hard: u64) -> rustix::io::Result<()> {
    let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    setrlimit(resource, Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) })
}

/// Whether the compiler failed because the system refused memory. Where it is this library that is refused, it aborts.
fn is_want_of_memory(error: &wasmtime::Error) -> bool {
    let is_refusal = |error: &(dyn std::error::Error + 'static)| {
        error.is::<wasmtime::OutOfMemory>()
            || error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
                == Some(rustix::io::Errno::NOMEM.raw_os_error())
            || error.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::NOMEM)
    };
    error.chain().any(is_refusal)
}
