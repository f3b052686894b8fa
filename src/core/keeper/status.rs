//! What an operator sees, and the removal of a tenant.
//!
//! What is seen is what a sweep has summed up: nothing is listed for whoever asks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::deadline::{Deadline, LONGEST};
use crate::identity::{TenantId, User};
use crate::keeper::audit::{Action, Entry};
use crate::keeper::report::SweepReport;
use crate::keeper::sweep::{Newest, SweepState};
use crate::keeper::{Keeper, KeeperError, Request};
use crate::ledger::schedule::DAILY;
use crate::ledger::summary::{Due, Numbers, States, Summary, TenantSummary, increase};
use crate::ledger::{Ledger, Remaining};
use crate::port::Environment;
use crate::vault::port::{Operator, Role, VaultPort};

/// Of the users that one store is made for, the share from which on the status warns: five sixths.
const WARN_SHARE: (u64, u64) = (5, 6);
/// How long a removal of a tenant admits further users.
const REMOVAL_TIME: Duration = Duration::from_secs(15);

/// What is stored, as the last sweep that looked has seen it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Unix time in seconds at which it was so. None: no sweep has looked yet, and nothing is known.
    pub observed_at: Option<u64>,
    /// How long ago that was, in seconds.
    pub age_seconds: Option<u64>,
    /// Users that are enrolled, with a refresh token or without.
    pub users: u64,
    /// Users that one store is made for; none: there is no such number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_users: Option<u64>,
    /// What to do before long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<Cow<'static, str>>,
    /// Enrolments by state.
    pub states: States,
    /// Enrolments by when they are looked at next.
    pub due: Due,
    /// Tenants of which something is stored; `tenants` has 5,000 of them, those with the most users.
    pub tenant_count: u64,
    /// The same by tenant.
    pub tenants: BTreeMap<String, Tenant>,
    /// The last sweep; none: none ended yet, or what it left is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sweep: Option<LastSweep>,
}

/// What is stored of one tenant.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Tenant {
    /// What a sweep has summed up. A version that is not used any more can be retired when that is a day ago: a writer that
    /// was under way then has shown by now what it wrote (README, "Rotation").
    #[serde(flatten)]
    pub summary: TenantSummary,
    /// The newest version of the tenant's key, as Key Vault said when a sweep last asked; none: it has not said yet, or 2,500 other
    /// tenants come before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_key_version: Option<NewestKeyVersion>,
    /// Why the tenant had no newest key to seal under at the last sweep, a code of the API's errors; none: it had one, or
    /// was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_key: Option<String>,
}

impl Tenant {
    /// How much of what is stored of the tenant is under its newest key, in percent, rounded down; none: nothing is, or the
    /// newest key is not known.
    #[must_use]
    pub fn rotated(&self) -> Option<u64> {
        let newest = &self.newest_key_version.as_ref()?.version;
        let numbers = &self.summary.key_versions;
        let all = numbers
            .values()
            .fold(0, |all: u64, it| all.saturating_add(*it));
        let moved = numbers.get(newest).copied().unwrap_or(0);
        moved.saturating_mul(100).checked_div(all)
    }

    /// Versions of the tenant's key that can be disabled, and the Unix time in seconds since which nothing is under them, by what
    /// was observed at such a time: two looks, so long apart, have found nothing (README, "Rotation"). The newest is none of
    /// them, and while it is not known, none is.
    #[must_use]
    pub fn retirable(&self, observed_at: u64, unused_for: Duration) -> Vec<(&str, u64)> {
        let Some(newest) = &self.newest_key_version else {
            return Vec::new();
        };
        let until = observed_at.saturating_sub(unused_for.as_secs());
        let unused = self.summary.unused_key_versions.iter();
        unused
            .filter(|(version, since)| {
                **version != newest.version
                    && **since <= until
                    && !self.summary.key_versions.contains_key(*version)
            })
            .map(|(version, since)| (version.as_str(), *since))
            .collect()
    }
}

/// For how long nothing has to be under a key version before it is safe to disable.
pub const A_DAY: Duration = Duration::from_secs(DAILY);

/// The newest version of a tenant's key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewestKeyVersion {
    /// The version.
    pub version: String,
    /// Unix time in seconds at which it was made; none: Key Vault does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<u64>,
    /// Unix time in seconds from which it seals no more; none: it does not expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
}

