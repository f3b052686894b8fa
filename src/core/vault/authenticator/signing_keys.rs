//! Entra ID's signing keys, and when they are asked for.

use std::cell::Cell;
use std::rc::Rc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use rsa::pkcs1v15::VerifyingKey;
use rsa::{BoxedUint, PublicKey};
use serde::Deserialize;
use sha2::Sha256;

use crate::error::{System, VaultError};
use crate::json::{self, Object};
use crate::port::SecretBody;
use crate::vault::cache::Cache;
use crate::vault::clock_check::date;
use crate::vault::context::{Context, Environment};
use crate::vault::issuer::IssuerTemplate;
use crate::vault::single_flight::SingleFlight;

/// Age at which signing keys are fetched again, in seconds.
pub(crate) const FRESH: u64 = 3600;
/// Age up to which they are used, also when they cannot be fetched, in seconds.
pub(super) const USABLE: u64 = 86_400;
/// Seconds between two fetches for the sake of an unknown `kid`.
pub(super) const PAUSE: u64 = 300;
/// Longest document read, in bytes: one holds about ten keys of 2 to 3 KiB.
const LONGEST: usize = 512 * 1024;

/// Most signing keys kept of one document; Entra ID publishes fewer than ten.
const MOST_KEYS: usize = 64;
/// Weakest key accepted, in bits.
const LEAST_BITS: u32 = 2048;

/// Entra ID's signing keys.
#[derive(Debug)]
pub struct SigningKeys(Vec<SigningKey>);

impl SigningKeys {
    /// Reads a JWK set (RFC 7517 §5). Keys of another kind or use are passed over, as the RFC says.
    ///
    /// # Errors
    /// None if it is no JWK set, or holds no usable key.
    #[must_use]
    pub fn parse(document: &[u8]) -> Option<Self> {
        let set: RawKeys = json::object(document)?;
        let keys: Vec<_> = set
            .keys
            .into_iter()
            .filter_map(SigningKey::read)
            .take(MOST_KEYS)
            .collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// The key of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&SigningKey> {
        self.0.iter().find(|key| key.id == id)
    }
}

/// One signing key.
#[derive(Debug)]
pub struct SigningKey {
    id: String,
    pub(super) issuer: Option<IssuerTemplate>,
    pub(super) key: VerifyingKey<Sha256>,
}

impl SigningKey {
    fn read(raw: serde_json::Value) -> Option<Self> {
        let Object(raw): Object<RawKey> = serde_json::from_value(raw).ok()?;
        if raw.kty != "RSA" || raw.r#use.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let number = |text: String| {
            Some(BoxedUint::from_be_slice_vartime(
                &URL_SAFE_NO_PAD.decode(text).ok()?,
            ))
        };
        let (modulus, exponent) = (number(raw.n)?, number(raw.e)?);
        if modulus.bit_width_vartime() < LEAST_BITS {
            return None;
        }
        Some(Self {
            id: raw.kid,
            issuer: raw.issuer.as_deref().map(IssuerTemplate::new),
            key: VerifyingKey::new(PublicKey::new(modulus, exponent).ok()?),
        })
    }
}

/// Where signing keys come from. Ages are of the clock that nobody sets.
pub(crate) struct SigningKeySource {
    known: Cache<(), Rc<SigningKeys>>,
    /// When somebody last asked for newer ones, whatever came of it.
    asked_at: Cell<u64>,
    fetches: SingleFlight<(), Fetched, VaultError>,
}

/// What a fetch brought.
#[derive(Clone)]
pub(crate) struct Fetched {
    keys: Rc<SigningKeys>,
    /// Whether the answer had a date.
    pub(crate) is_dated: bool,
}

impl SigningKeySource {
    /// None known yet.
    pub(crate) fn new() -> Self {
        Self {
            known: Cache::new(1),
            asked_at: Cell::new(0),
            fetches: SingleFlight::new(VaultError::upstream(System::SigningKeys)),
        }
    }

