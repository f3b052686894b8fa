//! Calls of APIs for users: the vault prepares one, the ledger is asked whether the user is still enrolled, and the vault makes it.

use http::{Request as HttpRequest, Response};

use crate::deadline::{Deadline, LONGEST};
use crate::identity::{Nonce, User};
use crate::keeper::audit::{Action, Entry};
use crate::keeper::{ATTEMPTS, Keeper, KeeperError, Request, kept_refusal};
use crate::ledger::record::Record;
use crate::ledger::{Enrolled, Ledger, LedgerError};
use crate::port::Environment;
use crate::vault::call::port::{CallPort, Identified, Outgoing, Prepared, Sent, Target};
use crate::vault::port::Policy;

/// What an API answered, and what is to be stored once that is under way.
pub struct Called<D> {
    /// The answer.
    pub response: Response<D>,
    /// For [`Keeper::store`].
    pub replacement: Option<Replacement>,
}

/// The successor of a refresh token, which came along with a call. It may be lost: the old one stays valid.
#[derive(Debug)]
pub struct Replacement {
    user: User,
    nonce: Nonce,
    store_prefix: String,
    old: Record,
    new: Record,
}

/// A call that may be made.
struct Released<C> {
    call: C,
    replacement: Option<Replacement>,
}

/// Whose call it is, and what it is.
struct Matter<'a> {
    request: &'a Request<'a>,
    user: User,
    policy: Policy,
    target: Target,
    /// What its access tokens are drawn for.
    scope: String,
    deadline: Deadline,
}

impl<V: CallPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// Calls an API for a user. `sent` is what the caller sends, of which headers and body matter.
    ///
    /// # Errors
    /// [`KeeperError`]. Unless it is of the vault's [`crate::error::VaultError::Api`], nobody was called.
    pub async fn call(
        &self,
        request: &Request<'_>,
        target: Target,
        sent: HttpRequest<V::Upload>,
    ) -> Result<Called<V::Download>, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Call, request);
        entry.api(&target.api);
        let called = self.call_for_user(request, target, sent, &mut entry).await;
        entry.close(called)
    }

    /// Stores what came along with a call.
    pub async fn store(&self, replacement: Replacement) {
        let Replacement {
            user,
            nonce,
            store_prefix,
            old,
            new,
        } = replacement;
        let ledger = self.ledger.under(&store_prefix);
        self.replace(&ledger, &user, &nonce, old, new).await;
    }

    async fn call_for_user(
        &self,
        request: &Request<'_>,
        target: Target,
        sent: HttpRequest<V::Upload>,
        entry: &mut Entry<'_, E>,
    ) -> Result<Called<V::Download>, KeeperError> {
        let deadline = Deadline::within(&self.env, LONGEST);
        let terms = entry.terms(LONGEST);
        let identified = self
            .vault
            .identify_call(request.bearer, &request.subject, &target, terms);
        let Identified {
            caller,
            allowed,
            prepared,
        } = identified.await?;
        entry.caller(&caller);
        entry.allowed(&allowed);
        let ledger = self.ledger.under(&caller.policy.store_prefix);
        let mut matter = Matter {
            request,
            user: caller.user,
            policy: caller.policy,
            target,
            scope: allowed.scope,
            deadline,
        };
        if let Some(kept) = caller.kept
            && self
                .is_current(&ledger, &matter.policy, &matter.user, &kept.nonce)
                .await?
        {
            return Err(kept_refusal(kept));
        }
        let released = match prepared {
            Some(prepared) => self.released(&ledger, &matter, prepared).await?,
            None => None,
        };
        entry.cached(released.is_some());
        let released = match released {
            Some(released) => released,
            None => self.prepared(&ledger, &matter, entry).await?,
        };
        let terms = entry.terms(deadline.left(&self.env));
        let sent = self
            .vault
            .send(released.call, Outgoing::Fresh(Box::new(sent)), terms)
            .await?;
        let (response, replacement) = match sent {
            Sent::Answered(response) => (response, released.replacement),
            Sent::Challenged { claims, held } => {
                matter.target.claims = Some(claims);
                // Another access token, so another look. What came along with the first is overtaken by this.
                let released = self.prepared(&ledger, &matter, entry).await?;
                let terms = entry.terms(deadline.left(&self.env));
                let sent = self
                    .vault
                    .send(released.call, Outgoing::Held(held), terms)
                    .await?;
                match sent {
                    Sent::Answered(response) => (response, released.replacement),
                    Sent::Challenged { .. } => return Err(LedgerError::Busy.into()),
                }
            }
        };
        entry.answered(response.status());
        Ok(Called {
            response,
            replacement,
        })
    }

    /// A call with an access token that was drawn before, if it is of the user's current enrolment.
    async fn released(
        &self,
        ledger: &L,
        Matter { policy, user, .. }: &Matter<'_>,
        prepared: Prepared<V::Call>,
    ) -> Result<Option<Released<V::Call>>, KeeperError> {
        let is_current = self
            .is_current(ledger, policy, user, &prepared.nonce)
            .await?;
        Ok(is_current.then_some(Released {
            call: prepared.call,
            replacement: None,
        }))
    }

    /// A call with one that is drawn now.
    async fn prepared(
        &self,
        ledger: &L,
        matter: &Matter<'_>,
        entry: &Entry<'_, E>,
    ) -> Result<Released<V::Call>, KeeperError> {
        let Matter {
            request,
            user,
            policy,
            target,
            scope,
            deadline,
        } = matter;
        for _ in 0..ATTEMPTS {
            let found = self.read(ledger, policy, ledger.find(user)).await?;
            let Enrolled { nonce, record, .. } = found?;
            let record = record?;
            let is_own = *scope == record.scope;
            let replace = self.is_replaced(&record, is_own);
            let terms = entry.terms(deadline.left(&self.env));
            let enrolment = (&nonce, record.sealed.as_str());
            let prepared = self.vault.prepare(
                request.bearer,
                &request.subject,
                enrolment,
                target,
                replace,
                terms,
            );
            let Prepared {
                call, replacement, ..
            } = match prepared.await {
                Ok(prepared) => prepared,
                Err(error) => {
                    // Other scopes and other claims say nothing of the enrolment.
                    let is_own = is_own && target.claims.is_none();
                    let of = (user, &nonce);
                    self.note_refusal(ledger, of, record, is_own, &error).await;
                    return Err(error.into());
                }
            };
            if ledger.still_current(user, &nonce).await? {
                let replacement = replacement.map(|sealed| Replacement {
                    new: self.replaced(user, &record, sealed, policy, is_own),
                    old: record,
                    user: user.clone(),
                    nonce,
                    store_prefix: policy.store_prefix.clone(),
                });
                return Ok(Released { call, replacement });
            }
        }
        Err(LedgerError::Busy.into())
    }
}
