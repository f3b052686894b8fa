//! One run: two replicas, and the requests that are under way there, of which a seed says who goes on.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::Keeper;
use crate::identity::KeyVersion;
use crate::simulation::history::{Act, End, Operation};
use crate::simulation::kept::Kept;
use crate::simulation::mutation::Mutation;
use crate::simulation::outside::{DAY, HOUR, Outside};
use crate::simulation::port::{App, Port};
use crate::simulation::request::ask;
use crate::simulation::watched::Watched;

/// A run, and what is under way in it.
pub(super) struct Run<L> {
    pub(super) outside: Rc<Outside>,
    pub(super) apps: Vec<Rc<App<L>>>,
    tasks: Vec<Task>,
}

impl<L: Kept> Run<L> {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>, single_use: bool) -> Self {
        let outside = Outside::new(seed, mutation, single_use);
        let mut run = Self {
            outside,
            apps: Vec::new(),
            tasks: Vec::new(),
        };
        for _ in 0..2 {
            let app = run.app_in_trouble();
            run.apps.push(app);
        }
        run
    }

    /// A replica that has just started and remembers nothing. Its clock is off by two minutes at most.
    pub(super) fn app(&self) -> Rc<App<L>> {
        let seconds = (
            self.outside.chance.below(120),
            self.outside.chance.below(120),
        );
        self.app_with_clock(seconds)
    }

    /// A replica whose clock may be days off, and then is so until it is started anew.
    fn app_in_trouble(&self) -> Rc<App<L>> {
        match self.outside.chance.below(24) {
            0 => self.app_with_clock((3 * DAY, 0)),
            1 => self.app_with_clock((0, 3 * DAY)),
            2 => self.app_with_clock((200 * DAY, 0)),
            _ => self.app(),
        }
    }

    fn app_with_clock(&self, skew: (u64, u64)) -> Rc<App<L>> {
        let port = Port {
            outside: Rc::clone(&self.outside),
            skew,
        };
        let ledger = L::new(port.clone());
        Rc::new(Keeper::new(Watched::new(port.clone()), ledger, port))
    }

    /// Begins an operation at a replica. Returns its act.
    pub(super) fn begin(&mut self, operation: Operation, user: usize, app: &Rc<App<L>>) -> usize {
        // All that has ended so far ended before this begins.
        self.outside.step.set(self.outside.step.get() + 1);
        let act = self.outside.acts.borrow().len();
        self.outside.acts.borrow_mut().push(Act {
            user,
            operation,
            began: self.outside.step.get(),
            ended: u64::MAX,
            end: End::Open,
            lineage: None,
            answered: 0,
            calls: Vec::new(),
            has_read_head: false,
        });
        let future = ask(
            Rc::clone(&self.outside),
            Rc::clone(app),
            act,
            operation,
            user,
        );
        self.tasks.push(Task {
            act,
            priority: self.outside.chance.number(),
            future: Box::pin(future),
        });
        act
    }

    /// Runs everything that has begun, to its end or its death. Either all are equally likely to go on, or one goes on
    /// until it is told to wait: the second finds what needs a long wait at one place.
    pub(super) fn finish(&mut self) {
        let outside = Rc::clone(&self.outside);
        let by_priority = outside.chance.below(2) == 0;
        while !self.tasks.is_empty() {
            outside.step.set(outside.step.get() + 1);
            outside.deliver(outside.step.get());
            outside.make_late_statements(outside.step.get());
            if outside.chance.below(8) == 0 {
                outside.now.set(outside.now.get() + outside.chance.below(2));
            }
            let at = if by_priority {
                let most = self.tasks.iter().map(|task| task.priority).max();
                self.tasks
                    .iter()
                    .position(|task| Some(task.priority) == most)
                    .unwrap()
            } else {
                usize::try_from(outside.chance.below(self.tasks.len() as u64)).unwrap()
            };
            if outside.chance.below(24) == 0 {
                self.tasks[at].priority = outside.chance.number() >> outside.chance.below(8);
            }
            if outside.chance.happens(outside.faults.get().crash) {
                // A request dies, and now and then a replica with all that it remembers.
                self.tasks.remove(at);
                if outside.chance.below(4) == 0 {
                    let app = self.app_in_trouble();
                    let which = usize::try_from(outside.chance.below(2)).unwrap();
                    self.apps[which] = app;
                }
                continue;
            }
            outside.current.set(self.tasks[at].act);
            let mut context = Context::from_waker(Waker::noop());
            let act = self.tasks[at].act;
            if self.tasks[at].future.as_mut().poll(&mut context).is_ready() {
                self.tasks.remove(at);
            }
            for future in outside.begun.take() {
                // It goes on, or dies, by itself.
                let priority = outside.chance.number();
                self.tasks.push(Task {
                    act,
                    priority,
                    future,
                });
            }
        }
        outside.deliver(u64::MAX);
    }

    /// Runs an operation with nothing beside it.
    pub(super) fn alone(&mut self, operation: Operation, user: usize) -> End {
        let app = Rc::clone(&self.apps[0]);
        let act = self.begin(operation, user, &app);
        self.finish();
        self.outside.acts.borrow()[act].end
    }

    /// Lets days pass, with a few sweeps on each.
    pub(super) fn days(&mut self, days: &[u64]) {
        for days in days {
            self.outside.now.set(self.outside.now.get() + days * DAY);
            for _ in 0..3 {
                self.outside.now.set(self.outside.now.get() + HOUR);
                self.alone(Operation::Sweep, 0);
            }
        }
    }

    /// The newest version of a tenant's key.
    pub(super) fn newest(&self, tenant: usize) -> KeyVersion {
        let newest = self.outside.key_vault.keys.borrow()[tenant].len() - 1;
        KeyVersion::parse(&format!("{newest:032x}")).unwrap()
    }
}

/// An operation that is under way.
struct Task {
    act: usize,
    /// In a run that goes by it, the task with the highest goes on.
    priority: u64,
    future: Pin<Box<dyn Future<Output = ()>>>,
}
