//! The engine that runs filters: one for the process, with one thread that ticks the clock by which calls are bounded.

use std::{
    io,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use wasmtime::{Linker, Module};

use super::{
    clock,
    compiler::{self, CompileError, Compiler},
    host::Host,
    hostcalls, joined,
};
use crate::config::model::Compile;

/// The grain of the bound on a call's time.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// The engine with all host functions.
pub struct Engine {
    engine: wasmtime::Engine,
    /// What makes machine code for it.
    compiler: Compiler,
    linker: Linker<Host>,
    /// Compiled for the first instance.
    joining: OnceLock<Option<Module>>,
    /// Ends the ticking thread.
    stopped: Arc<AtomicBool>,
    /// Whether there is one.
    ticks: Once,
}

impl Engine {
    /// An engine, and what compiles for it.
    pub fn new(compiler: Compiler) -> wasmtime::Result<Arc<Engine>> {
        let engine = wasmtime::Engine::new(&compiler::settings())?;
        let mut linker = Linker::new(&engine);
        hostcalls::link(&mut linker)?;
        let (joining, stopped, ticks) = (OnceLock::new(), Arc::default(), Once::new());
        Ok(Arc::new(Engine { engine, compiler, linker, joining, stopped, ticks }))
    }

    /// Compiles a module, or takes it from the cache.
    #[expect(unsafe_code, reason = "machine code comes from another process or a file")]
    pub(super) fn compile(&self, module: &[u8], limits: &Compile) -> Result<Module, CompileError> {
        let code = self.compiler.compile(&self.engine, module, limits)?;
        // SAFETY: this is what `Engine::precompile_module` has returned for an engine with the same settings, byte for byte.
        // Either this very executable has run it just now, in a process that has no other task and has ended; what that wrote
        // was sealed before it was read, into memory of our own. Or it was kept in a file since then, which nobody but this
        // process's user and root can write to, and which has the digest that it was written with.
        let module = unsafe { Module::deserialize(&self.engine, code) };
        module.map_err(|e| CompileError::Crashed(format!("its result cannot be used: {e:#}")))
    }

    /// Gives up what is being compiled, and compiles nothing more.
    pub fn end_compiling(&self) {
        self.compiler.end();
    }

    /// What stores are made for.
    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// The module that joins callbacks. None: it cannot be compiled, and each callback is made by itself.
    pub(super) fn joining(&self) -> Option<&Module> {
        self.joining.get_or_init(|| self.compile(joined::MODULE, &Compile::default()).ok()).as_ref()
    }

    /// Lets the clock tick from now on, if it does not yet: a proxy without filters is spared it.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(super) fn tick(&self) -> io::Result<()> {
        let mut result = Ok(());
        self.ticks.call_once(|| {
            let (ticked, stop) = (self.engine.weak(), self.stopped.clone());
            let thread = thread::Builder::new().name("tollgate-epoch".into()).spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(TICK);
                    let Some(engine) = ticked.upgrade() else { return };
                    engine.increment_epoch();
                    clock::tick();
                }
            });
            result = thread.map(drop);
        });
        result
    }

    /// The host's functions.
    pub(super) fn linker(&self) -> &Linker<Host> {
        &self.linker
    }

    /// A time in ticks, rounded up, and one more: the first tick may be due at once.
    pub(super) fn ticks(time: Duration) -> u64 {
        u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2).min(u64::MAX / 2) + 1
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
