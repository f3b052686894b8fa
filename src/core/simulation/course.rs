//! The course of a run: trouble, and then calm; or a race.

use std::rc::Rc;

use crate::simulation::history::{End, Operation};
use crate::simulation::kept::Kept;
use crate::simulation::outside::{DAY, Faults, HOUR};
use crate::simulation::run::Run;
use crate::simulation::users::{TENANT_OF, TENANTS};

impl<L: Kept> Run<L> {
    /// A few bursts of requests at once, with time and trouble in between.
    pub(super) fn trouble(&mut self) {
        let outside = Rc::clone(&self.outside);
        let faults = Faults {
            store: [0, 10, 40][usize::try_from(outside.chance.below(3)).unwrap()],
            network: [0, 20, 80][usize::try_from(outside.chance.below(3)).unwrap()],
            entra: [0, 30, 150][usize::try_from(outside.chance.below(3)).unwrap()],
            crash: [0, 2, 8][usize::try_from(outside.chance.below(3)).unwrap()],
        };
        // This enrolment goes by a clock that is right, whichever clocks the replicas have.
        let right = self.app();
        let apps = std::mem::replace(&mut self.apps, vec![right]);
        self.alone(Operation::Enrol, 0);
        self.apps = apps;
        outside.faults.set(faults);
        for _ in 0..2 + outside.chance.below(3) {
            let times = [0, 60, HOUR, DAY + HOUR, 8 * DAY, 8 * DAY];
            outside.pass(outside.chance.one_of(&times));
            let tenant = usize::try_from(outside.chance.below(2)).unwrap();
            match outside.chance.below(9) {
                0 | 1 => outside.key_vault.keys.borrow_mut()[tenant].push(true),
                2 => {
                    let mut keys = outside.key_vault.keys.borrow_mut();
                    let index =
                        usize::try_from(outside.chance.below(keys[tenant].len() as u64)).unwrap();
                    keys[tenant][index] = !keys[tenant][index];
                }
                3 => outside
                    .key_vault
                    .is_down
                    .set(!outside.key_vault.is_down.get()),
                4 => outside.entra.is_down.set(!outside.entra.is_down.get()),
                5 => {
                    let mut deleted = outside.key_vault.deleted.borrow_mut();
                    deleted[tenant] = !deleted[tenant];
                }
                6 => {
                    let mut lineages = outside.entra.lineages.borrow_mut();
                    if let Some(newest) = lineages.last_mut() {
                        newest.revoked = true;
                    }
                }
                _ => {}
            }
            for _ in 0..2 + outside.chance.below(4) {
                let operation = outside.chance.one_of(&[
                    Operation::Enrol,
                    Operation::Enrol,
                    Operation::Draw,
                    Operation::Draw,
                    Operation::Call,
                    Operation::RemoveToken,
                    Operation::Remove,
                    Operation::RemoveTenant,
                    Operation::Sweep,
                    Operation::Sweep,
                    Operation::Sweep,
                ]);
                let user = outside.chance.one_of(&[0, 0, 0, 0, 1, 2]);
                let app = Rc::clone(&self.apps[usize::try_from(outside.chance.below(2)).unwrap()]);
                self.begin(operation, user, &app);
            }
            self.finish();
        }
    }

    /// A draw or a call, a removal of the refresh token, and what clears that removal away, all at once.
    pub(super) fn race_for_a_release(&mut self, release: Operation) {
        self.apps = vec![self.app(), self.app()];
        self.alone(Operation::Enrol, 0);
        // Both may have an access token already.
        if self.outside.chance.below(2) == 0 {
            for _ in 0..2 {
                self.alone(release, 0);
                self.apps.reverse();
            }
        }
        let last = self
            .outside
            .chance
            .one_of(&[Operation::Enrol, Operation::Remove]);
        for operation in [release, Operation::RemoveToken, last] {
            let app = Rc::clone(&self.apps[usize::try_from(self.outside.chance.below(2)).unwrap()]);
            self.begin(operation, 0, &app);
        }
        self.finish();
    }

    /// All is well again, and everything must come right by itself.
    pub(super) fn calm(&mut self) {
        let outside = Rc::clone(&self.outside);
        outside.faults.set(Faults::default());
        outside.pass(60);
        outside.key_vault.is_down.set(false);
        outside.key_vault.deleted.replace([false; 2]);
        for keys in outside.key_vault.keys.borrow_mut().iter_mut() {
            keys.fill(true);
        }
        self.apps = vec![self.app()];
        L::forget_sweeps(&outside);
        // A removal that was begun is carried through.
        for user in [0, 1] {
            if L::is_barred(&outside, TENANTS[TENANT_OF[user]]) {
                let end = self.alone(Operation::RemoveTenant, user);
                assert_eq!(end, End::Acknowledged);
            }
        }

        // While Entra ID is down, one pass re-seals what the markers say, and the next finds nothing to do.
        outside.entra.is_down.set(true);
        for _ in 0..2 {
            outside.now.set(outside.now.get() + HOUR);
            self.alone(Operation::Sweep, 0);
        }
        let newest = [0, 1].map(|tenant| self.newest(tenant).as_str().to_owned());
        if let Some(outdated) = L::outdated(&outside, &newest) {
            outside.violation(format!("a pass without Entra ID left {outdated}"));
        }
        outside.entra.is_down.set(false);
        self.days(&[1, 8]);
    }
}
