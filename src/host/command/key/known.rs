//! What a running app's status says of tenants' keys.

use crate::command::Failure;
use crate::command::screen::day;
use behalf_core::identity::{KeyVersion, TenantId};
use behalf_core::keeper::status::{Report, Tenant};
use std::time::Duration;

/// Seconds for which nothing may be decided by a status: a sweep looks once an hour at least.
const STALE: u64 = 86_400;

/// Tenants by the status, and their keys.
pub(super) struct KnownKeys {
    observed_at: u64,
    tenants: Vec<(TenantId, Tenant)>,
    /// Tenants that the status counts, and does not show.
    hidden: u64,
}

impl KnownKeys {
    /// Takes what a status says, if it is recent. `unswept` is what to do if no sweep has looked yet.
    ///
    /// # Errors
    /// No sweep has looked, or not for a day.
    pub(super) fn of(report: Report, unswept: &'static str) -> Result<Self, Failure> {
        let observed_at = report.observed_at.ok_or(Failure::Unknown(unswept))?;
        if report.age_seconds.is_none_or(|age| age > STALE) {
            return Err(Failure::Unknown(
                "the status is over a day old: see why nothing sweeps (`behalf status`)",
            ));
        }
        let shown = u64::try_from(report.tenants.len()).unwrap_or(u64::MAX);
        let tenants = report.tenants.into_iter();
        Ok(Self {
            observed_at,
            hidden: report.tenant_count.saturating_sub(shown),
            tenants: tenants
                .filter_map(|(id, tenant)| Some((TenantId::parse(&id)?, tenant)))
                .collect(),
        })
    }

    /// Nobody of a tenant that is being removed needs its key.
    fn staying(&self) -> impl Iterator<Item = &(TenantId, Tenant)> {
        let tenants = self.tenants.iter();
        tenants.filter(|(_, tenant)| !tenant.summary.being_removed)
    }

    /// Why nothing is to be done for this tenant, whose versions would be enabled, or else disabled if unused for so long; and
    /// whether that is certain.
    pub(super) fn why_nothing(&self, id: &TenantId, enable: bool) -> (String, bool) {
        let said = |why: &str, is_certain| (why.to_owned(), is_certain);
        let Some((_, tenant)) = self.tenants.iter().find(|(it, _)| it == id) else {
            return if self.hidden > 0 {
                said("the status does not show it: name it alone", false)
            } else {
                said("the status has nobody of it: is the id right?", true)
            };
        };
        if tenant.summary.being_removed {
            return said("it is being removed, and nobody of it needs a key", true);
        }
        if enable {
            return said(
                "the status names no version of its key: give --version",
                false,
            );
        }
        let Some(newest) = &tenant.newest_key_version else {
            return said(
                "the app does not know yet which version of its key is the newest: see `behalf status`, or wait for a sweep",
                false,
            );
        };
        let unused = tenant.summary.unused_key_versions.iter();
        let others = unused.filter(|(version, _)| **version != newest.version);
        match others.map(|(_, since)| *since).min() {
            None => said(
                "its key has no version that is unused, beside the newest",
                true,
            ),
            Some(since) => {
                let day = day(Some(since), "");
                (
                    format!(
                        "no version of its key is unused for long enough (--unused-for): the first since {day}"
                    ),
                    true,
                )
            }
        }
    }

    /// Tenants that the status counts, and does not show.
    pub(super) fn hidden(&self) -> u64 {
        self.hidden
    }

    /// Every tenant.
    pub(super) fn all(&self) -> Vec<TenantId> {
        self.staying().map(|(id, _)| id.clone()).collect()
    }

    /// Tenants whose newest key version is so old at this time, and those of whose age nothing is known.
    pub(super) fn older_than(&self, age: Duration, now: u64) -> (Vec<TenantId>, Vec<TenantId>) {
        let (mut old, mut unknown) = (Vec::new(), Vec::new());
        for (id, tenant) in self.staying() {
            let newest = tenant.newest_key_version.as_ref();
            match newest.and_then(|newest| newest.created_at) {
                None => unknown.push(id.clone()),
                Some(created_at) if now.saturating_sub(created_at) >= age.as_secs() => {
                    old.push(id.clone());
                }
                Some(_) => {}
            }
        }
        (old, unknown)
    }

    /// Key versions that no record has used for so long, and since when; never the newest. Of these tenants, or of all.
    pub(super) fn unused(
        &self,
        of: &[TenantId],
        time: Duration,
    ) -> Vec<(TenantId, KeyVersion, u64)> {
        let asked = |id: &TenantId| of.is_empty() || of.contains(id);
        let asked = self.staying().filter(|(id, _)| asked(id));
        let unused = asked.flat_map(|(id, tenant)| {
            let unused = tenant.retirable(self.observed_at, time).into_iter();
            unused.filter_map(|(version, since)| {
                Some((id.clone(), KeyVersion::parse(version)?, since))
            })
        });
        unused.collect()
    }

