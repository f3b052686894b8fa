//! Runs a server, writes the path of its folder into the file that is its argument, and waits to be killed: for a test of what is
//! left then.
#![allow(unused_crate_dependencies, reason = "what the library needs")]

use std::time::Duration;

use anyhow::Context as _;
use behalf_test_postgres::Postgres;

fn main() -> anyhow::Result<()> {
    let file = std::env::args_os().nth(1).context("a file's path")?;
    let postgres = Postgres::start()?;
    std::fs::write(file, postgres.folder().as_os_str().as_encoded_bytes())?;
    std::thread::sleep(Duration::from_mins(1));
    Ok(())
}
