//! The search for secrets where none may be, in every form that one is likely to leak in.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::bail;
use base64::prelude::{
    BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _,
};

use crate::app::Answer;
use crate::emulators::{Emulators, OTHER_USER, USER};

/// Checks that nothing secret is in what left the app: neither what the emulators know, nor an identity.
pub fn none_in(
    emulators: &Emulators,
    places: impl IntoIterator<Item = String>,
) -> anyhow::Result<()> {
    let mut secrets = emulators.secrets();
    // From Entra ID's descriptions of errors, which name users.
    secrets.push("demo.user@contoso.example".to_owned());
    for user in [USER, OTHER_USER] {
        secrets.extend([user.to_owned(), user.replace('-', "")]);
    }
    let secrets = Secrets::new(&secrets);
    for place in places {
        if let Some(found) = secrets.found_in(&place) {
            bail!("{found}, is in: {place}");
        }
    }
    Ok(())
}

/// An answer as a place to search, without the access token that it may be there to hold, and without what an API that was called
/// calls its user.
#[must_use]
pub fn place_of(answer: &Answer, path: &str) -> String {
    let mut text = format!("{:?}\n{}", answer.headers, answer.text);
    if answer.headers.contains_key("behalf-upstream") {
        text = text.replace(USER, "(the user)");
    }
    let issued = answer.status == 200 && path.ends_with("/access-token");
    match answer.json["access_token"].as_str() {
        Some(token) if issued => text.replacen(token, "(the access token)", 1),
        Some(_) | None => text,
    }
}

/// What is searched for.
pub struct Secrets {
    /// Each form, with the secret's number and the form's name: a message must not spread the secret further.
    needles: Vec<(String, String)>,
}

impl Secrets {
    /// These, as they are, hexadecimal, as a list of numbers (how `Debug` shows bytes), percent-encoded, and within
    /// base64 and base64url whatever stands before and behind them. One that is base64 of 32 bytes is a key, and its
    /// bytes are searched for as well.
    #[must_use]
    pub fn new(secrets: &[String]) -> Self {
        let mut needles = BTreeSet::new();
        for (number, secret) in secrets.iter().enumerate() {
            let mut add = |bytes: &[u8], what: &str| {
                for (form, needle) in forms(bytes) {
                    needles.insert((needle, format!("secret {number}{what}, {form}")));
                }
            };
            add(secret.as_bytes(), "");
            let key = BASE64_STANDARD.decode(secret).ok();
            if let Some(key) = key.filter(|key| key.len() == 32) {
                add(&key, " (the key's bytes)");
            }
        }
        Self {
            needles: needles.into_iter().collect(),
        }
    }

    /// What of them is in a text, if any is.
    #[must_use]
    pub fn found_in(&self, text: &str) -> Option<&str> {
        self.needles
            .iter()
            .find(|(needle, _)| text.contains(needle))
            .map(|(_, what)| what.as_str())
    }
}

fn forms(secret: &[u8]) -> Vec<(&'static str, String)> {
    let mut forms = vec![
        ("hexadecimal", hex(secret)),
        ("hexadecimal in upper case", hex(secret).to_uppercase()),
        ("a list of numbers", numbers(secret)),
    ];
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.push(("as it is", text.to_owned()));
        let encoded = url::form_urlencoded::byte_serialize(secret).collect();
        forms.push(("percent-encoded", encoded));
    }
    for before in 0..3 {
        forms.push(("in base64", within(&BASE64_STANDARD_NO_PAD, before, secret)));
        forms.push((
            "in base64url",
            within(&BASE64_URL_SAFE_NO_PAD, before, secret),
        ));
    }
    forms
}

/// The characters of base64 that depend on the secret alone, when so many bytes (modulo 3) stand before it.
fn within(engine: &impl base64::Engine, before: usize, secret: &[u8]) -> String {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(secret);
    let encoded = engine.encode(&bytes);
    let first = (before * 8).div_ceil(6);
    let end = bytes.len() * 8 / 6;
    encoded[first..end].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn numbers(bytes: &[u8]) -> String {
    let list = format!("{bytes:?}");
    list.trim_matches(['[', ']']).to_owned()
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_URL_SAFE;

    use super::*;

    const TOKEN: &str = "0.AX-refresh?token~of/some+length";

    #[test]
    fn a_secret_is_found_in_every_form() {
        let secrets = Secrets::new(&[TOKEN.to_owned()]);
        for (form, text) in [
            ("raw", format!("x{TOKEN}y")),
            ("hex", format!("00{}00", hex(TOKEN.as_bytes()))),
            ("HEX", hex(TOKEN.as_bytes()).to_uppercase()),
            ("Debug", format!("{:?}", [b"ab", TOKEN.as_bytes()].concat())),
            (
                "a query",
                url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("t", TOKEN)
                    .finish(),
            ),
        ] {
            assert!(secrets.found_in(&text).is_some(), "{form}: {text}");
        }
        // Whatever is around it, and with padding or without.
        for before in ["", "a", "ab", "abc", "{\"t\":\""] {
            for behind in ["", "x", "xy", "xyz", "\"}"] {
                let whole = format!("{before}{TOKEN}{behind}");
                for text in [
                    BASE64_STANDARD.encode(&whole),
                    BASE64_STANDARD_NO_PAD.encode(&whole),
                    BASE64_URL_SAFE.encode(&whole),
                    BASE64_URL_SAFE_NO_PAD.encode(&whole),
                ] {
                    assert!(secrets.found_in(&text).is_some(), "{whole}: {text}");
                }
            }
        }
        assert_eq!(secrets.found_in(&TOKEN[1..]), None);
        assert_eq!(secrets.found_in(&BASE64_STANDARD.encode(&TOKEN[1..])), None);
    }

    #[test]
    fn a_keys_bytes_are_found() {
        let bytes: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7 + 3).unwrap());
        let secrets = Secrets::new(&[BASE64_STANDARD.encode(bytes)]);
        for text in [
            hex(&bytes),
            format!("{bytes:?}"),
            BASE64_URL_SAFE_NO_PAD.encode(bytes),
            BASE64_STANDARD.encode([b"k", &bytes[..]].concat()),
        ] {
            assert!(secrets.found_in(&text).is_some(), "{text}");
        }
    }
}
