//! Asking a running app as its operator: the routes for apps with a role (README, "API").

use behalf_core::identity::{Guid, TenantId};
use behalf_core::keeper::status::{Removal, Report};
use behalf_core::port::{Http, HttpError, Limits, SecretBody};
use behalf_core::secret::AccessToken;
use http::header::{ACCEPT, AUTHORIZATION, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use url::{Host, Url};
use zeroize::Zeroizing;

/// How long an answer may take: longer than the app takes for one at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer read, in bytes: of 5,000 tenants, some with many key versions.
const LONGEST_ANSWER: usize = 32 * 1024 * 1024;
/// How often something is asked again that the app has no time for, and how long is waited for that.
const ATTEMPTS: u32 = 3;
const LONGEST_WAIT: u64 = 10;

/// Where a running app is.
#[derive(Debug, Clone)]
pub(crate) struct AppAddress(Url);

impl AppAddress {
    /// Reads an address: of https, or of http on this machine, since a token goes there.
    ///
    /// # Errors
    /// What it has to be.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let is_local = |url: &Url| match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let is_plain = |url: &Url| {
            url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        };
        Url::parse(text)
            .ok()
            .filter(|url| url.scheme() == "https" || url.scheme() == "http" && is_local(url))
            .filter(is_plain)
            .map(Self)
            .ok_or("write the app's origin, like https://behalf.example (http:// on this machine alone)")
    }
}

/// An operator of a running app.
pub(crate) struct Operator<H> {
    http: H,
    app: AppAddress,
    authorization: HeaderValue,
}

impl<H: Http> Operator<H> {
    /// One with this token.
    ///
    /// # Errors
    /// It cannot be one.
    pub(crate) fn new(
        http: H,
        app: AppAddress,
        token: &AccessToken,
    ) -> Result<Self, OperationError> {
        let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
        let mut authorization =
            HeaderValue::try_from(bearer.as_str()).map_err(|_| OperationError::NoToken)?;
        authorization.set_sensitive(true);
        Ok(Self {
            http,
            app,
            authorization,
        })
    }

    /// What is stored: of all tenants that the caller may see, or of one. Role `Behalf.Read`.
    ///
    /// # Errors
    /// [`OperationError`]; likewise of those below.
    pub(crate) async fn status(&self, tenant: Option<&TenantId>) -> Result<Report, OperationError> {
        let query = tenant.map(|tenant| format!("?tenant={}", tenant.as_str()));
        let path = format!("v1/status{}", query.unwrap_or_default());
        read(&self.ask(&Method::GET, &path).await?)
    }

    #[allow(dead_code, reason = "for `behalf user`")]
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

    #[allow(dead_code, reason = "for `behalf user`")]
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
        let path = format!("v1/tenants/{}", tenant.as_str());
        read(&self.ask(&Method::DELETE, &path).await?)
    }

    /// Asks, again if the app has no time right now: every one of these can be repeated.
    async fn ask(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Response<SecretBody>, OperationError> {
        let mut attempts = 1;
        loop {
            let answer = self.send(method, path).await?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            let wait = answer.headers().get(RETRY_AFTER);
            let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
            let wait = wait.filter(|wait| *wait <= LONGEST_WAIT);
            match wait {
                Some(wait) if status == StatusCode::SERVICE_UNAVAILABLE && attempts < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                    attempts = attempts.saturating_add(1);
                }
                _ => return Err(refusal(&answer)),
            }
        }
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Response<SecretBody>, OperationError> {
        let AppAddress(app) = &self.app;
        let request = Request::builder()
            .method(method)
            .uri(format!("{app}{path}"))
            .header(AUTHORIZATION, &self.authorization)
            .header(ACCEPT, "application/json")
            .body(Zeroizing::default())
            .map_err(|_| OperationError::NotBehalf(StatusCode::OK))?;
        let limits = Limits {
            connect: PATIENCE,
            first_byte: PATIENCE,
            between_bytes: PATIENCE,
            body: LONGEST_ANSWER,
        };
        let sent = self.http.send(request, limits).await;
        sent.map_err(|reason| OperationError::NoAnswer {
            app: app.to_string(),
            reason,
        })
    }
}

#[allow(dead_code, reason = "for `behalf user`")]
fn user_path(tenant: &TenantId, object: &Guid) -> String {
    format!("v1/users/{}/{}", tenant.as_str(), object.as_str())
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
            ": a role reaches its own tenant, and others only from the setting `operator_tenant` (--tenant)"
        }
        "invalid_token" => ": is the token for this app (--audience), and not expired?",
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
#[allow(dead_code, reason = "for `behalf user`")]
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_tls_or_nowhere_but_this_machine() {
        for good in [
            "https://behalf.example",
            "https://behalf.example:8443/",
            "http://127.0.0.1:3000",
            "http://[::1]:3000",
            "http://localhost",
        ] {
            assert!(AppAddress::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "behalf.example",
            "http://behalf.example",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
            "https://user:word@behalf.example",
            "https://behalf.example/v1/status",
            "https://behalf.example/?a",
            "ftp://behalf.example",
        ] {
            assert!(AppAddress::parse(bad).is_err(), "{bad}");
        }
    }

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
