//! The binary `behalf`.

use std::process::ExitCode;

#[cfg(not(panic = "unwind"))]
compile_error!("a task that panics must not be everybody's end: build with panic = \"unwind\"");

// In a static binary, as releases are: the allocator of musl takes turns, one thread at a time.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    behalf::main()
}
