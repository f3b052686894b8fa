//! The path of a call: decoded once, looked at, and encoded anew. What is sent is what was looked at, so the API has nothing left
//! to read in another way: no second decoding, no dot segments, no other separators.

use std::{fmt, iter};

use percent_encoding::{
    AsciiSet, CONTROLS, PercentEncode, percent_decode_str, utf8_percent_encode,
};

use crate::error::call::CallDefect;

/// Longest path, in bytes, as it came and as it is sent.
const LONGEST: usize = 4096;
/// Longest query, in bytes.
const LONGEST_QUERY: usize = 16_384;
/// What is encoded of a segment: all but `pchar` of RFC 3986 §3.3, of which `;` does not occur.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// Many requests in the body of one, which no path tells of (`OData` 4.01, Part 1, §11.7).
const BATCH: &str = "$batch";

/// A path that means the same to everybody.
///
/// ```
/// use behalf_core::error::call::CallDefect;
/// use behalf_core::vault::call::path::Path;
///
/// let path = Path::parse("/v1.0/users('a%40b')/na%6De").unwrap();
/// assert_eq!(path.to_string(), "/v1.0/users('a@b')/name");
/// assert_eq!(Path::parse("/v1.0/me/%2e%2e/users"), Err(CallDefect::DotSegment));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path(Vec<String>);

impl Path {
    /// Reads a path as it came: with a slash in front, percent-encoded, without the query.
    ///
    /// # Errors
    /// [`CallDefect`].
    pub fn parse(text: &str) -> Result<Self, CallDefect> {
        if text.len() > LONGEST {
            return Err(CallDefect::TooLong);
        }
        let segments = text.strip_prefix('/').ok_or(CallDefect::EmptySegment)?;
        let segments: Vec<_> = segments.split('/').map(segment).collect::<Result<_, _>>()?;
        // What came as it is may have to be encoded.
        let sent = segments
            .iter()
            .flat_map(|it| iter::once("/").chain(encoded(it)));
        if sent.map(str::len).sum::<usize>() > LONGEST {
            return Err(CallDefect::TooLong);
        }
        Ok(Self(segments))
    }

    /// The segments, decoded.
    #[must_use]
    pub fn segments(&self) -> &[String] {
        &self.0
    }
}

/// As it is sent: encoded.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.0 {
            write!(f, "/{}", encoded(segment))?;
        }
        Ok(())
    }
}

/// Reads what is behind the question mark, which is sent as it came: it is no boundary, since what an API makes of it nobody else
/// can tell.
///
/// # Errors
/// [`CallDefect::Query`]: too long, or of characters that no URL has.
pub fn query(text: &str) -> Result<&str, CallDefect> {
    let is_of_a_url = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    if text.len() <= LONGEST_QUERY && text.bytes().all(is_of_a_url) {
        Ok(text)
    } else {
        Err(CallDefect::Query)
    }
}

fn encoded(segment: &str) -> PercentEncode<'_> {
    utf8_percent_encode(segment, ENCODED)
}

