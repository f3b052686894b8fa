//! The binary `behalf`.

use std::process::ExitCode;

#[cfg(not(panic = "unwind"))]
compile_error!("a task that panics must not be everybody's end: build with panic = \"unwind\"");

fn main() -> ExitCode {
    behalf::main()
}
