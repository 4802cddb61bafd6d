//! The engine that runs filters: one for the process, with one thread that ticks the clock by which calls are bounded.

pub(super) mod clock;
pub mod compiler;

use std::{
    io,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use wasmtime::Module;

use self::compiler::{CompileError, Compiler};
use crate::config::model::Compile;

/// The engine, with what compiles for it and what bounds its calls.
pub struct Engine {
    engine: wasmtime::Engine,
    /// What makes machine code for it.
    compiler: Compiler,

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

        let (joining, stopped, ticks) = (OnceLock::new(), Arc::default(), Once::new());
        Ok(Arc::new(Engine { engine, compiler, joining, stopped, ticks }))
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
    pub(super) fn joining(&self, module: &[u8]) -> Option<&Module> {
        self.joining.get_or_init(|| self.compile(module, &Compile::default()).ok()).as_ref()
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
                    thread::sleep(clock::TICK);
                    let Some(engine) = ticked.upgrade() else { return };
                    engine.increment_epoch();
                    clock::tick();
                }
            });
            result = thread.map(drop);
        });
        result
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
