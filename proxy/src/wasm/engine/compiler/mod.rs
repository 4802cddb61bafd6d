//! Compiles modules to machine code within limits on memory and time.
//!
//! Compiling is the first way a module could harm others: a file of three megabytes can take gigabytes and minutes.
//! [`bounds`] rejects oversized modules before anything is compiled. The others are compiled in a separate process,
//! which has limits and can be killed: [`child`] starts it and waits for it, [`job`] is its program. [`cache`] keeps
//! the results between runs.

mod bounds;
mod cache;
mod child;
pub mod job;

use std::io;

use wasmtime::{Config, InstanceAllocationStrategy, OptLevel};

pub use self::cache::{Cache, CacheError};
use self::{cache::Key, child::CancelSignal};
use crate::config::{model::Compile, units};

/// The size of a guest's stack in bytes. Worker threads have larger stacks.
const GUEST_STACK: usize = 512 << 10;

/// The settings of the engine that runs filters and of the engines that compile for it.
pub(super) fn settings() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        // Instances live long, so their tables are filled up front rather than checked at each indirect call.
        .table_lazy_init(false)
        .memory_may_move(false)
        .native_unwind_info(false)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand);
    config
}

/// Compiles modules to machine code.
pub struct Compiler {
    compile_in: CompileIn,
    cache: Option<Cache>,
}

/// Where modules are compiled.
enum CompileIn {
    /// In a separate process per module, which runs this process's executable.
    Child(CancelSignal),
    /// In this process, without limits: for tests and benchmarks, whose executable is not Tollgate's.
    Here,
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The module exceeds a size limit.
    #[error(transparent)]
    Bounds(#[from] OutOfBounds),
    /// The module cannot be compiled.
    #[error("{0}")]
    Invalid(String),
    /// Compiling the module takes too much memory.
    #[error("compiling it needs more memory than `compile.memory` allows ({0})")]
    Memory(units::ByteSize),
    /// Compiling the module takes too much processor time.
    #[error("compiling it takes more processor time than `compile.time` allows ({0})")]
    Time(units::Duration),
    /// The compiler process got too little processor time, or was stopped.
    #[error(
        "compiling it did not finish within {0}, although it used less processor time than `compile.time` allows ({1})"
    )]
    Starved(units::Duration, units::Duration),
    /// The compiler process was killed by a signal from outside.
    #[error("the compiler was killed, probably by the system because memory ran out")]
    Killed,
    /// A bug in the compiler.
    #[error("the compiler failed: {0}")]
    Crashed(String),
    /// No process can be started.
    #[error("cannot run the compiler process: {0}")]
    NoProcess(io::Error),
    /// The result is no longer needed.
    #[error("the proxy is shutting down")]
    Ending,
}

/// A module exceeds a size limit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// The module's size in bytes.
    #[error("it has {0} bytes, and `compile.module_size` allows {1}")]
    Module(u64, units::ByteSize),
    /// A function's code size in bytes.
    #[error("its function {0} has {1} bytes of code, and `compile.function_size` allows {2}")]
    Function(u64, u64, units::ByteSize),
    /// The number of a function's local variables.
    #[error("its function {0} has {1} local variables, and `compile.function_locals` allows {2}")]
    Locals(u64, u64, u32),
}

impl CompileError {
    /// Suggests the setting that would allow the module.
    pub fn help(&self) -> Option<String> {
        let mebibytes = |bytes: u64| units::ByteSize(bytes.div_ceil(1 << 20) << 20);
        let setting = match self {
            CompileError::Bounds(OutOfBounds::Module(size, _)) => format!("module_size: {}", mebibytes(*size)),
            CompileError::Bounds(OutOfBounds::Function(_, size, _)) => format!("function_size: {}", mebibytes(*size)),
            CompileError::Bounds(OutOfBounds::Locals(_, n, _)) => format!("function_locals: {n}"),
            CompileError::Memory(limit) => format!("memory: {}", units::ByteSize(limit.0.saturating_mul(2))),
            CompileError::Time(limit) | CompileError::Starved(_, limit) => {
                format!("time: {}", units::Duration(limit.0.saturating_mul(2)))
            }
            _ => return None,
        };
        Some(format!("few modules need that; if you trust this one, allow it with `compile: {{{setting}}}`"))
    }
}

impl Compiler {
    /// Creates a compiler that compiles each module in a separate process of this process's executable. That must be
    /// Tollgate's: see [`job::run_if_asked`].
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn in_child(cache: Option<Cache>) -> io::Result<Compiler> {
        Ok(Compiler { compile_in: CompileIn::Child(CancelSignal::new()?), cache })
    }

    /// Creates a compiler that compiles in this process, for executables other than Tollgate's: tests and benchmarks.
    pub fn in_process() -> Compiler {
        Compiler { compile_in: CompileIn::Here, cache: None }
    }

    /// Returns a module's machine code, compiled or from the cache, in the form that `wasmtime::Module::deserialize`
    /// expects.
    pub(in crate::wasm) fn compile(
        &self,
        engine: &wasmtime::Engine,
        module: &[u8],
        limits: &Compile,
    ) -> Result<Vec<u8>, CompileError> {
        bounds::check(module, limits)?;
        let cache = self.cache.as_ref().map(|cache| (cache, Key::of(engine, module)));
        if let Some(code) = cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
            return Ok(code);
        }
        let code = match &self.compile_in {
            CompileIn::Child(end) => child::compile(module, limits, end)?,
            CompileIn::Here => job::compile(module).map_err(|e| CompileError::Invalid(format!("{e:#}")))?,
        };
        if let Some((cache, key)) = &cache {
            cache.put(key, &code);
        }
        Ok(code)
    }

    /// Cancels running compilations and rejects new ones.
    pub(in crate::wasm) fn end(&self) {
        if let CompileIn::Child(end) = &self.compile_in {
            end.say();
        }
    }
}
