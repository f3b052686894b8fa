//! Who a command is at Key Vault: options that the commands about keys have in common, and what a pipeline or a person at a terminal
//! shows.

use super::Failure;
use super::operator::Asking;
use crate::console::{CommandSettings, Console};
use crate::operator::Operator;
use crate::outbound::OutboundClient;
use crate::variables::environment_name;
use behalf_core::endpoint;
use behalf_core::identity::{Guid, PERSONAL_ACCOUNTS, TenantId};
use behalf_core::port::{Config as _, Limits, SecretBody};
use behalf_core::secret::AccessToken;
use behalf_core::vault::custodian::Custodian;
use behalf_core::vault::settings::Settings;
use clap::{Args, ValueEnum};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request};
use serde::Deserialize;
use std::process::{Command, Stdio};
use std::time::Duration;
use url::Url;
use zeroize::Zeroizing;

/// Longest answer of a pipeline's token endpoint, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The options.
#[derive(Debug, Args)]
pub(super) struct Custody {
    /// The Key Vault, in the place of the setting `key_vault_url`.
    #[arg(long, value_name = "URL")]
    vault: Option<String>,

    #[command(flatten)]
    asking: Asking,
}

/// Who asks Key Vault, and a running app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Who {
    /// The app or managed identity of the settings `key_vault_credential`, `client_id`, `credential` and theirs: README, "Settings"
    Settings,
    /// Whoever is logged in with `az login`, as in the task `AzureCLI` of Azure Pipelines
    AzureCli,
    /// The app `client_id` (or `AZURE_CLIENT_ID`), by the OIDC token of a job of GitHub Actions with `id-token: write`
    Github,
    /// The app of a service connection of Azure Pipelines, by its OIDC token: needs `SYSTEM_ACCESSTOKEN`
    AzurePipelines,
}

impl Who {
    /// Puts a pipeline's credential in the settings; nothing if it is none.
    pub(super) async fn adopt(
        self,
        settings: &mut CommandSettings,
        client: &OutboundClient,
    ) -> Result<(), Failure> {
        let (pipeline, names): (_, &[_]) = match self {
            Self::Settings | Self::AzureCli => return Ok(()),
            Self::Github => (Pipeline::github(settings)?, &["AZURE_CLIENT_ID"]),
            Self::AzurePipelines => {
                let names = &["AZURESUBSCRIPTION_CLIENT_ID", "AZURE_CLIENT_ID"];
                (Pipeline::azure()?, names)
            }
        };
        let token = pipeline.token(client).await?;
        settings.set("credential", "federated-token".to_owned());
        settings.set("key_vault_credential", "app".to_owned());
        settings.set("federated_token", token);
        let known = names.iter().find_map(|name| variable(name));
        if let Some(known) = known.filter(|_| !settings.has("client_id")) {
            settings.set("client_id", known);
        }
        Ok(())
    }
}

impl Custody {
    /// Gets what this needs to be somebody at Key Vault.
    pub(super) async fn custodian(&self) -> Result<Custodian<Console>, Failure> {
        let identity = &self.asking.identity;
        let client = identity.client()?;
        let (mut settings, _) = identity.adopted(&client).await?;
        if let Some(vault) = &self.vault {
            settings.set("key_vault_url", vault.clone());
        }
        if !settings.has("tenants") {
            settings.set("tenants", "*".to_owned());
        }
        let read = Settings::read(&settings)?;
        let given = match identity.credential {
            Who::AzureCli => {
                let scope = &read.key_vault_scope;
                Some(azure_cli(scope, read.key_vault_tenant.as_ref()).await?)
            }
            Who::Settings | Who::Github | Who::AzurePipelines => None,
        };
        let custodian = Custodian::new(Console::new(client, settings), read);
        if let Some(token) = given {
            custodian.use_token(token);
        }
        Ok(custodian)
    }

    /// The same one to the running app. `about` is the tenant in question, if it is one.
    pub(super) async fn operator(
        &self,
        about: Option<&TenantId>,
    ) -> Result<Operator<OutboundClient>, Failure> {
        self.asking.open(about).await
    }
}

/// A tenant id of the command line.
pub(super) fn tenant(text: &str) -> Result<TenantId, &'static str> {
    let tenant = Guid::parse(text)
        .ok_or("write a tenant id: a GUID of 36 characters, as Entra ID's overview shows it")?;
    if tenant.as_str() == PERSONAL_ACCOUNTS {
        return Err("this is the tenant of personal accounts, which has no key here");
    }
    Ok(tenant)
}

/// # Errors
/// The setting `tenants` lists tenants, and one of these is not among them: most likely it is misspelt.
pub(super) fn check_tenants<'a>(
    settings: &Settings,
    tenants: impl IntoIterator<Item = &'a TenantId>,
) -> Result<(), Failure> {
    let mut strangers = tenants.into_iter().filter(|it| !settings.tenants.allow(it));
    match strangers.next() {
        None => Ok(()),
        Some(stranger) => Err(Failure::Usage(format!(
            "{stranger} is not among the setting `tenants` ({}), so the app serves no user of it: is the id right?",
            environment_name("tenants")
        ))),
    }
}

/// The OIDC token of a pipeline: what is asked for it, and where it stands in the answer.
struct Pipeline {
    request: Request<SecretBody>,
    name: &'static str,
    hint: &'static str,
}

