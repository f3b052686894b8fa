//! Errors of Key Vault's data plane.

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

/// An error of Key Vault's data plane
/// (<https://learn.microsoft.com/azure/key-vault/general/rest-error-codes>; PLATFORMS.md, "Errors of Key Vault").
#[derive(Debug)]
pub struct SecretError {
    status: StatusCode,
    code: Cow<'static, str>,
    message: String,
    inner: Option<Cow<'static, str>>,
}

impl std::fmt::Display for SecretError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.status, self.code, self.message)
    }
}

impl std::error::Error for SecretError {}

impl SecretError {
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            inner: None,
        }
    }

    /// With an inner code.
    pub(crate) fn inner(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.inner = Some(code.into());
        self
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    pub(crate) fn not_found(id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "SecretNotFound",
            format!(
                "A secret with (name/id) {id} was not found in this key vault. If you recently deleted this secret you \
                 may be able to recover it using the correct recovery command. For help resolving this issue, please \
                 see https://go.microsoft.com/fwlink/?linkid=2125182"
            ),
        )
    }

    pub(crate) fn deleted_not_found(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "SecretNotFound",
            format!("Deleted Secret not found: {name}"),
        )
    }

    pub(crate) fn disabled() -> Self {
        let message = "Operation get is not allowed on a disabled secret.";
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).inner("SecretDisabled")
    }

    /// What a vault with purge protection says; its body is documented nowhere.
    pub(crate) fn protected() -> Self {
        let message = "Operation \"purge\" is not allowed because purge protection is enabled for this vault.";
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// The secret's name is taken by one that is `now` in another state, whose code is `inner`.
    pub(crate) fn conflict(name: &str, now: &str, inner: &'static str) -> Self {
        let message = format!("Secret {name} is currently {now}.");
        Self::new(StatusCode::CONFLICT, "Conflict", message).inner(inner)
    }
}

impl IntoResponse for SecretError {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(inner) = self.inner {
            error["innererror"] = json!({ "code": inner });
        }
        (self.status, axum::Json(json!({ "error": error }))).into_response()
    }
}
