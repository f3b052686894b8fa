//! What is due, and what is stored, in numbers. Nothing lists users: what is due comes from an index, and the numbers are
//! counted by one sweep at a time, a bucket at most once a minute.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;

use crate::identity::TenantId;
use crate::ledger::postgres::answer::{Columns, int8, text, to_state, unexpected};
use crate::ledger::postgres::attempt::Repeat;
use crate::ledger::postgres::database::{Database, Value};
use crate::ledger::postgres::{PostgresLedger, statement};
use crate::ledger::schedule::{DAILY, Horizon, RETENTION, State};
use crate::ledger::summary::{MOST_NAMED, Numbers, Summary, TenantSummary};
use crate::ledger::{Outlook, StoreError, Survey};
use crate::port::Environment;

/// Buckets that are looked at or counted at once.
const AT_ONCE: usize = 4;

/// What a survey holds for claims.
pub struct Found {
    pub(super) horizon: Horizon,
    /// The name of this sweep's leases.
    pub(super) lease: i64,
    /// Buckets that this survey has counted.
    counted: Vec<i16>,
}

/// The numbers of a bucket.
struct Counted {
    bucket: i16,
    /// In Unix seconds, by the database's clock; 0: never.
    at: u64,
    groups: Vec<Group>,
    is_old: bool,
}

