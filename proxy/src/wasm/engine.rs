//! The process-wide wasmtime engine, its compiler, and the time limit on calls.

pub(super) mod clock;
pub mod compiler;
pub(super) mod ticker;

use std::sync::{Arc, OnceLock};

use wasmtime::Module;

use self::{
    compiler::{CompileError, Compiler},
    ticker::TICKER,
};
use crate::config::model::Compile;

/// The wasmtime engine with its compiler. One per process.
pub struct Engine {
    engine: wasmtime::Engine,
    /// Compiles modules for this engine.
    compiler: Compiler,

    /// The trampoline module, compiled on first use; `None` if compiling it failed.
    joining: OnceLock<Option<Module>>,
}

impl Engine {
    /// Creates an engine that compiles with `compiler`.
    pub fn new(compiler: Compiler) -> wasmtime::Result<Arc<Engine>> {
        let engine = wasmtime::Engine::new(&compiler::settings())?;
        TICKER.add(engine.weak());
        Ok(Arc::new(Engine { engine, compiler, joining: OnceLock::new() }))
    }

    /// Compiles a module or loads it from the cache.
    #[expect(unsafe_code, reason = "machine code comes from another process or a file")]
    pub(super) fn compile(&self, module: &[u8], limits: &Compile) -> Result<Module, CompileError> {
        let code = self.compiler.compile(&self.engine, module, limits)?;
        // SAFETY: `code` is, byte for byte, what `Engine::precompile_module` returned for an engine with the same
        // settings. Either a child process running this very executable produced it just now: that process does nothing
        // else and has exited, and its output was sealed before it was read into our memory. Or it was cached in a file
        // since then, which only this process's user and root can write, and which matches the digest stored with it.
        let module = unsafe { Module::deserialize(&self.engine, code) };
        module.map_err(|e| CompileError::Crashed(format!("cannot load the compiled code: {e:#}")))
    }

    /// Cancels running compilations and rejects new ones.
    pub fn end_compiling(&self) {
        self.compiler.end();
    }

    /// The wasmtime engine, for creating stores.
    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// The compiled trampoline module. `None` if it cannot be compiled; callbacks are then called one by one.
    pub(super) fn joining(&self, module: &[u8]) -> Option<&Module> {
        self.joining.get_or_init(|| self.compile(module, &Compile::default()).ok()).as_ref()
    }
}
