//! A filter's module: read, validated and compiled, but not instantiated.

use std::{io, path::Path, sync::Arc, time::Instant};

use tollgate_abi::{fast, proxy_wasm};
use wasmtime::{ExternType, InstancePre, Module};

use crate::{
    config::model::Compile,
    digest::sha256_hex,
    files,
    observe::target,
    wasm::{
        engine::{
            Engine,
            compiler::{CompileError, OutOfBounds},
            ticker::TICKER,
        },
        host::Host,
        hostcalls,
    },
};

/// A compiled module, ready to be instantiated.
pub struct CompiledModule {
    /// Its name for the user: a file's path, or `builtin:NAME`.
    pub source: String,
    /// The SHA-256 of its content, in hex.
    pub hash: String,
    /// Bytes of WebAssembly.
    pub size: usize,
    /// The Proxy-Wasm version that it was built for.
    pub abi: &'static str,
    pub(super) pre: InstancePre<Host>,
}

/// Why a module cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not WebAssembly, or use features that are disabled.
    #[error("{0} is not a WebAssembly module that can be compiled: {1}")]
    Invalid(String, String),
    /// Compiling it would exceed the limits, or the compiler cannot run.
    #[error("{0} was not compiled: {1}")]
    Compile(String, CompileError),
    /// Its file cannot be read.
    #[error("cannot read {0}: {1}")]
    Unreadable(String, io::Error),
    /// It exports no ABI version marker.
    #[error(
        "{0} is not a Proxy-Wasm filter: it exports no `proxy_abi_version_0_2_1` (nor `_0_2_0`, `_0_1_0`); \
         was it built as a `cdylib` with `export!`?"
    )]
    NoMarker(String),
    /// It was built for an ABI version that this host does not support.
    #[error(
        "{0} was built for a version of Proxy-Wasm that this host does not support: it exports `{1}`; \
         supported: `proxy_abi_version_0_2_1`, `_0_2_0` and `_0_1_0`"
    )]
    OtherVersion(String, String),
    /// It exports no allocator.
    #[error("{0} exports neither `malloc` nor `proxy_on_memory_allocate`, so the host cannot return data to it")]
    NoAllocator(String),
    /// It exports no memory.
    #[error("{0} exports no `memory`")]
    NoMemory(String),
    /// It imports functions that this host does not have.
    #[error("{0} needs functions that this version of Tollgate does not have: {1}")]
    Imports(String, String),
    /// A callback has the wrong type.
    #[error("{0} exports `{1}` with the wrong type; it must be `{2}`")]
    WrongType(String, String, String),
}

impl LoadError {
    /// A hint on what to do, if the message has none.
    pub fn help(&self) -> Option<String> {
        match self {
            LoadError::Compile(_, error) => error.help(),
            _ => None,
        }
    }

    fn compile(source: &str, error: CompileError) -> LoadError {
        match error {
            CompileError::Invalid(why) => LoadError::Invalid(source.into(), one_line(&why)),
            other => LoadError::Compile(source.into(), other),
        }
    }
}

impl CompiledModule {
    /// Reads a module's file, unless it is larger than allowed.
    pub fn read(path: &Path, limits: &Compile) -> Result<Vec<u8>, LoadError> {
        let source = || path.display().to_string();
        let most = limits.module_size;
        let read = files::open(path).and_then(|file| Ok((file.metadata()?.len(), files::read(path, most.0 + 1)?)));
        let (size, bytes) = read.map_err(|e| LoadError::Unreadable(source(), e))?;
        match bytes.len() as u64 > most.0 {
            true => Err(LoadError::Compile(source(), OutOfBounds::Module(size, most).into())),
            false => Ok(bytes),
        }
    }

    /// Compiles a module. Takes from milliseconds (cached) up to the time that `limits` allows, so it is never called
    /// on a worker.
    pub fn load(
        engine: &Engine,
        source: &str,
        bytes: &[u8],
        limits: &Compile,
    ) -> Result<Arc<CompiledModule>, LoadError> {
        CompiledModule::load_or_all(engine, source, bytes, limits).map_err(|mut all| all.swap_remove(0))
    }

    /// Like [`load`](Self::load), but returns all errors: at least one.
    pub fn load_or_all(
        engine: &Engine,
        source: &str,
        bytes: &[u8],
        limits: &Compile,
    ) -> Result<Arc<CompiledModule>, Vec<LoadError>> {
        let start = Instant::now();
        let failed = |error| vec![LoadError::compile(source, error)];
        // A proxy without filters never starts it.
        TICKER.start().map_err(|e| failed(CompileError::NoProcess(e)))?;
        let module = engine.compile(bytes, limits).map_err(failed)?;
        let mut wrong = Vec::new();
        let marker = proxy_wasm::VERSION_MARKERS.iter().find(|(name, _)| module.get_export(name).is_some());
        if marker.is_none() {
            let other = module.exports().find(|export| export.name().starts_with(proxy_wasm::VERSION_MARKER));
            wrong.push(match other {
                Some(other) => LoadError::OtherVersion(source.into(), other.name().into()),
                None => LoadError::NoMarker(source.into()),
            });
        }
        wrong.extend(check_allocator(&module, source).err());
        if !matches!(module.get_export("memory"), Some(ExternType::Memory(_))) {
            wrong.push(LoadError::NoMemory(source.into()));
        }
        wrong.extend(check_imports(&module, source).err());
        check_callbacks(&module, source, &mut wrong);
        let (Some((_, abi)), true) = (marker, wrong.is_empty()) else { return Err(wrong) };
        let pre = hostcalls::linker(engine.wasmtime())
            .and_then(|linker| linker.instantiate_pre(&module))
            .map_err(|e| vec![LoadError::Imports(source.into(), one_line(&format!("{e:#}")))])?;
        tracing::debug!(
            target: target::WASM,
            source, bytes = bytes.len(), ms = start.elapsed().as_millis() as u64, "compiled"
        );
        Ok(Arc::new(CompiledModule { source: source.into(), hash: sha256_hex(bytes), size: bytes.len(), abi, pre }))
    }

