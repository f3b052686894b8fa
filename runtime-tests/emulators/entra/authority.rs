//! The authority: three grants, and the tokens that it gives besides.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::client::{Client, FEDERATION, external_token};
use super::directory::{Directory, SignIn, User};
use super::error::TokenError;
use super::loops::{Loops, Same};
use super::registered::Registered;
use super::scope::{Asked, GRAPH};
use super::tokens::{Tokens, issuers, pairwise};
use crate::emulators::options::Options;
use crate::emulators::signing::Signature;

/// The resource that Key Vault tokens are for. Its tokens are v1.
pub(crate) const KEY_VAULT: &str = "https://vault.azure.net";
/// Where Entra ID is in the real world, and through the proxy.
pub(crate) const LOGIN: &str = "https://login.microsoftonline.com";

/// A token to be minted for a caller of the app.
#[derive(Clone, Debug)]
pub(crate) struct Mint {
    pub(crate) tenant: String,
    /// Object id; none: the demo user's, or, of an app's own token, that of the job's service principal.
    pub(crate) user: Option<String>,
    pub(crate) version: u8,
    pub(crate) roles: Option<Vec<String>>,
    pub(crate) claims: Map<String, Value>,
    pub(crate) signature: Signature,
}

/// The directory and everything it has issued.
pub(crate) struct Entra {
    options: Options,
    /// Where it listens; known when it does.
    origin: OnceLock<String>,
    registered: Registered,
    tokens: Tokens,
    directory: Mutex<Directory>,
    loops: Loops,
}

/// What a grant yields: the body of the answer, and the refresh token in it.
pub(super) struct Grant {
    pub(super) body: Value,
    pub(super) refresh_token: Option<String>,
}

/// The fields of a token request.
pub(super) type Form = HashMap<String, String>;

