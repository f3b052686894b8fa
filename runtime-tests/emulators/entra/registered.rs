//! The credentials of the app's registration: client secrets and certificates, several of which are good at once.

use std::sync::{Mutex, MutexGuard};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use jsonwebtoken::Algorithm;
use ring::digest;
use ring::signature::RsaPublicKeyComponents;
use serde_json::{Value, json};
use uuid::Uuid;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::emulators::options::Options;
use crate::emulators::{jwt, random, signing};

/// All of them, by their ids, oldest first.
pub(super) struct Registered(Mutex<Vec<(String, Credential)>>);

enum Credential {
    Secret(String),
    Certificate(Certificate),
}

/// A certificate that assertions are signed with.
struct Certificate {
    x5t: String,
    x5t_s256: String,
    public: RsaPublicKeyComponents<Vec<u8>>,
}

impl Registered {
    pub(super) fn new(options: &Options) -> Self {
        let registered = Self(Mutex::default());
        registered.add(Credential::Secret(options.client_secret.clone()));
        let certificate = signing::app_certificate().certificate_pem();
        let certificate = Certificate::parse(&certificate).expect("the app's certificate");
        registered.add(Credential::Certificate(certificate));
        registered
    }

    /// A new secret beside the others; its id, and it.
    pub(super) fn add_secret(&self) -> (String, String) {
        let secret = random::text(30);
        (self.add(Credential::Secret(secret.clone())), secret)
    }

    /// A certificate, in PEM, beside the others; its id, or none if it is no certificate of an RSA key.
    pub(super) fn add_certificate(&self, pem: &str) -> Option<String> {
        Some(self.add(Credential::Certificate(Certificate::parse(pem)?)))
    }

    /// Whether there was one of this id, which is gone now.
    pub(super) fn remove(&self, id: &str) -> bool {
        let mut all = self.all();
        let before = all.len();
        all.retain(|(known, _)| known != id);
        all.len() < before
    }

    /// What there is, oldest first, without the secrets.
    pub(super) fn list(&self) -> Value {
        let kind = |it: &Credential| match it {
            Credential::Secret(_) => "secret",
            Credential::Certificate(_) => "certificate",
        };
        let all = self.all();
        all.iter()
            .map(|(id, it)| json!({"id": id, "kind": kind(it)}))
            .collect()
    }

    pub(super) fn has_secret(&self, secret: &str) -> bool {
        self.secrets().iter().any(|known| known == secret)
    }

    pub(super) fn secrets(&self) -> Vec<String> {
        let all = self.all();
        let secrets = all.iter().filter_map(|(_, it)| match it {
            Credential::Secret(secret) => Some(secret.clone()),
            Credential::Certificate(_) => None,
        });
        secrets.collect()
    }

    /// The claims of an assertion that one of the certificates signed; null if the signature is not that one's. None if its header
    /// names no certificate of these.
    pub(super) fn verify(&self, assertion: &str) -> Option<Value> {
        let header = jwt::header(assertion)?;
        // Padded or not: Microsoft's own libraries differ.
        let is = |member: &Option<String>, thumbprint: &str| {
            member
                .as_ref()
                .is_some_and(|member| member.trim_end_matches('=') == thumbprint)
        };
        let all = self.all();
        all.iter().find_map(|(_, it)| {
            let Credential::Certificate(it) = it else {
                return None;
            };
            let algorithm = if is(&header.x5t_s256, &it.x5t_s256) {
                Algorithm::PS256
            } else if is(&header.x5t, &it.x5t) {
                Algorithm::RS256
            } else {
                return None;
            };
            Some(jwt::verify(assertion, algorithm, &it.public).unwrap_or_default())
        })
    }

    fn add(&self, credential: Credential) -> String {
        let id = Uuid::new_v4().to_string();
        self.all().push((id.clone(), credential));
        id
    }

    fn all(&self) -> MutexGuard<'_, Vec<(String, Credential)>> {
        self.0.lock().unwrap()
    }
}

impl Certificate {
    fn parse(text: &str) -> Option<Self> {
        let all = pem::parse_many(text).ok()?;
        let pem = all.iter().find(|it| it.tag() == "CERTIFICATE")?;
        let (_, certificate) = X509Certificate::from_der(pem.contents()).ok()?;
        let PublicKey::RSA(key) = certificate.public_key().parsed().ok()? else {
            return None;
        };
        let thumbprint =
            |algorithm| BASE64_URL_SAFE_NO_PAD.encode(digest::digest(algorithm, pem.contents()));
        // DER puts a zero before a number whose first bit is set.
        let number = |bytes: &[u8]| {
            let zeros = bytes.iter().take_while(|it| **it == 0).count();
            bytes[zeros..].to_vec()
        };
        Some(Self {
            x5t: thumbprint(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            x5t_s256: thumbprint(&digest::SHA256),
            public: RsaPublicKeyComponents {
                n: number(key.modulus),
                e: number(key.exponent),
            },
        })
    }
}
