//! Work for sweeps, handed out under leases.

use crate::identity::{KeyVersion, Nonce, StorageId, TenantId, User};
use crate::ledger::postgres::answer::{Columns, int8, text, unexpected};
use crate::ledger::postgres::attempt::Repeat;
use crate::ledger::postgres::database::{Database, Value};
use crate::ledger::postgres::survey::Found;
use crate::ledger::postgres::{PostgresLedger, statement};
use crate::ledger::schedule::State;
use crate::ledger::{Claimed, Kind, StoreError, Visit};
use crate::port::Environment;

/// What a sweep holds of an enrolment: the record that its row had, and the name of the lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The write of the record.
    pub(super) write: String,
    /// That of one sweep; not 0.
    pub(super) lease: i64,
}

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    pub(super) async fn hand_out(
        &self,
        found: &Found,
        tenant: &TenantId,
        kind: Kind<'_>,
        most: usize,
        lease_until: u64,
    ) -> Result<Claimed<Lease>, StoreError> {
        let (sql, newest) = match kind {
            Kind::Due(newest) => (statement::CLAIM_DUE, newest),
            Kind::Outdated(newest) => (statement::CLAIM_OUTDATED, newest),
        };
        let now = self.env.now();
        let mut values = self.tenant(tenant);
        values.extend([
            int8(found.horizon.now),
            int8(found.horizon.later_than_any()),
            text(newest.as_str()),
            int8(u64::try_from(most).unwrap_or(u64::MAX)),
            Value::Int8(found.lease),
            int8(lease_until.saturating_sub(now)),
        ]);
        // If an answer is lost, what it handed out waits until its lease ends.
        let rows = self.repeat(sql, values, Repeat::Any).await?;
        let mut claimed = Claimed::none();
        let mut near = 0;
        for row in rows {
            let mut row = Columns::of(row);
            near = row.number()?;
            let others = row.number_or_null()?;
            claimed.leased_until = others.map(|seconds| now.saturating_add(seconds));
            if let Some(mut visit) = visit(found, tenant, row)? {
                if matches!(kind, Kind::Outdated(_)) && found.horizon.is_due(visit.time) {
                    visit.due = Some(Box::new(visit.clone()));
                }
                claimed.visits.push(visit);
            }
        }
        let taken = u64::try_from(claimed.visits.len()).unwrap_or(u64::MAX);
        claimed.left = near.saturating_sub(taken);
        let (env, horizon) = (&self.env, found.horizon);
        env.shuffle(&mut claimed.visits);
        claimed.visits.sort_by_key(|visit| {
            let has_failed = visit.state != State::Active { failures: 0 };
            (!horizon.is_due(visit.time), has_failed)
        });
        Ok(claimed)
    }

    pub(super) async fn take_back(
        &self,
        found: &Found,
        tenant: &TenantId,
    ) -> Result<(), StoreError> {
        let mut values = self.tenant(tenant);
        values.push(Value::Int8(found.lease));
        let taken = self.repeat(statement::GIVE_BACK, values, Repeat::Any);
        taken.await.map(drop)
    }
}

/// None: there was nothing to hand out.
fn visit(
    found: &Found,
    tenant: &TenantId,
    mut row: Columns,
) -> Result<Option<Visit<Lease>>, StoreError> {
    let Some(user) = row.text_or_null()? else {
        return Ok(None);
    };
    let (nonce, write, key_version) = (row.text()?, row.text()?, row.text()?);
    let (state, time) = (row.state()?, row.number()?);
    let lease = Lease {
        write,
        lease: found.lease,
    };
    Ok(Some(Visit {
        user: User {
            tenant: tenant.clone(),
            id: StorageId::parse(&user).ok_or_else(unexpected)?,
        },
        nonce: Nonce::parse(&nonce).ok_or_else(unexpected)?,
        key_version: KeyVersion::parse(&key_version).ok_or_else(unexpected)?,
        state,
        time,
        claims: vec![lease],
        due: None,
    }))
}
