//! Other implementations, in other languages, as judges. `scripts/peers` installs them, pinned, into `target/peers`.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::app::root;

/// Runs a program of `runtime-tests/peers` in Python, with `input` as its standard input; returns its standard output.
pub fn python(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    installed()?;
    let mut command = Command::new(root().join("target/peers/python/bin/python"));
    // No compiled files beside the sources.
    command.arg("-B");
    command.arg(root().join("runtime-tests/peers").join(program));
    run(command.args(arguments), input)
}

/// Runs a program of `runtime-tests/peers` in Node; JSON in, JSON out.
pub fn node(program: &str, arguments: &[&str], input: &Value) -> anyhow::Result<Value> {
    installed()?;
    let mut command = Command::new("node");
    command.arg(root().join("target/peers/node").join(program));
    let output = run(command.args(arguments), &input.to_string())?;
    serde_json::from_str(&output).with_context(|| format!("{program} wrote no JSON: {output}"))
}

/// Installs what is missing.
pub fn installed() -> anyhow::Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        run(&mut Command::new(root().join("scripts/peers")), "")
            .map(drop)
            .map_err(|error| format!("{error:#}"))
    });
    done.clone().map_err(anyhow::Error::msg)
}

fn run(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let program = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    // A program that reads nothing may have closed it.
    let _ = child
        .stdin
        .take()
        .context("a pipe")?
        .write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