/// A segment, decoded once.
fn segment(text: &str) -> Result<String, CallDefect> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| CallDefect::NotUtf8)?.into_owned();
    for character in decoded.chars() {
        match character {
            '%' => return Err(CallDefect::Percent),
            '/' => return Err(CallDefect::Slash),
            '\\' => return Err(CallDefect::Backslash),
            ';' => return Err(CallDefect::Semicolon),
            character if character.is_control() => return Err(CallDefect::Control),
            _ => {}
        }
    }
    if decoded.is_empty() {
        return Err(CallDefect::EmptySegment);
    }
    // Dots with space around are the same to some file systems; three dots are nothing to anybody.
    if decoded.chars().all(|it| it == '.' || it.is_whitespace()) {
        return Err(CallDefect::DotSegment);
    }
    // With anything behind it: some servers leave out space, dots or parentheses there.
    let start = decoded.trim_start().get(..BATCH.len());
    if start.is_some_and(|start| start.eq_ignore_ascii_case(BATCH)) {
        return Err(CallDefect::Batch);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    #[test]
    fn what_is_sent_is_what_was_looked_at() {
        for (came, sent) in [
            ("/v1.0/me", "/v1.0/me"),
            ("/v1.0/m%65", "/v1.0/me"),
            ("/a%20b", "/a%20b"),
            ("/a+b", "/a+b"),
            ("/users('a@b')/$value", "/users('a@b')/$value"),
            ("/users(%27a%40b%27)/%24value", "/users('a@b')/$value"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/café", "/caf%C3%A9"),
            ("/what%3f/%23/[x]", "/what%3F/%23/%5Bx%5D"),
            ("/root:/a..b/.c/d.:", "/root:/a..b/.c/d.:"),
            ("/~a/!b,c=d&e*", "/~a/!b,c=d&e*"),
        ] {
            let path = Path::parse(came).unwrap_or_else(|defect| panic!("{came}: {defect}"));
            assert_eq!(path.to_string(), sent, "{came}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused_and_what_is_as_long_as_may_be_is_not() {
        let long = format!("/{}", "a".repeat(LONGEST - 1));
        assert!(Path::parse(&long).is_ok());
        assert_eq!(Path::parse(&(long + "a")), Err(CallDefect::TooLong));
        // Three times as long when it is sent.
        let long = format!("/{}", "<".repeat(LONGEST / 3));
        let path = Path::parse(&long).unwrap();
        assert_eq!(path.to_string().len(), LONGEST);
        assert_eq!(Path::parse(&(long + "<")), Err(CallDefect::TooLong));
        let long = "q".repeat(LONGEST_QUERY);
        assert_eq!(query(&long), Ok(long.as_str()));
        assert_eq!(query(&(long.clone() + "q")), Err(CallDefect::Query));
        for (text, is_one) in [
            ("", true),
            ("$filter=name%20eq%20'x'&a=b?c/d", true),
            ("a b", false),
            ("a#b", false),
            ("a\r\nHost: x", false),
            ("é", false),
        ] {
            assert_eq!(query(text).is_ok(), is_one, "{text}");
        }
    }

    /// Segments in which what matters is likely.
    fn paths() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[a-z]{1,3}",
            1 => "[%./\\\\;$ ]{1,3}",
            1 => Just("..".to_owned()),
            1 => Just("$BaTch".to_owned()),
            1 => Just("\u{2024}\u{ff0f}é".to_owned()),
            2 => any::<u8>().prop_map(|byte| format!("%{byte:02x}")),
            1 => any::<u8>().prop_map(|byte| format!("%25{byte:02X}")),
            1 => any::<char>().prop_map(String::from),
            2 => Just("/".to_owned()),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_can_be_read_in_another_way(came in paths()) {
            let Ok(path) = Path::parse(&came) else { return Ok(()) };
            let sent = path.to_string();
            // To whoever decodes it once more, too, it is the same.
            let again = Path::parse(&sent).unwrap();
            prop_assert_eq!(&again, &path);
            prop_assert_eq!(again.to_string(), sent.clone());
            let lower = sent.to_ascii_lowercase();
            for never in ["//", "/./", "/../", "%2f", "%5c", "\\", ";", "%3b", "%2e", "%00", "%25"] {
                prop_assert!(!lower.contains(never), "{never} in {sent}");
            }
            prop_assert!(sent.bytes().all(|byte| byte.is_ascii_graphic()));
            // As every browser reads URLs, which is another's code.
            let url = Url::parse(&format!("https://api.example{sent}")).unwrap();
            prop_assert_eq!(url.path(), sent.as_str());
            prop_assert_eq!(url.path_segments().unwrap().count(), path.segments().len());
            prop_assert_eq!((url.host_str(), url.query(), url.fragment()), (Some("api.example"), None, None));
        }
    }
}