/// `tenant, state, key_version, users`, and how many are due at once, within an hour, a day and a week, each with those before.
#[derive(Deserialize)]
struct Group(String, Option<i16>, Option<String>, u64, u64, u64, u64, u64);

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    pub(super) async fn look_around(&self, horizon: Horizon) -> Result<Survey<Found>, StoreError> {
        let before = self.counted().await?;
        let looked: Vec<_> = stream::iter(before)
            .map(|counted| async move {
                let outlooks = self.outlooks(counted.bucket, horizon).await?;
                let (counted, is_new) = if counted.is_old {
                    self.count(counted).await?
                } else {
                    (counted, false)
                };
                Ok((outlooks, counted, is_new))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let (mut tenants, mut all, mut new) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (outlooks, counted, is_new) in looked {
            tenants.extend(outlooks);
            if is_new {
                new.push(counted.bucket);
            }
            all.push(counted);
        }
        for group in all.iter().flat_map(|counted| &counted.groups) {
            if group.1.is_some()
                && let Some(tenant) = TenantId::parse(&group.0)
                && let Some(outlook) = tenants.get_mut(&tenant)
            {
                outlook.enrolments = outlook.enrolments.saturating_add(group.3);
            }
        }
        for outlook in tenants.values_mut() {
            // One that was counted a moment ago may have got more since.
            let least = outlook
                .due
                .saturating_add(outlook.next_due.is_some().into());
            outlook.enrolments = outlook.enrolments.max(least);
        }
        let mut lease = 0;
        while lease == 0 {
            lease = i64::from_le_bytes(self.env.number().to_le_bytes());
        }
        Ok(Survey {
            tenants,
            // Whoever writes a record notes its key version in the same statement.
            not_noted: BTreeSet::new(),
            summary: self.sum_up(all, None).await?,
            found: Found {
                horizon,
                lease,
                counted: new,
            },
        })
    }

    /// Notes which key versions are not used any more, and forgets who was removed.
    pub(super) async fn clean(&self, survey: &Survey<Found>) -> Result<(), StoreError> {
        let now = survey.found.horizon.now;
        stream::iter(&survey.found.counted)
            .map(|bucket| async move {
                let of_bucket = [Value::Int2(*bucket), text(&self.app)];
                self.repeat(statement::FORGET, of_bucket, Repeat::Any)
                    .await?;
                let values = [
                    Value::Int2(*bucket),
                    text(&self.app),
                    int8(now),
                    int8(now.saturating_sub(RETENTION)),
                ];
                self.repeat(statement::TEND, values, Repeat::Any).await
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    /// What was counted last.
    pub(super) async fn read_summary(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Option<Summary>, StoreError> {
        let mut counted = self.counted().await?;
        counted.retain(|counted| counted.at > 0);
        if counted.is_empty() {
            return Ok(None);
        }
        self.sum_up(counted, tenant).await.map(Some)
    }

    /// Of all tenants, or of one with those who have to act.
    async fn sum_up(
        &self,
        counted: Vec<Counted>,
        of: Option<&TenantId>,
    ) -> Result<Summary, StoreError> {
        let observed_at = counted.iter().map(|counted| counted.at).min();
        let mut tenants: BTreeMap<String, TenantSummary> = BTreeMap::new();
        for group in counted.into_iter().flat_map(|counted| counted.groups) {
            let summary = tenants.entry(group.0.clone()).or_default();
            group.add_to(summary);
        }
        let barred = self.repeat(statement::BARRED, [text(&self.app)], Repeat::Any);
        for row in barred.await? {
            let tenant = Columns::of(row).text()?;
            tenants.entry(tenant).or_default().being_removed = true;
        }
        for (tenant, version, since) in self.unused(of).await? {
            let summary = tenants.entry(tenant).or_default();
            if !summary.key_versions.contains_key(&version) {
                summary.unused_key_versions.insert(version, since);
            }
        }
        let mut summary = Summary::of(observed_at.unwrap_or_default(), tenants);
        if let Some(tenant) = of {
            summary.tenants.retain(|name, _| name == tenant.as_str());
            if let Some(of) = summary.tenants.get_mut(tenant.as_str())
                && of.must_act.total > 0
            {
                of.must_act.users = self.must_act(tenant).await?;
            }
        }
        Ok(summary)
    }

    /// Key versions of the app, or of one tenant, that nothing is under any more, and since when.
    async fn unused(
        &self,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        let values = [
            text(&self.app),
            text(tenant.map_or("", |tenant| tenant.as_str())),
        ];
        let rows = self.repeat(statement::UNUSED, values, Repeat::Any).await?;
        let read = |row| {
            let mut row = Columns::of(row);
            Ok((row.text()?, row.text()?, row.number()?))
        };
        rows.into_iter().map(read).collect()
    }

    async fn must_act(&self, tenant: &TenantId) -> Result<Vec<String>, StoreError> {
        let mut values = self.tenant(tenant);
        values.push(int8(u64::try_from(MOST_NAMED).unwrap_or(u64::MAX)));
        let rows = self
            .repeat(statement::MUST_ACT, values, Repeat::Any)
            .await?;
        rows.into_iter()
            .map(|row| Columns::of(row).text())
            .collect()
    }

    async fn counted(&self) -> Result<Vec<Counted>, StoreError> {
        let rows = self.repeat(statement::COUNTED, [text(&self.app)], Repeat::Any);
        rows.await?
            .into_iter()
            .map(|row| {
                let mut row = Columns::of(row);
                Ok(Counted {
                    bucket: row.number()?.try_into().map_err(|_| unexpected())?,
                    at: row.number()?,
                    groups: groups(&row.text()?)?,
                    is_old: row.bool()?,
                })
            })
            .collect()
    }

    /// Counts anew. False: another sweep was at it.
    async fn count(&self, before: Counted) -> Result<(Counted, bool), StoreError> {
        let values = [Value::Int2(before.bucket), text(&self.app)];
        let rows = self.repeat(statement::COUNT, values, Repeat::Any).await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok((before, false));
        };
        let mut row = Columns::of(row);
        let counted = Counted {
            at: row.number()?,
            groups: groups(&row.text()?)?,
            ..before
        };
        Ok((counted, true))
    }

    async fn outlooks(
        &self,
        bucket: i16,
        horizon: Horizon,
    ) -> Result<Vec<(TenantId, Outlook)>, StoreError> {
        let values = [
            Value::Int2(bucket),
            text(&self.app),
            int8(horizon.now),
            int8(horizon.later_than_any()),
        ];
        let rows = self.repeat(statement::OUTLOOK, values, Repeat::Any).await?;
        rows.into_iter()
            .map(|row| {
                let mut row = Columns::of(row);
                let tenant = TenantId::parse(&row.text()?).ok_or_else(unexpected)?;
                let outlook = Outlook {
                    enrolments: 0,
                    due: row.number()?,
                    next_due: row.number_or_null()?,
                };
                Ok((tenant, outlook))
            })
            .collect()
    }
}

impl Group {
    fn add_to(self, summary: &mut TenantSummary) {
        let Self(_, state, key_version, users, at_once, hour, day, week) = self;
        let mut numbers = Numbers {
            users,
            ..Numbers::default()
        };
        if let Some(state) = state {
            let state = to_state(state, 1);
            for (wait, so_far, before) in [
                (0, at_once, 0),
                (1, hour, at_once),
                (3601, day, hour),
                (DAILY.saturating_add(1), week, day),
                (u64::MAX, users, week),
            ] {
                numbers.add_many(state, wait, so_far.saturating_sub(before));
            }
            if matches!(
                state,
                State::InteractionRequired { .. } | State::Quarantined { .. }
            ) {
                summary.must_act.total = summary.must_act.total.saturating_add(users);
            }
        }
        summary.numbers.add_all(&numbers);
        if let Some(version) = key_version {
            let number = summary.key_versions.entry(version).or_default();
            *number = number.saturating_add(users);
        }
    }
}

fn groups(json: &str) -> Result<Vec<Group>, StoreError> {
    serde_json::from_str(json).map_err(|_| unexpected())
}
