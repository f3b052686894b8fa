//! The keeper: storage, step by step as facts/storage-protocol.md has it.
//!
//! Only enrolment writes a head and only removal deletes one. Everything else lives under keys private to one enrolment,
//! so that a writer who was overtaken can only litter a place that nobody reads. The order of the steps is what makes it
//! hold without compare-and-swap: do not reorder, retry or undo one without the checker of that page.

pub(crate) mod course;
pub(crate) mod holds;
pub(crate) mod plan;
pub mod report;
pub(crate) mod rules;
pub mod status;
pub mod sweep;
pub(crate) mod turns;
pub(crate) mod verdict;
pub(crate) mod visit;

use futures_util::future::join;
use serde_json::json;
use thiserror::Error;

use crate::deadline::{Deadline, LONGEST};
use crate::error::VaultError;
use crate::identity::User;
use crate::identity::{Nonce, StorageId};
use crate::keeper::rules::Rules;
use crate::ledger::key_value::layout::{Layout, Marker, Tag};
use crate::ledger::key_value::store::{Store, StoreError};
use crate::ledger::key_value::wave::{Change, What};
use crate::ledger::record::{Head, Record, Status, Unreadable};
use crate::ledger::schedule::refresh_due_at;
use crate::port::{Clock, Log, Random, Timer};
use crate::secret::Bearer;
use crate::vault::port::{Draw, Issued, Policy, SealedToken, VaultPort};

/// Age of a stored refresh token from which a successor is stored when one comes along with an access token, in seconds.
const REPLACE_AFTER: u64 = 86_400;
/// Times that a read starts again because the user enrolled meanwhile.
const ATTEMPTS: u32 = 3;

/// What a keeper needs besides a vault and a store.
pub trait Environment: Clock + Timer + Random + Log {}
impl<E: Clock + Timer + Random + Log> Environment for E {}

/// Keeps the records of users: the HTTP component, without HTTP.
pub struct Keeper<V, S, E> {
    pub(crate) vault: V,
    pub(crate) store: S,
    pub(crate) env: E,
    /// How it sweeps.
    pub(crate) rules: Rules,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeeperError {
    /// The vault refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Storage failed. What was asked for may have happened.
    #[error("storage does not answer as it should; try again later")]
    Store(#[from] StoreError),
    /// The user is not enrolled, or is none of the caller's: the two are not told apart.
    #[error("this user is not enrolled: enrol with PUT /v1/me")]
    NotEnrolled,
    /// Application access was removed for this enrolment.
    #[error("application access was removed for this user: enrol again with PUT /v1/me")]
    NoRefreshToken,
    /// What is stored cannot be read. It was kept.
    #[error("the stored record cannot be read; it was kept")]
    RecordDamaged,
    /// A newer version of behalf wrote it.
    #[error("the stored record was written by a newer version of behalf: upgrade this one")]
    RecordTooNew,
    /// The head names a record that is not there.
    #[error("the stored record is missing: enrol again with PUT /v1/me")]
    RecordLost,
    /// All users of the tenant are being removed.
    #[error("all users of this tenant are being removed; enrol after that has ended")]
    TenantRemoved,
    /// The user kept enrolling while this was tried.
    #[error("this user is being enrolled right now; try again")]
    Busy,
}

/// What a user may know of an enrolment. Never a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The state; none: application access was removed.
    pub record: Option<Record>,
    /// Unix time in seconds of the enrolment.
    pub enrolled_at: u64,
}

impl<V: VaultPort, S: Store, E: Environment> Keeper<V, S, E> {
    /// A keeper over a vault and a store.
    pub const fn new(vault: V, store: S, env: E) -> Self {
        Self {
            vault,
            store,
            env,
            rules: Rules::SHIPPED,
        }
    }

