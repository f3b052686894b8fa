//! What crosses with a call, either way: the headers of two lists, and what the setting `apis` adds to them.
//!
//! Some cannot be added: those that a connection needs, those that say who calls or what is called in other words, and those of an
//! answer that would act on this origin in a browser.

use http::header::{self, HeaderMap, HeaderName};

/// Longest name that can be added, in bytes.
const LONGEST: usize = 64;
/// What of a request is passed on.
const OF_REQUESTS: [&str; 28] = [
    // What is wanted (RFC 9110 §12.5), and from which state on (§13, §14).
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
    "prefer",
    "user-agent",
    // What the body is (RFC 9110 §8).
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "idempotency-key",
    "slug",
    // OData's and Microsoft Graph's own.
    "consistencylevel",
    "odata-maxversion",
    "odata-version",
    "client-request-id",
    "return-client-request-id",
    // Where it belongs (W3C Trace Context).
    "traceparent",
    "tracestate",
];
/// What of an answer is passed on.
const OF_RESPONSES: [&str; 30] = [
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "deprecation",
    "etag",
    "expires",
    "last-modified",
    "link",
    "location",
    "odata-version",
    "preference-applied",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "sunset",
    "vary",
    "warning",
    "www-authenticate",
    // Microsoft Graph's own.
    "client-request-id",
    "request-id",
    "x-content-type-options",
];
/// What can be added to neither list: a connection's own (RFC 9110 §7.6.1), and lengths.
const OF_CONNECTIONS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];
/// What cannot be added to requests: it says who calls, or what is called, in other words.
const NOT_OF_REQUESTS: [&str; 7] = [
    "authorization",
    "cookie",
    "cookie2",
    "forwarded",
    "origin",
    "referer",
    "x-ms-authorization-auxiliary",
];
/// The same, by how they begin.
const NOT_OF_REQUESTS_BEGINNING: [&str; 12] = [
    "access-control-",
    "proxy-",
    "sec-",
    "x-forwarded",
    "x-http-method",
    "x-host",
    "x-method",
    "x-original-",
    "x-override-",
    "x-real-",
    "x-rewrite-",
    "x-proxy",
];
/// What cannot be added to answers: a browser would take it for this origin's, or a client for ours.
const NOT_OF_RESPONSES: [&str; 15] = [
    "alt-svc",
    "authentication-info",
    "behalf-upstream",
    "clear-site-data",
    "nel",
    "public-key-pins",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "sourcemap",
    "strict-transport-security",
    "x-request-id",
];
/// The same, by how they begin.
const NOT_OF_RESPONSES_BEGINNING: [&str; 3] = ["access-control-", "cross-origin-", "proxy-"];

/// Which way headers go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To the API.
    Request,
    /// From it.
    Response,
}

