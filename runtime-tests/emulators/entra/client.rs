//! How the app proves who it is: a secret, a certificate, or a federated credential
//! (<https://learn.microsoft.com/entra/identity-platform/certificate-credentials>,
//! <https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations>).

use std::collections::HashMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::{HeaderMap, header};
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::error::TokenError;
use super::registered::Registered;
use super::tokens::{Tokens, issuers};
use crate::emulators::options::Options;
use crate::emulators::signing;

/// The audience of federated credentials.
pub(crate) const FEDERATION: &str = "api://AzureADTokenExchange";

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// What the app trusts besides the platform's managed identity: a workload somewhere else.
const EXTERNAL_ISSUER: &str = "https://token.actions.githubusercontent.com";
const EXTERNAL_SUBJECT: &str = "repo:contoso/app:environment:prod";

/// What the app is known by.
pub(super) struct Client<'a> {
    pub(super) options: &'a Options,
    pub(super) registered: &'a Registered,
    pub(super) tokens: &'a Tokens,
    /// The token endpoint of the tenant, by each name that it is reached under.
    pub(super) endpoints: [String; 2],
}

impl Client<'_> {
    /// Checks the credential of a token request; says whose it is: the client id, as it is registered.
    pub(super) fn authenticate(
        &self,
        form: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Result<String, TokenError> {
        let basic = basic_credentials(headers);
        let (id, secret) = match &basic {
            Some((id, secret)) => (Some(id), Some(secret)),
            None => (form.get("client_id"), form.get("client_secret")),
        };
        let id = id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| TokenError::missing("client_id"))?;
        let operator = &self.options.operator_id;
        if id.eq_ignore_ascii_case(operator) {
            return match secret {
                Some(secret) if *secret == self.options.operator_secret => Ok(operator.clone()),
                _ => Err(TokenError::new(7_000_215)),
            };
        }
        if !id.eq_ignore_ascii_case(&self.options.client_id) {
            return Err(TokenError::new(700_016));
        }
        if let Some(assertion) = form.get("client_assertion") {
            if form.get("client_assertion_type").map(String::as_str) != Some(ASSERTION_TYPE) {
                return Err(TokenError::new(900_144));
            }
            self.tokens.remember(assertion);
            self.assertion(assertion)?;
            return Ok(self.options.client_id.clone());
        }
        match secret {
            None => Err(TokenError::new(7_000_218)),
            Some(secret) if self.registered.has_secret(secret) => {
                Ok(self.options.client_id.clone())
            }
            Some(_) => Err(TokenError::new(7_000_215)),
        }
    }

    /// A JWT that the app's certificate signed, or a federated credential.
    fn assertion(&self, assertion: &str) -> Result<(), TokenError> {
        match self.registered.verify(assertion) {
            Some(claims) => self.of_the_app(&claims),
            None => self.federated(assertion),
        }
    }

    /// What the app says of itself.
    fn of_the_app(&self, claims: &Value) -> Result<(), TokenError> {
        let id = &self.options.client_id;
        let names_the_app = claims["iss"] == *id && claims["sub"] == *id;
        let is_for_this = self.endpoints.iter().any(|url| claims["aud"] == *url);
        if !names_the_app || !is_for_this || !claims["jti"].is_string() {
            return Err(TokenError::new(700_027));
        }
        in_time(claims)
    }

    /// Issuer, subject and audience exactly as configured.
    fn federated(&self, assertion: &str) -> Result<(), TokenError> {
        let (claims, issuer, subject) = match self.tokens.verify(assertion) {
            Some(claims) => {
                let [_, issuer] = issuers(&self.options.key_vault_tenant);
                (claims, issuer, self.options.managed_identity_id.as_str())
            }
            None => (
                signing::external_issuer()
                    .verify(assertion, Algorithm::RS256)
                    .ok_or_else(|| TokenError::new(700_027))?,
                EXTERNAL_ISSUER.to_owned(),
                EXTERNAL_SUBJECT,
            ),
        };
        for (holds, code) in [
            (claims["iss"] == issuer, 700_211),
            (claims["aud"] == FEDERATION, 700_212),
            (claims["sub"] == subject, 700_213),
        ] {
            if !holds {
                return Err(TokenError::new(code));
            }
        }
        in_time(&claims)
    }
}

/// A token of the other issuer, for the app.
pub(super) fn external_token() -> String {
    let now = Timestamp::now().as_second();
    signing::external_issuer().sign(&json!({
        "iss": EXTERNAL_ISSUER, "sub": EXTERNAL_SUBJECT, "aud": FEDERATION, "iat": now, "nbf": now, "exp": now + 3600,
    }))
}

fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Basic ")?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    let decode = |text: &str| {
        form_urlencoded::parse(format!("v={text}").as_bytes())
            .next()
            .map(|(_, v)| v.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

/// Whether a client assertion is in its time, with five minutes of skew. Microsoft's `msal` writes fractions of seconds.
fn in_time(claims: &Value) -> Result<(), TokenError> {
    let now = Timestamp::now().as_duration().as_secs_f64();
    let time = |name: &str| claims[name].as_f64();
    if time("exp").is_some_and(|exp| now < exp + 300.0)
        && time("nbf").is_none_or(|nbf| nbf < now + 300.0)
    {
        Ok(())
    } else {
        Err(TokenError::new(700_024))
    }
}
