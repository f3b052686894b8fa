//! The RSA keys that Entra ID signs with, and JSON Web Tokens made with them, good and bad.
//!
//! A library makes the good ones and verifies all. The bad ones (`alg: none`, a broken signature, HS256 with a public
//! key) are made by hand, because libraries refuse to. The keys under `keys/` were made for this with openssl and are used nowhere else:
//!
//! ```text
//! openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj "/CN=behalf emulator $k" \
//!     -keyout $k.pem -outform DER -out $k.crt.der
//! openssl pkcs8 -topk8 -nocrypt -in $k.pem -outform DER -out $k.key.der
//! ```

use std::sync::OnceLock;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use jsonwebtoken::{Algorithm, Header};
use pem::{EncodeConfig, LineEnding, Pem};
use ring::rand::SystemRandom;
use ring::{digest, hmac, signature};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::jwt;

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
    /// RS256 with the published key that may sign for personal accounts only: a key's `issuer` says for whom it signs.
    PersonalAccountsKey,
    /// As in tokens for Microsoft Graph: over a header with another `nonce` than the one that is sent, so that Graph alone,
    /// which knows how to make the one of the other, can verify it.
    Graph,
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

    /// Signs the claims. The header names the key; `version` 1 adds `x5t`.
    pub(crate) fn sign(self, how: Signature, version: u8, claims: &Value) -> String {
        let current = self.current();
        let key = match how {
            Signature::Good
            | Signature::Broken
            | Signature::None
            | Signature::Hs256
            | Signature::Graph => current,
            Signature::UnknownKey => &keys().unpublished,
            Signature::PersonalAccountsKey => &keys().personal,
        };
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(key.kid.clone());
        if version == 1 {
            header.x5t = Some(key.kid.clone());
        }
        match how {
            Signature::Good | Signature::UnknownKey | Signature::PersonalAccountsKey => {
                jwt::sign(&header, claims, key.private)
            }
            Signature::Broken => {
                let good = jwt::sign(&header, claims, key.private);
                let (signed, signature) = good.rsplit_once('.').expect("three parts");
                let mut signature = BASE64_URL_SAFE_NO_PAD.decode(signature).expect("base64url");
                signature[17] ^= 1;
                join(signed, &signature)
            }
            Signature::None => {
                let signed = unsigned(
                    &json!({ "typ": "JWT", "alg": "none", "kid": key.kid }),
                    claims,
                );
                join(&signed, &[])
            }
            Signature::Hs256 => {
                let signed = unsigned(
                    &json!({ "typ": "JWT", "alg": "HS256", "kid": key.kid }),
                    claims,
                );
                let secret = hmac::Key::new(hmac::HMAC_SHA256, key.certificate);
                join(&signed, hmac::sign(&secret, signed.as_bytes()).as_ref())
            }
            Signature::Graph => {
                let nonce = digest::digest(&digest::SHA256, key.kid.as_bytes());
                let header = |nonce: &str| json!({ "typ": "JWT", "alg": "RS256", "kid": key.kid, "nonce": nonce });
                let sent = header("a-nonce-of-microsoft-graph");
                let signed = header(&BASE64_URL_SAFE_NO_PAD.encode(nonce));
                let signature = key.sign_bytes(unsigned(&signed, claims).as_bytes());
                join(&unsigned(&sent, claims), &signature)
            }
        }
    }

    /// The claims of a token that a work-account key signed with RS256; none for any other text. Times are not looked at.
    pub(crate) fn verify(self, token: &str) -> Option<Value> {
        let header = jwt::header(token)?;
        let key = self
            .published()
            .find(|key| header.kid.as_ref() == Some(&key.kid))?;
        key.verify(token, Algorithm::RS256)
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

/// The app's certificate, which Entra ID knows.
pub(crate) fn app_certificate() -> &'static Key {
    &keys().app
}

/// The key of the issuer that the app trusts as a federated credential.
pub(crate) fn external_issuer() -> &'static Key {
    &keys().external
}

/// A key pair with its certificate.
pub(crate) struct Key {
    kid: String,
    certificate: &'static [u8],
    private: &'static [u8],
    pair: signature::RsaKeyPair,
}

impl Key {
    fn new(certificate: &'static [u8], private: &'static [u8]) -> Self {
        let thumbprint = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate);
        Self {
            kid: BASE64_URL_SAFE_NO_PAD.encode(thumbprint),
            certificate,
            private,
            pair: signature::RsaKeyPair::from_pkcs8(private).expect("a PKCS #8 key"),
        }
    }

    pub(crate) fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", self.certificate)
    }

    pub(crate) fn private_key_pem(&self) -> String {
        pem("PRIVATE KEY", self.private)
    }

    /// RS256, with the key's id.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.kid.clone());
        jwt::sign(&header, claims, self.private)
    }

    /// RS256 over any bytes.
    fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let random = SystemRandom::new();
        let padding = &signature::RSA_PKCS1_SHA256;
        self.pair
            .sign(padding, &random, bytes, &mut signature)
            .expect("a key of this size signs");
        signature
    }

    /// The claims of a token that this key signed with this algorithm, whatever they say.
    pub(crate) fn verify(&self, token: &str, algorithm: Algorithm) -> Option<Value> {
        jwt::verify(token, algorithm, &self.components())
    }

    fn jwk(&self, issuer: &str) -> Value {
        let public = self.components();
        json!({
            "kty": "RSA", "use": "sig", "kid": self.kid, "x5t": self.kid,
            "n": BASE64_URL_SAFE_NO_PAD.encode(public.n), "e": BASE64_URL_SAFE_NO_PAD.encode(public.e),
            "x5c": [BASE64_STANDARD.encode(self.certificate)], "issuer": issuer,
        })
    }

    fn components(&self) -> signature::RsaPublicKeyComponents<Vec<u8>> {
        signature::RsaPublicKeyComponents::from(self.pair.public())
    }
}

struct Keys {
    work: [Key; 4],
    personal: Key,
    unpublished: Key,
    app: Key,
    external: Key,
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
        app: key!("app"),
        external: key!("external"),
    })
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn join(signed: &str, signature: &[u8]) -> String {
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn pem(label: &str, der: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, der), lines)
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
            Signature::Graph,
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
