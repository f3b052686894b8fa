//! `behalf schema`, on a real server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    missing_docs,
    unreachable_pub
)]
#![allow(unused_crate_dependencies, clippy::indexing_slicing)]

mod harness;

use behalf_core::ledger::postgres::schema::VERSION;
use behalf_test_postgres::{PASSWORD, Postgres, SUPERUSER};
use harness::Authority;
use std::process::{Command, Output};
use std::sync::OnceLock;

fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start().unwrap())
}

/// Makes a database of a test's own.
fn database(name: &str) -> String {
    server().create_database(name).unwrap();
    server().superuser(name)
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_behalf"));
    command.arg("schema").args(words).env_clear();
    command
}

struct Said {
    code: Option<i32>,
    out: String,
    log: String,
}

fn said(output: Output) -> Said {
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        !log.contains(PASSWORD) && !log.contains("a wrong one"),
        "{log}"
    );
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        log,
    }
}

fn run(words: &[&str]) -> Said {
    said(command(words).output().unwrap())
}

/// What it says when it has done it.
fn apply(words: &[&str]) -> String {
    let said = run(&[&["apply"], words].concat());
    assert_eq!(said.code, Some(0), "{}", said.log);
    assert_eq!(said.out, "");
    said.log
}

/// The tables and indexes, and who may do what with them.
const INVENTORY: &str = "
    SELECT relname, relkind, relacl FROM pg_class
    WHERE relnamespace = 'behalf'::regnamespace ORDER BY relname;
    SELECT version FROM behalf.schema_version";

#[test]
fn what_is_printed_does_what_is_applied() {
    let (printed, applied) = ("schema_printed", database("schema_applied"));
    database(printed);
    let script = run(&["print", "--role", "schema_reader"]);
    assert_eq!((script.code, script.log.as_str()), (Some(0), ""));
    server().sql(printed, &script.out).unwrap();
    server().sql(printed, &script.out).unwrap();
    let log = apply(&["--database", &applied, "--role", "schema_reader"]);
    assert!(
        log.contains(&format!("the tables are there, of version {VERSION}")),
        "{log}"
    );
    let found = server().sql("schema_applied", INVENTORY).unwrap();
    assert!(
        found.contains("enrolment|r|") && found.contains("schema_reader=arwd"),
        "{found}"
    );
    assert!(found.ends_with(&format!("\n{VERSION}")), "{found}");
    assert_eq!(server().sql(printed, INVENTORY).unwrap(), found);
    // Without a role none is named.
    let script = run(&["print"]);
    assert!(!script.out.contains("GRANT"), "{}", script.out);
}

#[test]
fn what_is_there_stays_and_a_role_may_come_later() {
    let address = database("schema_again");
    apply(&["--database", &address]);
    server()
        .sql("schema_again", "INSERT INTO behalf.app (app) VALUES ('a')")
        .unwrap();
    let log = apply(&["--database", &address, "--role", "schema_later"]);
    assert!(
        log.contains("already") && log.contains("the role schema_later"),
        "{log}"
    );
    assert_eq!(
        server()
            .sql("schema_again", "SELECT count(*) FROM behalf.app")
            .unwrap(),
        "1"
    );
}

#[test]
fn the_role_changes_rows_and_nothing_else_and_not_for_long() {
    let address = database("schema_role");
    apply(&["--database", &address, "--role", "schema_app"]);
    let as_app = |statement: &str| {
        let statements = format!("SET SESSION AUTHORIZATION schema_app; {statement}");
        server().sql("schema_role", &statements)
    };
    as_app("INSERT INTO behalf.app (app) VALUES ('a'); UPDATE behalf.app SET app = 'b'; DELETE FROM behalf.app").unwrap();
    for statement in [
        "DROP TABLE behalf.enrolment",
        "ALTER TABLE behalf.enrolment ADD COLUMN more int",
        "TRUNCATE behalf.enrolment",
        "CREATE TABLE behalf.more (n int)",
        "UPDATE behalf.schema_version SET version = 9",
        "CREATE ROLE another",
    ] {
        let error = as_app(statement).unwrap_err().to_string();
        assert!(
            error.contains("permission denied") || error.contains("must be owner"),
            "{statement}: {error}"
        );
    }
    let settings = "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'schema_app'::regrole";
    let settings = server().sql("schema_role", settings).unwrap();
    for name in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
    ] {
        assert!(settings.contains(name), "{settings}");
    }
}

