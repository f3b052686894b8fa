//! Managed identity: tokens that the platform gives to what runs on it.
//!
//! There are two protocols. The instance metadata service of a virtual machine answers at a link-local address over
//! plain HTTP (Microsoft Learn, "How to use managed identities for Azure resources on an Azure VM to acquire an access
//! token", <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>). App
//! Service, Functions and Container Apps name an address and a header in the environment (Microsoft Learn, "Use managed
//! identities for App Service and Azure Functions",
//! <https://learn.microsoft.com/azure/app-service/overview-managed-identity>). Both are asked for a resource, which is
//! a scope without its `/.default`, and answer with numbers that are texts.

use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use crate::error::{HoldsUp, OperatorError, Reason, System, UpstreamError, VaultError};
use crate::json::{self, number_or_text};
use crate::port::SecretBody;
use crate::secret::{AccessToken, IdentityHeader};
use crate::vault::pause::retry_after;

/// Longest answer read, in bytes.
pub const LONGEST_ANSWER: usize = 64 * 1024;

/// Where the platform gives out tokens.
#[derive(Debug)]
pub enum IdentityEndpoint {
    /// The instance metadata service of a virtual machine, at its own address or another.
    Imds(Url),
    /// App Service, Functions, Container Apps.
    AppService(Url, IdentityHeader),
}

impl IdentityEndpoint {
    /// Address of the instance metadata service.
    pub const IMDS: &str = "http://169.254.169.254/metadata/identity/oauth2/token";

    /// Asks for a token for a resource, of the system-assigned identity or of the one with this client id.
    ///
    /// # Errors
    /// [`http::Error`] if the setting `identity_header` makes no header.
    pub fn request(
        &self,
        resource: &str,
        client_id: Option<&str>,
    ) -> Result<Request<SecretBody>, http::Error> {
        let (url, version) = match self {
            Self::Imds(url) => (url, "2018-02-01"),
            Self::AppService(url, _) => (url, "2019-08-01"),
        };
        let mut url = url.clone();
        url.query_pairs_mut()
            .append_pair("api-version", version)
            .append_pair("resource", resource)
            .extend_pairs(client_id.map(|id| ("client_id", id)));
        let mut request = Request::builder().method(Method::GET).uri(url.as_str());
        request = match self {
            Self::Imds(_) => request.header("metadata", "true"),
            Self::AppService(_, header) => {
                let mut value = HeaderValue::try_from(header.expose())?;
                value.set_sensitive(true);
                request.header("x-identity-header", value)
            }
        };
        request.body(Zeroizing::default())
    }

    /// Reads the answer: the token, and until when it is good in Unix seconds.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn read(
        &self,
        response: &Response<SecretBody>,
        now: u64,
    ) -> Result<(AccessToken, u64), VaultError> {
        let unavailable = |retry_after_seconds| {
            VaultError::from(UpstreamError {
                system: System::ManagedIdentity,
                retry_after_seconds,
                holds_up: HoldsUp::Everyone,
            })
        };
        match response.status() {
            StatusCode::OK => {}
            // No such identity, or no such resource for it.
            StatusCode::BAD_REQUEST => return Err(refused("managed_identity_client_id")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(refused(match self {
                    Self::Imds(_) => "identity_endpoint",
                    Self::AppService(..) => "identity_header",
                }));
            }
            // Being upgraded, which takes up to 70 s.
            StatusCode::GONE => return Err(unavailable(Some(70))),
            _ => return Err(unavailable(retry_after(response.headers(), now))),
        }
        let body: Success = json::object(response.body()).ok_or_else(|| unavailable(None))?;
        // App Service gives a time alone; where both are, the span does not depend on whose clock is right.
        let expires_at = body
            .expires_in
            .map(|seconds| now.saturating_add(seconds))
            .or(body.expires_on)
            .ok_or_else(|| unavailable(None))?;
        Ok((AccessToken::new(body.access_token), expires_at))
    }
}

fn refused(setting: &str) -> VaultError {
    OperatorError::CredentialRefused {
        setting: setting.into(),
        reason: Reason::default(),
    }
    .into()
}

