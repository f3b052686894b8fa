//! Whether one's trouble stays one's own: the very `Keeper`, `Vault` and `Doorbell` of the components, over many tenants
//! each with a trouble of its own, in time that passes only when everybody waits.
//!
//! Healthy users' tokens have to be refreshed and re-sealed by the tick that finds them due, whatever the others do; a
//! call has to end in its time; and nobody's token may be lost. Each rule of `rules.rs` that a tenant could break is then
//! broken here on purpose, and must be missed.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, Response};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::doorbell::{Doorbell, DoorbellError, Next};
use crate::error::VaultError;
use crate::identity::User;
use crate::identity::{KeyVersion, Nonce, SecretName, TenantId, UserId};
use crate::keeper::marker_of;
use crate::keeper::report::SweepReport;
use crate::keeper::rules::Rules;
use crate::keeper::sweep::SweepState;
use crate::keeper::verdict::{Verdict, Work, verdict};
use crate::ledger::key_value::layout::Layout;
use crate::ledger::key_value::store::{Page, Store, StoreError};
use crate::ledger::record::{Head, Record, Status};
use crate::ledger::schedule::DAILY;
use crate::port::{
    Clock, Config, ConfigError, Http, HttpError, Limits, Log, Random, SecretBody, Timer,
};
use crate::secret::{Bearer, EncryptionKey, RefreshToken};
use crate::simulation::world::SWEEP_KEY;
use crate::vault::caller::tests::{NOW, jwks};
use crate::vault::sealing::{Binding, Payload, seal};
use crate::vault::settings::tests::{CLIENT, Values, least};
use crate::{Keeper, Vault};

const MINUTE: u64 = 60;
const TICK: u64 = 5 * MINUTE;
const SWEEP_SECONDS: u64 = 20;
/// By when a token has to be refreshed after it is due, or re-sealed after a rotation: two ticks.
const IN_TIME: u64 = 2 * TICK;
/// As long as an answer of Entra ID or Key Vault takes.
const LATENCY: Duration = Duration::from_millis(100);

/// What is wrong with a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    None,
    /// Nothing of it is due, and its key takes so many milliseconds.
    Idle(u64),
    /// Entra ID throttles it.
    Throttled,
    /// Entra ID takes nine seconds for each answer.
    Slow,
    /// Entra ID never answers.
    Hanging,
    /// Its newest key never comes.
    HangingKey,
    /// Its old key version is disabled, and all its records are under it.
    DeadKey,
    /// Entra ID refuses most of its users, each for a reason of their own.
    Refused,
    /// This app's credential is not accepted there.
    CredentialRefused,
    /// It is not among the setting `tenants`.
    NotServed,
}

/// A tenant, and its users.
struct Tenant {
    trouble: Trouble,
    /// Users whose tokens are good.
    good: usize,
    /// Users whom Entra ID refuses.
    bad: usize,
    /// When the versions of its key were made.
    keys: RefCell<Vec<u64>>,
}

/// Everything outside.
struct World {
    tenants: Vec<Tenant>,
    elapsed: Cell<Duration>,
    timers: RefCell<BinaryHeap<Reverse<(Duration, u64)>>>,
    wakers: RefCell<BTreeMap<u64, Waker>>,
    counter: Cell<u64>,
    rows: RefCell<BTreeMap<String, Vec<u8>>>,
    settings: Values,
    log: RefCell<Vec<String>>,
    /// Whether what a sweep remembers is lost before each call.
    forgets: bool,
    /// How often each key version was asked for in this call.
    asked: RefCell<BTreeMap<String, usize>>,
}

type Shared = Rc<World>;
type App = Keeper<Vault<Shared>, Shared, Shared>;

fn tenant_id(index: usize) -> TenantId {
    TenantId::parse(&format!("{index:08x}-1111-1111-1111-111111111111")).unwrap()
}

fn version(index: usize) -> KeyVersion {
    KeyVersion::parse(&format!("{index:032x}")).unwrap()
}

