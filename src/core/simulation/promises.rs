//! What the system promises, held against what a run has seen and what it has left in the store.

use std::rc::Rc;

use crate::simulation::history::{self, End, Operation, View};
use crate::simulation::kept::Kept;
use crate::simulation::outside::{DAY, Outside};
use crate::simulation::run::Run;
use crate::simulation::users::{OBJECTS, TENANT_OF, TENANTS};

impl<L: Kept> Run<L> {
    /// Checks what must hold at the end.
    pub(super) fn check(&mut self) {
        let outside = Rc::clone(&self.outside);
        let ends = [0, 1, 2].map(|user| self.alone(Operation::Draw, user));
        // A draw may leave a second marker, which goes when it is due.
        self.days(&[8]);
        for (user, end) in ends.into_iter().enumerate() {
            let view = match L::stored(&outside, user) {
                (false, _) => View::Absent,
                (true, None) => View::NoToken,
                (true, Some(record)) => {
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
                    View::Has(lineage)
                }
            };
            if let Some(left) = L::left_over(&outside, user, view) {
                outside.violation(format!("user {user}: {view:?} with {left}"));
            }
            outside.check_history(user, view, L::COMES_LATE);
        }
        if let Some(strangers) = L::strangers(&outside) {
            outside.violation(format!("left over: {strangers}"));
        }
        outside.check_bars();
        let log = outside.log.borrow().clone();
        for text in L::texts(&outside).into_iter().chain(log) {
            if text.contains("canary") || OBJECTS.iter().any(|object| text.contains(object)) {
                outside.violation(format!("a secret in {text}"));
            }
        }
    }

    /// Checks what must hold after a race.
    pub(super) fn check_release(&self) {
        let view = match L::stored(&self.outside, 0) {
            (false, _) => View::Absent,
            (true, None) => View::NoToken,
            (true, Some(_)) => View::Has(usize::MAX),
        };
        self.outside.check_history(0, view, L::COMES_LATE);
    }
}

impl Outside {
    fn check_history(&self, user: usize, last: View, comes_late: bool) {
        for violation in history::violations(&self.acts.borrow(), user, last, comes_late) {
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
}
