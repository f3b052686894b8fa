//! What may be called: a method, and a pattern of paths, like `GET /v1.0/me/**`.

use http::Method;

use crate::error::call::CallDefect;
use crate::vault::call::path::Path;

/// Longest pattern, in bytes.
const LONGEST: usize = 512;
/// Methods that no pattern allows: a proxy has to answer one itself, and the other two show headers that were put in on the way,
/// which are the access token (RFC 9110 §9.3.6, §9.3.8; `TRACK` is what some servers call the latter).
const NEVER: [&str; 3] = ["CONNECT", "TRACE", "TRACK"];

/// A method and the paths that go with it. A path matches as a whole, in the same case: `*` stands for one segment, `**` for any
/// number of them, none included.
///
/// ```
/// use behalf_core::vault::call::path::Path;
/// use behalf_core::vault::call::pattern::Pattern;
/// use http::Method;
///
/// let pattern = Pattern::parse("GET /v1.0/me/messages/*").unwrap();
/// let path = |text| Path::parse(text).unwrap();
/// assert!(pattern.matches(&Method::GET, &path("/v1.0/me/messages/7")));
/// assert!(!pattern.matches(&Method::GET, &path("/v1.0/me/messages/7/attachments")));
/// assert!(!pattern.matches(&Method::PUT, &path("/v1.0/me/messages/7")));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    text: String,
    method: Method,
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Segment(String),
    One,
    AnyNumber,
}

impl Pattern {
    /// Reads one. Paths in it are written as they are meant, not encoded.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must be a method and a path, like \"GET /v1.0/me/**\"";
        if text.len() > LONGEST {
            return Err("is over 512 bytes long");
        }
        let (method, path) = text.split_once(' ').ok_or(EXPECTED)?;
        let is_word = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
        let method = Method::from_bytes(method.as_bytes())
            .ok()
            .filter(|_| is_word)
            .ok_or(EXPECTED)?;
        allowed(&method)
            .map_err(|_| "has a method that is always refused: TRACE, TRACK or CONNECT")?;
        let segments = path.strip_prefix('/').ok_or(EXPECTED)?.split('/');
        let parts = segments.map(Part::parse).collect::<Result<Vec<_>, _>>()?;
        if path.contains(['?', '#']) {
            return Err("has a query: it passes whatever it is, so leave it out");
        }
        Ok(Self {
            text: text.into(),
            method,
            parts,
        })
    }

    /// As it stands in the setting.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it allows a call.
    #[must_use]
    pub fn matches(&self, method: &Method, path: &Path) -> bool {
        self.method == *method && matches(&self.parts, path.segments())
    }
}

impl Part {
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "*" => Ok(Self::One),
            "**" => Ok(Self::AnyNumber),
            text if text.contains('*') => {
                Err("has a `*` beside other characters: it stands for a whole segment")
            }
            text => {
                // What a path can never be would allow nothing, and look as if it did.
                let path = Path::parse(&format!("/{text}"));
                let path = path.map_err(|_| "has a segment that no path has: it is empty or of dots, begins with $batch, or has one of % \\ ; or a control character")?;
                let segment = path.segments().first().filter(|segment| *segment == text);
                segment
                    .cloned()
                    .map(Self::Segment)
                    .ok_or("is encoded: write it as it is meant")
            }
        }
    }

    fn fits(&self, segment: &str) -> bool {
        match self {
            Self::Segment(text) => text == segment,
            Self::One | Self::AnyNumber => true,
        }
    }
}

/// Looks at a method.
///
/// # Errors
/// [`CallDefect::Method`]: no API is called with it.
pub fn allowed(method: &Method) -> Result<(), CallDefect> {
    let is_this = |never: &&str| method.as_str().eq_ignore_ascii_case(never);
    if NEVER.iter().any(is_this) {
        Err(CallDefect::Method)
    } else {
        Ok(())
    }
}