fn user_id(tenant: usize, user: usize) -> UserId {
    let object = format!("{user:08x}-2222-2222-2222-222222222222");
    UserId::from_sealed(&format!("{}.{object}", tenant_id(tenant)))
}

fn key(tenant: usize, index: usize) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(tenant as u64).to_le_bytes());
    key[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    key
}

impl World {
    /// Tenants of so many good users, and bad ones, whose records are all due at the start unless nothing of them is.
    fn new(tenants: &[(Trouble, usize, usize)], forgets: bool) -> Shared {
        let mut settings = least();
        let served = tenants.iter().enumerate();
        let served = served.filter(|(_, tenant)| tenant.0 != Trouble::NotServed);
        let served: Vec<_> = served
            .map(|(index, _)| tenant_id(index).as_str().to_owned())
            .collect();
        settings.insert("tenants", served.join(","));
        settings.insert("sweep_key", SWEEP_KEY.to_owned());
        settings.insert("sweep_url", "http://127.0.0.1:3000/v1/sweep".to_owned());
        settings.insert("sweep_seconds", SWEEP_SECONDS.to_string());
        settings.insert("sweep_concurrency", "32".to_owned());
        settings.insert("key_vault_tenant", tenant_id(0).as_str().to_owned());
        // So that an hour or two show what else takes weeks.
        settings.insert("refresh_after_seconds", 3600.to_string());
        let tenants = tenants.iter().map(|(trouble, good, bad)| Tenant {
            trouble: *trouble,
            good: *good,
            bad: *bad,
            keys: match trouble {
                Trouble::DeadKey => vec![0, 0],
                _ => vec![0],
            }
            .into(),
        });
        let world = Rc::new(Self {
            tenants: tenants.collect(),
            elapsed: Cell::default(),
            timers: RefCell::default(),
            wakers: RefCell::default(),
            counter: Cell::default(),
            rows: RefCell::default(),
            settings,
            log: RefCell::default(),
            forgets,
            asked: RefCell::default(),
        });
        for (index, tenant) in world.tenants.iter().enumerate() {
            for user in 0..tenant.good + tenant.bad {
                let due_at = match tenant.trouble {
                    Trouble::Idle(_) => NOW + DAILY,
                    _ => NOW,
                };
                world.enrol(index, user, due_at);
            }
        }
        world
    }

    /// What an enrolment a while ago has left.
    fn enrol(self: &Rc<Self>, tenant: usize, user: usize, due_at: u64) {
        let (layout, user_id) = (Layout::new(""), user_id(tenant, user));
        let id = user_id.storage_id(None);
        let of = User {
            tenant: tenant_id(tenant),
            id,
        };
        let enrolled_at = NOW - 2 * DAILY;
        let nonce = Nonce::for_enrolment(enrolled_at, self);
        let binding = Binding::new(CLIENT, &of.tenant, &user_id, &nonce);
        let payload = Payload {
            refresh_token: RefreshToken::new(format!("rt-{user}")),
            user_id,
            scope: "https://graph.microsoft.com/.default".into(),
        };
        let secret = SecretName::parse(&format!("obo-{}", of.tenant)).unwrap();
        let encryption = EncryptionKey::new(Zeroizing::new(key(tenant, 0)));
        let sealed = seal(
            &payload,
            &binding,
            (&secret, &version(0)),
            &encryption,
            self,
        )
        .unwrap();
        let record = Record {
            tenant: of.tenant.clone(),
            sealed: sealed.token,
            key_version: sealed.key_version,
            scope: payload.scope,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(self),
            enrolled_at,
            refreshed_at: enrolled_at,
            due_at,
        };
        let head = Head {
            nonce: nonce.clone(),
            tenant: of.tenant.clone(),
            created_at: enrolled_at,
        };
        let mut rows = self.rows.borrow_mut();
        rows.insert(layout.head(&of), head.to_json());
        rows.insert(layout.marker(&marker_of(&of, &nonce, &record)), Vec::new());
        rows.insert(layout.record(&of.id, &nonce), record.to_json());
    }

