//! The `compile` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{ByteSize, Duration};

/// Bounds on compiling filters. A module that exceeds one is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compile {
    /// Bytes of a module.
    pub module_size: ByteSize,
    /// Bytes of one function's code. What compiling a function takes may grow with the square of it.
    pub function_size: ByteSize,
    /// Local variables of one function, beside its parameters.
    #[schemars(range(min = 1, max = 50000))]
    pub function_locals: u32,
    /// Memory that compiling one module may take. At least `256MiB`.
    pub memory: ByteSize,
    /// Processor time that compiling one module may take, on all processors together. At least `1s`. The wall clock may count
    /// ten times as much, because compiling gives way to traffic.
    pub time: Duration,
}

impl Default for Compile {
    fn default() -> Self {
        Compile {
            module_size: ByteSize(64 << 20),
            function_size: ByteSize(1 << 20),
            function_locals: 10_000,
            memory: ByteSize(1 << 30),
            time: Duration::secs(60),
        }
    }
}
