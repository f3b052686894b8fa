//! Who did what: a line for every enrolment, draw and removal, and for everything else that a caller was refused whose token
//! was verified. README, "Audit", has the table of them.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::error::{CallerError, VaultError};
use crate::identity::{Guid, TenantId, User};
use crate::journal::Journal as _;
use crate::keeper::{KeeperError, Request};
use crate::ledger::LedgerError;
use crate::port::Environment;
use crate::vault::call::apis::is_name;
use crate::vault::call::port::Allowed;
use crate::vault::port::{Caller, Issued, Subject, Terms};
use crate::vault::scope::Scope;

/// What is done: the member `action` of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Enrol,
    Show,
    Draw,
    Call,
    RemoveRefreshToken,
    RemoveUser,
    RemoveTenant,
    Status,
    Sweep,
}

/// What is told: the member `event` of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A user was enrolled.
    Enrolled,
    /// An access token was released.
    AccessTokenDrawn,
    /// An API was called, and answered.
    ApiCalled,
    /// Application access was removed.
    RefreshTokenRemoved,
    /// A sweep removed a refresh token that had been refused for half a year.
    RefreshTokenExpired,
    /// A user was removed.
    UserRemoved,
    /// Users of a tenant were removed, as many as there was time for.
    TenantRemoved,
    /// What was asked for was refused.
    Refused,
    /// What was asked for failed. After a removal or an enrolment it may have happened.
    Failed,
}

impl Action {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 9] = [
        Self::Enrol,
        Self::Show,
        Self::Draw,
        Self::Call,
        Self::RemoveRefreshToken,
        Self::RemoveUser,
        Self::RemoveTenant,
        Self::Status,
        Self::Sweep,
    ];

    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Enrol => "enrol",
            Self::Show => "show",
            Self::Draw => "draw",
            Self::Call => "call",
            Self::RemoveRefreshToken => "remove_refresh_token",
            Self::RemoveUser => "remove_user",
            Self::RemoveTenant => "remove_tenant",
            Self::Status => "status",
            Self::Sweep => "sweep",
        }
    }

    /// What is told when it was done; none: nothing, because it gives nothing away and changes nothing.
    fn done(self) -> Option<Event> {
        match self {
            Self::Enrol => Some(Event::Enrolled),
            Self::Draw => Some(Event::AccessTokenDrawn),
            Self::Call => Some(Event::ApiCalled),
            Self::RemoveRefreshToken => Some(Event::RefreshTokenRemoved),
            Self::RemoveUser => Some(Event::UserRemoved),
            Self::RemoveTenant => Some(Event::TenantRemoved),
            Self::Show | Self::Status | Self::Sweep => None,
        }
    }
}

impl Event {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 9] = [
        Self::Enrolled,
        Self::AccessTokenDrawn,
        Self::ApiCalled,
        Self::RefreshTokenRemoved,
        Self::RefreshTokenExpired,
        Self::UserRemoved,
        Self::TenantRemoved,
        Self::Refused,
        Self::Failed,
    ];

    /// As it is written. It stays the same from version to version.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::AccessTokenDrawn => "access_token_drawn",
            Self::ApiCalled => "api_called",
            Self::RefreshTokenRemoved => "refresh_token_removed",
            Self::RefreshTokenExpired => "refresh_token_expired",
            Self::UserRemoved => "user_removed",
            Self::TenantRemoved => "tenant_removed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    fn of(error: &KeeperError) -> Self {
        match error {
            KeeperError::Vault(
                VaultError::Caller(_) | VaultError::User(_) | VaultError::Organisation(_),
            )
            | KeeperError::Remembered(_)
            | KeeperError::Ledger(
                LedgerError::NotEnrolled | LedgerError::NoRefreshToken | LedgerError::TenantRemoved,
            ) => Self::Refused,
            KeeperError::Vault(
                VaultError::Stored(_)
                | VaultError::Operator(_)
                | VaultError::Upstream(_)
                | VaultError::Api(_),
            )
            | KeeperError::Ledger(
                LedgerError::Store(_)
                | LedgerError::RecordDamaged
                | LedgerError::RecordTooNew
                | LedgerError::RecordLost
                | LedgerError::Busy,
            )
            | KeeperError::ChangedSettings(_) => Self::Failed,
        }
    }
}

/// A line that is being made while a request is served.
pub(crate) struct Entry<'a, E> {
    env: &'a E,
    action: Action,
    request: &'a Request<'a>,
    correlation_id: Guid,
    started: Duration,
    /// Whether the caller's token was verified. Nothing is told of others.
    is_known: bool,
    more: Map<String, Value>,
}

