//! Microsoft Graph, as far as an operator needs it
//! (<https://learn.microsoft.com/graph/api/user-revokesigninsessions>).

use crate::outbound::OutboundClient;
use crate::remote::{Origin, Remote};
use behalf_core::identity::{Guid, TenantId};
use behalf_core::port::HttpError;
use behalf_core::secret::AccessToken;
use http::{Method, StatusCode};

/// Microsoft Graph in a tenant, which the token is of.
pub(crate) struct Graph {
    remote: Remote<OutboundClient>,
    tenant: TenantId,
}

impl Graph {
    /// With a token of that tenant.
    ///
    /// # Errors
    /// It cannot be one.
    pub(crate) fn new(
        client: OutboundClient,
        origin: Origin,
        tenant: &TenantId,
        token: &AccessToken,
    ) -> Result<Self, GraphError> {
        let remote = Remote::new(client, origin, token).ok_or(GraphError::Token)?;
        Ok(Self {
            remote,
            tenant: tenant.clone(),
        })
    }

    /// Revokes a user's sign-in sessions at all apps: refresh tokens of before are dead within minutes. It may be repeated.
    ///
    /// # Errors
    /// [`GraphError`].
    pub(crate) async fn revoke_sessions(&self, object: &Guid) -> Result<(), GraphError> {
        let path = format!("/v1.0/users/{}/revokeSignInSessions", object.as_str());
        let answer = self.remote.ask(&Method::POST, &path).await;
        let answer = answer.map_err(|reason| GraphError::NoAnswer {
            origin: self.remote.origin().to_owned(),
            reason,
        })?;
        let tenant = || self.tenant.as_str().to_owned();
        match answer.status() {
            // 204, as it is documented, or 200 with a body, as it is.
            status if status.is_success() => Ok(()),
            StatusCode::UNAUTHORIZED => Err(GraphError::Token),
            StatusCode::FORBIDDEN => Err(GraphError::Forbidden(tenant())),
            StatusCode::NOT_FOUND => Err(GraphError::NoUser(tenant())),
            StatusCode::TOO_MANY_REQUESTS => Err(GraphError::Throttled),
            status => Err(GraphError::Other(status)),
        }
    }
}

/// Why Microsoft Graph did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GraphError {
    /// There is no answer.
    #[error(
        "{origin} gives no answer ({reason}): is it Microsoft Graph of your cloud (--graph), and within reach?"
    )]
    NoAnswer { origin: String, reason: HttpError },
    /// The token is not accepted.
    #[error("Microsoft Graph does not accept the token: is --graph the one of your cloud?")]
    Token,
    /// The app may not.
    #[error(
        "Microsoft Graph forbids it: give the app that asks the application permission User.RevokeSessions.All, and have an \
         administrator of {0} consent; for users who are administrators themselves it needs User.ReadWrite.All and a role of theirs"
    )]
    Forbidden(String),
    /// There is nobody of that id.
    #[error(
        "{0} has no user with this object id; or a managed identity asks, which reaches its own tenant alone, whichever is named"
    )]
    NoUser(String),
    /// It asks for a pause.
    #[error("Microsoft Graph asks to come back later: run it again in some minutes")]
    Throttled,
    /// Anything else.
    #[error("Microsoft Graph fails with status {}: run it again later", .0.as_u16())]
    Other(StatusCode),
}
