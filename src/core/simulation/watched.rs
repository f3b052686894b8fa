//! The vault of a replica, watched: when it had an access token that it had drawn before, or has one in a call, and the mistakes
//! that can be made with one.

mod call;

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Vault;
use crate::error::VaultError;
use crate::identity::{Nonce, TenantId, User};
use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::Layout;
use crate::secret::Bearer;
use crate::simulation::mutation::Mutation;
use crate::simulation::outside::Outside;
use crate::simulation::port::Port;
use crate::vault::port::{
    Caller, Draw, Enrolment, Issued, NewestKey, Operator, Policy, Purpose, Role, SealedToken,
    StoredToken, Subject, SweepLimits, Terms, VaultPort,
};

/// A vault, and what is around it.
pub(super) struct Watched {
    vault: Vault<Port>,
    outside: Rc<Outside>,
}

/// What a draw was answered out of, for the mistakes that its last look can make.
pub(super) struct Answered {
    user: User,
    nonce: Nonce,
    /// What was stored before the vault was asked.
    before: BTreeMap<String, Vec<u8>>,
}

impl Watched {
    pub(super) fn new(port: Port) -> Self {
        Self {
            outside: Rc::clone(&port.outside),
            vault: Vault::new(port),
        }
    }

    /// Notes that the vault has an access token that it had drawn before, under the enrolment of this nonce; it may take long
    /// until it is told.
    async fn answer(&self, user: &User, nonce: &mut Nonce, before: BTreeMap<String, Vec<u8>>) {
        let outside = &self.outside;
        let head = Layout::new("").head(user);
        if outside.is(Mutation::KeptWithoutNonce)
            && let Some(head) = outside.rows.borrow().get(&head)
        {
            *nonce = Head::from_json(head).unwrap().nonce;
        }
        outside.note_answer(user, nonce, before);
        for _ in 0..outside.chance.below(8) {
            outside.pause().await;
        }
    }
}

impl Outside {
    /// Notes that the vault has an access token, under the enrolment of this nonce.
    fn note_answer(&self, user: &User, nonce: &Nonce, before: BTreeMap<String, Vec<u8>>) {
        let act = self.current.get();
        {
            let act = &mut self.acts.borrow_mut()[act];
            (act.answered, act.has_read_head) = (self.step.get(), false);
        }
        let answered = Answered {
            user: user.clone(),
            nonce: nonce.clone(),
            before,
        };
        self.notes.kept.borrow_mut().insert(act, answered);
    }

    /// What the last look reads by mistake, in the place of what is stored; none: it makes no such mistake.
    #[expect(clippy::option_option, reason = "what is read may be nothing")]
    pub(super) fn mistaken_look(&self, key: &str) -> Option<Option<Vec<u8>>> {
        let is_head = key.starts_with("usr.");
        if !is_head && !key.starts_with("off.") {
            return None;
        }
        let (mutation, act) = (self.mutation?, self.current.get());
        let mut kept = self.notes.kept.borrow_mut();
        let value = {
            let answered = kept.get(&act)?;
            match mutation {
                Mutation::KeptReleasedUnseen
                | Mutation::CallSentUnseen
                | Mutation::ChallengeAnsweredUnseen
                    if is_head =>
                {
                    let head = Head {
                        nonce: answered.nonce.clone(),
                        tenant: answered.user.tenant.clone(),
                        created_at: 0,
                    };
                    Some(head.to_json())
                }
                Mutation::KeptReleasedUnseen
                | Mutation::CallSentUnseen
                | Mutation::ChallengeAnsweredUnseen => None,
                Mutation::KeptSeenBefore => answered.before.get(key).cloned(),
                _ => return None,
            }
        };
        if is_head {
            // The look is over.
            kept.remove(&act);
        }
        Some(value)
    }
}

impl VaultPort for Watched {
    fn check_settings(&self) -> Result<Policy, VaultError> {
        self.vault.check_settings()
    }

    async fn identify(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        purpose: &Purpose,
        terms: Terms,
    ) -> Result<Caller, VaultError> {
        let outside = &self.outside;
        let before = outside.rows.borrow().clone();
        // It may take long.
        for _ in 0..outside.chance.below(8) {
            outside.pause().await;
        }
        let mut caller = self.vault.identify(bearer, subject, purpose, terms).await?;
        if let Some(kept) = &mut caller.kept {
            self.answer(&caller.user, &mut kept.nonce, before).await;
        }
        Ok(caller)
    }

    async fn enrol(
        &self,
        bearer: &Bearer,
        nonce: &Nonce,
        scope: Option<&str>,
        terms: Terms,
    ) -> Result<Enrolment, VaultError> {
        self.vault.enrol(bearer, nonce, scope, terms).await
    }

    async fn access_token(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        nonce: &Nonce,
        token: &str,
        draw: Draw,
        terms: Terms,
    ) -> Result<Issued, VaultError> {
        self.vault
            .access_token(bearer, subject, nonce, token, draw, terms)
            .await
    }

    fn forget(&self, user: &User) {
        self.vault.forget(user);
    }

    async fn refresh(&self, stored: &StoredToken, terms: Terms) -> Result<SealedToken, VaultError> {
        self.vault.refresh(stored, terms).await
    }

    async fn reseal(
        &self,
        stored: &StoredToken,
        terms: Terms,
    ) -> Result<Option<SealedToken>, VaultError> {
        self.vault.reseal(stored, terms).await
    }

    async fn newest_key_version(
        &self,
        tenant: &TenantId,
        terms: Terms,
    ) -> Result<NewestKey, VaultError> {
        self.vault.newest_key_version(tenant, terms).await
    }

    async fn confirm_clock(&self, terms: Terms) -> Result<(), VaultError> {
        self.vault.confirm_clock(terms).await
    }

    async fn authorize_sweep(
        &self,
        bearer: &Bearer,
        terms: Terms,
    ) -> Result<SweepLimits, VaultError> {
        self.vault.authorize_sweep(bearer, terms).await
    }

    async fn authorize_operator(
        &self,
        bearer: &Bearer,
        role: Role,
        tenant: Option<&TenantId>,
        terms: Terms,
    ) -> Result<Operator, VaultError> {
        self.vault
            .authorize_operator(bearer, role, tenant, terms)
            .await
    }
}
