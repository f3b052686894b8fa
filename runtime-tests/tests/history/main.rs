//! Three processes of the host on one PostgreSQL database, with users who enrol, draw and remove, and with sweeps, while
//! hosts are killed, the database is stopped, and its connections are cut or fall silent. Whatever happens: nothing that was
//! acknowledged is lost, nobody who was removed comes back, no access token is released after a removal that was acknowledged,
//! and no record is in the hands of two live sweeps.
//!
//! `HISTORY_SECONDS` says for how long, `HISTORY_SEED` what is chosen; what comes at the same time is never quite the same.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

mod hosts;
mod promises;
mod troubles;
mod users;
mod way;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use fastrand::Rng;
use reqwest::Method;
use runtime_tests::emulators::{Entry, Target};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::hosts::{HOSTS, Hosts, Process, SWEEP_SECONDS};
use crate::promises::{History, Redemption, Sweep};
use crate::troubles::Troubles;
use crate::users::{USERS, Users};

/// Clients at once.
const CLIENTS: usize = 8;
/// Only a failure waits for so long.
const PATIENCE: Duration = Duration::from_mins(3);

/// What a run is.
struct Plan {
    seed: u64,
    time: Duration,
    has_troubles: bool,
    /// A mistake: statements of the database's superuser.
    plant: &'static str,
}

/// What came of it.
struct Told {
    history: History,
    troubles: Troubles,
    /// Sweeps whose answer came.
    swept: usize,
    /// Lines in which a process calls for its operator.
    alarms: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_on_one_database_keep_the_promises_whatever_happens() -> anyhow::Result<()> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>());
    let told = run(&Plan {
        seed: number("HISTORY_SEED").unwrap_or_else(|| Ok(fastrand::u64(0..1_000_000)))?,
        time: Duration::from_secs(number("HISTORY_SECONDS").unwrap_or(Ok(60))?),
        has_troubles: true,
        plant: "",
    })
    .await?;
    let violations = told.history.violations();
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    ensure!(told.alarms.is_empty(), "{:#?}", told.alarms);
    Ok(())
}

/// The database acknowledges every second removal of a token that was there and does not make it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_undoes_removals_is_noticed() -> anyhow::Result<()> {
    is_noticed(
        "no order explains",
        "
            CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              IF random() < 0.5 THEN RETURN old; END IF;
              RETURN new;
            END $$;
            CREATE TRIGGER undo BEFORE UPDATE ON behalf.enrolment
              FOR EACH ROW WHEN (old.record IS NOT NULL AND new.record IS NULL) EXECUTE FUNCTION undo();",
    )
    .await?;
    Ok(())
}

/// The database forgets leases, so that sweeps take from each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_keeps_no_leases_is_noticed() -> anyhow::Result<()> {
    let violations = is_noticed(
        "two live sweeps",
        "
            CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              new.leased_until = 0;
              RETURN new;
            END $$;
            CREATE TRIGGER forget BEFORE UPDATE ON behalf.enrolment FOR EACH ROW EXECUTE FUNCTION forget();",
    )
    .await?;
    let is_other = |violation: &String| violation.contains("no order explains");
    ensure!(!violations.iter().any(is_other), "{violations:#?}");
    Ok(())
}

/// Runs with a database that does what it should not, until `violation` is among what is told: on a busy machine few
/// requests are made in a run. Returns all that was told of that run.
async fn is_noticed(violation: &str, plant: &'static str) -> anyhow::Result<Vec<String>> {
    for seed in 1..=10 {
        let told = run(&Plan {
            seed,
            time: Duration::from_secs(8),
            has_troubles: false,
            plant,
        })
        .await?;
        let violations = told.history.violations();
        if violations.iter().any(|told| told.contains(violation)) {
            return Ok(violations);
        }
    }
    bail!("{violation:?} was never told")
}

/// Says something also if all is well: what was chosen, and how much it was.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

async fn run(plan: &Plan) -> anyhow::Result<Told> {
    let (seed, time) = (plan.seed, plan.time.as_secs());
    say(&format!("HISTORY_SEED={seed} HISTORY_SECONDS={time}"));
    let mut random = Rng::with_seed(plan.seed);
    let hosts = Arc::new(Hosts::start(plan.plant).await?);
    let start = Instant::now();
    let until = start + plan.time;
    let users = Arc::new(Users::new(&hosts, start));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (users, random) = (Arc::clone(&users), random.fork());
        clients.spawn(async move { users.ask_at_random(random, until).await });
    }
    let sweeps = Arc::new(Mutex::new(Sweeps::default()));
    for host in 0..HOSTS {
        let (hosts, sweeps, random) = (Arc::clone(&hosts), Arc::clone(&sweeps), random.fork());
        clients.spawn(
            async move { sweep_at_random(&hosts, host, &sweeps, random, start, until).await },
        );
    }
    let troubles = if plan.has_troubles {
        troubles::make(&hosts, random.fork(), until).await?
    } else {
        sleep(plan.time).await;
        Troubles::default()
    };
    while let Some(ended) = clients.join_next().await {
        ended??;
    }

    // All is calm: whoever is enrolled draws, whichever host it is asked of, and sweeps bring everything up to date.
    if plan.plant.is_empty() {
        bring_up_to_date(&hosts, &sweeps, start).await?;
    }
    for user in 0..USERS {
        for host in 0..HOSTS {
            users.look(user, host).await?;
        }
    }
    let mut sweeps = Arc::into_inner(sweeps)
        .context("a sweep is under way")?
        .into_inner()?;
    sweeps.keep(hosts.emulators.take_journal());
    let history = History {
        requests: Arc::into_inner(users)
            .context("a client is under way")?
            .asked(),
        redemptions: sweeps.redemptions(start),
        sweeps: sweeps.called,
        // Of the second in which it begins nothing may be left, and the lease outlasts the sweep by two.
        lease: Duration::from_secs(SWEEP_SECONDS + 1),
    };
    let hosts = Arc::into_inner(hosts).context("a host is in use")?;
    let said = hosts.stop().await?;
    let is_alarm = |line: &String| line.contains("alarm");
    let told = Told {
        history,
        troubles,
        swept: sweeps.answered,
        alarms: said.into_iter().filter(is_alarm).collect(),
    };
    told.print(plan);
    Ok(told)
}

