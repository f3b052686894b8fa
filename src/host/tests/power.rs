//! Acknowledged writes survive a power loss.
//!
//! The host runs under `strace`, which writes down every change that it makes to files and folders, and every sync. From
//! that the test makes the disks that a power loss could leave behind at any moment: of what was not synced, all, nothing,
//! or any part may be missing, as in the crash simulations of ALICE (Pillai et al., OSDI 2014) and `LazyFS`. `SQLite` opens
//! each of them, as the host would at its next start.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    missing_docs,
    dead_code,
    unreachable_pub
)]

#[path = "power/disk.rs"]
mod disk;
mod harness;
#[path = "power/trace.rs"]
mod trace;

use bytes::Bytes;
use disk::{Chance, Disk, Survivors};
use harness::{Host, Setup, manifest};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use trace::read;

/// Clients at once; each has a key of its own.
const CLIENTS: usize = 8;

/// What each of them does one after the other, in each of the two lives of the host. Enough for the log of `SQLite` to be
/// copied into the database, and begun anew.
const TURNS: usize = 100;

/// At how many moments the power fails.
const MOMENTS: usize = 400;

/// An acknowledgement: when it was there, whose it is, and how many he has had with it.
type Acknowledged = (f64, usize, usize);

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_a_power_loss_at_any_moment() {
    let mut setup = Setup::new(&manifest());
    let folder = setup.folder.path().canonicalize().unwrap();
    let mut acknowledged = Vec::new();
    let mut events = Vec::new();
    for life in 0..2 {
        let file = folder.join(format!("trace-{life}"));
        let mut host = setup.through(&trace::command(&file)).start();
        acknowledged.extend(write(&host, life).await);
        if life == 0 {
            // In order, so that the second life begins without a log.
            host.signal_inside("TERM");
            assert_eq!(host.ended(), Some(0), "{}", host.log());
        } else {
            host.signal_inside("KILL");
            host.ended();
        }
        setup = host.into_setup();
        read(&file, &folder, &mut events);
    }
    acknowledged.sort_by(|one, other| one.0.total_cmp(&other.0));
    assert_eq!(acknowledged.len(), 2 * CLIENTS * TURNS);

    let mut chance = Chance::new(13);
    let mut disk = Disk::new(&folder);
    let store = Path::new(".spin");
    let mut tried = 0;
    let spacing = events.len().div_ceil(MOMENTS);
    for (index, event) in events.iter().enumerate() {
        disk.apply(event);
        // The moment before the next of them begins.
        let until = events.get(index + 1).map_or(f64::INFINITY, |it| it.begun);
        if index % spacing != 0 && until.is_finite() {
            continue;
        }
        let known = known(&acknowledged, until);
        for survivors in [
            Survivors::Nothing,
            Survivors::Contents,
            Survivors::Names,
            Survivors::Some,
            Survivors::All,
        ] {
            let after = tempfile::tempdir().unwrap();
            disk.write(survivors, &mut chance, after.path());
            if let Err(reason) = check(&after.path().join(store), &known) {
                panic!(
                    "{reason}\nthe power failed after {:?} (change {index} of {}), and of what was not synced {survivors:?} \
                     was there",
                    event.change,
                    events.len(),
                );
            }
            tried += 1;
        }
    }
    assert!(tried >= MOMENTS, "{tried} disks");
}

/// Each client writes and deletes his key; returns when what was acknowledged.
async fn write(host: &Host, life: usize) -> Vec<Acknowledged> {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let mut all = JoinSet::new();
    for number in 0..CLIENTS {
        let (client, url) = (client.clone(), host.url.clone());
        all.spawn(async move {
            let mut acknowledged = Vec::new();
            for turn in life * TURNS + 1..=(life + 1) * TURNS {
                let path = match value(turn) {
                    Some(value) => format!("/set/{number}/{value}"),
                    None => format!("/delete/{number}"),
                };
                let uri = format!("{url}{path}").parse().unwrap();
                let response = client.get(uri).await.unwrap();
                assert!(response.status().is_success());
                response.into_body().collect().await.unwrap();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                acknowledged.push((now.as_secs_f64(), number, turn));
            }
            acknowledged
        });
    }
    all.join_all().await.into_iter().flatten().collect()
}

/// What is there after a client's so many changes.
fn value(turns: usize) -> Option<String> {
    (!turns.is_multiple_of(5)).then(|| format!("{turns}-{}", "x".repeat(3000)))
}

/// How many changes of each client were acknowledged by then.
fn known(acknowledged: &[Acknowledged], until: f64) -> [usize; CLIENTS] {
    let mut known = [0; CLIENTS];
    for (time, client, turns) in acknowledged {
        if *time <= until {
            known[*client] = *turns;
        }
    }
    known
}

/// Whether each key is as it was acknowledged, or as was asked for after that.
fn check(store: &Path, known: &[usize; CLIENTS]) -> Result<(), String> {
    let rows = rows(&store.join("sqlite_key_value.db")).map_err(|error| error.to_string())?;
    for (client, turns) in known.iter().enumerate() {
        let found = rows.get(&client.to_string());
        if found != value(*turns).as_ref() && found != value(turns + 1).as_ref() {
            let found = found.map(|it| it.split('-').next().unwrap_or_default());
            return Err(format!(
                "client {client} was told of {turns} changes, and his key has what it had after {found:?}"
            ));
        }
    }
    Ok(())
}

fn rows(file: &Path) -> rusqlite::Result<BTreeMap<String, String>> {
    if !file.exists() {
        return Ok(BTreeMap::new());
    }
    let connection = Connection::open(file)?;
    let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    assert_eq!(sound, "ok");
    let table = "SELECT count(*) FROM sqlite_master WHERE name = 'spin_key_value'";
    if connection.query_row(table, (), |row| row.get::<_, u32>(0))? == 0 {
        return Ok(BTreeMap::new());
    }
    let mut all = connection.prepare("SELECT key, CAST(value AS TEXT) FROM spin_key_value")?;
    let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}
