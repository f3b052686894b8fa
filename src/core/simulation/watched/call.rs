//! Calls of the watched vault.

use super::*;
use crate::deadline::LONGEST;
use crate::simulation::called::Parts;
use crate::vault::call::Call;
use crate::vault::call::port::{CallPort, Held, Identified, Outgoing, Prepared, Sent, Target};

impl CallPort for Watched {
    type Call = Call;
    type Held = Held;
    type Upload = Parts;
    type Download = usize;

    async fn identify_call(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        target: &Target,
        terms: Terms,
    ) -> Result<Identified<Call>, VaultError> {
        let outside = &self.outside;
        let before = outside.rows.borrow().clone();
        // It may take long.
        for _ in 0..outside.chance.below(8) {
            outside.pause().await;
        }
        let identified = self.vault.identify_call(bearer, subject, target, terms);
        let mut identified = identified.await?;
        if let Some(prepared) = &mut identified.prepared {
            let user = &identified.caller.user;
            self.answer(user, &mut prepared.nonce, before).await;
        }
        Ok(identified)
    }

    async fn prepare(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        enrolment: (&Nonce, &str),
        target: &Target,
        replace: bool,
        terms: Terms,
    ) -> Result<Prepared<Call>, VaultError> {
        let prepared = self
            .vault
            .prepare(bearer, subject, enrolment, target, replace, terms);
        let prepared = prepared.await?;
        let outside = &self.outside;
        let unseen = outside.is(Mutation::CallSentUnseen)
            || outside.is(Mutation::ChallengeAnsweredUnseen) && target.claims.is_some();
        {
            let act = &mut outside.acts.borrow_mut()[outside.current.get()];
            (act.answered, act.has_read_head) = (outside.step.get(), false);
        }
        if unseen {
            let identified = self
                .vault
                .identify_call(bearer, subject, target, LONGEST.into());
            let user = identified.await?.caller.user;
            outside.note_answer(&user, &prepared.nonce, BTreeMap::new());
        }
        for _ in 0..outside.chance.below(8) {
            outside.pause().await;
        }
        Ok(prepared)
    }

    async fn send(
        &self,
        call: Call,
        outgoing: Outgoing<Parts, Held>,
        terms: Terms,
    ) -> Result<Sent<usize, Held>, VaultError> {
        self.vault.send(call, outgoing, terms).await
    }
}
