//! Entra ID's token endpoint: requests of the three grants, and what an answer means
//! (facts/entra-and-key-vault.md §A).

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Deserialize;
use url::form_urlencoded;
use zeroize::Zeroizing;

use crate::identity::TenantId;
use crate::port::SecretBody;
use crate::secret::{AccessToken, Bearer, RefreshToken};
use crate::settings::{Scope, Settings};

/// Longest answer read, in bytes.
pub const LONGEST_ANSWER: usize = 256 * 1024;

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
    },
}

/// Makes a request to the token endpoint of a tenant.
///
/// # Errors
/// [`http::Error`] if the authority makes no URL: it is a checked setting, so it does not occur.
pub fn token_request(
    settings: &Settings,
    tenant: &TenantId,
    grant: &Grant<'_>,
) -> Result<Request<SecretBody>, http::Error> {
    // Sized so that it does not grow: a form grows a byte to three at most.
    let longest = match grant {
        Grant::OnBehalfOf { assertion, .. } => assertion.expose().len(),
        Grant::Refresh { token, claims, .. } => token
            .expose()
            .len()
            .saturating_add(claims.map_or(0, str::len)),
        Grant::ClientCredentials { .. } => 0,
    };
    let room = longest
        .saturating_add(settings.client_secret.expose().len())
        .saturating_mul(3)
        .saturating_add(4096);
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
    form.append_pair("client_id", &settings.client_id);
    form.append_pair("client_secret", settings.client_secret.expose());
    match grant {
        Grant::OnBehalfOf { assertion, scope } => {
            form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
            form.append_pair("requested_token_use", "on_behalf_of");
            form.append_pair("assertion", assertion.expose());
            form.append_pair("scope", &with_offline_access(scope));
        }
        Grant::Refresh {
            token,
            scope,
            claims,
        } => {
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("refresh_token", token.expose());
            form.append_pair("scope", &with_offline_access(scope));
            if let Some(claims) = claims {
                form.append_pair("claims", claims);
            }
        }
        Grant::ClientCredentials { scope } => {
            form.append_pair("grant_type", "client_credentials");
            form.append_pair("scope", scope);
        }
    }
    Request::builder()
        .method(Method::POST)
        .uri(format!("{}{tenant}/oauth2/v2.0/token", settings.authority))
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(Zeroizing::new(form.finish().into_bytes()))
}

/// What the token endpoint gave.
#[derive(Debug)]
pub struct Granted {
    /// The access token: opaque, never parsed.
    pub access_token: AccessToken,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds it is valid for.
    pub expires_in: u32,
    /// The scopes granted.
    pub scope: String,
    /// The refresh token, if one came back.
    pub refresh_token: Option<RefreshToken>,
}

/// What a refusal means, by class of facts/entra-and-key-vault.md §A.7 with the rulings of design §3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The class.
    pub class: Class,
    /// The AADSTS number, if one was given.
    pub code: Option<u32>,
    /// Entra ID's trace id, for its support; validated, so that it can be logged.
    pub trace_id: Option<String>,
}

/// The classes of refusals.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Class {
    /// T: try again later. The token is as good as before.
    Transient {
        /// Seconds to wait, if it said.
        retry_after_seconds: Option<u32>,
    },
    /// U: the user has to act; the refresh token may work again, or for another resource.
    Interaction {
        /// Claims for the interactive sign-in, as JSON text.
        claims: Option<String>,
    },
    /// D: the refresh token is dead.
    Dead,
    /// C: this app's configuration or permissions.
    Operator,
    /// A: the caller's assertion is bad.
    Assertion,
}

