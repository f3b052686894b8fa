//! The server itself.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    unused_crate_dependencies,
    reason = "a panic is a failed test"
)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use behalf_test_postgres::{Postgres, Stop};

/// Long enough for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn servers_run_beside_each_other_and_keep_what_was_committed() {
    let mut one = Postgres::start_with(&["fsync=on", "max_connections=7"]).unwrap();
    let other = Postgres::start().unwrap();
    one.create_role("app", "its password").unwrap();
    one.create_database("app").unwrap();
    assert_eq!(
        one.sql("app", "SHOW max_connections; SHOW fsync").unwrap(),
        "7\non"
    );
    assert!(
        other
            .sql("app", "SELECT 1")
            .unwrap_err()
            .to_string()
            .contains("does not exist")
    );
    one.sql("app", "CREATE TABLE t(n int)").unwrap();
    for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
        one.sql("app", "INSERT INTO t SELECT 1").unwrap();
        one.stop(how).unwrap();
        assert!(one.sql("app", "SELECT 1").is_err());
        one.start_again().unwrap();
    }
    assert_eq!(one.sql("app", "SELECT count(*) FROM t").unwrap(), "3");
    one.stop(Stop::Kill).unwrap();
}

#[test]
fn nothing_is_left_of_a_server() {
    let postgres = Postgres::start().unwrap();
    let (folder, port) = (postgres.folder().to_owned(), postgres.port());
    drop(postgres);
    assert!(!folder.exists());
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
}

#[test]
fn nothing_is_left_of_a_server_whose_process_was_killed() {
    let note = tempfile::NamedTempFile::new().unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_postgres-until-killed"))
        .arg(note.path())
        .spawn()
        .unwrap();
    let soon = |what: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < PATIENCE);
            sleep(Duration::from_millis(10));
        }
    };
    soon(&|| fs::metadata(note.path()).unwrap().len() > 0);
    let folder = PathBuf::from(fs::read_to_string(note.path()).unwrap());
    assert!(folder.exists());
    process.kill().unwrap();
    process.wait().unwrap();
    soon(&|| !folder.exists());
}

#[test]
fn a_standby_has_what_its_primary_has_and_takes_no_changes_until_it_is_promoted() {
    let primary = Postgres::start().unwrap();
    primary.sql("postgres", "CREATE TABLE t(n int)").unwrap();
    let standby = primary.standby().unwrap();
    primary.sql("postgres", "INSERT INTO t VALUES (1)").unwrap();
    let begun = Instant::now();
    while standby.sql("postgres", "SELECT n FROM t").unwrap() != "1" {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10));
    }
    let refused = standby.sql("postgres", "INSERT INTO t VALUES (2)");
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("read-only transaction"), "{refused}");
    drop(primary);
    standby.promote().unwrap();
    standby.sql("postgres", "INSERT INTO t VALUES (2)").unwrap();
}
