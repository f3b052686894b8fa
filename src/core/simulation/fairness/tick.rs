//! A tick of the schedule, and what must be true after it.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use http::Response;

use crate::doorbell::{Doorbell, DoorbellError, Next};
use crate::keeper::Request;
use crate::keeper::report::SweepReport;
use crate::ledger::key_value::layout::Layout;
use crate::ledger::record::Record;
use crate::port::{SecretBody, Timer as _};
use crate::secret::Bearer;
use crate::simulation::fairness::tenant::{Trouble, user_id, version};
use crate::simulation::fairness::world::{App, SWEEP_SECONDS, World};
use crate::simulation::world::SWEEP_KEY;

/// The seconds from one tick to the next.
pub(super) const TICK: u64 = 5 * 60;

/// The seconds in which a token has to be refreshed after it is due, or re-sealed after a rotation: two ticks.
const IN_TIME: u64 = 2 * TICK;

impl World {
    /// Does what a tick of the schedule does: it rings until nothing remains, in calls that each have to end in time.
    /// Returns what must not be.
    pub(super) fn tick(self: &Rc<Self>, app: &App) -> Vec<String> {
        let mut violations = Vec::new();
        let begun = self.time.elapsed();
        let mut bell = Doorbell::new(&self.settings).unwrap().unwrap();
        loop {
            let call = self.time.elapsed();
            self.asked.borrow_mut().clear();
            if self.forgets {
                let key = Layout::new("").sweep_state();
                self.rows.borrow_mut().remove(&key);
            }
            let report = self
                .time
                .run(app.sweep(&Request::of(&Bearer::new(SWEEP_KEY.into()))))
                .unwrap();
            let took = self.time.elapsed().saturating_sub(call);
            if took > Duration::from_secs(SWEEP_SECONDS) {
                violations.push(format!("a call took {took:?}"));
            }
            let asked = self.asked.borrow();
            let mut often = asked.iter().filter(|(_, times)| **times > 1);
            if let Some((version, times)) = often.next() {
                violations.push(format!("{version} was asked for {times} times in a call"));
            }
            match ring(
                &mut bell,
                &report,
                self.time.elapsed().saturating_sub(begun),
            ) {
                Ok(Next::Ring) => {}
                Ok(Next::Done(_)) | Err(DoorbellError::TimeIsUp { .. }) => break,
                Err(error) => {
                    violations.push(error.to_string());
                    break;
                }
            }
        }
        for tenant in self.healthy() {
            let trouble = self.tenants[tenant].trouble;
            let keys = self.tenants[tenant].keys.borrow();
            let since = self.seconds().saturating_sub(IN_TIME);
            let newest = keys.iter().rposition(|made_at| *made_at <= since);
            for record in self.good_records(tenant) {
                if record.due_at <= since {
                    violations.push(format!("{trouble:?} {tenant}: not refreshed in time"));
                }
                if record.key_version < version(newest.unwrap()) {
                    violations.push(format!("{trouble:?} {tenant}: not re-sealed in time"));
                }
            }
        }
        violations
    }

    /// The records of a tenant's good users.
    pub(super) fn good_records(&self, tenant: usize) -> Vec<Record> {
        let rows = self.rows.borrow();
        let ids: BTreeSet<_> = (0..self.tenants[tenant].good)
            .map(|user| user_id(tenant, user).storage_id(None).as_str().to_owned())
            .collect();
        let records = rows.range("rec.".to_owned().."rec/".to_owned());
        let records = records.filter(|(key, _)| ids.contains(key.split('.').nth(1).unwrap()));
        records
            .map(|(_, json)| Record::from_json(json).unwrap())
            .collect()
    }

    /// The tenants whose good users have no trouble.
    pub(super) fn healthy(&self) -> impl Iterator<Item = usize> {
        let tenants = self.tenants.iter().enumerate();
        tenants
            .filter(|(_, of)| {
                matches!(
                    of.trouble,
                    Trouble::None | Trouble::Refused | Trouble::Idle(_)
                )
            })
            .map(|(index, _)| index)
    }
}

/// Lets the bell hear the answer of a call.
fn ring(
    bell: &mut Doorbell,
    report: &SweepReport,
    elapsed: Duration,
) -> Result<Next, DoorbellError> {
    let body = serde_json::to_vec(report).unwrap();
    let answer = Response::new(SecretBody::new(body));
    bell.hear(Ok(answer), elapsed)
}
