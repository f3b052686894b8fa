//! `behalf user`.

use super::Failure;
use super::operator::{Asking, guid};
use super::round::{go_on, in_steps, whole};
use super::screen::{ago, say};
use crate::graph::Graph;
use crate::operator::{Enrolment, OperationError, Operator};
use crate::outbound::OutboundClient;
use crate::remote::Origin;
use behalf_core::identity::{Guid, TenantId};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const REVOKE_EXAMPLES: &str = "\
Examples:
  behalf user revoke 11111111-1111-4111-8111-111111111111 44444444-4444-4444-8444-444444444444
  behalf user revoke --remove --app https://behalf.example <TENANT> <OBJECT-ID>
  behalf user revoke --dry-run <TENANT> <OBJECT-ID>

Who asks needs Microsoft Graph's application permission User.RevokeSessions.All in the user's tenant, and the app role
Behalf.Admin. It is about all apps of the user: Microsoft Graph revokes no single app's sessions. To end what this app may
do and nothing else, DELETE /v1/users/TENANT/OBJECT-ID/refresh-token is enough.

Exit codes: 0 all of it is done, 1 something is not (what, and why, is told; run it again), 2 the command line or a setting is
wrong, 130 it was interrupted.";

/// What to do with users.
#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Revoke a user's sign-in sessions at Microsoft Entra ID, and show what the app has of the user.
    ///
    /// Refresh tokens of before are dead within minutes, at every app; access tokens end by themselves, within the hour or so. The
    /// app finds out when it next asks Entra ID for the user: the record is kept, and says that the user has to sign in again.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(Box<Revoke>),
}

impl User {
    /// Does it.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Revoke(revoke) => revoke.run().await,
        }
    }
}

/// The options of `behalf user revoke`.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The user's tenant.
    #[arg(value_name = "TENANT", value_parser = guid)]
    tenant: TenantId,

    /// The user's object id there.
    #[arg(value_name = "OBJECT-ID", value_parser = guid)]
    object: Guid,

    /// Remove the app's record of the user, too.
    #[arg(long)]
    remove: bool,

    /// Microsoft Graph, of which each cloud has its own.
    #[arg(long, value_name = "URL", env = "BEHALF_GRAPH", default_value = "https://graph.microsoft.com", value_parser = Origin::parse)]
    graph: Origin,

    #[command(flatten)]
    asking: Asking,

    /// Get the tokens that this needs and show what the app has of the user; change nothing.
    #[arg(long)]
    dry_run: bool,

    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// What became of it; none: it was not tried.
#[derive(Default)]
struct Outcome {
    revoked: Option<Result<(), Failure>>,
    removed: Option<Result<(), OperationError>>,
    enrolment: Option<Result<Option<Enrolment>, OperationError>>,
}

impl Revoke {
    async fn run(self) -> Result<(), Failure> {
        super::begin_log();
        // Both tokens come first: then little is left half-done.
        let graph = self.graph().await;
        let operator = self.asking.open(Some(&self.tenant)).await?;
        let (stops, mut outcome) = (Cell::new(false), Outcome::default());
        let doing = self.act(graph, &operator, &stops, &mut outcome);
        let ended = in_steps(doing, &stops).await;
        if self.json {
            say(&self.to_json(&outcome).to_string())?;
        } else {
            say(&self.to_text(&outcome))?;
        }
        let errors = outcome.errors();
        for error in &errors {
            tracing::error!("{error}");
        }
        ended.and(whole(errors.is_empty()))
    }

    async fn graph(&self) -> Result<Graph, Failure> {
        let identity = &self.asking.identity;
        let client = identity.client()?;
        let (tenant, graph) = (Ok(self.tenant.clone()), self.graph.as_str());
        let token = identity.token(&client, tenant, graph, "--graph").await?;
        Ok(Graph::new(
            client,
            self.graph.clone(),
            &self.tenant,
            &token,
        )?)
    }