#[test]
fn twenty_at_once_wait_for_each_other() {
    let address = database("schema_crowd");
    let words = [
        "apply",
        "--database",
        address.as_str(),
        "--role",
        "schema_crowd_app",
    ];
    let all: Vec<_> = (0..20)
        .map(|_| {
            let mut command = command(&words);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in all {
        let said = said(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.log);
    }
    let version = server()
        .sql("schema_crowd", "SELECT version FROM behalf.schema_version")
        .unwrap();
    assert_eq!(version, VERSION.to_string());
}

/// A role is of the whole server, and no lock of one database keeps others from it.
#[test]
fn who_does_the_same_in_another_database_is_not_in_the_way() {
    let (one, other) = ("schema_one", database("schema_other"));
    database(one);
    let role = ["--role", "schema_of_two"];
    let words = [&["--database", other.as_str()], role.as_slice()].concat();
    let script = run(&[&["print"], role.as_slice()].concat()).out;
    // Once the role has to be made, and once it is there.
    for _ in 0..2 {
        let open = format!("BEGIN; {script} SELECT pg_sleep(2); COMMIT");
        let other_side = std::thread::spawn(move || server().sql(one, &open));
        let is_asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'schema_one' AND query LIKE '%pg_sleep(2)%'
            AND wait_event = 'PgSleep'";
        while server().sql("postgres", is_asleep).unwrap() != "1" {
            assert!(!other_side.is_finished(), "{:?}", other_side.join());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let log = apply(&words);
        assert!(log.contains("the role schema_of_two"), "{log}");
        other_side.join().unwrap().unwrap();
    }
    let limits = "SELECT count(*) FROM pg_db_role_setting WHERE setrole = 'schema_of_two'::regrole AND setdatabase <> 0";
    assert_eq!(server().sql("postgres", limits).unwrap(), "2");
}

#[test]
fn newer_tables_are_left_alone() {
    let address = database("schema_newer");
    apply(&["--database", &address]);
    server()
        .sql(
            "schema_newer",
            "UPDATE behalf.schema_version SET version = version + 1",
        )
        .unwrap();
    let before = server().sql("schema_newer", INVENTORY).unwrap();
    let said = run(&[
        "apply",
        "--database",
        &address,
        "--role",
        "schema_newer_app",
    ]);
    assert_eq!(said.code, Some(1), "{}", said.log);
    assert!(
        said.log
            .contains("newer than this version of behalf: upgrade behalf"),
        "{}",
        said.log
    );
    assert_eq!(server().sql("schema_newer", INVENTORY).unwrap(), before);
    let role = "SELECT count(*) FROM pg_roles WHERE rolname = 'schema_newer_app'";
    assert_eq!(server().sql("schema_newer", role).unwrap(), "0");
}

#[test]
fn what_is_wrong_is_told_without_a_password() {
    database("schema_wrong");
    server().create_role("schema_nobody", PASSWORD).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let right = server().superuser("schema_wrong");
    for (words, code, reason) in [
        (
            vec![
                "--database",
                &server().address(SUPERUSER, "a wrong one", "schema_wrong"),
            ],
            1,
            "password authentication failed",
        ),
        (
            vec!["--database", &server().superuser("schema_none")],
            1,
            "database \"schema_none\" does not exist (3D000)",
        ),
        (
            vec![
                "--database",
                &server().address("schema_nobody", PASSWORD, "schema_wrong"),
            ],
            1,
            "connect as the owner of the database",
        ),
        (
            vec![
                "--database",
                &format!("host=127.0.0.1 port={free} user=a password='{PASSWORD}'"),
            ],
            1,
            "refused",
        ),
        (
            vec!["--database", &format!("{right} sslmode=require")],
            1,
            "server does not support TLS",
        ),
        (
            vec![
                "--database",
                &format!("host=a password=not quoted {PASSWORD}"),
            ],
            2,
            "--database is no connection string",
        ),
        (
            vec!["--database", &format!("user=a password='{PASSWORD}'")],
            2,
            "--database names no host",
        ),
        (vec!["--database", &right, "--role", ""], 2, "--role: "),
        (
            vec!["--database", &right, "--ca", "/nowhere.pem"],
            2,
            "/nowhere.pem",
        ),
        (
            vec!["--database", &right, "--password-file", "/nowhere"],
            2,
            "--password-file /nowhere",
        ),
        (vec![], 2, "--database"),
    ] {
        let said = run(&[&["apply"], words.as_slice()].concat());
        assert_eq!(said.code, Some(code), "{words:?}: {}", said.log);
        assert!(said.log.contains(reason), "{words:?}: {}", said.log);
    }
    let said = run(&["print", "--role", ""]);
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""));
}

#[test]
fn a_password_comes_from_a_file_or_the_environment() {
    database("schema_password");
    let port = server().port();
    let address = format!("postgres://{SUPERUSER}@127.0.0.1:{port}/schema_password");
    let folder = tempfile::tempdir().unwrap();
    let (file, wrong) = (folder.path().join("password"), folder.path().join("wrong"));
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    std::fs::write(&wrong, "a wrong one\n").unwrap();
    apply(&[
        "--database",
        &address,
        "--password-file",
        file.to_str().unwrap(),
    ]);
    let mut by_environment = command(&["apply", "--database", &address]);
    let output = by_environment.env("PGPASSWORD", PASSWORD).output().unwrap();
    assert_eq!(said(output).code, Some(0));
    // A file comes first.
    let mut by_both = command(&[
        "apply",
        "--database",
        &address,
        "--password-file",
        wrong.to_str().unwrap(),
    ]);
    let output = by_both.env("PGPASSWORD", PASSWORD).output().unwrap();
    assert_eq!(said(output).code, Some(1));
    assert!(
        run(&["apply", "--database", &address])
            .log
            .contains("password missing")
    );
}

#[test]
fn a_server_is_trusted_by_its_authority_alone() {
    let postgres = Postgres::start().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "localhost");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    postgres
        .serve_tls(&read("cert.pem"), &read("key.pem"))
        .unwrap();
    let (right, wrong) = (
        folder.path().join("right.pem"),
        folder.path().join("wrong.pem"),
    );
    std::fs::write(&right, &authority.pem).unwrap();
    std::fs::write(&wrong, &other.pem).unwrap();
    let port = postgres.port();
    let address = format!(
        "host=localhost port={port} user={SUPERUSER} password='{PASSWORD}' dbname=postgres"
    );
    for authorities in [vec![], vec!["--ca", wrong.to_str().unwrap()]] {
        let said = run(&[&["apply", "--database", &address], authorities.as_slice()].concat());
        assert_eq!(said.code, Some(1), "{}", said.log);
        assert!(
            said.log.contains("invalid peer certificate"),
            "{}",
            said.log
        );
    }
    apply(&["--database", &address, "--ca", right.to_str().unwrap()]);
}

