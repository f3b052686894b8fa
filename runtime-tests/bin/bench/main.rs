//! Measures behalf on this machine, beside what its host can do at most and beside the service that people write today;
//! `scripts/bench` builds what it needs and runs it.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a bench: a panic is a failed measurement"
)]

mod cost;
mod load;
mod population;
mod report;
mod scale;
mod scene;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::Parser;
use runtime_tests::interrupt::interrupted;

/// Measures behalf: throughput, latency, processor time, memory and cold starts, beside the ceiling of its host and a peer
/// in Node.
#[derive(Parser)]
#[command(bin_name = "scripts/bench", after_help = EXAMPLES)]
struct Arguments {
    /// Show within two minutes that everything can be measured; the numbers mean little, and BENCHMARKS.md stays as it is.
    #[arg(long)]
    short: bool,
    /// Measure only the ledgers in PostgreSQL; the rest of BENCHMARKS.md stays as it is.
    #[arg(long)]
    ledgers: bool,
}

const EXAMPLES: &str = "\
Examples:
  scripts/bench                     measure, print the tables, write BENCHMARKS.md
  scripts/bench --short             what scripts/test runs
  scripts/bench --ledgers           measure what a million users cost
  SPIN_BIN=spin scripts/bench       measure on Spin, too

Exit codes: 0 measured, 1 not everything could be, or an answer was not 2xx.";

/// How much is measured.
struct Plan {
    /// How often each row is measured, in turn with the others.
    rounds: usize,
    /// How long each time.
    time: Duration,
    /// How long each is asked before.
    warm_up: Duration,
    /// Over so many connections.
    connections: &'static [u32],
    /// How many users a ledger has, and what they do.
    scale: scale::Sizes,
}

// One thread: which processor it runs on is what it starts inherits.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let plan = if arguments.short {
        Plan {
            rounds: 1,
            time: Duration::from_secs(1),
            warm_up: Duration::from_secs(1),
            connections: &[1, 16, 64],
            scale: scale::Sizes {
                users: [500, 1000],
                due: 100,
                enrolling: 64,
                rounds: 1,
                time: Duration::from_secs(1),
            },
        }
    } else {
        Plan {
            rounds: 3,
            time: Duration::from_secs(3),
            warm_up: Duration::from_secs(5),
            connections: &[1, 16, 64],
            scale: scale::Sizes {
                users: [10_000, 1_000_000],
                due: 10_000,
                enrolling: 2000,
                rounds: 3,
                time: Duration::from_secs(5),
            },
        }
    };
    let measured = tokio::select! {
        measured = measure(&plan, &arguments) => measured,
        _ = interrupted() => Err(anyhow!("interrupted")),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(plan: &Plan, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.ledgers {
        let scale = scene::ledgers(plan).await?;
        let tables = report::of_ledgers(plan, &scale);
        println!("{tables}");
        if !arguments.short {
            report::write_ledgers(&tables)?;
        }
        return Ok(());
    }
    let results = scene::measure(plan).await?;
    let page = report::page(plan, &results)?;
    println!("{}", page.tables);
    if !arguments.short {
        report::write(&page)?;
    }
    Ok(())
}
