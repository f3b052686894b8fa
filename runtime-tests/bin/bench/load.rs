//! The load: `wrk`, a process of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use runtime_tests::app::{App, root};
use serde::Deserialize;
use tokio::process::Command;

use crate::cost::processor_time;

/// What is asked for, again and again.
pub(crate) struct Request {
    /// The program `wrk`.
    pub(crate) wrk: PathBuf,
    pub(crate) url: String,
    pub(crate) method: &'static str,
    /// A file with bearer tokens, which are sent in turn.
    pub(crate) tokens: Option<PathBuf>,
}

/// What one run showed.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
    /// Latency, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Processor time of the service per request, in microseconds.
    pub(crate) cpu: f64,
}

/// What `load.lua` prints.
#[derive(Deserialize)]
struct Summary {
    requests: u64,
    duration: f64,
    refused: u64,
    broken: u64,
    p50: f64,
    p99: f64,
}

/// Sends requests for so long, over so many connections. Fails if one was not answered with 2xx.
pub(crate) async fn run(
    request: &Request,
    service: &App,
    connections: u32,
    time: Duration,
) -> anyhow::Result<Sample> {
    let mut command = Command::new(&request.wrk);
    command
        .args(["-t", "1", "-c", &connections.to_string()])
        .args(["-d", &format!("{}s", time.as_secs().max(1))])
        .args(["--timeout", "30s", "-s"])
        .arg(root().join("runtime-tests/bin/bench/load.lua"))
        .arg(&request.url)
        .args(["--", request.method])
        .args(request.tokens.as_deref().map(Path::as_os_str))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let before = processor_time(service)?;
    let output = command.output().await.context("cannot run wrk")?;
    let used = processor_time(service)?.saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = text
        .lines()
        .find_map(|line| serde_json::from_str::<Summary>(line).ok())
        .with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("wrk said nothing of use: {text}{errors}")
        })?;
    ensure!(
        summary.requests > 0 && summary.refused == 0 && summary.broken == 0,
        "{} {}: of {} requests {} were refused and {} broke off",
        request.method,
        request.url,
        summary.requests,
        summary.refused,
        summary.broken,
    );
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    let requests = summary.requests as f64;
    Ok(Sample {
        requests: summary.requests,
        per_second: requests / summary.duration * 1e6,
        p50: summary.p50,
        p99: summary.p99,
        cpu: used.as_secs_f64() / requests * 1e6,
    })
}
