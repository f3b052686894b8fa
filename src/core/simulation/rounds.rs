//! A world in which every answer takes a second, and nothing else takes any time: so that the seconds of an operation are
//! the answers that had to be waited for one after another.

use std::cell::RefCell;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};

use crate::ledger::StoreError;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::store::{Page, Store};
use crate::port::{
    Background, Clock, Config, ConfigError, Http, HttpError, Limits, Log, Random, SecretBody, Timer,
};
use crate::simulation::time::Time;
use crate::simulation::world::{Shared, World};
use crate::{Keeper, Vault};

/// A world, and its time. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Rounds(Rc<Inner>);

struct Inner {
    world: Shared,
    time: Time,
    /// What was asked for, and in which second.
    asked: RefCell<Vec<(u64, String)>>,
    /// To what nobody answers.
    silent: RefCell<Vec<&'static str>>,
    /// What was begun beside a call, and is not over.
    begun: RefCell<Vec<Task>>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The app, with its caches.
pub(crate) type App = Keeper<Vault<Rounds>, KeyValueLedger<Rounds, Rounds>, Rounds>;

impl Rounds {
    /// One in which nothing has been asked for.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Inner {
            world: World::new(),
            time: Time::default(),
            asked: RefCell::default(),
            silent: RefCell::default(),
            begun: RefCell::default(),
        }))
    }

    /// The world in which the time is.
    pub(crate) fn world(&self) -> &Shared {
        &self.0.world
    }

    /// A new instance of the app: nothing cached.
    pub(crate) fn app(&self) -> App {
        let ledger = KeyValueLedger::new(self.clone(), self.clone());
        Keeper::new(Vault::new(self.clone()), ledger, self.clone())
    }

    /// Runs an operation until it is answered, and beside it what was begun. What it came to, and what was asked for in each
    /// second of it.
    pub(crate) fn run<T>(&self, operation: impl Future<Output = T>) -> (T, Vec<Vec<String>>) {
        let mut begun = 0;
        let answer = self.go_on(async {
            // It begins with a second.
            let rest = 1_000_000_000 - self.elapsed().subsec_nanos();
            self.sleep(Duration::from_nanos(rest.into())).await;
            self.0.asked.borrow_mut().clear();
            begun = self.elapsed().as_secs();
            operation.await
        });
        let took = self.elapsed().as_secs() - begun;
        let mut rounds = vec![Vec::new(); usize::try_from(took).unwrap()];
        for (second, what) in self.0.asked.take() {
            match rounds.get_mut(usize::try_from(second - begun).unwrap()) {
                Some(round) => round.push(what),
                // Nothing that is begun when the answer is there was waited for.
                None => self.0.asked.borrow_mut().push((second, what)),
            }
        }
        (answer, rounds)
    }

    /// Runs what is not over, until it is. What was asked for since the last operation was answered.
    pub(crate) fn finish(&self) -> Vec<String> {
        self.0.time.run(poll_fn(|task| {
            self.poll_begun(task);
            if self.0.begun.borrow().is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }));
        self.0
            .asked
            .take()
            .into_iter()
            .map(|(_, what)| what)
            .collect()
    }

    /// From now on there is no answer to these.
    pub(crate) fn silence(&self, what: &[&'static str]) {
        self.0.silent.replace(what.to_vec());
    }

    fn go_on<T>(&self, operation: impl Future<Output = T>) -> T {
        let mut operation = pin!(operation);
        self.0.time.run(poll_fn(|task| {
            let polled = operation.as_mut().poll(task);
            self.poll_begun(task);
            polled
        }))
    }

    fn poll_begun(&self, task: &mut Context<'_>) {
        let mut going_on = Vec::new();
        loop {
            let begun = self.0.begun.take();
            if begun.is_empty() {
                break;
            }
            for mut it in begun {
                if it.as_mut().poll(task).is_pending() {
                    going_on.push(it);
                }
            }
        }
        self.0.begun.replace(going_on);
    }

    async fn answer(&self, what: &str) {
        let second = self.elapsed().as_secs();
        self.0.asked.borrow_mut().push((second, what.to_owned()));
        if self.0.silent.borrow().contains(&what) {
            pending::<()>().await;
        }
        self.0.time.sleep(Duration::from_secs(1)).await;
    }
}

impl Http for Rounds {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        let body = String::from_utf8_lossy(request.body());
        let path = request.uri().path();
        self.answer(match request.uri().host().unwrap() {
            "login.microsoftonline.com" if path.ends_with("/keys") => "signing keys",
            "login.microsoftonline.com" if body.contains("client_credentials") => "own token",
            "login.microsoftonline.com" => "grant",
            "169.254.169.254" => "identity",
            _ if !request.headers().contains_key("authorization") => "challenge",
            _ if path.ends_with('/') => "newest key",
            _ => "key",
        })
        .await;
        self.0.world.send(request, limits).await
    }
}

impl Store for Rounds {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.answer(&format!("get {}", kind(key))).await;
        Store::get(&self.0.world, key).await
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.answer(&format!("set {}", kind(key))).await;
        self.0.world.set(key, value).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.answer(&format!("delete {}", kind(key))).await;
        self.0.world.delete(key).await
    }

    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError> {
        self.answer("list").await;
        self.0.world.list_keys(cursor).await
    }
}

/// The first word of a key of storage.
fn kind(key: &str) -> &str {
    key.split('.').next().unwrap()
}

impl Clock for Rounds {
    fn now(&self) -> u64 {
        self.0.world.now() + self.elapsed().as_secs()
    }
}

impl Timer for Rounds {
    fn elapsed(&self) -> Duration {
        self.0.time.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.time.sleep(duration).await;
    }
}

impl Random for Rounds {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.world.fill(buffer);
    }
}

impl Config for Rounds {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Config::get(&self.0.world, name)
    }
}

impl Background for Rounds {
    fn begin(&self, task: impl Future<Output = ()> + 'static) {
        self.0.begun.borrow_mut().push(Box::pin(task));
    }
}

impl Log for Rounds {
    fn line(&self, line: &str) {
        self.0.world.line(line);
    }
}
