//! What is asked of Entra ID's token endpoint: the requests of the three grants.

use http::header::CONTENT_TYPE;
use http::{Method, Request};
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::identity::TenantId;
use crate::port::SecretBody;
use crate::secret::{Bearer, RefreshToken};
use crate::vault::claims_request::merged_claims;
use crate::vault::credential::Proof;
use crate::vault::scope::Scope;
use crate::vault::settings::Settings;

/// What is asked of the token endpoint.
#[derive(Debug)]
pub enum Grant<'a> {
    /// On-Behalf-Of (RFC 7523 §2.1 with Entra's `requested_token_use`).
    OnBehalfOf {
        /// The caller's own access token.
        assertion: &'a Bearer,
        /// `offline_access` is added, or there would be no refresh token.
        scope: &'a Scope,
    },
    /// Refresh (RFC 6749 §6).
    Refresh {
        /// The token to redeem.
        token: &'a RefreshToken,
        /// `offline_access` is added, so that a successor comes back.
        scope: &'a Scope,
        /// A claims request, as JSON text.
        claims: Option<&'a str>,
    },
    /// Client credentials (RFC 6749 §4.4), for this app itself.
    ClientCredentials {
        /// `{resource}/.default`.
        scope: &'a str,
        /// A claims request, as JSON text.
        claims: Option<&'a str>,
    },
}

impl Grant<'_> {
    /// `on_behalf_of`, `refresh_token`, `client_credentials`: for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::OnBehalfOf { .. } => "on_behalf_of",
            Self::Refresh { .. } => "refresh_token",
            Self::ClientCredentials { .. } => "client_credentials",
        }
    }
}

/// The token endpoint of a tenant, which is also the audience of a signed assertion (Microsoft Learn, "Microsoft
/// identity platform application authentication certificate credentials",
/// <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>).
#[must_use]
pub fn token_endpoint(settings: &Settings, tenant: &TenantId) -> String {
    format!("{}{tenant}/oauth2/v2.0/token", settings.authority)
}

/// Makes a request to the token endpoint of a tenant.
///
/// # Errors
/// [`http::Error`] if the authority makes no URL: it is a checked setting, so it does not occur.
pub fn token_request(
    settings: &Settings,
    tenant: &TenantId,
    proof: Proof<'_>,
    grant: &Grant<'_>,
) -> Result<Request<SecretBody>, http::Error> {
    // Sized so that it does not grow: a form grows a byte to three at most.
    let longest = match grant {
        Grant::OnBehalfOf { assertion, .. } => assertion.expose().len(),
        Grant::Refresh { token, claims, .. } => token
            .expose()
            .len()
            .saturating_add(claims.map_or(0, str::len)),
        Grant::ClientCredentials { claims, .. } => claims.map_or(0, str::len),
    };
    let own = match proof {
        Proof::Secret(secret) => secret.expose().len(),
        Proof::Assertion(assertion) => assertion.expose().len(),
    };
    let room = longest
        .saturating_add(own)
        .saturating_mul(3)
        .saturating_add(4096);
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
    form.append_pair("client_id", settings.client_id.as_str());
    match proof {
        Proof::Secret(secret) => {
            form.append_pair("client_secret", secret.expose());
        }
        Proof::Assertion(assertion) => {
            form.append_pair(
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            );
            form.append_pair("client_assertion", assertion.expose());
        }
    }
    match grant {
        Grant::OnBehalfOf { assertion, scope } => {
            form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
            form.append_pair("requested_token_use", "on_behalf_of");
            form.append_pair("assertion", assertion.expose());
            form.append_pair("scope", &with_offline_access(scope));
            append_claims(&mut form, &settings.client_capabilities, None);
        }
        Grant::Refresh {
            token,
            scope,
            claims,
        } => {
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("refresh_token", token.expose());
            form.append_pair("scope", &with_offline_access(scope));
            append_claims(&mut form, &settings.client_capabilities, *claims);
        }
        // No capability is declared for this app's own tokens: who declares `cp1` has to handle a challenge from every
        // API that is called with the token (Microsoft Learn, "Claims challenges, claims requests and client
        // capabilities"). Key Vault's is, should it come unasked for.
        Grant::ClientCredentials { scope, claims } => {
            form.append_pair("grant_type", "client_credentials");
            form.append_pair("scope", scope);
            append_claims(&mut form, &[], *claims);
        }
    }
    Request::builder()
        .method(Method::POST)
        .uri(token_endpoint(settings, tenant))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(Zeroizing::new(form.finish().into_bytes()))
}

