//! Content negotiation: which of two representations a client prefers (RFC 9110 §12.5.1).

use http::HeaderMap;
use http::header::ACCEPT;
use mediatype::{MediaType, MediaTypeList, ReadParams as _};

/// What is in UTF-8 here, and so may be asked for as such.
const CHARSET: &str = "utf-8";

/// A representation that there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Representation {
    /// Type and subtype.
    essence: (&'static str, &'static str),
    /// Its parameter, if it has one besides the character set.
    parameter: Option<(&'static str, &'static str)>,
}

/// JSON.
pub(crate) const JSON: Representation = Representation {
    essence: ("application", "json"),
    parameter: None,
};
/// The text format of Prometheus.
pub(crate) const METRICS: Representation = Representation {
    essence: ("text", "plain"),
    parameter: Some(("version", "0.0.4")),
};

/// Whether a client would rather have the second than the first, by the header `Accept`. Whoever does not care, or takes
/// neither, gets the first.
pub(crate) fn prefers_second(
    headers: &HeaderMap,
    first: Representation,
    second: Representation,
) -> bool {
    let values = headers.get_all(ACCEPT).iter();
    let ranges: Vec<_> = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(MediaTypeList::new)
        // What cannot be read asks for nothing that there is.
        .filter_map(Result::ok)
        .collect();
    weight(&ranges, second) > weight(&ranges, first)
}

/// The weight that the most specific range gives a representation; 0 if none fits.
fn weight(ranges: &[MediaType<'_>], representation: Representation) -> f32 {
    let fitting = ranges.iter().filter_map(|range| {
        let specificity = specificity(range, representation)?;
        Some((specificity, quality(range)))
    });
    fitting
        .max_by_key(|(specificity, _)| *specificity)
        .map_or(0.0, |(_, quality)| quality)
}

/// How closely a range describes a representation; none if it does not fit.
fn specificity(range: &MediaType<'_>, representation: Representation) -> Option<(u8, usize)> {
    let (ty, subty) = representation.essence;
    let named = if range.ty == ty && range.subty == subty {
        2
    } else if range.ty == ty && range.subty == "*" {
        1
    } else if range.ty == "*" && range.subty == "*" {
        0
    } else {
        return None;
    };
    let mut parameters = 0_usize;
    for (name, value) in range.params().filter(|(name, _)| *name != "q") {
        let value = value.unquoted_str();
        let is_its_charset = name == "charset" && value.eq_ignore_ascii_case(CHARSET);
        let is_its_own = representation
            .parameter
            .is_some_and(|(own, expected)| name == own && value == expected);
        if !is_its_charset && !is_its_own {
            return None;
        }
        parameters = parameters.saturating_add(1);
    }
    Some((named, parameters))
}

/// From 0 to 1 (RFC 9110 §12.4.2); 1 without one, or with what is none.
fn quality(range: &MediaType<'_>) -> f32 {
    range
        .params()
        .find(|(name, _)| *name == "q")
        .and_then(|(_, value)| value.as_str().parse().ok())
        .filter(|quality| (0.0..=1.0).contains(quality))
        .unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefers_text(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        prefers_second(&headers, JSON, METRICS)
    }

    #[test]
    fn json_goes_first_unless_text_weighs_more() {
        for json in [
            &[][..],
            &[""],
            &["*/*"],
            // axios, and most of its kind.
            &["application/json, text/plain, */*"],
            &["text/plain, application/json"],
            &["text/plain", "application/json"],
            &["text/*, application/*"],
            &["text/plain;q=0.9, application/json"],
            &["text/plain;q=0, */*"],
            // The more specific range decides, wherever it stands.
            &["text/plain;q=0.1, text/*, application/json;q=0.5"],
            // Neither.
            &["text/html"],
            &["text/plain;version=1.0.0"],
            &["text/plain;q=0"],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["*, text"],
            &["not text/plain"],
            &["x/y;z=\"text/plain\""],
        ] {
            assert!(!prefers_text(json), "{json:?}");
        }
        for text in [
            &["text/plain"][..],
            &["TEXT/Plain;Version=0.0.4; charset=UTF-8"],
            &["text/*"],
            &["text/plain, */*;q=0.1"],
            &["application/json;q=0, */*"],
            &["application/json;q=0.1", "text/plain;q=0.2"],
            &["application/json; q=0.001 , text/plain; q=.5"],
            // Prometheus 2 and 3.
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            &[
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            ],
        ] {
            assert!(prefers_text(text), "{text:?}");
        }
    }
}