    /// Every key version of these tenants that the status names, used or not.
    pub(super) fn named(&self, of: &[TenantId]) -> Vec<(TenantId, KeyVersion)> {
        let asked = self.staying().filter(|(id, _)| of.contains(id));
        let named = asked.flat_map(|(id, tenant)| {
            let (used, unused) = (
                &tenant.summary.key_versions,
                &tenant.summary.unused_key_versions,
            );
            let versions = used.keys().chain(unused.keys());
            versions.filter_map(|version| Some((id.clone(), KeyVersion::parse(version)?)))
        });
        named.collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: u64 = 2_000_000_000;
    const DAY: u64 = 86_400;
    const ONE: &str = "11111111-1111-4111-8111-111111111111";
    const TWO: &str = "22222222-2222-4222-8222-222222222222";
    const NEW: &str = "cccccccc-cccc-4ccc-8ccc-cccccccccccc";

    fn version(digit: char) -> String {
        digit.to_string().repeat(32)
    }

    fn known(tenants: &Value) -> Result<KnownKeys, Failure> {
        let report =
            json!({"observed_at": NOW, "age_seconds": 60, "tenant_count": 2, "tenants": tenants});
        KnownKeys::of(serde_json::from_value(report).unwrap(), "")
    }

    #[test]
    fn a_version_is_retired_that_was_unused_for_a_day_and_is_not_the_newest() {
        let (new, old) = (version('a'), version('b'));
        let day = Duration::from_secs(DAY);
        for (newest, used, unused, retired) in [
            (Some(&new), json!({&new: 1}), json!({&old: NOW - DAY}), true),
            (Some(&new), json!({}), json!({&old: NOW - DAY}), true),
            (
                Some(&new),
                json!({&new: 1}),
                json!({&old: NOW - DAY + 1}),
                false,
            ),
            (Some(&old), json!({}), json!({&old: 1}), false),
            (None, json!({&new: 1}), json!({&old: 1}), false),
            (Some(&new), json!({&old: 1}), json!({&old: 1}), false),
        ] {
            let newest = newest.map(|version| json!({"version": version, "created_at": 1}));
            let tenant = json!({"newest_key_version": newest, "key_versions": used, "unused_key_versions": unused});
            let known = known(&json!({ONE: tenant})).unwrap();
            let unused = known.unused(&[], day);
            assert_eq!(!unused.is_empty(), retired, "{tenant}");
            assert!(unused.iter().all(|(_, version, _)| version.as_str() == old));
            let other = TenantId::parse(TWO).unwrap();
            assert!(known.unused(&[other], day).is_empty());
        }
    }

    #[test]
    fn why_nothing_is_retired_is_told() {
        let (new, old) = (version('a'), version('b'));
        let newest = json!({"version": new, "created_at": 1});
        let one = TenantId::parse(ONE).unwrap();
        for (tenants, enable, says, certain) in [
            (json!({}), false, "does not show it: name it alone", false),
            (json!({TWO: {}, NEW: {}}), false, "has nobody of it", true),
            (
                json!({ONE: {"being_removed": true}}),
                false,
                "being removed",
                true,
            ),
            (json!({ONE: {}}), true, "give --version", false),
            (
                json!({ONE: {"unused_key_versions": {&old: 1}}}),
                false,
                "does not know yet which version of its key is the newest",
                false,
            ),
            (
                json!({ONE: {"newest_key_version": newest, "unused_key_versions": {&new: 1}}}),
                false,
                "has no version that is unused",
                true,
            ),
            (
                json!({ONE: {"newest_key_version": newest, "unused_key_versions": {&old: NOW - 1}}}),
                false,
                "(--unused-for): the first since 2033-05-18",
                true,
            ),
        ] {
            let known = known(&tenants).unwrap();
            let (why, is_certain) = known.why_nothing(&one, enable);
            assert!(why.contains(says) && is_certain == certain, "{says}: {why}");
        }
    }

    #[test]
    fn a_key_is_as_old_as_key_vault_says_and_else_of_unknown_age() {
        let of = |created: u64| json!({"newest_key_version": {"version": version('a'), "created_at": created}});
        let month = Duration::from_secs(30 * DAY);
        for (tenant, expected) in [
            (of(NOW - 30 * DAY), (1, 0)),
            (of(NOW - 30 * DAY + 1), (0, 0)),
            (json!({}), (0, 1)),
            (
                json!({"newest_key_version": {"version": version('a')}}),
                (0, 1),
            ),
            (json!({"being_removed": true}), (0, 0)),
        ] {
            let known = known(&json!({ONE: tenant})).unwrap();
            let (old, unknown) = known.older_than(month, NOW);
            assert_eq!((old.len(), unknown.len()), expected, "{tenant}");
            assert_eq!(known.hidden(), 1);
        }
    }

    #[test]
    fn nothing_is_decided_by_a_status_that_is_old_or_empty() {
        for report in [json!({}), json!({"observed_at": 1, "age_seconds": DAY + 1})] {
            assert!(KnownKeys::of(serde_json::from_value(report).unwrap(), "").is_err());
        }
    }
}
