//! Entra ID: token endpoint, signing keys, metadata (facts §A, §B).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use jsonwebtoken::Algorithm;
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Map, Value, json};
use url::form_urlencoded;
use uuid::Uuid;

use super::Options;
use super::journal::{Target, fingerprint};
use super::jwt;
use super::server::Remarks;
use super::signing::{self, KeyRing, Signature};
use super::token_error::{TokenError, respond};

/// The resource that Key Vault tokens are for. Its tokens are v1 (facts §D.5, AKV10032).
pub(crate) const KEY_VAULT: &str = "https://vault.azure.net";
/// The resource of the downstream API.
pub(crate) const GRAPH: &str = "https://graph.microsoft.com";

/// The audience of federated credentials.
pub(crate) const FEDERATION: &str = "api://AzureADTokenExchange";
/// Where Entra ID is in the real world, and through the proxy.
pub(crate) const LOGIN: &str = "https://login.microsoftonline.com";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// What the app trusts besides: a workload somewhere else.
const EXTERNAL_ISSUER: &str = "https://token.actions.githubusercontent.com";
const EXTERNAL_SUBJECT: &str = "repo:contoso/app:environment:prod";

/// A token to be minted for a caller of the app.
#[derive(Clone, Debug)]
pub(crate) struct Mint {
    pub(crate) tenant: String,
    pub(crate) user: String,
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
    state: Mutex<Directory>,
}

