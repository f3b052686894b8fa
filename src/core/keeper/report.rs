//! What one call of a sweep did: the answer of `POST /v1/sweep`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::identity::TenantId;
use crate::keeper::turns::{Share, Turns};
use crate::keeper::visit::Outcome;
use crate::ledger::Outlook;

/// What one call of a sweep did.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct SweepReport {
    /// Whether it worked. False: another sweep was under way, and this one left it to that.
    pub lease_held: bool,
    /// Records that were due when it began.
    pub due: u64,
    /// Records whose refresh token was replaced.
    pub refreshed: u64,
    /// Records re-sealed under the newest key, without Entra ID.
    pub resealed: u64,
    /// Records whose user has to act; kept, and tried again daily.
    pub interaction_required: u64,
    /// Records whose user's organisation has to act; kept, and tried again daily.
    pub organisation_required: u64,
    /// Records whose refresh token Entra ID called dead; kept, and tried again daily.
    pub quarantined: u64,
    /// Records whose refresh token was refused and is older than the retention limit: it was removed.
    pub expired: u64,
    /// Records to be tried again soon, because another system failed.
    pub retrying: u64,
    /// Records that Entra ID refused for a reason of this app's; to be tried again later. The log says why.
    pub refused: u64,
    /// Records that cannot be read or opened; kept, and looked at again daily.
    pub damaged: u64,
    /// Records for which storage failed. The log says why.
    pub failed: u64,
    /// Records that wait for their tenant's key, for Entra ID, or for this app's credential. The log says for which.
    pub waiting: u64,
    /// Records of tenants that are not among the setting `tenants`: remove them, or allow the tenant again.
    pub not_served: u64,
    /// Left-over enrolments, of removed or replaced ones, that were cleared.
    pub cleared: u64,
    /// Tenants whose newest key was asked for.
    pub checked: u64,
    /// Tenants for which there was no time to ask for it, and parts of the database that could not be looked at; call again.
    pub unchecked: u64,
    /// Records that there was no time for; call again.
    pub remaining: u64,
    /// Tenants without a newest key to seal under.
    pub tenants_without_key: u64,
    /// Of these some by name, and why: a code of the API's errors.
    pub without_key: BTreeMap<String, String>,
    /// Why it stopped before its time: a code of the API's errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Unix time in seconds at which the next of the records not due now is due.
    pub next_due_at: Option<u64>,
}

impl SweepReport {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Refreshed => &mut self.refreshed,
            Outcome::Resealed => &mut self.resealed,
            Outcome::InteractionRequired => &mut self.interaction_required,
            Outcome::OrganisationRequired => &mut self.organisation_required,
            Outcome::Quarantined => &mut self.quarantined,
            Outcome::Expired => &mut self.expired,
            Outcome::Retrying => &mut self.retrying,
            Outcome::Refused => &mut self.refused,
            Outcome::Damaged => &mut self.damaged,
            Outcome::Failed => &mut self.failed,
            Outcome::Waiting => &mut self.waiting,
            Outcome::Remaining => &mut self.remaining,
            // Counted whole, by tenant.
            Outcome::NotServed | Outcome::Nothing => return,
        };
        *counter = counter.saturating_add(1);
    }

    /// Whether anything is stored otherwise than it was.
    pub(crate) fn has_changed_anything(&self) -> bool {
        [
            self.refreshed,
            self.resealed,
            self.interaction_required,
            self.organisation_required,
            self.quarantined,
            self.expired,
            self.retrying,
            self.refused,
            self.damaged,
            self.cleared,
        ] != [0; 10]
    }

    /// Counts what had no turn, and returns the tenant at which the next round of questions is to begin. Tenants of which
    /// something was claimed in vain are added to those that were left alone.
    pub(crate) fn add_left<C>(
        &mut self,
        turns: Turns<C>,
        outlooks: &BTreeMap<TenantId, Outlook>,
        left_alone: &mut BTreeSet<TenantId>,
    ) -> Option<TenantId> {
        let mut first = None;
        for left in turns.left() {
            let visits = left.unclaimed.saturating_add(left.claimed);
            self.remaining = self.remaining.saturating_add(visits);
            if left.claimed > 0 {
                left_alone.insert(left.tenant.clone());
            }
            if left.asks {
                let due = outlooks.get(&left.tenant).map_or(0, |outlook| outlook.due);
                self.unchecked = self.unchecked.saturating_add(1);
                self.remaining = self.remaining.saturating_add(due);
                if left.share == Share::Check {
                    first.get_or_insert(left.tenant);
                }
            }
        }
        first
    }
}