/// Reads an answer of the token endpoint.
///
/// # Errors
/// [`Refusal`] for everything but a complete success; an answer that cannot be read is transient.
pub fn read_token_response(
    response: &Response<SecretBody>,
    grant: &Grant<'_>,
) -> Result<Granted, Refusal> {
    let transient = |retry_after_seconds| Refusal {
        class: Class::Transient {
            retry_after_seconds,
        },
        code: None,
        trace_id: None,
    };
    if response.status() == StatusCode::OK {
        let body: Success = serde_json::from_slice(response.body()).map_err(|_| transient(None))?;
        if !body.token_type.eq_ignore_ascii_case("Bearer") {
            return Err(transient(None));
        }
        return Ok(Granted {
            access_token: AccessToken::new(body.access_token),
            token_type: body.token_type,
            expires_in: body.expires_in,
            scope: body.scope,
            refresh_token: body
                .refresh_token
                .filter(|token| !token.is_empty())
                .map(RefreshToken::new),
        });
    }
    let retry_after_seconds = retry_after(response.headers());
    let Ok(body) = serde_json::from_slice::<Failure>(response.body()) else {
        return Err(transient(retry_after_seconds));
    };
    // "throttling in disguise" (§A.7): whatever else the answer says.
    let class = if body.error_codes.contains(&50196) {
        Class::Transient {
            retry_after_seconds: Some(retry_after_seconds.unwrap_or(300)),
        }
    } else if response.headers().contains_key(RETRY_AFTER)
        || response.status() == StatusCode::TOO_MANY_REQUESTS
        || response.status().is_server_error()
    {
        Class::Transient {
            retry_after_seconds,
        }
    } else {
        classify(&body, grant)
    };
    let code = body.error_codes.first().copied();
    let is_id = |id: &String| {
        id.len() <= 64
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    Err(Refusal {
        class,
        code,
        trace_id: body.trace_id.filter(is_id),
    })
}

/// Seconds of a `Retry-After` header (RFC 9110 §10.2.3), at most an hour. The date form is not read yet: it counts as
/// not given.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<u32> {
    let seconds: u32 = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(seconds.min(3600))
}

fn with_offline_access(scope: &Scope) -> String {
    format!("{} offline_access", scope.as_str())
}

fn classify(body: &Failure, grant: &Grant<'_>) -> Class {
    let interaction = || Class::Interaction {
        claims: body
            .claims
            .clone()
            .filter(|claims| claims.len() <= 16 * 1024),
    };
    let bad_token = matches!(
        body.suberror.as_deref(),
        Some("bad_token" | "token_expired")
    );
    for code in &body.error_codes {
        return match code {
            // The assertion's audience, signature or time. On a refresh there is no assertion: this app's fault.
            500_131 | 50_013 | 500_133 => match grant {
                Grant::OnBehalfOf { .. } => Class::Assertion,
                Grant::Refresh { .. } | Grant::ClientCredentials { .. } => Class::Operator,
            },
            // Revoked, expired, account disabled or gone, session ended, password changed.
            50_173 | 700_082 | 70_008 | 700_084 | 70_043 | 50_057 | 50_034 | 50_132 | 50_133 => {
                Class::Dead
            }
            70_000 | 9_002_313 => {
                if bad_token {
                    Class::Dead
                } else {
                    Class::Operator
                }
            }
            // Multi-factor authentication, consent, policy, device, membership.
            50_076 | 50_078 | 50_079 | 50_072 | 50_074 | 50_158 | 53_003 | 53_000 | 53_001
            | 53_002 | 530_032 | 65_001 | 65_004 | 90_094 | 50_020 | 90_072 => interaction(),
            // Configuration: client, secret, certificate, tenant, request, assignment.
            53_005 | 50_105 | 7_000_114 | 7_000_215 | 7_000_222 | 700_024 | 700_027 | 700_016
            | 7_000_112 | 90_002 | 500_011 | 70_011 | 650_057 | 900_144 | 9_001_023 | 700_022
            | 70_021 | 700_211 | 700_212 | 700_213 | 7_002_137 | 7_002_138 | 700_229 => {
                Class::Operator
            }
            // The service itself, and throttling of the tenant.
            90_033 | 90_006 | 90_012 | 90_024 | 50_033 | 50_087 | 90_055 => Class::Transient {
                retry_after_seconds: None,
            },
            _ => continue,
        };
    }
    // No known number: the documented fields alone (§A.6).
    match body.error.as_str() {
        "invalid_grant" if bad_token => Class::Dead,
        "interaction_required" | "consent_required" | "login_required" => interaction(),
        "invalid_client"
        | "unauthorized_client"
        | "invalid_scope"
        | "invalid_resource"
        | "unsupported_grant_type"
        | "invalid_request"
        | "invalid_tenant" => Class::Operator,
        _ => Class::Transient {
            retry_after_seconds: None,
        },
    }
}

