//! The `tollgate` command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tollgate::alloc::Mimalloc = tollgate::alloc::Mimalloc;

fn main() -> ExitCode {
    tollgate::cli::main()
}
