//! Asking a running app as its operator: the routes for apps with a role (README, "API").

use crate::remote::{Origin, Remote};
use behalf_core::identity::{Guid, TenantId};
use behalf_core::keeper::status::{Removal, Report};
use behalf_core::port::{Http, HttpError, SecretBody};
use behalf_core::secret::AccessToken;
use http::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::mem::discriminant;

/// An operator of a running app.
pub(crate) struct Operator<H>(Remote<H>);

impl<H: Http> Operator<H> {
    /// One with this token.
    ///
    /// # Errors
    /// It cannot be one.
    pub(crate) fn new(http: H, app: Origin, token: &AccessToken) -> Result<Self, OperationError> {
        let remote = Remote::new(http, app, token);
        remote.map(Self).ok_or(OperationError::NoToken)
    }

    /// What is stored: of all tenants that the caller may see, or of one. Role `Behalf.Read`.
    ///
    /// # Errors
    /// [`OperationError`]; likewise of those below.
    pub(crate) async fn status(&self, tenant: Option<&TenantId>) -> Result<Report, OperationError> {
        let query = tenant.map(|tenant| format!("?tenant={}", tenant.as_str()));
        let path = format!("/v1/status{}", query.unwrap_or_default());
        read(&self.ask(&Method::GET, &path).await?)
    }

    /// What is stored of a user; none: nothing. Role `Behalf.Admin`.
    pub(crate) async fn user(
        &self,
        tenant: &TenantId,
        object: &Guid,
    ) -> Result<Option<Enrolment>, OperationError> {
        match self.ask(&Method::GET, &user_path(tenant, object)).await {
            Ok(answer) => read(&answer).map(Some),
            Err(OperationError::Refused { code, .. }) if code == "not_enrolled" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a user. Role `Behalf.Admin`.
    pub(crate) async fn remove_user(
        &self,
        tenant: &TenantId,
        object: &Guid,
    ) -> Result<(), OperationError> {
        let path = user_path(tenant, object);
        self.ask(&Method::DELETE, &path).await.map(drop)
    }

    /// Removes users of a tenant, as many as the app has time for. Role `Behalf.Admin`.
    pub(crate) async fn remove_tenant(&self, tenant: &TenantId) -> Result<Removal, OperationError> {
        let path = format!("/v1/tenants/{}", tenant.as_str());
        read(&self.ask(&Method::DELETE, &path).await?)
    }

    /// Refreshes and re-seals what there is time for; what came of it, as it is. The sweep key, or role `Behalf.Sweep`.
    pub(crate) async fn sweep(&self) -> Result<SecretBody, OperationError> {
        let answer = self.ask(&Method::POST, "/v1/sweep").await?;
        Ok(answer.into_body())
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Response<SecretBody>, OperationError> {
        let Self(remote) = self;
        let answer = remote.ask(method, path).await;
        let answer = answer.map_err(|reason| OperationError::NoAnswer {
            app: remote.origin().to_owned(),
            reason,
        })?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(refusal(&answer))
        }
    }
}

fn user_path(tenant: &TenantId, object: &Guid) -> String {
    format!("/v1/users/{}/{}", tenant.as_str(), object.as_str())
}

fn read<T: DeserializeOwned>(answer: &Response<SecretBody>) -> Result<T, OperationError> {
    serde_json::from_slice(answer.body()).map_err(|_| OperationError::NotBehalf(answer.status()))
}

fn refusal(answer: &Response<SecretBody>) -> OperationError {
    let status = answer.status();
    match serde_json::from_slice(answer.body()) {
        Ok(Problem {
            code,
            detail,
            request_id,
        }) => OperationError::Refused {
            status,
            hint: hint(&code),
            code,
            detail,
            request_id,
        },
        Err(_) => OperationError::NotBehalf(status),
    }
}

/// What to do, in words of whoever runs a command.
fn hint(code: &str) -> &'static str {
    match code {
        "insufficient_scope" => {
            ": assign the app role to whoever asks, in the enterprise application of this app at Entra ID"
        }
        "not_granted" | "tenant_not_allowed" => {
            ": a role reaches its own tenant, and others only from the setting `operator_tenant` (--in-tenant)"
        }
        "invalid_token" => ": is the token for this app (--audience), and not expired?",
        "sweep_not_authorized" => {
            ": set `sweep_key` to the app's own, which has to have one, or take an app with the role Behalf.Sweep"
        }
        "user_routes_off" => ": the setting `user_routes` is off",
        _ => "",
    }
}

/// A problem of the app (RFC 9457).
#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: String,
    #[serde(default)]
    request_id: Option<String>,
}

/// What the app shows of a user's enrolment. Times are in Unix seconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Enrolment {
    pub(crate) status: String,
    /// Whoever has to act: `nobody`, `user` or `organisation`.
    pub(crate) turn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) aadsts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) suberror: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) enrolled_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_version: Option<String>,
    pub(crate) enrolled_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refreshed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refresh_due_at: Option<u64>,
}

/// Why a running app does not do what its operator asks for. What it says of it is behalf's own text, without secrets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperationError {
    /// The token is none.
    #[error("what --token-file holds is no access token")]
    NoToken,
    /// There is no answer.
    #[error(
        "{app} gives no answer ({reason}): is the app running there (--app), and its certificate trusted (--ca)?"
    )]
    NoAnswer { app: String, reason: HttpError },
    /// The app refuses.
    #[error("{detail} ({code}, status {}{}){hint}", .status.as_u16(), .request_id.as_ref().map(|id| format!(", request {id}")).unwrap_or_default())]
    Refused {
        status: StatusCode,
        code: String,
        detail: String,
        request_id: Option<String>,
        hint: &'static str,
    },
    /// What answers is another program.
    #[error("what answers there is no behalf, or one of another version (status {}): see --app", .0.as_u16())]
    NotBehalf(StatusCode),
}

impl OperationError {
    /// Whether it is the same trouble, of another request.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused { code, .. }, Self::Refused { code: other, .. }) => code == other,
            _ => discriminant(self) == discriminant(other),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    #[test]
    fn what_the_app_says_is_told_with_what_to_do() {
        let answer = |status, body: &str| {
            let body = Zeroizing::new(body.as_bytes().to_vec());
            refusal(&Response::builder().status(status).body(body).unwrap()).to_string()
        };
        let problem = r#"{"status":403,"code":"insufficient_scope","detail":"the token needs Behalf.Read","request_id":"r-1"}"#;
        let told = answer(403, problem);
        assert!(
            told.starts_with(
                "the token needs Behalf.Read (insufficient_scope, status 403, request r-1): assign"
            ),
            "{told}"
        );
        assert!(answer(502, "<html>").contains("no behalf"));
    }
}