impl<'a, E: Environment> Entry<'a, E> {
    pub(crate) fn new(env: &'a E, action: Action, request: &'a Request<'a>) -> Self {
        Self {
            env,
            action,
            request,
            correlation_id: Guid::random(env),
            started: env.elapsed(),
            is_known: false,
            more: Map::new(),
        }
    }

    /// For a call of the vault.
    pub(crate) fn terms(&self, within: Duration) -> Terms {
        Terms {
            within,
            correlation_id: Some(self.correlation_id.clone()),
        }
    }

    /// Who calls about whom is known now.
    pub(crate) fn caller(&mut self, caller: &Caller) {
        self.app(caller.app.as_ref());
        self.rule(caller.rule.as_deref());
        self.user(&caller.user);
    }

    /// Which app calls is known now.
    pub(crate) fn app(&mut self, app: Option<&Guid>) {
        self.is_known = true;
        if let Some(app) = app {
            self.put("app", app.as_str());
        }
    }

    /// What it is about is a tenant as a whole.
    pub(crate) fn tenant(&mut self, tenant: &TenantId) {
        self.put("tenant", tenant.as_str());
    }

    /// The scopes that it is about, unless they are none: then they may be anything.
    pub(crate) fn scope(&mut self, scope: &str) {
        if let Ok(scope) = Scope::asked(scope) {
            self.put("resource", scope.resource());
            self.put("scope", scope.as_str());
        }
    }

    /// What was drawn, now or before.
    pub(crate) fn drawn(&mut self, issued: &Issued, cached: bool) {
        self.rule(Some(&issued.rule));
        self.cached(cached);
    }

    /// Which API is called, if that can be one's name: else it may be anything.
    pub(crate) fn api(&mut self, name: &str) {
        if is_name(name) {
            self.put("api", name);
        }
    }

    /// What allows the call. The path is told where the setting says so: it names people.
    pub(crate) fn allowed(&mut self, allowed: &Allowed) {
        self.put("pattern", &allowed.pattern);
        if let Some(path) = &allowed.path {
            self.put("path", path);
        }
        self.scope(&allowed.scope);
    }

    /// Whether the access token of a call is one that was drawn before.
    pub(crate) fn cached(&mut self, cached: bool) {
        self.more.insert("cached".into(), cached.into());
    }

    /// What the API answered.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.more.insert("status".into(), status.as_u16().into());
    }

    /// How many users of a tenant were removed, and how many are left.
    pub(crate) fn removal(&mut self, removed: u64, remaining: u64) {
        self.more.insert("removed".into(), removed.into());
        self.more.insert("remaining".into(), remaining.into());
    }

    /// A user of a tenant was removed.
    pub(crate) fn removed(&self, user: &User) {
        let line = json!({"request_id": self.request.id, "action": self.action.name()});
        self.env.about(Event::UserRemoved.name(), user, line);
    }

    /// The end: the line is written.
    pub(crate) fn close<T>(mut self, outcome: Result<T, KeeperError>) -> Result<T, KeeperError> {
        match &outcome {
            Err(KeeperError::Vault(VaultError::Caller(CallerError::NotGranted(refused)))) => {
                self.refused(refused.client.as_ref(), refused.user.as_ref());
            }
            Err(KeeperError::Vault(VaultError::Caller(CallerError::CallNotAllowed(refused)))) => {
                self.refused(refused.client.as_ref(), refused.user.as_ref());
                self.put("defect", refused.defect.name());
            }
            _ => {}
        }
        let (event, code) = match &outcome {
            Ok(_) => (self.action.done(), "done"),
            Err(error) => (Some(Event::of(error)), error.code()),
        };
        if let Some(event) = event
            && self.is_known
        {
            let took = self.env.elapsed().saturating_sub(self.started);
            let acts = match (self.action, &self.request.subject) {
                (Action::RemoveTenant | Action::Status | Action::Sweep, _)
                | (_, Subject::User(_)) => "app",
                (_, Subject::Me) => "delegated",
            };
            let mut line = json!({
                "action": self.action.name(), "outcome": code, "callers": acts, "request_id": self.request.id,
                "correlation_id": self.correlation_id.as_str(), "milliseconds": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            });
            if let Some(line) = line.as_object_mut() {
                line.append(&mut self.more);
            }
            self.env.event(event.name(), line);
        }
        outcome
    }

    /// Whoever was refused is known, too.
    fn refused(&mut self, client: Option<&Guid>, user: Option<&User>) {
        self.app(client);
        if let Some(user) = user {
            self.user(user);
        }
    }

    fn user(&mut self, user: &User) {
        self.tenant(&user.tenant);
        self.put("user", user.id.as_str());
    }

    fn rule(&mut self, rule: Option<&str>) {
        if let Some(rule) = rule {
            self.put("rule", rule);
        }
    }

    fn put(&mut self, member: &str, text: &str) {
        self.more.insert(member.into(), text.into());
    }
}