/// The usual way with one place to come back to, the last `**`: time grows with the product of the lengths, never faster.
fn matches(parts: &[Part], segments: &[String]) -> bool {
    let (mut part, mut segment) = (0_usize, 0_usize);
    let mut back: Option<(usize, usize)> = None;
    while let Some(text) = segments.get(segment) {
        match parts.get(part) {
            Some(Part::AnyNumber) => {
                part = part.saturating_add(1);
                back = Some((part, segment));
            }
            Some(fitting) if fitting.fits(text) => {
                part = part.saturating_add(1);
                segment = segment.saturating_add(1);
            }
            _ => {
                let Some((behind, taken)) = back else {
                    return false;
                };
                let next = taken.saturating_add(1);
                back = Some((behind, next));
                (part, segment) = (behind, next);
            }
        }
    }
    let rest = parts.get(part..).unwrap_or_default();
    rest.iter().all(|part| *part == Part::AnyNumber)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_the_whole_path_in_the_same_case() {
        for (pattern, path, expected) in [
            ("GET /v1.0/me", "/v1.0/me", true),
            ("GET /v1.0/me", "/v1.0/m%65", true),
            ("GET /v1.0/me", "/v1.0/ME", false),
            ("GET /v1.0/me", "/v1.0/me/messages", false),
            ("GET /v1.0/me", "/v1.0", false),
            ("GET /v1.0/me", "/x/v1.0/me", false),
            ("GET /v1.0/me", "/v1.0/me.", false),
            ("GET /v1.0/me", "/v1.0/meeting", false),
            ("GET /v1.0/me/*", "/v1.0/me/messages", true),
            ("GET /v1.0/me/*", "/v1.0/me", false),
            ("GET /v1.0/me/*", "/v1.0/me/messages/7", false),
            ("GET /v1.0/me/**", "/v1.0/me", true),
            ("GET /v1.0/me/**", "/v1.0/me/messages/7", true),
            ("GET /v1.0/me/**", "/v1.0/users/me", false),
            ("GET /**", "/anything/at/all", true),
            ("GET /a/**/z", "/a/z", true),
            ("GET /a/**/z", "/a/b/z/c/z", true),
            ("GET /a/**/z", "/a/b/z/c", false),
            ("GET /a/**/b/*/**", "/a/b/c", true),
            ("GET /a/**/b/*/**", "/a/x/b", false),
            (
                "GET /users/*/photo/$value",
                "/users/a%40b/photo/$value",
                true,
            ),
            ("GET /café/x y", "/caf%c3%a9/x%20y", true),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            let path = Path::parse(path).unwrap();
            assert_eq!(
                pattern.matches(&Method::GET, &path),
                expected,
                "{pattern:?} {path}"
            );
            assert!(
                !pattern.matches(&Method::HEAD, &path),
                "a method is one method"
            );
        }
    }

    #[test]
    fn what_is_wrong_in_a_pattern_is_told() {
        for (pattern, told) in [
            ("", "must be a method and a path"),
            ("/v1.0/me", "must be a method and a path"),
            ("GET", "must be a method and a path"),
            ("GET v1.0/me", "must be a method and a path"),
            ("get /v1.0/me", "must be a method and a path"),
            ("* /v1.0/me", "must be a method and a path"),
            ("GET  /v1.0/me", "must be a method and a path"),
            (
                "GET https://api.example/v1.0",
                "must be a method and a path",
            ),
            ("TRACE /v1.0/me", "always refused"),
            ("CONNECT /v1.0/me", "always refused"),
            ("GET /", "no path has"),
            ("GET /v1.0/me/", "no path has"),
            ("GET /v1.0//me", "no path has"),
            ("GET /v1.0/../me", "no path has"),
            ("POST /v1.0/$batch", "no path has"),
            ("GET /a;b", "no path has"),
            ("GET /a\\b", "no path has"),
            ("GET /a\tb", "no path has"),
            ("GET /a%25b", "no path has"),
            ("GET /a%20b", "is encoded"),
            ("GET /me*", "stands for a whole segment"),
            ("GET /***", "stands for a whole segment"),
            ("GET /me?$select=*", "stands for a whole segment"),
            ("GET /me?$select=id", "has a query"),
            (
                &format!("GET /{}", "a".repeat(LONGEST)),
                "is over 512 bytes",
            ),
        ] {
            let fault = Pattern::parse(pattern).unwrap_err();
            assert!(fault.contains(told), "{pattern}: {fault}");
        }
    }

    /// All ways, by trying them; the other way is fast.
    fn by_trial(parts: &[Part], segments: &[String]) -> bool {
        match (parts, segments) {
            ([], segments) => segments.is_empty(),
            ([Part::AnyNumber, rest @ ..], segments) => {
                (0..=segments.len()).any(|taken| by_trial(rest, &segments[taken..]))
            }
            ([part, parts @ ..], [segment, segments @ ..]) => {
                part.fits(segment) && by_trial(parts, segments)
            }
            ([_, ..], []) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_is_the_same_as_trying_every_way(
            parts in prop::collection::vec("a|b|\\*|\\*\\*", 1..7),
            segments in prop::collection::vec("a|b|c", 1..7),
        ) {
            let mut text = String::from("GET ");
            for part in &parts {
                write!(text, "/{part}").unwrap();
            }
            let pattern = Pattern::parse(&text).unwrap();
            prop_assert_eq!(matches(&pattern.parts, &segments), by_trial(&pattern.parts, &segments), "{}", text);
        }
    }

    #[test]
    fn many_stars_take_no_more_than_their_time() {
        let pattern = Pattern::parse(&format!("GET {}/end", "/**/a".repeat(60))).unwrap();
        let path = Path::parse(&"/a".repeat(2000)).unwrap();
        assert!(!pattern.matches(&Method::GET, &path));
    }
}
