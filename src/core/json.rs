//! Reading JSON that others wrote, where serde alone would take too much or too little.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Reads a JSON object.
pub(crate) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    serde_json::from_slice(json)
        .ok()
        .map(|Object(object)| object)
}

/// A JSON object. serde alone would also take a list of the values, in the order of the members.
#[derive(Default)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                text.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

/// The members of an object, in their order. One that is there twice is an error: serde alone would take the last.
pub(crate) struct Members<T>(pub(crate) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                text.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(String, T)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom("a name is there twice"));
                    }
                    members.push((name, map.next_value()?));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(OfMap(PhantomData)).map(Self)
    }
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
    fn a_list_is_no_object() {
        let read = |json: &str| object::<Answer>(json.as_bytes()).map(|answer| answer.seconds);
        assert_eq!(read(r#" {"seconds":7,"more":[]} "#), Some(Some(7)));
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
