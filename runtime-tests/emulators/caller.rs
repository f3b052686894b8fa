//! A caller's token in the making.

use serde_json::Value;

use super::entra::{Entra, Mint};
use super::signing::Signature;

/// A caller's token in the making.
pub struct Caller<'a> {
    pub(crate) entra: &'a Entra,
    pub(crate) mint: Mint,
}

impl Caller<'_> {
    /// Of another tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: &str) -> Self {
        tenant.clone_into(&mut self.mint.tenant);
        self
    }

    /// Of another user.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.mint.user = Some(user.to_owned());
        self
    }

    /// A v1 token.
    #[must_use]
    pub fn v1(mut self) -> Self {
        self.mint.version = 1;
        self
    }

    /// An app-only token with these roles, without `scp`: the background job's, unless claims say otherwise.
    #[must_use]
    pub fn app(mut self, roles: &[&str]) -> Self {
        self.mint.roles = Some(roles.iter().map(|role| (*role).to_owned()).collect());
        self
    }

    /// With a claim of another value; `null` leaves the claim out.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.mint.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Signed otherwise.
    #[must_use]
    pub fn signature(mut self, signature: Signature) -> Self {
        self.mint.signature = signature;
        self
    }

    /// The token.
    #[must_use]
    pub fn mint(self) -> String {
        self.entra.mint(&self.mint)
    }
}
