//! Reading JSON that others wrote, where serde alone would take too much or too little.

use serde::de::{Deserialize, Deserializer, Error as _};

/// Reads a JSON object. serde alone would also take an array of the values, in the order of the members.
pub(crate) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let json = json.trim_ascii_start();
    json.starts_with(b"{")
        .then(|| serde_json::from_slice(json).ok())?
}

/// Reads a whole number, or a text that is one: `3599` and `"3599"`. For `#[serde(default, deserialize_with = …)]`.
pub(crate) fn number_or_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Given {
        Number(u64),
        Text(String),
    }
    match Option::deserialize(deserializer)? {
        None => Ok(None),
        Some(Given::Number(number)) => Ok(Some(number)),
        Some(Given::Text(text)) => text.parse().map(Some).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default, deserialize_with = "number_or_text")]
        seconds: Option<u64>,
    }

    #[test]
    fn an_array_is_no_object() {
        let read = |json: &str| object::<Answer>(json.as_bytes()).map(|answer| answer.seconds);
        assert_eq!(read(r#" {"seconds":7}"#), Some(Some(7)));
        for json in ["[7]", " [7]", "7", "", "null", "{"] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[test]
    fn a_number_may_be_a_text() {
        for (json, expected) in [
            ("7", Some(Some(7))),
            ("\"7\"", Some(Some(7))),
            ("null", Some(None)),
            ("-7", None),
            ("7.5", None),
            ("\"7 s\"", None),
            ("\"\"", None),
            ("18446744073709551616", None),
        ] {
            let json = format!("{{\"seconds\":{json}}}");
            let read = serde_json::from_str(&json).ok();
            assert_eq!(read.map(|Answer { seconds }| seconds), expected, "{json}");
        }
        assert_eq!(object::<Answer>(b"{}").unwrap().seconds, None);
    }
}
