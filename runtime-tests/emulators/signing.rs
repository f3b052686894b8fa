//! The RSA keys that Entra ID signs with, and JSON Web Tokens made with them, good and bad.
//!
//! Not a JWT library: those refuse to make half of what the cases need (`alg: none`, a broken signature, HS256 with a
//! public key). The keys under `keys/` were made for this with openssl and are used nowhere else:
//!
//! ```text
//! openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj "/CN=behalf emulator $k" \
//!     -keyout $k.pem -outform DER -out $k.crt.der
//! openssl pkcs8 -topk8 -nocrypt -in $k.pem -outform DER -out $k.key.der
//! ```

use std::sync::OnceLock;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::{digest, hmac, rand::SystemRandom, signature};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How a minted token is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signature {
    /// As Entra ID does: RS256 with the current key.
    #[default]
    Good,
    /// RS256 with the current key, then one bit of the signature flipped.
    Broken,
    /// `alg: none`, with an empty signature.
    None,
    /// HS256, with the certificate of the current key as the secret: the classic confusion of algorithms.
    Hs256,
    /// RS256 with a key that no JWKS ever holds.
    UnknownKey,
    /// RS256 with the published key that may sign for personal accounts only (facts §B, per-key issuer).
    PersonalAccountsKey,
}

/// Tenant of personal Microsoft accounts.
pub(crate) const PERSONAL_ACCOUNTS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

/// The keys in use at one moment.
#[derive(Clone, Copy)]
pub(crate) struct KeyRing {
    current: usize,
}

impl KeyRing {
    pub(crate) fn new() -> Self {
        Self { current: 0 }
    }

    /// Starts to sign with a key that was not published before; the key used so far stays published.
    pub(crate) fn rotate(&mut self) {
        self.current += 1;
    }

    /// What a JWKS document holds. `tenant` is substituted in the issuer of tenanted documents.
    ///
    /// The personal-accounts key is in every document, which is more than Entra ID does, so that a client is tested
    /// whichever document it reads.
    pub(crate) fn jwks(self, tenant: Option<&str>) -> Value {
        let issuer = |tenant: &str| format!("https://login.microsoftonline.com/{tenant}/v2.0");
        let work = issuer(tenant.unwrap_or("{tenantid}"));
        let keys: Vec<Value> = self
            .published()
            .map(|key| key.jwk(&work))
            .chain([keys().personal.jwk(&issuer(PERSONAL_ACCOUNTS))])
            .collect();
        json!({ "keys": keys })
    }

    /// Signs the claims. The header names the key; `version` 1 adds `x5t` (facts §B).
    pub(crate) fn sign(self, how: Signature, version: u8, claims: &Value) -> String {
        let current = self.current();
        let key = match how {
            Signature::Good | Signature::Broken | Signature::None | Signature::Hs256 => current,
            Signature::UnknownKey => &keys().unpublished,
            Signature::PersonalAccountsKey => &keys().personal,
        };
        let algorithm = match how {
            Signature::None => "none",
            Signature::Hs256 => "HS256",
            _ => "RS256",
        };
        let mut header = json!({ "typ": "JWT", "alg": algorithm, "kid": key.kid });
        if version == 1 {
            header["x5t"] = json!(key.kid);
        }
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = match how {
            Signature::None => Vec::new(),
            Signature::Hs256 => {
                let secret = hmac::Key::new(hmac::HMAC_SHA256, key.certificate);
                hmac::sign(&secret, signed.as_bytes()).as_ref().to_vec()
            }
            Signature::Broken => {
                let mut signature = key.sign(signed.as_bytes());
                signature[17] ^= 1;
                signature
            }
            Signature::Good | Signature::UnknownKey | Signature::PersonalAccountsKey => {
                key.sign(signed.as_bytes())
            }
        };
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// The claims of a token that a work-account key signed with RS256; none for any other text.
    pub(crate) fn verify(self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = decode(header)?;
        if header["alg"] != "RS256" {
            return None;
        }
        let key = self.published().find(|key| header["kid"] == key.kid)?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        key.verifies(signed.as_bytes(), &signature)
            .then(|| decode(claims))?
    }

    fn current(self) -> &'static Key {
        &keys().work[self.current % keys().work.len()]
    }

    fn published(self) -> impl Iterator<Item = &'static Key> {
        let previous = self
            .current
            .checked_sub(1)
            .map(|n| &keys().work[n % keys().work.len()]);
        std::iter::once(self.current()).chain(previous)
    }
}

struct Key {
    kid: String,
    certificate: &'static [u8],
    pair: signature::RsaKeyPair,
}

impl Key {
    fn new(certificate: &'static [u8], private: &[u8]) -> Self {
        let thumbprint = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate);
        Self {
            kid: BASE64_URL_SAFE_NO_PAD.encode(thumbprint),
            certificate,
            pair: signature::RsaKeyPair::from_pkcs8(private).expect("a PKCS #8 key"),
        }
    }

    fn jwk(&self, issuer: &str) -> Value {
        let public = self.components();
        json!({
            "kty": "RSA", "use": "sig", "kid": self.kid, "x5t": self.kid,
            "n": BASE64_URL_SAFE_NO_PAD.encode(public.n), "e": BASE64_URL_SAFE_NO_PAD.encode(public.e),
            "x5c": [BASE64_STANDARD.encode(self.certificate)], "issuer": issuer,
        })
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(
                &signature::RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .expect("RSA signing");
        signature
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.components()
            .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }

    fn components(&self) -> signature::RsaPublicKeyComponents<Vec<u8>> {
        signature::RsaPublicKeyComponents::from(self.pair.public())
    }
}

struct Keys {
    work: [Key; 4],
    personal: Key,
    unpublished: Key,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    macro_rules! key {
        ($name:literal) => {
            Key::new(
                include_bytes!(concat!("keys/", $name, ".crt.der")),
                include_bytes!(concat!("keys/", $name, ".key.der")),
            )
        };
    }
    KEYS.get_or_init(|| Keys {
        work: [
            key!("signing-1"),
            key!("signing-2"),
            key!("signing-3"),
            key!("signing-4"),
        ],
        personal: key!("msa"),
        unpublished: key!("unpublished"),
    })
}

fn encode(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_signature_verifies() {
        let ring = KeyRing::new();
        let claims = json!({ "sub": "someone" });
        for how in [
            Signature::Good,
            Signature::Broken,
            Signature::None,
            Signature::Hs256,
            Signature::UnknownKey,
            Signature::PersonalAccountsKey,
        ] {
            let verified = ring.verify(&ring.sign(how, 2, &claims));
            assert_eq!(verified.is_some(), how == Signature::Good, "{how:?}");
        }
    }

    #[test]
    fn a_rotation_publishes_a_new_key_and_keeps_the_last_one() {
        let mut ring = KeyRing::new();
        let first = ring.sign(Signature::Good, 2, &json!({}));
        ring.rotate();
        let second = ring.sign(Signature::Good, 2, &json!({}));
        assert!(ring.verify(&first).is_some() && ring.verify(&second).is_some());
        ring.rotate();
        assert!(ring.verify(&first).is_none() && ring.verify(&second).is_some());
    }
}