impl Pipeline {
    /// <https://docs.github.com/actions/reference/security/oidc>
    fn github(settings: &CommandSettings) -> Result<Self, Failure> {
        const HINT: &str = "give the job the permission `id-token: write`";
        let (url, token) = (
            needed("ACTIONS_ID_TOKEN_REQUEST_URL", HINT)?,
            needed("ACTIONS_ID_TOKEN_REQUEST_TOKEN", HINT)?,
        );
        let audience = settings.get("federation_audience").ok().flatten();
        let audience = audience.unwrap_or_else(|| "api://AzureADTokenExchange".to_owned());
        let mut url = endpoint("ACTIONS_ID_TOKEN_REQUEST_URL", &url)?;
        url.query_pairs_mut().append_pair("audience", &audience);
        Self::new(&Method::GET, &url, &token, "GitHub Actions", HINT)
    }

    /// <https://learn.microsoft.com/rest/api/azure/devops/distributedtask/oidctoken/create>
    fn azure() -> Result<Self, Failure> {
        const HINT: &str = "pass SYSTEM_ACCESSTOKEN: $(System.AccessToken) in `env` of the step, and let the pipeline use the service connection";
        let (url, token, connection) = (
            needed("SYSTEM_OIDCREQUESTURI", HINT)?,
            needed("SYSTEM_ACCESSTOKEN", HINT)?,
            needed("AZURESUBSCRIPTION_SERVICE_CONNECTION_ID", HINT)?,
        );
        let mut url = endpoint("SYSTEM_OIDCREQUESTURI", &url)?;
        url.query_pairs_mut()
            .append_pair("api-version", "7.1")
            .append_pair("serviceConnectionId", &connection);
        Self::new(&Method::POST, &url, &token, "Azure Pipelines", HINT)
    }

    fn new(
        method: &Method,
        url: &Url,
        token: &str,
        name: &'static str,
        hint: &'static str,
    ) -> Result<Self, Failure> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Failure::Usage(format!("the token of {name} is none: {hint}")))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json")
            // Azure Pipelines answers with a page to sign in otherwise.
            .header("x-tfs-fedauthredirect", "Suppress");
        let request = match *method {
            Method::POST => request.header(CONTENT_LENGTH, "0"),
            _ => request,
        };
        let request = request
            .body(Zeroizing::default())
            .map_err(|_| Failure::Usage(format!("the address of {name} is none: {hint}")))?;
        Ok(Self {
            request,
            name,
            hint,
        })
    }

    async fn token(self, client: &OutboundClient) -> Result<String, Failure> {
        const TIME: Duration = Duration::from_secs(15);
        let Self {
            request,
            name,
            hint,
        } = self;
        let limits = Limits {
            connect: TIME,
            first_byte: TIME,
            between_bytes: TIME,
            body: LONGEST_ANSWER,
        };
        let sent = behalf_core::Http::send(client, request, limits).await;
        let answer = sent
            .map_err(|error| Failure::Credential(format!("{name} gives no OIDC token: {error}")))?;
        let status = answer.status();
        let read: Option<OidcToken> = serde_json::from_slice(answer.body()).ok();
        match read.filter(|_| status.is_success()) {
            Some(OidcToken::Value { value: token } | OidcToken::Oidc { oidc_token: token }) => {
                Ok(token)
            }
            None => Err(Failure::Credential(format!(
                "{name} gives no OIDC token (status {}): {hint}",
                status.as_u16()
            ))),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OidcToken {
    Value {
        value: String,
    },
    Oidc {
        #[serde(rename = "oidcToken")]
        oidc_token: String,
    },
}

/// https, or http on this machine: a token goes there.
fn endpoint(name: &str, text: &str) -> Result<Url, Failure> {
    endpoint::url(text)
        .filter(endpoint::is_confidential)
        .ok_or_else(|| Failure::Usage(format!("{name} of the environment is no URL of https")))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn needed(name: &str, hint: &str) -> Result<Zeroizing<String>, Failure> {
    let value = variable(name).map(Zeroizing::new);
    value.ok_or_else(|| Failure::Usage(format!("{name} is not in the environment: {hint}")))
}

/// The access token of whoever is logged in with the Azure CLI
/// (<https://learn.microsoft.com/cli/azure/account#az-account-get-access-token>). What it says goes where it goes by itself.
pub(super) async fn azure_cli(
    scope: &str,
    tenant: Option<&TenantId>,
) -> Result<AccessToken, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        access_token: String,
    }
    let program = if cfg!(windows) { "az.cmd" } else { "az" };
    let mut command = Command::new(program);
    command.args(["account", "get-access-token", "--output", "json", "--scope"]);
    command.arg(scope);
    if let Some(tenant) = tenant {
        command.args(["--tenant", tenant.as_str()]);
    }
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let asked = tokio::task::spawn_blocking(move || command.output());
    let Ok(Ok(output)) = asked.await else {
        return Err(Failure::Credential(
            "the Azure CLI cannot be run: install `az`, or choose another --credential".to_owned(),
        ));
    };
    let (is_good, said) = (output.status.success(), Zeroizing::new(output.stdout));
    let answer: Option<Answer> = serde_json::from_slice(&said).ok();
    match answer.filter(|_| is_good) {
        Some(answer) => Ok(AccessToken::new(answer.access_token)),
        None => Err(Failure::Credential(format!(
            "the Azure CLI gives no token for {scope}: run `az login`, with --tenant for the tenant in question"
        ))),
    }
}
