//! `behalf user`.

use super::Failure;
use super::operator::{Asking, guid};
use super::screen::{ago, say};
use crate::graph::{Graph, GraphError};
use crate::operator::{Enrolment, OperationError, Operator};
use crate::outbound::OutboundClient;
use crate::remote::Origin;
use behalf_core::identity::{Guid, TenantId};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
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

/// What became of it.
struct Outcome {
    revoked: Option<Result<(), GraphError>>,
    removed: Option<Result<(), OperationError>>,
    enrolment: Result<Option<Enrolment>, OperationError>,
}

impl Revoke {
    async fn run(self) -> Result<(), Failure> {
        super::begin_log();
        // Both tokens come first: then little is left half-done.
        let graph = self.graph().await?;
        let operator = self.asking.open(Some(&self.tenant)).await?;
        let outcome = self.act(&graph, &operator).await;
        let is_done = matches!(outcome.revoked, None | Some(Ok(())))
            && matches!(outcome.removed, None | Some(Ok(())))
            && outcome.enrolment.is_ok();
        if self.json {
            say(&self.to_json(&outcome).to_string())?;
        } else {
            say(&self.to_text(&outcome))?;
        }
        for error in outcome.errors() {
            tracing::error!("{error}");
        }
        if is_done {
            Ok(())
        } else {
            Err(Failure::Unfinished)
        }
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
    async fn act(&self, graph: &Graph, operator: &Operator<OutboundClient>) -> Outcome {
        let (tenant, object) = (&self.tenant, &self.object);
        let (mut revoked, mut removed) = (None, None);
        if !self.dry_run {
            revoked = Some(graph.revoke_sessions(object).await);
            if self.remove {
                removed = Some(operator.remove_user(tenant, object).await);
            }
        }
        Outcome {
            revoked,
            removed,
            enrolment: operator.user(tenant, object).await,
        }
    }

    /// Without the user's object id, which a log of what was run need not have.
    fn to_json(&self, outcome: &Outcome) -> Value {
        let Outcome {
            revoked,
            removed,
            enrolment,
        } = outcome;
        let errors: Vec<_> = outcome.errors().collect();
        json!({
            "tenant": self.tenant.as_str(), "dry_run": self.dry_run,
            "revoked": matches!(revoked, Some(Ok(()))), "removed": matches!(removed, Some(Ok(()))),
            "enrolment": enrolment.as_ref().ok().and_then(Option::as_ref), "errors": errors,
        })
    }

    fn to_text(&self, outcome: &Outcome) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.unwrap_or_default().as_secs();
        let word = |is_done: bool, done: &str| match (self.dry_run, is_done) {
            (true, _) => "would be ".to_owned() + done,
            (false, true) => done.to_owned(),
            (false, false) => "NOT ".to_owned() + done,
        };
        let is_revoked = matches!(outcome.revoked, Some(Ok(())));
        let mut lines = vec![format!("sessions  {}", word(is_revoked, "revoked"))];
        if self.remove {
            let is_removed = matches!(outcome.removed, Some(Ok(())));
            lines.push(format!("record    {}", word(is_removed, "removed")));
        }
        lines.push(match &outcome.enrolment {
            Err(_) => "the app   does not say what it has of the user".to_owned(),
            Ok(None) => "the app   has nothing of the user".to_owned(),
            Ok(Some(it)) => {
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
        if is_revoked && matches!(&outcome.enrolment, Ok(Some(it)) if is_unaware(it)) {
            let until = "it finds out when it next asks Entra ID for the user; until then it may hand out again, for 15 minutes at most,\n          \
                what was drawn before, which --remove ends at once";
            lines.push(format!("          {until}"));
        }
        lines.join("\n")
    }
}

impl Outcome {
    fn errors(&self) -> impl Iterator<Item = String> {
        let revoked = self.revoked.iter().filter_map(|it| it.as_ref().err());
        let removed = self.removed.iter().filter_map(|it| it.as_ref().err());
        let shown = self.enrolment.as_ref().err();
        revoked
            .map(ToString::to_string)
            .chain(removed.chain(shown).map(ToString::to_string))
    }
}