/// The last sweep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastSweep {
    /// Unix time in seconds.
    pub ended_at: u64,
    /// What it did.
    pub report: SweepReport,
}

impl LastSweep {
    /// The last sweep, by what it left for the next ([`Ledger::sweep_state`]); none: none ended yet, or that is lost.
    #[must_use]
    pub fn of_state(state: &[u8]) -> Option<Self> {
        let SweepState {
            ended_at, report, ..
        } = serde_json::from_slice(state).ok()?;
        (ended_at > 0).then_some(Self { ended_at, report })
    }
}

/// How far the removal of a tenant came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removal {
    /// Users that were removed.
    pub removed: u64,
    /// Users that are left; call again.
    pub remaining: u64,
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// What is stored: of every tenant for the operator tenant, of the caller's own for another. Of one tenant, the
    /// caller's own or the one that is asked for, some of the users who have to act are named.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn status(
        &self,
        request: &Request<'_>,
        asked: Option<&TenantId>,
    ) -> Result<Report, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Status, request);
        let report = self.report(request, asked, &mut entry).await;
        entry.close(report)
    }

    async fn report(
        &self,
        request: &Request<'_>,
        asked: Option<&TenantId>,
        entry: &mut Entry<'_, E>,
    ) -> Result<Report, KeeperError> {
        let Operator { policy, tenant, .. } =
            self.operator(request, entry, Role::Read, asked).await?;
        let ledger = self.open(&policy).await?;
        let state = self.sweep_state(&ledger).await?;
        let of_all = tenant.is_none() && asked.is_none();
        let summary = ledger.summary(tenant.as_ref().or(asked)).await?;
        let mut report = Report {
            most_users: L::MOST_USERS,
            ..Report::default()
        };
        let Some(summary) = summary else {
            let warning = "no sweep has looked at what is stored yet: see to it that POST /v1/sweep is called, every five minutes (`behalf sweep`)";
            report.warning = Some(warning.into());
            return Ok(report);
        };
        report.tell(summary, of_all, self.env.now());
        for (name, newest) in &state.newest {
            if let Some(of) = report.tenants.get_mut(name) {
                let Newest(version, created_at, expires_at) = newest;
                of.newest_key_version = Some(NewestKeyVersion {
                    version: version.clone(),
                    created_at: *created_at,
                    expires_at: *expires_at,
                });
            }
        }
        for (name, code) in &state.report.without_key {
            if let Some(of) = report.tenants.get_mut(name) {
                of.without_key = Some(code.clone());
            }
        }
        // What a sweep did is about every tenant.
        let has_swept = of_all && state.ended_at > 0;
        report.last_sweep = has_swept.then_some(LastSweep {
            ended_at: state.ended_at,
            report: state.report,
        });
        Ok(report)
    }

    /// Removes every user of a tenant, as many as there is time for. Until the last is gone, nobody of it enrols.
    ///
    /// # Errors
    /// [`KeeperError`]. After any, call again.
    pub async fn remove_tenant(
        &self,
        request: &Request<'_>,
        tenant: &TenantId,
    ) -> Result<Removal, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::RemoveTenant, request);
        let removal = self.remove_users(request, tenant, &mut entry).await;
        entry.close(removal)
    }

    async fn remove_users(
        &self,
        request: &Request<'_>,
        tenant: &TenantId,
        entry: &mut Entry<'_, E>,
    ) -> Result<Removal, KeeperError> {
        let operator = self.operator(request, entry, Role::Admin, Some(tenant));
        let ledger = self.open(&operator.await?.policy).await?;
        let until = Deadline::within(&self.env, REMOVAL_TIME);
        let mut removed = 0;
        let mut tell = |user: &User| {
            increase(&mut removed);
            entry.removed(user);
        };
        let left = ledger.remove_tenant(tenant, until, &mut tell).await;
        let Remaining(remaining) = left?;
        entry.removal(removed, remaining);
        Ok(Removal { removed, remaining })
    }

    /// An app with a role, to act on tenants as a whole.
    async fn operator(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
        role: Role,
        tenant: Option<&TenantId>,
    ) -> Result<Operator, KeeperError> {
        if let Some(tenant) = tenant {
            entry.tenant(tenant);
        }
        let terms = entry.terms(LONGEST);
        let operator = self
            .vault
            .authorize_operator(request.bearer, role, tenant, terms);
        let operator = operator.await?;
        entry.app(operator.app.as_ref());
        Ok(operator)
    }
}

