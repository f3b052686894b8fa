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
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

    // What comes second by second is not kept until all is there.
    let mut body = host
        .send(
            Request::get(host.uri("/drip/4/1000"))
                .body(Bytes::new())
                .unwrap(),
        )
        .await
        .into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "0\n");
    let start = Instant::now();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "1\n2\n3\n");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_instance_serves_several_requests_and_ends_when_idle() {
    let host = Setup::new(&manifest())
        .arg(&["--idle-instance-timeout", "2s"])
        .start();
    let served: u32 = host.text("/served").await.parse().unwrap();
    assert_eq!(host.text("/served").await, (served + 1).to_string());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(host.text("/served").await, "0");

    let host = Setup::new(&manifest())
        .arg(&["--max-instance-reuse-count", "1"])
        .start();
    for _ in 0..3 {
        assert_eq!(host.text("/served").await, "0");
    }
}

#[tokio::test]
async fn an_instance_lives_for_long_unless_it_is_to_live_as_on_spin() {
    let lives = async |host: &Host| {
        let mut last: u32 = host.text("/served").await.parse().unwrap();
        for _ in 0..200 {
            let served = host.text("/served").await.parse().unwrap();
            if served != last + 1 {
                return false;
            }
            last = served;
        }
        true
    };
    let outlives_a_pause = async |host: &Host| {
        let last: u32 = host.text("/served").await.parse().unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        host.text("/served").await == (last + 1).to_string()
    };
    let host = start();
    assert!(lives(&host).await && outlives_a_pause(&host).await);
    let as_on_spin = Setup::new(&manifest()).arg(&["--instances-as-on-spin"]);
    let host = as_on_spin.start();
    assert!(!lives(&host).await && !outlives_a_pause(&host).await);
    // What is asked for besides goes before it.
    let host = Setup::new(&manifest())
        .arg(&["--instances-as-on-spin", "--idle-instance-timeout", "1m"])
        .start();
    assert!(outlives_a_pause(&host).await);
}

