//! A component that answers every request with a few bytes: what a host can do at most.

use bytes::Bytes;
use http_body_util::Full;
use spin_sdk::http::{Request, Response};
use spin_sdk::http_service;

#[http_service]
async fn handle(_: Request) -> Response<Full<Bytes>> {
    Response::new(Full::from("Hello, world"))
}
