//! The component's paths.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "a test's component may trap"
)]

use crate::bindings::fermyon::spin::{key_value as spin2, variables as variables2};
use crate::bindings::spin::key_value::key_value::Store;
use crate::bindings::spin::variables::variables;
use crate::bindings::wasi::config::store as config;
use crate::bindings::wasi::keyvalue::{atomics, batch, store as keyvalue};
use crate::bindings::{Clock, Error, Guest, Metadata};
use std::cell::Cell;
use std::fmt::Debug;
use std::time::Duration;
use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};

impl Guest for Clock {
    /// Does what the variable `tick` says.
    fn handle_cron_event(event: Metadata) -> Result<(), Error> {
        let served = SERVED.replace(SERVED.get() + 1);
        assert!(event.timestamp > 1_700_000_000, "in seconds");
        match config::get("tick").unwrap().unwrap_or_default().as_str() {
            "fail" => Err(Error::Other("the guest fails".to_owned())),
            "panic" => panic!("the guest panics"),
            "wait" => {
                println!("begins");
                std::thread::sleep(Duration::from_mins(1));
                Ok(())
            }
            _ => {
                println!("tick {served}");
                Ok(())
            }
        }
    }
}

struct Handler;

wasip3::http::service::export!(Handler);

thread_local! {
    static SERVED: Cell<u32> = const { Cell::new(0) };
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

impl wasip3::exports::http::handler::Guest for Handler {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let served = SERVED.replace(SERVED.get() + 1);
        let path = request.get_path_with_query().unwrap_or_default();
        let words: Vec<&str> = path
            .split('?')
            .next()
            .unwrap_or_default()
            .split('/')
            .skip(1)
            .collect();
        Ok(match *words.as_slice() {
            ["served"] => text(200, served.to_string()),
            ["headers"] => {
                let line = |(name, value): &(String, Vec<u8>)| {
                    format!("{name}: {}\n", String::from_utf8_lossy(value))
                };
                text(
                    200,
                    request.get_headers().copy_all().iter().map(line).collect(),
                )
            }
            ["echo"] => {
                let (body, trailers) = Request::consume_body(request, wit_future::new(|| Ok(())).1);
                Response::new(Fields::new(), Some(body), trailers).0
            }
            ["drip", count, milliseconds] => drip(number(count), number(milliseconds)),
            ["flood", megabytes] => flood(number(megabytes)),
            ["half"] => half(),
            ["half-sent"] => half_sent(request).await,
            ["sleep", milliseconds] => {
                sleep(number(milliseconds)).await;
                text(200, "slept".to_owned())
            }
            ["spin"] => loop {
                std::hint::spin_loop();
            },
            ["compute", milliseconds] => {
                let end = monotonic_clock::now() + number(milliseconds) * 1_000_000;
                while monotonic_clock::now() < end {}
                text(200, "computed".to_owned())
            }
            ["panic"] => panic!("the guest panics"),
            ["error"] => return Err(ErrorCode::InternalError(Some("guest data".to_owned()))),
            ["print"] => {
                print!("first half, ");
                println!("second half");
                eprintln!("to standard error");
                text(200, String::new())
            }
            ["sized"] => sized("12345".to_owned()),
            ["empty"] => answer(204, Fields::new(), Vec::new()),
            ["say", bytes] => {
                let bytes = usize::try_from(number(bytes)).unwrap();
                eprintln!("{}", "x".repeat(bytes));
                text(200, String::new())
            }
            ["after", milliseconds, key] => {
                let (milliseconds, key) = (number(milliseconds), key.to_owned());
                wit_bindgen::spawn(async move {
                    sleep(milliseconds).await;
                    set(&key, b"after").await;
                });
                text(200, "soon".to_owned())
            }
            // How many that were answered before have not done what was left to do.
            ["left"] => {
                let left = LEFT.get();
                LEFT.set(left + 1);
                wit_bindgen::spawn(async {
                    wit_bindgen::yield_async().await;
                    LEFT.set(LEFT.get() - 1);
                });
                sized(format!("{left} left\n"))
            }
            ["config"] => shown(config::get_all().map(|mut all| {
                all.sort();
                all
            })),
            ["config", name] => shown(config::get(name)),
            ["variable", name] => {
                let (twin, it) = (variables2::get(name), variables::get(name.to_owned()).await);
                assert_eq!(format!("{twin:?}"), format!("{it:?}"), "the two interfaces");
                shown(it)
            }
            ["open", label] => {
                let spin = Store::open(label.to_owned()).await.map(|_| ());
                let twin = spin2::Store::open(label).map(|_| ());
                assert_eq!(
                    format!("{twin:?}"),
                    format!("{spin:?}"),
                    "the two interfaces"
                );
                shown((spin, keyvalue::open(label).map(|_| ())))
            }
            ["set", key, value] => {
                set(key, value.as_bytes()).await;
                text(200, String::new())
            }
            ["get", key] => {
                let spin = open().await.get(key.to_owned()).await.map(utf8);
                let wasi = keyvalue::open("default")
                    .and_then(|store| store.get(key))
                    .map(utf8);
                shown((spin, wasi))
            }
            ["read", key] => shown(open().await.get(key.to_owned()).await.map(utf8)),
            ["exists", key] => {
                let spin = open().await.exists(key.to_owned()).await;
                shown((
                    spin,
                    keyvalue::open("default").and_then(|store| store.exists(key)),
                ))
            }
            ["delete", key] => shown(open().await.delete(key.to_owned()).await),
            ["keys"] => {
                let (keys, end) = open().await.get_keys().await;
                shown((keys.collect().await, end.await))
            }
            ["list"] => {
                let store = keyvalue::open("default").unwrap();
                let keys = store.list_keys(None).map(|all| (all.keys, all.cursor));
                shown((keys, store.list_keys(Some("cursor")).map(|all| all.keys)))
            }
            ["twin"] => shown(twin()),
            ["batch"] => shown(many()),
            ["swap"] => shown(swap()),
            ["swap", count] => shown(swap_until_refused(number(count))),
            ["send"] => send(request).await,
            ["healthz"] => health(),
            _ => text(404, String::new()),
        })
    }
}

