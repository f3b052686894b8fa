//! A world in which every answer takes a second, and nothing else takes any time: so that the seconds of an operation are
//! the answers that had to be waited for one after another.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};

use crate::ledger::StoreError;
use crate::ledger::key_value::KeyValueLedger;
use crate::ledger::key_value::store::{Page, Store};
use crate::port::{
    Clock, Config, ConfigError, Http, HttpError, Limits, Log, Random, SecretBody, Timer,
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
}

/// The app, with its caches.
pub(crate) type App = Keeper<Vault<Rounds>, KeyValueLedger<Rounds, Rounds>, Rounds>;

impl Rounds {
    /// One in which nothing has been asked for.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Inner {
            world: World::new(),
            time: Time::default(),
            asked: RefCell::default(),
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

    /// Runs an operation until it is answered. What it came to, and what was asked for in each second of it.
    pub(crate) fn run<T>(&self, operation: impl Future<Output = T>) -> (T, Vec<Vec<String>>) {
        // So that it begins with a second.
        let rest = self.elapsed().subsec_nanos();
        if rest > 0 {
            self.0
                .time
                .pass(Duration::from_nanos((1_000_000_000 - rest).into()));
        }
        self.0.asked.borrow_mut().clear();
        let begun = self.elapsed().as_secs();
        let answer = self.0.time.run(operation);
        let took = self.elapsed().as_secs() - begun;
        let mut rounds = vec![Vec::new(); usize::try_from(took).unwrap()];
        for (second, what) in self.0.asked.take() {
            rounds[usize::try_from(second - begun).unwrap()].push(what);
        }
        (answer, rounds)
    }

    async fn answer(&self, what: &str) {
        let second = self.elapsed().as_secs();
        self.0.asked.borrow_mut().push((second, what.to_owned()));
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

impl Log for Rounds {
    fn line(&self, line: &str) {
        self.0.world.line(line);
    }
}