impl Entra {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            registered: Registered::new(&options),
            tokens: Tokens::new(options.access_token_seconds),
            options,
            origin: OnceLock::new(),
            directory: Mutex::default(),
            loops: Loops::new(),
        }
    }

    /// Where clients reach it, as the first of its routers was told.
    pub(super) fn listens_at(&self, origin: &str) {
        let _ = self.origin.set(origin.to_owned());
    }

    /// The claims of a token that this directory signed, whatever they say.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        self.tokens.verify(token)
    }

    /// Revokes a user's sign-in sessions: `TokensValidFrom` = now.
    pub(crate) fn revoke(&self, tenant: &str, user: &str) {
        self.directory.lock().unwrap().revoke(tenant, user);
    }

    /// Whether a user of this object id is in the tenant: the demo user, or one who has signed in.
    pub(crate) fn knows(&self, tenant: &str, user: &str) -> bool {
        let first = self.options.tenants.first().map(String::as_str);
        let is_demo = Some(tenant) == first && user.eq_ignore_ascii_case(&self.options.demo_user);
        is_demo || self.directory.lock().unwrap().knows(tenant, user)
    }

    /// Disables or enables an account.
    pub(crate) fn set_enabled(&self, tenant: &str, user: &str, enabled: bool) {
        let mut directory = self.directory.lock().unwrap();
        directory.set_enabled(tenant, user, enabled);
    }

    /// Refuses a user's grants with this AADSTS code; none: no more.
    pub(crate) fn refuse(&self, tenant: &str, user: &str, code: Option<u32>) {
        self.directory.lock().unwrap().refuse(tenant, user, code);
    }

    /// Whether identical requests are refused from some number on.
    pub(crate) fn refuse_loops(&self, refuse: bool) {
        self.loops.switch(refuse);
    }

    /// How many requests were refused as a loop.
    pub(crate) fn loops_broken(&self) -> usize {
        self.loops.broken()
    }

    /// Lets time pass on the clock that loops are seen by, and no other.
    pub(crate) fn pass(&self, time: Duration) {
        self.loops.pass(time);
    }

    pub(crate) fn rotate_signing_keys(&self) {
        self.tokens.rotate();
    }

    pub(super) fn jwks(&self, tenant: Option<&str>) -> Value {
        self.tokens.jwks(tenant)
    }

    /// A new client secret of the app, beside those that there are; its id, and it.
    pub(crate) fn add_secret(&self) -> (String, String) {
        let (id, secret) = self.registered.add_secret();
        self.tokens.remember(&secret);
        (id, secret)
    }

    /// A certificate, in PEM, with which the app may sign from now on, too; its id, if it is one of an RSA key.
    pub(crate) fn add_certificate(&self, pem: &str) -> Option<String> {
        self.registered.add_certificate(pem)
    }

    /// Whether there was a credential of the app of this id, which is no good any more.
    pub(crate) fn remove_credential(&self, id: &str) -> bool {
        self.registered.remove(id)
    }

    /// The credentials of the app, oldest first.
    pub(crate) fn credentials(&self) -> Value {
        self.registered.list()
    }

    /// Every token issued, minted or shown so far, whole: for a search that must find none of them.
    pub(crate) fn issued(&self) -> Vec<String> {
        let mut issued = self.tokens.issued();
        let directory = self.directory.lock().unwrap();
        issued.extend(directory.refresh_tokens().cloned());
        issued
    }

    /// An access token for the app, as a caller would hold it.
    pub(crate) fn mint(&self, mint: &Mint) -> String {
        let (tenant, app) = (&mint.tenant, &self.options.client_id);
        let (client, user) = match mint.roles {
            Some(_) => (&self.options.job_id, &self.options.job_principal_id),
            None => (&self.options.front_end_id, &self.options.demo_user),
        };
        let user = mint.user.as_ref().unwrap_or(user);
        let mut claims = self.tokens.claims(mint.version, tenant, client, app);
        if mint.version == 1 {
            // An App ID URI, as v1 tokens usually carry.
            claims["aud"] = json!(format!("api://{app}"));
        }
        claims["oid"] = json!(user);
        if let Some(roles) = &mint.roles {
            claims["sub"] = json!(user);
            claims["roles"] = json!(roles);
        } else {
            claims["sub"] = json!(pairwise(app, tenant, user));
            claims["scp"] = json!("access_as_user");
        }
        for (name, value) in &mint.claims {
            let claims = claims.as_object_mut().expect("claims are an object");
            if value.is_null() {
                claims.remove(name);
            } else {
                claims.insert(name.clone(), value.clone());
            }
        }
        self.tokens.sign(mint.signature, mint.version, &claims)
    }

    /// A token of the platform's managed identity.
    pub(crate) fn identity_token(&self, resource: &str) -> String {
        let id = &self.options.managed_identity_id;
        // Key Vault's are v1, a federated credential is v2.
        let version = if resource == FEDERATION { 2 } else { 1 };
        let tenant = &self.options.key_vault_tenant;
        let mut claims = self.tokens.claims(version, tenant, id, resource);
        claims["oid"] = json!(id);
        claims["sub"] = json!(id);
        claims["idtyp"] = json!("app");
        claims["exp"] = json!(Timestamp::now().as_second() + 86_400);
        self.add_roles(&mut claims);
        self.tokens.sign(Signature::Good, version, &claims)
    }

    /// A refresh token of a user who has signed in.
    pub(crate) fn refresh_token(&self, tenant: &str, user: &str) -> String {
        let mut directory = self.directory.lock().unwrap();
        let sign_in = directory.sign_in(tenant, user, GRAPH);
        directory.issue(sign_in)
    }

    /// A token of another issuer, for the app as a federated credential.
    pub(crate) fn federated_token(&self) -> String {
        let token = external_token();
        self.tokens.remember(&token);
        token
    }

    /// The tenant id that a path names.
    pub(super) fn tenant(&self, named: &str) -> Result<String, TokenError> {
        if ["common", "organizations", "consumers"].contains(&named) {
            return Err(TokenError::new(9_001_023));
        }
        let named = named.to_ascii_lowercase();
        self.options
            .tenants
            .iter()
            .find(|tenant| **tenant == named)
            .cloned()
            .ok_or_else(|| TokenError::new(90_002))
    }

    /// A request to the token endpoint of the tenant that its path names.
    pub(super) fn token(
        &self,
        tenant: &str,
        form: &Form,
        headers: &HeaderMap,
    ) -> Result<Grant, TokenError> {
        let tenant = self.tenant(tenant)?;
        let field = |name: &'static str| {
            form.get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let required = |name: &'static str| field(name).ok_or_else(|| TokenError::missing(name));
        let grant = required("grant_type")?;
        // The endpoint that was called: here, or by its real name through the proxy.
        let origin = self.origin.get().map_or("", String::as_str);
        let client = Client {
            options: &self.options,
            registered: &self.registered,
            tokens: &self.tokens,
            endpoints: [origin, LOGIN].map(|origin| format!("{origin}/{tenant}/oauth2/v2.0/token")),
        };
        let who = client.authenticate(form, headers)?;
        if who != self.options.client_id && grant != "client_credentials" {
            return Err(TokenError::new(700_016));
        }
        if let Some((of, user)) = self.user_of(grant, form) {
            let text = |name| field(name).unwrap_or_default().to_owned();
            let request = Same {
                client: self.options.client_id.clone(),
                tenant: of,
                user,
                grant: grant.to_owned(),
                scope: text("scope"),
                claims: text("claims"),
            };
            if self.loops.is_loop(request) {
                return Err(TokenError::new(50_196));
            }
        }
        match grant {
            "client_credentials" => self.client_credentials(&who, &tenant, required("scope")?),
            "refresh_token" => {
                self.refresh(&tenant, required("refresh_token")?, field("scope"), form)
            }
            "urn:ietf:params:oauth:grant-type:jwt-bearer" => {
                if required("requested_token_use")? != "on_behalf_of" {
                    return Err(TokenError::new(9_002_313));
                }
                self.on_behalf_of(&tenant, required("assertion")?, required("scope")?, form)
            }
            _ => Err(TokenError::new(70_003)),
        }
    }

    /// The user whom a request is for, refused or not; none: this app itself, or nobody whom anybody knows.
    fn user_of(&self, grant: &str, form: &Form) -> Option<User> {
        match grant {
            "refresh_token" => {
                let directory = self.directory.lock().unwrap();
                directory.user_of(form.get("refresh_token")?)
            }
            "client_credentials" => None,
            _ => {
                let claims = self.verify(form.get("assertion")?)?;
                let text = |name: &str| Some(claims[name].as_str()?.to_owned());
                Some((text("tid")?, text("oid")?))
            }
        }
    }

    fn is_the_app(&self, audience: &str) -> bool {
        let id = &self.options.client_id;
        audience == id || audience.strip_prefix("api://") == Some(id)
    }

    /// The app roles that are assigned at the audience; without one there is no such claim.
    fn add_roles(&self, claims: &mut Value) {
        let audience = claims["aud"].as_str().unwrap_or_default();
        let roles = match audience.trim_end_matches('/') {
            GRAPH => &self.options.graph_roles,
            audience if self.is_the_app(audience) => &self.options.app_roles,
            _ => return,
        };
        if !roles.is_empty() {
            claims["roles"] = json!(roles);
        }
    }

    fn client_credentials(
        &self,
        client_id: &str,
        tenant: &str,
        scope: &str,
    ) -> Result<Grant, TokenError> {
        let mut scopes = scope.split_ascii_whitespace();
        let (Some(scope), None) = (scopes.next(), scopes.next()) else {
            return Err(TokenError::new(700_022));
        };
        // Exactly what precedes `/.default` becomes the audience, a slash at its end included, and Key Vault refuses that.
        let audience = scope
            .strip_suffix("/.default")
            .ok_or_else(|| TokenError::new(70_011))?;
        // Tokens for the app are v2, with its client id for audience whatever it was asked by.
        let (version, audience) = if self.is_the_app(audience) {
            (2, self.options.client_id.as_str())
        } else if [KEY_VAULT, GRAPH].contains(&audience.trim_end_matches('/')) {
            (1, audience)
        } else {
            return Err(TokenError::new(500_011));
        };
        // Issued whatever roles the app has; the resource decides.
        let mut claims = self.tokens.claims(version, tenant, client_id, audience);
        claims["oid"] = if client_id == self.options.client_id {
            json!(self.options.service_principal_id)
        } else {
            json!(client_id)
        };
        claims["sub"] = claims["oid"].clone();
        claims["idtyp"] = json!("app");
        self.add_roles(&mut claims);
        let access_token = self.tokens.sign(Signature::Good, version, &claims);
        let seconds = self.tokens.seconds;
        let body = json!({
            "token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": access_token,
        });
        Ok(Grant {
            body,
            refresh_token: None,
        })
    }

    fn on_behalf_of(
        &self,
        tenant: &str,
        assertion: &str,
        scope: &str,
        form: &Form,
    ) -> Result<Grant, TokenError> {
        // Signature and issuer, audience, time, kind of token: which code each has is known, but not their order.
        let claims = self
            .verify(assertion)
            .ok_or_else(|| TokenError::new(50_013))?;
        if !issuers(tenant)
            .iter()
            .any(|issuer| claims["iss"] == *issuer)
        {
            return Err(TokenError::new(50_013));
        }
        let client_id = &self.options.client_id;
        if ![client_id.clone(), format!("api://{client_id}")]
            .iter()
            .any(|audience| claims["aud"] == *audience)
        {
            return Err(TokenError::new(500_131));
        }
        let now = Timestamp::now().as_second();
        let time = |name: &str| claims[name].as_i64();
        if time("exp").is_none_or(|exp| exp <= now)
            || time("nbf").is_some_and(|nbf| nbf > now + 300)
        {
            return Err(TokenError::new(500_133));
        }
        if claims.get("scp").is_none() {
            // On-Behalf-Of is for users only.
            return Err(TokenError::new(7_000_114));
        }
        let user = claims["oid"]
            .as_str()
            .ok_or_else(|| TokenError::new(50_013))?;
        let asked = Asked::read(scope, &self.options)?;
        let mut sign_in = {
            let mut directory = self.directory.lock().unwrap();
            directory.accept(tenant, user, time("iat"))?;
            directory.sign_in(tenant, user, &asked.resource)
        };
        // An optional claim, which stays the same for what follows of a sign-in
        // (<https://learn.microsoft.com/entra/identity-platform/optional-claims-reference>).
        sign_in.session = claims["sid"].as_str().map(ToOwned::to_owned);
        let refreshable = asked.offline || self.options.always_refreshable;
        Ok(self.grant(sign_in, &asked, refreshable, form))
    }

    fn refresh(
        &self,
        tenant: &str,
        token: &str,
        scope: Option<&str>,
        form: &Form,
    ) -> Result<Grant, TokenError> {
        let sign_in = self.directory.lock().unwrap().redeem(token)?;
        if sign_in.tenant != tenant {
            return Err(TokenError::new(50_020));
        }
        // Bound to user and client, not to a resource: any consented scope will do.
        let scope = scope.map_or_else(
            || format!("{}/.default", sign_in.resource),
            ToOwned::to_owned,
        );
        let asked = Asked::read(&scope, &self.options)?;
        Ok(self.grant(sign_in, &asked, true, form))
    }

    fn grant(
        &self,
        sign_in: SignIn,
        asked: &Asked,
        with_refresh_token: bool,
        form: &Form,
    ) -> Grant {
        let token_for = |audience: &str, scope: Option<String>| {
            let (tenant, client_id) = (&sign_in.tenant, &self.options.client_id);
            let mut claims = self.tokens.claims(2, tenant, client_id, audience);
            claims["oid"] = json!(sign_in.user);
            claims["sub"] = json!(pairwise(audience, tenant, &sign_in.user));
            if let Some(scope) = scope {
                claims["scp"] = json!(scope);
            }
            if let Some(session) = &sign_in.session {
                claims["sid"] = json!(session);
            }
            self.tokens.sign(Signature::Good, 2, &claims)
        };
        let seconds = self.tokens.seconds;
        let mut body = json!({
            "token_type": "Bearer", "scope": asked.granted(), "expires_in": seconds, "ext_expires_in": seconds,
            "access_token": token_for(&asked.resource, Some(asked.permissions.join(" "))),
        });
        if let Some(seconds) = self.options.refresh_in {
            body["refresh_in"] = json!(seconds);
        }
        if asked.openid.iter().any(|scope| scope == "openid") {
            body["id_token"] = json!(token_for(&self.options.client_id, None));
        }
        if form.get("client_info").is_some_and(|value| value == "1") {
            let info = json!({ "uid": sign_in.user, "utid": sign_in.tenant }).to_string();
            body["client_info"] = json!(BASE64_URL_SAFE_NO_PAD.encode(info));
        }
        let refresh_token =
            with_refresh_token.then(|| self.directory.lock().unwrap().issue(sign_in));
        if let Some(token) = &refresh_token {
            body["refresh_token"] = json!(token);
        }
        Grant {
            body,
            refresh_token,
        }
    }
}