    /// Each part is tried, whatever became of the one before: a user whose sessions cannot be revoked is better removed than not.
    async fn act(
        &self,
        graph: Result<Graph, Failure>,
        operator: &Operator<OutboundClient>,
        stops: &Cell<bool>,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let (tenant, object) = (&self.tenant, &self.object);
        outcome.revoked = match graph {
            Err(error) => Some(Err(error)),
            Ok(_) if self.dry_run => None,
            Ok(graph) => Some(graph.revoke_sessions(object).await.map_err(Into::into)),
        };
        go_on(stops)?;
        if self.remove && !self.dry_run {
            outcome.removed = Some(operator.remove_user(tenant, object).await);
        }
        go_on(stops)?;
        outcome.enrolment = Some(operator.user(tenant, object).await);
        Ok(())
    }

    /// Without the user's object id, which a log of what was run need not have.
    fn to_json(&self, outcome: &Outcome) -> Value {
        let Outcome {
            revoked,
            removed,
            enrolment,
        } = outcome;
        let errors = outcome.errors();
        json!({
            "tenant": self.tenant.as_str(), "dry_run": self.dry_run,
            "revoked": matches!(revoked, Some(Ok(()))), "removed": matches!(removed, Some(Ok(()))),
            "enrolment": enrolment.as_ref().and_then(|it| it.as_ref().ok()?.as_ref()), "errors": errors,
        })
    }

    fn to_text(&self, outcome: &Outcome) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.unwrap_or_default().as_secs();
        let word = |is_done: Option<bool>, done: &str| match is_done {
            Some(true) => done.to_owned(),
            None if self.dry_run => "would be ".to_owned() + done,
            Some(false) | None => "NOT ".to_owned() + done,
        };
        let is_revoked = outcome.revoked.as_ref().map(Result::is_ok);
        let mut lines = vec![format!("sessions  {}", word(is_revoked, "revoked"))];
        if self.remove {
            let is_removed = outcome.removed.as_ref().map(Result::is_ok);
            lines.push(format!("record    {}", word(is_removed, "removed")));
        }
        lines.push(match &outcome.enrolment {
            None => "the app   was not asked what it has of the user".to_owned(),
            Some(Err(_)) => "the app   does not say what it has of the user".to_owned(),
            Some(Ok(None)) => "the app   has nothing of the user".to_owned(),
            Some(Ok(Some(it))) => {
                let refreshed = it.refreshed_at.map_or_else(String::new, |at| {
                    format!(", last refreshed {}", ago(at, now))
                });
                let reason = it
                    .aadsts
                    .map_or_else(String::new, |code| format!(", AADSTS{code}"));
                format!(
                    "the app   {}, turn: {}{reason}{refreshed}",
                    it.status, it.turn
                )
            }
        });
        let is_unaware = |it: &Enrolment| it.turn == "nobody";
        if is_revoked == Some(true)
            && matches!(&outcome.enrolment, Some(Ok(Some(it))) if is_unaware(it))
        {
            let until = "it finds out when it next asks Entra ID for the user; until then it may hand out again, for 15 minutes at most,\n          \
                what was drawn before, which --remove ends at once";
            lines.push(format!("          {until}"));
        }
        lines.join("\n")
    }
}

impl Outcome {
    fn errors(&self) -> Vec<String> {
        let revoked = self.revoked.as_ref().and_then(|it| it.as_ref().err());
        let removed = self.removed.as_ref().and_then(|it| it.as_ref().err());
        let shown = self.enrolment.as_ref().and_then(|it| it.as_ref().err());
        // What has hindered one request to the app most likely hinders the other: once is enough.
        let shown = shown.filter(|shown| removed.is_none_or(|it| !it.is_like(shown)));
        let of_app = removed.into_iter().chain(shown).map(ToString::to_string);
        revoked
            .map(ToString::to_string)
            .into_iter()
            .chain(of_app)
            .collect()
    }
}