    /// Enrols the caller's user. True if there was no enrolment before.
    ///
    /// A failed exchange leaves the former enrolment as it was: nothing is written before the vault has answered.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`KeeperError::Store`] the user may be enrolled or not; the caller tries again.
    pub async fn enrol(
        &self,
        bearer: &Bearer,
        scope: Option<&str>,
    ) -> Result<(View, bool), KeeperError> {
        let now = self.env.now();
        let nonce = Nonce::for_enrolment(now, &self.env);
        let enrolment = self.vault.enrol(bearer, &nonce, scope, LONGEST).await?;
        let (user, layout) = (&enrolment.user, Layout::new(&enrolment.policy.store_prefix));
        let record = Record {
            tenant: user.tenant.clone(),
            sealed: enrolment.sealed.token,
            key_version: enrolment.sealed.key_version,
            scope: enrolment.scope,
            status: Status::Active,
            generation: 1,
            write: Nonce::for_write(&self.env),
            enrolled_at: now,
            refreshed_at: now,
            due_at: refresh_due_at(now, enrolment.policy.refresh_after_seconds, &user.id),
        };

        let (head_key, bar_key) = (layout.head(user), layout.bar(&user.tenant));
        if self.store.get(&bar_key).await?.is_some() {
            return Err(KeeperError::TenantRemoved);
        }
        let former = match self
            .store
            .get(&head_key)
            .await?
            .map(|json| Head::from_json(&json))
        {
            None => None,
            Some(Ok(head)) => Some(Some(head.nonce)),
            // A head that cannot be read names nothing any more. Enrolling is what mends it.
            Some(Err(Unreadable::Damaged)) => Some(None),
            Some(Err(Unreadable::Newer)) => return Err(KeeperError::RecordTooNew),
        };
        self.store
            .set(&layout.marker(&marker_of(user, &nonce, &record)), &[])
            .await?;
        self.store
            .set(&layout.record(&user.id, &nonce), &record.to_json())
            .await?;
        // The commit. Never retried and never undone: it may have happened.
        let head = Head {
            nonce,
            tenant: user.tenant.clone(),
            created_at: now,
        };
        self.store.set(&head_key, &head.to_json()).await?;
        // Again, because a removal of the tenant lists the heads once. This is a removal of its own.
        if self.store.get(&bar_key).await?.is_some() {
            self.remove_user(&layout, user).await?;
            return Err(KeeperError::TenantRemoved);
        }
        let created = former.is_none();
        if let Some(former) = former.flatten() {
            self.forget(&layout, user, &former).await;
        }
        self.audit("enrolled", user);
        Ok((
            View {
                enrolled_at: now,
                record: Some(record),
            },
            created,
        ))
    }

    /// What is stored of the caller's user.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn show(&self, bearer: &Bearer) -> Result<View, KeeperError> {
        let (user, policy) = self.vault.identify(bearer, LONGEST).await?;
        let layout = Layout::new(&policy.store_prefix);
        let (head, current) = self.current(&layout, &user).await?;
        let record = match current {
            Ok(record) => Some(record),
            Err(KeeperError::NoRefreshToken) => None,
            Err(error) => return Err(error),
        };
        Ok(View {
            enrolled_at: record
                .as_ref()
                .map_or(head.created_at, |record| record.enrolled_at),
            record,
        })
    }

