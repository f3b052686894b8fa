//! The removal of all users of a tenant.

use crate::deadline::Deadline;
use crate::identity::{StorageId, TenantId, User};
use crate::ledger::postgres::answer::{Columns, int8, unexpected};
use crate::ledger::postgres::attempt::Repeat;
use crate::ledger::postgres::database::{Database, Value};
use crate::ledger::postgres::{PostgresLedger, statement};
use crate::ledger::{Remaining, StoreError};
use crate::port::Environment;

/// Users that one statement removes.
const AT_ONCE: u64 = 500;

impl<D: Database + Clone, E: Environment + Clone> PostgresLedger<D, E> {
    pub(super) async fn remove_users_of(
        &self,
        tenant: &TenantId,
        until: Deadline,
        removed: &mut dyn FnMut(&User),
    ) -> Result<Remaining, StoreError> {
        let of_tenant = self.tenant(tenant);
        // It is not repeated: one that came late would bar the tenant after all has ended.
        let barred = self.repeat(statement::BAR, &of_tenant, Repeat::Never);
        if barred.await?.is_empty() {
            // Nobody of it has ever enrolled.
            return Ok(Remaining(0));
        }
        loop {
            let is_over = until.is_over(&self.env);
            let (is_barred, chosen) = if is_over {
                (true, Vec::new())
            } else {
                self.pick(tenant, &[]).await?
            };
            if !is_barred {
                // Another removal has ended since this began, and with it this one: whoever is here now came after that.
                return Ok(Remaining(0));
            }
            if chosen.is_empty() {
                let left = self.repeat(statement::UNBAR, &of_tenant, Repeat::Any);
                let left = Columns::first(left.await?)?.number()?;
                if is_over || left == 0 {
                    return Ok(Remaining(left));
                }
                continue;
            }
            let mut values = of_tenant.clone();
            values.push(Value::Texts(chosen.clone()));
            let attempt = self.attempt(statement::REMOVE_MANY, &values, Repeat::Any);
            let (rows, is_in_doubt) = attempt.await?;
            let gone = if is_in_doubt {
                // While the tenant is barred nobody comes back.
                let (_, left) = self.pick(tenant, &chosen).await?;
                chosen.into_iter().filter(|id| !left.contains(id)).collect()
            } else {
                ids(rows)?
            };
            for id in gone {
                removed(&User {
                    tenant: tenant.clone(),
                    id: StorageId::parse(&id).ok_or_else(unexpected)?,
                });
            }
        }
    }

    /// Whether the tenant is barred, and some of its users; or those of a list who are there.
    async fn pick(
        &self,
        tenant: &TenantId,
        among: &[String],
    ) -> Result<(bool, Vec<String>), StoreError> {
        let mut values = self.tenant(tenant);
        values.extend([int8(AT_ONCE), Value::Texts(among.to_vec())]);
        let rows = self.repeat(statement::PICK, &values, Repeat::Any).await?;
        let (mut is_barred, mut users) = (false, Vec::new());
        for row in rows {
            let mut row = Columns::of(row);
            is_barred = row.bool()?;
            users.extend(row.text_or_null()?);
        }
        Ok((is_barred, users))
    }
}

fn ids(rows: Vec<Vec<Value>>) -> Result<Vec<String>, StoreError> {
    rows.into_iter()
        .map(|row| Columns::of(row).text())
        .collect()
}
