//! What this host answers itself.

use crate::service::Failure;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use wasmtime_wasi_http::WasiBody;

/// The response when a component has none.
pub(crate) fn failure(component: &str, failure: &Failure) -> Response<WasiBody> {
    // If its instance failed, the end of that says why.
    if !matches!(failure, Failure::Instance) {
        tracing::warn!("component {component} {failure}");
    }
    match failure {
        Failure::NoPlace | Failure::Instantiation(_) => overloaded(),
        Failure::Code(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
        Failure::TooLong => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The component took too long.\n",
        ),
        Failure::Instance => plain(StatusCode::INTERNAL_SERVER_ERROR, "The component failed.\n"),
    }
}

/// To whom there is no room for.
pub(crate) fn overloaded() -> Response<WasiBody> {
    let mut response = plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "The server is overloaded.\n",
    );
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A text.
pub(crate) fn plain(status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let mut response = Response::new(
        Full::new(Bytes::from_static(text.as_bytes()))
            .map_err(|it| match it {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// Nothing but a status.
pub(crate) fn status(status: StatusCode) -> Response<WasiBody> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

/// No body.
pub(crate) fn empty() -> WasiBody {
    Empty::new().map_err(|it| match it {}).boxed_unsync()
}
