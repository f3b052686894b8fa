//! What an operator sees, and the removal of a tenant. Both from one listing of keys: no record is read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Not;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::json;

use crate::deadline::LONGEST;
use crate::identity::{Nonce, TenantId};
use crate::keeper::report::SweepReport;
use crate::keeper::{Environment, Keeper, KeeperError};
use crate::ledger::key_value::layout::{Layout, Marker, Tag};
use crate::ledger::key_value::listing::Listing;
use crate::ledger::key_value::store::Store;
use crate::ledger::schedule::DAILY;
use crate::secret::Bearer;
use crate::vault::port::{Operator, Role, VaultPort};

/// Users that one store is made for: beyond, a listing comes near the 128 MiB that hosts allow (facts/spin.md §4).
const MOST_USERS: u64 = 300_000;
/// Users from which the status warns.
const WARN_USERS: u64 = 250_000;
/// Seconds after which a removal of a tenant admits no further user.
const REMOVAL_SECONDS: u64 = 15;
/// Users removed at once.
const REMOVALS_AT_ONCE: usize = 8;

/// What is stored, as one listing tells it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Report {
    /// Unix time in seconds of the listing.
    pub observed_at: u64,
    /// Users that are enrolled, with a refresh token or without.
    pub users: u64,
    /// Users that one store is made for.
    pub most_users: u64,
    /// What to do before long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
    /// Enrolments by state.
    pub states: States,
    /// Enrolments by when they are looked at next.
    pub due: Due,
    /// The same by tenant.
    pub tenants: BTreeMap<String, Tenant>,
    /// The last sweep; none: none ended yet, or what it left is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sweep: Option<LastSweep>,
}

/// Enrolments by state.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct States {
    /// Refreshed when due.
    pub active: u64,
    /// Active, but the last refresh failed.
    pub retrying: u64,
    /// The user has to act.
    pub interaction_required: u64,
    /// The refresh token was called dead.
    pub quarantined: u64,
    /// The record cannot be read.
    pub not_readable: u64,
}

/// Enrolments by when they are looked at next.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Due {
    /// Now, or before.
    pub now: u64,
    /// Within an hour.
    pub hour: u64,
    /// Within a day.
    pub day: u64,
    /// Within a week.
    pub week: u64,
    /// Later.
    pub later: u64,
}

/// What is stored of one tenant.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Tenant {
    /// Whether a removal of its users has begun and not ended: nobody of it can enrol. Until it is repeated, that stays so.
    #[serde(skip_serializing_if = "Not::not")]
    pub being_removed: bool,
    /// Users that are enrolled.
    pub users: u64,
    /// Enrolments by state.
    pub states: States,
    /// Markers by the key version that they name.
    pub key_versions: BTreeMap<String, u64>,
    /// Key versions that no marker names any more, and the Unix time in seconds of the first listing that named them
    /// nowhere. A version can be retired when that is a day ago: a writer that was under way then has shown by now what
    /// it wrote (README, "Rotation").
    pub unused_key_versions: BTreeMap<String, u64>,
    /// Why the tenant had no newest key to seal under at the last sweep, a code of the API's errors; none: it had one, or
    /// was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_key: Option<String>,
}

/// The last sweep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LastSweep {
    /// Unix time in seconds.
    pub ended_at: u64,
    /// What it did.
    pub report: SweepReport,
}