    /// Draws an access token for the caller's user.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn draw(
        &self,
        bearer: &Bearer,
        scope: Option<String>,
        claims: Option<String>,
    ) -> Result<Issued, KeeperError> {
        let deadline = Deadline::within(&self.env, LONGEST);
        let (user, policy) = self.vault.identify(bearer, LONGEST).await?;
        let layout = Layout::new(&policy.store_prefix);
        for _ in 0..ATTEMPTS {
            let (head, current) = self.current(&layout, &user).await?;
            let record = current?;
            let age = self.env.now().saturating_sub(record.refreshed_at);
            let draw = Draw {
                scope: scope.clone(),
                claims: claims.clone(),
                replace: age >= REPLACE_AFTER,
            };
            let within = deadline.left(&self.env);
            let mut issued = match self
                .vault
                .access_token(bearer, &head.nonce, &record.sealed, draw, within)
                .await
            {
                Ok(issued) => issued,
                Err(error) => {
                    if matches!(error, VaultError::Stored(_)) {
                        self.alarm("sealed_token_does_not_open", &user);
                    }
                    return Err(error.into());
                }
            };
            if let Some(sealed) = issued.replacement.take() {
                let change = Change {
                    user: user.clone(),
                    nonce: head.nonce.clone(),
                    visited: Vec::new(),
                    what: What::Replace {
                        new: Box::new(self.refreshed(&user, &record, sealed, &policy)),
                        old: Box::new(record),
                    },
                };
                // Written, overtaken or failed: the access token is as good, and so is the stored token. The next draw
                // brings another successor.
                for made in self.apply(&layout, &[&change]).await {
                    if let Err(error) = made {
                        self.env.line(&json!({"event": "replacement_not_stored", "tenant": user.tenant.as_str(), "user": user.id.as_str(), "reason": error.to_string()}).to_string());
                    }
                }
            }
            if self.is_still_current(&layout, &user, &head.nonce).await? {
                self.audit("access_token_drawn", &user);
                return Ok(issued);
            }
        }
        Err(KeeperError::Busy)
    }

    /// Removes application access: the refresh token goes, the user stays enrolled without one. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`KeeperError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove_refresh_token(&self, bearer: &Bearer) -> Result<(), KeeperError> {
        let (user, policy) = self.vault.identify(bearer, LONGEST).await?;
        let layout = Layout::new(&policy.store_prefix);
        if let Some(head) = self.head(&layout, &user).await? {
            self.remove_token(&layout, &user, &head.nonce).await?;
        }
        self.audit("refresh_token_removed", &user);
        Ok(())
    }

    /// Removes the caller's user. Idempotent.
    ///
    /// # Errors
    /// [`KeeperError`]. After [`KeeperError::Store`] it may have happened; repeat until it succeeds.
    pub async fn remove(&self, bearer: &Bearer) -> Result<(), KeeperError> {
        let (user, policy) = self.vault.identify(bearer, LONGEST).await?;
        let layout = Layout::new(&policy.store_prefix);
        self.remove_user(&layout, &user).await
    }

    // ---- Steps that several operations share ----

    /// The last look before anything of an enrolment is released, when the vault has answered. False: the user enrolled
    /// again meanwhile.
    ///
    /// A removal that was acknowledged before this began is seen, because the two reads are one after the other in this
    /// order: `off` is cleared only after the head has left the enrolment, so whoever finds no `off`, and then the head in
    /// its place, has found both. Side by side, or the head first, a removal and the enrolment after it can pass between.
    async fn is_still_current(
        &self,
        layout: &Layout,
        user: &User,
        nonce: &Nonce,
    ) -> Result<bool, KeeperError> {
        let off = self.store.get(&layout.off(&user.id, nonce)).await?;
        match self.head(layout, user).await? {
            None => Err(KeeperError::NotEnrolled),
            Some(head) if head.nonce == *nonce => match off {
                None => Ok(true),
                Some(_) => Err(KeeperError::NoRefreshToken),
            },
            Some(_) => Ok(false),
        }
    }

    /// Steps 2 and 3 of "Remove refresh token".
    pub(crate) async fn remove_token(
        &self,
        layout: &Layout,
        user: &User,
        nonce: &Nonce,
    ) -> Result<(), StoreError> {
        // The commit. Its value is for whoever clears it away: whose head to look for.
        let tenant = user.tenant.as_str().as_bytes();
        self.store.set(&layout.off(&user.id, nonce), tenant).await?;
        let key = layout.record(&user.id, nonce);
        let record = self.store.get(&key).await?;
        self.store.delete(&key).await?;
        self.forget_marker(layout, user, nonce, record.as_deref())
            .await
    }

    /// "Delete".
    pub(crate) async fn remove_user(
        &self,
        layout: &Layout,
        user: &User,
    ) -> Result<(), KeeperError> {
        let key = layout.head(user);
        let head = self
            .store
            .get(&key)
            .await?
            .and_then(|json| Head::from_json(&json).ok());
        // The commit; also when there seems to be none.
        self.store.delete(&key).await?;
        if let Some(head) = head {
            self.forget(layout, user, &head.nonce).await;
        }
        self.audit("user_removed", user);
        Ok(())
    }

    pub(crate) async fn head(
        &self,
        layout: &Layout,
        user: &User,
    ) -> Result<Option<Head>, KeeperError> {
        let json = self.store.get(&layout.head(user)).await?;
        json.map(|json| Head::from_json(&json))
            .transpose()
            .map_err(Into::into)
    }

    /// The head, and the record that it names or why there is none to use, which is an alarm where it should not be.
    pub(crate) async fn current(
        &self,
        layout: &Layout,
        user: &User,
    ) -> Result<(Head, Result<Record, KeeperError>), KeeperError> {
        for _ in 0..ATTEMPTS {
            let head = self
                .head(layout, user)
                .await?
                .ok_or(KeeperError::NotEnrolled)?;
            let (off_key, record_key) = (
                layout.off(&user.id, &head.nonce),
                layout.record(&user.id, &head.nonce),
            );
            let (off, record) = join(self.store.get(&off_key), self.store.get(&record_key)).await;
            if off?.is_some() {
                return Ok((head, Err(KeeperError::NoRefreshToken)));
            }
            if let Some(json) = record? {
                let record = Record::from_json(&json).map_err(|unreadable| {
                    self.alarm("record_not_readable", user);
                    unreadable.into()
                });
                return Ok((head, record));
            }
            // Gone between the reads, because the token was removed, the user enrolled again or was removed; or lost. A
            // removal is looked for before the head, since nothing clears it away while the head names its enrolment.
            let off = self.store.get(&off_key).await?;
            match self.head(layout, user).await? {
                None => return Err(KeeperError::NotEnrolled),
                Some(again) if again.nonce == head.nonce => {
                    if off.is_some() {
                        return Ok((head, Err(KeeperError::NoRefreshToken)));
                    }
                    self.alarm("record_lost", user);
                    return Ok((head, Err(KeeperError::RecordLost)));
                }
                Some(_) => {}
            }
        }
        Err(KeeperError::Busy)
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

    /// Clears what belongs to an enrolment that no head names any more. What fails here is litter for a sweep.
    async fn forget(&self, layout: &Layout, user: &User, nonce: &Nonce) {
        let outcome = async {
            let key = layout.record(&user.id, nonce);
            let record = self.store.get(&key).await?;
            self.store.delete(&key).await?;
            self.store.delete(&layout.off(&user.id, nonce)).await?;
            self.forget_marker(layout, user, nonce, record.as_deref())
                .await
        };
        if let Err(error) = outcome.await {
            self.env.line(&json!({"event": "litter_left", "user": user.id.as_str(), "reason": error.to_string()}).to_string());
        }
    }

    async fn forget_marker(
        &self,
        layout: &Layout,
        user: &User,
        nonce: &Nonce,
        record: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        match record.map(Record::from_json) {
            Some(Ok(record)) => {
                self.store
                    .delete(&layout.marker(&marker_of(user, nonce, &record)))
                    .await
            }
            Some(Err(_)) | None => Ok(()),
        }
    }

    pub(crate) fn audit(&self, event: &str, user: &User) {
        self.env.line(
            &json!({"event": event, "tenant": user.tenant.as_str(), "user": user.id.as_str()})
                .to_string(),
        );
    }

    pub(crate) fn alarm(&self, event: &str, user: &User) {
        self.env.line(&json!({"level": "alarm", "event": event, "tenant": user.tenant.as_str(), "user": user.id.as_str()}).to_string());
    }
}

/// The marker that goes with a record.
pub(crate) fn marker_of(user: &User, nonce: &Nonce, record: &Record) -> Marker {
    let id: StorageId = user.id.clone();
    Marker {
        time: record.due_at,
        tag: Tag::of(record),
        key_version: record.key_version.clone(),
        user: User {
            tenant: user.tenant.clone(),
            id,
        },
        nonce: nonce.clone(),
        write: record.write.clone(),
    }
}

impl From<Unreadable> for KeeperError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Damaged => Self::RecordDamaged,
            Unreadable::Newer => Self::RecordTooNew,
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
            world.rows.borrow().is_empty(),
            "{:?}",
            world.rows.borrow().keys()
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
        assert_eq!(
            rows.len(),
            3,
            "a former enrolment leaves nothing: {:?}",
            rows.keys()
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
                code(StatusCode::FORBIDDEN, "scope_not_granted"),
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
        assert_eq!(world.rows.borrow().len(), 3);
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
