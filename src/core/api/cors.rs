//! Cross-origin requests, from pages of the origins in the setting `cors_origins`
//! (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! Only what a page may do for its own user: enrol, see, remove. What draws is not for browsers. No answer allows
//! credentials: callers send a token, and a browser has no cookie here.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response};

use crate::api::{UserPath, no_content, user_path};
use crate::vault::port::{Policy, Subject};

/// Seconds for which a browser may remember what it may do.
const REMEMBERED: &str = "600";

/// A request of a page that may read its answer.
pub(super) struct Cors {
    origin: HeaderValue,
    methods: &'static str,
    is_preflight: bool,
}

impl Cors {
    /// Of a request; none: it is of no page, or of one that may not read it. The settings are looked at only for a page.
    pub(super) fn of(request: &Parts, settings: impl FnOnce() -> Option<Policy>) -> Option<Self> {
        let mut origins = request.headers.get_all(ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else {
            return None;
        };
        let (Subject::Me, path @ (UserPath::User | UserPath::RefreshToken)) =
            user_path(request.uri.path())?.ok()?
        else {
            return None;
        };
        let allowed = settings()?.cors_origins;
        allowed
            .iter()
            .any(|allowed| allowed.as_bytes() == origin.as_bytes())
            .then(|| Self {
                origin: origin.clone(),
                methods: path.methods(&Subject::Me),
                is_preflight: request.method == Method::OPTIONS
                    && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD),
            })
    }

    /// The answer to a browser that asks first.
    pub(super) fn preflight(&self) -> Option<Response<Bytes>> {
        if !self.is_preflight {
            return None;
        }
        let mut response = no_content();
        let headers = response.headers_mut();
        for (name, value) in [
            (ACCESS_CONTROL_ALLOW_METHODS, self.methods),
            (
                ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, x-request-id",
            ),
            (ACCESS_CONTROL_MAX_AGE, REMEMBERED),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Some(response)
    }

    /// Lets the page read an answer, whatever it is.
    pub(super) fn allow(self, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin);
        headers.insert(VARY, HeaderValue::from_static("origin"));
        let readable = "retry-after, www-authenticate, x-request-id";
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static(readable),
        );
    }
}
