//! The cron component: rings [`behalf_core::doorbell`] at each time of the schedule. It decides nothing.
//!
//! It is a WASI 0.2 component with a synchronous export, because Spin's cron plugin up to 0.4 runs nothing else, and
//! 0.5 runs it too (DESIGN.md): so it waits for one thing at a time, and needs no runtime.

mod bindings;

use std::io::Write as _;
use std::time::{Duration, Instant};

use behalf_core::doorbell::{self, Doorbell, DoorbellError, LIMITS, Next};
use behalf_core::port::{Config, ConfigError, HttpError, SecretBody};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    RequestOptions, Scheme,
};
use wasip2::io::streams::StreamError;

use crate::bindings::wasi::config::store;
use crate::bindings::{Component, Error, Guest, Metadata};

impl Guest for Component {
    fn handle_cron_event(_: Metadata) -> Result<(), Error> {
        match ring() {
            Ok(line) => {
                log(&line);
                Ok(())
            }
            Err(error) => {
                log(&doorbell::failure(&error));
                Err(Error::Other(error.to_string()))
            }
        }
    }
}

fn ring() -> Result<String, DoorbellError> {
    let Some(mut doorbell) = Doorbell::new(&Settings)? else {
        return Ok(doorbell::switched_off());
    };
    let start = Instant::now();
    loop {
        let answer = send(&doorbell.request());
        match doorbell.hear(answer, start.elapsed())? {
            Next::Ring => {}
            Next::Done(outcome) => return Ok(outcome.line()),
        }
    }
}

struct Settings;

impl Config for Settings {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        store::get(name).map_err(|_| ConfigError)
    }
}

fn log(line: &str) {
    // `eprintln!` would trap if the host closed standard error.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Sends a request without a body, and reads the whole response.
fn send(request: &http::Request<SecretBody>) -> Result<http::Response<SecretBody>, HttpError> {
    let (request, options) = outgoing(request).ok_or(HttpError::Unreachable)?;
    let body = request.body().map_err(|()| HttpError::Unreachable)?;
    let waiting = outgoing_handler::handle(request, Some(options)).map_err(|it| http_error(&it))?;
    // Of a request that was refused only the response says why.
    let _ = OutgoingBody::finish(body, None);
    waiting.subscribe().block();
    let response = waiting
        .get()
        .and_then(Result::ok)
        .ok_or(HttpError::Unreachable)?
        .map_err(|code| http_error(&code))?;
    incoming(&response)
}

fn outgoing(request: &http::Request<SecretBody>) -> Option<(OutgoingRequest, RequestOptions)> {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    let outgoing = OutgoingRequest::new(Fields::from_list(&headers).ok()?);
    outgoing
        .set_method(&Method::Other(request.method().to_string()))
        .ok()?;
    let scheme = match request.uri().scheme_str()? {
        "https" => Scheme::Https,
        _ => Scheme::Http,
    };
    outgoing.set_scheme(Some(&scheme)).ok()?;
    let authority = request.uri().authority()?.as_str();
    outgoing.set_authority(Some(authority)).ok()?;
    let path = request.uri().path_and_query()?.as_str();
    outgoing.set_path_with_query(Some(path)).ok()?;

    let options = RequestOptions::new();
    options
        .set_connect_timeout(Some(nanoseconds(LIMITS.connect)))
        .ok()?;
    options
        .set_first_byte_timeout(Some(nanoseconds(LIMITS.first_byte)))
        .ok()?;
    options
        .set_between_bytes_timeout(Some(nanoseconds(LIMITS.between_bytes)))
        .ok()?;
    Some((outgoing, options))
}

fn incoming(response: &IncomingResponse) -> Result<http::Response<SecretBody>, HttpError> {
    let body: IncomingBody = response.consume().map_err(|()| HttpError::Unreachable)?;
    let stream = body.stream().map_err(|()| HttpError::Unreachable)?;
    let mut bytes = SecretBody::default();
    loop {
        match stream.blocking_read(16 * 1024) {
            Ok(part) if bytes.len().saturating_add(part.len()) <= LIMITS.body => {
                bytes.extend_from_slice(&part);
            }
            Ok(_) => return Err(HttpError::TooLong),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(_)) => return Err(HttpError::Unreachable),
        }
    }
    http::Response::builder()
        .status(response.status())
        .body(bytes)
        .map_err(|_| HttpError::Unreachable)
}

fn http_error(code: &ErrorCode) -> HttpError {
    match code {
        ErrorCode::HttpRequestDenied => HttpError::Denied,
        ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => HttpError::TimedOut,
        _ => HttpError::Unreachable,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
