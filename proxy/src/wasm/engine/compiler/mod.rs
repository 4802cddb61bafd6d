//! From a module to machine code, with bounds on what that may take.
//!
//! Compiling is the first thing a module could hurt others with: a file of three megabytes can take gigabytes and minutes.
//! [`bounds`] refuses what is out of proportion before anything is compiled. The rest is compiled in a process of its own,
//! which has limits and can be killed: [`child`] starts that process and waits for it, [`job`] is what it does. [`cache`]
//! keeps the result between runs.

mod bounds;
mod cache;
mod child;
pub mod job;

use std::io;

use wasmtime::{Config, InstanceAllocationStrategy, OptLevel};

pub use self::cache::{Cache, CacheError};
use self::{cache::Key, child::CancelSignal};
use crate::config::{model::Compile, units};

/// The stack of a guest. Worker threads have more than this.
const GUEST_STACK: usize = 512 << 10;

/// The settings of the engine that runs filters, and of those that compile for it.
pub(super) fn settings() -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        // Instances live long, so their tables are filled at once rather than checked at each indirect call.
        .table_lazy_init(false)
        .memory_may_move(false)
        .native_unwind_info(false)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand);
    config
}

/// Turns modules into machine code.
pub struct Compiler {
    place: CompileIn,
    cache: Option<Cache>,
}

/// Where modules are compiled.
enum CompileIn {
    /// In a process of its own for each module, which runs this process's executable.
    Child(CancelSignal),
    /// In this process, without a limit: for tests and benchmarks, whose executable is not Tollgate's.
    Here,
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is out of proportion.
    #[error(transparent)]
    Bounds(#[from] OutOfBounds),
    /// It is not a module that can be compiled.
    #[error("{0}")]
    Invalid(String),
    /// Compiling it takes too much memory.
    #[error("compiling it needs more memory than `compile.memory` allows ({0})")]
    Memory(units::ByteSize),
    /// Compiling it takes too much time.
    #[error("compiling it takes more processor time than `compile.time` allows ({0})")]
    Time(units::Duration),
    /// The compiler's process got too little processor time, or was stopped.
    #[error("compiling it was not done after {0}, though it took less processor time than `compile.time` allows ({1})")]
    Starved(units::Duration, units::Duration),
    /// Somebody has killed the compiler's process.
    #[error("the compiler was killed, probably by the system for want of memory")]
    Killed,
    /// A bug in the compiler.
    #[error("the compiler has failed: {0}")]
    Crashed(String),
    /// There is no process to be had.
    #[error("the compiler's process cannot be run: {0}")]
    NoProcess(io::Error),
    /// Nobody wants the result any more.
    #[error("this process is ending")]
    Ending,
}

/// Something about a module is larger than allowed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// The whole.
    #[error("it has {0} bytes, and `compile.module_size` allows {1}")]
    Module(u64, units::ByteSize),
    /// A function's code.
    #[error("its function {0} has {1} bytes of code, and `compile.function_size` allows {2}")]
    Function(u64, u64, units::ByteSize),
    /// A function's variables.
    #[error("its function {0} has {1} local variables, and `compile.function_locals` allows {2}")]
    Locals(u64, u64, u32),
}

impl CompileError {
    /// How it could be compiled all the same.
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
    /// One that compiles each module in a process of its own, which runs this process's executable. So that must be
    /// Tollgate's: see [`job::run_if_asked`].
    ///
    /// # Errors
    /// There can be no more descriptors.
    pub fn in_child(cache: Option<Cache>) -> io::Result<Compiler> {
        Ok(Compiler { place: CompileIn::Child(CancelSignal::new()?), cache })
    }

    /// One that compiles in this process, for executables other than Tollgate's: tests and benchmarks.
    pub fn in_process() -> Compiler {
        Compiler { place: CompileIn::Here, cache: None }
    }

    /// The machine code of a module, compiled or from the cache, as `wasmtime::Module::deserialize` takes it.
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
        let code = match &self.place {
            CompileIn::Child(end) => child::compile(module, limits, end)?,
            CompileIn::Here => job::compile(module).map_err(|e| CompileError::Invalid(format!("{e:#}")))?,
        };
        if let Some((cache, key)) = &cache {
            cache.put(key, &code);
        }
        Ok(code)
    }

    /// Gives up what is being compiled, and compiles nothing more.
    pub(in crate::wasm) fn end(&self) {
        if let CompileIn::Child(end) = &self.place {
            end.say();
        }
    }
}
