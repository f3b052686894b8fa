//! `scripts/manifest` prints what `spin.toml` is, with another ledger or without a schedule.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::process::Command;

use runtime_tests::app::root;
use toml::{Table, Value};

fn printed(arguments: &[&str]) -> Table {
    let mut print = Command::new(root().join("scripts/manifest"));
    let output = print.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

fn file(name: &str) -> Table {
    let text = std::fs::read_to_string(root().join(name)).unwrap();
    text.parse().unwrap()
}

fn table<'t>(mut of: &'t mut Table, path: &[&str]) -> &'t mut Table {
    for name in path {
        of = of[*name].as_table_mut().unwrap();
    }
    of
}

/// The same app, with a database where key-value storage was: nothing of that is left, and all else is as it was.
#[test]
fn with_the_ledger_postgres_nothing_else_is_another() {
    let added = file("src/http/postgres/variables.toml");
    assert!(added.keys().all(|name| name.starts_with("postgres_")));
    let mut expected = file("spin.toml");
    let variables = table(&mut expected, &["variables"]);
    variables.extend(added.clone());
    let http = table(&mut expected, &["component", "http"]);
    http.remove("key_value_stores").unwrap();
    let source = "target/wasm32-wasip2/release/behalf_http_postgres.wasm";
    http.insert("source".into(), source.into());
    let allowed = http["allowed_outbound_hosts"].as_array_mut().unwrap();
    allowed.insert(
        0,
        "postgres://{{ postgres_host }}:{{ postgres_port }}".into(),
    );
    let passed = table(http, &["variables"]);
    for name in added.keys() {
        let template = Value::from(format!("{{{{ {name} }}}}"));
        assert!(passed.insert(name.clone(), template).is_none());
    }
    assert_eq!(printed(&["--relative", "--ledger", "postgres"]), expected);
    // Both at once, in either order.
    expected.remove("component").unwrap();
    for arguments in [
        ["--ledger", "postgres", "--no-cron"],
        ["--no-cron", "--ledger", "postgres"],
    ] {
        let mut both = printed(&arguments);
        let names: Vec<_> = table(&mut both, &["component"]).keys().cloned().collect();
        assert_eq!(names, ["http"]);
        let variables = table(&mut both, &["variables"]);
        assert!(added.keys().all(|name| variables.contains_key(name)));
        assert!(!variables.contains_key("sweep_url"));
    }
}

#[test]
fn without_another_ledger_it_is_spin_toml() {
    let own = file("spin.toml");
    assert_eq!(printed(&["--relative"]), own);
    assert_eq!(printed(&["--ledger", "key-value", "--relative"]), own);
}

#[test]
fn what_it_does_not_know_is_refused() {
    for arguments in [&["--ledger"][..], &["--ledger", "redis"], &["postgres"]] {
        let mut print = Command::new(root().join("scripts/manifest"));
        let output = print.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: "));
    }
}
