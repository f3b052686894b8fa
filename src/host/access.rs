//! One line of the log for each request: what was asked for, by whose route, what came of it and how long that took. Never
//! what was said: no path, no header, no body.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;
use uuid::Uuid;
use wasmtime_wasi_http::{Error, WasiBody};

/// The id of a request. A proxy in front may have given it one; components see it, and its answer has it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client.
const MAX_ID: usize = 64;

/// What the line tells besides.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The pattern of the route.
    pub(crate) route: Option<String>,
    /// Why this host answered itself.
    pub(crate) reason: Option<&'static str>,
}

/// A request whose line is written when this, or the body that it became, is dropped.
pub(crate) struct Access {
    method: &'static str,
    id: HeaderValue,
    span: Span,
    begun: Instant,
    told: Told,
    status: Option<u16>,
    is_whole: bool,
}

impl Access {
    /// Begins a request, and gives it an id unless it has one.
    pub(crate) fn begin(request: &mut Request<WasiBody>) -> Self {
        let id = given_id(request.headers()).unwrap_or_else(new_id);
        request.headers_mut().insert(REQUEST_ID, id.clone());
        let text = id.to_str().unwrap_or_default();
        Self {
            method: name(request.method()),
            span: tracing::info_span!("request", request_id = text),
            id,
            begun: Instant::now(),
            told: Told::default(),
            status: None,
            is_whole: false,
        }
    }

    /// What lines about the request are written in.
    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The answer, with the request's id. Its body holds `admitted` for as long as the request is in hand.
    pub(crate) fn answered(
        mut self,
        told: Told,
        mut response: Response<WasiBody>,
        admitted: Option<OwnedSemaphorePermit>,
    ) -> Response<WasiBody> {
        self.told = told;
        self.status = Some(response.status().as_u16());
        let left = length(&response);
        self.is_whole = left == Some(0) || has_no_body(self.method, response.status());
        let id = self.id.clone();
        response.headers_mut().entry(REQUEST_ID).or_insert(id);
        response.map(|body| {
            let access = self;
            Logged {
                body,
                left,
                access,
                _admitted: admitted,
            }
            .boxed_unsync()
        })
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let _entered = self.span.enter();
        let milliseconds = self.begun.elapsed().as_secs_f64() * 1000.0;
        let milliseconds = (milliseconds * 10.0).round() / 10.0;
        let route = self.told.route.as_deref().unwrap_or("none");
        let (method, status) = (self.method, self.status);
        // Whether it was the client that left, or the component that failed, other lines say.
        let reason = match (self.told.reason, status, self.is_whole) {
            (Some(reason), ..) => Some(reason),
            (None, None, _) => Some("it was given up before its answer"),
            (None, Some(_), false) => Some("its answer broke off"),
            (None, Some(_), true) => None,
        };
        tracing::info!(method, route, status, milliseconds, reason, "request");
    }
}

/// Names that anybody could make up say nothing.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// An id that can be written anywhere.
fn given_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(REQUEST_ID).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let can_be_id = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let bytes = value.as_bytes();
    let is_id = (1..=MAX_ID).contains(&bytes.len()) && bytes.iter().all(can_be_id);
    is_id.then(|| value.clone())
}

fn new_id() -> HeaderValue {
    let id = Uuid::new_v4().to_string();
    // Digits and hyphens are a value.
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("none"))
}

/// How long an answer's body says it is.
fn length(response: &Response<WasiBody>) -> Option<u64> {
    let length = response.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|it| it.to_str().ok()?.parse().ok());
    length.or_else(|| response.body().size_hint().exact())
}

/// Whether nobody reads the body of such an answer (RFC 9110, section 6.4.1).
fn has_no_body(method: &str, status: StatusCode) -> bool {
    method == "HEAD" || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

struct Logged {
    body: WasiBody,
    /// What is left of it, if it says how long it is: then nobody asks for its end.
    left: Option<u64>,
    access: Access,
    _admitted: Option<OwnedSemaphorePermit>,
}

impl Body for Logged {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let (Some(left), Some(data)) = (self.left, frame.data_ref())
        {
            let read = u64::try_from(data.len()).unwrap_or(u64::MAX);
            self.left = Some(left.saturating_sub(read));
        }
        self.access.is_whole |= frame.is_none() || self.left == Some(0);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.access.is_whole |= self.body.is_end_stream();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_if_it_can_be_written_anywhere() {
        let long = "x".repeat(65);
        for (given, taken) in [
            (&["4bf92f35-77b3.4_da6"][..], true),
            (&[], false),
            (&[""], false),
            (&["a b"], false),
            (&["a\"b"], false),
            (&[&long], false),
            (&["a", "a"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in given {
                let value = HeaderValue::from_str(value);
                headers.append(REQUEST_ID, value.unwrap_or(HeaderValue::from_static("")));
            }
            assert_eq!(given_id(&headers).is_some(), taken, "{given:?}");
        }
        assert_ne!(new_id(), new_id());
    }
}