    fn app(self: &Rc<Self>, rules: Rules) -> App {
        Keeper {
            rules,
            ..Keeper::new(
                Vault::new(Rc::clone(self)),
                Rc::clone(self),
                Rc::clone(self),
            )
        }
    }

    fn next(&self) -> u64 {
        self.counter.set(self.counter.get() + 1);
        self.counter.get()
    }

    fn seconds(&self) -> u64 {
        NOW + self.elapsed.get().as_secs()
    }

    /// Runs until it is over: whoever waits is woken at its time, and no time passes otherwise.
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        struct Flag(AtomicBool);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if flag.0.swap(false, Ordering::Relaxed) {
                if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                    return value;
                }
                continue;
            }
            let timer = self.timers.borrow_mut().pop();
            let Reverse((time, id)) = timer.expect("somebody waits for a time");
            self.elapsed.set(self.elapsed.get().max(time));
            if let Some(waker) = self.wakers.borrow_mut().remove(&id) {
                waker.wake();
            }
        }
    }

    fn pass(&self, duration: Duration) {
        self.elapsed.set(self.elapsed.get() + duration);
        self.timers.borrow_mut().clear();
        self.wakers.borrow_mut().clear();
    }

    /// What becomes of a refresh: after how long, which status, what.
    fn token(&self, tenant: usize, request: &Request<SecretBody>) -> (Duration, u16, Value) {
        let form: BTreeMap<_, _> = url::form_urlencoded::parse(request.body())
            .into_owned()
            .collect();
        let error = |status, error: &str, code: u32| {
            let body = json!({"error": error, "error_codes": [code]});
            (LATENCY, status, body)
        };
        let Some(token) = form.get("refresh_token") else {
            let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "at"});
            return (LATENCY, 200, body);
        };
        let user: usize = token.split('-').nth(1).unwrap().parse().unwrap();
        let of = &self.tenants[tenant];
        if user >= of.good {
            // Each has a reason; none concerns anybody else.
            return match user % 6 {
                0 => error(400, "invalid_grant", 50_105),
                1 => error(400, "invalid_grant", 70_000),
                2 => error(401, "invalid_grant", 50_097),
                3 => error(400, "unauthorized_client", 53_005),
                4 => error(400, "invalid_scope", 70_011),
                _ => error(400, "invalid_grant", 50_196),
            };
        }
        let delay = match of.trouble {
            Trouble::Throttled => return error(429, "temporarily_unavailable", 90_055),
            Trouble::CredentialRefused => return error(401, "invalid_client", 7_000_215),
            Trouble::Slow => Duration::from_secs(9),
            Trouble::Hanging => Duration::from_hours(1),
            Trouble::None
            | Trouble::Idle(_)
            | Trouble::HangingKey
            | Trouble::DeadKey
            | Trouble::Refused
            | Trouble::NotServed => LATENCY,
        };
        let body = json!({
            "token_type": "Bearer", "expires_in": 3599, "scope": form["scope"],
            "access_token": "at", "refresh_token": format!("rt-{user}-{}", self.next()),
        });
        (delay, 200, body)
    }

    fn key_vault(&self, request: &Request<SecretBody>) -> (Duration, u16, Value) {
        let path = request.uri().path();
        let (name, asked) = path.rsplit_once('/').unwrap();
        let tenant = usize::from_str_radix(&name.rsplit('/').next().unwrap()[4..12], 16).unwrap();
        let of = &self.tenants[tenant];
        let newest = of.keys.borrow().len() - 1;
        let index = match asked {
            "" => newest,
            version => usize::from_str_radix(version, 16).unwrap(),
        };
        *self.asked.borrow_mut().entry(path.to_owned()).or_default() += 1;
        let delay = match of.trouble {
            Trouble::Idle(milliseconds) => Duration::from_millis(milliseconds),
            Trouble::HangingKey => Duration::from_hours(1),
            _ => LATENCY,
        };
        if of.trouble == Trouble::DeadKey && index < newest {
            let inner = json!({"code": "SecretDisabled"});
            let body = json!({"error": {"code": "Forbidden", "message": "m", "innererror": inner}});
            return (delay, 403, body);
        }
        let body = json!({
            "value": STANDARD.encode(key(tenant, index)),
            "id": format!("https://demo.vault.azure.net{name}/{}", version(index).as_str()),
            "attributes": {"enabled": true},
        });
        (delay, 200, body)
    }

    /// The records of a tenant's good users.
    fn good_records(&self, tenant: usize) -> Vec<Record> {
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

    /// Good users whose trouble is not their own.
    fn healthy(&self) -> impl Iterator<Item = usize> {
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

    /// What a tick of the schedule does: rings until nothing remains, in calls that each have to end in time. Returns what
    /// must not be.
    fn tick(self: &Rc<Self>, app: &App) -> Vec<String> {
        let mut violations = Vec::new();
        let begun = self.elapsed.get();
        let mut bell = Doorbell::new(&self.settings).unwrap().unwrap();
        loop {
            let call = self.elapsed.get();
            self.asked.borrow_mut().clear();
            if self.forgets {
                let key = Layout::new("").sweep_state();
                self.rows.borrow_mut().remove(&key);
            }
            let report = self.run(app.sweep(&Bearer::new(SWEEP_KEY.into()))).unwrap();
            let took = self.elapsed.get().saturating_sub(call);
            if took > Duration::from_secs(SWEEP_SECONDS) {
                violations.push(format!("a call took {took:?}"));
            }
            let asked = self.asked.borrow();
            let mut often = asked.iter().filter(|(_, times)| **times > 1);
            if let Some((version, times)) = often.next() {
                violations.push(format!("{version} was asked for {times} times in a call"));
            }
            match ring(&mut bell, &report, self.elapsed.get().saturating_sub(begun)) {
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
}

fn ring(
    bell: &mut Doorbell,
    report: &SweepReport,
    elapsed: Duration,
) -> Result<Next, DoorbellError> {
    let body = serde_json::to_vec(report).unwrap();
    let answer = Response::new(SecretBody::new(body));
    bell.hear(Ok(answer), elapsed)
}

impl Http for Shared {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        let path = request.uri().path();
        let (delay, status, body) = match request.uri().host().unwrap() {
            "login.microsoftonline.com" if path.ends_with("/token") => {
                let tenant = path.split('/').nth(1).unwrap();
                let tenant = usize::from_str_radix(&tenant[..8], 16).unwrap();
                self.token(tenant, &request)
            }
            "login.microsoftonline.com" => {
                let template = json!("https://login.microsoftonline.com/{tenantid}/v2.0");
                let keys = serde_json::from_slice(&jwks(template)).unwrap();
                (LATENCY, 200, keys)
            }
            _ => self.key_vault(&request),
        };
        self.sleep(delay.min(limits.first_byte)).await;
        if delay > limits.first_byte {
            return Err(HttpError::TimedOut);
        }
        let mut response = Response::builder().status(status);
        if status == 429 {
            response = response.header("retry-after", "600");
        }
        let date = UNIX_EPOCH + Duration::from_secs(self.seconds());
        Ok(response
            .header("date", httpdate::fmt_http_date(date))
            .body(Zeroizing::new(body.to_string().into_bytes()))
            .unwrap())
    }
}

impl Store for Shared {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.borrow().get(key).cloned())
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.rows.borrow_mut().insert(key.into(), value.into());
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.rows.borrow_mut().remove(key);
        Ok(())
    }

    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        for (key, value) in pairs {
            self.set(key, value).await?;
        }
        Ok(())
    }

    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError> {
        for key in keys {
            self.delete(key).await?;
        }
        Ok(())
    }

    async fn list_keys(&self, _: Option<&str>) -> Result<Page, StoreError> {
        Ok(Page {
            keys: self.rows.borrow().keys().cloned().collect(),
            cursor: None,
        })
    }
}

