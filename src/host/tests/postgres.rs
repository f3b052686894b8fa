//! PostgreSQL as a component meets it that runs on the host: through Spin's SDK, on a real server.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    missing_docs,
    unreachable_pub
)]
#![allow(unused_crate_dependencies, clippy::indexing_slicing)]

mod harness;

use behalf_test_postgres::{PASSWORD, Postgres, Stop};
use bytes::Bytes;
use harness::{Authority, Host, Relay, Setup, postgres_guest};
use http::Request;
use http_body_util::BodyExt as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Long enough for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// The server of all tests that do not stop theirs. It ends with this process.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start().unwrap())
}

fn manifest(allowed: &[&str]) -> String {
    format!(
        r#"spin_manifest_version = 2
[application]
name = "test"
[variables]
database = {{ default = "" }}
[[trigger.http]]
route = "/..."
component = "web"
[component.web]
source = "{}"
allowed_outbound_hosts = {allowed:?}
"#,
        postgres_guest().display()
    )
}

/// A manifest for the places of a server.
fn manifest_for(postgres: &Postgres) -> String {
    let port = postgres.port();
    let (address, name) = (
        format!("postgres://127.0.0.1:{port}"),
        format!("postgres://localhost:{port}"),
    );
    manifest(&[&address, &name])
}

struct Asked<'a> {
    host: &'a Host,
    address: &'a str,
    parameters: &'a str,
    authorities: Option<&'a str>,
}

impl<'a> Asked<'a> {
    fn of(host: &'a Host, address: &'a str) -> Self {
        let (parameters, authorities) = ("", None);
        Self {
            host,
            address,
            parameters,
            authorities,
        }
    }

