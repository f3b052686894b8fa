//! Calls of APIs on real wasm, with an API that is a socket: so it is seen what reaches it, byte by byte, and it can answer what no
//! server does.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic is a failed test"
)]

mod streams;

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use runtime_tests::emulators::{Emulators, Options};
use runtime_tests::scene::Scene;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

type Result<T = ()> = anyhow::Result<T>;

const PATIENCE: Duration = Duration::from_mins(1);
/// What is read or written at once, in bytes.
const PART: usize = 64 * 1024;

/// The app, with an API that is this socket: `raw`, of which everything may be called. One instance serves it all.
async fn with_socket() -> Result<(Scene, TcpListener)> {
    let socket = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", socket.local_addr()?);
    let emulators = Emulators::start(Options::default()).await?;
    let front_end = emulators.options().front_end_id.clone();
    let every = ["GET /**", "POST /**", "PUT /**", "HEAD /**", "OPTIONS /**"];
    let apis = json!({"raw": {"url": origin, "scope": "https://graph.microsoft.com/.default", "allow": every}});
    let grants = json!([{"client": front_end, "callers": "delegated", "apis": ["raw"]}]);
    let options = runtime_tests::app::Options::for_emulators(&emulators)
        .set("apis", &apis.to_string())
        .set("api_origin_1", &origin)
        .set("grants", &grants.to_string())
        .one_instance();
    let app = runtime_tests::app::App::start(options).await?;
    let scene = Scene::of(emulators, app);
    scene.enrol().await?;
    Ok((scene, socket))
}

/// Sends the head of a request as it stands.
async fn begin(scene: &Scene, line: &str, headers: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(scene.app.address()).await?;
    let token = scene.emulators.caller().mint();
    let head =
        format!("{line} HTTP/1.1\r\nhost: app\r\nauthorization: Bearer {token}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// Reads up to the end of a head.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await??);
    }
    Ok(String::from_utf8(head)?)
}

