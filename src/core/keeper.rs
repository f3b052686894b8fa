//! The keeper: what is done for whom, over a vault and a ledger. It holds no secret, and knows nothing of how a ledger keeps
//! what it keeps.

pub(crate) mod audit;
pub(crate) mod course;
mod fingerprint;
pub(crate) mod holds;
pub mod report;
pub(crate) mod rules;
pub mod status;
pub mod sweep;
pub(crate) mod turns;
pub(crate) mod verdict;
pub(crate) mod visit;

use std::cell::RefCell;

use serde_json::json;
use thiserror::Error;

use crate::deadline::{Deadline, LONGEST};
use crate::error::VaultError;
use crate::identity::{Nonce, User};
use crate::journal::Journal as _;
use crate::keeper::audit::{Action, Entry};
use crate::keeper::fingerprint::{ChangedSettings, Seen};
use crate::keeper::rules::Rules;
use crate::keeper::verdict::{Verdict, Work, verdict};
use crate::ledger::record::{Record, Status};
use crate::ledger::schedule::{refresh_due_at, turn_again_at};
use crate::ledger::{Change, Edit, Enrolled, Ledger, LedgerError, StoreError};
use crate::port::Environment;
use crate::secret::Bearer;
use crate::vault::port::{Caller, Draw, Issued, Policy, Purpose, SealedToken, Subject, VaultPort};

/// Age of a stored refresh token from which a successor is stored when one comes along with an access token, in seconds.
const REPLACE_AFTER: u64 = 86_400;
/// Times that a draw starts again because the user enrolled meanwhile.
const ATTEMPTS: u32 = 3;

/// Keeps the records of users: the HTTP component, without HTTP.
pub struct Keeper<V, L, E> {
    pub(crate) vault: V,
    ledger: L,
    pub(crate) env: E,
    /// How it sweeps.
    pub(crate) rules: Rules,
    seen: RefCell<Option<Seen>>,
}

/// What is asked for a user: by whom, and about whom.
pub struct Request<'a> {
    /// What its answer and the log know it by.
    pub id: &'a str,
    /// The caller's token.
    pub bearer: &'a Bearer,
    /// The user whom it is about.
    pub subject: Subject,
}

#[cfg(test)]
impl<'a> Request<'a> {
    /// One of a test, about the caller's own user.
    pub(crate) fn of(bearer: &'a Bearer) -> Self {
        Self {
            id: "test",
            bearer,
            subject: Subject::Me,
        }
    }
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeeperError {
    /// The vault refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The ledger refused or failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Settings are not those that what is stored was made with.
    #[error(transparent)]
    ChangedSettings(#[from] ChangedSettings),
}

impl KeeperError {
    /// A word for it that stays the same from version to version: the `code` of the API's problems.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Vault(error) => error.code(),
            Self::Ledger(error) => error.code(),
            Self::ChangedSettings(_) => "settings_changed",
        }
    }
}

impl From<StoreError> for KeeperError {
    fn from(error: StoreError) -> Self {
        Self::Ledger(error.into())
    }
}

