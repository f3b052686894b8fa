//! How fast components read and write the key-value store, over HTTP and on a real component:
//!
//! ```console
//! $ cargo bench --profile dev -p behalf --bench store
//! ```
//!
//! `BEHALF_BIN` names another host to measure. A slow disk is made with `strace` (Debian's package of that name): it lets
//! every `fsync` and `fdatasync` take ten milliseconds more, and nothing else.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::unchecked_time_subtraction,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    dead_code,
    unreachable_pub
)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use bytes::Bytes;
use harness::{Host, Setup, guest, manifest_of};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long each measurement takes.
const SPAN: Duration = Duration::from_secs(4);

const SLOW_DISK: [&str; 8] = [
    "strace",
    "--quiet=all",
    "--follow-forks",
    "--seccomp-bpf",
    "--trace=fsync,fdatasync",
    "--inject=fsync,fdatasync:delay_exit=10000",
    "--output=/dev/null",
    "--",
];

#[tokio::main]
async fn main() {
    let manifest = manifest_of(guest());
    let host = Setup::new(&manifest).start();
    host.text("/set/k/value").await;
    println!("as fast as the disk is");
    for (path, clients) in [
        ("/served", 1),
        ("/read/k", 1),
        ("/served", 16),
        ("/read/k", 16),
    ] {
        let (before, heard) = (cpu(&host), load(&host, &[(path, clients)]).await);
        let cpu = (cpu(&host) - before).as_secs_f64() * 1e6 / heard[0].0.len() as f64;
        println!(
            "  GET {path}, {clients} at once: {}, {cpu:.0} us of processor each",
            heard[0]
        );
    }
    drop(host);

    for (what, kinds) in [
        ("64 writers", &[("/set", 64)][..]),
        ("64 readers", &[("/read/k", 64)]),
        (
            "64 writers and 64 readers",
            &[("/set", 64), ("/read/k", 64)],
        ),
    ] {
        let host = Setup::new(&manifest).through(&SLOW_DISK).start();
        host.text("/set/k/value").await;
        println!("fsync takes 10 ms more, {what}");
        let heard = load(&host, kinds).await;
        for ((path, _), heard) in kinds.iter().zip(heard) {
            println!("  GET {path}: {heard}");
        }
    }
}

/// The processor time that the host has used.
fn cpu(host: &Host) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.id())).unwrap();
    let (_, numbers) = stat.rsplit_once(") ").unwrap();
    // User and system time, in hundredths of a second: fields 14 and 15 of proc_pid_stat(5).
    let ticks = numbers.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|it| it.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// What one kind of clients met.
struct Heard(Vec<Duration>);

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.0.len() as f64 / SPAN.as_secs_f64();
        let at = |share: f64| {
            let index = (self.0.len() as f64 * share) as usize;
            self.0.get(index).map_or(0.0, |it| it.as_secs_f64() * 1e3)
        };
        let (half, most) = (at(0.5), at(0.99));
        write!(f, "{rate:.0}/s, p50 {half:.1} ms, p99 {most:.1} ms")
    }
}

/// Lets so many clients of each kind ask, each again as soon as it has an answer. A path `/set` is another key each time.
async fn load(host: &Host, kinds: &[(&'static str, usize)]) -> Vec<Heard> {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let end = Instant::now() + SPAN;
    let mut all = JoinSet::new();
    for (kind, &(path, count)) in kinds.iter().enumerate() {
        for number in 0..count {
            let (client, url) = (client.clone(), host.url.clone());
            all.spawn(async move {
                let mut times = Vec::new();
                for turn in 0.. {
                    let begun = Instant::now();
                    if begun >= end {
                        break;
                    }
                    let uri = match path {
                        "/set" => format!("{url}/set/{number}-{turn}/value"),
                        path => format!("{url}{path}"),
                    };
                    let response = client.get(uri.parse().unwrap()).await.unwrap();
                    assert!(response.status().is_success(), "{path}");
                    response.into_body().collect().await.unwrap();
                    times.push(begun.elapsed());
                }
                (kind, times)
            });
        }
    }
    let mut heard: Vec<_> = kinds.iter().map(|_| Heard(Vec::new())).collect();
    while let Some(ended) = all.join_next().await {
        let (kind, times) = ended.unwrap();
        heard[kind].0.extend(times);
    }
    for it in &mut heard {
        it.0.sort();
    }
    heard
}
