//! Tenants, each with a trouble of its own, and their users and keys.

use std::cell::RefCell;

use crate::identity::{KeyVersion, TenantId, UserId};

/// What is wrong with a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// Nothing is wrong with it.
    None,
    /// Nothing of it is due, and its key takes so many milliseconds.
    Idle(u64),
    /// Entra ID throttles it.
    Throttled,
    /// Entra ID takes nine seconds for each answer.
    Slow,
    /// Entra ID never answers.
    Hanging,
    /// Its newest key never comes.
    HangingKey,
    /// Its old key version is disabled, and all its records are under it.
    DeadKey,
    /// Entra ID refuses most of its users, each for a reason of their own.
    Refused,
    /// This app's credential is not accepted there.
    CredentialRefused,
    /// It is not among the setting `tenants`.
    NotServed,
}

/// A tenant, and its users.
pub(super) struct Tenant {
    pub(super) trouble: Trouble,
    /// Users whose tokens are good.
    pub(super) good: usize,
    /// Users whom Entra ID refuses.
    pub(super) bad: usize,
    /// When the versions of its key were made, in seconds since 1970.
    pub(super) keys: RefCell<Vec<u64>>,
}

pub(super) fn tenant_id(index: usize) -> TenantId {
    TenantId::parse(&format!("{index:08x}-1111-1111-1111-111111111111")).unwrap()
}

/// The name of a version of a key.
pub(super) fn version(index: usize) -> KeyVersion {
    KeyVersion::parse(&format!("{index:032x}")).unwrap()
}

pub(super) fn user_id(tenant: usize, user: usize) -> UserId {
    let object = format!("{user:08x}-2222-2222-2222-222222222222");
    UserId::from_sealed(&format!("{}.{object}", tenant_id(tenant)))
}

/// The value of a version of a key.
pub(super) fn key(tenant: usize, index: usize) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(tenant as u64).to_le_bytes());
    key[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    key
}