    /// Bytes of machine code.
    pub fn native_size(&self) -> usize {
        self.pre.module().text().len()
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check_allocator(module: &Module, source: &str) -> Result<(), LoadError> {
    let Some(allocator) = proxy_wasm::ALLOCATORS.iter().find(|name| module.get_export(name).is_some()) else {
        return Err(LoadError::NoAllocator(source.into()));
    };
    let allocates = |ty: ExternType| {
        let ExternType::Func(ty) = ty else { return false };
        ty.params().len() == 1
            && ty.params().all(|t| t.is_i32())
            && ty.results().len() == 1
            && ty.results().all(|t| t.is_i32())
    };
    match module.get_export(allocator).is_some_and(allocates) {
        true => Ok(()),
        false => {
            let right = format!("{allocator}(size: i32) -> i32");
            Err(LoadError::WrongType(source.into(), (*allocator).into(), right))
        }
    }
}

/// Lists all missing functions, not just the first, and for each the ABI versions that have a function of this name.
fn check_imports(module: &Module, source: &str) -> Result<(), LoadError> {
    let missing = module.imports().filter(|i| !hostcalls::has(i.module(), i.name()));
    let missing = missing.map(|i| {
        let versions = hostcalls::versions(i.name());
        let elsewhere = match versions.is_empty() {
            true => String::new(),
            false => format!(" (it exists in {})", versions.join(", ")),
        };
        format!("`{}.{}`{elsewhere}", i.module(), i.name())
    });
    let missing: Vec<_> = missing.collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(LoadError::Imports(source.into(), missing.join(", "))),
    }
}

fn check_callbacks(module: &Module, source: &str, wrong: &mut Vec<LoadError>) {
    for f in proxy_wasm::CALLBACKS.iter().chain(fast::CALLBACKS) {
        let Some(ExternType::Func(ty)) = module.get_export(f.name) else { continue };
        let is_i32 = |t: &tollgate_abi::Ty, v: wasmtime::ValType| match t {
            tollgate_abi::Ty::I32 => v.is_i32(),
            tollgate_abi::Ty::I64 => v.is_i64(),
        };
        // In 0.1.0, and in some modules that claim to be 0.2, the header callbacks have two parameters.
        let short = f.name.ends_with("_headers") && ty.params().len() + 1 == f.params.len();
        let params_fit = short || ty.params().len() == f.params.len();
        let types_fit = f.params.iter().zip(ty.params()).all(|((_, t), v)| is_i32(t, v));
        let results_fit = match &f.result {
            None => ty.results().len() == 0,
            Some(t) => ty.results().len() == 1 && ty.results().all(|v| is_i32(t, v)),
        };
        if !(params_fit && types_fit && results_fit) {
            wrong.push(LoadError::WrongType(source.into(), f.name.into(), f.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::Compiler;

    fn load(engine: &Engine, text: &str) -> Result<Arc<CompiledModule>, LoadError> {
        CompiledModule::load(engine, "a.wasm", &wat::parse_str(text).unwrap(), &Compile::default())
    }

    #[test]
    fn unsupported_version_is_named() {
        let text = r#"(module
            (memory (export "memory") 1)
            (func (export "malloc") (param i32) (result i32) unreachable)
            (func (export "proxy_abi_version_0_2_100")))"#;
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let Err(error) = load(&engine, text) else { panic!("it was loaded") };
        assert_eq!(
            error.to_string(),
            "a.wasm was built for a version of Proxy-Wasm that this host does not support: it exports \
             `proxy_abi_version_0_2_100`; supported: `proxy_abi_version_0_2_1`, `_0_2_0` and `_0_1_0`"
        );
    }

    #[test]
    fn missing_functions_are_named_with_the_versions_that_have_them() {
        let text = r#"(module
            (import "tollgate_v1" "teleport" (func))
            (import "tollgate_v2" "state_get" (func (param i32 i32 i32 i32) (result i32)))
            (import "tollgate_v1" "proxy_log" (func (param i32 i32 i32) (result i32)))
            (import "env" "proxy_continue_request" (func (result i32)))
            (import "wasi_snapshot_preview2" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "malloc") (param i32) (result i32) unreachable)
            (func (export "proxy_abi_version_0_2_1")))"#;
        let engine = Engine::new(Compiler::in_process()).unwrap();
        let Err(error) = load(&engine, text) else { panic!("it was loaded") };
        assert_eq!(
            error.to_string(),
            "a.wasm needs functions that this version of Tollgate does not have: \
             `tollgate_v1.teleport`, `tollgate_v2.state_get` (it exists in tollgate_v1), \
             `tollgate_v1.proxy_log` (it exists in env), \
             `wasi_snapshot_preview2.fd_write` (it exists in wasi_snapshot_preview1, wasi_unstable)"
        );
    }
}