impl Way {
    /// Reads the name of a header that is to be passed on, too.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn added(self, name: &str) -> Result<HeaderName, &'static str> {
        let given = name.len() <= LONGEST;
        let read = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .filter(|_| given);
        let read = read.ok_or("is no name of a header of 64 characters at most")?;
        let (names, beginnings) = match self {
            Self::Request => (&NOT_OF_REQUESTS[..], &NOT_OF_REQUESTS_BEGINNING[..]),
            Self::Response => (&NOT_OF_RESPONSES[..], &NOT_OF_RESPONSES_BEGINNING[..]),
        };
        let text = read.as_str();
        let is_never = OF_CONNECTIONS.contains(&text)
            || names.contains(&text)
            || beginnings
                .iter()
                .any(|beginning| text.starts_with(beginning));
        if is_never {
            Err("is a header that is never passed on")
        } else {
            Ok(read)
        }
    }

    /// What of these is passed on. A header that the connection names as its own (`Connection: …`) is not.
    #[must_use]
    pub fn pass(self, from: &HeaderMap, added: &[HeaderName]) -> HeaderMap {
        let own = match self {
            Self::Request => &OF_REQUESTS[..],
            Self::Response => &OF_RESPONSES[..],
        };
        let of_connection = |name: &HeaderName| {
            let values = from.get_all(header::CONNECTION).iter();
            let names = values.filter_map(|value| value.to_str().ok());
            let mut names = names.flat_map(|value| value.split(','));
            names.any(|it| it.trim().eq_ignore_ascii_case(name.as_str()))
        };
        let passed = from.iter().filter(|(name, _)| {
            (own.contains(&name.as_str()) || added.contains(name)) && !of_connection(name)
        });
        let mut to = HeaderMap::new();
        for (name, value) in passed {
            to.append(name.clone(), value.clone());
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(names: &[&str]) -> HeaderMap {
        let value = HeaderValue::from_static("x");
        let pairs = names.iter().map(|name| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.clone(),
            )
        });
        pairs.collect()
    }

    fn passed(way: Way, names: &[&str], added: &[&str]) -> Vec<String> {
        let added: Vec<_> = added.iter().map(|name| way.added(name).unwrap()).collect();
        let passed = way.pass(&map(names), &added);
        let mut names: Vec<_> = passed.keys().map(|name| name.as_str().to_owned()).collect();
        names.sort_unstable();
        names
    }

    const NEVER_IN: [&str; 24] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "x-forwarded",
        "x-http-method",
        "X-HTTP-Method-Override",
        "x-method-override",
        "x-original-url",
        "x-original-host",
        "x-rewrite-url",
        "x-real-ip",
        "host",
        "connection",
        "upgrade",
        "transfer-encoding",
        "te",
        "trailer",
        "expect",
        "via",
        "origin",
    ];
    const NEVER_OUT: [&str; 13] = [
        "set-cookie",
        "Set-Cookie2",
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "alt-svc",
        "clear-site-data",
        "connection",
        "trailer",
        "transfer-encoding",
        "proxy-authenticate",
        "strict-transport-security",
        "behalf-upstream",
        "x-request-id",
    ];

    #[test]
    fn what_is_on_no_list_stays_out_and_some_cannot_be_added() {
        let unknown = ["x-ms-foo", "x-anything"];
        for (way, never) in [
            (Way::Request, &NEVER_IN[..]),
            (Way::Response, &NEVER_OUT[..]),
        ] {
            assert_eq!(passed(way, never, &[]), [""; 0]);
            assert_eq!(passed(way, &unknown, &[]), [""; 0]);
            assert_eq!(passed(way, &unknown, &["X-Ms-Foo"]), ["x-ms-foo"]);
            for name in never {
                let fault = way.added(name).unwrap_err();
                assert_eq!(fault, "is a header that is never passed on", "{name}");
            }
        }
        for name in ["", "a b", "a:", "é", &"x".repeat(65)] {
            assert!(
                Way::Request.added(name).unwrap_err().contains("no name"),
                "{name}"
            );
        }
    }

    /// Nothing on a list of what passes is on one of what cannot.
    #[test]
    fn the_lists_do_not_contradict_each_other() {
        for (way, own) in [
            (Way::Request, &OF_REQUESTS[..]),
            (Way::Response, &OF_RESPONSES[..]),
        ] {
            let mut expected: Vec<_> = own.to_vec();
            expected.sort_unstable();
            assert_eq!(passed(way, own, &[]), expected);
            for name in own.iter().filter(|name| **name != "content-length") {
                assert!(way.added(name).is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn every_value_of_a_header_passes_and_what_the_connection_names_does_not() {
        let mut headers = map(&["accept", "prefer"]);
        headers.append("accept", HeaderValue::from_static("y"));
        headers.append("connection", HeaderValue::from_static("close, Prefer"));
        let passed = Way::Request.pass(&headers, &[]);
        assert_eq!(passed.get_all("accept").iter().count(), 2);
        assert_eq!(passed.len(), 2, "{passed:?}");
    }
}
