//! Why an instance failed: the kinds of traps and their descriptions for the log.
use wasmtime::{Trap, WasmBacktrace};

/// The kind of an instance's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapKind {
    /// A trap: a panic, an `unreachable`, an access out of bounds.
    Trap,
    /// A call exceeded its time limit.
    Timeout,
    /// The guest exceeded its memory limit.
    Memory,
    /// The guest overflowed its stack.
    Stack,
}

impl TrapKind {
    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            TrapKind::Trap => "trap",
            TrapKind::Timeout => "timeout",
            TrapKind::Memory => "memory",
            TrapKind::Stack => "stack",
        }
    }
}

/// Classifies an error and describes it: the reason and the guest's frames.
pub(in crate::wasm) fn describe(error: &wasmtime::Error) -> (TrapKind, String) {
    let kind = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => TrapKind::Timeout,
        Some(Trap::StackOverflow) => TrapKind::Stack,
        Some(Trap::AllocationTooLarge) => TrapKind::Memory,
        _ => TrapKind::Trap,
    };
    let mut text = match kind {
        TrapKind::Timeout => "the call took longer than its `call_time`".to_owned(),
        TrapKind::Stack => "it used up its stack".to_owned(),
        _ => error.root_cause().to_string(),
    };
    if let Some(trace) = error.downcast_ref::<WasmBacktrace>() {
        let frames = trace.frames().iter().filter(|frame| frame.module().name() != Some(super::trampoline::NAME));
        let names = frames.map(|frame| match frame.func_name() {
            Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
            None => format!("function {}", frame.func_index()),
        });
        // A panic's backtrace begins with a dozen frames of Rust's runtime, which carry no information.
        let names = names.skip_while(|name| RUST_FRAMES.iter().any(|start| name.starts_with(start)));
        let names: Vec<_> = names.take(8).collect();
        if !names.is_empty() {
            text = format!("{text} (in {})", names.join(" < "));
        }
    }
    (kind, text)
}

pub(super) const RUST_FRAMES: [&str; 8] =
    ["__rust", "rust_", "std::", "core::", "alloc::", "<std::", "<core::", "<alloc::"];