impl Clock for Shared {
    fn now(&self) -> u64 {
        self.seconds()
    }
}

impl Timer for Shared {
    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    async fn sleep(&self, duration: Duration) {
        let (until, id) = (self.elapsed.get() + duration, self.next());
        self.timers.borrow_mut().push(Reverse((until, id)));
        poll_fn(|context| {
            if self.elapsed.get() >= until {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            wakers.insert(id, context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Random for Shared {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let mut number = self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let number = number ^ (number >> 31);
            chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Config for World {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Ok(self.settings.get(name).cloned())
    }
}

impl Config for Shared {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Ok(self.settings.get(name).cloned())
    }
}

impl Log for Shared {
    fn line(&self, line: &str) {
        self.log.borrow_mut().push(line.to_owned());
    }
}

/// Every trouble at once, and more tenants of most than there are places.
fn town() -> Shared {
    let mut tenants = Vec::new();
    let mut add = |number, tenant| tenants.extend(std::iter::repeat_n(tenant, number));
    add(10, (Trouble::None, 10, 0));
    add(150, (Trouble::Idle(4000), 1, 0));
    add(5, (Trouble::Throttled, 5, 0));
    add(40, (Trouble::Slow, 10, 0));
    add(40, (Trouble::Hanging, 2, 0));
    add(40, (Trouble::HangingKey, 2, 0));
    add(2, (Trouble::DeadKey, 300, 0));
    add(1, (Trouble::Refused, 20, 600));
    add(1, (Trouble::CredentialRefused, 5, 0));
    add(2, (Trouble::NotServed, 5, 0));
    World::new(&tenants, false)
}

/// Tenants that Entra ID takes its time for, with more to do than there is time.
fn slow_town() -> Shared {
    let slow = std::iter::repeat_n((Trouble::Slow, 100, 0), 40);
    let healthy = std::iter::repeat_n((Trouble::None, 40, 0), 5);
    World::new(&slow.chain(healthy).collect::<Vec<_>>(), false)
}

/// Tenants whose keys never come, and nobody remembers which they were.
fn forgetful_town() -> Shared {
    let hanging = std::iter::repeat_n((Trouble::HangingKey, 2, 0), 80);
    let healthy = std::iter::repeat_n((Trouble::None, 40, 0), 5);
    World::new(&hanging.chain(healthy).collect::<Vec<_>>(), true)
}

/// Some hours there. Returns what must not be, of the first tick with something.
fn live(world: &Shared, rules: Rules, hours: u64) -> Vec<String> {
    let records = |world: &World| {
        let rows = world.rows.borrow();
        rows.keys().filter(|key| key.starts_with("rec.")).count()
    };
    let before = records(world);
    // What a clock left that was ten years ahead for a while.
    let paused = (0..10).map(|index| (tenant_id(index).as_str().to_owned(), NOW + 3650 * DAILY));
    let state = SweepState {
        lease_until: NOW + 3650 * DAILY,
        quiet_until: NOW + 3650 * DAILY,
        paused: paused.collect(),
        ..SweepState::default()
    };
    let state_key = Layout::new("").sweep_state();
    let state = serde_json::to_vec(&state).unwrap();
    world.rows.borrow_mut().insert(state_key, state);
    let mut app = world.app(rules);
    for tick in 0..hours * 3600 / TICK {
        if tick % 2 == 1 {
            // An instance that remembers nothing.
            app = world.app(rules);
        }
        if tick % 7 == 6 {
            for tenant in world.healthy() {
                let mut keys = world.tenants[tenant].keys.borrow_mut();
                keys.push(world.seconds());
            }
        }
        let mut violations = world.tick(&app);
        if !violations.is_empty() {
            violations.sort_unstable();
            violations.dedup();
            violations.insert(0, format!("tick {tick}"));
            return violations;
        }
        let next = NOW + (tick + 1) * TICK;
        let wait = next.saturating_sub(world.seconds());
        world.pass(Duration::from_secs(wait));
    }
    if records(world) == before {
        Vec::new()
    } else {
        vec!["a record is gone".into()]
    }
}

#[test]
fn one_tenants_trouble_is_no_others() {
    for (town, hours) in [(town(), 2), (slow_town(), 1), (forgetful_town(), 1)] {
        let violations = live(&town, Rules::SHIPPED, hours);
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }
}

/// Of one tenant, however many of its users Entra ID refuses: those whom it does not are refreshed by the one tick that
/// finds all of them due.
#[test]
fn refused_users_keep_nobody_of_their_tenant_waiting() {
    for refused in [100, 10_000] {
        let world = World::new(&[(Trouble::Refused, 300, refused)], false);
        let violations = world.tick(&world.app(Rules::SHIPPED));
        assert!(violations.is_empty(), "{}", violations.join("\n"));
        let good = world.good_records(0);
        assert!(good.len() == 300 && good.iter().all(|record| record.due_at > NOW));
        // Every record that was refused is kept, and comes back later.
        let rows = world.rows.borrow();
        let records = rows.range("rec.".to_owned().."rec/".to_owned()).count();
        assert_eq!(records, 300 + refused);
        let due = rows.range("due.".to_owned()..format!("due.{:012}.", world.seconds()));
        assert_eq!(due.count(), 0);
    }
}

/// Each rule that is broken is missed.
#[test]
fn each_broken_rule_is_missed() {
    fn refusal_holds_the_tenant(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::Turn(_) | Verdict::PutOff { .. } => Verdict::HoldTenant { seconds: None },
            verdict => verdict,
        }
    }
    fn version_is_forgotten(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::KeyVersionUnusable => Verdict::PutOff {
                retry_after_seconds: None,
                is_operators: true,
            },
            verdict => verdict,
        }
    }
    fn refused_credential_stops(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::HoldCredential => Verdict::Stop,
            verdict => verdict,
        }
    }
    fn missing_key_stops(error: &VaultError, work: Work) -> Verdict {
        match verdict(error, work) {
            Verdict::NewestKeyUnusable => Verdict::Stop,
            verdict => verdict,
        }
    }
    let broken: [(&str, fn() -> Shared, fn(&mut Rules)); 9] = [
        ("a refusal holds the tenant", town, |rules| {
            rules.verdict = refusal_holds_the_tenant;
        }),
        (
            "a key version that cannot be had is forgotten",
            town,
            |rules| {
                rules.verdict = version_is_forgotten;
            },
        ),
        ("a refused credential stops the sweep", town, |rules| {
            rules.verdict = refused_credential_stops;
        }),
        ("a missing key stops the sweep", town, |rules| {
            rules.verdict = missing_key_stops;
        }),
        (
            "a question takes as long as it likes",
            forgetful_town,
            |rules| {
                rules.longest_question = Duration::from_hours(1);
            },
        ),
        ("who was slow is forgotten", town, |rules| {
            rules.remembers_slow = false;
        }),
        ("lanes one after the other", slow_town, |rules| {
            rules.order.lanes_by_time = false;
        }),
        ("shares one after the other", town, |rules| {
            rules.order.shares_by_time = false;
        }),
        ("whatever the state says is believed", town, |rules| {
            rules.doubts_state = false;
        }),
    ];
    for (what, town, break_it) in broken {
        let mut rules = Rules::SHIPPED;
        break_it(&mut rules);
        let violations = live(&town(), rules, 1);
        let first = violations.get(1);
        let first = first.unwrap_or_else(|| panic!("not missed: {what}"));
        println!("{what}: {first:.100}");
    }
}