/// Sweeps that were called.
#[derive(Default)]
struct Sweeps {
    called: Vec<Sweep>,
    answered: usize,
    /// Of each process, the name by which it calls Entra ID.
    names: BTreeMap<String, usize>,
    /// What they asked Entra ID.
    journal: Vec<Entry>,
}

impl Sweeps {
    /// Keeps what sweeps have redeemed. They ask for the scope of the enrolment, and draws here for another.
    fn keep(&mut self, journal: Vec<Entry>) {
        self.journal.extend(journal.into_iter().filter(|entry| {
            let scope = entry.scope.as_deref().unwrap_or_default();
            entry.target == Target::EntraToken
                && entry.grant.as_deref() == Some("refresh_token")
                && scope.contains("/.default")
        }));
    }

    /// Refresh tokens that sweeps redeemed.
    fn redemptions(&self, start: Instant) -> Vec<Redemption> {
        let of = |entry: &Entry| Redemption {
            process: self.names[entry.host.as_deref().unwrap_or_default()],
            at: entry.came.unwrap().duration_since(start),
            token: entry.redeemed.clone().unwrap_or_default(),
        };
        self.journal.iter().map(of).collect()
    }
}

/// Sweeps again and again on a host, one at a time.
async fn sweep_at_random(
    hosts: &Hosts,
    host: usize,
    sweeps: &Mutex<Sweeps>,
    mut random: Rng,
    start: Instant,
    until: Instant,
) -> anyhow::Result<()> {
    while Instant::now() < until {
        sleep(Duration::from_millis(random.u64(0..300))).await;
        let process = hosts.process(host).await;
        sweep(hosts, &process, sweeps, start).await?;
    }
    Ok(())
}

/// One sweep. Whatever it comes to, its process has none under way any more.
async fn sweep(
    hosts: &Hosts,
    process: &Process,
    sweeps: &Mutex<Sweeps>,
    start: Instant,
) -> anyhow::Result<()> {
    let key = &hosts.emulators.options().sweep_key;
    let began = start.elapsed();
    let answer = process.app.send(Method::POST, "/v1/sweep", Some(key), None);
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let answer = answer.context("a sweep has no end")?;
    let mut sweeps = sweeps.lock().unwrap();
    sweeps.called.push(Sweep {
        process: process.number,
        began,
        ended: start.elapsed(),
    });
    sweeps
        .names
        .insert(process.entra().to_string(), process.number);
    sweeps.keep(hosts.emulators.take_journal());
    match answer {
        Ok(answer) if answer.status.is_success() => sweeps.answered += 1,
        Ok(answer) => ensure!(answer.status.is_server_error(), "{answer:?}"),
        // It was killed.
        Err(_) => {}
    }
    Ok(())
}

/// Sweeps until every refresh token is newer than now.
async fn bring_up_to_date(
    hosts: &Hosts,
    sweeps: &Mutex<Sweeps>,
    start: Instant,
) -> anyhow::Result<()> {
    // What has failed has to wait for a minute and more, which is too long here.
    hosts
        .sql("UPDATE behalf.enrolment SET due_at = 0 WHERE record IS NOT NULL")
        .await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let refreshed_at = "(convert_from(record, 'UTF8')::json->>'refreshed_at')::int8";
    let old = format!("SELECT count(*) FROM behalf.enrolment WHERE {refreshed_at} < {now}");
    let waited = Instant::now();
    loop {
        for host in 0..HOSTS {
            let process = hosts.process(host).await;
            sweep(hosts, &process, sweeps, start).await?;
        }
        let old = hosts.sql(&old).await?;
        if old == "0" {
            return Ok(());
        }
        ensure!(
            waited.elapsed() < PATIENCE,
            "a refresh token is left behind by all sweeps: {old} of them"
        );
    }
}

impl Told {
    fn print(&self, plan: &Plan) {
        let requests = &self.history.requests;
        let unknown = requests
            .iter()
            .filter(|it| it.outcome == promises::Outcome::Unknown);
        say(&format!(
            "{} requests with an outcome, {} of them unknown; {} sweeps, {} answered; {} refreshes; {} s; {}",
            requests.len(),
            unknown.count(),
            self.history.sweeps.len(),
            self.swept,
            self.history.redemptions.len(),
            plan.time.as_secs(),
            self.troubles
        ));
    }
}
