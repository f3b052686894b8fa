//! Bodies under way on WASI 0.3. What the API sends passes from host to host, and is not copied here; what the caller sends is, part
//! by part, because it may have to be sent again.

use std::pin::pin;
use std::time::Duration;

use behalf_core::port::{BodyError, Relay, RelayError, RelayLimits, Timer as _};
use behalf_wasi::nanoseconds;
use futures_util::future::{Either, select};
use wasip3::http::client;
use wasip3::http::types::{self, ErrorCode, Fields, RequestOptions, Trailers};
use wasip3::{wit_future, wit_stream};
use wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};

use crate::wasi::{Wasi, addressed};

/// Most that is read at once, in bytes.
const PART: usize = 64 * 1024;
/// The hosts' own limit of time until the head, which counts what is sent, too: longer than any of that. The core has its own.
const A_DAY: Duration = Duration::from_hours(24);

/// How a body came to its end.
type End = Result<Option<Trailers>, ErrorCode>;

/// A body on its way from the caller.
pub(crate) struct Upload {
    stream: StreamReader<u8>,
    end: Option<FutureReader<End>>,
    /// Dropped with the rest: so it is said that no more is wanted.
    _done: FutureWriter<Result<(), ErrorCode>>,
}

/// A body on its way from the API.
pub(crate) struct Download {
    stream: StreamReader<u8>,
    end: FutureReader<End>,
    done: FutureWriter<Result<(), ErrorCode>>,
}

impl Upload {
    /// That of a request.
    pub(crate) fn new(request: types::Request) -> Self {
        let (done, wanted) = wit_future::new(|| Ok(()));
        let (stream, end) = types::Request::consume_body(request, wanted);
        Self {
            stream,
            end: Some(end),
            _done: done,
        }
    }
}

impl behalf_core::port::Upload for Upload {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, BodyError> {
        loop {
            let (result, part) = self.stream.read(Vec::with_capacity(PART)).await;
            if !part.is_empty() {
                return Ok(Some(part));
            }
            match (result, self.end.take()) {
                (StreamResult::Complete(_), end) => self.end = end,
                // Only here is a body that broke off told from one that ended.
                (StreamResult::Dropped | StreamResult::Cancelled, Some(end)) => {
                    return match end.await {
                        Ok(_) => Ok(None),
                        Err(_) => Err(BodyError::BrokenOff),
                    };
                }
                (StreamResult::Dropped | StreamResult::Cancelled, None) => return Ok(None),
            }
        }
    }
}

impl Download {
    /// An answer with this body, and without the trailers behind it; none: its headers cannot be passed on.
    pub(crate) fn respond(response: http::Response<Self>) -> Option<types::Response> {
        let (parts, Self { stream, end, done }) = response.into_parts();
        let headers = Fields::try_from(parts.headers).ok()?;
        let (ended, own_end) = wit_future::new(broken_off);
        let (response, _sent) = types::Response::new(headers, Some(stream), own_end);
        response.set_status_code(parts.status.as_u16()).ok()?;
        wit_bindgen::spawn(async move {
            // An answer that broke off stays one.
            let _ = ended.write(end.await.map(|_| None)).await;
            drop(done);
        });
        Some(response)
    }
}

impl Relay for Wasi {
    type Upload = Upload;
    type Download = Download;

    async fn relay<U: behalf_core::port::Upload + 'static>(
        &self,
        request: http::Request<Option<U>>,
        limits: RelayLimits,
    ) -> Result<http::Response<Download>, RelayError> {
        let (parts, body) = request.into_parts();
        let (writer, reader) = match &body {
            Some(_) => {
                let (writer, reader) = wit_stream::new();
                (Some(writer), Some(reader))
            }
            None => (None, None),
        };
        let (ended, end) = wit_future::new(broken_off);
        let request = options(limits).and_then(|options| {
            let headers = Fields::try_from(parts.headers).ok()?;
            let (request, _sent) = types::Request::new(headers, reader, end, Some(options));
            addressed(request, &parts.method, &parts.uri)
        });
        let request = request.ok_or(RelayError::Garbled)?;
        let mut upload = Box::pin(async move {
            let sent = match (body, writer) {
                (Some(body), Some(writer)) => pump(body, writer, limits.between_parts).await,
                (_, _) => Ok(()),
            };
            let _ = ended.write(sent.map(|()| None)).await;
        });
        let response = match select(pin!(client::send(request)), &mut upload).await {
            Either::Left((response, _)) => {
                let response = response.map_err(|code| relay_error(&code))?;
                wit_bindgen::spawn(upload);
                response
            }
            Either::Right(((), response)) => response.await.map_err(|code| relay_error(&code))?,
        };
        let mut head = http::Response::builder().status(response.get_status_code());
        let headers = http::HeaderMap::try_from(response.get_headers());
        let headers = headers.map_err(|_| RelayError::Garbled)?;
        if let Some(own) = head.headers_mut() {
            *own = headers;
        }
        let (done, wanted) = wit_future::new(|| Ok(()));
        let (stream, end) = types::Response::consume_body(response, wanted);
        let download = Download { stream, end, done };
        head.body(download).map_err(|_| RelayError::Garbled)
    }
}

/// Sends a body, part by part.
async fn pump(
    mut body: impl behalf_core::port::Upload,
    mut writer: StreamWriter<u8>,
    between_parts: Duration,
) -> Result<(), ErrorCode> {
    loop {
        let next = match select(pin!(body.next()), pin!(Wasi.sleep(between_parts))).await {
            Either::Left((next, _)) => next,
            Either::Right(((), _)) => Err(BodyError::TooSlow),
        };
        let Some(part) = next.map_err(|_| ErrorCode::HttpRequestBodySize(None))? else {
            return Ok(());
        };
        let left = match select(
            pin!(writer.write_all(part)),
            pin!(Wasi.sleep(between_parts)),
        )
        .await
        {
            Either::Left((left, _)) => left,
            Either::Right(((), _)) => return Err(ErrorCode::ConnectionWriteTimeout),
        };
        if !left.is_empty() {
            // Whoever is called wants no more of it.
            select(pin!(body.unwanted()), pin!(Wasi.sleep(between_parts))).await;
            return Ok(());
        }
    }
}

fn options(limits: RelayLimits) -> Option<RequestOptions> {
    let options = RequestOptions::new();
    options
        .set_connect_timeout(Some(nanoseconds(limits.connect)))
        .ok()?;
    options
        .set_first_byte_timeout(Some(nanoseconds(A_DAY)))
        .ok()?;
    let between_parts = nanoseconds(limits.between_parts);
    options
        .set_between_bytes_timeout(Some(between_parts))
        .ok()?;
    Some(options)
}

fn broken_off() -> End {
    Err(ErrorCode::HttpResponseIncomplete)
}

/// The cases of the host, as the core tells them apart. What no case names may have come after the request had gone: then nobody
/// knows what the API did.
fn relay_error(code: &ErrorCode) -> RelayError {
    match code {
        ErrorCode::HttpRequestDenied | ErrorCode::DestinationIpProhibited => RelayError::Denied,
        ErrorCode::DnsTimeout
        | ErrorCode::DnsError(_)
        | ErrorCode::DestinationNotFound
        | ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::ConnectionRefused
        | ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionLimitReached
        | ErrorCode::TlsProtocolError
        | ErrorCode::TlsCertificateError
        | ErrorCode::TlsAlertReceived(_) => RelayError::Unreachable,
        ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => RelayError::TimedOut,
        _ => RelayError::Garbled,
    }
}
