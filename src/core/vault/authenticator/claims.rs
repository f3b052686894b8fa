//! What a caller's token says, and whether that is acceptable here.

use serde::Deserialize;

use crate::error::{CallerError, TokenDefect};
use crate::identity::{Guid, Subject, TenantId};
use crate::vault::settings::Settings;

/// Clock skew allowed, in seconds (the default of Microsoft's own libraries).
const SKEW: u64 = 300;

/// What a verified token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// Who it is about.
    pub subject: Subject,
    /// Client id of the application that got it: `azp` of a v2 token, `appid` of a v1 token. None if it has neither.
    pub client: Option<Guid>,
    is_apps_own: bool,
    pub(super) issuer: String,
    audience: String,
    scopes: Vec<String>,
    roles: Vec<String>,
    expires_at: u64,
    not_before: u64,
}

impl Claims {
    /// Accepts a delegated token: a user, in this app's audience, with the required scope.
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn accept_user(&self, settings: &Settings, now: u64) -> Result<(), CallerError> {
        // Whoever is served is refreshed, and that goes by the setting `tenants` alone.
        self.accept(settings.tenants.allow(&self.subject.tenant), settings, now)?;
        if !self.is_apps_own && self.scopes.contains(&settings.required_scope) {
            Ok(())
        } else {
            Err(CallerError::InsufficientScope(
                settings.required_scope.clone(),
            ))
        }
    }

    /// Accepts an app's own token with a role, to act on `tenant`; none: on all. A role acts on the token's own tenant,
    /// and on others only from the operator tenant: anyone's administrator can assign any role in his own tenant.
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn accept_app(
        &self,
        role: &str,
        tenant: Option<&TenantId>,
        settings: &Settings,
        now: u64,
    ) -> Result<(), CallerError> {
        let own = &self.subject.tenant;
        let is_operators = settings.operator_tenant.as_ref() == Some(own);
        self.accept(is_operators || settings.tenants.allow(own), settings, now)?;
        let reaches = is_operators || tenant == Some(own);
        if reaches && self.is_apps_own && self.roles.iter().any(|held| held == role) {
            Ok(())
        } else {
            Err(CallerError::InsufficientScope(role.into()))
        }
    }

    /// Until when the token is good, in Unix seconds, skew included.
    #[must_use]
    pub fn good_until(&self) -> u64 {
        self.expires_at.saturating_add(SKEW)
    }

    fn accept(
        &self,
        is_tenant_allowed: bool,
        settings: &Settings,
        now: u64,
    ) -> Result<(), CallerError> {
        if !is_tenant_allowed {
            return Err(CallerError::TenantNotAllowed);
        }
        if !settings.audiences.contains(&self.audience) {
            return Err(TokenDefect::WrongAudience.into());
        }
        if now >= self.good_until() {
            return Err(TokenDefect::Expired.into());
        }
        if now.saturating_add(SKEW) < self.not_before {
            return Err(TokenDefect::NotYetValid.into());
        }
        Ok(())
    }

    /// Reads the payload of a token. None: a claim is missing, or is not what Entra ID makes it.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let raw: RawClaims = serde_json::from_slice(payload).ok()?;
        let words = |text: String| text.split_ascii_whitespace().map(Into::into).collect();
        let scopes: Vec<String> = raw.scp.map(words).unwrap_or_default();
        // An app's own token has no scopes, and says `idtyp` only if it is configured to. Without it, `sub` = `oid`
        // tells it from a user's ID token, which has no scopes either but may have roles (Microsoft Learn, "Access
        // token claims reference",
        // <https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference>).
        let is_apps_own = scopes.is_empty()
            && raw
                .idtyp
                .map_or(raw.sub == raw.oid, |kind| kind.eq_ignore_ascii_case("app"));
        let client = match raw.azp.or(raw.appid) {
            Some(client) => Some(Guid::parse(&client)?),
            None => None,
        };
        Some(Self {
            client,
            is_apps_own,
            subject: Subject {
                tenant: Guid::parse(&raw.tid)?,
                object: Guid::parse(&raw.oid)?,
                // It may come to stand in a user id.
                sub: Some(raw.sub)
                    .filter(|sub| {
                        sub.len() <= 256 && sub.bytes().all(|byte| byte.is_ascii_graphic())
                    })?
                    .into(),
            },
            issuer: raw.iss,
            audience: raw.aud,
            scopes,
            roles: raw.roles,
            expires_at: raw.exp,
            not_before: raw.nbf.unwrap_or(0),
        })
    }
}

#[derive(Deserialize)]
struct RawClaims {
    iss: String,
    aud: String,
    exp: u64,
    nbf: Option<u64>,
    tid: String,
    oid: String,
    sub: String,
    azp: Option<String>,
    appid: Option<String>,
    idtyp: Option<String>,
    scp: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::vault::samples::{NOW, TENANT, claims_with, least};

    #[test]
    fn a_role_counts_for_an_app_of_the_operator_tenant_alone() {
        let settings = |operator: &str| {
            let mut values = least();
            values.insert("operator_tenant", operator.to_owned());
            Settings::read(&values).unwrap()
        };
        let read = |claims: Value| Claims::parse(claims.to_string().as_bytes()).unwrap();
        let mut app = claims_with("roles", json!(["Behalf.Sweep"]));
        app.as_object_mut().unwrap().remove("scp");
        // A user's ID token for this app: no scopes, but roles that were assigned to the user.
        let id_token = app.clone();
        let mut said = app.clone();
        said["idtyp"] = json!("app");
        assert_eq!(
            read(said).accept_app("Behalf.Sweep", None, &settings(TENANT), NOW),
            Ok(())
        );
        app["sub"] = app["oid"].clone();
        let mut users = app.clone();
        users["idtyp"] = json!("user");
        let delegated = claims_with("roles", json!(["Behalf.Sweep"]));
        assert_eq!(
            read(app.clone()).accept_app("Behalf.Sweep", None, &settings(TENANT), NOW),
            Ok(())
        );
        let refused = Err(CallerError::InsufficientScope("Behalf.Sweep".into()));
        assert_eq!(
            read(app.clone()).accept_app("Behalf.Sweep", None, &settings(""), NOW),
            refused
        );
        for claims in [delegated, id_token, users] {
            assert_eq!(
                read(claims).accept_app("Behalf.Sweep", None, &settings(TENANT), NOW),
                refused
            );
        }
        assert_eq!(
            read(app).accept_app("Behalf.Read", None, &settings(TENANT), NOW),
            Err(CallerError::InsufficientScope("Behalf.Read".into()))
        );
    }
}
