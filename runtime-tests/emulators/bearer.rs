//! The token in a request's `Authorization` header (RFC 6750 §2.1).

use http::{HeaderMap, header};

/// The bearer token. The scheme's case does not count (RFC 9110 §11.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}
