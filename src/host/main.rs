//! The binary `behalf`.

use std::process::ExitCode;

fn main() -> ExitCode {
    behalf::main()
}