impl Report {
    fn tell(&mut self, summary: Summary, of_all: bool, now: u64) {
        let numbers = if of_all {
            self.tenant_count = summary.tenant_count;
            summary.totals
        } else {
            self.tenant_count = u64::try_from(summary.tenants.len()).unwrap_or(u64::MAX);
            let mut numbers = Numbers::default();
            for of in summary.tenants.values() {
                numbers.add_all(&of.numbers);
            }
            numbers
        };
        self.observed_at = Some(summary.observed_at);
        self.age_seconds = Some(now.saturating_sub(summary.observed_at));
        (self.users, self.states, self.due) = (numbers.users, numbers.states, numbers.due);
        let tenants = summary.tenants.into_iter().map(|(name, summary)| {
            let of = Tenant {
                summary,
                ..Tenant::default()
            };
            (name, of)
        });
        self.tenants = tenants.collect();
        let (share, whole) = WARN_SHARE;
        let is_near = |most: u64| self.users.saturating_mul(whole) >= most.saturating_mul(share);
        let warning = "one store is made for 300,000 users: divide the tenants among two apps before that, or keep records in PostgreSQL";
        self.warning = self.most_users.is_some_and(is_near).then(|| warning.into());
    }

    /// As Prometheus reads it (text format 0.0.4).
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        // Lines of one name have to stand together.
        let mut families: BTreeMap<&str, String> = BTreeMap::new();
        let mut metric = |name: &'static str, labels: &str, value: u64| {
            let lines = families.entry(name).or_default();
            // Writing to a `String` does not fail.
            let _ = writeln!(lines, "behalf_{name}{labels} {value}");
        };
        if let Some(observed_at) = self.observed_at {
            metric("observed_at_seconds", "", observed_at);
        }
        metric("users", "", self.users);
        if let Some(most) = self.most_users {
            metric("users_most", "", most);
        }
        for (due, number) in [
            ("now", self.due.now),
            ("hour", self.due.hour),
            ("day", self.due.day),
            ("week", self.due.week),
            ("later", self.due.later),
        ] {
            metric("enrolments_due", &format!("{{within=\"{due}\"}}"), number);
        }
        metric("tenants", "", self.tenant_count);
        for (
            tenant,
            Tenant {
                summary: of,
                newest_key_version,
                without_key,
            },
        ) in &self.tenants
        {
            let states = of.numbers.states;
            metric(
                "tenant_users",
                &format!("{{tenant=\"{tenant}\"}}"),
                of.numbers.users,
            );
            for (state, number) in [
                ("active", states.active),
                ("retrying", states.retrying),
                ("interaction_required", states.interaction_required),
                ("quarantined", states.quarantined),
                ("not_readable", states.not_readable),
            ] {
                let labels = format!("{{tenant=\"{tenant}\",state=\"{state}\"}}");
                metric("enrolments", &labels, number);
            }
            for (version, number) in &of.key_versions {
                let labels = format!("{{tenant=\"{tenant}\",key_version=\"{version}\"}}");
                metric("markers", &labels, *number);
            }
            for (version, since) in &of.unused_key_versions {
                let labels = format!("{{tenant=\"{tenant}\",key_version=\"{version}\"}}");
                metric("key_version_unused_since_seconds", &labels, *since);
            }
            if let Some(newest) = newest_key_version {
                let version = &newest.version;
                let labels = format!("{{tenant=\"{tenant}\",key_version=\"{version}\"}}");
                for (name, time) in [
                    ("newest_key_created_at_seconds", newest.created_at),
                    ("newest_key_expires_at_seconds", newest.expires_at),
                ] {
                    if let Some(time) = time {
                        metric(name, &labels, time);
                    }
                }
            }
            if of.being_removed {
                let labels = format!("{{tenant=\"{tenant}\"}}");
                metric("tenant_being_removed", &labels, 1);
            }
            if of.must_act.total > 0 {
                let labels = format!("{{tenant=\"{tenant}\"}}");
                metric("users_who_must_act", &labels, of.must_act.total);
            }
            if let Some(code) = without_key {
                let labels = format!("{{tenant=\"{tenant}\",code=\"{code}\"}}");
                metric("tenant_without_key", &labels, 1);
            }
        }
        if let Some(LastSweep { ended_at, report }) = &self.last_sweep {
            metric("sweep_ended_at_seconds", "", *ended_at);
            metric("sweep_remaining", "", report.remaining);
            metric("sweep_failed", "", report.failed);
            metric("sweep_waiting", "", report.waiting);
            metric("sweep_not_served", "", report.not_served);
            metric("sweep_tenants_without_key", "", report.tenants_without_key);
        }
        let mut text = String::new();
        for (name, lines) in families {
            let _ = write!(text, "# TYPE behalf_{name} gauge\n{lines}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use crate::secret::Bearer;
    use std::cell::RefCell;
    use std::rc::Rc;

    use pollster::block_on;
    use serde_json::json;

    use super::*;
    use crate::error::{CallerError, VaultError};
    use crate::ledger::LedgerError;
    use crate::ledger::key_value::layout::Layout;
    use crate::ledger::schedule::{DAILY, RETENTION};
    use crate::ledger::summary::MustAct;
    use crate::simulation::world::{App, SWEEP_KEY, Shared, World};
    use crate::vault::samples::{NOW, TENANT, claims, sign};

    const OTHER_TENANT: &str = "77777777-7777-7777-7777-777777777777";

    fn bearer_of(tenant: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Bearer {
        let mut claims = claims();
        claims["tid"] = json!(tenant);
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{tenant}/v2.0"));
        edit(&mut claims);
        sign(&json!({"typ": "JWT", "alg": "RS256", "kid": "k1"}), &claims)
    }

    fn app_of(tenant: &str, role: Role) -> Bearer {
        bearer_of(tenant, |claims| {
            claims["scp"].take();
            claims["sub"] = claims["oid"].clone();
            claims["roles"] = json!([role.name()]);
        })
    }

    /// Three users of one tenant, which is the operator's too.
    fn enrolled() -> (Shared, App) {
        let world = World::new();
        for (name, value) in [
            ("operator_tenant", TENANT.to_owned()),
            ("tenants", "*".to_owned()),
        ] {
            world.settings.borrow_mut().insert(name, value);
        }
        let app = world.app();
        for user in 0..3 {
            let bearer = world.bearer_of(&format!("{user:08x}-0000-0000-0000-000000000000"));
            block_on(app.enrol(&Request::of(&bearer), None)).unwrap();
        }
        (world, app)
    }

    fn is_refused<T: std::fmt::Debug>(outcome: Result<T, KeeperError>) -> bool {
        matches!(
            outcome,
            Err(KeeperError::Vault(VaultError::Caller(
                CallerError::InsufficientScope(_) | CallerError::NotGranted(_)
            )))
        )
    }

    #[test]
    fn a_status_counts_what_is_stored() {
        let (world, app) = enrolled();
        let key = world.keys_of("rec.").remove(0);
        world.rows.borrow_mut().insert(key, b"{}".to_vec());
        world.advance(604_800);
        // No JSON, which is neither asked again at once nor anybody else's business.
        let answers = [(400, json!("<html>"))];
        world.entra_answers.borrow_mut().extend(answers);
        assert_eq!(sweep(&app).refreshed, 1);
        let before = status(&world, &app);
        assert_eq!((before.users, before.due.now), (3, 3), "as the sweep began");
        world.advance(30);
        sweep(&app);
        world.listings.set(0);
        world.advance(10);
        let report = status(&world, &app);
        assert_eq!(world.listings.get(), 0);
        assert_eq!(report.observed_at, Some(world.now.get() - 10));
        assert_eq!(report.age_seconds, Some(10));
        let states = States {
            active: 1,
            retrying: 1,
            not_readable: 1,
            ..States::default()
        };
        assert_eq!((report.users, report.states), (3, states));
        assert_eq!(
            (report.due.hour, report.due.day, report.due.week),
            (1, 1, 1)
        );
        let tenant = &report.tenants[TENANT];
        assert_eq!(
            (tenant.summary.numbers.users, tenant.summary.numbers.states),
            (3, states)
        );
        assert_eq!(tenant.summary.key_versions, [(World::version(0), 3)].into());
        assert_eq!(tenant.summary.must_act, MustAct::default());
        assert_eq!(
            report.last_sweep.as_ref().unwrap().ended_at,
            world.now.get() - 10
        );
        assert_eq!(report.warning, None);

        let text = report.to_prometheus();
        for line in [
            "# TYPE behalf_users gauge",
            "behalf_users 3",
            "behalf_enrolments_due{within=\"hour\"} 1",
            &format!("behalf_enrolments{{tenant=\"{TENANT}\",state=\"retrying\"}} 1"),
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
        assert!(!format!("{report:?}{text}").contains("canary"));
    }

    /// As Prometheus wants them: all lines of one name in one piece, below its type.
    #[test]
    fn metrics_of_one_name_stand_together() {
        let (world, app) = enrolled();
        block_on(app.enrol(&Request::of(&world.bearer_in(OTHER_TENANT, TENANT)), None)).unwrap();
        block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into())))).unwrap();
        let text = status(&world, &app).to_prometheus();
        assert_eq!(text.matches("behalf_tenant_users{").count(), 2);
        let mut types = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("# TYPE ") {
                let name = name.strip_suffix(" gauge").unwrap();
                assert!(!types.contains(&name), "{name} again:\n{text}");
                types.push(name);
            } else {
                let name = line.split(['{', ' ']).next();
                assert_eq!(name, types.last().copied(), "{line}:\n{text}");
            }
        }
    }

    #[test]
    fn a_tenant_that_is_being_removed_is_told() {
        let (world, app) = enrolled();
        let bar = Layout::new("").bar(&TenantId::parse(OTHER_TENANT).unwrap());
        world.rows.borrow_mut().insert(bar.clone(), Vec::new());
        sweep(&app);
        let report = status(&world, &app);
        assert!(report.tenants[OTHER_TENANT].summary.being_removed);
        assert!(!report.tenants[TENANT].summary.being_removed);
        let line = format!("behalf_tenant_being_removed{{tenant=\"{OTHER_TENANT}\"}} 1\n");
        assert!(report.to_prometheus().contains(&line));
        world.rows.borrow_mut().remove(&bar);
        sweep(&app);
        assert!(!status(&world, &app).tenants.contains_key(OTHER_TENANT));
    }

    /// What `behalf status` shows, and `behalf key retire` goes by.
    #[test]
    fn a_rotation_in_percent_and_what_is_safe_to_disable() {
        let version = |index| World::version(index);
        let tenant = |newest: Option<usize>| Tenant {
            summary: TenantSummary {
                key_versions: [(version(1), 1), (version(2), 2)].into(),
                unused_key_versions: [(version(0), 1000), (version(3), 1001), (version(4), 1000)]
                    .into(),
                ..TenantSummary::default()
            },
            newest_key_version: newest.map(|newest| NewestKeyVersion {
                version: version(newest),
                created_at: None,
                expires_at: None,
            }),
            without_key: None,
        };
        for (newest, at, rotated, retirable) in [
            (
                Some(2),
                1000 + DAILY,
                Some(66),
                vec![version(0), version(4)],
            ),
            (Some(2), 999 + DAILY, Some(66), vec![]),
            // A new one that nobody uses yet, as after a rotation.
            (Some(4), 1000 + DAILY, Some(0), vec![version(0)]),
            (None, 1000 + DAILY, None, vec![]),
        ] {
            let tenant = tenant(newest);
            assert_eq!(tenant.rotated(), rotated);
            let found = tenant.retirable(at, A_DAY);
            let found: Vec<_> = found.iter().map(|(version, _)| *version).collect();
            assert_eq!(found, retirable, "{newest:?} at {at}");
        }
        let mut used_again = tenant(Some(2));
        used_again.summary.key_versions.insert(version(0), 1);
        let found = used_again.retirable(1000 + DAILY, A_DAY);
        assert_eq!(found, [(version(4).as_str(), 1000)]);
        let nothing = Tenant {
            summary: TenantSummary::default(),
            ..tenant(Some(0))
        };
        assert_eq!(nothing.rotated(), None);
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let (world, app) = enrolled();
        sweep(&app);
        let report = status(&world, &app);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    /// What `behalf key rotate --older-than` goes by.
    #[test]
    fn a_status_tells_the_newest_key_and_its_age_also_while_key_vault_cannot_be_asked() {
        let (world, app) = enrolled();
        let newest = || status(&world, &app).tenants[TENANT].clone();
        let version = |index: u64| {
            Some(NewestKeyVersion {
                version: World::version(index.try_into().unwrap()),
                created_at: Some(NOW + index),
                expires_at: None,
            })
        };
        let expiring = |index: u64, at: u64| {
            let newest = version(index).unwrap();
            let expires_at = Some(at);
            Some(NewestKeyVersion {
                expires_at,
                ..newest
            })
        };
        sweep(&app);
        assert_eq!(newest().newest_key_version, version(0));
        // Whoever asks nobody anew says the same.
        sweep(&app);
        assert_eq!(newest().newest_key_version, version(0));
        world.rotate();
        let end = world.now.get() + 9000;
        world.key_expires.set(Some(end));
        sweep(&app);
        assert_eq!(newest().newest_key_version, expiring(1, end));
        let text = status(&world, &app).to_prometheus();
        let labels = format!(
            "{{tenant=\"{TENANT}\",key_version=\"{}\"}}",
            World::version(1)
        );
        for line in [
            format!("behalf_newest_key_created_at_seconds{labels} {}", NOW + 1),
            format!("behalf_newest_key_expires_at_seconds{labels} {end}"),
        ] {
            assert!(text.lines().any(|it| it == line), "{line}:\n{text}");
        }

        world.down.borrow_mut().push("key vault");
        world.advance(3600);
        sweep(&app);
        let tenant = newest();
        assert_eq!(tenant.newest_key_version, expiring(1, end));
        let code = tenant.without_key.as_deref();
        assert_eq!(code, Some("key_vault_unavailable"));
        world.down.borrow_mut().clear();
        world.advance(3600);
        assert_eq!(sweep(&app).tenants_without_key, 0);
        assert_eq!(newest().without_key, None);
    }

    fn status(world: &World, app: &App) -> Report {
        let operator = bearer_of(TENANT, |claims| {
            claims["scp"].take();
            claims["sub"] = claims["oid"].clone();
            claims["roles"] = json!(["Behalf.Read"]);
            claims["nbf"] = json!(world.now.get());
            claims["exp"] = json!(world.now.get() + 600);
        });
        block_on(app.status(&Request::of(&operator), None)).unwrap()
    }

    fn sweep(app: &App) -> SweepReport {
        block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into())))).unwrap()
    }

    /// Of the one tenant: markers by key version, and since when others are unused.
    fn versions(world: &World, app: &App) -> [BTreeMap<String, u64>; 2] {
        let tenant = status(world, app).tenants.remove(TENANT).unwrap();
        [
            tenant.summary.key_versions,
            tenant.summary.unused_key_versions,
        ]
    }

    #[test]
    fn a_status_tells_since_when_a_key_version_is_unused() {
        let (world, app) = enrolled();
        let (old, new) = (World::version(0), World::version(1));
        let used = |version: &str, markers: u64| BTreeMap::from([(version.to_owned(), markers)]);
        sweep(&app);
        world.rotate();
        world.advance(3600);
        assert_eq!(sweep(&app).resealed, 3);
        let began = [used(&old, 3), BTreeMap::new()];
        assert_eq!(versions(&world, &app), began, "as the sweep began");
        let moved = [used(&new, 3), BTreeMap::new()];
        world.advance(60);
        sweep(&app);
        let since = world.now.get();
        assert_eq!(versions(&world, &app), moved, "noted for the first time");
        for _ in 0..2 {
            world.advance(DAILY);
            sweep(&app);
            assert_eq!(versions(&world, &app), [used(&new, 3), used(&old, since)]);
        }
        let line = format!(
            "behalf_key_version_unused_since_seconds{{tenant=\"{TENANT}\",key_version=\"{old}\"}} {since}"
        );
        let text = status(&world, &app).to_prometheus();
        assert!(text.lines().any(|other| other == line), "{text}");

        // It comes back, by a writer that had been under way: no status says otherwise, and the time counts anew.
        let marker = world.keys_of("due.").remove(0);
        let renamed = format!("{}x", marker.replace(&new, &old));
        world.rows.borrow_mut().insert(renamed, Vec::new());
        world.advance(3600);
        assert_eq!(sweep(&app).remaining, 0);
        let both = BTreeMap::from([(new.clone(), 3), (old.clone(), 1)]);
        assert_eq!(versions(&world, &app), [both, BTreeMap::new()]);
        world.advance(3600);
        sweep(&app);
        assert_eq!(versions(&world, &app), moved);
        let again = world.now.get();
        world.advance(3600);
        sweep(&app);
        assert_eq!(versions(&world, &app), [used(&new, 3), used(&old, again)]);

        world.advance(RETENTION);
        sweep(&app);
        world.advance(60);
        sweep(&app);
        assert_eq!(versions(&world, &app), moved, "forgotten");
        assert_eq!(world.keys_of("ver.").len(), 1);
    }

    #[test]
    fn a_failure_at_any_step_makes_no_key_version_look_unused_for_longer() {
        for step in 0..20 {
            let (world, app) = enrolled();
            let old = World::version(0);
            sweep(&app);
            world.rotate();
            for _ in 0..2 {
                world.advance(3600);
                sweep(&app);
            }
            world.advance(DAILY);
            let marker = world.keys_of("due.").remove(0);
            let renamed = format!("{}x", marker.replace(&World::version(1), &old));
            world.rows.borrow_mut().insert(renamed, Vec::new());
            // This sweep lists the version, and moves what is under it away; a step of it fails.
            let came_back = world.now.get();
            let fail_once = |world: &World| {
                world.store_fails_after.set(Some(0));
                let recover = |world: &World| world.store_fails_after.set(None);
                *world.before_store.borrow_mut() = Some((0, Box::new(recover)));
            };
            *world.before_store.borrow_mut() = Some((step, Box::new(fail_once)));
            let _ = block_on(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into()))));
            *world.before_store.borrow_mut() = None;
            world.store_fails_after.set(None);
            for _ in 0..3 {
                world.advance(3600);
                sweep(&app);
            }
            let [_, unused] = versions(&world, &app);
            assert!(unused[&old] > came_back, "step {step}: {unused:?}");
        }
    }

    /// What threats.md warns of: a writer wrote under the old version after its marker was gone.
    #[test]
    fn a_record_left_under_a_disabled_version_is_kept_told_and_moved_once_it_is_enabled() {
        let (world, app) = enrolled();
        let (old, new) = (World::version(0), World::version(1));
        let record = world.keys_of("rec.").remove(0);
        let stale = world.rows.borrow()[&record].clone();
        world.rotate();
        assert_eq!(sweep(&app).resealed, 3);
        world
            .rows
            .borrow_mut()
            .insert(record.clone(), stale.clone());
        world.advance(3600);
        sweep(&app);
        world.advance(DAILY);
        sweep(&app);
        assert!(versions(&world, &app)[1].contains_key(&old));

        world.disabled.set(Some(0));
        world.advance(7 * DAILY);
        let app = world.app();
        let report = sweep(&app);
        assert_eq!((report.waiting, report.refreshed), (1, 2), "{report:?}");
        assert_eq!(world.rows.borrow()[&record], stale);
        world.advance(60);
        sweep(&app);
        let [used, unused] = versions(&world, &app);
        assert_eq!((used[&old], used[&new], unused), (1, 2, BTreeMap::new()));
        world.disabled.set(None);
        assert_eq!(sweep(&app).resealed, 1);
        block_on(app.draw(
            &Request::of(&world.bearer_of("00000000-0000-0000-0000-000000000000")),
            None,
            None,
        ))
        .unwrap();
    }

    #[test]
    fn a_role_reaches_its_own_tenant_alone() {
        let (_world, app) = enrolled();
        let tenant = TenantId::parse(TENANT).unwrap();
        let stranger = app_of(OTHER_TENANT, Role::Admin);
        assert!(is_refused(block_on(
            app.remove_tenant(&Request::of(&stranger), &tenant)
        )));
        assert!(is_refused(block_on(
            app.status(&Request::of(&stranger), None)
        )));
        assert!(is_refused(block_on(app.remove_tenant(
            &Request::of(&app_of(TENANT, Role::Read)),
            &tenant
        ))));
        let user = bearer_of(TENANT, |claims| claims["roles"] = json!(["Behalf.Read"]));
        assert!(
            is_refused(block_on(app.status(&Request::of(&user), None))),
            "a user's token has no app role"
        );
        let report =
            block_on(app.status(&Request::of(&app_of(OTHER_TENANT, Role::Read)), None)).unwrap();
        assert_eq!(
            (report.users, report.tenants.len(), report.last_sweep),
            (0, 0, None)
        );
        let other = TenantId::parse(OTHER_TENANT).unwrap();
        let removal =
            block_on(app.remove_tenant(&Request::of(&app_of(TENANT, Role::Admin)), &other))
                .unwrap();
        assert_eq!(
            removal,
            Removal {
                removed: 0,
                remaining: 0
            }
        );
    }

    #[test]
    fn a_tenant_is_removed_whatever_fails_in_between() {
        for step in 0..40 {
            let (world, app) = enrolled();
            let (admin, tenant) = (
                app_of(TENANT, Role::Admin),
                TenantId::parse(TENANT).unwrap(),
            );
            world.store_fails_after.set(Some(step));
            let outcome = block_on(app.remove_tenant(&Request::of(&admin), &tenant));
            world.store_fails_after.set(None);
            if outcome.is_err() && step > 0 {
                let enrolment = block_on(app.enrol(&Request::of(&world.bearer()), None));
                assert_eq!(
                    enrolment,
                    Err(KeeperError::Ledger(LedgerError::TenantRemoved)),
                    "step {step}"
                );
            }
            let removal = block_on(app.remove_tenant(&Request::of(&admin), &tenant)).unwrap();
            assert_eq!(removal.remaining, 0);
            assert!(world.keys_of("usr.").is_empty() && world.keys_of("bar.").is_empty());
            block_on(app.enrol(&Request::of(&world.bearer()), None)).unwrap();
        }
    }

    /// Whoever enrols while the tenant is removed is listed, or finds out by himself.
    #[test]
    fn nobody_slips_through_a_removal() {
        for step in 0..8 {
            let (world, app) = enrolled();
            let other = world.app();
            *world.before_store.borrow_mut() = Some((
                step,
                Box::new(move |_| {
                    let tenant = TenantId::parse(TENANT).unwrap();
                    block_on(
                        other.remove_tenant(&Request::of(&app_of(TENANT, Role::Admin)), &tenant),
                    )
                    .unwrap();
                }),
            ));
            let outcome = block_on(app.enrol(&Request::of(&world.bearer()), None));
            let is_enrolled = !world.keys_of("usr.").is_empty();
            // A removal that ended before the head was written is before the enrolment.
            assert!(outcome.is_ok() || !is_enrolled, "step {step}: {outcome:?}");
        }
    }

    /// A listing takes up to 128 MiB: one request at a time makes one, and a sweep.
    #[test]
    fn one_removal_of_a_tenant_lists_at_a_time() {
        let (world, app) = enrolled();
        let tenant = TenantId::parse(TENANT).unwrap();
        let app = Rc::new(app);
        let outcomes = Rc::new(RefCell::new(Vec::new()));
        // While the first one waits for a page of its listing.
        let listing = 3;
        for step in 0..listing {
            let (other, tenant, seen) = (app.clone(), tenant.clone(), outcomes.clone());
            let meanwhile = move |_: &World| {
                let admin = app_of(TENANT, Role::Admin);
                let removal = block_on(other.remove_tenant(&Request::of(&admin), &tenant));
                seen.borrow_mut().push(removal.is_ok());
            };
            *world.before_store.borrow_mut() = Some((step, Box::new(meanwhile)));
            let tenant = TenantId::parse(OTHER_TENANT).unwrap();
            block_on(app.remove_tenant(&Request::of(&app_of(TENANT, Role::Admin)), &tenant))
                .unwrap();
        }
        let refused = outcomes.borrow().iter().filter(|is_ok| !**is_ok).count();
        assert_eq!(refused, 1, "{:?}", outcomes.borrow());
    }
}