/// What a user may know of an enrolment. Never a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The state; none: application access was removed.
    pub record: Option<Record>,
    /// Unix time in seconds of the enrolment.
    pub enrolled_at: u64,
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// A keeper over a vault and a ledger.
    pub const fn new(vault: V, ledger: L, env: E) -> Self {
        Self {
            vault,
            ledger,
            env,
            rules: Rules::SHIPPED,
            seen: RefCell::new(None),
        }
    }

    /// Enrols the caller's user. True if there was no enrolment before.
    ///
    /// A failed exchange leaves the former enrolment as it was: nothing is written before the vault has answered.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`LedgerError::Store`] the user may be enrolled or not; the caller tries again.
    pub async fn enrol(
        &self,
        request: &Request<'_>,
        scope: Option<&str>,
    ) -> Result<(View, bool), KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Enrol, request);
        let enrolled = self.enrol_user(request, scope, &mut entry).await;
        entry.close(enrolled)
    }

    async fn enrol_user(
        &self,
        request: &Request<'_>,
        scope: Option<&str>,
        entry: &mut Entry<'_, E>,
    ) -> Result<(View, bool), KeeperError> {
        let deadline = Deadline::within(&self.env, LONGEST);
        if let Some(scope) = scope {
            entry.scope(scope);
        }
        self.identify(request, entry, Purpose::Manage).await?;
        let now = self.env.now();
        let nonce = Nonce::for_enrolment(now, &self.env);
        let terms = entry.terms(deadline.left(&self.env));
        let enrolment = self.vault.enrol(request.bearer, &nonce, scope, terms);
        let enrolment = enrolment.await?;
        entry.scope(&enrolment.scope);
        let (user, policy) = (&enrolment.user, &enrolment.policy);
        let record = Record {
            tenant: user.tenant.clone(),
            sealed: enrolment.sealed.token,
            key_version: enrolment.sealed.key_version,
            scope: enrolment.scope,
            enrolled_by: enrolment.app,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(&self.env),
            enrolled_at: now,
            refreshed_at: now,
            due_at: refresh_due_at(now, policy.refresh_after_seconds, &user.id),
        };
        let ledger = self.open(policy).await?;
        let is_new = ledger.enrol(user, &nonce, &record).await?;
        let view = View {
            enrolled_at: now,
            record: Some(record),
        };
        Ok((view, is_new))
    }

    /// What is stored of a user.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn show(&self, request: &Request<'_>) -> Result<View, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Show, request);
        let shown = self.show_user(request, &mut entry).await;
        entry.close(shown)
    }

    async fn show_user(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
    ) -> Result<View, KeeperError> {
        let (caller, ledger) = self.find_ledger(request, entry, Purpose::Manage).await?;
        let enrolled = ledger.find(&caller.user).await?;
        let record = match enrolled.record {
            Ok(record) => Some(record),
            Err(LedgerError::NoRefreshToken) => None,
            Err(error) => return Err(error.into()),
        };
        let enrolled_at =
            (record.as_ref()).map_or(enrolled.enrolled_at, |record| record.enrolled_at);
        Ok(View {
            record,
            enrolled_at,
        })
    }

    /// Draws an access token for a user.
    ///
    /// # Errors
    /// [`KeeperError`]. What Entra ID refuses of the enrolment's own scope is also written down, as a sweep would.
    pub async fn draw(
        &self,
        request: &Request<'_>,
        scope: Option<String>,
        claims: Option<String>,
    ) -> Result<Issued, KeeperError> {
        let mut entry = Entry::new(&self.env, Action::Draw, request);
        let drawn = self.draw_for_user(request, scope, claims, &mut entry).await;
        entry.close(drawn)
    }

    async fn draw_for_user(
        &self,
        request: &Request<'_>,
        scope: Option<String>,
        claims: Option<String>,
        entry: &mut Entry<'_, E>,
    ) -> Result<Issued, KeeperError> {
        let deadline = Deadline::within(&self.env, LONGEST);
        if let Some(scope) = &scope {
            entry.scope(scope);
        }
        let purpose = Purpose::Draw(scope.clone());
        let (caller, ledger) = self.find_ledger(request, entry, purpose).await?;
        let Caller { user, policy, .. } = caller;
        for _ in 0..ATTEMPTS {
            let Enrolled { nonce, record, .. } = ledger.find(&user).await?;
            let record = record?;
            entry.scope(scope.as_ref().unwrap_or(&record.scope));
            let is_own = scope.as_ref().is_none_or(|scope| *scope == record.scope);
            let age = self.env.now().saturating_sub(record.refreshed_at);
            let draw = Draw {
                scope: scope.clone(),
                claims: claims.clone(),
                // What was refused, and works again, is not to be called refused any longer.
                replace: age >= REPLACE_AFTER || (is_own && record.status != Status::Active),
            };
            let terms = entry.terms(deadline.left(&self.env));
            let drawn = self.vault.access_token(
                request.bearer,
                &request.subject,
                &nonce,
                &record.sealed,
                draw,
                terms,
            );
            let mut issued = match drawn.await {
                Ok(issued) => issued,
                Err(error) => {
                    if let VaultError::Stored(_) = error {
                        self.env.alarm_about("sealed_token_does_not_open", &user);
                    }
                    // Other scopes and other claims say nothing of the enrolment.
                    if is_own && claims.is_none() {
                        self.note_turn(&ledger, &user, &nonce, record, &error).await;
                    }
                    return Err(error.into());
                }
            };
            entry.drawn(&issued);
            if let Some(sealed) = issued.replacement.take() {
                let mut new = self.refreshed(&user, &record, sealed, &policy);
                if !is_own && record.status != Status::Active {
                    new.status = record.status.clone();
                    new.due_at = record.due_at;
                }
                self.replace(&ledger, &user, &nonce, record, new).await;
            }
            if ledger.still_current(&user, &nonce).await? {
                return Ok(issued);
            }
        }
        Err(LedgerError::Busy.into())
    }

    /// Removes application access: the refresh token goes, the user stays enrolled without one. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`LedgerError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove_refresh_token(&self, request: &Request<'_>) -> Result<(), KeeperError> {
        let mut entry = Entry::new(&self.env, Action::RemoveRefreshToken, request);
        let removed = match self.find_ledger(request, &mut entry, Purpose::Manage).await {
            Ok((caller, ledger)) => ledger.remove_token(&caller.user).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        entry.close(removed)
    }

    /// Removes a user. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`LedgerError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove(&self, request: &Request<'_>) -> Result<(), KeeperError> {
        let mut entry = Entry::new(&self.env, Action::RemoveUser, request);
        let removed = match self.find_ledger(request, &mut entry, Purpose::Manage).await {
            Ok((caller, ledger)) => ledger.remove(&caller.user).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        entry.close(removed)
    }

    // ---- Steps that several operations share ----

    /// Who calls about whom, if the vault lets him; only then the ledger that has it.
    async fn find_ledger(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
        purpose: Purpose,
    ) -> Result<(Caller, L), KeeperError> {
        let caller = self.identify(request, entry, purpose).await?;
        let ledger = self.open(&caller.policy).await?;
        Ok((caller, ledger))
    }

    /// Who calls about whom, if the vault lets him.
    async fn identify(
        &self,
        request: &Request<'_>,
        entry: &mut Entry<'_, E>,
        purpose: Purpose,
    ) -> Result<Caller, KeeperError> {
        let terms = entry.terms(LONGEST);
        let caller = self
            .vault
            .identify(request.bearer, &request.subject, &purpose, terms);
        let caller = caller.await?;
        entry.caller(&caller);
        Ok(caller)
    }

    /// The ledger of the app with these settings, once it is seen that they are those that what it holds was made with.
    pub(crate) async fn open(&self, policy: &Policy) -> Result<L, KeeperError> {
        let ledger = self.ledger.under(&policy.store_prefix);
        self.check_fingerprint(&ledger, policy).await?;
        Ok(ledger)
    }

    /// Compares the settings with those that the ledger has seen. Costs nothing for a time after they were found right.
    async fn check_fingerprint(&self, ledger: &L, policy: &Policy) -> Result<(), KeeperError> {
        let now = self.env.elapsed();
        let covers = |seen: &Seen| seen.covers(policy, now);
        if self.seen.borrow().as_ref().is_some_and(covers) {
            return Ok(());
        }
        let current = &policy.fingerprint;
        match ledger.fingerprint().await? {
            Some(known) if known == *current => {}
            None => ledger.keep_fingerprint(current).await?,
            Some(known) => {
                let changed = ChangedSettings::between(&known, current);
                if policy.confirmed_settings.as_ref() != Some(&changed.confirmation) {
                    return Err(changed.into());
                }
                ledger.keep_fingerprint(current).await?;
                let settings = json!({"settings": changed.settings});
                self.env.event("changed_settings_confirmed", settings);
            }
        }
        *self.seen.borrow_mut() = Some(Seen::new(policy, now));
        Ok(())
    }

    /// A record with the successor of its refresh token.
    pub(crate) fn refreshed(
        &self,
        user: &User,
        old: &Record,
        sealed: SealedToken,
        policy: &Policy,
    ) -> Record {
        let now = self.env.now();
        Record {
            sealed: sealed.token,
            key_version: sealed.key_version,
            status: Status::Active,
            generation: old.generation.saturating_add(1),
            write: Nonce::for_write(&self.env),
            refreshed_at: now,
            due_at: refresh_due_at(now, policy.refresh_after_seconds, &user.id),
            ..old.clone()
        }
    }

    /// Writes down whose turn it is, once, as a sweep does: whoever asks for the user is told it then.
    async fn note_turn(
        &self,
        ledger: &L,
        user: &User,
        nonce: &Nonce,
        old: Record,
        error: &VaultError,
    ) {
        if let Verdict::Turn(status) = verdict(error, Work::Refresh)
            && status != old.status
        {
            let new = self.turned(&old, status);
            self.replace(ledger, user, nonce, old, new).await;
        }
    }

    /// A record of which it is somebody else's turn. The token and its generation stay.
    pub(crate) fn turned(&self, old: &Record, status: Status) -> Record {
        let now = self.env.now();
        Record {
            status,
            write: Nonce::for_write(&self.env),
            due_at: turn_again_at(now, old.refreshed_at, &self.env),
            ..old.clone()
        }
    }

    /// Best effort: the answer that came along is as good if this is overtaken or fails, and so is what is stored. The next
    /// draw brings another.
    async fn replace(&self, ledger: &L, user: &User, nonce: &Nonce, old: Record, new: Record) {
        let change = Change {
            user: user.clone(),
            nonce: nonce.clone(),
            claims: Vec::new(),
            edit: Edit::Replace {
                old: Box::new(old),
                new: Box::new(new),
            },
        };
        for made in ledger.settle(&[&change]).await {
            if let Err(error) = made {
                let reason = json!({"reason": error.to_string()});
                self.env.about("replacement_not_stored", user, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, StatusCode};
    use pollster::block_on;
    use serde_json::{Value, json};

    use crate::port::{BodyError, RequestBody};
    use crate::simulation::world::{App, Shared, World};

    struct Body(&'static str);

    impl RequestBody for Body {
        async fn read(self, limit: usize, _: Duration) -> Result<Bytes, BodyError> {
            if self.0.len() > limit {
                Err(BodyError::TooLong)
            } else {
                Ok(Bytes::from_static(self.0.as_bytes()))
            }
        }
    }

    /// A request over the whole API: status, and the body as JSON.
    fn ask(app: &App, world: &Shared, request: &str, body: &'static str) -> (u16, Value) {
        ask_as(app, Some(world.bearer().expose()), request, body)
    }

    fn ask_as(app: &App, bearer: Option<&str>, request: &str, body: &'static str) -> (u16, Value) {
        let (method, path) = request.split_once(' ').unwrap();
        let mut parts = Request::builder().method(method).uri(path);
        if let Some(bearer) = bearer {
            parts = parts.header("authorization", format!("bearer {bearer}"));
        }
        let (parts, ()) = parts.body(()).unwrap().into_parts();
        let response = block_on(app.handle(&parts, Body(body)));
        assert_eq!(response.headers()["cache-control"], "no-store");
        let json = if response.body().is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(response.body()).unwrap()
        };
        (response.status().as_u16(), json)
    }

    fn problem(answer: (u16, Value)) -> (u16, String) {
        (
            answer.0,
            answer.1["code"].as_str().unwrap_or_default().to_owned(),
        )
    }

    fn code(status: StatusCode, code: &str) -> (u16, String) {
        (status.as_u16(), code.to_owned())
    }

    #[test]
    fn a_whole_life() {
        let world = World::new();
        let app = world.app();
        assert_eq!(
            problem(ask(&app, &world, "GET /v1/me", "")),
            code(StatusCode::NOT_FOUND, "not_enrolled")
        );
        let (status, view) = ask(&app, &world, "PUT /v1/me", "");
        assert_eq!(status, 201);
        assert_eq!(view["status"], "active");
        assert_eq!(view["key_version"], World::version(0));
        assert_eq!(ask(&app, &world, "GET /v1/me", ""), (200, view));
        let (status, issued) = ask(&app, &world, "POST /v1/me/access-token", "");
        assert_eq!(
            (status, &issued["token_type"], &issued["expires_in"]),
            (200, &json!("Bearer"), &json!(3599))
        );
        assert_eq!(ask(&app, &world, "DELETE /v1/me/refresh-token", "").0, 204);
        assert_eq!(
            problem(ask(&app, &world, "POST /v1/me/access-token", "")),
            code(StatusCode::CONFLICT, "no_refresh_token")
        );
        assert_eq!(
            ask(&app, &world, "GET /v1/me", "").1["status"],
            "no_refresh_token"
        );
        assert_eq!(
            ask(
                &app,
                &world,
                "PUT /v1/me",
                r#"{"scope":"https://graph.microsoft.com/User.Read"}"#
            )
            .0,
            200
        );
        assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 200);
        for _ in 0..2 {
            assert_eq!(ask(&app, &world, "DELETE /v1/me", "").0, 204);
            assert_eq!(
                problem(ask(&app, &world, "POST /v1/me/access-token", "")),
                code(StatusCode::NOT_FOUND, "not_enrolled")
            );
        }
        assert!(
            world.user_rows().is_empty(),
            "{:?}",
            world.user_rows().keys()
        );
    }

    #[test]
    fn stored_rows_hold_no_token_and_are_three_a_user() {
        let world = World::new();
        let app = world.app();
        for _ in 0..3 {
            ask(&app, &world, "PUT /v1/me", "");
            world.advance(1);
        }
        let rows = world.rows.borrow();
        let of_user = world.user_rows();
        assert_eq!(
            of_user.len(),
            3,
            "a former enrolment leaves nothing: {:?}",
            of_user.keys()
        );
        for value in rows.values() {
            let text = String::from_utf8_lossy(value);
            assert!(
                !text.contains("canary") && !text.contains("44444444-4444"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_failed_exchange_leaves_every_row_as_it_was() {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        let before = world.rows.borrow().clone();
        for (status, body) in [
            (
                400,
                json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"}),
            ),
            (
                400,
                json!({"error": "interaction_required", "error_codes": [50_076], "claims": "{}"}),
            ),
            (
                401,
                json!({"error": "invalid_client", "error_codes": [7_000_215]}),
            ),
            (503, json!("<html>")),
            (
                200,
                json!({"token_type": "Bearer", "expires_in": 1, "access_token": "at"}),
            ),
        ] {
            // An outage is tried once more, and then pauses the tenant.
            let tries = if status == 503 { 2 } else { 1 };
            world
                .entra_answers
                .borrow_mut()
                .extend(std::iter::repeat_n((status, body), tries));
            assert!(ask(&app, &world, "PUT /v1/me", "").0 >= 400);
            assert_eq!(*world.rows.borrow(), before);
            world.advance(5);
        }
        world.down.borrow_mut().push("key vault");
        world.advance(3600);
        assert_eq!(
            problem(ask(&app, &world, "PUT /v1/me", "")),
            code(StatusCode::SERVICE_UNAVAILABLE, "key_vault_unavailable")
        );
        assert_eq!(*world.rows.borrow(), before);
    }

    #[test]
    fn requests_that_are_wrong_are_told_so() {
        let world = World::new();
        let app = world.app();
        let long: &'static str = Box::leak(" ".repeat(65_537).into_boxed_str());
        for (request, body, expected) in [
            ("GET /", "", code(StatusCode::NOT_FOUND, "not_found")),
            ("GET /v1/me/", "", code(StatusCode::NOT_FOUND, "not_found")),
            (
                "PATCH /v1/me",
                "",
                code(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            ),
            (
                "GET /v1/sweep",
                "",
                code(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            ),
            (
                "PUT /v1/me",
                "{",
                code(StatusCode::BAD_REQUEST, "invalid_json"),
            ),
            (
                "PUT /v1/me",
                "[]",
                code(StatusCode::BAD_REQUEST, "invalid_request"),
            ),
            (
                "PUT /v1/me",
                r#"{"scope":7}"#,
                code(StatusCode::BAD_REQUEST, "invalid_request"),
            ),
            (
                "PUT /v1/me",
                r#"{"scopes":"x"}"#,
                code(StatusCode::BAD_REQUEST, "invalid_request"),
            ),
            (
                "PUT /v1/me",
                r#"{"scope":"https://vault.azure.net/.default"}"#,
                code(StatusCode::FORBIDDEN, "not_granted"),
            ),
            (
                "POST /v1/me/access-token",
                "\u{0}",
                code(StatusCode::BAD_REQUEST, "invalid_json"),
            ),
            (
                "PUT /v1/me",
                long,
                code(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            ),
        ] {
            assert_eq!(
                problem(ask(&app, &world, request, body)),
                expected,
                "{request} {body:.20}"
            );
        }
        assert!(world.rows.borrow().is_empty());
    }

    #[test]
    fn requests_without_a_usable_token_are_401() {
        let world = World::new();
        let app = world.app();
        for request in [
            "GET /v1/me",
            "PUT /v1/me",
            "DELETE /v1/me",
            "POST /v1/me/access-token",
            "DELETE /v1/me/refresh-token",
        ] {
            assert_eq!(
                problem(ask_as(&app, None, request, "")),
                code(StatusCode::UNAUTHORIZED, "token_missing"),
                "{request}"
            );
            assert_eq!(
                problem(ask_as(&app, Some("x.y.z"), request, "")),
                code(StatusCode::UNAUTHORIZED, "token_malformed"),
                "{request}"
            );
        }
        assert_eq!(
            problem(ask_as(&app, None, "POST /v1/sweep", "")),
            code(StatusCode::UNAUTHORIZED, "sweep_not_authorized")
        );
    }

    #[test]
    fn health_names_every_setting_that_is_wrong() {
        let world = World::new();
        assert_eq!(
            ask_as(&world.app(), None, "GET /healthz", ""),
            (200, json!({"status": "ok"}))
        );
        world.settings.borrow_mut().remove("tenants");
        world.settings.borrow_mut().remove("client_id");
        let (status, body) = ask_as(&world.app(), None, "GET /healthz", "");
        assert_eq!((status, body["code"].as_str()), (500, Some("setting")));
        let detail: Vec<_> = body["detail"].as_str().unwrap().lines().collect();
        assert_eq!(detail.len(), 2, "{detail:?}");
        for (line, begin) in detail.iter().zip([
            "setting `client_id` (SPIN_VARIABLE_CLIENT_ID) is empty",
            "setting `tenants` (SPIN_VARIABLE_TENANTS) is empty",
        ]) {
            assert!(line.starts_with(begin), "{line}");
        }
    }

    #[test]
    fn damaged_rows_are_an_alarm_and_are_kept() {
        for (kind, damage, expected) in [
            ("rec.", "truncate", "record_damaged"),
            ("rec.", "flip", "record_damaged"),
            ("rec.", "newer", "record_too_new"),
            ("rec.", "lose", "record_lost"),
            ("usr.", "truncate", "record_damaged"),
            ("usr.", "newer", "record_too_new"),
        ] {
            let world = World::new();
            let app = world.app();
            ask(&app, &world, "PUT /v1/me", "");
            let key = world.keys_of(kind).remove(0);
            {
                let mut rows = world.rows.borrow_mut();
                let mut text = String::from_utf8(rows.remove(&key).unwrap()).unwrap();
                match damage {
                    "truncate" => text.truncate(text.len() / 2),
                    "newer" => text = text.replace(r#""v":1"#, r#""v":2"#),
                    "flip" => {
                        // The last character of the tag is inside the sealed token.
                        let end = text.find(r#"","key_version""#).unwrap();
                        let other = if &text[end - 2..end - 1] == "A" {
                            "B"
                        } else {
                            "A"
                        };
                        text.replace_range(end - 2..end - 1, other);
                    }
                    _ => text.clear(),
                }
                if damage != "lose" {
                    rows.insert(key, text.into_bytes());
                }
            }
            let before = world.rows.borrow().clone();
            let (status, body) = ask(&app, &world, "POST /v1/me/access-token", "");
            assert_eq!(
                (status, body["code"].as_str()),
                (500, Some(expected)),
                "{kind} {damage}"
            );
            assert_eq!(*world.rows.borrow(), before, "{kind} {damage}");
            if damage != "newer" || kind == "rec." {
                assert!(
                    ask(&app, &world, "PUT /v1/me", "").0 < 300,
                    "enrolling mends it: {kind} {damage}"
                );
                assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 200);
            }
        }
    }

    #[test]
    fn a_request_has_one_deadline_over_all_its_calls() {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        // Storage takes ten seconds before the record is there, and then the vault has what is left.
        *world.before_store.borrow_mut() = Some((1, Box::new(|world: &World| world.advance(20))));
        world.limits.borrow_mut().clear();
        assert_eq!(ask(&app, &world, "POST /v1/me/access-token", "").0, 200);
        let limits = world.limits.borrow().last().copied().unwrap();
        assert_eq!(limits.first_byte, Duration::from_secs(5));
    }

    #[test]
    fn a_request_has_an_id_its_own_if_that_can_be_written() {
        let world = World::new();
        let app = world.app();
        let id_of = |ids: &[&str]| {
            let mut request = Request::get("/v1/me");
            for id in ids {
                request = request.header("x-request-id", *id);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let response = block_on(app.handle(&parts, Body("")));
            let id = response.headers()["x-request-id"]
                .to_str()
                .unwrap()
                .to_owned();
            let body: Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["request_id"], id);
            id
        };
        let longest = "i".repeat(64);
        for id in ["7", "a.B-c_9", &longest] {
            assert_eq!(id_of(&[id]), id);
        }
        let too_long = "i".repeat(65);
        for ids in [
            &[][..],
            &[""],
            &["a b"],
            &["\"x"],
            &[&*too_long],
            &["a", "b"],
        ] {
            let own = id_of(ids);
            assert_eq!(own.len(), 36, "{ids:?}: {own}");
            assert_ne!(own, id_of(ids));
        }
    }

    #[test]
    fn what_a_caller_is_not_told_is_in_the_log_under_his_requests_id() {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        world.disabled.set(Some(0));
        let app = world.app();
        let (status, body) = ask(&app, &world, "POST /v1/me/access-token", "");
        assert_eq!((status, &body["code"]), (500, &json!("key_disabled")));
        let detail = body["detail"].as_str().unwrap();
        assert!(!detail.contains("obo-"), "{detail}");
        let log = world.log.borrow();
        let line: Value = serde_json::from_str(log.last().unwrap()).unwrap();
        assert_eq!(line["event"], "request_failed");
        assert_eq!(line["request_id"], body["request_id"]);
        assert!(line["reason"].as_str().unwrap().contains("`obo-"), "{line}");
    }

    #[test]
    fn a_removal_that_was_acknowledged_while_entra_was_asked_holds() {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        // A draw reads head, off, rec, then the head again: that is when the user is gone.
        *world.before_store.borrow_mut() =
            Some((3, Box::new(|world: &World| world.rows.borrow_mut().clear())));
        let answer = ask(&app, &world, "POST /v1/me/access-token", "");
        assert_eq!(problem(answer), code(StatusCode::NOT_FOUND, "not_enrolled"));
    }

    #[test]
    fn a_replacement_is_stored_when_the_stored_token_is_a_day_old() {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        let rows = world.rows.borrow().clone();
        world.advance(86_399);
        ask(&app, &world, "POST /v1/me/access-token", "");
        assert_eq!(*world.rows.borrow(), rows);
        world.advance(1);
        let view = ask(&app, &world, "GET /v1/me", "").1;
        ask(&app, &world, "POST /v1/me/access-token", "");
        assert_ne!(
            ask(&app, &world, "GET /v1/me", "").1["refreshed_at"],
            view["refreshed_at"]
        );
        assert_eq!(world.user_rows().len(), 3);
        world.redeemed.borrow_mut().clear();
        ask(&app, &world, "POST /v1/me/access-token", "");
        assert_ne!(*world.redeemed.borrow(), ["rt-canary-1"]);
    }

    /// Whatever write fails, an enrolment that was acknowledged stays usable, and so does the one before.
    #[test]
    fn a_storage_failure_at_any_step_loses_nothing() {
        for step in 0..12 {
            let world = World::new();
            let app = world.app();
            ask(&app, &world, "PUT /v1/me", "");
            world.advance(1);
            world.store_fails_after.set(Some(step));
            let (status, _) = ask(&app, &world, "PUT /v1/me", "");
            world.store_fails_after.set(None);
            assert!(matches!(status, 200 | 503), "step {step}: {status}");
            assert_eq!(
                ask(&app, &world, "POST /v1/me/access-token", "").0,
                200,
                "step {step}"
            );
            assert!(!world.keys_of("due.").is_empty(), "step {step}");
        }
    }

    #[test]
    fn a_removal_that_failed_is_told_and_can_be_repeated() {
        for step in 0..2 {
            let world = World::new();
            let app = world.app();
            ask(&app, &world, "PUT /v1/me", "");
            world.store_fails_after.set(Some(step));
            assert_eq!(
                problem(ask(&app, &world, "DELETE /v1/me", "")),
                code(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
            );
            let line = world.log.borrow().last().cloned();
            assert!(
                line.unwrap().contains("injected"),
                "the operator is told why"
            );
            world.store_fails_after.set(None);
            assert_eq!(ask(&app, &world, "DELETE /v1/me", "").0, 204);
            assert_eq!(
                problem(ask(&app, &world, "POST /v1/me/access-token", "")),
                code(StatusCode::NOT_FOUND, "not_enrolled")
            );
        }
    }

    #[test]
    fn users_do_not_see_each_other() {
        let world = World::new();
        let app = world.app();
        ask(&app, &world, "PUT /v1/me", "");
        let other = world.bearer_of("99999999-4444-4444-4444-444444444444");
        assert_eq!(
            problem(ask_as(&app, Some(other.expose()), "GET /v1/me", "")),
            code(StatusCode::NOT_FOUND, "not_enrolled")
        );
        assert_eq!(
            ask_as(&app, Some(other.expose()), "DELETE /v1/me", "").0,
            204
        );
        assert_eq!(ask(&app, &world, "GET /v1/me", "").0, 200);
    }
}