/// How far the removal of a tenant came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Removal {
    /// Users that were removed.
    pub removed: u64,
    /// Users that are left; call again.
    pub remaining: u64,
}

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// What is stored: of every tenant for the operator tenant, of the caller's own for another.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn status(&self, bearer: &Bearer) -> Result<Report, KeeperError> {
        let Operator { policy, tenant } = self
            .vault
            .authorize_operator(bearer, Role::Read, None, LONGEST)
            .await?;
        let layout = Layout::new(&policy.store_prefix);
        let state = self.sweep_state(&layout).await?;
        let listing = Listing::read(&layout, &self.store).await?;
        let mut report = Report {
            observed_at: self.env.now(),
            most_users: MOST_USERS,
            ..Report::default()
        };
        let is_visible = |of: &TenantId| tenant.as_ref().is_none_or(|tenant| tenant == of);
        for user in listing.users().filter(|user| is_visible(&user.tenant)) {
            increase(&mut report.users);
            increase(&mut report.tenant(&user.tenant).users);
        }
        for tenant in listing.bars().filter(is_visible) {
            report.tenant(&tenant).being_removed = true;
        }
        for ((tenant, version), of) in listing.versions() {
            if !is_visible(&tenant) {
                continue;
            }
            let name = version.as_str().to_owned();
            if let Some(since) = of.unused_since() {
                let unused = &mut report.tenant(&tenant).unused_key_versions;
                unused.insert(name, since);
            } else if of.markers > 0 {
                report.tenant(&tenant).key_versions.insert(name, of.markers);
            }
        }
        let mut first: BTreeMap<Nonce, Marker> = BTreeMap::new();
        for (_, marker) in listing.markers() {
            if !is_visible(&marker.user.tenant) {
                continue;
            }
            // Of two markers of one enrolment, the one that leads there first.
            let known = first
                .entry(marker.nonce.clone())
                .or_insert_with(|| marker.clone());
            if marker.time < known.time {
                *known = marker;
            }
        }
        for marker in first.into_values() {
            let now = report.observed_at;
            report.due.add(marker.time.saturating_sub(now));
            report.states.add(marker.tag);
            report.tenant(&marker.user.tenant).states.add(marker.tag);
        }
        for (name, code) in &state.report.without_key {
            let tenant = TenantId::parse(name).filter(|tenant| is_visible(tenant));
            let known = tenant.and_then(|tenant| report.tenants.get_mut(tenant.as_str()));
            if let Some(of) = known {
                of.without_key = Some(code.clone());
            }
        }
        report.warning = (report.users >= WARN_USERS).then_some(
            "one store is made for 300,000 users: divide the tenants among two apps before that",
        );
        // What a sweep did is about every tenant.
        let has_swept = tenant.is_none() && state.ended_at > 0;
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
        bearer: &Bearer,
        tenant: &TenantId,
    ) -> Result<Removal, KeeperError> {
        let operator = self
            .vault
            .authorize_operator(bearer, Role::Admin, Some(tenant), LONGEST)
            .await?;
        let until = self.env.now().saturating_add(REMOVAL_SECONDS);
        let layout = Layout::new(&operator.policy.store_prefix);
        // Before the listing: whoever enrols looks for it after the head is written, and so is either listed, or sees it.
        self.store.set(&layout.bar(tenant), &[]).await?;
        let listing = Listing::read(&layout, &self.store).await?;
        let users: Vec<_> = listing
            .users()
            .filter(|user| user.tenant == *tenant)
            .collect();
        drop(listing);
        let layout = &layout;
        let outcomes: Vec<Result<bool, KeeperError>> = stream::iter(users)
            .map(|user| async move {
                if self.env.now() >= until {
                    return Ok(false);
                }
                self.remove_user(layout, &user).await?;
                Ok(true)
            })
            .buffer_unordered(REMOVALS_AT_ONCE)
            .collect()
            .await;
        let mut removal = Removal {
            removed: 0,
            remaining: 0,
        };
        for outcome in outcomes {
            increase(if outcome? {
                &mut removal.removed
            } else {
                &mut removal.remaining
            });
        }
        if removal.remaining == 0 {
            self.store.delete(&layout.bar(tenant)).await?;
        }
        self.env.line(
            &json!({"event": "tenant_removed", "tenant": tenant.as_str(), "removed": removal.removed, "remaining": removal.remaining})
                .to_string(),
        );
        Ok(removal)
    }
}

