//! What reached the emulators, without a secret in it.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Instant;

use http::request::Parts;
use ring::digest;
use serde::{Deserialize, Serialize};
use url::form_urlencoded;

use super::jwt;

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Entra ID's token endpoint.
    EntraToken,
    /// Entra ID's signing keys.
    Jwks,
    /// Entra ID's other pages: metadata.
    EntraMetadata,
    /// Key Vault's data plane.
    KeyVault,
    /// The platform's managed identity endpoint.
    ManagedIdentity,
    /// The downstream API.
    Downstream,
}

/// One request and what was answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What it was for.
    pub target: Target,
    /// HTTP method.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// Tenant in the path of an Entra ID request, as sent.
    pub tenant: Option<String>,
    /// `grant_type`.
    pub grant: Option<String>,
    /// Name and port by which it was called: header `host`. Behind a way of its own, a caller is known by it.
    pub host: Option<String>,
    /// When it came, on this machine's own clock.
    #[serde(skip)]
    pub came: Option<Instant>,
    /// `client_id`.
    pub client_id: Option<String>,
    /// How the app proved who it is: `secret`, or the algorithm of its assertion.
    pub proof: Option<String>,
    /// `scope`, as asked for.
    pub scope: Option<String>,
    /// Status answered; none if the connection was closed without an answer.
    pub status: Option<u16>,
    /// AADSTS code answered.
    pub aadsts: Option<u32>,
    /// [`fingerprint`] of the refresh token that was sent.
    pub redeemed: Option<String>,
    /// [`fingerprint`] of the refresh token that was issued.
    pub issued: Option<String>,
    /// The client's id of the request: `client-request-id`, at Key Vault `x-ms-client-request-id`.
    pub correlation_id: Option<String>,
    /// Whether an injected fault answered.
    pub fault: bool,
}

impl Entry {
    /// A request that is not answered yet.
    pub(crate) fn of(target: Target, request: &Parts, body: &[u8]) -> Self {
        let path = request.uri.path();
        let form: HashMap<String, String> = match target {
            Target::EntraToken => form_urlencoded::parse(body).into_owned().collect(),
            Target::Jwks
            | Target::EntraMetadata
            | Target::KeyVault
            | Target::ManagedIdentity
            | Target::Downstream => HashMap::new(),
        };
        let field = |name: &str| form.get(name).cloned();
        let has_tenant = matches!(
            target,
            Target::EntraToken | Target::Jwks | Target::EntraMetadata
        );
        let tenant = has_tenant.then(|| path.split('/').nth(1).unwrap_or_default().to_owned());
        let proof = match (form.get("client_secret"), form.get("client_assertion")) {
            (Some(_), _) => Some("secret".to_owned()),
            (None, Some(assertion)) => {
                jwt::header(assertion).map(|header| format!("{:?}", header.alg))
            }
            (None, None) => None,
        };
        let correlation_id = match target {
            Target::KeyVault => "x-ms-client-request-id",
            Target::EntraToken
            | Target::Jwks
            | Target::EntraMetadata
            | Target::ManagedIdentity
            | Target::Downstream => "client-request-id",
        };
        let header = |name| Some(request.headers.get(name)?.to_str().ok()?.to_owned());
        Self {
            target,
            method: request.method.to_string(),
            tenant,
            path: path.to_owned(),
            grant: field("grant_type"),
            host: header("host"),
            came: Some(Instant::now()),
            client_id: field("client_id"),
            proof,
            scope: field("scope"),
            status: None,
            aadsts: None,
            redeemed: form.get("refresh_token").map(|token| fingerprint(token)),
            issued: None,
            correlation_id: header(correlation_id),
            fault: false,
        }
    }
}

/// In a response's extensions: what the journal should say about it.
#[derive(Clone, Default)]
pub(crate) struct Remarks {
    pub(crate) aadsts: Option<u32>,
    pub(crate) issued: Option<String>,
}

/// Enough of SHA-256 to tell two tokens apart, and nothing to redeem: 12 hexadecimal digits.
#[must_use]
pub fn fingerprint(secret: &str) -> String {
    let hash = digest::digest(&digest::SHA256, secret.as_bytes());
    let first = hash.as_ref().first_chunk().expect("32 bytes");
    format!("{:012x}", u64::from_be_bytes(*first) >> 16)
}

/// The newest 100,000 entries, oldest first.
#[derive(Default)]
pub(crate) struct Journal(Mutex<VecDeque<Entry>>);

impl Journal {
    pub(crate) fn write(&self, entry: Entry) {
        let mut entries = self.0.lock().unwrap();
        if entries.len() == 100_000 {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    pub(crate) fn read(&self) -> Vec<Entry> {
        self.0.lock().unwrap().iter().cloned().collect()
    }

    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.0.lock().unwrap()).into()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}