    /// The signing keys, to find this one in. They are fetched anew when they are old; and for the sake of one that
    /// they lack, but not if that was less than five minutes ago. Those that cannot be fetched anew serve up to their
    /// age.
    ///
    /// # Errors
    /// [`VaultError::Upstream`].
    pub(crate) async fn to_find<E: Environment>(
        &self,
        context: &Context<'_, E>,
        id: &str,
    ) -> Result<Rc<SigningKeys>, VaultError> {
        let now = context.uptime();
        let known = self.known.get_with_age(&(), now);
        let serves = |keys: &SigningKeys| keys.find(id).is_some();
        if let Some((keys, age)) = &known {
            // Whom they serve does not wait for newer ones that another has asked for.
            let since_asked = now.saturating_sub(self.asked_at.get());
            let is_enough = if serves(keys) {
                *age < FRESH || since_asked < PAUSE
            } else {
                *age < PAUSE
            };
            if is_enough {
                return Ok(Rc::clone(keys));
            }
        }
        let fetched = self.fetch(context).await.map(|fetched| fetched.keys);
        match known {
            Some((keys, _)) if fetched.is_err() && serves(&keys) => Ok(keys),
            _ => fetched,
        }
    }

    /// Fetches them, once at a time, whoever wants them and for whatever.
    ///
    /// # Errors
    /// [`VaultError::Upstream`].
    pub(crate) async fn fetch<E: Environment>(
        &self,
        context: &Context<'_, E>,
    ) -> Result<Fetched, VaultError> {
        self.fetches
            .run(context.env, &(), context.deadline, async || {
                self.asked_at.set(context.uptime());
                self.ask(context).await
            })
            .await
    }

    /// Asks for them, at one URL for all tenants, so that a token cannot make the vault ask for a tenant of its choice.
    async fn ask<E: Environment>(&self, context: &Context<'_, E>) -> Result<Fetched, VaultError> {
        let unavailable = || VaultError::upstream(System::SigningKeys);
        let request = Request::get(format!("{}common/discovery/v2.0/keys", context.authority))
            .body(SecretBody::default())
            .map_err(|_| unavailable())?;
        let response = context.send(request, LONGEST, System::SigningKeys).await?;
        if !response.status().is_success() {
            return Err(unavailable());
        }
        let keys = SigningKeys::parse(response.body()).ok_or_else(unavailable)?;
        Ok(Fetched {
            keys: self.keep(keys, context.uptime()),
            is_dated: date(&response).is_some(),
        })
    }

    pub(super) fn keep(&self, keys: SigningKeys, now: u64) -> Rc<SigningKeys> {
        let keys = Rc::new(keys);
        let until = now.saturating_add(USABLE);
        self.known.put((), Rc::clone(&keys), now..until);
        keys
    }
}

#[derive(Deserialize)]
struct RawKeys {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    r#use: Option<String>,
    kid: String,
    n: String,
    e: String,
    issuer: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::vault::samples::jwks;

    #[test]
    fn a_list_of_keys_is_no_key_set() {
        let set: Value = serde_json::from_slice(&jwks(Value::Null)).unwrap();
        let keys = set["keys"].as_array().unwrap();
        let nameless: Vec<_> = keys
            .iter()
            .map(|key| json!(["RSA", "sig", key["kid"], key["n"], key["e"], null]))
            .collect();
        let parse = |set: Value| SigningKeys::parse(set.to_string().as_bytes());
        assert!(parse(json!({"keys": keys})).is_some());
        assert!(parse(json!([keys])).is_none());
        assert!(parse(json!({"keys": nameless})).is_none());
    }

    #[test]
    fn key_sets_without_a_usable_key_are_refused() {
        for document in [
            "",
            "{}",
            r#"{"keys":[]}"#,
            r#"{"keys":[{"kty":"RSA","kid":"weak","n":"AQAB","e":"AQAB"}]}"#,
            r#"{"keys":[7]}"#,
        ] {
            assert!(
                SigningKeys::parse(document.as_bytes()).is_none(),
                "{document}"
            );
        }
    }
}
