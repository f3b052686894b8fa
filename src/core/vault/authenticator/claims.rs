//! What a caller's token says, and whether that is acceptable here.

use serde::Deserialize;

use crate::error::{CallerError, TokenDefect};
use crate::identity::{Guid, Subject, TenantId};
use crate::json;
use crate::vault::grants::{App, Callers, Missing};
use crate::vault::settings::Settings;

/// Clock skew allowed, in seconds (the default of Microsoft's own libraries).
const SKEW: u64 = 300;

/// What a verified token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// Who it is about.
    pub subject: Subject,
    /// Client id of the application that got it: `azp` of a v2 token, `appid` of a v1 token. None if it has neither.
    client: Option<Guid>,
    /// Whether that proved who it is: `azpacr`, `appidacr`.
    is_confidential: bool,
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

    /// Accepts an app's own token with a role. On which tenants the role acts is [`Self::reaches`].
    ///
    /// # Errors
    /// [`CallerError`].
    pub fn accept_app(&self, role: &str, settings: &Settings, now: u64) -> Result<(), CallerError> {
        let is_tenant_allowed =
            self.is_operators(settings) || settings.tenants.allow(&self.subject.tenant);
        self.accept(is_tenant_allowed, settings, now)?;
        if self.is_apps_own && self.roles.iter().any(|held| held == role) {
            Ok(())
        } else {
            Err(CallerError::InsufficientScope(role.into()))
        }
    }

    /// A role acts on the token's own tenant, and on others only from the operator tenant: anyone's administrator can
    /// assign any role in his own tenant. None stands for all tenants.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn reaches(
        &self,
        role: &str,
        tenant: Option<&TenantId>,
        settings: &Settings,
    ) -> Result<(), Missing> {
        let own = &self.subject.tenant;
        if self.is_operators(settings) || tenant == Some(own) {
            return Ok(());
        }
        let other = tenant.map_or("all tenants", Guid::as_str);
        Err(Missing(format!(
            "the role {role} of an app of tenant {own} acts on that tenant alone; for {other} its tenant has to be the setting `operator_tenant`"
        )))
    }

    /// The app that sent it.
    #[must_use]
    pub fn app(&self) -> App {
        App {
            client: self.client.clone(),
            is_confidential: self.is_confidential,
            callers: if self.is_apps_own {
                Callers::App
            } else {
                Callers::Delegated
            },
            tenant: self.subject.tenant.clone(),
        }
    }

    fn is_operators(&self, settings: &Settings) -> bool {
        settings.operator_tenant.as_ref() == Some(&self.subject.tenant)
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
        let raw: RawClaims = json::object(payload)?;
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
        let (client, method) = match (raw.azp, raw.appid) {
            (Some(client), _) => (Some(Guid::parse(&client)?), raw.azpacr),
            (None, Some(client)) => (Some(Guid::parse(&client)?), raw.appidacr),
            (None, None) => (None, None),
        };
        Some(Self {
            client,
            // A secret; a certificate or another assertion. 0 is none.
            is_confidential: matches!(method.as_deref(), Some("1" | "2")),
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
    azpacr: Option<String>,
    appid: Option<String>,
    appidacr: Option<String>,
    idtyp: Option<String>,
    scp: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::vault::samples::{NOW, TENANT, claims, claims_with, least, with};

    fn read(claims: &Value) -> Claims {
        Claims::parse(claims.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_role_counts_for_an_app_and_for_no_user() {
        let settings = Settings::read(&least()).unwrap();
        let accept = |claims: &Value, role| read(claims).accept_app(role, &settings, NOW);
        let mut app = claims_with("roles", json!(["Behalf.Sweep"]));
        app.as_object_mut().unwrap().remove("scp");
        // A user's ID token for this app: no scopes, but roles that were assigned to the user.
        let id_token = app.clone();
        let mut said = app.clone();
        said["idtyp"] = json!("app");
        assert_eq!(accept(&said, "Behalf.Sweep"), Ok(()));
        app["sub"] = app["oid"].clone();
        let mut users = app.clone();
        users["idtyp"] = json!("user");
        let delegated = claims_with("roles", json!(["Behalf.Sweep"]));
        assert_eq!(accept(&app, "Behalf.Sweep"), Ok(()));
        let refused = Err(CallerError::InsufficientScope("Behalf.Sweep".into()));
        for claims in [delegated, id_token, users] {
            assert_eq!(accept(&claims, "Behalf.Sweep"), refused);
        }
        assert_eq!(
            accept(&app, "Behalf.Read"),
            Err(CallerError::InsufficientScope("Behalf.Read".into()))
        );
    }

    #[test]
    fn a_role_acts_on_its_own_tenant_and_on_others_from_the_operator_tenant() {
        let other = Guid::parse("77777777-7777-7777-7777-777777777777").unwrap();
        let own = Guid::parse(TENANT).unwrap();
        for (operator, reached) in [("", [true, false, false]), (TENANT, [true; 3])] {
            let settings = Settings::read(&with(&[("operator_tenant", operator)])).unwrap();
            let tenants = [Some(&own), Some(&other), None];
            let reaches = tenants.map(|tenant| {
                let reached = read(&claims()).reaches("Behalf.Act", tenant, &settings);
                reached.is_ok()
            });
            assert_eq!(reaches, reached, "{operator}");
        }
    }

    #[test]
    fn an_app_is_confidential_if_it_proved_who_it_is() {
        const APP: &str = "33333333-3333-3333-3333-333333333333";
        for (v2, v1, confidential) in [
            (json!({"azp": APP, "azpacr": "1"}), json!({}), true),
            (json!({"azp": APP, "azpacr": "2"}), json!({}), true),
            (json!({}), json!({"appid": APP, "appidacr": "1"}), true),
            (json!({"azp": APP, "azpacr": "0"}), json!({}), false),
            (json!({"azp": APP, "azpacr": ""}), json!({}), false),
            (json!({"azp": APP, "azpacr": "3"}), json!({}), false),
            (json!({"azp": APP}), json!({}), false),
            // Neither vouches for the other.
            (json!({"azp": APP}), json!({"appidacr": "1"}), false),
            (json!({"azpacr": "1"}), json!({"appid": APP}), false),
            (json!({"azpacr": "1"}), json!({}), false),
        ] {
            let mut all = claims();
            let members = all.as_object_mut().unwrap();
            members.remove("azp");
            members.remove("azpacr");
            for more in [&v2, &v1] {
                members.extend(more.as_object().unwrap().clone());
            }
            let app = read(&all).app();
            assert_eq!(app.is_confidential, confidential, "{v2} {v1}");
            let is_named = v2.get("azp").or(v1.get("appid")).is_some();
            assert_eq!(app.client.is_some(), is_named, "{v2} {v1}");
        }
    }
}
