//! The host as its users meet it: a child process that runs a real component.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    missing_docs,
    unreachable_pub
)]
#![allow(unused_crate_dependencies, clippy::indexing_slicing)]

mod harness;

use bytes::Bytes;
use harness::{Host, Setup, guest, manifest};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use std::time::{Duration, Instant};

fn start() -> Host {
    Setup::new(&manifest()).start()
}

#[tokio::test]
async fn requests_take_their_route() {
    let manifest = manifest().replace("route = \"/...\"", "route = \"/a/:name/...\"");
    let manifest =
        format!("{manifest}[[trigger.http]]\nroute = \"/headers\"\ncomponent = \"web\"\n");
    let host = Setup::new(&manifest).start();
    let request = Request::get(host.uri("/headers?q=1"))
        .header("spin-client-addr", "6.6.6.6:6")
        .body(Bytes::new());
    let body = host
        .send(request.unwrap())
        .await
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    let headers = String::from_utf8(body.to_vec()).unwrap();
    assert!(
        headers.contains(&format!("spin-full-url: {}/headers?q=1\n", host.url)),
        "{headers}"
    );
    assert!(
        headers.contains("spin-matched-route: /headers\n"),
        "{headers}"
    );
    assert_eq!(
        headers.matches("spin-client-addr: 127.0.0.1:").count(),
        1,
        "{headers}"
    );
    assert!(!headers.contains("6.6.6.6"), "{headers}");
    assert_eq!(
        host.get("/nowhere").await,
        (StatusCode::NOT_FOUND, String::new())
    );
    assert_eq!(host.text("/.well-known/spin/health").await, "OK");
    assert_eq!(
        host.get("/a/b/c").await.0,
        StatusCode::NOT_FOUND,
        "in the component's words"
    );
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let host = start();
    let megabytes = Bytes::from(vec![b'x'; 3 << 20]);
    let response = host
        .send(
            Request::post(host.uri("/echo"))
                .body(megabytes.clone())
                .unwrap(),
        )
        .await;
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        megabytes
    );

    let start = Instant::now();
    let mut body = host
        .send(
            Request::get(host.uri("/drip/4/100"))
                .body(Bytes::new())
                .unwrap(),
        )
        .await
        .into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "0\n");
    assert!(
        start.elapsed() < Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(body.collect().await.unwrap().to_bytes(), "1\n2\n3\n");
    assert!(start.elapsed() >= Duration::from_millis(400));
}

#[tokio::test]
async fn an_instance_serves_several_requests_and_ends_when_idle() {
    let host = Setup::new(&manifest())
        .arg(&["--idle-instance-timeout", "300ms"])
        .start();
    let served: u32 = host.text("/served").await.parse().unwrap();
    assert_eq!(host.text("/served").await, (served + 1).to_string());
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(host.text("/served").await, "0");

    let host = Setup::new(&manifest())
        .arg(&["--max-instance-reuse-count", "1"])
        .start();
    for _ in 0..3 {
        assert_eq!(host.text("/served").await, "0");
    }
}

#[tokio::test]
async fn a_trap_fails_its_instance_alone() {
    let host = start();
    let failed = (
        StatusCode::INTERNAL_SERVER_ERROR,
        "The component failed.\n".to_owned(),
    );
    let (together, panicked) = tokio::join!(host.get("/sleep/5000"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        host.get("/panic").await
    });
    assert_eq!(panicked, failed);
    assert_eq!(together, failed, "it was in the same instance");
    host.text("/served").await;
    let log = host.log_with("an instance failed");
    assert!(log.contains("web: the guest panics\n"), "{log}");
    let why = "wasm trap: wasm `unreachable` instruction executed (1 so far)\n";
    assert!(
        log.contains(&format!(
            "component web: an instance failed, and all requests that it was serving: {why}"
        )),
        "{log}"
    );
}

#[tokio::test]
async fn an_error_instead_of_a_response_is_told_without_its_payload() {
    let host = start();
    assert_eq!(
        host.get("/error").await,
        (StatusCode::INTERNAL_SERVER_ERROR, String::new())
    );
    let log =
        host.log_with("component web returned ErrorCode::InternalError instead of a response\n");
    assert!(!log.contains("guest data"), "{log}");
    assert!(!log.contains("an instance failed"), "{log}");
}