#[derive(Deserialize)]
struct Success {
    access_token: String,
    #[serde(default, deserialize_with = "number_or_text")]
    expires_in: Option<u64>,
    #[serde(default, deserialize_with = "number_or_text")]
    expires_on: Option<u64>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::vault::samples::NOW;

    fn imds() -> IdentityEndpoint {
        IdentityEndpoint::Imds(IdentityEndpoint::IMDS.parse().unwrap())
    }

    fn app_service() -> IdentityEndpoint {
        let header = IdentityHeader::new("header-canary".into());
        IdentityEndpoint::AppService("http://127.0.0.1:42/msi/token".parse().unwrap(), header)
    }

    fn read(
        endpoint: &IdentityEndpoint,
        status: u16,
        body: &Value,
    ) -> Result<(AccessToken, u64), VaultError> {
        let body = Zeroizing::new(body.to_string().into_bytes());
        let response = Response::builder().status(status).body(body).unwrap();
        endpoint.read(&response, NOW)
    }

    #[test]
    fn requests_are_as_each_platform_wants_them() {
        let request = imds().request("https://vault.azure.net", None).unwrap();
        assert_eq!(
            request.uri(),
            "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
        );
        assert_eq!(request.headers()["metadata"], "true");
        let request = app_service()
            .request("api://AzureADTokenExchange", Some("an-id"))
            .unwrap();
        assert_eq!(
            request.uri(),
            "http://127.0.0.1:42/msi/token?api-version=2019-08-01&resource=api%3A%2F%2FAzureADTokenExchange&client_id=an-id"
        );
        assert_eq!(request.headers()["x-identity-header"], "header-canary");
        assert!(!format!("{request:?}{:?}", app_service()).contains("canary"));
    }

    #[test]
    fn numbers_are_texts_and_one_of_two_is_enough() {
        for (endpoint, body, expected) in [
            (
                imds(),
                json!({"access_token": "at", "refresh_token": "", "expires_in": "86399", "expires_on": "1793695200", "token_type": "Bearer"}),
                NOW + 86_399,
            ),
            (
                imds(),
                json!({"access_token": "at", "expires_in": 86_399}),
                NOW + 86_399,
            ),
            (
                app_service(),
                json!({"access_token": "at", "expires_on": "1793695200", "token_type": "Bearer"}),
                1_793_695_200,
            ),
        ] {
            let (token, expires_at) = read(&endpoint, 200, &body).unwrap();
            assert_eq!((token.expose(), expires_at), ("at", expected));
        }
        let unavailable = UpstreamError {
            system: System::ManagedIdentity,
            retry_after_seconds: None,
            holds_up: HoldsUp::Everyone,
        };
        for body in [
            json!({}),
            json!({"access_token": "at"}),
            json!({"access_token": "at", "expires_on": "11/05/2026 15:18:31 +00:00"}),
            json!({"expires_in": "1"}),
            json!(["at", 86_399, null]),
        ] {
            assert_eq!(
                read(&imds(), 200, &body).map(|_| ()),
                Err(unavailable.clone().into()),
                "{body}"
            );
        }
    }

    #[test]
    fn errors_name_the_setting_or_pass() {
        let body = json!({"error": "invalid_request", "error_description": "Identity not found"});
        let refused_for = |endpoint: &IdentityEndpoint, status| match read(endpoint, status, &body)
        {
            Err(VaultError::Operator(OperatorError::CredentialRefused {
                setting,
                reason: Reason { aadsts: None, .. },
            })) => setting,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused_for(&imds(), 400), "managed_identity_client_id");
        assert_eq!(refused_for(&imds(), 401), "identity_endpoint");
        assert_eq!(refused_for(&app_service(), 401), "identity_header");
        for (status, seconds) in [(404, None), (410, Some(70)), (429, None), (500, None)] {
            let error = UpstreamError {
                system: System::ManagedIdentity,
                retry_after_seconds: seconds,
                holds_up: HoldsUp::Everyone,
            };
            assert_eq!(
                read(&imds(), status, &body).map(|_| ()),
                Err(error.into()),
                "{status}"
            );
        }
    }
}
