//! The `tollgate` command.

use std::process::ExitCode;

// Many small allocations for each request, all freed on the thread that made them: what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate::cli::main()
}
