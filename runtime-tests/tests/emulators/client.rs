//! Requests to the emulators, and what tests look at in the answers.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use reqwest::{Client, Method, Response, StatusCode};
use runtime_tests::emulators::{Emulators, Options, TENANT};
use serde_json::Value;

/// `grant_type` of On-Behalf-Of.
pub(crate) const OBO: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const GRAPH: &str = "https://graph.microsoft.com/.default offline_access";

/// The emulators, and a client.
pub(crate) struct World {
    pub(crate) emulators: Emulators,
    pub(crate) client: Client,
}

pub(crate) type Form = Vec<(&'static str, String)>;

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self {
            emulators: Emulators::start(options).await.unwrap(),
            client: Client::new(),
        }
    }

    pub(crate) fn form(&self, fields: &[(&'static str, &str)]) -> Form {
        let options = self.emulators.options();
        let mut form = vec![
            ("client_id", options.client_id.clone()),
            ("client_secret", options.client_secret.clone()),
        ];
        form.extend(
            fields
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        form
    }

    pub(crate) fn obo(&self, assertion: &str) -> Form {
        self.form(&[
            ("grant_type", OBO),
            ("requested_token_use", "on_behalf_of"),
            ("assertion", assertion),
            ("scope", GRAPH),
        ])
    }

    pub(crate) fn refresh(&self, token: &str) -> Form {
        self.form(&[("grant_type", "refresh_token"), ("refresh_token", token)])
    }

    pub(crate) async fn try_post_token(
        &self,
        tenant: &str,
        form: &Form,
    ) -> reqwest::Result<Response> {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", self.emulators.authority());
        let request = self
            .client
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded");
        request.body(encoded(form)).send().await
    }

    pub(crate) async fn post_token(&self, tenant: &str, form: &Form) -> Response {
        self.try_post_token(tenant, form).await.unwrap()
    }

    pub(crate) async fn token(&self, form: &Form) -> Value {
        let response = self.post_token(TENANT, form).await;
        let (status, body): (_, Value) = (response.status(), response.json().await.unwrap());
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Status, `error`, code, `suberror`.
    pub(crate) async fn error(&self, tenant: &str, form: &Form) -> (u16, String, u64, String) {
        let response = self.post_token(tenant, form).await;
        let (status, body): (_, Value) =
            (response.status().as_u16(), response.json().await.unwrap());
        let code = body["error_codes"][0]
            .as_u64()
            .unwrap_or_else(|| panic!("no error: {status}"));
        (
            status,
            text(&body["error"]),
            code,
            body["suberror"].as_str().unwrap_or_default().to_owned(),
        )
    }

    pub(crate) async fn refresh_token(&self) -> String {
        text(&self.token(&self.obo(&self.emulators.caller().mint())).await["refresh_token"])
    }

    pub(crate) async fn app_token(&self, tenant: &str, scope: &str) -> String {
        let form = self.form(&[("grant_type", "client_credentials"), ("scope", scope)]);
        let body: Value = self.post_token(tenant, &form).await.json().await.unwrap();
        assert!(body.get("refresh_token").is_none());
        text(&body["access_token"])
    }

    pub(crate) async fn vault(&self) -> Vault<'_> {
        Vault {
            world: self,
            token: self
                .app_token(TENANT, "https://vault.azure.net/.default")
                .await,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/secrets/{path}", self.emulators.key_vault_url())
    }

    pub(crate) fn secret(&self, path: &str) -> String {
        format!("{}?api-version=7.6", self.url(path))
    }

    pub(crate) async fn get(&self, url: &str) -> Value {
        let response = self.client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{url}");
        response.json().await.unwrap()
    }
}

pub(crate) struct Vault<'a> {
    pub(crate) world: &'a World,
    pub(crate) token: String,
}

impl Vault<'_> {
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let request = self
            .world
            .client
            .request(method, self.world.secret(path))
            .bearer_auth(&self.token);
        body.map_or(request.try_clone().unwrap(), |body| request.json(&body))
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let response = self.send(method, path, body).await;
        (response.status(), response.json().await.unwrap())
    }

    pub(crate) async fn ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, body) = self.call(method, path, body).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

pub(crate) fn set(form: &mut Form, name: &'static str, value: &str) {
    form.retain(|field| field.0 != name);
    form.push((name, value.to_owned()));
}

pub(crate) fn encoded(form: &Form) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish()
}

pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

pub(crate) fn header_of(token: &str) -> Value {
    part(token, 0)
}

pub(crate) fn payload(token: &str) -> Value {
    part(token, 1)
}

pub(crate) fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}
