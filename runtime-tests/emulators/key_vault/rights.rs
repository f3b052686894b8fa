//! Which app may do what, if not everything: roles, as Key Vault knows them
//! (<https://learn.microsoft.com/azure/key-vault/general/rbac-guide>).

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, StatusCode};

use super::error::SecretError;

/// By client id. Who is not in it may do everything.
#[derive(Default)]
pub(super) struct Rights(BTreeMap<String, BTreeSet<&'static str>>);

impl Rights {
    pub(super) fn permit(&mut self, client_id: &str, rights: &[&'static str]) {
        let rights = rights.iter().copied().collect();
        self.0.insert(client_id.to_owned(), rights);
    }

    pub(super) fn check(
        &self,
        client_id: &str,
        method: &Method,
        path: &str,
    ) -> Result<(), SecretError> {
        let (needed, action) = needed(method, path);
        match self.0.get(client_id) {
            Some(rights) if !rights.contains(needed) => Err(SecretError::by_rbac(action)),
            Some(_) | None => Ok(()),
        }
    }
}

/// What a request takes: in our word, and in that of a role.
fn needed(method: &Method, path: &str) -> (&'static str, &'static str) {
    let is_deleted = path.starts_with("/deletedsecrets");
    let is_list =
        path.trim_end_matches('/').matches('/').count() == 1 || path.ends_with("/versions");
    match *method {
        Method::PUT => ("set", "setSecret/action"),
        Method::PATCH => ("update", "update/action"),
        Method::DELETE if is_deleted => ("purge", "purge/action"),
        Method::DELETE => ("delete", "delete"),
        Method::POST => ("recover", "recover/action"),
        _ if is_list || is_deleted => ("list", "readMetadata/action"),
        _ => ("get", "getSecret/action"),
    }
}

impl SecretError {
    fn by_rbac(action: &str) -> Self {
        let message = format!(
            "Caller is not authorized to perform action on resource.\r\nAction: \
             'Microsoft.KeyVault/vaults/secrets/{action}'\r\nAssignment: (not found)\r\nDecisionReason: \
             'DeniedWithNoValidRBAC' \r\n"
        );
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).inner("ForbiddenByRbac")
    }
}