/// All that comes until the connection ends, in any way.
async fn rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await?;
    Ok(rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reaches_the_api_and_what_comes_back_is_what_the_lists_say() -> Result {
    let (scene, socket) = with_socket().await?;
    let headers = "accept: text/plain\r\ncookie: a=b\r\nforwarded: for=192.0.2.1\r\nx-forwarded-host: evil\r\n\
        x-http-method-override: DELETE\r\nx-original-url: /x\r\ntraceparent: 00-1-2-01\r\nconnection: close\r\n";
    let mut caller = begin(&scene, "GET /v1/me/call/raw/a%2Db/c?d=%2e%2e", headers).await?;
    let (mut api, _) = socket.accept().await?;
    let asked = head(&mut api).await?.to_ascii_lowercase();
    assert!(
        asked.starts_with("get /a-b/c?d=%2e%2e http/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains("\r\nauthorization: bearer "), "{asked}");
    let caller_token = scene.emulators.caller().mint().to_ascii_lowercase();
    assert!(
        !asked.contains(&caller_token),
        "the caller's own token is not for the API"
    );
    assert!(
        asked.contains("\r\naccept: text/plain\r\n")
            && asked.contains("\r\ntraceparent: 00-1-2-01\r\n"),
        "{asked}"
    );
    for never in [
        "cookie",
        "forwarded",
        "x-http-method",
        "x-original-url",
        "transfer-encoding",
        "content-length",
    ] {
        assert!(!asked.contains(&format!("\r\n{never}")), "{never}: {asked}");
    }
    let answer = "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/\r\nset-cookie: a=b\r\nalt-svc: h3=\":1\"\r\n\
        access-control-allow-origin: *\r\nclear-site-data: \"*\"\r\ncache-control: public, max-age=9\r\ntrailer: x-end\r\n\
        transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-end: trailer-canary\r\n\r\n";
    api.write_all(answer.as_bytes()).await?;
    let answered = String::from_utf8(rest(&mut caller).await?)?.to_ascii_lowercase();
    assert!(answered.starts_with("http/1.1 302"), "{answered}");
    for (header, value) in [
        ("location", "https://elsewhere.example/"),
        ("behalf-upstream", "raw"),
        ("cache-control", "private, max-age=9"),
        ("vary", "authorization"),
    ] {
        assert!(
            answered.contains(&format!("\r\n{header}: {value}\r\n")),
            "{header}: {answered}"
        );
    }
    for never in [
        "set-cookie",
        "alt-svc",
        "access-control-",
        "clear-site-data",
        "x-end",
        "trailer",
    ] {
        assert!(!answered.contains(never), "{never}: {answered}");
    }
    assert!(answered.contains("hi"), "{answered}");
    drop(api);
    scene.end().await?;
    Ok(())
}

/// Each as it stands in the table: a client library would tidy it up.
#[tokio::test(flavor = "multi_thread")]
async fn every_attack_is_refused_before_the_network() -> Result {
    let (scene, socket) = with_socket().await?;
    scene.emulators.clear_journal();
    for line in include_str!("../../../src/core/vault/call/attacks.tsv").lines() {
        if line.starts_with('#') {
            continue;
        }
        let [defect, method, path] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let request = format!("{method} /v1/me/call/raw{path}");
        let mut caller = begin(&scene, &request, "connection: close\r\n").await?;
        let answered = String::from_utf8(rest(&mut caller).await?)?;
        // A host may refuse by itself what is no HTTP.
        let status = answered.get(9..12).unwrap_or_default();
        assert!(status.starts_with('4'), "{line}: {answered}");
        if !matches!(status, "400" | "405") {
            assert!(
                answered.contains(r#""code":"call_not_allowed""#),
                "{defect}: {line}: {answered}"
            );
        }
    }
    let none = timeout(Duration::from_millis(100), socket.accept()).await;
    assert!(none.is_err(), "nobody was called");
    assert!(
        scene.emulators.journal().is_empty(),
        "and nothing was drawn"
    );
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_or_breaks_off_is_told_so() -> Result {
    let (scene, socket) = with_socket().await?;
    let call = || scene.call(Method::GET, "/v1/me/call/raw/x");
    // No HTTP.
    let (answer, ()) = tokio::join!(call(), async {
        let (mut api, _) = socket.accept().await.unwrap();
        head(&mut api).await.unwrap();
        api.write_all(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").await.unwrap();
    });
    let answer = answer?;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (502, "api_garbled"),
        "{answer:?}"
    );
    // Cut off half-way, with a length and without one.
    for framing in ["content-length: 100", "transfer-encoding: chunked"] {
        let mut caller = begin(&scene, "GET /v1/me/call/raw/x", "").await?;
        let (mut api, _) = socket.accept().await?;
        head(&mut api).await?;
        let half = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n4\r\nhalf\r\n");
        api.write_all(half.as_bytes()).await?;
        let answered = head(&mut caller).await?;
        assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
        drop(api);
        let body = String::from_utf8(rest(&mut caller).await?)?;
        assert!(
            body.contains("half") && !body.ends_with("0\r\n\r\n"),
            "{framing}: a whole one: {body}"
        );
    }
    // Nobody is there.
    drop(socket);
    let answer = call().await?;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (502, "api_unreachable"),
        "{answer:?}"
    );
    scene.end().await?;
    Ok(())
}

/// An API may answer as soon as it has seen the head.
#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_that_comes_before_the_body_was_read_is_answered_with_it() -> Result {
    let (scene, socket) = with_socket().await?;
    let body = "x".repeat(60_000);
    let headers = format!("content-length: {}\r\nconnection: close\r\n", body.len());
    for _ in 0..5 {
        let mut caller = begin(&scene, "POST /v1/me/call/raw/x", &headers).await?;
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        let first = head(&mut api).await?;
        api.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer error=\"insufficient_claims\", claims=\"e30=\"\r\n\
              content-length: 0\r\n\r\n",
        )
        .await?;
        // Slowly, and after the API has lost interest.
        for part in body.as_bytes().chunks(20_000) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            caller.write_all(part).await?;
        }
        drop(api);
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        let second = head(&mut api).await?;
        let token = |head: &str| {
            let lines = head.lines();
            let mut tokens =
                lines.filter(|line| line.to_ascii_lowercase().starts_with("authorization"));
            tokens.next().map(str::to_owned)
        };
        assert_ne!(token(&first), token(&second));
        let mut sent = vec![0; body.len()];
        api.read_exact(&mut sent).await?;
        assert_eq!(sent, body.as_bytes());
        api.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            .await?;
        let answered = String::from_utf8(rest(&mut caller).await?)?;
        assert!(answered.starts_with("HTTP/1.1 204"), "{answered}");
    }
    scene.end().await?;
    Ok(())
}

/// It wants no more of a large body: its answer is the caller's all the same, and what the caller goes on sending is in nobody's way.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_body_was_sent_is_passed_on() -> Result {
    let (scene, socket) = with_socket().await?;
    for _ in 0..5 {
        let headers = "content-length: 9000000\r\nconnection: close\r\n";
        let mut caller = begin(&scene, "PUT /v1/me/call/raw/x", headers).await?;
        caller.write_all(&[b'x'; 1000]).await?;
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        head(&mut api).await?;
        api.read_exact(&mut [0; 1000]).await?;
        api.write_all(
            b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\ntoo",
        )
        .await?;
        drop(api);
        let answered = head(&mut caller).await?;
        assert!(answered.starts_with("HTTP/1.1 413"), "{answered}");
        let mut body = [0; 3];
        caller.read_exact(&mut body).await?;
        assert_eq!(&body, b"too");
    }
    scene.end().await?;
    Ok(())
}

