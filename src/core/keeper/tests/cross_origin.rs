//! What pages of other origins may do.

use super::*;

const PAGE: &str = "https://app.example.com";

/// A world whose settings allow two origins, and a request of a page.
fn from(origin: &str, method: &str, path: &str, preflight: Option<&str>) -> Response<Bytes> {
    let world = World::new();
    let origins = format!("{PAGE}, http://localhost:5173/");
    world.settings.borrow_mut().insert("cors_origins", origins);
    ask_from(&world, origin, method, path, preflight)
}

fn ask_from(
    world: &Shared,
    origin: &str,
    method: &str,
    path: &str,
    preflight: Option<&str>,
) -> Response<Bytes> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("origin", origin);
    if let Some(method) = preflight {
        request = request.header("access-control-request-method", method);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let response = handled(&world.app(), &parts, "");
    let headers = response.headers();
    assert!(!headers.contains_key("access-control-allow-credentials"));
    assert!(headers.values().all(|value| value != "*"), "{headers:?}");
    assert_eq!(headers["cache-control"], "no-store");
    response
}

#[test]
fn a_browser_that_asks_first_is_told_what_a_page_may_do() {
    for (origin, path, methods) in [
        (PAGE, "/v1/me", "GET, PUT, DELETE"),
        ("http://localhost:5173", "/v1/me", "GET, PUT, DELETE"),
        (PAGE, "/v1/me/refresh-token", "DELETE"),
    ] {
        let response = from(origin, "OPTIONS", path, Some("PUT"));
        let headers = response.headers();
        assert_eq!(response.status(), 204, "{path}");
        assert_eq!(headers["access-control-allow-origin"], origin);
        assert_eq!(headers["access-control-allow-methods"], methods);
        assert_eq!(
            headers["access-control-allow-headers"],
            "authorization, content-type, x-request-id"
        );
        assert_eq!(headers["vary"], "origin");
        assert!(headers.contains_key("x-request-id"));
    }
}

#[test]
fn a_page_reads_its_answer_and_its_errors() {
    // Without a token.
    let response = from(PAGE, "GET", "/v1/me", None);
    let headers = response.headers();
    assert_eq!(response.status(), 401);
    assert_eq!(headers["access-control-allow-origin"], PAGE);
    let readable = headers["access-control-expose-headers"].to_str().unwrap();
    assert!(readable.contains("www-authenticate") && readable.contains("x-request-id"));
}

#[test]
fn other_pages_and_other_paths_are_told_nothing() {
    for (origin, path) in [
        ("https://app.example.com.evil.example", "/v1/me"),
        ("http://app.example.com", "/v1/me"),
        ("https://app.example.com:8443", "/v1/me"),
        ("https://APP.example.com", "/v1/me"),
        ("null", "/v1/me"),
        ("", "/v1/me"),
        (PAGE, "/v1/me/access-token"),
        (PAGE, "/v1/sweep"),
        (PAGE, "/v1/status"),
        (PAGE, "/healthz"),
        (
            PAGE,
            "/v1/users/11111111-1111-1111-1111-111111111111/44444444-4444-4444-4444-444444444444",
        ),
    ] {
        for (method, preflight) in [("OPTIONS", Some("GET")), ("GET", None), ("POST", None)] {
            let response = from(origin, method, path, preflight);
            let mut names = response.headers().keys();
            assert!(
                names.all(|name| !name.as_str().starts_with("access-control")),
                "{origin} {method} {path}"
            );
            assert_ne!(response.status(), 204, "{origin} {method} {path}");
        }
    }
}

#[test]
fn no_origin_is_allowed_unless_a_setting_says_so() {
    let response = ask_from(&World::new(), PAGE, "OPTIONS", "/v1/me", Some("PUT"));
    assert_eq!(response.status(), 405);
    assert!(
        !response
            .headers()
            .contains_key("access-control-allow-origin")
    );
}
