//! The core's ports on WASI 0.3.

use behalf_core::Vault;
use behalf_core::port::{Background, Config, ConfigError, Http, HttpError, Limits, SecretBody};
use behalf_wasi::nanoseconds;
use futures_util::future::join;
use http::{HeaderMap, Method, Request, Response, Uri};
use wasip3::http::client;
use wasip3::http::types::{self, ErrorCode, Fields, RequestOptions};
use wasip3::{wit_future, wit_stream};
use wit_bindgen::{StreamReader, StreamResult, StreamWriter};
use zeroize::Zeroizing;

use crate::bindings::wasi::config::store;

const CHUNK: usize = 16 * 1024;

/// The vault of this instance: its caches live as long as the instance does.
pub(crate) fn vault() -> &'static Vault<Wasi> {
    thread_local! {
        static VAULT: &'static Vault<Wasi> = Box::leak(Box::new(Vault::new(Wasi)));
    }
    VAULT.with(|vault| *vault)
}

/// WASI 0.3, as the core wants it.
pub(crate) struct Wasi;

behalf_wasi::ports!(Wasi);

impl Config for Wasi {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        store::get(name).map_err(|_| ConfigError)
    }
}

impl Background for Wasi {
    /// The task is one of the call that begins it, which is answered when it has its answer, and over when this is: hosts keep
    /// an instance for as long.
    fn begin(&self, task: impl Future<Output = ()> + 'static) {
        wit_bindgen::spawn(task);
    }
}

impl Http for Wasi {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        let (request, body) = outgoing(request, limits).ok_or(HttpError::Unreachable)?;
        // The body is written while the request is under way: the host reads it when it has a connection.
        let (response, ()) = join(client::send(request), body).await;
        let response = response.map_err(|code| http_error(&code))?;
        incoming(response, limits.body).await
    }
}

/// The request, and the future that writes its body.
fn outgoing(
    request: Request<SecretBody>,
    limits: Limits,
) -> Option<(types::Request, impl Future<Output = ()>)> {
    let (parts, body) = request.into_parts();
    let options = RequestOptions::new();
    options
        .set_connect_timeout(Some(nanoseconds(limits.connect)))
        .ok()?;
    options
        .set_first_byte_timeout(Some(nanoseconds(limits.first_byte)))
        .ok()?;
    options
        .set_between_bytes_timeout(Some(nanoseconds(limits.between_bytes)))
        .ok()?;

    let mut headers = parts.headers;
    let (writer, reader): (Option<StreamWriter<u8>>, _) = if body.is_empty() {
        (None, None)
    } else {
        headers.insert(http::header::CONTENT_LENGTH, body.len().into());
        let (writer, reader) = wit_stream::new();
        (Some(writer), Some(reader))
    };
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = types::Request::new(
        Fields::try_from(headers).ok()?,
        reader,
        no_trailers,
        Some(options),
    );
    let request = addressed(request, &parts.method, &parts.uri)?;
    let write = async move {
        if let Some(mut writer) = writer {
            let mut body = body;
            // What comes back is the same memory: zeroized here, whether it was all sent or not.
            let _sent = Zeroizing::new(writer.write_all(std::mem::take(&mut *body)).await);
        }
        drop(trailers);
    };
    Some((request, write))
}

/// A request with its method, and with where it goes.
pub(crate) fn addressed(
    request: types::Request,
    method: &Method,
    uri: &Uri,
) -> Option<types::Request> {
    request.set_method(&method.into()).ok()?;
    request
        .set_scheme(uri.scheme().map(Into::into).as_ref())
        .ok()?;
    request
        .set_authority(uri.authority().map(http::uri::Authority::as_str))
        .ok()?;
    request
        .set_path_with_query(uri.path_and_query().map(http::uri::PathAndQuery::as_str))
        .ok()?;
    Some(request)
}

async fn incoming(
    response: types::Response,
    longest: usize,
) -> Result<Response<SecretBody>, HttpError> {
    let mut head = Response::builder().status(response.get_status_code());
    let headers =
        HeaderMap::try_from(response.get_headers()).map_err(|_| HttpError::Unreachable)?;
    if let Some(own) = head.headers_mut() {
        *own = headers;
    }
    let (_done, done) = wit_future::new(|| Ok(()));
    let (stream, trailers) = types::Response::consume_body(response, done);
    let body = read(stream, longest).await?;
    // Only here is a body that broke off told from one that ended.
    trailers.await.map_err(|code| http_error(&code))?;
    head.body(body).map_err(|_| HttpError::Unreachable)
}

async fn read(mut stream: StreamReader<u8>, longest: usize) -> Result<SecretBody, HttpError> {
    let mut body = Zeroizing::new(Vec::new());
    loop {
        let (result, chunk) = stream.read(Vec::with_capacity(CHUNK)).await;
        let chunk = Zeroizing::new(chunk);
        if body.len().saturating_add(chunk.len()) > longest {
            return Err(HttpError::TooLong);
        }
        append(&mut body, &chunk);
        match result {
            StreamResult::Complete(_) => {}
            StreamResult::Dropped | StreamResult::Cancelled => return Ok(body),
        }
    }
}

/// Grows by hand: `Vec` would leave the old memory behind with what was in it.
fn append(body: &mut SecretBody, chunk: &[u8]) {
    if body.capacity().saturating_sub(body.len()) < chunk.len() {
        let mut larger = Zeroizing::new(Vec::with_capacity(
            body.len().saturating_add(chunk.len()).saturating_mul(2),
        ));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

/// The cases of the host, as the core tells them apart. A case that is not known is a broken connection.
fn http_error(code: &ErrorCode) -> HttpError {
    match code {
        ErrorCode::HttpRequestDenied | ErrorCode::DestinationIpProhibited => HttpError::Denied,
        ErrorCode::DnsTimeout
        | ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => HttpError::TimedOut,
        _ => HttpError::Unreachable,
    }
}
