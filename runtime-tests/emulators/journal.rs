//! What reached the emulators, without a secret in it.

use std::collections::VecDeque;
use std::sync::Mutex;

use ring::digest;
use serde::{Deserialize, Serialize};

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether an injected fault answered.
    pub fault: bool,
}

/// Enough of SHA-256 to tell two tokens apart, and nothing to redeem: 12 hexadecimal digits.
#[must_use]
pub fn fingerprint(secret: &str) -> String {
    let hash = digest::digest(&digest::SHA256, secret.as_bytes());
    hex(&hash.as_ref()[..6])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
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

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}
