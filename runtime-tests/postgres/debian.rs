//! Programs of Debian's packages. `scripts/debian` makes them ready to run where they are not installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The path of a program, which this package has.
pub fn program(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/debian");
    let output = Command::new(script)
        .args([program, package])
        .output()
        .context("cannot run scripts/debian")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}