    async fn to(&self, what: &str, statement: &str) -> String {
        let mut request = Request::post(self.host.uri(&format!("/{what}")))
            .header("x-address", self.address)
            .header("x-parameters", self.parameters);
        if let Some(pem) = self.authorities {
            request = request.header("x-authorities", pem.replace('\n', "|"));
        }
        let request = request.body(Bytes::from(statement.to_owned())).unwrap();
        let (head, body) = self.host.send(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(head.status, 200, "{what} {statement}: {text}");
        text
    }
}

/// Waits until the server answers this with that.
async fn soon(postgres: &Postgres, statement: &str, expected: &str) {
    let begun = Instant::now();
    loop {
        let found = postgres.sql("postgres", statement).unwrap();
        if found == expected {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{statement}: {found}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn values_cross_as_on_spin() {
    let host = Setup::new(&manifest_for(server())).start();
    let address = server().superuser("postgres");
    for (parameter, of, expected) in [
        ("bool=true", "bool", "Boolean(true)"),
        ("i8=7", "\"char\"", "Unsupported([7])"),
        ("i16=-7", "int2", "Int16(-7)"),
        ("i32=-7", "int4", "Int32(-7)"),
        ("i64=-7", "int8", "Int64(-7)"),
        ("f32=0.5", "float4", "Floating32(0.5)"),
        ("f64=0.5", "float8", "Floating64(0.5)"),
        ("str=a", "text", "Str(\"a\")"),
        ("str=a", "varchar", "Str(\"a\")"),
        ("str=a", "char(2)", "Str(\"a \")"),
        ("str=a", "name", "Unsupported([97])"),
        ("bytes=ab", "bytea", "Binary([97, 98])"),
        ("date=2026,11,27", "date", "Date((2026, 11, 27))"),
        ("time=1,2,3,4000", "time", "Time((1, 2, 3, 4000))"),
        (
            "datetime=2026,11,27,1,2,3,4000",
            "timestamp",
            "Datetime((2026, 11, 27, 1, 2, 3, 4000))",
        ),
        (
            "uuid=6ec63dd0-5a1e-4c47-9d5c-4d4d8a5f7d1b",
            "uuid",
            "Uuid(\"6ec63dd0-5a1e-4c47-9d5c-4d4d8a5f7d1b\")",
        ),
        (
            "jsonb={\"b\": 1, \"a\":2}",
            "jsonb",
            "Jsonb([123, 34, 97, 34, 58, 50, 44, 34, 98, 34, 58, 49, 125])",
        ),
        ("jsonb=[1]", "json", "Unsupported([91, 49, 93])"),
        ("decimal=-12.340", "numeric", "Decimal(\"-12.340\")"),
        (
            "range_i32=1,5",
            "int4range",
            "RangeInt32((Some((1, RangeBoundKind::Inclusive)), Some((5, RangeBoundKind::Exclusive))))",
        ),
        // The server's own form.
        (
            "range_i64=1,5",
            "int8range",
            "RangeInt64((Some((1, RangeBoundKind::Inclusive)), Some((6, RangeBoundKind::Exclusive))))",
        ),
        (
            "range_i64=null,5",
            "int8range",
            "RangeInt64((None, Some((6, RangeBoundKind::Exclusive))))",
        ),
        ("range_i64=5,1", "int8range", "RangeInt64((None, None))"),
        (
            "range_decimal=1.5,2.50",
            "numrange",
            "RangeDecimal((Some((\"1.5\", RangeBoundKind::Exclusive)), Some((\"2.50\", RangeBoundKind::Inclusive))))",
        ),
        ("array_i32=1,null", "int4[]", "ArrayInt32([Some(1), None])"),
        ("array_i64=1,null", "int8[]", "ArrayInt64([Some(1), None])"),
        (
            "array_decimal=1.50,null",
            "numeric[]",
            "ArrayDecimal([Some(\"1.50\"), None])",
        ),
        (
            "array_str=a,null",
            "text[]",
            "ArrayStr([Some(\"a\"), None])",
        ),
        (
            "interval=1,2,3",
            "interval",
            "Interval(Interval { micros: 1, days: 2, months: 3 })",
        ),
        ("null=", "int8", "DbNull"),
        ("null=", "text[]", "DbNull"),
        ("null=", "point", "DbNull"),
    ] {
        let mut asked = Asked::of(&host, &address);
        asked.parameters = parameter;
        let found = asked.to("query", &format!("SELECT $1::{of} AS it")).await;
        assert!(
            found.ends_with(&format!("Ok([[DbValue::{expected}]])))")),
            "{parameter} {of}: {found}"
        );
    }
    // A time with a zone comes in only.
    let mut asked = Asked::of(&host, &address);
    asked.parameters = "timestamp=90";
    let found = asked
        .to("query", "SELECT extract(epoch FROM $1::timestamptz)::int8")
        .await;
    assert!(found.contains("Int64(90)"), "{found}");
}

#[tokio::test]
async fn what_spin_refuses_is_refused() {
    let host = Setup::new(&manifest_for(server())).start();
    let address = server().superuser("postgres");
    for (parameter, statement, expected) in [
        ("i64=1", "SELECT $1::int4", "WrongType"),
        ("i32=1", "SELECT $1::int8", "WrongType"),
        ("i32=1", "SELECT 1 LIMIT $1", "WrongType"),
        ("str=1", "SELECT $1::jsonb", "WrongType"),
        ("str=1", "SELECT $1::uuid", "WrongType"),
        ("str=1", "SELECT $1::interval", "WrongType"),
        ("bytes=1", "SELECT $1::text", "WrongType"),
        (
            "datetime=2026,1,1,0,0,0,0",
            "SELECT $1::timestamptz",
            "WrongType",
        ),
        ("timestamp=1", "SELECT $1::timestamp", "WrongType"),
        ("range_i32=1,2", "SELECT $1::int8range", "WrongType"),
        ("", "SELECT $1::int8", "Parameters(0, 1)"),
        ("i64=1;i64=2", "SELECT $1::int8", "Parameters(2, 1)"),
        (
            "uuid=none",
            "SELECT $1::uuid",
            "BadParameter(\"invalid UUID\")",
        ),
        (
            "jsonb=secret",
            "SELECT $1::jsonb",
            "BadParameter(\"invalid JSON\")",
        ),
        (
            "decimal=1e99",
            "SELECT $1::numeric",
            "BadParameter(\"invalid decimal\")",
        ),
        (
            "date=2026,2,30",
            "SELECT $1::date",
            "BadParameter(\"invalid date\")",
        ),
        ("", "SELECT 1; SELECT 2", "42601"),
        ("", "no such statement", "42601"),
    ] {
        let mut asked = Asked::of(&host, &address);
        asked.parameters = parameter;
        let found = asked.to("query", statement).await;
        assert!(
            found.starts_with("Err(") && found.contains(expected),
            "{parameter} {statement}: {found}"
        );
    }
    let mut asked = Asked::of(&host, &address);
    asked.parameters = "uuid=none";
    let found = asked.to("execute", "SELECT $1::uuid").await;
    assert!(found.contains("ValueConversionFailed"), "{found}");

    // What cannot be read is found late, and what was done stays done.
    asked.parameters = "";
    asked
        .to(
            "execute",
            "CREATE TABLE late(n int, at timestamptz DEFAULT now())",
        )
        .await;
    for value in [
        "SELECT now()",
        "SELECT NULL::timestamptz",
        "SELECT 'NaN'::numeric",
        "SELECT 1e30::numeric",
        "SELECT 'infinity'::timestamp",
        "INSERT INTO late VALUES (1) RETURNING at",
    ] {
        let found = asked.to("query", value).await;
        assert!(
            found.contains("Err((\"late\"") && found.contains("error deserializing column 0"),
            "{value}: {found}"
        );
    }
    let found = asked.to("query", "SELECT count(*) FROM late").await;
    assert!(found.contains("Int64(1)"), "{found}");
}

#[tokio::test]
async fn errors_of_statements_come_where_they_come_on_spin() {
    let host = Setup::new(&manifest_for(server())).start();
    server().create_database("errors").unwrap();
    let address = server().superuser("errors");
    let asked = Asked::of(&host, &address);
    assert_eq!(
        asked
            .to(
                "execute",
                "CREATE TABLE t(n int8 CONSTRAINT only_once PRIMARY KEY)"
            )
            .await,
        "Ok(0)"
    );
    assert_eq!(
        asked
            .to("execute", "INSERT INTO t SELECT generate_series(1, 5)")
            .await,
        "Ok(5)"
    );
    assert_eq!(
        asked.to("execute", "DELETE FROM t WHERE n > 3").await,
        "Ok(2)"
    );
    assert_eq!(
        asked.to("execute", "UPDATE t SET n = n WHERE n > 9").await,
        "Ok(0)"
    );

    let twice = "INSERT INTO t VALUES (1) RETURNING n";
    for (what, begins) in [
        ("query", "Ok(([\"n DbDataType::Int64\"], Err((\"late\""),
        ("result", "Ok(Err("),
        ("execute", "Err("),
    ] {
        let found = asked.to(what, twice).await;
        assert!(found.starts_with(begins), "{what}: {found}");
        for part in [
            "severity: \"ERROR\"",
            "code: \"23505\"",
            "(\"constraint\", \"only_once\")",
            "(\"table\", \"t\")",
            "detail: Some(\"Key (n)=(1) already exists.\")",
        ] {
            assert!(found.contains(part), "{what} {part}: {found}");
        }
    }
    // Whoever awaits the end alone gets it, whether or not there are rows.
    assert_eq!(asked.to("result", "SELECT 1").await, "Ok(Ok(()))");
    assert_eq!(
        asked.to("result", "DELETE FROM t WHERE false").await,
        "Ok(Ok(()))"
    );
    let found = asked
        .to("result", "SELECT 1 / (5 - n) FROM generate_series(1, 5) n")
        .await;
    assert!(found.contains("22012"), "{found}");
    // Also with more rows than are read ahead.
    assert_eq!(
        asked
            .to("first", "SELECT n FROM generate_series(1, 100000) n")
            .await,
        "Ok(Some([DbValue::Int32(1)]))"
    );
    // A failed statement leaves the connection usable; a terminated one is told.
    let found = asked
        .to("execute", "SELECT pg_terminate_backend(pg_backend_pid())")
        .await;
    assert!(
        found.contains("57P01") || found.contains("Closed"),
        "{found}"
    );
    assert_eq!(asked.to("execute", "SELECT 1").await, "Ok(1)");
}

#[tokio::test]
async fn columns_are_known_without_rows_and_rows_in_any_number() {
    let host = Setup::new(&manifest_for(server())).start();
    let address = server().superuser("postgres");
    let asked = Asked::of(&host, &address);
    let none = "SELECT 1::int8 AS a, now() AS b, '1'::json AS c WHERE false";
    let columns = "[\"a DbDataType::Int64\", \"b DbDataType::Datetime\", \"c DbDataType::Other(\\\"json\\\")\"]";
    assert_eq!(
        asked.to("query", none).await,
        format!("Ok(({columns}, Ok([])))")
    );
    let found = asked
        .to(
            "query",
            "SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) n",
        )
        .await;
    assert_eq!(found.matches("DbValue::Int32").count(), 5000);
    let found = asked
        .to("query", "SELECT length(v), v FROM repeat('x', 3000000) v")
        .await;
    assert!(found.contains("Int32(3000000)") && found.len() > 3_000_000);
    // By the functions that block the whole instance, too.
    let found = asked.to("synchronous", none).await;
    assert!(
        found.contains("rows: []")
            && found.contains("name: \"c\"")
            && found.ends_with("0, Ok(1)))"),
        "{found}"
    );
    let found = asked.to("synchronous", "SELECT 7 AS seven").await;
    assert!(
        found.contains("Int32(7)") && found.ends_with("1, Ok(1)))"),
        "{found}"
    );
}

#[tokio::test]
async fn only_what_is_allowed_is_reached() {
    let port = server().port();
    let host = Setup::new(&manifest(&[
        &format!("postgres://127.0.0.1:{port}"),
        "postgres://{{ database }}",
        "http://localhost:*",
    ]))
    .start();
    let of = |rest: &str| {
        format!("user=postgres password='{PASSWORD}' dbname=postgres sslmode=disable {rest}")
    };
    let allowed = of(&format!("host=127.0.0.1 port={port}"));
    let text = "Ok(1)";
    assert_eq!(
        Asked::of(&host, &allowed).to("execute", "SELECT 1").await,
        text
    );
    let other = if port == 1 { 2 } else { 1 };
    for (address, reason) in [
        (
            of(&format!("host=localhost port={port}")),
            format!("address postgres://localhost:{port} is not permitted"),
        ),
        (
            of(&format!("host=127.0.0.1 port={other}")),
            format!("address postgres://127.0.0.1:{other} is not permitted"),
        ),
        (
            of("host=127.0.0.1"),
            "address postgres://127.0.0.1 is not permitted".to_owned(),
        ),
        (
            of(&format!("host=127.0.0.1,127.0.0.2 port={port}")),
            format!("address postgres://127.0.0.2:{port} is not permitted"),
        ),
        (
            of(&format!("host=127.0.0.1 hostaddr=127.0.0.2 port={port}")),
            "hostaddr".to_owned(),
        ),
        (
            of(&format!("hostaddr=127.0.0.1 port={port}")),
            "hostaddr".to_owned(),
        ),
        (
            of("host=/var/run/postgresql"),
            "Unix sockets are not supported on WebAssembly".to_owned(),
        ),
        (of(""), "no host".to_owned()),
        (
            of("host=127.0.0.1 sslmode=verify-full"),
            "invalid connection string".to_owned(),
        ),
        (
            format!("postgres://postgres:{PASSWORD}@[::1]:{port}/postgres"),
            format!("address postgres://[::1]:{port} is not permitted"),
        ),
    ] {
        let authority = Authority::new();
        for authorities in [None, Some(authority.pem.as_str())] {
            let mut asked = Asked::of(&host, &address);
            asked.authorities = authorities;
            let found = asked.to("execute", "SELECT 1").await;
            assert!(
                found.starts_with("Err(PgError(Error::ConnectionFailed(")
                    && found.contains(&reason),
                "{address}: {found}"
            );
            assert!(!found.contains(PASSWORD), "{found}");
        }
        // Nor by the functions that are no more used, one of which Spin 4.1 does not check.
        let found = Asked::of(&host, &address)
            .to("synchronous", "SELECT 1")
            .await;
        assert!(found.contains(&reason), "{address}: {found}");
    }
    let log = host.log_with("may not reach postgres://localhost");
    assert!(
        log.contains(&format!(
            "add \"postgres://localhost:{port}\" to allowed_outbound_hosts of [component.web]"
        )),
        "{log}"
    );
    assert!(!log.contains(PASSWORD), "{log}");
    // Without any entry.
    let host = Setup::new(&manifest(&[])).start();
    let found = Asked::of(&host, &allowed).to("execute", "SELECT 1").await;
    assert!(
        found.contains(&format!(
            "address postgres://127.0.0.1:{port} is not permitted"
        )),
        "{found}"
    );
}

#[tokio::test]
async fn a_connection_that_fails_says_why_and_no_password() {
    let host = Setup::new(&manifest(&["postgres://*:*"]))
        .arg(&["--log-level", "debug"])
        .start();
    let (here, port) = (server().host(), server().port());
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for (address, reason) in [
        (
            server().address("postgres", "a wrong one", "postgres"),
            "FATAL: password authentication failed for user \\\"postgres\\\" (28P01)",
        ),
        (server().address("nobody", PASSWORD, "postgres"), "(28P01)"),
        (
            server().superuser("none"),
            "FATAL: database \\\"none\\\" does not exist (3D000)",
        ),
        (
            format!("{} sslmode=require", server().superuser("postgres")),
            "server does not support TLS",
        ),
        (
            format!("host={here} port={free} user=a password='{PASSWORD}'"),
            "Connection refused",
        ),
        (
            format!("host=nowhere.invalid user=a password='{PASSWORD}'"),
            "error connecting to server",
        ),
        (
            format!("host={here} port={port} user=a"),
            "password missing",
        ),
        (
            format!("host={here} port={port} user=a password=half of it {PASSWORD}"),
            "invalid connection string",
        ),
    ] {
        let found = Asked::of(&host, &address).to("execute", "SELECT 1").await;
        assert!(
            found.contains("ConnectionFailed") && found.contains(reason),
            "{address}: {found}"
        );
        for never in [PASSWORD, "a wrong one", "backtrace"] {
            assert!(!found.contains(never), "{found}");
        }
    }
    let log = host.log();
    assert!(
        !log.contains(PASSWORD) && !log.contains("a wrong one"),
        "{log}"
    );
}

#[tokio::test]
async fn certificates_are_verified_whenever_there_is_tls() {
    let postgres = Postgres::start().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path(), "localhost");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    postgres
        .serve_tls(&read("cert.pem"), &read("key.pem"))
        .unwrap();
    let host = Setup::new(&manifest_for(&postgres)).start();

    let of = |host: &str, mode: &str| {
        let port = postgres.port();
        format!("host={host} port={port} user=postgres password='{PASSWORD}' dbname=postgres{mode}")
    };
    let bundle = format!("{}{}", other.pem, authority.pem);
    for (address, authorities, expected) in [
        (
            of("localhost", " sslmode=require"),
            Some(authority.pem.as_str()),
            "Boolean(true)",
        ),
        (of("localhost", ""), Some(&authority.pem), "Boolean(true)"),
        (
            of("localhost", " sslmode=require channel_binding=require"),
            Some(&authority.pem),
            "Boolean(true)",
        ),
        (
            of("localhost", " sslmode=require"),
            Some(&bundle),
            "Boolean(true)",
        ),
        (of("localhost", " sslmode=disable"), None, "Boolean(false)"),
        // It is what an address means that does not say.
        (of("localhost", ""), None, "UnknownIssuer"),
        (of("localhost", " sslmode=require"), None, "UnknownIssuer"),
        (
            of("localhost", " sslmode=require"),
            Some(&other.pem),
            "invalid peer certificate",
        ),
        (
            of("127.0.0.1", " sslmode=require"),
            Some(&authority.pem),
            "not valid for name",
        ),
        (
            of("localhost", ""),
            Some("-----BEGIN CERTIFICATE-----|AAAA|-----END CERTIFICATE-----|"),
            "invalid root certificate",
        ),
        (
            of("localhost", ""),
            Some("none"),
            "invalid root certificate",
        ),
    ] {
        let mut asked = Asked::of(&host, &address);
        asked.authorities = authorities;
        let found = asked
            .to(
                "query",
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            )
            .await;
        assert!(found.contains(expected), "{address} {expected}: {found}");
    }
    // Those of --outbound-ca are trusted without being named.
    let setup = Setup::new(&manifest_for(&postgres));
    std::fs::write(setup.folder.path().join("ca.pem"), &authority.pem).unwrap();
    let host = setup.arg(&["--outbound-ca", "ca.pem"]).start();
    let address = of("localhost", "");
    let found = Asked::of(&host, &address)
        .to(
            "query",
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        )
        .await;
    assert!(found.contains("Boolean(true)"), "{found}");
    // What is given up is given up over TLS as well.
    assert_eq!(
        Asked::of(&host, &address)
            .to("give-up/100", "SELECT pg_sleep(300)")
            .await,
        "Ok(None)"
    );
    soon(&postgres, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)%' AND pid <> pg_backend_pid()", "0").await;
}

/// How many connections there are to these databases.
fn count(databases: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname IN ({databases}) AND backend_type = 'client backend'"
    )
}

#[tokio::test]
async fn there_are_no_more_connections_than_the_option_says() {
    let mut host = Setup::new(&manifest_for(server()))
        .arg(&["--postgres-connections", "2"])
        .start();
    for name in ["pool_a", "pool_b", "pool_c"] {
        server().create_database(name).unwrap();
    }
    let of = |database: &str| format!("{} connect_timeout=1", server().superuser(database));
    let (a, b, c) = (of("pool_a"), of("pool_b"), of("pool_c"));
    for address in [&a, &b] {
        assert_eq!(Asked::of(&host, address).to("keep", "").await, "Ok(())");
    }
    let found = Asked::of(&host, &a).to("execute", "SELECT 1").await;
    assert!(found.contains("ConnectionFailed(\\\"no connection came free within 1s: all 2 of --postgres-connections are in use\\\")") || found.contains("no connection came free within 1s: all 2 of --postgres-connections are in use"), "{found}");
    assert_eq!(Asked::of(&host, &a).to("let-go", "").await, "2");
    // Those of other addresses make room.
    for address in [&c, &a, &b, &c] {
        assert_eq!(
            Asked::of(&host, address).to("execute", "SELECT 1").await,
            "Ok(1)"
        );
    }
    soon(
        server(),
        &format!("SELECT ({}) <= 2", count("'pool_a', 'pool_b', 'pool_c'")),
        "t",
    )
    .await;
    // Far more than there are take turns.
    let asked = Asked::of(&host, &c);
    let many = (0..60).map(|_| asked.to("execute", "SELECT 1"));
    let found = futures_util::future::join_all(many).await;
    assert!(found.iter().all(|it| it == "Ok(1)"), "{found:?}");
    soon(
        server(),
        &format!("SELECT ({}) <= 2", count("'pool_a', 'pool_b', 'pool_c'")),
        "t",
    )
    .await;
    host.close_stdin();
    host.ended();
    let log = host.log();
    assert!(
        log.contains("some waited for one in vain") && log.contains("in_vain=1"),
        "{log}"
    );
}

#[tokio::test]
async fn nothing_of_one_user_reaches_the_next() {
    let host = Setup::new(&manifest_for(server()))
        .arg(&["--postgres-connections", "1"])
        .start();
    server().create_database("leak").unwrap();
    let address = server().superuser("leak");
    let asked = Asked::of(&host, &address);
    asked.to("execute", "CREATE TABLE t(n int)").await;
    let pid = asked.to("query", "SELECT pg_backend_pid()").await;
    for (leak, probe, expected) in [
        (
            "BEGIN READ ONLY",
            "SELECT current_setting('transaction_read_only') = 'off'",
            "Boolean(true)",
        ),
        (
            "SET search_path = elsewhere",
            "SELECT current_setting('search_path') = 'elsewhere'",
            "Boolean(false)",
        ),
        (
            "CREATE TEMP TABLE mine AS SELECT 1",
            "SELECT to_regclass('mine') IS NULL",
            "Boolean(true)",
        ),
        (
            "SELECT pg_advisory_lock(5)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = 'leak')",
            "Int64(0)",
        ),
        (
            "LISTEN news",
            "SELECT count(*) FROM pg_listening_channels()",
            "Int64(0)",
        ),
        (
            "PREPARE \"a canary\" AS SELECT 'canary'",
            "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
            "Int64(0)",
        ),
    ] {
        asked.to("execute", leak).await;
        let found = asked.to("query", probe).await;
        assert!(found.contains(expected), "{leak}: {found}");
    }
    // It was one connection all the time: it was made fit, not closed.
    assert_eq!(asked.to("query", "SELECT pg_backend_pid()").await, pid);
    // What is done in a transaction that is left open is not done, whether or not it has failed.
    for (statement, done) in [
        ("INSERT INTO t VALUES (0)", "Ok(Ok(1))"),
        ("SELECT 1 / 0", "Ok(Err("),
    ] {
        let found = asked.to("in-transaction", statement).await;
        assert!(found.starts_with(done), "{statement}: {found}");
        assert_eq!(
            asked.to("execute", "INSERT INTO t VALUES (1)").await,
            "Ok(1)"
        );
        assert_eq!(asked.to("query", "SELECT pg_backend_pid()").await, pid);
    }
    // Nor is a connection lent on that waits for something else than statements.
    for statement in ["COPY t FROM STDIN", "COPY t TO STDOUT"] {
        let found = asked.to("execute", statement).await;
        assert!(found.starts_with("Err("), "{statement}: {found}");
        assert_eq!(
            asked.to("execute", "SELECT 1").await,
            "Ok(1)",
            "{statement}"
        );
    }
    asked.to("execute", "no such statement").await;
    assert_eq!(
        server()
            .sql("leak", "SELECT string_agg(n::text, ',') FROM t")
            .unwrap(),
        "1,1"
    );
    // And the server has nothing to complain about.
    assert!(
        !server().log().contains("no transaction in progress"),
        "{}",
        server().log()
    );
}

#[tokio::test]
async fn an_instance_that_ends_gives_its_connections_back() {
    let host = Setup::new(&manifest_for(server()))
        .arg(&[
            "--postgres-connections",
            "1",
            "--max-instance-reuse-count",
            "1",
        ])
        .start();
    let address = server().superuser("postgres");
    let asked = Asked::of(&host, &address);
    for _ in 0..3 {
        assert_eq!(asked.to("keep", "").await, "Ok(())");
    }
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    let mut postgres = Postgres::start().unwrap();
    let host = Setup::new(&manifest_for(&postgres)).start();
    let address = postgres.superuser("postgres");
    let asked = Asked::of(&host, &address);
    assert_eq!(asked.to("execute", "CREATE TABLE t(n int)").await, "Ok(0)");
    for how in [Stop::Fast, Stop::Immediate, Stop::Kill] {
        let many = (0..4).map(|_| asked.to("execute", "INSERT INTO t VALUES (1)"));
        let found = futures_util::future::join_all(many).await;
        assert!(found.iter().all(|it| it == "Ok(1)"), "{found:?}");
        postgres.stop(how).unwrap();
        // A connection may end a moment after its server, and says so.
        let begun = Instant::now();
        loop {
            let found = asked.to("execute", "SELECT 1").await;
            if found.contains("ConnectionFailed") && found.contains("refused") {
                break;
            }
            assert!(
                found.contains("kind: Closed") || found.contains("57P0"),
                "{how:?}: {found}"
            );
            assert!(begun.elapsed() < PATIENCE);
        }
        postgres.start_again().unwrap();
        assert_eq!(
            asked.to("execute", "INSERT INTO t VALUES (1)").await,
            "Ok(1)",
            "{how:?}"
        );
    }
    assert_eq!(
        postgres.sql("postgres", "SELECT count(*) FROM t").unwrap(),
        "15"
    );
}

#[tokio::test]
async fn no_connection_to_a_server_that_takes_no_changes_is_used_again() {
    let postgres = Postgres::start().unwrap();
    let host = Setup::new(&manifest_for(&postgres)).start();
    let address = postgres.superuser("template1");
    let asked = Asked::of(&host, &address);
    assert_eq!(asked.to("execute", "CREATE TABLE t(n int)").await, "Ok(0)");
    let no_changes = "ALTER DATABASE template1 SET default_transaction_read_only = on";
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'template1'";
    postgres
        .sql("postgres", &format!("{no_changes}; {end}"))
        .unwrap();
    // Four of them, all opened by then, and three idle.
    let many = (0..4).map(|_| asked.to("execute", "SELECT pg_sleep(0.5)"));
    futures_util::future::join_all(many).await;
    let found = asked.to("execute", "INSERT INTO t VALUES (1)").await;
    assert!(found.contains("25006"), "{found}");
    let mend = "ALTER DATABASE template1 RESET default_transaction_read_only";
    postgres.sql("postgres", mend).unwrap();
    let insert = "INSERT INTO t SELECT 1 FROM pg_sleep(0.5)";
    let many = (0..4).map(|_| asked.to("execute", insert));
    let found = futures_util::future::join_all(many).await;
    assert!(found.iter().all(|it| it == "Ok(1)"), "{found:?}");
}

#[tokio::test]
async fn a_server_without_room_says_so_and_is_used_as_far_as_it_goes() {
    let postgres =
        Postgres::start_with(&["max_connections=6", "superuser_reserved_connections=1"]).unwrap();
    postgres.create_role("app", PASSWORD).unwrap();
    let host = Setup::new(&manifest_for(&postgres)).start();
    let address = postgres.address("app", PASSWORD, "postgres");
    let asked = Asked::of(&host, &address);
    let many = (0..12).map(|_| asked.to("execute", "SELECT pg_sleep(1)"));
    let found = futures_util::future::join_all(many).await;
    let (done, refused): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it == "Ok(1)");
    assert!(
        !done.is_empty() && !refused.is_empty(),
        "{done:?} {refused:?}"
    );
    for text in refused {
        assert!(
            text.contains("53300") && text.contains("--postgres-connections"),
            "{text}"
        );
    }
    assert_eq!(asked.to("execute", "SELECT 1").await, "Ok(1)");
}

#[tokio::test]
async fn a_way_that_has_fallen_silent_is_left() {
    let relay = Relay::new(server().port()).await;
    let host = Setup::new(&manifest(&["postgres://127.0.0.1:*"])).start();
    let address = format!(
        "host=127.0.0.1 port={} user=postgres password='{PASSWORD}' dbname=postgres",
        relay.port
    );
    let asked = Asked::of(&host, &address);
    assert_eq!(asked.to("execute", "SELECT 1").await, "Ok(1)");
    relay.fall_silent();
    // One that has just been used is trusted; later it has to prove itself.
    tokio::time::sleep(Duration::from_millis(5_200)).await;
    assert_eq!(asked.to("execute", "SELECT 1").await, "Ok(1)");
    // A server that takes connections and says nothing holds up nobody for longer than the address says.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!(
        "host=127.0.0.1 port={} user=a connect_timeout=1",
        silent.local_addr().unwrap().port()
    );
    let found = Asked::of(&host, &address).to("execute", "SELECT 1").await;
    assert!(
        found.contains("there was no connection within 1s, the connect_timeout of the address"),
        "{found}"
    );
}

