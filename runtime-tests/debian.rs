//! Programs of Debian's packages. `scripts/debian` makes them ready to run where they are not installed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::app::root;

/// The path of a program, which this package has.
pub fn program(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new(root().join("scripts/debian"))
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
