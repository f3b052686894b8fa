//! Deed many actors see of a ledger at once, while its steps fail by chance: it has to be what they could have seen one
//! after another, in an order in which whatever was over before something else began comes first.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use pollster::block_on;

use super::{Make, Scene, Trouble, View, key_version, of_caller, of_visit, user};
use crate::deadline::Deadline;
use crate::identity::{Nonce, User};
use crate::ledger::schedule::{Horizon, State};
use crate::ledger::{Edit, Kind, Ledger, LedgerError, Opened, Remaining};

/// Rounds of actors at once.
const ROUNDS: usize = 3;
const ACTORS: usize = 5;

/// Something that was done or seen.
#[derive(Clone, Debug)]
struct Event {
    user: User,
    deed: Deed,
    began: u64,
    /// None: it may happen later, or not at all.
    ended: Option<u64>,
    /// Whether it may not have happened.
    is_open: bool,
}

#[derive(Clone, Debug)]
enum Deed {
    /// And whether nobody was there before, as far as it was said by one who can tell.
    Enrolled(Nonce, Option<bool>),
    RemovedToken,
    Removed,
    Expired(Nonce),
    Saw(View),
    /// Another enrolment than this.
    SawAnother(Nonce),
}

/// Deed runs.
struct Course<L> {
    scene: Scene<L>,
    users: Vec<User>,
    step: Cell<u64>,
    events: RefCell<Vec<Event>>,
    faults: RefCell<Vec<String>>,
}

/// The first thing that an implementation does wrong with this seed.
pub(super) fn fault<L: Ledger>(seed: u64, make: &Make<L>) -> Option<String> {
    let trouble = Trouble::with_seed(seed);
    let scene = Scene::with(trouble.clone(), make);
    let course = Rc::new(Course {
        scene,
        users: vec![user(0, "a"), user(0, "b"), user(1, "c")],
        step: Cell::new(0),
        events: RefCell::default(),
        faults: RefCell::default(),
    });
    // Half of the histories are without failures.
    let per_mille = [0, 60][usize::from(seed.is_multiple_of(2))];
    for _ in 0..ROUNDS {
        trouble.per_mille.set(per_mille);
        let mut actors: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::new();
        for _ in 0..ACTORS {
            actors.push(Box::pin(act(&course)));
        }
        let mut context = Context::from_waker(Waker::noop());
        while !actors.is_empty() {
            course.step.set(course.step.get() + 1);
            let length = u64::try_from(actors.len()).unwrap();
            let at = usize::try_from(trouble.below(length)).unwrap();
            if actors[at].as_mut().poll(&mut context).is_ready() {
                drop(actors.swap_remove(at));
            }
        }
        course.scene.world.advance(trouble.below(90));
    }
    trouble.per_mille.set(0);
    block_on(course.check());
    let mut faults = course.faults.take();
    faults.truncate(1);
    faults.pop().map(|fault| format!("history {seed}: {fault}"))
}

async fn act<L: Ledger>(course: &Course<L>) {
    let trouble = &course.scene.trouble;
    let user = &course.users[usize::try_from(trouble.below(3)).unwrap()];
    match trouble.below(10) {
        0..3 => course.enrol(user).await,
        3 => course.remove_token(user).await,
        4 => course.remove(user).await,
        5 => course.remove_tenant(user).await,
        6 => course.replace(user).await,
        7 | 8 => course.release(user).await,
        _ => course.sweep().await,
    }
}

impl<L: Ledger> Course<L> {
    fn note(&self, user: &User, deed: Deed, began: u64, is_open: bool) {
        self.events.borrow_mut().push(Event {
            user: user.clone(),
            deed,
            began,
            ended: Some(self.step.get()),
            is_open,
        });
    }

    fn fault(&self, fault: String) {
        self.faults.borrow_mut().push(fault);
    }

