//! The head of a user: which enrolment is the current one.

use serde::{Deserialize, Serialize};

use crate::identity::{Nonce, TenantId};
use crate::ledger::record::{Unreadable, VERSION, from_json, to_json};

/// Names the current enrolment of a user. Only enrolment writes it, only removal deletes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The enrolment.
    pub nonce: Nonce,
    /// The user's tenant.
    pub tenant: TenantId,
    /// Unix time in seconds.
    pub created_at: u64,
}

impl Head {
    /// As it is stored.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let raw = RawHead {
            v: VERSION,
            n: self.nonce.as_str().into(),
            tenant: self.tenant.to_string(),
            created_at: self.created_at,
        };
        to_json(&raw)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_json(json: &[u8]) -> Result<Self, Unreadable> {
        let raw: RawHead = from_json(json)?;
        let read = || {
            Some(Self {
                nonce: Nonce::parse(&raw.n)?,
                tenant: TenantId::parse(&raw.tenant)?,
                created_at: raw.created_at,
            })
        };
        read().ok_or(Unreadable::Damaged)
    }
}

#[derive(Serialize, Deserialize)]
struct RawHead {
    v: u32,
    n: String,
    tenant: String,
    created_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_from_what_is_newer() {
        assert_eq!(Head::from_json(br#"{"v":2,"n":7}"#), Err(Unreadable::Newer));
        assert_eq!(
            Head::from_json(br#"{"v":1,"n":"a.b","tenant":"11111111-2222-3333-4444-555555555555","created_at":1}"#),
            Err(Unreadable::Damaged)
        );
        assert_eq!(
            Head::from_json(br#"[1,"n","11111111-2222-3333-4444-555555555555",1]"#),
            Err(Unreadable::Damaged)
        );
    }
}