/// Spin's second interface to the store, once through.
fn twin() -> impl Debug {
    let store = spin2::Store::open("default").unwrap();
    store.set("t", b"1").unwrap();
    let found = (
        store.get("t").map(utf8),
        store.exists("t"),
        store.get_keys(),
    );
    store.delete("t").unwrap();
    (found, store.get("t").map(utf8))
}

fn many() -> impl Debug {
    let store = keyvalue::open("default").unwrap();
    let pair = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    batch::set_many(&store, &[pair("a", "1"), pair("b", "2")]).unwrap();
    let keys = ["a", "b", "c"].map(str::to_owned);
    let found: Vec<_> = batch::get_many(&store, &keys)
        .unwrap()
        .into_iter()
        .map(|(key, value)| (key, utf8(value)))
        .collect();
    batch::delete_many(&store, &keys).unwrap();
    let none = batch::get_many(&store, &[]).map(|pairs| pairs.len());
    (found, store.list_keys(None).unwrap().keys, none)
}

fn swap() -> impl Debug {
    let store = keyvalue::open("default").unwrap();
    store.set("s", b"1").unwrap();
    let (one, two) = (
        atomics::Cas::new(&store, "s").unwrap(),
        atomics::Cas::new(&store, "s").unwrap(),
    );
    let seen = (one.current().map(utf8), two.current().map(utf8));
    let first = atomics::swap(one, b"2");
    let Err(atomics::CasError::CasFailed(again)) = atomics::swap(two, b"3") else {
        panic!("the second swap must fail");
    };
    // Spin has looked for the component already.
    let second = atomics::swap(again, b"4").is_ok();
    let now = store.get("s").map(utf8);
    (
        seen,
        first.is_ok(),
        second,
        now,
        atomics::increment(&store, "i", 7),
    )
}

fn swap_until_refused(most: u64) -> impl Debug {
    let store = keyvalue::open("default").unwrap();
    for count in 0..most {
        match atomics::Cas::new(&store, "s") {
            Ok(swap) => assert!(atomics::swap(swap, b"x").is_ok()),
            Err(error) => return (count, Some(error)),
        }
    }
    (most, None)
}

/// Sends a request to where the headers of this one say, and answers what came back.
async fn send(request: Request) -> Response {
    let headers = request.get_headers();
    let header = |name: &str| {
        headers
            .get(name)
            .first()
            .map(|it| String::from_utf8_lossy(it).into_owned())
    };
    let options = RequestOptions::new();
    if let Some(milliseconds) = header("x-first-byte") {
        options
            .set_first_byte_timeout(Some(number(&milliseconds) * 1_000_000))
            .unwrap();
    }
    let fields = Fields::new();
    fields.append("x-forwarded", b"yes").unwrap();
    let (to, method) = (header("x-to").unwrap(), request.get_method());
    let (body, trailers) = if matches!(method, Method::Get) {
        (None, wit_future::new(|| Ok(None)).1)
    } else {
        let (body, trailers) = Request::consume_body(request, wit_future::new(|| Ok(())).1);
        (Some(body), trailers)
    };
    let (scheme, rest) = to.split_once("://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let scheme = if scheme == "https" {
        Scheme::Https
    } else {
        Scheme::Http
    };
    let (request, _sent) = Request::new(fields, body, trailers, Some(options));
    request.set_method(&method).unwrap();
    request.set_scheme(Some(&scheme)).unwrap();
    request.set_authority(Some(authority)).unwrap();
    request
        .set_path_with_query(Some(&format!("/{path}")))
        .unwrap();
    match client::send(request).await {
        Ok(response) => response,
        Err(code) => text(502, format!("{code:?}")),
    }
}

