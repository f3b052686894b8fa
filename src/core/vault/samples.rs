//! Tests only: settings, and callers' tokens of a pretended Entra ID.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rsa::signature::{SignatureEncoding as _, Signer as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{BoxedUint, PrivateKey, PublicKey};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::port::{Config, ConfigError};
use crate::secret::Bearer;

pub(crate) type Values = HashMap<&'static str, String>;

impl Config for Values {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Ok(self.get(name).cloned())
    }
}

pub(crate) const TENANT: &str = "11111111-1111-1111-1111-111111111111";
pub(crate) const CLIENT: &str = "22222222-2222-2222-2222-222222222222";

pub(crate) fn least() -> Values {
    [
        ("client_id", CLIENT),
        ("tenants", TENANT),
        ("client_secret", "client-secret-canary"),
        ("key_vault_url", "https://demo.vault.azure.net"),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.to_owned()))
    .collect()
}

pub(crate) fn with(changes: &[(&'static str, &str)]) -> Values {
    let mut values = least();
    for (name, value) in changes {
        values.insert(name, (*value).to_owned());
    }
    values
}

// openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj "/CN=behalf test" …
pub(crate) const CERTIFICATE: &str = include_str!("tests/certificate.pem");
pub(crate) const PRIVATE_KEY: &str = include_str!("tests/certificate-key.pem");

pub(crate) const NOW: u64 = 1_793_606_000;
pub(crate) const USER: &str = "44444444-4444-4444-4444-444444444444";
pub(crate) const OTHER_USER: &str = "99999999-4444-4444-4444-444444444444";

/// Key Vault's secret of the first key of the tests' world: base64 of 32 bytes 7.
pub(crate) const FIRST_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// Whether a text holds one of the secrets that tests use, or a part of the app's private key.
pub(crate) fn shows_a_secret(text: &str) -> bool {
    let key_of_tenant = format!("{:?}", [7; 32]);
    let numbers = format!("{:?}", b"canary");
    let mut needles = PRIVATE_KEY.lines().filter(|line| line.len() == 64).chain([
        &*key_of_tenant,
        FIRST_KEY,
        "canary",
        "eyJhbGciOiJQUzI1NiIs",
        numbers.trim_matches(['[', ']']),
    ]);
    needles.any(|needle| text.contains(needle))
}

/// A signing key of a pretended Entra ID, made by OpenSSL for these tests alone.
fn private_key() -> rsa::pkcs1v15::SigningKey<Sha256> {
    use rsa::pkcs8::DecodePrivateKey as _;
    rsa::pkcs1v15::SigningKey::new(
        PrivateKey::from_pkcs8_pem(include_str!("tests/signing-key.pem")).unwrap(),
    )
}

pub(crate) fn jwks(issuer: Value) -> Vec<u8> {
    jwks_of("k1", issuer)
}

pub(crate) fn jwks_of(kid: &str, issuer: Value) -> Vec<u8> {
    key_set(kid, private_key().into(), issuer)
}

/// With a key of this name that did not sign anything here.
pub(crate) fn jwks_of_another_key(kid: &str) -> Vec<u8> {
    use rsa::pkcs8::DecodePrivateKey as _;
    let key = PrivateKey::from_pkcs8_pem(PRIVATE_KEY).unwrap();
    key_set(kid, key, template())
}

fn key_set(kid: &str, key: PrivateKey, issuer: Value) -> Vec<u8> {
    let public = PublicKey::from(key);
    let number = |number: &BoxedUint| URL_SAFE_NO_PAD.encode(number.to_be_bytes_trimmed_vartime());
    json!({"keys": [
        {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "RSA", "use": "sig", "kid": kid, "n": number(public.n()), "e": number(public.e()), "issuer": issuer},
    ]})
    .to_string()
    .into_bytes()
}

/// The issuer of most signing keys.
pub(crate) fn template() -> Value {
    json!("https://login.microsoftonline.com/{tenantid}/v2.0")
}

/// What a user's token says.
pub(crate) fn claims() -> Value {
    json!({
        "aud": CLIENT, "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"), "iat": NOW, "nbf": NOW,
        "exp": NOW + 3900, "azp": "33333333-3333-3333-3333-333333333333", "azpacr": "1", "oid": USER,
        "scp": "other access_as_user", "sub": "pairwise-opaque", "tid": TENANT, "ver": "2.0",
    })
}

/// The same with one claim changed.
pub(crate) fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// The header of a token by the key `k1`.
pub(crate) fn header() -> Value {
    json!({"typ": "JWT", "alg": "RS256", "kid": "k1"})
}

/// A caller's token.
pub(crate) fn sign(header: &Value, claims: &Value) -> Bearer {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(private_key().sign(signed.as_bytes()).to_bytes());
    Bearer::new(format!("{signed}.{signature}"))
}