#[derive(Deserialize)]
struct Success {
    access_token: String,
    token_type: String,
    expires_in: u32,
    #[serde(default)]
    scope: String,
    refresh_token: Option<String>,
}

#[derive(Deserialize)]
struct Failure {
    error: String,
    #[serde(default)]
    error_codes: Vec<u32>,
    suberror: Option<String>,
    claims: Option<String>,
    trace_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::tests::{TENANT, least};

    fn refresh(
        token: &RefreshToken,
        scope: &Scope,
        status: u16,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Granted, Refusal> {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response
            .body(Zeroizing::new(body.as_bytes().to_vec()))
            .unwrap();
        read_token_response(
            &response,
            &Grant::Refresh {
                token,
                scope,
                claims: None,
            },
        )
    }

    fn class(status: u16, headers: &[(&str, &str)], body: &str) -> Class {
        let scope = Scope::parse("https://graph.microsoft.com/.default").unwrap();
        refresh(
            &RefreshToken::new("rt".into()),
            &scope,
            status,
            headers,
            body,
        )
        .unwrap_err()
        .class
    }

    #[test]
    fn requests_have_the_parameters_of_their_grant() {
        let settings = Settings::read(&least()).unwrap();
        let tenant = TenantId::parse(TENANT).unwrap();
        let scope = Scope::parse("https://graph.microsoft.com/User.Read").unwrap();
        let form = |grant: Grant<'_>| {
            let request = token_request(&settings, &tenant, &grant).unwrap();
            assert_eq!(
                request.uri(),
                &*format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token")
            );
            String::from_utf8(request.body().to_vec()).unwrap()
        };
        let client =
            "client_id=22222222-2222-2222-2222-222222222222&client_secret=client-secret-canary";
        assert_eq!(
            form(Grant::OnBehalfOf {
                assertion: &Bearer::new("a.b.c".into()),
                scope: &scope
            }),
            format!(
                "{client}&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&requested_token_use=on_behalf_of&assertion=a.b.c&scope=https%3A%2F%2Fgraph.microsoft.com%2FUser.Read+offline_access"
            )
        );
        assert_eq!(
            form(Grant::Refresh {
                token: &RefreshToken::new("0.A+&=".into()),
                scope: &scope,
                claims: Some("{}")
            }),
            format!(
                "{client}&grant_type=refresh_token&refresh_token=0.A%2B%26%3D&scope=https%3A%2F%2Fgraph.microsoft.com%2FUser.Read+offline_access&claims=%7B%7D"
            )
        );
        assert_eq!(
            form(Grant::ClientCredentials {
                scope: "https://vault.azure.net/.default"
            }),
            format!(
                "{client}&grant_type=client_credentials&scope=https%3A%2F%2Fvault.azure.net%2F.default"
            )
        );
    }

    #[test]
    fn a_success_is_read_and_its_tokens_are_not_shown() {
        let scope = Scope::parse("https://graph.microsoft.com/.default").unwrap();
        let body = json!({"token_type": "Bearer", "scope": "User.Read", "expires_in": 3599, "ext_expires_in": 3599,
            "access_token": "at-canary", "refresh_token": "rt-canary", "foci": "1"});
        let granted = refresh(
            &RefreshToken::new("rt".into()),
            &scope,
            200,
            &[],
            &body.to_string(),
        )
        .unwrap();
        assert_eq!(
            (granted.expires_in, granted.scope.as_str()),
            (3599, "User.Read")
        );
        assert_eq!(
            granted.refresh_token.as_ref().unwrap().expose(),
            "rt-canary"
        );
        assert!(!format!("{granted:?}").contains("canary"));
    }

    #[test]
    fn answers_that_cannot_be_read_are_transient() {
        for (status, body) in [
            (200, "{}"),
            (200, "<html>"),
            (502, "<html>Bad Gateway</html>"),
            (400, ""),
            (400, "{}"),
            (302, ""),
        ] {
            assert_eq!(
                class(status, &[], body),
                Class::Transient {
                    retry_after_seconds: None
                },
                "{status} {body}"
            );
        }
        let mac = r#"{"access_token":"a","token_type":"mac","expires_in":1}"#;
        assert_eq!(
            class(200, &[], mac),
            Class::Transient {
                retry_after_seconds: None
            }
        );
    }