/// Says that the variable `problem` is a problem, unless it is empty.
fn health() -> Response {
    match config::get("problem") {
        Ok(Some(problem)) if !problem.is_empty() => {
            let body = format!("{{\"title\": \"a title\", \"detail\": {problem:?}}}");
            respond(503, "application/problem+json", body.into_bytes())
        }
        Ok(_) | Err(_) => text(404, String::new()),
    }
}

fn drip(count: u64, milliseconds: u64) -> Response {
    let (mut writer, reader) = wit_stream::new();
    wit_bindgen::spawn(async move {
        for index in 0..count {
            sleep(milliseconds).await;
            writer.write_all(format!("{index}\n").into_bytes()).await;
        }
    });
    Response::new(Fields::new(), Some(reader), wit_future::new(|| Ok(None)).1).0
}

fn flood(megabytes: u64) -> Response {
    let (mut writer, reader) = wit_stream::new();
    wit_bindgen::spawn(async move {
        for _ in 0..megabytes {
            if !writer.write_all(vec![b'x'; 1 << 20]).await.is_empty() {
                return;
            }
        }
    });
    Response::new(Fields::new(), Some(reader), wit_future::new(|| Ok(None)).1).0
}

/// Traps when it has written half of its body.
fn half() -> Response {
    Response::new(
        Fields::new(),
        Some(half_a_body()),
        wit_future::new(|| Ok(None)).1,
    )
    .0
}

/// Sends a request to where the headers of this one say, and traps when it has written half of its body.
async fn half_sent(request: Request) -> Response {
    let to = request.get_headers().get("x-to").remove(0);
    let to = String::from_utf8(to).unwrap();
    let trailers = wit_future::new(|| Ok(None)).1;
    let (request, _sent) = Request::new(Fields::new(), Some(half_a_body()), trailers, None);
    request.set_method(&Method::Post).unwrap();
    request.set_scheme(Some(&Scheme::Http)).unwrap();
    request.set_authority(to.strip_prefix("http://")).unwrap();
    request.set_path_with_query(Some("/")).unwrap();
    client::send(request).await.unwrap()
}

fn half_a_body() -> wit_bindgen::StreamReader<u8> {
    let (mut writer, reader) = wit_stream::new();
    wit_bindgen::spawn(async move {
        writer.write_all(b"half\n".to_vec()).await;
        sleep(100).await;
        panic!("the guest panics");
    });
    reader
}

fn shown(value: impl Debug) -> Response {
    text(200, format!("{value:?}"))
}

fn text(status: u16, text: String) -> Response {
    respond(status, "text/plain", text.into_bytes())
}

/// An answer that says how long it is.
fn sized(text: String) -> Response {
    let fields = Fields::new();
    let length = text.len().to_string();
    fields.append("content-length", length.as_bytes()).unwrap();
    answer(200, fields, text.into_bytes())
}

fn respond(status: u16, media_type: &str, body: Vec<u8>) -> Response {
    let fields = Fields::new();
    fields
        .append("content-type", media_type.as_bytes())
        .unwrap();
    answer(status, fields, body)
}

fn answer(status: u16, fields: Fields, body: Vec<u8>) -> Response {
    let (mut writer, reader) = wit_stream::new();
    wit_bindgen::spawn(async move {
        writer.write_all(body).await;
    });
    let response = Response::new(fields, Some(reader), wit_future::new(|| Ok(None)).1).0;
    response.set_status_code(status).unwrap();
    response
}

async fn sleep(milliseconds: u64) {
    monotonic_clock::wait_for(milliseconds * 1_000_000).await;
}

async fn open() -> Store {
    Store::open("default".to_owned()).await.unwrap()
}

async fn set(key: &str, value: &[u8]) {
    open()
        .await
        .set(key.to_owned(), value.to_owned())
        .await
        .unwrap();
}

fn utf8(value: Option<Vec<u8>>) -> Option<String> {
    value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}