    /// An error that may come, as far as there is trouble.
    fn heed(&self, what: &str, error: &LedgerError) {
        match error {
            LedgerError::Store(_) | LedgerError::Busy | LedgerError::TenantRemoved => {}
            LedgerError::NotEnrolled
            | LedgerError::NoRefreshToken
            | LedgerError::RecordDamaged
            | LedgerError::RecordTooNew
            | LedgerError::RecordLost => self.fault(format!("{what}: {error}")),
        }
    }

    async fn enrol(&self, user: &User) {
        let (began, nonce) = (self.step.get(), self.scene.nonce());
        let record = self.scene.record(user, 1, 60);
        let enrolled = self.scene.ledger.enrol(user, &nonce, &record).await;
        // On storage that only reads and writes two at once may both find nobody.
        let is_new = enrolled.as_ref().ok().filter(|_| L::LEASES);
        let deed = Deed::Enrolled(nonce, is_new.copied());
        self.note(user, deed, began, enrolled.is_err());
        if let Err(error) = enrolled {
            self.heed("enrol", &error);
            if error == LedgerError::TenantRemoved {
                // It was there for a moment, perhaps.
                self.note(user, Deed::Removed, began, true);
            }
        }
    }

    async fn remove_token(&self, user: &User) {
        let began = self.step.get();
        let removed = self.scene.ledger.remove_token(user).await;
        self.note(user, Deed::RemovedToken, began, removed.is_err());
        if let Err(error) = removed {
            self.heed("remove token", &error);
        }
    }

    async fn remove(&self, user: &User) {
        let began = self.step.get();
        let removed = self.scene.ledger.remove(user).await;
        self.note(user, Deed::Removed, began, removed.is_err());
    }

    async fn remove_tenant(&self, user: &User) {
        let (began, tenant) = (self.step.get(), &user.tenant);
        let (removal, _) = self.scene.remove_tenant(tenant, 9).await;
        let removed = removal == Ok(Remaining(0));
        for user in self.users.iter().filter(|user| user.tenant == *tenant) {
            self.note(user, Deed::Removed, began, !removed);
        }
    }

    /// Finds, and returns the enrolment if it has a token.
    async fn find(&self, user: &User) -> Option<(Nonce, crate::ledger::record::Record)> {
        let began = self.step.get();
        let found = self.scene.ledger.find(user).await;
        match View::of(&found) {
            Ok(view) => self.note(user, Deed::Saw(view), began, false),
            Err(error) => self.heed("find", &error),
        }
        let found = found.ok()?;
        Some((found.nonce, found.record.ok()?))
    }

    async fn replace(&self, user: &User) {
        let Some((nonce, old)) = self.find(user).await else {
            return;
        };
        let new = self.scene.successor(&old, 60);
        let _ = self.scene.settle(of_caller(user, &nonce, &old, &new)).await;
    }

    /// Finds, and asks once more before it would release something.
    async fn release(&self, user: &User) {
        let Some((nonce, _)) = self.find(user).await else {
            return;
        };
        let began = self.step.get();
        let current = self.scene.ledger.still_current(user, &nonce).await;
        let saw = match current {
            Ok(true) => Deed::Saw(View::Has(nonce)),
            Ok(false) => Deed::SawAnother(nonce),
            Err(LedgerError::NotEnrolled) => Deed::Saw(View::Absent),
            Err(LedgerError::NoRefreshToken) => Deed::Saw(View::NoToken(nonce)),
            Err(error) => return self.heed("still current", &error),
        };
        self.note(user, saw, began, false);
    }