fn append_claims(
    form: &mut form_urlencoded::Serializer<'_, String>,
    capabilities: &[String],
    asked: Option<&str>,
) {
    if let Some(claims) = merged_claims(capabilities, asked) {
        form.append_pair("claims", &claims);
    }
}

fn with_offline_access(scope: &Scope) -> String {
    format!("{} offline_access", scope.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{ClientAssertion, ClientSecret};
    use crate::vault::samples::{TENANT, least, with};

    const CLAIMS: &str = "{\"c\":1}";

    fn scope() -> Scope {
        Scope::parse("https://graph.microsoft.com/User.Read").unwrap()
    }

    #[test]
    fn requests_have_the_parameters_of_their_grant() {
        let settings = Settings::read(&least()).unwrap();
        let tenant = TenantId::parse(TENANT).unwrap();
        let secret = ClientSecret::new("client-secret-canary".into());
        let form = |proof: Proof<'_>, grant: Grant<'_>| {
            let request = token_request(&settings, &tenant, proof, &grant).unwrap();
            assert_eq!(
                request.uri(),
                &*format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token")
            );
            String::from_utf8(request.body().to_vec()).unwrap()
        };
        let client =
            "client_id=22222222-2222-2222-2222-222222222222&client_secret=client-secret-canary";
        assert_eq!(
            form(
                Proof::Secret(&secret),
                Grant::OnBehalfOf {
                    assertion: &Bearer::new("a.b.c".into()),
                    scope: &scope()
                }
            ),
            format!(
                "{client}&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&requested_token_use=on_behalf_of&assertion=a.b.c&scope=https%3A%2F%2Fgraph.microsoft.com%2FUser.Read+offline_access"
            )
        );
        assert_eq!(
            form(
                Proof::Secret(&secret),
                Grant::Refresh {
                    token: &RefreshToken::new("0.A+&=".into()),
                    scope: &scope(),
                    claims: Some("{}")
                }
            ),
            format!(
                "{client}&grant_type=refresh_token&refresh_token=0.A%2B%26%3D&scope=https%3A%2F%2Fgraph.microsoft.com%2FUser.Read+offline_access&claims=%7B%7D"
            )
        );
        assert_eq!(
            form(
                Proof::Assertion(&ClientAssertion::new("h.p.s".into())),
                Grant::ClientCredentials {
                    scope: "https://vault.azure.net/.default",
                    claims: Some("{}"),
                }
            ),
            "client_id=22222222-2222-2222-2222-222222222222&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=h.p.s&grant_type=client_credentials&scope=https%3A%2F%2Fvault.azure.net%2F.default&claims=%7B%7D"
        );
    }

    #[test]
    fn a_sovereign_cloud_is_what_the_settings_say() {
        // Azure in China: no address of it is derived.
        let settings = Settings::read(&with(&[
            ("authority", "https://login.partner.microsoftonline.cn"),
            ("key_vault_scope", "https://vault.azure.cn/.default"),
        ]))
        .unwrap();
        let tenant = TenantId::parse(TENANT).unwrap();
        assert_eq!(
            token_endpoint(&settings, &tenant),
            format!("https://login.partner.microsoftonline.cn/{TENANT}/oauth2/v2.0/token")
        );
    }

    #[test]
    fn capabilities_are_declared_for_users_and_not_for_the_app_itself() {
        let settings = Settings::read(&with(&[("client_capabilities", "cp1")])).unwrap();
        let tenant = TenantId::parse(TENANT).unwrap();
        let secret = ClientSecret::new("s".into());
        for (grant, declared) in [
            (
                Grant::OnBehalfOf {
                    assertion: &Bearer::new("a".into()),
                    scope: &scope(),
                },
                true,
            ),
            (
                Grant::Refresh {
                    token: &RefreshToken::new("rt".into()),
                    scope: &scope(),
                    claims: Some(CLAIMS),
                },
                true,
            ),
            (
                Grant::ClientCredentials {
                    scope: "r/.default",
                    claims: None,
                },
                false,
            ),
        ] {
            let request =
                token_request(&settings, &tenant, Proof::Secret(&secret), &grant).unwrap();
            let claims = form_urlencoded::parse(request.body())
                .find_map(|(name, value)| (name == "claims").then_some(value));
            assert_eq!(
                claims.is_some_and(|claims| claims.contains("cp1")),
                declared
            );
        }
    }
}
