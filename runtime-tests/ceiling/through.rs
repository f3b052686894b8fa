//! A component that answers with what its dependency says, and on request reads two keys before: what every draw does, and
//! nothing else.
//!
//! - `GET /call`: one call of the dependency.
//! - `GET /reads`: one call, then two reads one after the other, the first of a key that is not there. **The ceiling.**
//! - `GET /fill`: writes the key that is there.

mod bindings {
    #![allow(
        unsafe_code,
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated code"
    )]

    spin_sdk::wit_bindgen::generate!({
        path: "wit",
        world: "through",
        runtime_path: "::spin_sdk::wit_bindgen::rt",
    });
}

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use spin_sdk::http::{Request, Response};
use spin_sdk::http_service;
use spin_sdk::key_value::{Error, Store};

use bindings::bench::ceiling::greeting;

/// As long as the key of a user's head, and as its value.
const KEY: &str = "usr.abcdefghijklmnopqrstuvwxyz012345";
const ABSENT: &str = "off.abcdefghijklmnopqrstuvwxyz012345.abcdefghijklmnop";
const VALUE: &[u8] = b"{\"v\":1,\"n\":\"abcdefghijklmnop\",\"w\":\"abcdefghijklmnop\"}";

#[http_service]
async fn handle(request: Request) -> Response<Full<Bytes>> {
    match answer(request.uri().path()).await {
        Ok(text) => Response::new(Full::from(text)),
        Err(error) => {
            let mut response = Response::new(Full::from(format!("{error:?}")));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

async fn answer(path: &str) -> Result<String, Error> {
    if path == "/fill" {
        Store::open_default().await?.set(KEY, VALUE).await?;
        return Ok("Written".to_owned());
    }
    let text = greeting::greet("world".to_owned()).await;
    if path == "/reads" {
        // Each opens the store, as behalf does.
        let absent = Store::open_default().await?.get(ABSENT).await?;
        let present = Store::open_default().await?.get(KEY).await?;
        if absent.is_some() || present.as_deref() != Some(VALUE) {
            return Err(Error::Other("the store is not filled".to_owned()));
        }
    }
    Ok(text)
}
