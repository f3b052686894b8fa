//! The tables, and `BENCHMARKS.md`.

use std::fmt::{self, Display, Write as _};
use std::fs;
use std::process::Command;

use anyhow::Context as _;
use runtime_tests::app::root;

use crate::Plan;
use crate::load::Sample;
use crate::population::TENANTS;
use crate::scale::{ENTRA_TAKES, REPLICAS, Scale};
use crate::scene::{BEHALF, CACHED, CEILING, NODE, PEER, Results, Row, USERS};

/// What is printed, and what else `BENCHMARKS.md` says.
pub(crate) struct Page {
    pub(crate) tables: String,
    method: String,
}

/// Puts everything into words.
pub(crate) fn page(plan: &Plan, results: &Results) -> anyhow::Result<Page> {
    let mut tables = String::new();
    let mut add = |title: &str, table: &Table| -> anyhow::Result<()> {
        writeln!(tables, "## {title}\n\n{table}")?;
        Ok(())
    };
    add("Aims", &aims(results)?)?;
    add("Requests", &requests(&results.rows)?)?;
    if !results.on_spin.is_empty() {
        add("Requests on Spin", &requests(&results.on_spin)?)?;
    }
    add(
        "Memory after the load",
        &pairs("Service", "MiB", 0, &results.memory),
    )?;
    add("A cached draw, by how long instances live", &lives(results))?;
    add(
        "From a request to a new instance's answer",
        &pairs("Request", "p50 ms", 2, &results.new_instance),
    )?;
    add(
        "From the start of the process to its first answer",
        &pairs("With", "ms", 0, &results.start),
    )?;
    add(
        "Sizes of the components",
        &pairs("Component", "KiB", 0, &sizes()?),
    )?;
    tables.push_str(&of_ledgers(plan, &results.scale));
    Ok(Page {
        tables,
        method: method(plan, results),
    })
}

/// Writes `BENCHMARKS.md`. What stands under its heading "By hand" stays.
pub(crate) fn write(page: &Page) -> anyhow::Result<()> {
    let Page { tables, method } = page;
    rewrite(|_| format!("# Benchmarks\n\n{method}\n{tables}"))
}

/// Writes what [`of_ledgers`] says into `BENCHMARKS.md`, where it is the last but what stands under "By hand".
pub(crate) fn write_ledgers(tables: &str) -> anyhow::Result<()> {
    rewrite(|before| {
        let rest = before.split_once(LEDGERS).map_or(before, |(rest, _)| rest);
        format!("{rest}{tables}")
    })
}

