//! What the system promises, held against what a run has seen and what it has left in the store.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::ledger::key_value::head::Head;
use crate::ledger::key_value::layout::Layout;
use crate::ledger::record::Record;
use crate::simulation::history::{self, End, Operation, View};
use crate::simulation::outside::{DAY, Outside};
use crate::simulation::run::Run;
use crate::simulation::users::{OBJECTS, TENANT_OF, TENANTS, storage_id};

impl Run {
    /// Checks what must hold at the end.
    pub(super) fn check(&mut self) {
        let outside = Rc::clone(&self.outside);
        let ends = [0, 1, 2].map(|user| self.alone(Operation::Draw, user));
        // A draw may leave a second marker, which goes when it is due.
        self.days(&[8]);
        for (user, end) in ends.into_iter().enumerate() {
            let rows = outside.rows_of(user);
            let kinds: BTreeMap<&str, usize> =
                rows.iter().fold(BTreeMap::new(), |mut kinds, key| {
                    *kinds.entry(&key[..3]).or_default() += 1;
                    kinds
                });
            let (view, expected): (View, &[(&str, usize)]) = match outside.head_and_record(user) {
                (None, _) => (View::Absent, &[]),
                (Some(_), None) => (View::NoToken, &[("off", 1), ("usr", 1)]),
                (Some(_), Some(record)) => {
                    if record.key_version != self.newest(TENANT_OF[user]) {
                        outside.violation(format!("user {user} is under an old key"));
                    }
                    if record.due_at > outside.now.get() + 8 * DAY {
                        outside.violation(format!("user {user} is due too late"));
                    }
                    let drawn = match end {
                        End::Saw(View::Has(lineage)) => Some(lineage),
                        End::Open | End::Acknowledged | End::Saw(_) | End::Failed => None,
                    };
                    let lineages = outside.entra.lineages.borrow();
                    let mut own = lineages.iter().filter(|lineage| lineage.user == user);
                    if drawn.is_none() && own.all(|lineage| !lineage.revoked) {
                        outside.violation(format!("user {user} cannot draw: {end:?}"));
                    }
                    // If it was revoked, there is no live token to lose, and nobody can see which sign-in it is of.
                    let lineage = drawn.unwrap_or(usize::MAX);
                    (View::Has(lineage), &[("due", 1), ("rec", 1), ("usr", 1)])
                }
            };
            if kinds.into_iter().collect::<Vec<_>>() != expected {
                outside.violation(format!("user {user}: {view:?} with {rows:?}"));
            }
            outside.check_history(user, view);
        }
        let strangers: Vec<_> = outside
            .rows
            .borrow()
            .keys()
            .filter(|key| !(0..OBJECTS.len()).any(|user| key.contains(&storage_id(user))))
            .filter(|key| !key.starts_with("ver."))
            .cloned()
            .collect();
        let is_summary = |key: &String| Layout::new("").read_summary_page(key).is_some();
        let (pages, strangers): (Vec<_>, Vec<_>) = strangers.into_iter().partition(is_summary);
        if pages.len() > 1 {
            outside.violation(format!("left over: {pages:?}"));
        }
        if strangers != ["settings.seen", "sweep.state", "sweep.summary"] {
            outside.violation(format!("left over: {strangers:?}"));
        }
        outside.check_bars();
        let rows = outside.rows.borrow();
        let texts = rows
            .iter()
            .map(|(key, value)| format!("{key} {}", String::from_utf8_lossy(value)));
        for text in texts.chain(outside.log.borrow().iter().cloned()) {
            if text.contains("canary") || OBJECTS.iter().any(|object| text.contains(object)) {
                outside.violation(format!("a secret in {text}"));
            }
        }
    }

    /// Checks what must hold after a race.
    pub(super) fn check_release(&self) {
        let view = match self.outside.head_and_record(0) {
            (None, _) => View::Absent,
            (Some(_), None) => View::NoToken,
            (Some(_), Some(_)) => View::Has(usize::MAX),
        };
        self.outside.check_history(0, view);
    }
}

impl Outside {
    fn check_history(&self, user: usize, last: View) {
        for violation in history::violations(&self.acts.borrow(), user, last) {
            self.violation(violation);
        }
    }

    /// Checks that nobody enrolled while the tenant was being removed.
    fn check_bars(&self) {
        let acts = self.acts.borrow();
        let enrolments = acts
            .iter()
            .filter(|act| act.operation == Operation::Enrol && act.end == End::Acknowledged);
        for act in enrolments {
            let key = format!("bar.{}", TENANTS[TENANT_OF[act.user]].replace('-', ""));
            let bars = self.bars.borrow();
            let mut bars = bars.iter();
            if bars.any(|bar| bar.key == key && bar.from < act.began && act.ended < bar.until) {
                self.violation(format!("enrolled while the tenant was removed: {act:?}"));
            }
        }
    }

    /// What is stored of a user, as a draw reads it.
    fn head_and_record(&self, user: usize) -> (Option<Head>, Option<Record>) {
        let rows = self.rows.borrow();
        let id = storage_id(user);
        let head = rows
            .iter()
            .find(|(key, _)| key.starts_with("usr.") && key.ends_with(&id));
        let head = head.map(|(_, head)| Head::from_json(head).unwrap());
        let record = head
            .as_ref()
            .and_then(|head| rows.get(&format!("rec.{id}.{}", head.nonce.as_str())));
        let record = record.map(|record| Record::from_json(record).unwrap());
        (head, record)
    }

    /// All keys of the store that have to do with a user.
    fn rows_of(&self, user: usize) -> Vec<String> {
        let id = storage_id(user);
        let rows = self.rows.borrow();
        rows.keys()
            .filter(|key| key.contains(&id))
            .cloned()
            .collect()
    }
}
