//! What a request is for, in full.

use http::header::HOST;
use http::uri::{Authority, Scheme, Uri};
use http::{Request, Version};
use std::net::SocketAddr;
use wasmtime_wasi_http::WasiBody;

/// Gives a request's URI its scheme and authority, from the `Host` header where the request line has none. In HTTP/1.0,
/// which has no such header, it is the address that the request came to.
///
/// # Errors
///
/// There is no authority, or there are two (RFC 9112 §3.2); as text for the client.
pub(crate) fn complete_uri(
    request: &mut Request<WasiBody>,
    scheme: Scheme,
    local: SocketAddr,
) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host
                .to_str()
                .ok()
                .and_then(|host| host.parse::<Authority>().ok());
            Some(host.ok_or("The Host header is malformed.\n")?)
        }
        (None, _) => None,
        (Some(_), Some(_)) => return Err("There is more than one Host header.\n"),
    };
    let is_old = request.version() < Version::HTTP_11;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.authority = match (header, parts.authority) {
        (Some(header), Some(authority)) if header != authority => {
            return Err("The Host header contradicts the URI.\n");
        }
        (Some(authority), _) | (None, Some(authority)) => Some(authority),
        (None, None) if is_old => local.to_string().parse().ok(),
        (None, None) => return Err("There is no Host header.\n"),
    };
    parts.scheme = Some(scheme);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| "The URI is malformed.\n")?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::answers::empty;

    #[test]
    fn a_request_has_one_authority() {
        let complete = |uri: &str, host: Option<&str>| {
            let mut request = Request::get(uri);
            if let Some(host) = host {
                request = request.header(HOST, host);
            }
            let mut request = request.body(empty()).unwrap();
            let local = SocketAddr::from(([127, 0, 0, 1], 3000));
            complete_uri(&mut request, Scheme::HTTP, local).map(|()| request.uri().to_string())
        };
        assert_eq!(
            complete("/a?b", Some("h.test:3000")).unwrap(),
            "http://h.test:3000/a?b"
        );
        assert_eq!(
            complete("http://h.test/a", None).unwrap(),
            "http://h.test/a"
        );
        assert_eq!(
            complete("http://h.test/a", Some("h.test")).unwrap(),
            "http://h.test/a"
        );
        assert!(complete("http://h.test/a", Some("other.test")).is_err());
        assert!(complete("/a", Some("not an authority")).is_err());
        assert!(complete("/a", None).is_err());
    }
}
