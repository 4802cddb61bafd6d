//! Why an instance has failed: the kinds of traps, and how each is described in the log.
use wasmtime::{Trap, WasmBacktrace};

/// Why an instance has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrapKind {
    /// It has trapped: a panic, an `unreachable`, an access out of bounds.
    Trap,
    /// A call took too long.
    Timeout,
    /// It has asked for more memory than it may have.
    Memory,
    /// It has used up its stack.
    Stack,
}

impl TrapKind {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            TrapKind::Trap => "trap",
            TrapKind::Timeout => "timeout",
            TrapKind::Memory => "memory",
            TrapKind::Stack => "stack",
        }
    }
}

/// What kind of failure an error is, and what to say of it: the reason, and the guest's frames.
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
        // A panic begins with a dozen frames of Rust's own, which say nothing.
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
