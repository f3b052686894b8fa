//! Answers of APIs that were called, as they are passed on.

use http::HeaderValue;
use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, VARY};

/// The API that an answer is from: without it, it is ours. So nobody takes an API's 401 for one of ours.
const UPSTREAM: HeaderName = HeaderName::from_static("behalf-upstream");
/// What of an API's `Cache-Control` stays (RFC 9111 §5.2.2): the rest is for caches that many share, and this answer is one
/// caller's.
const KEPT: [&str; 7] = [
    "no-store",
    "no-cache",
    "max-age",
    "must-revalidate",
    "no-transform",
    "immutable",
    "must-understand",
];

/// Says in an answer whose it is, and that it is for its caller alone.
pub(super) fn mark(headers: &mut HeaderMap, api: &str) {
    if let Ok(api) = HeaderValue::try_from(api) {
        headers.insert(UPSTREAM, api);
    }
    let control = cache_control(headers);
    headers.insert(CACHE_CONTROL, control);
    headers.append(VARY, HeaderValue::from_static("Authorization"));
}

fn cache_control(headers: &HeaderMap) -> HeaderValue {
    let values = headers.get_all(CACHE_CONTROL).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    let directives = values.flat_map(|value| value.split(',')).map(str::trim);
    // One with fields in quotes falls apart here, and its name is left: which says more, and is on the safe side.
    let directives = directives.filter(|directive| {
        let name = directive.split('=').next().unwrap_or_default();
        KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name))
    });
    let directives = directives.map(|directive| {
        let is_plain = !directive.contains('"');
        let name = directive.split('=').next().unwrap_or_default();
        if is_plain { directive } else { name }
    });
    let all: Vec<_> = std::iter::once("private").chain(directives).collect();
    HeaderValue::try_from(all.join(", ")).unwrap_or(HeaderValue::from_static("private"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_callers_alone_whatever_the_api_says() {
        for (given, expected) in [
            (&[][..], "private"),
            (&["public, max-age=60"], "private, max-age=60"),
            (&["s-maxage=60"], "private"),
            (&["no-store"], "private, no-store"),
            (
                &["No-Cache, private", "must-revalidate"],
                "private, No-Cache, must-revalidate",
            ),
            (
                &["no-cache=\"set-cookie, x\", max-age=1"],
                "private, no-cache, max-age=1",
            ),
            (&["private=\"x\", public"], "private"),
            (&["\u{e9}"], "private"),
        ] {
            let mut headers = HeaderMap::new();
            for value in given {
                headers.append(CACHE_CONTROL, HeaderValue::try_from(*value).unwrap());
            }
            headers.insert(VARY, HeaderValue::from_static("accept"));
            mark(&mut headers, "graph");
            assert_eq!(headers[CACHE_CONTROL], expected, "{given:?}");
            let vary: Vec<_> = headers.get_all(VARY).iter().collect();
            assert_eq!(vary, ["accept", "Authorization"]);
            assert_eq!(headers[UPSTREAM], "graph");
        }
    }
}