#[tokio::test]
async fn a_trap_fails_its_instance_alone() {
    let host = start();
    let failed = (
        StatusCode::INTERNAL_SERVER_ERROR,
        "The component failed.\n".to_owned(),
    );
    let (together, panicked) = tokio::join!(host.get("/sleep/5000"), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
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

/// An HTTP/2 client in clear; the harness' own speaks HTTP/1.1.
fn http_2() -> hyper_util::client::legacy::Client<
    hyper_util::client::legacy::connect::HttpConnector,
    http_body_util::Full<Bytes>,
> {
    hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http()
}

/// Whether the instance traps or its time is up: no client takes what it got for the whole.
#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let trapping = (start(), "/half");
    let timed = Setup::new(&manifest()).arg(&["--request-timeout", "300ms"]);
    let timed = (timed.start(), "/drip/100/200");
    for (host, path) in [trapping, timed] {
        let request = Request::get(host.uri(path)).body(Bytes::new()).unwrap();
        let response = host.send(request).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let body = response.into_body().collect().await;
        assert!(body.is_err(), "{path} in HTTP/1.1: {body:?}");

        let response = http_2().get(host.uri(path).parse().unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let body = response.into_body().collect().await;
        assert!(body.is_err(), "{path} in HTTP/2: {body:?}");
        assert_eq!(host.get("/served").await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_request_to_others_that_breaks_off_does_not_look_whole() {
    const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}", upstream.local_addr().unwrap());
    let host = start();
    let request = Request::get(host.uri("/half-sent")).header("x-to", to);
    let request = request.body(Bytes::new()).unwrap();
    let (response, sent) = tokio::join!(host.send(request), async {
        let mut sent = Vec::new();
        let mut stream = upstream.accept().await.unwrap().0;
        while !sent.windows(4).any(|it| it == b"\r\n\r\n") {
            stream.read_buf(&mut sent).await.unwrap();
        }
        // Before the body, so that nobody waits for the answer any more when that breaks off.
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        while !sent.ends_with(LAST_CHUNK) && stream.read_buf(&mut sent).await.unwrap_or(0) > 0 {}
        sent
    });
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!sent.ends_with(LAST_CHUNK));
    assert!(String::from_utf8_lossy(&sent).ends_with("half\n\r\n"));
}

#[tokio::test]
async fn an_error_instead_of_a_response_is_told_without_its_payload() {
    let host = start();
    assert_eq!(
        host.get("/error").await,
        (StatusCode::INTERNAL_SERVER_ERROR, String::new())
    );
    let log = host.log_with(
        "component web returned ErrorCode::InternalError instead of a response request_id=",
    );
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
async fn all_interfaces_to_the_store_show_the_same() {
    let host = start();
    let twin = r#"((Ok(Some("1")), Ok(true), Ok(["t"])), Ok(None))"#;
    assert_eq!(host.text("/twin").await, twin);
    assert_eq!(
        host.text("/batch").await,
        r#"([("a", Some("1")), ("b", Some("2"))], [], Ok(0))"#,
        "an absent key is left out, as in Spin"
    );
    assert_eq!(
        host.text("/swap").await,
        r#"((Ok(Some("1")), Ok(Some("1"))), true, true, Ok(Some("4")), Ok(7))"#
    );
}

#[tokio::test]
async fn an_instance_swaps_as_often_as_in_spin() {
    let host = start();
    let refused = r#"(256, Some(Error::Other("too many compare_and_swaps opened")))"#;
    assert_eq!(host.text("/swap/300").await, refused);
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
        // For what is on a schedule alone.
        "http://app.behalf.internal/served",
    ] {
        assert_eq!(host.sends(to).await, denied, "{to}");
    }
    let log = host.log_with("https://127.0.0.2");
    let line = "WARN  component web may not reach http://denied.test:81; if it should, add \"http://denied.test:81\" to \
                allowed_outbound_hosts of [component.web]\n";
    assert_eq!(log.matches(line).count(), 1, "{log}");
    assert!(!log.contains("secret"), "{log}");

    assert_eq!(
        host.sends("http://127.0.0.1:1/").await.1,
        "ErrorCode::ConnectionRefused"
    );
    assert_eq!(
        host.sends_within(&upstream.uri("/sleep/5000"), 300).await.1,
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

/// As behind a firewall that forgets a connection: nobody is told that it is of no use any more.
#[tokio::test]
async fn a_dead_connection_to_others_is_not_used_for_ever() {
    let authority = harness::Authority::new();
    let relay = harness::Relay::new(authority.serve("localhost").await).await;
    let setup = Setup::new(&manifest().replace("http://127.0.0.1:*", "https://localhost:*"));
    std::fs::write(setup.folder.path().join("ca.pem"), &authority.pem).unwrap();
    let host = setup.arg(&["--outbound-ca", "ca.pem"]).start();
    let url = format!("https://localhost:{}/", relay.port);
    assert_eq!(host.sends(&url).await.0, StatusCode::OK);
    relay.fall_silent();
    let end = Instant::now() + Duration::from_mins(1);
    while host.sends_within(&url, 300).await.0 != StatusCode::OK {
        assert!(Instant::now() < end, "it is still used");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The connections of this machine to `port` for which a timer runs that is no retransmission: that of keep-alive
/// (Linux, `Documentation/networking/proc_net_tcp.rst`).
fn kept_alive(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table
        .lines()
        .map(|row| row.split_whitespace().collect::<Vec<_>>());
    let is_kept = |row: &Vec<&str>| {
        row[2].ends_with(&format!(":{port:04X}")) && row[3] == "01" && row[5].starts_with("02:")
    };
    rows.skip(1).filter(is_kept).count()
}

#[tokio::test]
async fn an_idle_connection_to_others_is_probed() {
    let (upstream, host) = (start(), start());
    let port = upstream.url.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(kept_alive(port), 0);
    assert_eq!(host.sends(&upstream.uri("/served")).await.0, StatusCode::OK);
    assert_eq!(kept_alive(port), 1);
}

#[tokio::test]
async fn encrypted_requests_to_others_go_through_the_proxy_of_the_environment() {
    let authority = harness::Authority::new();
    let server = authority.serve("upstream.test").await;
    let (proxy, mut asked) = harness::proxy().await;
    let (upstream, url) = (start(), format!("https://upstream.test:{server}/"));
    let more = "\"https://upstream.test:*\", \"http://127.0.0.1:*\"";
    let setup = |password: &str| {
        let setup = Setup::new(&manifest().replace("\"http://127.0.0.1:*\"", more));
        std::fs::write(setup.folder.path().join("ca.pem"), &authority.pem).unwrap();
        let proxy = format!("http://user:{password}@127.0.0.1:{proxy}");
        setup
            .arg(&["--outbound-ca", "ca.pem"])
            .env("HTTPS_PROXY", &proxy)
    };
    let host = setup("secret").start();
    let (status, text) = host.sends(&url).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let line = format!("CONNECT upstream.test:{server} HTTP/1.1");
    assert_eq!(asked.recv().await.unwrap(), line);
    // Others are not asked for what may not be asked, and what is in clear goes its own way.
    assert_eq!(
        host.sends("https://denied.test/").await.1,
        "ErrorCode::HttpRequestDenied"
    );
    assert_eq!(host.sends(&upstream.uri("/served")).await.0, StatusCode::OK);
    assert!(asked.try_recv().is_err());

    let host = setup("secret")
        .env("NO_PROXY", "localhost,.upstream.test")
        .start();
    let answer = host.sends(&url).await.1;
    assert!(answer.starts_with("ErrorCode::DnsError"), "{answer}");
    assert!(asked.try_recv().is_err());

    let host = setup("canary").start();
    assert_eq!(
        host.sends(&url).await.1,
        "ErrorCode::DestinationUnavailable"
    );
    let log =
        host.log_with("(HTTPS_PROXY) cannot be used: tunnel error: proxy authorization required");
    assert!(!log.contains("canary"), "{log}");

    let setup = Setup::new(&manifest()).env("HTTPS_PROXY", "ftp://user:canary@proxy.test");
    let (code, log) = setup.fails();
    assert_eq!(code, Some(2));
    assert!(
        log.contains("behalf: HTTPS_PROXY of the environment is no proxy"),
        "{log}"
    );
    assert!(!log.contains("canary"), "{log}");
}

#[tokio::test]
async fn an_authority_of_the_operators_is_trusted_besides() {
    let authority = harness::Authority::new();
    let port = authority.serve("localhost").await;
    let setup = Setup::new(&manifest().replace("http://127.0.0.1:*", "https://localhost:*"));
    std::fs::write(setup.folder.path().join("ca.pem"), &authority.pem).unwrap();
    let host = setup.arg(&["--outbound-ca", "ca.pem"]).start();
    let (status, text) = host.sends(&format!("https://localhost:{port}/")).await;
    assert_eq!(status, StatusCode::OK, "{text}");

    for (text, reason) in [
        (None, "cannot read certificates"),
        (Some("x"), "holds no certificate"),
    ] {
        let setup = Setup::new(&manifest());
        if let Some(text) = text {
            std::fs::write(setup.folder.path().join("ca.pem"), text).unwrap();
        }
        let (code, log) = setup.arg(&["--outbound-ca", "ca.pem"]).fails();
        assert_eq!(code, Some(2));
        assert!(log.contains(&format!("behalf: ca.pem: {reason}")), "{log}");
    }
}

#[tokio::test]
async fn https_is_served_and_http_2_agreed_on() {
    let authority = harness::Authority::new();
    let setup = Setup::new(&manifest());
    authority.write(setup.folder.path(), "localhost");
    let host = setup
        .arg(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"])
        .start();
    let address = host.url.strip_prefix("https://").unwrap().to_owned();
    for (protocol, version) in [("h2", "HTTP/2"), ("http/1.1", "HTTP/1.1")] {
        let text = authority.ask(&address, protocol, "/headers").await;
        let url = format!("spin-full-url: https://{address}/headers\n");
        assert!(text.contains(&url), "{version}: {text}");
    }

    let setup = Setup::new(&manifest());
    authority.write(setup.folder.path(), "localhost");
    std::fs::rename(
        setup.folder.path().join("cert.pem"),
        setup.folder.path().join("key.pem"),
    )
    .unwrap();
    authority.write(setup.folder.path(), "localhost");
    let (code, log) = setup
        .arg(&["--tls-cert", "key.pem", "--tls-key", "cert.pem"])
        .fails();
    assert_eq!(code, Some(2), "{log}");
    assert!(
        log.contains("behalf: key.pem: holds no certificate"),
        "{log}"
    );
}

#[tokio::test]
async fn http_2_is_spoken_in_clear_with_who_begins_so() {
    let host = start();
    let client = http_2();
    let requests = (0..20).map(|_| client.get(host.uri("/headers").parse().unwrap()));
    for response in futures_util::future::join_all(requests).await {
        let response = response.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(
            text.contains(&format!("spin-full-url: {}/headers\n", host.url)),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_head_has_a_limit() {
    let host = start();
    for (name, count, length) in [("one", 1, 200_000), ("many", 200, 1)] {
        let mut request = Request::get(host.uri("/headers"));
        for index in 0..count {
            request = request.header(format!("x-{name}-{index}"), "x".repeat(length));
        }
        let response = host.send(request.body(Bytes::new()).unwrap()).await;
        assert_eq!(
            response.status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "{name}"
        );
    }
    let request = Request::get(host.uri("/headers")).header("x", "x".repeat(30_000));
    let response = host.send(request.body(Bytes::new()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);

    let client = http_2();
    for (length, status) in [(100_000, 431), (30_000, 200)] {
        let request = Request::get(host.uri("/headers")).header("x", "x".repeat(length));
        let request = request.body(http_body_util::Full::default()).unwrap();
        assert_eq!(client.request(request).await.unwrap().status(), status);
    }
}

/// The component answers at once and reads nothing, as it does when a body is too long.
#[tokio::test]
async fn an_answer_reaches_who_is_still_sending() {
    let host = start();
    let megabytes = http_body_util::Full::new(Bytes::from(vec![b'x'; 20 << 20]));
    for is_http2 in [false, true] {
        let client: hyper_util::client::legacy::Client<_, http_body_util::Full<Bytes>> =
            hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
                .http2_only(is_http2)
                .build_http();
        for _ in 0..10 {
            let request = Request::post(host.uri("/served")).body(megabytes.clone());
            let response = client.request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            response.into_body().collect().await.unwrap();
        }
    }
}

#[tokio::test]
async fn thousands_of_idle_and_slow_connections_stop_nobody() {
    // As many as this process may open, which takes part in the limit; 5,000 where that is allowed.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let most = limit
        .current
        .map_or(5000, |most| most.saturating_sub(200).min(5000));
    let most = usize::try_from(most).unwrap();
    let host = Setup::new(&manifest())
        .arg(&["--max-instances", "1000", "--max-requests", "10000"])
        .start();
    let address = host.url.strip_prefix("http://").unwrap();
    let idle: &[&[u8]] = &[b"", b"GET / HT", b"PRI * HT"];
    let slow: &[&[u8]] = &[b"GET /sleep/600000 HTTP/1.1\r\nhost: x\r\n\r\n"];
    for begun in [idle, slow] {
        let mut connections = Vec::new();
        for begun in begun.iter().cycle().take(most) {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.writable().await.unwrap();
            assert_eq!(stream.try_write(begun).unwrap_or(0), begun.len());
            connections.push(stream);
        }
        for _ in 0..20 {
            host.text("/served").await;
        }
    }
}

/// Time that a process and its children took of the processors so far, in hundredths of a second.
fn processor_time(id: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // Behind the name, which may hold anything: utime and stime are the 12th and 13th from there (proc_pid_stat(5)).
    let fields: Vec<_> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// HTTP/2 begins with a P, and so does POST: it cannot be told yet which it is.
#[tokio::test]
async fn a_connection_that_says_one_byte_takes_no_time_of_the_processor() {
    let host = start();
    let mut connections = Vec::new();
    for _ in 0..900 {
        connections.push(host.connect(b"P").await);
    }
    let before = processor_time(host.id());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let with_clients = processor_time(host.id()) - before;
    connections.clear();
    host.text("/served").await;
    let before = processor_time(host.id());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let without = processor_time(host.id()) - before;
    assert!(
        with_clients < 20 && without < 20,
        "{with_clients}, {without}"
    );
}

#[tokio::test]
async fn a_client_that_closes_its_side_after_its_request_gets_its_answer() {
    let host = start();
    let mut stream = host
        .connect(b"GET /sleep/300 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
    assert!(heard.contains("slept"), "{heard}");
}

/// As probes of load balancers do, without a Host header.
#[tokio::test]
async fn a_request_names_its_host_once_or_is_of_http_1_0() {
    let host = start();
    let heard = host.exchange("GET /headers HTTP/1.0\r\n\r\n").await;
    assert!(heard.starts_with("HTTP/1.0 200 "), "{heard}");
    let url = format!("spin-full-url: {}/headers\n", host.url);
    assert!(heard.contains(&url), "{heard}");
    for headers in ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n"] {
        let request = format!("GET /headers HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
        let heard = host.exchange(&request).await;
        assert!(heard.starts_with("HTTP/1.1 400 "), "{headers}: {heard}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_as_long_as_is_said() {
    let request = b"GET /served HTTP/1.1\r\nhost: h\r\n\r\n";
    let patient = start();
    let mut kept = patient.connect(request).await;
    let host = Setup::new(&manifest())
        .arg(&["--keep-alive-timeout", "1s"])
        .start();
    let mut heard = String::new();
    let mut stream = host.connect(request).await;
    stream.read_to_string(&mut heard).await.unwrap();
    assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");

    kept.write_all(request).await.unwrap();
    kept.shutdown().await.unwrap();
    let mut heard = String::new();
    kept.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard.matches("HTTP/1.1 200 ").count(), 2, "{heard}");
}

#[tokio::test]
async fn connections_without_a_request_give_way_and_no_more_than_allowed_stay() {
    let host = Setup::new(&manifest())
        .arg(&["--max-connections", "10"])
        .start();
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(host.connect(b"").await);
    }
    let ended = silent.iter_mut().map(async |stream| {
        let ended = tokio::time::timeout(Duration::from_secs(1), stream.read_u8());
        ended.await.is_ok()
    });
    let ended = futures_util::future::join_all(ended).await;
    assert_eq!(ended.iter().filter(|it| **it).count(), 20);
    host.text("/served").await;

    let mut working = Vec::new();
    for _ in 0..10 {
        let request = b"GET /sleep/10000 HTTP/1.1\r\nhost: h\r\n\r\n";
        working.push(host.connect(request).await);
    }
    // Until all of them are at work, others may come in at the cost of one that is not.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = host
        .exchange("GET /served HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(refused, "");
    let answer = working.pop().unwrap().read_u8().await;
    assert_eq!(answer.unwrap(), b'H');
    host.text("/served").await;
}

#[tokio::test]
async fn at_the_limit_of_open_files_connections_are_shed_and_others_answered() {
    for more in [&[][..], &["--max-connections", "1000"]] {
        let host = Setup::new(&manifest()).open_files(64).arg(more).start();
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(host.connect(b"").await);
        }
        for _ in 0..5 {
            host.text("/served").await;
        }
    }
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_does_not_keep_it_in_hand() {
    let host = Setup::new(&manifest())
        .arg(&["--max-requests", "2", "--write-timeout", "3s"])
        .start();
    let stalled = host
        .connect(b"GET /flood/50 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    let client = http_2();
    let response = client.get(host.uri("/flood/50").parse().unwrap());
    let also_stalled = response.await.unwrap();
    // Until both are dropped, there is room for none but them.
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let both = tokio::join!(host.get("/sleep/100"), host.get("/sleep/100"));
        if both.0.0 == StatusCode::OK && both.1.0 == StatusCode::OK {
            break;
        }
        assert!(Instant::now() < end, "they are still in hand");
    }
    let rest = also_stalled.into_body().collect().await;
    assert!(rest.is_err(), "what is dropped does not look whole");
    drop(stalled);

    // Who takes a little now and then goes on.
    let mut slow = host
        .connect(b"GET /flood/8 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        .await;
    let mut heard = Vec::new();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let mut part = (&mut slow).take(800_000);
        part.read_to_end(&mut heard).await.unwrap();
    }
    slow.read_to_end(&mut heard).await.unwrap();
    assert!(heard.ends_with(b"\r\n0\r\n\r\n"));
    assert!(heard.len() > 8 << 20);
}

#[tokio::test]
async fn requests_wait_for_a_place_in_the_pool() {
    let host = Setup::new(&manifest())
        .arg(&[
            "--max-instances",
            "2",
            "--max-instance-concurrent-reuse-count",
            "1",
        ])
        .start();
    let requests = (0..12).map(|_| host.text("/sleep/50"));
    let answers = futures_util::future::join_all(requests).await;
    assert!(answers.iter().all(|text| text == "slept"));
}

/// However long it might have waited for a request.
#[tokio::test]
async fn an_idle_instance_leaves_its_place_to_one_that_is_wanted() {
    let host = Setup::new(&manifest())
        .arg(&[
            "--max-instances",
            "1",
            "--max-instance-concurrent-reuse-count",
            "1",
            "--idle-instance-timeout",
            "3600s",
        ])
        .start();
    let requests = (0..4).map(|_| host.text("/sleep/50"));
    let answers = futures_util::future::join_all(requests).await;
    assert!(answers.iter().all(|text| text == "slept"));
}

/// A request that came while the only instance computed is its as soon as it has time, although it has others in hand.
#[tokio::test]
async fn whatever_place_comes_free_first_is_for_who_waits() {
    let host = Setup::new(&manifest())
        .arg(&["--max-instances", "1"])
        .start();
    let slept = std::pin::pin!(host.text("/sleep/10000"));
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let computed = host.text("/compute/1000");
        let waited = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            host.text("/served").await
        };
        futures_util::join!(computed, waited)
    };
    let others = std::pin::pin!(others);
    let first = futures_util::future::select(slept, others).await;
    let others_first = matches!(first, futures_util::future::Either::Right(_));
    assert!(others_first, "it waited for the end of another's");
}

#[tokio::test]
async fn beyond_the_requests_in_hand_others_are_refused_at_once() {
    let host = Setup::new(&manifest())
        .arg(&["--max-requests", "3"])
        .start();
    // A short one may have had the last place for a moment.
    let sleep = async || loop {
        let (status, text) = host.get("/sleep/3000").await;
        if status == StatusCode::OK {
            return text;
        }
    };
    let mut long: Vec<_> = (0..3).map(|_| Box::pin(sleep())).collect();
    let refused = async {
        loop {
            let request = Request::get(host.uri("/served")).body(Bytes::new());
            let response = host.send(request.unwrap()).await;
            if response.status() != StatusCode::OK {
                return response;
            }
        }
    };
    let all = futures_util::future::join_all(long.iter_mut());
    let (response, all) = match futures_util::future::select(all, Box::pin(refused)).await {
        futures_util::future::Either::Right(both) => both,
        futures_util::future::Either::Left(_) => panic!("nothing was refused"),
    };
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(host.text("/.well-known/spin/health").await, "OK");
    assert_eq!(all.await, ["slept", "slept", "slept"]);
    host.text("/served").await;
}

#[tokio::test]
async fn ticks_leave_room_for_requests() {
    let host = ticking("wait").arg(&["--max-instances", "2"]).start();
    host.log_with("web: begins\n");
    tokio::time::sleep(Duration::from_secs(3)).await;
    host.text("/served").await;
}

#[tokio::test]
async fn a_pool_that_there_is_no_room_for_is_told() {
    let host = Setup::new(&manifest())
        .arg(&["--max-instances", "100000"])
        .start();
    host.text("/served").await;
    host.log_with("--max-instances");
}

#[tokio::test]
async fn values_come_from_the_command_line_and_from_files() {
    let setup = Setup::new(&manifest()).env("SPIN_VARIABLE_GREETING", "no");
    let file = setup.folder.path().join("greeting");
    std::fs::write(&file, "one\n").unwrap();
    let host = setup.arg(&["--variable-file", "greeting=greeting"]).start();
    assert_eq!(host.text("/variable/greeting").await, r#"Ok("<one>")"#);
    std::fs::write(&file, "two").unwrap();
    assert_eq!(host.text("/variable/greeting").await, r#"Ok("<two>")"#);

    let setup = Setup::new(&manifest()).env("SPIN_VARIABLE_GREETING", "no");
    let host = setup.arg(&["--variable", "greeting=a=b"]).start();
    assert_eq!(host.text("/variable/greeting").await, r#"Ok("<a=b>")"#);

    for (argument, message) in [
        (
            ["--variable", "nobody=x"],
            "the variable nobody of the command line is not in [variables] of the manifest",
        ),
        (
            ["--variable-file", "greeting=none"],
            "the variable greeting cannot be read from none: entity not found",
        ),
    ] {
        let (code, log) = Setup::new(&manifest()).arg(&argument).fails();
        assert_eq!(code, Some(2), "{log}");
        assert!(log.ends_with(&format!("behalf: {message}\n")), "{log}");
    }
}

#[test]
fn a_check_serves_nothing() {
    let check = |setup: Setup| setup.command("check").fails();
    let setup = Setup::new(&manifest());
    let (code, log) = check(Setup::new(&manifest()));
    assert_eq!(code, Some(0), "{log}");
    assert!(log.ends_with("all is well\n"), "{log}");
    assert!(!setup.folder.path().join(".spin").exists());
    let problem = |text| Setup::new(&manifest()).env("SPIN_VARIABLE_PROBLEM", text);
    for (setup, lines) in [
        (problem("the setting `x` is wrong"), 1),
        (
            problem("the setting `x` is wrong\nthe setting `y` is, too"),
            2,
        ),
        (
            Setup::new(&manifest().replace("key_value_stores", "files")),
            1,
        ),
        (Setup::new(&manifest().replace(".wasm", ".wusm")), 1),
    ] {
        let (code, log) = check(setup);
        assert_eq!(code, Some(2), "{log}");
        assert_eq!(log.matches("behalf: ").count(), lines, "{log}");
    }
}

#[test]
fn an_environment_variable_that_sets_nothing_is_told() {
    let setup = Setup::new(&manifest()).env("SPIN_VARIABLE_GREETNG", "canary");
    let (code, log) = setup.command("check").fails();
    assert_eq!(code, Some(0), "{log}");
    let told = "WARN  SPIN_VARIABLE_GREETNG sets nothing: [variables] of the manifest has no such name; is it SPIN_VARIABLE_GREETING?\n";
    assert!(log.contains(told) && !log.contains("canary"), "{log}");
}

#[tokio::test]
async fn lines_can_be_json() {
    let host = Setup::new(&manifest())
        .arg(&["--log-format", "json"])
        .start();
    host.text("/print").await;
    let log = host.log_with("to standard error");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            line["time"].is_string() && line["level"] == "info",
            "{line}"
        );
    }
    let printed = r#""component":"web""#;
    assert!(log.contains(printed), "{log}");
}

/// The lines about requests, in JSON.
fn requests(log: &str) -> Vec<serde_json::Value> {
    let lines = log.lines().map(|it| serde_json::from_str(it).unwrap());
    lines
        .filter(|it: &serde_json::Value| it["message"] == "request")
        .collect()
}

#[tokio::test]
async fn each_request_is_a_line_that_tells_no_secret() {
    let host = Setup::new(&manifest().replace("/...", "/:what/..."))
        .arg(&["--log-format", "json"])
        .start();
    let request = Request::get(host.uri("/headers/canary?canary"))
        .header("authorization", "Bearer canary")
        .header("x-request-id", "proxy.1")
        .body(Bytes::new());
    let response = host.send(request.unwrap()).await;
    assert_eq!(response.headers()["x-request-id"], "proxy.1");
    host.text("/sized").await;
    assert_eq!(host.get("/empty").await.0, StatusCode::NO_CONTENT);
    let request = Request::post(host.uri("/echo"))
        .header("x-request-id", "not one")
        .body(Bytes::from("canary"));
    let response = host.send(request.unwrap()).await;
    let id = response.headers()["x-request-id"].clone();
    assert!(id.len() == 36 && id != "not one", "{id:?}");
    response.into_body().collect().await.unwrap();
    host.get("/error").await;
    host.exchange("CANARY /served HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n")
        .await;
    let half = Request::get(host.uri("/half")).body(Bytes::new());
    let half = host.send(half.unwrap()).await.into_body().collect().await;
    assert!(half.is_err());
    let log = host.log_with_times(r#""message":"request""#, 7);
    assert!(!log.contains("canary") && !log.contains("CANARY"), "{log}");
    let lines = requests(&log);
    // A line is written once the answer has been handed over: the next request's line may come before it.
    let mut told: Vec<_> = lines
        .iter()
        .map(|it| {
            (
                it["status"].as_u64(),
                it["method"].as_str(),
                it["route"].as_str(),
                it["reason"].as_str(),
            )
        })
        .collect();
    told.sort_unstable();
    let route = Some("/:what/...");
    let twice = Some("There is more than one Host header.");
    assert_eq!(
        told,
        [
            (Some(200), Some("GET"), route, None),
            (Some(200), Some("GET"), route, Some("its answer broke off")),
            (Some(200), Some("POST"), route, None),
            (Some(204), Some("GET"), route, None),
            (Some(400), Some("other"), Some("none"), twice),
            (Some(404), Some("GET"), route, None),
            (Some(500), Some("GET"), route, None),
        ]
    );
    let id_of = |status: u16, method| {
        let mut found = lines.iter();
        let line = found.find(|it| it["status"] == status && it["method"] == method);
        line.unwrap()["request_id"].clone()
    };
    assert_eq!(id_of(404, "GET"), "proxy.1");
    assert_eq!(id_of(200, "POST"), id.to_str().unwrap());
    assert!(
        lines
            .iter()
            .all(|it| it["milliseconds"].is_number() && it["level"] == "info")
    );
    // The host's other lines about a request have its id, too.
    let failed = log.lines().find(|it| it.contains("InternalError")).unwrap();
    let failed: serde_json::Value = serde_json::from_str(failed).unwrap();
    assert_eq!(failed["request_id"], id_of(500, "GET"));
}

#[tokio::test]
async fn what_is_refused_is_a_line() {
    let host = Setup::new(&manifest())
        .arg(&["--max-requests", "1"])
        .start();
    let (_, refused) = tokio::join!(host.get("/sleep/4000"), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.get("/served").await
    });
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE);
    host.log_with("reason=\"--max-requests are in hand\" route=none status=503 request_id=");
    host.exchange("what is this\r\n\r\n").await;
    host.log_with("refused a request: it is no HTTP status=400");
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    host.exchange(&head).await;
    host.log_with("refused a request: its head is too large status=431");
}

#[tokio::test]
async fn how_much_is_said_can_be_chosen() {
    let host = Setup::new(&manifest())
        .arg(&["--log-level", "warn"])
        .start();
    host.text("/print").await;
    host.get("/error").await;
    let log = host.log_with("InternalError");
    assert!(
        !log.contains("INFO  r") && log.contains("WARN  component web returned"),
        "{log}"
    );
    assert!(
        log.contains("web: to standard error"),
        "what a component says is its own: {log}"
    );

    let host = Setup::new(&manifest())
        .arg(&["--log-level", "debug", "--max-instance-reuse-count", "1"])
        .start();
    for number in 1..=3 {
        host.text("/served").await;
        host.log_with(&format!(
            "component web: an instance started ({number} so far)"
        ));
    }
}

/// With a length in the head, whoever asked has the whole answer and asks again before the instance is done with it.
#[tokio::test]
async fn what_is_left_of_a_request_is_done_however_many_more_wait() {
    let host = Setup::new(&manifest())
        .arg(&["--max-instances", "1"])
        .start();
    let request =
        |connection| format!("GET /left HTTP/1.1\r\nhost: a\r\nconnection: {connection}\r\n\r\n");
    let requests = format!("{}{}", request("keep-alive").repeat(31), request("close"));
    let connections = (0..64).map(|_| host.exchange(&requests));
    let answers = futures_util::future::join_all(connections).await.concat();
    let left: Vec<u32> = answers
        .lines()
        .filter_map(|line| line.strip_suffix(" left")?.parse().ok())
        .collect();
    assert_eq!(left.len(), 64 * 32);
    assert!(left.iter().all(|left| *left < 64), "{left:?}");
}

/// As a log collector does that has hung: it costs lines of the host, which are counted, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stalls_stops_nobody() {
    let mut host = Setup::new(&manifest()).unread().start();
    let text = "x".repeat(1000);
    for _ in 0..60 {
        let requests = (0..100).map(|_| {
            let request = Request::get(host.uri("/served")).header("x-request-id", &text[..64]);
            host.send(request.body(Bytes::new()).unwrap())
        });
        for response in futures_util::future::join_all(requests).await {
            assert_eq!(response.status(), StatusCode::OK);
        }
    }
    // Lines of components wait for room, and are not lost. There is half of it for them alone.
    assert_eq!(host.text("/print").await, "");
    host.read_log();
    let log = host.log_with("web: first half, second half\n");
    assert!(log.contains("lines were dropped"), "{log}");
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_components_wait_for_a_reader_for_as_long_as_a_request_may_take() {
    let host = Setup::new(&manifest())
        .unread()
        .arg(&["--request-timeout", "1s"])
        .start();
    // A megabyte waits in the host, and some more in the pipe.
    let mut answers = Vec::new();
    while answers.len() < 200 && answers.last().is_none_or(|it| *it == StatusCode::OK) {
        answers.push(host.get("/say/10000").await.0);
    }
    assert!(answers.len() > 100, "there is room for a megabyte");
    let refused = answers.last();
    assert_eq!(refused, Some(&StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(host.get("/served").await.0, StatusCode::OK);

    let mut host = Setup::new(&manifest()).unread().start();
    let mut waiting = Vec::new();
    for _ in 0..200 {
        waiting.push(
            host.connect(b"GET /say/10000 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
                .await,
        );
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    host.read_log();
    for mut stream in waiting {
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
    }
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
    let said = host.log().matches("web: xxx").count();
    assert_eq!(said, 200, "none is lost");
}

#[tokio::test]
async fn a_stop_waits_for_no_reader_of_the_log() {
    let mut host = Setup::new(&manifest())
        .unread()
        .arg(&["--grace", "1s"])
        .start();
    for _ in 0..400 {
        let mut stream = host
            .connect(b"GET /say/10000 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            .await;
        let answered = tokio::time::timeout(Duration::from_millis(300), stream.read_u8());
        if answered.await.is_err() {
            break;
        }
    }
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
}

#[tokio::test]
async fn a_compiled_component_is_kept_for_the_next_start() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("compiled");
    let start = || {
        Setup::new(&manifest())
            .arg(&["--cache-dir", folder.to_str().unwrap()])
            .start()
    };
    let files = || std::fs::read_dir(&folder).unwrap().count();
    start().text("/served").await;
    assert_eq!(files(), 1);
    start().text("/served").await;
    assert_eq!(files(), 1);

    // A disk that has lost a block of it: nothing of that is run.
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap();
    let file = file.unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    let (from, to) = (4096, whole.len() - 4096);
    damaged[from..to].fill(0xcc);
    std::fs::write(&file, damaged).unwrap();
    start().text("/served").await;
    assert_eq!(std::fs::read(&file).unwrap(), whole, "it was made anew");

    // A volume that Kubernetes has made a group's (fsGroup).
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o2770)).unwrap();
    let line = format!(
        "components are compiled at every start: {} belongs to another user, or others can write there (mode 2770);",
        folder.display()
    );
    start().log_with(&line);
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
    assert!(!host.log().contains("WARN"), "{}", host.log());
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

/// Asks again and again on one connection as long as that is kept, then on another. Returns how many answers there were
/// before a new connection was of no use any more; anything else that goes wrong is a failed test.
async fn keep_asking(address: String) -> u32 {
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    let mut answers = 0;
    while let Ok(stream) = tokio::net::TcpStream::connect(&address).await {
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let before = answers;
        loop {
            let request = Request::get("/sleep/5").header("host", &address);
            let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
            let response = match send.send_request(request).await {
                Ok(response) => response,
                // The system let it in when the host had closed.
                Err(_) if answers == before => return answers,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(response.status(), StatusCode::OK);
            let is_last = response.headers().get("connection").is_some();
            response.into_body().collect().await.unwrap();
            answers += 1;
            if is_last {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_leaves_resets_nobody() {
    let mut host = Setup::new(&manifest())
        .arg(&["--lame-duck", "3s", "--ready-path", "/served"])
        .start();
    host.text("/served").await;
    let address = host.url.strip_prefix("http://").unwrap().to_owned();
    let clients: Vec<_> = (0..16)
        .map(|_| tokio::spawn(keep_asking(address.clone())))
        .collect();
    let client = http_2();
    let uri = || host.uri("/headers").parse().unwrap();
    client.get(uri()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    host.signal("TERM");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let probe = "GET /served?x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let ready = host.exchange(probe).await;
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    // On another connection: the one before has been given up.
    assert_eq!(client.get(uri()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(host.text("/sleep/1").await, "slept");
    for client in clients {
        assert!(client.await.unwrap() > 10);
    }
    drop(client);
    assert_eq!(host.ended(), Some(0));
    assert!(!host.log().contains("stopped before"), "{}", host.log());
}

#[tokio::test]
async fn what_takes_longer_than_the_grace_is_given_up() {
    let mut host = Setup::new(&manifest()).arg(&["--grace", "500ms"]).start();
    let _hanging = host
        .connect(b"GET /sleep/60000 HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
    let log = host.log();
    let line =
        "stopped before 2 connections and instances had finished, after the 500ms of --grace";
    assert!(log.contains(line), "{log}");
}

#[tokio::test]
async fn a_certificate_that_changes_is_served_without_a_restart() {
    let (one, two, three) = (
        harness::Authority::new(),
        harness::Authority::new(),
        harness::Authority::new(),
    );
    let setup = Setup::new(&manifest());
    one.write(setup.folder.path(), "localhost");
    let host = setup
        .arg(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"])
        .start();
    let folder = host.setup.folder.path();
    let address = host.url.strip_prefix("https://").unwrap().to_owned();
    one.ask(&address, "h2", "/served").await;

    two.write(folder, "localhost");
    host.signal("HUP");
    host.log_with("the certificate was read again");
    two.ask(&address, "h2", "/served").await;

    // One that is of no use changes nothing.
    std::fs::write(folder.join("cert.pem"), "half of a").unwrap();
    host.signal("HUP");
    let log = host.log_with("stays in use");
    assert!(log.contains("cert.pem: "), "{log}");
    two.ask(&address, "http/1.1", "/served").await;

    // Without a word, sooner or later.
    three.write(folder, "localhost");
    host.log_with_times("the certificate was read again", 2);
    three.ask(&address, "h2", "/served").await;
}

/// Without HTTPS there is nothing to read again, and no reason to end.
#[tokio::test]
async fn a_hang_up_ends_nothing() {
    let host = start();
    host.signal("HUP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.text("/served").await;
}

#[tokio::test]
async fn systemd_is_told_how_the_host_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let mut host = Setup::new(&manifest())
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .start();
    let said = async || {
        let mut buffer = [0; 100];
        let said = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer));
        let length = said.await.unwrap().unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(said().await, "READY=1");
    host.signal("TERM");
    assert_eq!(said().await, "STOPPING=1");
    assert_eq!(host.ended(), Some(0));
}

#[tokio::test]
async fn a_healthcheck_tells_whether_a_host_answers() {
    let check = |address: &str, more: &[&str]| {
        let setup = Setup::new("").command("healthcheck");
        setup.arg(&["--listen", address]).arg(more).fails()
    };
    let mut host = start();
    let address = host.url.strip_prefix("http://").unwrap().to_owned();
    let port = address.rsplit(':').next().unwrap().to_owned();
    assert_eq!(check(&address, &[]), (Some(0), String::new()));
    assert_eq!(check(&format!("0.0.0.0:{port}"), &[]).0, Some(0));
    assert_eq!(check(&address, &["--path", "/served"]).0, Some(0));
    let (code, log) = check(&address, &["--path", "/nowhere"]);
    let message = "behalf: the answer was 404 Not Found\n";
    assert_eq!((code, log.as_str()), (Some(1), message));
    let (code, log) = check(&address, &["--path", "/sleep/60000", "--timeout", "200ms"]);
    assert_eq!(code, Some(1));
    assert!(log.contains("no answer within the 200ms"), "{log}");
    host.signal("INT");
    host.ended();
    let (code, log) = check(&address, &[]);
    assert_eq!(code, Some(1));
    assert!(
        log.contains(&format!("behalf: {address} does not answer")),
        "{log}"
    );

    let authority = harness::Authority::new();
    let setup = Setup::new(&manifest());
    authority.write(setup.folder.path(), "app.example");
    let host = setup
        .arg(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"])
        .start();
    let address = host.url.strip_prefix("https://").unwrap();
    let folder = host.setup.folder.path();
    let certificate = folder.join("cert.pem");
    let with = ["--tls-cert", certificate.to_str().unwrap()];
    assert_eq!(check(address, &with), (Some(0), String::new()));
    authority.write(folder, "app.example");
    let (code, log) = check(address, &with);
    assert_eq!(code, Some(1), "{log}");
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

/// A component for a schedule, whose start traps.
const BROKEN: &str = r#"
    (component
        (import "fermyon:spin-cron/cron-types@2.0.0" (instance $types
            (type $metadata (record (field "timestamp" u64)))
            (export "metadata" (type (eq $metadata)))
            (type $error (variant (case "other" string)))
            (export "error" (type (eq $error)))))
        (alias export $types "metadata" (type $metadata))
        (alias export $types "error" (type $error))
        (core module $broken
            (func $start unreachable)
            (start $start)
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "handle") (param i64) (result i32) unreachable))
        (core instance $broken (instantiate $broken))
        (func $handle (param "metadata" $metadata) (result (result (error $error)))
            (canon lift (core func $broken "handle") (memory (core memory $broken "memory"))
                (realloc (core func $broken "realloc"))))
        (export "handle-cron-event" (func $handle)))"#;

#[test]
fn every_component_is_instantiated_before_anything_is_served() {
    let component = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&component, wat::parse_str(BROKEN).unwrap()).unwrap();
    let more = format!(
        "[[trigger.cron]]\ncomponent = \"job\"\ncron_expression = \"0 0 0 1 1 *\"\n[component.job]\nsource = {:?}\n",
        component.path()
    );
    let manifest = manifest() + &more;
    for setup in [
        Setup::new(&manifest),
        Setup::new(&manifest).command("check"),
    ] {
        let (code, log) = setup.fails();
        let message = "behalf: component job cannot be instantiated: wasm trap: wasm `unreachable` instruction executed\n";
        assert_eq!(code, Some(2), "{log}");
        assert!(log.ends_with(message), "{log}");
    }
}

#[test]
fn a_check_asks_what_is_on_a_schedule() {
    for (tick, code, end) in [
        ("say", 0, "all is well\n"),
        (
            "fail",
            2,
            "behalf: component web, which is on a schedule: the guest fails\n",
        ),
        (
            "panic",
            2,
            "behalf: component web, which is on a schedule: wasm trap: wasm `unreachable` instruction executed\n",
        ),
    ] {
        let (actual, log) = ticking(tick).command("check").fails();
        assert_eq!(actual, Some(code), "{log}");
        assert!(log.ends_with(end), "{log}");
        assert!(
            !log.contains("web: "),
            "it is not the time to say it: {log}"
        );
    }
}

/// The guest on a schedule of every second, with the variable `tick`.
fn ticking(tick: &str) -> Setup {
    let trigger = "[[trigger.cron]]\ncomponent = \"web\"\ncron_expression = \"* * * * * *\"\n";
    let manifest = manifest().replace("[component.web]", &format!("{trigger}[component.web]"));
    Setup::new(&format!("{manifest}tick = \"{tick}\"\n"))
}

#[tokio::test]
async fn each_tick_has_an_instance_of_its_own() {
    let host = ticking("say").start();
    let log = host.log_with_times("web: tick 0\n", 2);
    assert!(!log.contains("tick 1"), "{log}");
    // The start asked for /healthz.
    assert_eq!(host.text("/served").await, "1", "requests have others");
}

#[tokio::test]
async fn a_tick_that_fails_or_traps_is_reported_and_the_next_comes() {
    for (tick, reason) in [
        ("fail", "the guest fails"),
        (
            "panic",
            "wasm trap: wasm `unreachable` instruction executed",
        ),
    ] {
        let host = ticking(tick).start();
        let line = format!("WARN  component web failed at a time of its schedule: {reason}\n");
        host.log_with_times(&line, 2);
        // The start asked for /healthz.
        assert_eq!(host.text("/served").await, "1");
    }
}

#[tokio::test]
async fn ticks_overlap_and_a_stop_gives_them_up() {
    let mut host = ticking("wait").start();
    host.log_with_times("web: begins\n", 2);
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
    assert!(!host.log().contains("WARN"), "{}", host.log());
}

#[tokio::test]
async fn a_schedule_alone_needs_no_address() {
    let trigger = "[[trigger.cron]]\ncomponent = \"web\"\ncron_expression = \"* * * * * *\"\n";
    let manifest = manifest();
    let (before, after) = manifest.split_once("[[trigger.http]]").unwrap();
    let (_, after) = after.split_once("[component.web]").unwrap();
    let manifest = format!("{before}{trigger}[component.web]{after}");
    let mut host = Setup::new(&manifest).start_without_address("web: tick 0\n");
    host.signal("TERM");
    assert_eq!(host.ended(), Some(0));
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
            "behalf: --component c: no trigger is for it; there is b, web\n"
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
        (
            Setup::new(&good.replace("trigger.http", "trigger.cron").replace("route = \"/...\"", "cron_expression = \"* * * * * *\"").replace(guest().to_str().unwrap(), no_handler.path().to_str().unwrap())),
            2,
            format!("component web: {} does not export handle-cron-event", no_handler.path().display()),
        ),
        (Setup::new(&good).arg(&["-f", "none.toml"]), 2, "none.toml: cannot read: No such file or directory (os error 2); name the manifest, or its folder, with -f".to_owned()),
        (Setup::new(&good).arg(&["--runtime-config-file", "none.toml"]), 2, "none.toml: cannot read: ".to_owned()),
        (Setup::new(&good).env("RUNTIME_CONFIG_FILE", "spin.toml"), 2, "spin.toml: this host has no [application], ".to_owned()),
        (Setup::new(&good).arg(&["--state-dir", "spin.toml"]), 1, "cannot open the key-value store /".to_owned()),
    ] {
        let (actual, log) = setup.fails();
        let last = log.lines().last().unwrap_or_default();
        assert_eq!(actual, Some(code), "{log}");
        assert!(last.starts_with(&format!("behalf: {message}")), "{message}\n{log}");
        assert_eq!(log.matches("behalf: ").count(), 1, "{log}");
        // No store, and nothing else that somebody would have to remove.
        let left: Vec<_> = std::fs::read_dir(setup.folder.path())
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        assert_eq!(left, ["spin.toml"], "{message}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let host = start();
    let address = host.url.strip_prefix("http://").unwrap();
    let (code, log) = Setup::new(&manifest())
        .command("up")
        .arg(&["--listen", address])
        .fails();
    let message = format!(
        "behalf: another program listens on {address}; stop it, or choose another address with --listen\n"
    );
    assert_eq!((code, log), (Some(1), message));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [
        &["--listen", "nonsense"][..],
        &["--request-timeout", "1x"],
        &["--nonsense"],
        &["--variable", "no-value"],
        &["--tls-cert", "cert.pem"],
        &["--max-instances", "0"],
    ] {
        let setup = Setup::new(&manifest()).command("up");
        let (code, log) = setup.arg(arguments).fails();
        assert_eq!(code, Some(2), "{log}");
    }
}