/// Puts something else in the place of what stands before the heading "By hand".
fn rewrite(with: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
    const BY_HAND: &str = "## By hand\n";
    let path = root().join("BENCHMARKS.md");
    let before = fs::read_to_string(&path).unwrap_or_default();
    let (measured, by_hand) = before.split_once(BY_HAND).unwrap_or((&before, ""));
    fs::write(&path, format!("{}{BY_HAND}{by_hand}", with(measured)))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// The middle one; of an even number, the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

/// What was aimed at, and what came of it, over 16 connections.
fn aims(results: &Results) -> anyhow::Result<Table> {
    const CONNECTIONS: u32 = 16;
    let ratio = |name, of, what: fn(&Sample) -> f64| {
        ratio(&results.rows, name, of, CONNECTIONS, what).context("a row is missing")
    };
    let memory = |name| {
        let found = results.memory.iter().find(|(it, _)| *it == name);
        found
            .map(|(_, mebibytes)| *mebibytes)
            .context("a row is missing")
    };
    let throughput = ratio(CACHED, CEILING, |it| it.per_second)?;
    let slowest = ratio(CACHED, CEILING, |it| it.p99)?;
    let peer = ratio(CACHED, PEER, |it| it.per_second)?;
    let share = memory(BEHALF)? / memory(NODE)?;
    let mut table = Table::new(&["Aim, over 16 connections", "Measured", ""]);
    for (aim, measured, met) in [
        (
            "a cached draw has at least 0.8 × the throughput of the ceiling",
            throughput,
            throughput >= 0.8,
        ),
        (
            "its 99th percentile is below 2 × the ceiling's",
            slowest,
            slowest < 2.0,
        ),
        (
            "it has at least 5 × the throughput of the peer on one processor",
            peer,
            peer >= 5.0,
        ),
        ("with at most 0.25 × its memory", share, share <= 0.25),
    ] {
        let met = if met { "met" } else { "missed" };
        table.row([aim.to_owned(), format!("{measured:.2} ×"), met.to_owned()]);
    }
    Ok(table)
}

fn requests(rows: &[Row]) -> anyhow::Result<Table> {
    let mut table = Table::new(&[
        "Request",
        "Connections",
        "× ceiling",
        "× its p99",
        "Per second",
        "p50 ms",
        "p99 ms",
        "Processor µs",
    ]);
    let first = rows.first().context("no rows")?;
    for (connections, _) in &first.samples {
        for row in rows {
            let of = |what: fn(&Sample) -> f64| {
                let values: Vec<_> = samples(row, *connections).iter().map(what).collect();
                median(&values)
            };
            let times = |what| {
                ratio(rows, row.name, CEILING, *connections, what)
                    .map_or_else(String::new, |it| format!("{it:.2}"))
            };
            table.row([
                row.name.to_owned(),
                connections.to_string(),
                times(|it| it.per_second),
                times(|it| it.p99),
                format!("{:.0}", of(|it| it.per_second)),
                format!("{:.2}", of(|it| it.p50) / 1000.0),
                format!("{:.2}", of(|it| it.p99) / 1000.0),
                format!("{:.0}", of(|it| it.cpu)),
            ]);
        }
    }
    Ok(table)
}

/// The median of the ratios of each round.
fn ratio(
    rows: &[Row],
    name: &str,
    of: &str,
    connections: u32,
    what: fn(&Sample) -> f64,
) -> Option<f64> {
    let row = |name| rows.iter().find(|row| row.name == name);
    let pairs = samples(row(name)?, connections)
        .iter()
        .zip(samples(row(of)?, connections));
    let ratios: Vec<_> = pairs.map(|(one, other)| what(one) / what(other)).collect();
    Some(median(&ratios))
}

fn samples(row: &Row, connections: u32) -> &[Sample] {
    row.samples
        .iter()
        .find(|(it, _)| *it == connections)
        .map_or(&[], |(_, samples)| samples)
}

fn lives(results: &Results) -> Table {
    let mut table = Table::new(&[
        "Instances",
        "Per second",
        "p99 ms",
        "Requests to Entra ID and Key Vault per 1,000 draws",
    ]);
    for life in &results.lives {
        table.row([
            life.name.to_owned(),
            format!("{:.0}", life.sample.per_second),
            format!("{:.2}", life.sample.p99 / 1000.0),
            format!("{:.2}", life.upstream),
        ]);
    }
    table
}

const LEDGERS: &str = "## A ledger in PostgreSQL, as users grow\n";

/// What [`crate::scale`] has measured.
pub(crate) fn of_ledgers(plan: &Plan, scale: &Scale) -> String {
    let takes = ENTRA_TAKES.as_millis();
    let (by_users, by_replicas) = (by_users(plan, scale), by_replicas(scale));
    format!(
        "{LEDGERS}\n\
         `scripts/bench --ledgers`, on {date} at commit {commit}. Records were made in bulk by the code that seals for the app, of\n\
         {TENANTS} tenants, the largest with a tenth of all users. Both ledgers are databases of one server (`shared_buffers=1GB`,\n\
         `fsync=off`), on the processors of the emulators. They are measured in turn, over 16 connections, {rounds} rounds; a number is\n\
         the median of the rounds, `×` that of the rounds' ratios. A sweep that leaves anything undone fails the run.\n\
         \n{by_users}\n\
         ## A sweep of several replicas, if Entra ID takes {takes} ms\n\n{by_replicas}\n",
        date = said("date", &["-u", "+%Y-%m-%d"]),
        commit = said("git", &["rev-parse", "--short", "HEAD"]),
        rounds = plan.scale.rounds,
    )
}

/// Few users beside many.
fn by_users(plan: &Plan, scale: &Scale) -> Table {
    let [few, many] = plan.scale.users.map(|users| format!("{users} users"));
    let mut table = Table::new(&["What", "Unit", &few, &many, "×", "Not 10 % worse"]);
    for row in &scale.rows {
        let of = |which: usize| {
            let values: Vec<_> = row.rounds.iter().map(|round| round[which]).collect();
            median(&values)
        };
        let ratios: Vec<_> = row.rounds.iter().map(|[few, many]| many / few).collect();
        let ratio = median(&ratios);
        let is_met = match row.unit {
            "ms" => ratio <= 1.1,
            _ => ratio >= 0.9,
        };
        let is_met = match (row.grows, is_met) {
            (true, _) => "",
            (false, true) => "met",
            (false, false) => "missed",
        };
        table.row([
            row.name.clone(),
            row.unit.to_owned(),
            rounded(of(0)),
            rounded(of(1)),
            format!("{ratio:.2}"),
            is_met.to_owned(),
        ]);
    }
    let [few, many] = scale.bytes;
    table.row([
        "an enrolment on disk, with its share of the indexes".to_owned(),
        "bytes".to_owned(),
        format!("{few:.0}"),
        format!("{many:.0}"),
        format!("{:.2}", many / few),
        String::new(),
    ]);
    table
}

fn rounded(number: f64) -> String {
    let decimals = usize::from(number < 100.0);
    format!("{number:.decimals$}")
}

/// One replica beside several.
fn by_replicas(scale: &Scale) -> Table {
    let [one, several] = scale.replicas;
    let mut table = Table::new(&["Replicas", "Records a second", "×"]);
    table.row(["1".to_owned(), format!("{one:.0}"), "1.00".to_owned()]);
    table.row([
        REPLICAS.to_string(),
        format!("{several:.0}"),
        format!("{:.2}", several / one),
    ]);
    table
}

fn sizes() -> anyhow::Result<Vec<(String, f64)>> {
    let size = |name: &str| {
        let file = format!("{name}.wasm");
        let path = root().join("target/wasm32-wasip2/release").join(&file);
        let bytes = fs::metadata(&path)
            .with_context(|| format!("{} is missing: run scripts/build", path.display()))?
            .len();
        #[allow(clippy::cast_precision_loss, reason = "bytes of a file")]
        Ok((format!("`{file}`"), bytes as f64 / 1024.0))
    };
    [
        "behalf_vault",
        "behalf_http",
        "behalf_http_postgres",
        "behalf_cron",
    ]
    .into_iter()
    .map(size)
    .collect()
}

/// A name a row, and a number of a unit, with so many decimals.
fn pairs(of: &str, unit: &str, decimals: usize, rows: &[(impl Display, f64)]) -> Table {
    let mut table = Table::new(&[of, unit]);
    for (name, value) in rows {
        table.row([name.to_string(), format!("{value:.decimals$}")]);
    }
    table
}

/// How it was measured, and on what.
fn method(plan: &Plan, results: &Results) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map_or("unknown", |(_, value)| value)
    };
    let processors = info
        .lines()
        .filter(|it| it.starts_with("processor"))
        .count();
    let connections: Vec<_> = plan.connections.iter().map(u32::to_string).collect();
    format!(
        "`scripts/bench` wrote this page on {date}, at commit {commit}; run it to have your own machine's numbers.\n\
         \n\
         **Machine.** {processors} × {model}, Linux {kernel}, {rustc}, Node {node}.\n\
         \n\
         **Method.** Everything runs on one machine: {placed}.\n\
         Load comes from `wrk`, one thread, over {connections} connections that are kept; {USERS} users draw in turn.\n\
         Each row is asked for {warm_up} s first; then the rows take turns, {time} s each, {rounds} rounds, and a number is the\n\
         median of the rounds, a ratio the median of each round's ratio. An answer that is not 2xx fails the run. Processor\n\
         time and memory are those of the service's processes, as Linux counts them (for\n\
         memory, Pss); the emulators' are not in them. An uncached draw waits for the emulator of Entra ID, which signs each\n\
         token and shares a processor with `wrk`, as the API of the calls does, which verifies each access token. The\n\
         components and the host are built in release; the host logs as it always does, to /dev/null.\n",
        date = said("date", &["-u", "+%Y-%m-%d"]),
        commit = said("git", &["rev-parse", "--short", "HEAD"]),
        model = field("model name"),
        kernel = said("uname", &["-r"]),
        rustc = said("rustc", &["--version"]),
        node = said("node", &["--version"]),
        placed = results.processors,
        connections = connections.join(", "),
        warm_up = plan.warm_up.as_secs(),
        time = plan.time.as_secs(),
        rounds = plan.rounds,
    )
}

/// What a program prints.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// A table in Markdown, aligned also for who reads it as text.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|&it| it.to_owned()).collect()],
        }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for (at, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "| {cell:<width$} ")?,
                    _ => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")?;
            if at == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let line = "-".repeat(*width);
                    let end = if column == 0 { "-" } else { ":" };
                    write!(f, "|-{line}{end}")?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}