#[tokio::test]
async fn what_nobody_waits_for_is_given_up() {
    let host = Setup::new(&manifest_for(server()))
        .arg(&["--postgres-connections", "2"])
        .start();
    server().create_database("given_up").unwrap();
    let address = server().superuser("given_up");
    let asked = Asked::of(&host, &address);
    asked.to("execute", "CREATE TABLE t(n int)").await;
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'given_up' AND state = 'active'";
    let slow = "INSERT INTO t SELECT 1 FROM pg_sleep(300)";
    assert_eq!(asked.to("give-up/200", slow).await, "Ok(None)");
    soon(server(), running, "0").await;
    // The connection ends with it: nobody could tell which statement was given up.
    let found = asked.to("give-up-and-go-on/200", slow).await;
    assert!(found.contains("kind: Closed"), "{found}");
    soon(server(), running, "0").await;
    // Rows that nobody reads: what is short is done, what is long is given up.
    assert_eq!(
        asked
            .to(
                "abandon",
                "INSERT INTO t SELECT generate_series(1, 1000) RETURNING n"
            )
            .await,
        "Ok(1)"
    );
    soon(server(), "SELECT 1", "1").await;
    let found = asked.to("query", "SELECT count(*) FROM t").await;
    assert!(found.contains("Int64(1000)"), "{found}");
    assert_eq!(
        asked
            .to(
                "abandon",
                "SELECT repeat('x', 10000), pg_sleep(0.05) FROM generate_series(1, 100000)"
            )
            .await,
        "Ok(2)"
    );
    soon(server(), running, "0").await;
    assert_eq!(asked.to("execute", "SELECT 1").await, "Ok(1)");
}

#[tokio::test]
async fn statements_of_one_instance_run_at_once() {
    let host = Setup::new(&manifest_for(server()))
        .arg(&["--max-instances", "1"])
        .start();
    let address = format!(
        "{} options='-c statement_timeout=30000'",
        server().superuser("postgres")
    );
    // Each waits for the other.
    let statement = "DO $$ BEGIN PERFORM pg_advisory_xact_lock_shared(77);
        WHILE (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77) < 2 LOOP
        PERFORM pg_sleep(0.01); END LOOP; PERFORM pg_sleep(1); END $$";
    assert_eq!(
        Asked::of(&host, &address).to("both", statement).await,
        "(Ok(0), Ok(0))"
    );
}