/// What HEAD is told of a length is no promise of a body, nor is an answer that never has one.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_body_stays_one() -> Result {
    let (scene, socket) = with_socket().await?;
    for (method, answer, status, length) in [
        (
            "HEAD",
            "200 OK\r\ncontent-length: 5\r\netag: \"a\"",
            200,
            Some("5"),
        ),
        ("GET", "304 Not Modified\r\netag: \"a\"", 304, None),
        ("GET", "204 No Content\r\netag: \"a\"", 204, None),
        (
            "GET",
            "200 OK\r\ncontent-length: 0\r\netag: \"a\"",
            200,
            Some("0"),
        ),
        (
            "OPTIONS",
            "200 OK\r\ncontent-length: 0\r\netag: \"a\"",
            200,
            Some("0"),
        ),
    ] {
        let line = format!("{method} /v1/me/call/raw/x");
        let mut caller = begin(&scene, &line, "connection: close\r\n").await?;
        let (mut api, _) = timeout(PATIENCE, socket.accept()).await??;
        let asked = head(&mut api).await?;
        assert!(asked.starts_with(method), "{asked}");
        let answer = format!("HTTP/1.1 {answer}\r\nconnection: close\r\n\r\n");
        api.write_all(answer.as_bytes()).await?;
        drop(api);
        let answered = String::from_utf8(rest(&mut caller).await?)?.to_ascii_lowercase();
        let begins = format!("http/1.1 {status}");
        assert!(answered.starts_with(&begins), "{line}: {answered}");
        assert!(answered.contains("\r\netag: \"a\"\r\n"), "{answered}");
        assert!(answered.ends_with("\r\n\r\n"), "{line}: a body: {answered}");
        if let Some(length) = length {
            let length = format!("\r\ncontent-length: {length}\r\n");
            assert!(answered.contains(&length), "{line}: {answered}");
        }
    }
    scene.end().await?;
    Ok(())
}

/// Nobody waits for that: it is stored while the answer is under way.
#[tokio::test(flavor = "multi_thread")]
async fn the_successor_of_an_old_refresh_token_is_stored_while_the_answer_passes() -> Result {
    let (scene, socket) = with_socket().await?;
    let (place, mut record) = scene.store().record()?;
    let day = 24 * 3600;
    record["refreshed_at"] = json!(record["refreshed_at"].as_i64().unwrap() - day);
    scene
        .store()
        .replace(&place, &serde_json::to_vec(&record)?)?;
    let mut caller = begin(&scene, "GET /v1/me/call/raw/x", "").await?;
    let (mut api, _) = socket.accept().await?;
    head(&mut api).await?;
    assert_eq!(
        scene.store().record()?.1,
        record,
        "not before the API answers"
    );
    api.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha")
        .await?;
    head(&mut caller).await?;
    let stored = timeout(PATIENCE, async {
        loop {
            let stored = scene.store().record()?.1;
            if stored["generation"] != record["generation"] {
                return Result::Ok(stored);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let stored = stored.await??;
    assert_ne!(stored["sealed"], record["sealed"]);
    api.write_all(b"lf").await?;
    let mut body = [0; 4];
    caller.read_exact(&mut body).await?;
    assert_eq!(&body, b"half");
    drop((api, caller));
    scene.end().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_caller_goes_away_the_api_is_let_go() -> Result {
    let (scene, socket) = with_socket().await?;
    let mut caller = begin(&scene, "GET /v1/me/call/raw/x", "").await?;
    let (mut api, _) = socket.accept().await?;
    head(&mut api).await?;
    api.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
        .await?;
    head(&mut caller).await?;
    drop(caller);
    let part = vec![b'x'; PART];
    let gone = timeout(PATIENCE, async {
        while api.write_all(&part).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    gone.await?;
    scene.end().await?;
    Ok(())
}

/// As it comes, in both directions at once; without trailers.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_while_they_come() -> Result {
    let (scene, socket) = with_socket().await?;
    let mut caller = begin(
        &scene,
        "POST /v1/me/call/raw/x",
        "transfer-encoding: chunked\r\n",
    )
    .await?;
    caller.write_all(b"3\r\none\r\n").await?;
    let (mut api, _) = socket.accept().await?;
    let asked = head(&mut api).await?.to_ascii_lowercase();
    assert!(asked.contains("transfer-encoding: chunked"), "{asked}");
    let mut part = [0; 8];
    api.read_exact(&mut part).await?;
    assert_eq!(&part, b"3\r\none\r\n");
    api.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nah\r\n")
        .await?;
    head(&mut caller).await?;
    let mut part = [0; 7];
    caller.read_exact(&mut part).await?;
    assert_eq!(&part, b"2\r\nah\r\n");
    caller
        .write_all(b"3\r\ntwo\r\n0\r\nx-end: trailer-canary\r\n\r\n")
        .await?;
    let mut part = [0; 13];
    api.read_exact(&mut part).await?;
    assert_eq!(&part, b"3\r\ntwo\r\n0\r\n\r\n");
    api.write_all(b"0\r\n\r\n").await?;
    let mut part = [0; 5];
    caller.read_exact(&mut part).await?;
    assert_eq!(&part, b"0\r\n\r\n");
    drop((api, caller));
    scene.end().await?;
    Ok(())
}
