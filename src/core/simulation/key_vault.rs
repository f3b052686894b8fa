//! Key Vault: a key for each tenant, in versions.

use std::cell::{Cell, RefCell};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Request;
use serde_json::{Value, json};

use crate::port::SecretBody;
use crate::simulation::users::TENANTS;

/// Key Vault, with each tenant's key.
pub(super) struct KeyVault {
    /// Per tenant: the versions of its key, and which of them are enabled.
    pub(super) keys: RefCell<[Vec<bool>; 2]>,
    /// Per tenant: whether its key is deleted, with all versions, as Key Vault deletes. It can be recovered.
    pub(super) deleted: RefCell<[bool; 2]>,
    pub(super) is_down: Cell<bool>,
}

impl KeyVault {
    pub(super) fn new() -> Self {
        Self {
            keys: RefCell::new([vec![true], vec![true]]),
            deleted: RefCell::default(),
            is_down: Cell::default(),
        }
    }

    /// The answer to a request for a version of a secret, or for the newest.
    pub(super) fn secret(&self, request: &Request<SecretBody>) -> (u16, Value) {
        let mut path = request.uri().path().split('/').skip(2);
        let name = path.next().unwrap();
        let tenant = TENANTS
            .iter()
            .position(|tenant| name == format!("obo-{tenant}"))
            .unwrap();
        let keys = &self.keys.borrow()[tenant];
        let index = match path.next().unwrap_or_default() {
            "" => keys.len() - 1,
            version => usize::from_str_radix(version, 16).unwrap(),
        };
        if self.is_down.get() {
            return (503, json!({}));
        }
        if self.deleted.borrow()[tenant] {
            return (
                404,
                json!({"error": {"code": "SecretNotFound", "message": "m"}}),
            );
        }
        if !keys[index] {
            return (
                403,
                json!({"error": {"code": "Forbidden", "message": "m", "innererror": {"code": "SecretDisabled"}}}),
            );
        }
        let key = [u8::try_from(tenant * 100 + index).unwrap(); 32];
        (
            200,
            json!({
                "value": STANDARD.encode(key), "id": format!("https://demo.vault.azure.net/secrets/{name}/{index:032x}"),
                "attributes": {"enabled": true},
            }),
        )
    }
}
