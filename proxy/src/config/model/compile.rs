//! The `compile` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::units::{ByteSize, Duration};

/// Limits on compiling filters. A module that exceeds one is rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compile {
    /// Size of a module, in bytes.
    pub module_size: ByteSize,
    /// Code size of one function, in bytes. The cost of compiling a function can grow with the square of its size.
    pub function_size: ByteSize,
    /// Local variables of one function, not counting its parameters.
    #[schemars(range(min = 1, max = 50000))]
    pub function_locals: u32,
    /// Memory for compiling one module. At least `256MiB`.
    pub memory: ByteSize,
    /// CPU time for compiling one module, summed over all processors. At least `1s`. Compiling yields to traffic, so it
    /// may take up to ten times as long in wall-clock time.
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
