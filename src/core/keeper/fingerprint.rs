//! Whether the settings are those that what is stored was made with.
//!
//! Records are sealed for a client id and the template of a user's id, found by the pseudonym that `pseudonym_key` makes,
//! and opened with the key whose name `secret_id_template` makes. With another value of any of them every record would
//! look like a damaged or missing one. So a ledger keeps the [`Fingerprint`] that it saw first, and nothing is done under
//! another one until the operator confirms it.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::identity::Fingerprint;
use crate::journal::Journal as _;
use crate::keeper::{Keeper, KeeperError};
use crate::ledger::Ledger;
use crate::port::Environment;
use crate::vault::port::{Policy, VaultPort};

/// How long it is remembered that the settings are the right ones: another replica may have confirmed others.
const REMEMBERED: Duration = Duration::from_mins(1);

/// Settings that were found right.
pub(super) struct Seen {
    policy: Policy,
    until: Duration,
}

/// Settings are not those that what is stored was made with. Nothing was touched.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "what is stored was made with another value of {}: with this one no user can be found or no token opened. Set it back; or, if users \
     are to enrol anew, set `confirmed_settings` to {confirmation}",
    .settings.iter().map(|setting| format!("`{setting}`")).collect::<Vec<_>>().join(", ")
)]
pub struct ChangedSettings {
    /// Which.
    pub settings: Vec<&'static str>,
    /// The value of the setting `confirmed_settings` that lets this change pass, and no other.
    pub confirmation: String,
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// Compares the settings with those that the ledger has seen. Costs nothing for a time after they were found right.
    pub(super) async fn check_fingerprint(
        &self,
        ledger: &L,
        policy: &Policy,
    ) -> Result<(), KeeperError> {
        let now = self.env.elapsed();
        let is_seen = |seen: &Seen| now < seen.until && seen.policy == *policy;
        if self.seen.borrow().as_ref().is_some_and(is_seen) {
            return Ok(());
        }
        let current = &policy.fingerprint;
        match ledger.fingerprint().await? {
            Some(known) if known == *current => {}
            None => ledger.keep_fingerprint(current).await?,
            Some(known) => {
                let changed = ChangedSettings::between(&known, current);
                if policy.confirmed_settings.as_ref() != Some(&changed.confirmation) {
                    return Err(changed.into());
                }
                ledger.keep_fingerprint(current).await?;
                let settings = json!({"settings": changed.settings});
                self.env.event("changed_settings_confirmed", settings);
            }
        }
        *self.seen.borrow_mut() = Some(Seen {
            policy: policy.clone(),
            until: now.saturating_add(REMEMBERED),
        });
        Ok(())
    }
}

impl ChangedSettings {
    fn between(known: &Fingerprint, current: &Fingerprint) -> Self {
        let mut hash = Sha256::new();
        let mut settings = Vec::new();
        for ((setting, known), (_, current)) in known.parts().into_iter().zip(current.parts()) {
            if known != current {
                settings.push(setting);
            }
            // Each is of one length.
            hash.update(known);
            hash.update(current);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let confirmation = hash.iter().take(8).map(|byte| format!("{byte:02x}"));
        Self {
            settings,
            confirmation: confirmation.collect(),
        }
    }
}
