//! The directory: who has signed in, and whose grants are good.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::error::TokenError;
use crate::emulators::random;

/// Users, their sign-ins, and what became of them.
#[derive(Default)]
pub(super) struct Directory {
    /// Every refresh token ever issued: none dies but by revocation, so that the old one stays valid when a new one is
    /// issued (PLATFORMS.md, "Refresh tokens").
    sign_ins: HashMap<String, SignIn>,
    revocations: HashMap<User, Revocation>,
    disabled: HashSet<User>,
    /// Users whose grants are refused, and the AADSTS code.
    refused: HashMap<User, u32>,
    moment: u64,
}

/// What one sign-in allows. All refresh tokens that come of it share it.
#[derive(Clone)]
pub(super) struct SignIn {
    pub(super) tenant: String,
    pub(super) user: String,
    pub(super) resource: String,
    moment: u64,
}

/// Since when a user's grants are good again: `TokensValidFrom`.
pub(super) struct Revocation {
    moment: u64,
    at: Timestamp,
}

/// Tenant and object id, in lower case.
pub(super) type User = (String, String);

impl Directory {
    /// A user signs in.
    pub(super) fn sign_in(&mut self, tenant: &str, user: &str, resource: &str) -> SignIn {
        SignIn {
            tenant: tenant.to_owned(),
            user: user.to_owned(),
            resource: resource.to_owned(),
            moment: self.tick(),
        }
    }

    /// A new refresh token of a sign-in.
    pub(super) fn issue(&mut self, sign_in: SignIn) -> String {
        // About as long as Entra ID's are.
        let token = format!("1.AXoA{}", random::text(780));
        self.sign_ins.insert(token.clone(), sign_in);
        token
    }

    /// Whose refresh token it is, good or not: tenant and object id.
    pub(super) fn user_of(&self, refresh_token: &str) -> Option<User> {
        let sign_in = self.sign_ins.get(refresh_token)?;
        Some(key(&sign_in.tenant, &sign_in.user))
    }

    /// The sign-in of a refresh token, if it still is good.
    pub(super) fn redeem(&self, refresh_token: &str) -> Result<SignIn, TokenError> {
        let sign_in = self.sign_ins.get(refresh_token);
        let sign_in = sign_in.ok_or_else(|| TokenError::new(9_002_313))?;
        self.admit(&sign_in.tenant, &sign_in.user, |revocation| {
            sign_in.moment < revocation.moment
        })?;
        Ok(sign_in.clone())
    }

    /// Whether a user's access token, issued at this Unix time, is good for a new sign-in.
    pub(super) fn accept(
        &self,
        tenant: &str,
        user: &str,
        issued_at: Option<i64>,
    ) -> Result<(), TokenError> {
        self.admit(tenant, user, |revocation| {
            issued_at.is_none_or(|at| at < revocation.at.as_second())
        })
    }

    fn admit(
        &self,
        tenant: &str,
        user: &str,
        is_from_before: impl Fn(&Revocation) -> bool,
    ) -> Result<(), TokenError> {
        let user = key(tenant, user);
        match self.revocations.get(&user) {
            Some(revocation) if is_from_before(revocation) => {
                return Err(TokenError::revoked(revocation.at));
            }
            Some(_) | None => {}
        }
        if self.disabled.contains(&user) {
            return Err(TokenError::new(50_057));
        }
        match self.refused.get(&user) {
            Some(code) => Err(TokenError::new(*code)),
            None => Ok(()),
        }
    }

    /// Revokes a user's sign-ins so far.
    pub(super) fn revoke(&mut self, tenant: &str, user: &str) {
        let revocation = Revocation {
            moment: self.tick(),
            at: Timestamp::now(),
        };
        self.revocations.insert(key(tenant, user), revocation);
    }

    /// Whether a user has ever signed in.
    pub(super) fn knows(&self, tenant: &str, user: &str) -> bool {
        let user = key(tenant, user);
        let mut sign_ins = self.sign_ins.values();
        sign_ins.any(|it| key(&it.tenant, &it.user) == user)
    }

    /// Disables or enables an account.
    pub(super) fn set_enabled(&mut self, tenant: &str, user: &str, enabled: bool) {
        if enabled {
            self.disabled.remove(&key(tenant, user));
        } else {
            self.disabled.insert(key(tenant, user));
        }
    }

    /// Refuses a user's grants with this AADSTS code; none: no more.
    pub(super) fn refuse(&mut self, tenant: &str, user: &str, code: Option<u32>) {
        match code {
            Some(code) => self.refused.insert(key(tenant, user), code),
            None => self.refused.remove(&key(tenant, user)),
        };
    }

    /// Every refresh token issued so far.
    pub(super) fn refresh_tokens(&self) -> impl Iterator<Item = &String> {
        self.sign_ins.keys()
    }

    /// Orders sign-ins and revocations, which seconds cannot.
    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}

fn key(tenant: &str, user: &str) -> User {
    (tenant.to_ascii_lowercase(), user.to_ascii_lowercase())
}