#[test]
fn a_role_of_any_name_may_change_rows() {
    let address = database("schema_names");
    for role in ["behalf-app", "Behalf \"app\" 'of' $behalf$ %I"] {
        for _ in 0..2 {
            apply(&["--database", &address, "--role", role]);
        }
        let quoted = role.replace('"', "\"\"");
        let statements = format!(
            "SET SESSION AUTHORIZATION \"{quoted}\"; INSERT INTO behalf.app (app) VALUES ('a'); DELETE FROM behalf.app"
        );
        server().sql("schema_names", &statements).unwrap();
        let settings = format!(
            "SELECT setconfig FROM pg_db_role_setting WHERE setrole = '\"{}\"'::regrole",
            quoted.replace('\'', "''")
        );
        let settings = server().sql("schema_names", &settings).unwrap();
        assert!(settings.contains("statement_timeout=5s"), "{settings}");
    }
    let said = run(&["print", "--role", ""]);
    assert_eq!(said.code, Some(2), "{}", said.log);
}

/// As where a platform makes the roles, and the owner of the database may not change them.
#[test]
fn a_role_that_is_there_needs_no_right_to_roles() {
    server().create_role("names_owner", PASSWORD).unwrap();
    server().create_role("names_app", PASSWORD).unwrap();
    database("schema_owned");
    server()
        .sql(
            "postgres",
            "ALTER DATABASE schema_owned OWNER TO names_owner",
        )
        .unwrap();
    let address = server().address("names_owner", PASSWORD, "schema_owned");
    apply(&["--database", &address, "--role", "names_app"]);
    let statements = "SET SESSION AUTHORIZATION names_app; SELECT count(*) FROM behalf.enrolment";
    assert!(
        server()
            .sql("schema_owned", statements)
            .unwrap()
            .contains('0')
    );
}

#[test]
fn a_version_that_nothing_begins_with_is_left_as_it_is() {
    let address = database("schema_odd");
    apply(&["--database", &address]);
    for (version, word) in [(0, "nothing brings up"), (VERSION + 1, "upgrade behalf")] {
        let set = format!("UPDATE behalf.schema_version SET version = {version}");
        server().sql("schema_odd", &set).unwrap();
        let said = run(&["apply", "--database", &address]);
        assert_eq!(said.code, Some(1), "{}", said.log);
        assert!(said.log.contains(word), "{}", said.log);
        let found = server().sql("schema_odd", "SELECT version FROM behalf.schema_version");
        assert_eq!(found.unwrap(), version.to_string());
    }
}