    async fn sweep(&self) {
        let (ledger, scene) = (&self.scene.ledger, &self.scene);
        let horizon = Horizon::new(scene.now() + 100, true);
        let until = Deadline::within(&scene.world, Duration::from_secs(9));
        let Ok(survey) = ledger.survey(horizon, until).await else {
            return;
        };
        let _ = ledger.tend(&survey, until).await;
        let newest = key_version(1);
        for tenant in survey.tenants.keys() {
            let until = scene.now() + super::LEASE;
            let claimed = ledger.claim(&survey, tenant, Kind::Due(&newest), 9, until);
            let Ok(claimed) = claimed.await else {
                return;
            };
            for visit in claimed.visits {
                let began = self.step.get();
                let edit = match (scene.trouble.below(3), ledger.open(&visit).await) {
                    (0, Ok(Opened::Record { .. })) => {
                        let expired = ledger.expire(&visit).await;
                        let deed = Deed::Expired(visit.nonce.clone());
                        if expired != Ok(false) {
                            self.note(&visit.user, deed, began, expired.is_err());
                        }
                        continue;
                    }
                    (1, Ok(Opened::Record { .. })) => Edit::Reschedule {
                        time: scene.now() + 70,
                        state: State::Active { failures: 1 },
                        key_version: visit.key_version.clone(),
                    },
                    (_, Ok(Opened::Record { record: old, .. })) => {
                        let new = Box::new(scene.successor(&old, 80));
                        Edit::Replace { old, new }
                    }
                    (_, Ok(Opened::NotReadable)) => {
                        self.fault("what was written cannot be read".into());
                        return;
                    }
                    (_, Ok(Opened::Gone) | Err(_)) => continue,
                };
                let _ = scene.settle(of_visit(&visit, edit)).await;
            }
        }
    }

    /// Deed is there in the end, and whether all of it fits together.
    async fn check(&self) {
        for user in &self.users {
            self.find(user).await;
        }
        for user in self.scene.unclaimed(&self.users).await {
            self.fault(format!("{user:?} has no time"));
        }
        for user in &self.users {
            // Deed is cleared was of no use to anybody.
            self.find(user).await;
            let events = self.events.borrow();
            let mut of_user = events.iter().filter(|event| event.user == *user);
            let of_user: Vec<_> = of_user.by_ref().cloned().collect();
            if !explain(&of_user, 0, &View::Absent, &mut BTreeSet::new()) {
                let fault = format!("what was seen has no order: {of_user:#?}");
                self.faults.borrow_mut().push(fault);
            }
        }
    }
}

/// Whether the events that are left have an order.
fn explain(events: &[Event], done: u64, view: &View, seen: &mut BTreeSet<(u64, View)>) -> bool {
    if done.count_ones() as usize == events.len() {
        return true;
    }
    if !seen.insert((done, view.clone())) {
        return false;
    }
    let is_left = |at: &usize| done >> at & 1 == 0;
    (0..events.len()).filter(is_left).any(|at| {
        let event = &events[at];
        let comes_first = |other: usize| events[other].ended.is_some_and(|end| end < event.began);
        if (0..events.len()).filter(is_left).any(comes_first) {
            return false;
        }
        let next = match (&event.deed, view) {
            (Deed::Enrolled(nonce, is_new), _) => {
                let is_absent = *view == View::Absent;
                let is_right = is_new.is_none_or(|is_new| is_new == is_absent);
                is_right.then(|| View::Has(nonce.clone()))
            }
            (Deed::Removed, _) => Some(View::Absent),
            (Deed::RemovedToken, View::Has(nonce)) => Some(View::NoToken(nonce.clone())),
            (Deed::Expired(nonce), View::Has(current)) if nonce == current => {
                Some(View::NoToken(nonce.clone()))
            }
            (Deed::RemovedToken | Deed::Expired(_), _) => Some(view.clone()),
            (Deed::Saw(saw), _) => (saw == view).then(|| view.clone()),
            (Deed::SawAnother(nonce), View::Has(current) | View::NoToken(current)) => {
                (nonce != current).then(|| view.clone())
            }
            (Deed::SawAnother(_), View::Absent) => None,
        };
        let done = done | 1 << at;
        next.is_some_and(|next| explain(events, done, &next, seen))
            || event.is_open && explain(events, done, view, seen)
    })
}