#[tokio::test]
async fn what_a_component_writes_is_logged_in_lines() {
    let host = start();
    host.text("/print").await;
    host.log_with("web: first half, second half\n");
    host.log_with("web: to standard error\n");
}

#[tokio::test]
async fn variables_come_from_environment_file_and_manifest() {
    let setup = Setup::new(&manifest()).env("SPIN_VARIABLE_GREETING", "hi");
    std::fs::write(
        setup.folder.path().join(".env"),
        "SPIN_VARIABLE_GREETING=no\nSPIN_VARIABLE_ORIGIN=https://a.test\n",
    )
    .unwrap();
    let host = setup.start();
    assert_eq!(
        host.text("/config").await,
        r#"Ok([("greeting", "<hi>"), ("problem", "")])"#
    );
    assert_eq!(host.text("/config/greeting").await, r#"Ok(Some("<hi>"))"#);
    assert_eq!(host.text("/variable/greeting").await, r#"Ok("<hi>")"#);
    assert_eq!(
        host.text("/config/origin").await,
        "Ok(None)",
        "an application variable is not the component's"
    );
    assert_eq!(host.text("/config/Bad-Name").await, "Ok(None)");
    assert_eq!(
        host.text("/variable/origin").await,
        r#"Err(Error::Undefined("origin"))"#
    );
    assert!(
        host.text("/variable/Bad-Name")
            .await
            .starts_with("Err(Error::InvalidName(")
    );
}

#[tokio::test]
async fn key_value_data_stay() {
    let host = start();
    assert_eq!(host.text("/open/default").await, "(Ok(()), Ok(()))");
    assert_eq!(
        host.text("/open/other").await,
        "(Err(Error::AccessDenied), Err(Error::AccessDenied))"
    );
    assert_eq!(host.text("/get/a").await, "(Ok(None), Ok(None))");
    host.text("/set/a/1").await;
    host.text("/set/b/2").await;
    assert_eq!(
        host.text("/get/a").await,
        r#"(Ok(Some("1")), Ok(Some("1")))"#
    );
    assert_eq!(host.text("/exists/a").await, "(Ok(true), Ok(true))");
    assert_eq!(host.text("/keys").await, r#"(["a", "b"], Ok(()))"#);
    let no_cursor = r#"Err(Error::Other("list_keys: cursor not supported"))"#;
    assert_eq!(
        host.text("/list").await,
        format!(r#"(Ok((["a", "b"], None)), {no_cursor})"#)
    );
    assert_eq!(host.text("/delete/a").await, "Ok(())");

    let file = host.setup.folder.path().join(".spin/sqlite_key_value.db");
    let read = |file| {
        let store = rusqlite::Connection::open(file).unwrap();
        store.query_row(
            "SELECT group_concat(store || key || value) FROM spin_key_value",
            [],
            |row| row.get::<_, String>(0),
        )
    };
    assert_eq!(read(file).unwrap(), "defaultb2");

    let setup = Setup::new(&manifest()).arg(&["--state-dir", "here"]);
    let host = setup.start();
    host.text("/set/c/3").await;
    assert_eq!(
        read(host.setup.folder.path().join("here/sqlite_key_value.db")).unwrap(),
        "defaultc3"
    );

    let host = Setup::new(&manifest()).arg(&["--state-dir", ""]).start();
    host.text("/set/d/4").await;
    assert_eq!(
        host.text("/list").await,
        format!(r#"(Ok((["d"], None)), {no_cursor})"#)
    );
    assert!(!host.setup.folder.path().join(".spin").exists());
}

#[tokio::test]
async fn outbound_requests_go_where_they_may() {
    let upstream = start();
    let host = start();
    let (status, headers) = host.sends(&upstream.uri("/headers")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(headers.contains("x-forwarded: yes\n"), "{headers}");
    assert!(
        headers.contains(&format!("spin-full-url: {}/headers\n", upstream.url)),
        "{headers}"
    );

    let denied = (
        StatusCode::BAD_GATEWAY,
        "ErrorCode::HttpRequestDenied".to_owned(),
    );
    for to in [
        "http://denied.test:81/secret?token",
        "http://denied.test:81/",
        "https://127.0.0.2/",
    ] {
        assert_eq!(host.sends(to).await, denied, "{to}");
    }
    let log = host.log_with("https://127.0.0.2");
    let line = "behalf: component web may not reach http://denied.test:81; if it should, add \"http://denied.test:81\" to \
                allowed_outbound_hosts of [component.web]\n";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert!(!log.contains("secret"), "{log}");

    assert_eq!(
        host.sends("http://127.0.0.1:1/").await.1,
        "ErrorCode::ConnectionRefused"
    );
    assert_eq!(
        host.sends(&upstream.uri("/sleep/5000")).await.1,
        "ErrorCode::ConnectionReadTimeout"
    );

    let body = Bytes::from(vec![b'y'; 1 << 20]);
    let request = Request::post(host.uri("/send"))
        .header("x-to", upstream.uri("/echo"))
        .body(body.clone())
        .unwrap();
    assert_eq!(
        host.send(request)
            .await
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes(),
        body
    );
}

#[tokio::test]
async fn tls_is_verified_and_agrees_on_a_protocol() {
    let authority = harness::Authority::new();
    let server = authority.serve("localhost").await;
    let misnamed = authority.serve("elsewhere.test").await;
    let stranger = harness::Authority::new().serve("localhost").await;
    let setup = Setup::new(&manifest().replace("http://127.0.0.1:*", "https://localhost:*"));
    let file = setup.folder.path().join("ca.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    let host = setup.env("SSL_CERT_FILE", file.to_str().unwrap()).start();
    for _ in 0..2 {
        let answer = (
            StatusCode::OK,
            format!("HTTP/2.0 https://localhost:{server}/ no host header"),
        );
        assert_eq!(
            host.sends(&format!("https://localhost:{server}/")).await,
            answer
        );
    }
    for port in [misnamed, stranger] {
        let refused = (
            StatusCode::BAD_GATEWAY,
            "ErrorCode::TlsCertificateError".to_owned(),
        );
        assert_eq!(
            host.sends(&format!("https://localhost:{port}/")).await,
            refused
        );
    }
}

#[tokio::test]
async fn a_stop_finishes_what_was_begun() {
    let mut host = start();
    let url = host.uri("/sleep/1000");
    let sleeping = {
        let request = host.send(Request::get(url).body(Bytes::new()).unwrap());
        let (response, text) = tokio::join!(request, async {
            let text = host.text("/after/800/late").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            host.signal("TERM");
            text
        });
        assert_eq!(text, "soon");
        response.into_body().collect().await.unwrap().to_bytes()
    };
    assert_eq!(sleeping, "slept");
    assert_eq!(host.ended(), Some(0));
    let store =
        rusqlite::Connection::open(host.setup.folder.path().join(".spin/sqlite_key_value.db"))
            .unwrap();
    let late: Vec<u8> = store
        .query_row("SELECT value FROM spin_key_value", [], |row| row.get(0))
        .unwrap();
    assert_eq!(late, b"after", "work after the response is finished too");
    assert!(!host.log().contains("behalf:"), "{}", host.log());
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut host = start();
    let hanging = tokio::spawn({
        let uri: http::Uri = host.uri("/sleep/60000").parse().unwrap();
        async move {
            let stream = tokio::net::TcpStream::connect(uri.authority().unwrap().as_str())
                .await
                .unwrap();
            let request = b"GET /sleep/60000 HTTP/1.1\r\nhost: h\r\n\r\n";
            stream.writable().await.unwrap();
            stream.try_write(request).unwrap();
            stream.readable().await.unwrap();
            stream.try_read(&mut [0; 100]).unwrap_or(0)
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    host.signal("INT");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!hanging.is_finished());
    let start = Instant::now();
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(hanging.await.unwrap(), 0);
    assert!(!host.log().contains("an instance failed"), "{}", host.log());
}

#[tokio::test]
async fn the_end_of_standard_input_is_a_stop() {
    let mut host = start();
    host.text("/served").await;
    host.close_stdin();
    assert_eq!(host.ended(), Some(0));
}

#[tokio::test]
async fn a_request_timeout_holds_even_against_a_busy_component() {
    let host = Setup::new(&manifest())
        .arg(&["--request-timeout", "300ms"])
        .start();
    for path in ["/sleep/60000", "/spin"] {
        let start = Instant::now();
        assert_eq!(
            host.get(path).await.0,
            StatusCode::INTERNAL_SERVER_ERROR,
            "{path}"
        );
        assert!(start.elapsed() < Duration::from_secs(10), "{path}");
        assert_eq!(host.get("/served").await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn only_some_components_can_be_run() {
    let manifest = manifest()
        + &format!(
            "[[trigger.http]]\nroute = \"/b\"\ncomponent = \"b\"\n[component.b]\nsource = \"{}\"\n",
            guest().display()
        );
    let host = Setup::new(&manifest).arg(&["--component", "b"]).start();
    assert_eq!(host.get("/headers").await.0, StatusCode::NOT_FOUND);
    assert!(
        !host.setup.folder.path().join(".spin").exists(),
        "b uses no store"
    );
    let (code, log) = Setup::new(&manifest).arg(&["--component", "c"]).fails();
    assert_eq!(
        (code, log.as_str()),
        (
            Some(2),
            "behalf: --component c: no route leads to it; there is b, web\n"
        )
    );
}

#[test]
fn what_is_wrong_stops_the_start() {
    let good = manifest();
    let component = format!("component web: {}", guest().display());
    let no_handler = tempfile::NamedTempFile::new().unwrap();
    let no_handler = (
        std::fs::write(&no_handler, wat::parse_str("(component)").unwrap()),
        no_handler,
    )
        .1;
    for (setup, code, message) in [
        (
            Setup::new(&good).env("SPIN_VARIABLE_PROBLEM", "the setting `x` is \"wrong\""),
            2,
            "the setting `x` is \"wrong\"".to_owned(),
        ),
        (
            Setup::new(&good).env("SPIN_VARIABLE_ORIGIN", "https://a.test/path"),
            2,
            "allowed_outbound_hosts of component web: \"{{ origin }}\" is \"https://a.test/path\", which has a path; write \
             scheme://host[:port] alone"
                .to_owned(),
        ),
        (
            Setup::new(&good.replace("problem = { default = \"\" }", "problem = { required = true }")),
            2,
            "the variable problem is required and has no value; set SPIN_VARIABLE_PROBLEM".to_owned(),
        ),
        (
            Setup::new(&good.replace("key_value_stores", "sqlite_databases")),
            2,
            "spin.toml:13: this host does not support the key `sqlite_databases` here".to_owned(),
        ),
        (
            Setup::new(&good.replace(".wasm", ".wusm")),
            2,
            format!("{}; run scripts/build to make it", component.replace("web: ", "web: there is no ").replace(".wasm", ".wusm")),
        ),
        (
            Setup::new(&good.replace(guest().to_str().unwrap(), "spin.toml")),
            2,
            "component web: spin.toml does not compile: ".to_owned(),
        ),
        (
            Setup::new(&good.replace(guest().to_str().unwrap(), no_handler.path().to_str().unwrap())),
            2,
            format!("component web: {} is no WASI 0.3 HTTP component", no_handler.path().display()),
        ),
        (Setup::new(&good).arg(&["-f", "none.toml"]), 2, "none.toml: cannot read: ".to_owned()),
        (Setup::new(&good).arg(&["--state-dir", "spin.toml"]), 1, "cannot open the key-value store /".to_owned()),
    ] {
        let (actual, log) = setup.fails();
        let last = log.lines().last().unwrap_or_default();
        assert_eq!(actual, Some(code), "{log}");
        assert!(last.starts_with(&format!("behalf: {message}")), "{message}\n{log}");
        assert_eq!(log.matches("behalf: ").count(), 1, "{log}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let host = start();
    let address = host.url.strip_prefix("http://").unwrap();
    let (code, log) = Setup::new(&manifest()).arg(&["--listen", address]).fails();
    let message = format!(
        "behalf: another program listens on {address}; stop it, or choose another address with --listen\n"
    );
    assert_eq!((code, log), (Some(1), message));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [
        &["--listen", "nonsense"][..],
        &["--request-timeout", "1m"],
        &["--nonsense"],
    ] {
        let (code, log) = Setup::new(&manifest()).arg(arguments).fails();
        assert_eq!(code, Some(2), "{log}");
    }
}
