//! Access tokens: what they say, and how they are signed.

use std::sync::Mutex;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use jiff::Timestamp;
use ring::digest;
use serde_json::{Value, json};

use crate::emulators::random;
use crate::emulators::signing::{KeyRing, Signature};

/// Signs tokens and remembers each, for the search that must find none of them.
pub(super) struct Tokens {
    /// How long they live, in seconds.
    pub(super) seconds: u32,
    ring: Mutex<KeyRing>,
    issued: Mutex<Vec<String>>,
}

impl Tokens {
    pub(super) fn new(seconds: u32) -> Self {
        Self {
            seconds,
            ring: Mutex::new(KeyRing::new()),
            issued: Mutex::default(),
        }
    }

    /// The claims that every token has. Issuers are the real ones, wherever this emulator listens
    /// (<https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>).
    pub(super) fn claims(&self, version: u8, tenant: &str, client: &str, audience: &str) -> Value {
        let now = Timestamp::now().as_second();
        let [v1, v2] = issuers(tenant);
        let mut claims = json!({
            "aud": audience, "iat": now, "nbf": now, "exp": now + i64::from(self.seconds), "tid": tenant,
            "uti": random::text(16),
        });
        let (issuer, names, text) = if version == 1 {
            (v1, ["appid", "appidacr"], "1.0")
        } else {
            (v2, ["azp", "azpacr"], "2.0")
        };
        claims["iss"] = json!(issuer);
        claims[names[0]] = json!(client);
        claims[names[1]] = json!("1");
        claims["ver"] = json!(text);
        claims
    }

    pub(super) fn sign(&self, how: Signature, version: u8, claims: &Value) -> String {
        let token = self.ring().sign(how, version, claims);
        self.issued.lock().unwrap().push(token.clone());
        token
    }

    /// The claims of a token that was signed here, whatever they say.
    pub(super) fn verify(&self, token: &str) -> Option<Value> {
        self.ring().verify(token)
    }

    /// Remembers what others made, once: assertions of the app, some of which it has signed itself.
    pub(super) fn remember(&self, token: &str) {
        let mut issued = self.issued.lock().unwrap();
        if !issued.iter().any(|known| known == token) {
            issued.push(token.to_owned());
        }
    }

    pub(super) fn issued(&self) -> Vec<String> {
        self.issued.lock().unwrap().clone()
    }

    pub(super) fn rotate(&self) {
        self.ring.lock().unwrap().rotate();
    }

    pub(super) fn jwks(&self, tenant: Option<&str>) -> Value {
        self.ring().jwks(tenant)
    }

    fn ring(&self) -> KeyRing {
        *self.ring.lock().unwrap()
    }
}

/// Of v1 tokens, with a slash at the end, and of v2 tokens, without one.
pub(super) fn issuers(tenant: &str) -> [String; 2] {
    [
        format!("https://sts.windows.net/{tenant}/"),
        format!("https://login.microsoftonline.com/{tenant}/v2.0"),
    ]
}

/// `sub` of a user: differs by app.
pub(super) fn pairwise(app: &str, tenant: &str, user: &str) -> String {
    let hash = digest::digest(&digest::SHA256, format!("{app}/{tenant}/{user}").as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}