impl Entra {
    pub(crate) fn new(options: Options) -> Self {
        let state = Directory {
            ring: KeyRing::new(),
            refresh_tokens: HashMap::new(),
            revoked: HashMap::new(),
            disabled: HashSet::new(),
            refused: HashMap::new(),
            issued: Vec::new(),
            moment: 0,
        };
        Self {
            options,
            origin: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    /// `origin` is where clients reach it.
    pub(crate) fn router(self: Arc<Self>, origin: String) -> Router {
        let _ = self.origin.set(origin.clone());
        Router::new()
            .route("/common/discovery/instance", get(instances))
            .route("/{tenant}/oauth2/v2.0/token", post(token))
            .route("/{tenant}/discovery/v2.0/keys", get(signing_keys))
            .route("/{tenant}/discovery/keys", get(signing_keys))
            .route(
                "/{tenant}/v2.0/.well-known/openid-configuration",
                get(metadata_v2),
            )
            .route(
                "/{tenant}/.well-known/openid-configuration",
                get(metadata_v1),
            )
            .with_state(Service {
                entra: self,
                origin: origin.into(),
            })
    }

    pub(crate) fn classify(path: &str) -> Target {
        if path.ends_with("/token") {
            Target::EntraToken
        } else if path.ends_with("/keys") {
            Target::Jwks
        } else {
            Target::EntraMetadata
        }
    }

    /// The claims of a token that this directory signed, whatever they say.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        let ring = self.state.lock().unwrap().ring;
        ring.verify(token)
    }

    /// Revokes a user's sign-in sessions: `TokensValidFrom` = now.
    pub(crate) fn revoke(&self, tenant: &str, user: &str) {
        let mut state = self.state.lock().unwrap();
        let moment = state.tick();
        state.revoked.insert(
            key(tenant, user),
            Revocation {
                moment,
                at: Timestamp::now(),
            },
        );
    }

    /// Disables or enables an account.
    pub(crate) fn set_enabled(&self, tenant: &str, user: &str, enabled: bool) {
        let mut state = self.state.lock().unwrap();
        if enabled {
            state.disabled.remove(&key(tenant, user));
        } else {
            state.disabled.insert(key(tenant, user));
        }
    }

    /// Refuses a user's grants with this AADSTS code; none: no more.
    pub(crate) fn refuse(&self, tenant: &str, user: &str, code: Option<u32>) {
        let mut state = self.state.lock().unwrap();
        match code {
            Some(code) => state.refused.insert(key(tenant, user), code),
            None => state.refused.remove(&key(tenant, user)),
        };
    }

    pub(crate) fn rotate_signing_keys(&self) {
        self.state.lock().unwrap().ring.rotate();
    }

    /// Keeps an assertion of the app for the search: some it made itself.
    fn remember(&self, assertion: &str) {
        let issued = &mut self.state.lock().unwrap().issued;
        if !issued.iter().any(|known| known == assertion) {
            issued.push(assertion.to_owned());
        }
    }

    /// Every token issued, minted or shown so far, whole: for a search that must find none of them.
    pub(crate) fn issued(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .issued
            .iter()
            .chain(state.refresh_tokens.keys())
            .cloned()
            .collect()
    }

    /// An access token for the app, as a caller would hold it.
    pub(crate) fn mint(&self, mint: &Mint) -> String {
        let tenant = &mint.tenant;
        let front_end = &self.options.front_end_id;
        let mut claims = self.claims(mint.version, tenant, front_end, &self.options.client_id);
        if mint.version == 1 {
            // An App ID URI, as v1 tokens usually carry (facts §B).
            claims["aud"] = json!(format!("api://{}", self.options.client_id));
        }
        claims["oid"] = json!(mint.user);
        if let Some(roles) = &mint.roles {
            claims["sub"] = json!(mint.user);
            claims["roles"] = json!(roles);
        } else {
            claims["sub"] = json!(pairwise(&self.options.client_id, tenant, &mint.user));
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
        self.sign(mint.signature, mint.version, &claims)
    }

    fn token(
        &self,
        tenant: &str,
        form: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Result<Issued, TokenError> {
        let tenant = self.tenant(tenant)?;
        let field = |name: &'static str| {
            form.get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let required = |name: &'static str| field(name).ok_or_else(|| TokenError::missing(name));
        let grant = required("grant_type")?;
        self.authenticate(&tenant, form, headers)?;
        match grant {
            "client_credentials" => self.client_credentials(&tenant, required("scope")?),
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

    /// The tenant id that a path names.
    fn tenant(&self, named: &str) -> Result<String, TokenError> {
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

    /// One of the ways of facts §A.2 and §A.3.
    fn authenticate(
        &self,
        tenant: &str,
        form: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Result<(), TokenError> {
        let basic = basic_credentials(headers);
        let (id, secret) = match &basic {
            Some((id, secret)) => (Some(id), Some(secret)),
            None => (form.get("client_id"), form.get("client_secret")),
        };
        let id = id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| TokenError::missing("client_id"))?;
        if !id.eq_ignore_ascii_case(&self.options.client_id) {
            return Err(TokenError::new(700_016));
        }
        if let Some(assertion) = form.get("client_assertion") {
            if form.get("client_assertion_type").map(String::as_str) != Some(ASSERTION_TYPE) {
                return Err(TokenError::new(900_144));
            }
            self.remember(assertion);
            return self.client_assertion(tenant, assertion);
        }
        match secret {
            None => Err(TokenError::new(7_000_218)),
            Some(secret) if *secret == self.options.client_secret => Ok(()),
            Some(_) => Err(TokenError::new(7_000_215)),
        }
    }

    /// A JWT that the app's certificate signed, or a federated credential.
    fn client_assertion(&self, tenant: &str, assertion: &str) -> Result<(), TokenError> {
        let header = jwt::header(assertion).ok_or_else(|| TokenError::new(700_027))?;
        // Padded or not: Microsoft's own libraries differ (facts §A.3).
        let is = |member: &Option<String>, thumbprint: &str| {
            member
                .as_ref()
                .is_some_and(|member| member.trim_end_matches('=') == thumbprint)
        };
        let app = signing::app_certificate();
        let algorithm = if is(&header.x5t_s256, &app.x5t_s256()) {
            Some(Algorithm::PS256)
        } else if is(&header.x5t, app.x5t()) {
            Some(Algorithm::RS256)
        } else {
            None
        };
        if let Some(algorithm) = algorithm {
            let claims = app
                .verify(assertion, algorithm)
                .ok_or_else(|| TokenError::new(700_027))?;
            // The endpoint that was called: here, or by its real name through the proxy.
            let origin = self.origin.get().map_or("", String::as_str);
            let endpoint =
                [origin, LOGIN].map(|origin| json!(format!("{origin}/{tenant}/oauth2/v2.0/token")));
            let id = json!(self.options.client_id);
            let names_the_app = claims["iss"] == id && claims["sub"] == id;
            if !names_the_app || !endpoint.contains(&claims["aud"]) || !claims["jti"].is_string() {
                return Err(TokenError::new(700_027));
            }
            return in_time(&claims);
        }
        // A federated credential: issuer, subject and audience exactly as configured.
        let (claims, issuer, subject) = match self.verify(assertion) {
            Some(claims) => (
                claims,
                issuers(&self.options.key_vault_tenant)[1].clone(),
                self.options.managed_identity_id.clone(),
            ),
            None => (
                signing::external_issuer()
                    .verify(assertion, Algorithm::RS256)
                    .ok_or_else(|| TokenError::new(700_027))?,
                EXTERNAL_ISSUER.to_owned(),
                EXTERNAL_SUBJECT.to_owned(),
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

    /// A token of the platform's managed identity.
    pub(crate) fn identity_token(&self, resource: &str) -> String {
        let tenant = &self.options.key_vault_tenant;
        let id = &self.options.managed_identity_id;
        // Key Vault's are v1, a federated credential is v2.
        let version = if resource == FEDERATION { 2 } else { 1 };
        let mut claims = self.claims(version, tenant, id, resource);
        claims["oid"] = json!(id);
        claims["sub"] = json!(id);
        claims["idtyp"] = json!("app");
        claims["exp"] = json!(now() + 86_400);
        self.sign(Signature::Good, version, &claims)
    }

    /// A refresh token of a user who has signed in.
    pub(crate) fn refresh_token(&self, tenant: &str, user: &str) -> String {
        let mut state = self.state.lock().unwrap();
        let token = new_refresh_token();
        let session = Session {
            tenant: tenant.to_owned(),
            user: user.to_owned(),
            resource: GRAPH.to_owned(),
            moment: state.tick(),
        };
        state.refresh_tokens.insert(token.clone(), session);
        token
    }

    /// A token of another issuer, for the app as a federated credential.
    pub(crate) fn federated_token(&self) -> String {
        let now = now();
        let token = signing::external_issuer().sign(&json!({
            "iss": EXTERNAL_ISSUER, "sub": EXTERNAL_SUBJECT, "aud": FEDERATION, "iat": now, "nbf": now, "exp": now + 3600,
        }));
        self.state.lock().unwrap().issued.push(token.clone());
        token
    }

    fn client_credentials(&self, tenant: &str, scope: &str) -> Result<Issued, TokenError> {
        // Exactly what precedes `/.default` becomes the audience, a trailing slash included (facts §D.5, AKV10022).
        let mut scopes = scope.split_ascii_whitespace();
        let (Some(scope), None) = (scopes.next(), scopes.next()) else {
            return Err(TokenError::new(700_022));
        };
        let audience = scope
            .strip_suffix("/.default")
            .ok_or_else(|| TokenError::new(70_011))?;
        if ![KEY_VAULT, GRAPH].contains(&audience.trim_end_matches('/')) {
            return Err(TokenError::new(500_011));
        }
        // Issued whatever roles the app has; the resource decides (facts §A.2, 5).
        let mut claims = self.claims(1, tenant, &self.options.client_id, audience);
        claims["oid"] = json!(self.options.service_principal_id);
        claims["sub"] = claims["oid"].clone();
        claims["idtyp"] = json!("app");
        let access_token = self.sign(Signature::Good, 1, &claims);
        let seconds = self.options.access_token_seconds;
        let body = json!({
            "token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": access_token,
        });
        Ok(Issued {
            body,
            refresh_token: None,
        })
    }

    fn on_behalf_of(
        &self,
        tenant: &str,
        assertion: &str,
        scope: &str,
        form: &HashMap<String, String>,
    ) -> Result<Issued, TokenError> {
        // Signature and issuer, audience, time, kind of token: facts §A.7 gives the codes, not their order.
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
        let now = now();
        let time = |name: &str| claims[name].as_i64();
        if time("exp").is_none_or(|exp| exp <= now)
            || time("nbf").is_some_and(|nbf| nbf > now + 300)
        {
            return Err(TokenError::new(500_133));
        }
        if claims.get("scp").is_none() {
            // OBO is for users only (facts §A.2, 3).
            return Err(TokenError::new(7_000_114));
        }
        let user = claims["oid"]
            .as_str()
            .ok_or_else(|| TokenError::new(50_013))?
            .to_owned();
        let asked = self.scope(scope)?;
        let session = {
            let mut state = self.state.lock().unwrap();
            if let Some(revoked) = state.revoked.get(&key(tenant, &user))
                && time("iat").is_none_or(|iat| iat < revoked.at.as_second())
            {
                return Err(TokenError::revoked(revoked.at));
            }
            if state.disabled.contains(&key(tenant, &user)) {
                return Err(TokenError::new(50_057));
            }
            if let Some(code) = state.refused.get(&key(tenant, &user)) {
                return Err(TokenError::new(*code));
            }
            Session {
                tenant: tenant.to_owned(),
                user,
                resource: asked.resource.clone(),
                moment: state.tick(),
            }
        };
        let refreshable = asked.offline || self.options.always_refreshable;
        Ok(self.issue(session, &asked, refreshable, form))
    }

    fn refresh(
        &self,
        tenant: &str,
        token: &str,
        scope: Option<&str>,
        form: &HashMap<String, String>,
    ) -> Result<Issued, TokenError> {
        let session = {
            let state = self.state.lock().unwrap();
            let session = state
                .refresh_tokens
                .get(token)
                .ok_or_else(|| TokenError::new(9_002_313))?
                .clone();
            let user = key(&session.tenant, &session.user);
            if let Some(revoked) = state.revoked.get(&user)
                && session.moment < revoked.moment
            {
                return Err(TokenError::revoked(revoked.at));
            }
            if state.disabled.contains(&user) {
                return Err(TokenError::new(50_057));
            }
            if let Some(code) = state.refused.get(&user) {
                return Err(TokenError::new(*code));
            }
            session
        };
        if session.tenant != tenant {
            return Err(TokenError::new(50_020));
        }
        // Bound to user and client, not to a resource: any consented scope will do (facts §A.2, 4).
        let asked = self.scope(scope.unwrap_or(&format!("{}/.default", session.resource)))?;
        // Every refresh returns a new token, and the old one stays valid (facts §A.9).
        Ok(self.issue(session, &asked, true, form))
    }

    /// Parses a scope parameter (facts §A.2; codes in §A.7).
    fn scope(&self, scope: &str) -> Result<Asked, TokenError> {
        let mut asked = Asked {
            resource: String::new(),
            permissions: Vec::new(),
            default: false,
            openid: Vec::new(),
            offline: false,
        };
        for part in scope.split_ascii_whitespace() {
            match part {
                "offline_access" => asked.offline = true,
                "openid" | "profile" | "email" => asked.openid.push(part.to_owned()),
                _ => {
                    // A name without a resource is Graph's.
                    let (resource, permission) = part.rsplit_once('/').unwrap_or((GRAPH, part));
                    if asked.resource.is_empty() {
                        resource.clone_into(&mut asked.resource);
                    }
                    // Scopes of two resources: the token is for the first.
                    if resource != asked.resource {
                        continue;
                    }
                    match permission {
                        "" => return Err(TokenError::new(70_011)),
                        ".default" => asked.default = true,
                        _ => asked.permissions.push(permission.to_owned()),
                    }
                }
            }
        }
        if asked.resource.is_empty() {
            GRAPH.clone_into(&mut asked.resource);
            asked.permissions.push("User.Read".to_owned());
        }
        if asked.default && !asked.permissions.is_empty() {
            return Err(TokenError::new(70_011));
        }
        if asked.resource != GRAPH {
            return Err(TokenError::new(500_011));
        }
        let consented = &self.options.consented;
        if asked.default {
            asked.permissions.clone_from(consented);
        }
        for permission in &mut asked.permissions {
            let known = consented
                .iter()
                .find(|known| known.eq_ignore_ascii_case(permission));
            known
                .ok_or_else(|| TokenError::new(65_001))?
                .clone_into(permission);
        }
        if self.options.over_grant {
            asked.permissions.clone_from(consented);
        }
        Ok(asked)
    }

    fn issue(
        &self,
        session: Session,
        asked: &Asked,
        with_refresh_token: bool,
        form: &HashMap<String, String>,
    ) -> Issued {
        let client_id = &self.options.client_id;
        let mut claims = self.claims(2, &session.tenant, client_id, &asked.resource);
        claims["oid"] = json!(session.user);
        claims["sub"] = json!(pairwise(&asked.resource, &session.tenant, &session.user));
        claims["scp"] = json!(asked.permissions.join(" "));
        let access_token = self.sign(Signature::Good, 2, &claims);

        let mut scope = asked.openid.clone();
        scope.extend(
            asked
                .permissions
                .iter()
                .map(|permission| format!("{}/{permission}", asked.resource)),
        );
        if asked.default {
            scope.push(format!("{}/.default", asked.resource));
        }
        let seconds = self.options.access_token_seconds;
        let mut body = json!({
            "token_type": "Bearer", "scope": scope.join(" "), "expires_in": seconds, "ext_expires_in": seconds,
            "access_token": access_token,
        });
        if let Some(seconds) = self.options.refresh_in {
            body["refresh_in"] = json!(seconds);
        }
        if asked.openid.iter().any(|scope| scope == "openid") {
            let mut claims = self.claims(2, &session.tenant, client_id, client_id);
            claims["oid"] = json!(session.user);
            claims["sub"] = json!(pairwise(client_id, &session.tenant, &session.user));
            body["id_token"] = json!(self.sign(Signature::Good, 2, &claims));
        }
        if form.get("client_info").is_some_and(|value| value == "1") {
            let info = json!({ "uid": session.user, "utid": session.tenant }).to_string();
            body["client_info"] = json!(BASE64_URL_SAFE_NO_PAD.encode(info));
        }
        let refresh_token = with_refresh_token.then(|| {
            let token = new_refresh_token();
            body["refresh_token"] = json!(token);
            self.state
                .lock()
                .unwrap()
                .refresh_tokens
                .insert(token.clone(), session);
            token
        });
        Issued {
            body,
            refresh_token,
        }
    }

    /// The claims that every token has (facts §B). Issuers are the real ones, wherever this emulator listens.
    fn claims(&self, version: u8, tenant: &str, client: &str, audience: &str) -> Value {
        let now = now();
        let [v1, v2] = issuers(tenant);
        let mut claims = json!({
            "aud": audience, "iat": now, "nbf": now,
            "exp": now + i64::from(self.options.access_token_seconds),
            "tid": tenant, "uti": random_text(16),
        });
        let (issuer, names, text) = if version == 1 {
            (v1, ["appid", "appidacr"], "1.0")
        } else {
            (v2, ["azp", "azpacr"], "2.0")
        };
        claims["iss"] = json!(issuer);
        claims[names[0]] = json!(client);
        claims[names[1]] = json!("1");
        claims["ver"] = json!(text);
        claims
    }

    fn sign(&self, how: Signature, version: u8, claims: &Value) -> String {
        let ring = self.state.lock().unwrap().ring;
        let token = ring.sign(how, version, claims);
        self.state.lock().unwrap().issued.push(token.clone());
        token
    }
}

#[derive(Clone)]
struct Service {
    entra: Arc<Entra>,
    origin: Arc<str>,
}

struct Directory {
    ring: KeyRing,
    /// Every refresh token ever issued: none dies but by revocation.
    refresh_tokens: HashMap<String, Session>,
    revoked: HashMap<(String, String), Revocation>,
    disabled: HashSet<(String, String)>,
    /// Users whose grants are refused, and the AADSTS code.
    refused: HashMap<(String, String), u32>,
    issued: Vec<String>,
    moment: u64,
}

impl Directory {
    /// Orders sign-ins and revocations, which seconds cannot.
    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}

/// What one sign-in allows. All refresh tokens of one chain share it.
#[derive(Clone)]
struct Session {
    tenant: String,
    user: String,
    resource: String,
    moment: u64,
}

struct Revocation {
    moment: u64,
    at: Timestamp,
}

struct Asked {
    resource: String,
    permissions: Vec<String>,
    default: bool,
    openid: Vec<String>,
    offline: bool,
}

struct Issued {
    body: Value,
    refresh_token: Option<String>,
}

async fn token(
    State(service): State<Service>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let form = form_urlencoded::parse(&body).into_owned().collect();
    match service.entra.token(&tenant, &form, &headers) {
        Ok(issued) => {
            let mut response = respond(
                StatusCode::OK,
                &issued.body,
                &Uuid::new_v4().to_string(),
                "1,0,0,,",
            );
            let issued = issued.refresh_token.as_deref().map(fingerprint);
            response.extensions_mut().insert(Remarks {
                aadsts: None,
                issued,
            });
            response
        }
        Err(error) => error.response(
            headers
                .get("client-request-id")
                .and_then(|id| id.to_str().ok()),
        ),
    }
}

async fn signing_keys(State(service): State<Service>, Path(tenant): Path<String>) -> Response {
    let tenant = match tenant.as_str() {
        "common" | "organizations" | "consumers" => None,
        named => match service.entra.tenant(named) {
            Ok(tenant) => Some(tenant),
            Err(error) => return error.response(None),
        },
    };
    let ring = service.entra.state.lock().unwrap().ring;
    axum::Json(ring.jwks(tenant.as_deref())).into_response()
}

/// Names of the same cloud (facts §A.10).
async fn instances() -> Response {
    axum::Json(json!({
        "tenant_discovery_endpoint": format!("{LOGIN}/common/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{
            "preferred_network": "login.microsoftonline.com", "preferred_cache": "login.windows.net",
            "aliases": ["login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"],
        }],
    }))
    .into_response()
}

async fn metadata_v1(service: State<Service>, tenant: Path<String>) -> Response {
    metadata(&service, &tenant, 1)
}

async fn metadata_v2(service: State<Service>, tenant: Path<String>) -> Response {
    metadata(&service, &tenant, 2)
}

fn metadata(service: &Service, tenant: &str, version: u8) -> Response {
    let named = match tenant {
        "common" | "organizations" => "{tenantid}".to_owned(),
        named => match service.entra.tenant(named) {
            Ok(tenant) => tenant,
            // 400 `invalid_tenant` here, `invalid_request` at the token endpoint (facts §A.7).
            Err(mut error) => {
                "invalid_tenant".clone_into(&mut error.error);
                return error.response(None);
            }
        },
    };
    let base = format!("{}/{tenant}", service.origin);
    let [v1, v2] = issuers(&named);
    let (issuer, infix) = if version == 1 {
        (v1, "")
    } else {
        (v2, "/v2.0")
    };
    let body = json!({
        "token_endpoint": format!("{base}/oauth2{infix}/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "jwks_uri": format!("{base}/discovery{infix}/keys"),
        "response_modes_supported": ["query", "fragment", "form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "issuer": issuer,
        "request_uri_parameter_supported": false,
        "userinfo_endpoint": "https://graph.microsoft.com/oidc/userinfo",
        "authorization_endpoint": format!("{base}/oauth2{infix}/authorize"),
        "device_authorization_endpoint": format!("{base}/oauth2{infix}/devicecode"),
        "http_logout_supported": true,
        "frontchannel_logout_supported": true,
        "end_session_endpoint": format!("{base}/oauth2{infix}/logout"),
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
        "cloud_graph_host_name": "graph.windows.net",
        "msgraph_host": "graph.microsoft.com",
        "rbac_url": "https://pas.windows.net",
    });
    (
        [(header::CACHE_CONTROL, "max-age=86400, private")],
        axum::Json(body),
    )
        .into_response()
}

/// v1 and v2 (facts §B).
fn issuers(tenant: &str) -> [String; 2] {
    [
        format!("https://sts.windows.net/{tenant}/"),
        format!("https://login.microsoftonline.com/{tenant}/v2.0"),
    ]
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

/// About as long as Entra ID's are.
fn new_refresh_token() -> String {
    format!("1.AXoA{}", random_text(780))
}

/// `sub`: differs by app (facts §B).
fn pairwise(app: &str, tenant: &str, user: &str) -> String {
    let hash = digest::digest(&digest::SHA256, format!("{app}/{tenant}/{user}").as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}

fn key(tenant: &str, user: &str) -> (String, String) {
    (tenant.to_ascii_lowercase(), user.to_ascii_lowercase())
}

/// Random bytes as base64url text.
pub(crate) fn random_text(bytes: usize) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(random(bytes))
}

pub(crate) fn random(bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    SystemRandom::new().fill(&mut random).expect("random bytes");
    random
}

pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}