impl Report {
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
        metric("observed_at_seconds", "", self.observed_at);
        metric("users", "", self.users);
        metric("users_most", "", self.most_users);
        for (due, number) in [
            ("now", self.due.now),
            ("hour", self.due.hour),
            ("day", self.due.day),
            ("week", self.due.week),
            ("later", self.due.later),
        ] {
            metric("enrolments_due", &format!("{{within=\"{due}\"}}"), number);
        }
        for (tenant, of) in &self.tenants {
            metric(
                "tenant_users",
                &format!("{{tenant=\"{tenant}\"}}"),
                of.users,
            );
            for (state, number) in [
                ("active", of.states.active),
                ("retrying", of.states.retrying),
                ("interaction_required", of.states.interaction_required),
                ("quarantined", of.states.quarantined),
                ("not_readable", of.states.not_readable),
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
            if of.being_removed {
                let labels = format!("{{tenant=\"{tenant}\"}}");
                metric("tenant_being_removed", &labels, 1);
            }
            if let Some(code) = &of.without_key {
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

    fn tenant(&mut self, tenant: &TenantId) -> &mut Tenant {
        self.tenants.entry(tenant.as_str().into()).or_default()
    }
}

impl States {
    fn add(&mut self, tag: Tag) {
        increase(match tag {
            Tag::Active { failures: 0 } => &mut self.active,
            Tag::Active { .. } => &mut self.retrying,
            Tag::InteractionRequired { .. } => &mut self.interaction_required,
            Tag::Quarantined { .. } => &mut self.quarantined,
            Tag::NotReadable { .. } => &mut self.not_readable,
        });
    }
}

impl Due {
    fn add(&mut self, wait: u64) {
        increase(match wait {
            0 => &mut self.now,
            1..=3600 => &mut self.hour,
            3601..=DAILY => &mut self.day,
            wait if wait <= DAILY.saturating_mul(7) => &mut self.week,
            _ => &mut self.later,
        });
    }
}

fn increase(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use pollster::block_on;
    use serde_json::json;

    use super::*;
    use crate::error::{CallerError, VaultError};
    use crate::ledger::schedule::RETENTION;
    use crate::simulation::world::{App, SWEEP_KEY, Shared, World};
    use crate::vault::caller::tests::{claims, sign};
    use crate::vault::settings::tests::TENANT;

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
            block_on(app.enrol(&bearer, None)).unwrap();
        }
        (world, app)
    }

    fn is_refused<T: std::fmt::Debug>(outcome: Result<T, KeeperError>) -> bool {
        matches!(
            outcome,
            Err(KeeperError::Vault(VaultError::Caller(
                CallerError::InsufficientScope(_)
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
        block_on(app.sweep(&Bearer::new(SWEEP_KEY.into()))).unwrap();
        world.listings.set(0);
        let report = status(&world, &app);
        assert_eq!(world.listings.get(), 1);
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
        assert_eq!((tenant.users, tenant.states), (3, states));
        assert_eq!(tenant.key_versions, [(World::version(0), 3)].into());
        assert_eq!(report.last_sweep.as_ref().unwrap().report.refreshed, 1);
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
        block_on(app.enrol(&world.bearer_in(OTHER_TENANT, TENANT), None)).unwrap();
        block_on(app.sweep(&Bearer::new(SWEEP_KEY.into()))).unwrap();
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
        let report = status(&world, &app);
        assert!(report.tenants[OTHER_TENANT].being_removed);
        assert!(!report.tenants[TENANT].being_removed);
        let line = format!("behalf_tenant_being_removed{{tenant=\"{OTHER_TENANT}\"}} 1\n");
        assert!(report.to_prometheus().contains(&line));
        world.rows.borrow_mut().remove(&bar);
        assert!(!status(&world, &app).tenants.contains_key(OTHER_TENANT));
    }

    fn status(world: &World, app: &App) -> Report {
        let operator = bearer_of(TENANT, |claims| {
            claims["scp"].take();
            claims["sub"] = claims["oid"].clone();
            claims["roles"] = json!(["Behalf.Read"]);
            claims["nbf"] = json!(world.now.get());
            claims["exp"] = json!(world.now.get() + 600);
        });
        block_on(app.status(&operator)).unwrap()
    }

    fn sweep(app: &App) -> SweepReport {
        block_on(app.sweep(&Bearer::new(SWEEP_KEY.into()))).unwrap()
    }

    /// Of the one tenant: markers by key version, and since when others are unused.
    fn versions(world: &World, app: &App) -> [BTreeMap<String, u64>; 2] {
        let tenant = status(world, app).tenants.remove(TENANT).unwrap();
        [tenant.key_versions, tenant.unused_key_versions]
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
        let moved = [used(&new, 3), BTreeMap::new()];
        assert_eq!(versions(&world, &app), moved, "no sweep has listed since");
        world.advance(3600);
        sweep(&app);
        let since = world.now.get();
        for _ in 0..2 {
            assert_eq!(versions(&world, &app), [used(&new, 3), used(&old, since)]);
            world.advance(DAILY);
            sweep(&app);
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
        let both = BTreeMap::from([(new.clone(), 3), (old.clone(), 1)]);
        assert_eq!(versions(&world, &app), [both, BTreeMap::new()]);
        world.advance(3600);
        assert_eq!(sweep(&app).remaining, 0);
        assert_eq!(versions(&world, &app), moved);
        world.advance(3600);
        sweep(&app);
        let again = world.now.get();
        assert_eq!(versions(&world, &app), [used(&new, 3), used(&old, again)]);

        world.advance(RETENTION);
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
            let _ = block_on(app.sweep(&Bearer::new(SWEEP_KEY.into())));
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
        sweep(&app);
        let [used, unused] = versions(&world, &app);
        assert_eq!((used[&old], used[&new], unused), (1, 2, BTreeMap::new()));
        world.disabled.set(None);
        assert_eq!(sweep(&app).resealed, 1);
        block_on(app.draw(
            &world.bearer_of("00000000-0000-0000-0000-000000000000"),
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
        assert!(is_refused(block_on(app.remove_tenant(&stranger, &tenant))));
        assert!(is_refused(block_on(app.status(&stranger))));
        assert!(is_refused(block_on(
            app.remove_tenant(&app_of(TENANT, Role::Read), &tenant)
        )));
        let user = bearer_of(TENANT, |claims| claims["roles"] = json!(["Behalf.Read"]));
        assert!(
            is_refused(block_on(app.status(&user))),
            "a user's token has no app role"
        );
        let report = block_on(app.status(&app_of(OTHER_TENANT, Role::Read))).unwrap();
        assert_eq!(
            (report.users, report.tenants.len(), report.last_sweep),
            (0, 0, None)
        );
        let other = TenantId::parse(OTHER_TENANT).unwrap();
        let removal = block_on(app.remove_tenant(&app_of(TENANT, Role::Admin), &other)).unwrap();
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
            let outcome = block_on(app.remove_tenant(&admin, &tenant));
            world.store_fails_after.set(None);
            if outcome.is_err() && step > 0 {
                let enrolment = block_on(app.enrol(&world.bearer(), None));
                assert_eq!(enrolment, Err(KeeperError::TenantRemoved), "step {step}");
            }
            let removal = block_on(app.remove_tenant(&admin, &tenant)).unwrap();
            assert_eq!(removal.remaining, 0);
            assert!(world.keys_of("usr.").is_empty() && world.keys_of("bar.").is_empty());
            block_on(app.enrol(&world.bearer(), None)).unwrap();
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
                    block_on(other.remove_tenant(&app_of(TENANT, Role::Admin), &tenant)).unwrap();
                }),
            ));
            let outcome = block_on(app.enrol(&world.bearer(), None));
            let is_enrolled = !world.keys_of("usr.").is_empty();
            // A removal that ended before the head was written is before the enrolment.
            assert!(outcome.is_ok() || !is_enrolled, "step {step}: {outcome:?}");
        }
    }
}