    #[test]
    fn throttling_is_transient_in_every_disguise() {
        let body = |code: u32| {
            json!({"error": "invalid_grant", "error_codes": [code], "suberror": "bad_token"})
                .to_string()
        };
        assert_eq!(
            class(400, &[], &body(50196)),
            Class::Transient {
                retry_after_seconds: Some(300)
            }
        );
        assert_eq!(
            class(429, &[("retry-after", "17")], &body(50173)),
            Class::Transient {
                retry_after_seconds: Some(17)
            }
        );
        assert_eq!(
            class(400, &[("retry-after", "99999")], &body(50173)),
            Class::Transient {
                retry_after_seconds: Some(3600)
            }
        );
        assert_eq!(
            class(503, &[], &body(90033)),
            Class::Transient {
                retry_after_seconds: None
            }
        );
    }

    #[test]
    fn refusals_fall_into_their_classes() {
        let body = |error: &str, code: u32, suberror: Option<&str>| {
            json!({"error": error, "error_codes": [code], "suberror": suberror, "claims": "{\"c\":1}", "trace_id": "t-1"}).to_string()
        };
        let asks = Class::Interaction {
            claims: Some("{\"c\":1}".into()),
        };
        for (error, code, suberror, expected) in [
            ("invalid_grant", 50173, Some("bad_token"), Class::Dead),
            ("invalid_grant", 700_082, None, Class::Dead),
            ("invalid_grant", 70000, None, Class::Operator),
            ("invalid_grant", 70000, Some("bad_token"), Class::Dead),
            ("invalid_grant", 1, Some("token_expired"), Class::Dead),
            (
                "invalid_grant",
                1,
                None,
                Class::Transient {
                    retry_after_seconds: None,
                },
            ),
            ("invalid_grant", 50076, Some("basic_action"), asks.clone()),
            (
                "invalid_grant",
                65001,
                Some("consent_required"),
                asks.clone(),
            ),
            ("interaction_required", 1, None, asks.clone()),
            ("invalid_grant", 53003, Some("message_only"), asks),
            ("invalid_client", 7_000_215, None, Class::Operator),
            ("unauthorized_client", 1, None, Class::Operator),
            ("invalid_grant", 500_133, None, Class::Operator),
            (
                "temporarily_unavailable",
                1,
                None,
                Class::Transient {
                    retry_after_seconds: None,
                },
            ),
            (
                "something_new",
                1,
                None,
                Class::Transient {
                    retry_after_seconds: None,
                },
            ),
        ] {
            assert_eq!(
                class(400, &[], &body(error, code, suberror)),
                expected,
                "{error} {code} {suberror:?}"
            );
        }
    }

    #[test]
    fn a_bad_assertion_is_the_callers_fault_on_behalf_of_him_alone() {
        let body = json!({"error": "invalid_grant", "error_codes": [500_131]}).to_string();
        let response = Response::builder()
            .status(400)
            .body(Zeroizing::new(body.clone().into_bytes()))
            .unwrap();
        let scope = Scope::parse("https://graph.microsoft.com/.default").unwrap();
        let grant = Grant::OnBehalfOf {
            assertion: &Bearer::new("a".into()),
            scope: &scope,
        };
        assert_eq!(
            read_token_response(&response, &grant).unwrap_err().class,
            Class::Assertion
        );
        assert_eq!(class(400, &[], &body), Class::Operator);
    }

    #[test]
    fn a_trace_id_that_is_none_is_dropped() {
        let scope = Scope::parse("https://graph.microsoft.com/.default").unwrap();
        let body =
            json!({"error": "invalid_client", "trace_id": "x\n{\"event\":\"forged\"}"}).to_string();
        let refusal =
            refresh(&RefreshToken::new("rt".into()), &scope, 401, &[], &body).unwrap_err();
        assert_eq!(refusal.trace_id, None);
    }
}
