//! Who a command is to a running app: options that the commands for operators have in common.

use super::Failure;
use super::custody::{Who, azure_cli};
use super::values::assignment;
use crate::console::{CommandSettings, Console};
use crate::loading;
use crate::operator::{OperationError, Operator};
use crate::outbound::OutboundClient;
use crate::remote::Origin;
use crate::variables::{Environment, Given, environment_name};
use behalf_core::error::{OperatorError, Reason, VaultError};
use behalf_core::identity::{Guid, TenantId};
use behalf_core::port::Config as _;
use behalf_core::secret::AccessToken;
use behalf_core::vault::own_tokens::OwnTokens;
use behalf_core::vault::settings::Settings;
use clap::Args;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The settings that tell who asks, and which Key Vault for which secret. No other concerns these commands.
const SETTINGS: &[&str] = &[
    "authority",
    "certificate_pem",
    "client_id",
    "client_secret",
    "credential",
    "federated_token",
    "federation_audience",
    "identity_endpoint",
    "identity_header",
    "identity_origin",
    "key_vault_credential",
    "key_vault_scope",
    "key_vault_tenant",
    "key_vault_url",
    "managed_identity_client_id",
    "operator_tenant",
    "private_key_pem",
    "secret_id_template",
    "sweep_key",
    "tenants",
];

/// For whoever asks for nothing in the name of an app.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// The options.
#[derive(Debug, Args)]
pub(super) struct Asking {
    /// The running app.
    #[arg(long, value_name = "URL", env = "BEHALF_APP", default_value = "http://127.0.0.1:3000", value_parser = Origin::parse)]
    app: Origin,

    #[command(flatten)]
    pub(super) identity: Identity,
}

/// Who asks.
#[derive(Debug, Args)]
pub(super) struct Identity {
    /// Who asks. `key_vault_credential` = managed-identity makes that of the settings the platform's managed identity.
    #[arg(long, value_name = "WHO", default_value = "settings")]
    pub(super) credential: Who,

    /// What tokens for the app are for [default: api:// and the setting `client_id`, as where the app itself asks].
    #[arg(long, value_name = "URI", env = "BEHALF_AUDIENCE")]
    audience: Option<String>,

    /// The tenant in which the token is asked for [default: the setting `operator_tenant`, or else the tenant in question]. A managed
    /// identity is of its own tenant, whatever is named.
    #[arg(long, value_name = "TENANT", value_parser = guid)]
    in_tenant: Option<Guid>,

    /// A file that holds an access token for the app, `-` for standard input; no other is asked for then.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// The value of a setting, before the environment; others on this machine can see it. May be given again.
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = assignment)]
    variables: Vec<(String, String)>,

    /// A file that holds the value of a setting. May be given again.
    #[arg(long = "variable-file", value_name = "NAME=PATH", value_parser = assignment)]
    variable_files: Vec<(String, String)>,

    /// Certificate authorities in PEM to trust besides the platform's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Asking {
    /// Gets a token, and is somebody to the app then. `about` is the tenant in question.
    pub(super) async fn open(
        &self,
        about: Option<&TenantId>,
    ) -> Result<Operator<OutboundClient>, Failure> {
        let identity = &self.identity;
        let client = identity.client()?;
        let token = if let Some(file) = &identity.token_file {
            read_token(file)?
        } else {
            let audience = match &identity.audience {
                Some(audience) => audience.trim_end_matches('/').to_owned(),
                None => format!("api://{}", identity.app_id()?),
            };
            identity
                .token(&client, identity.tenant(about), &audience, "--audience")
                .await?
        };
        Ok(Operator::new(client, self.app.clone(), &token)?)
    }

    /// The same to somebody who has the app sweep: by the setting `sweep_key`, unless there is none or the options name somebody else.
    pub(super) async fn open_to_sweep(&self) -> Result<Operator<OutboundClient>, Failure> {
        let identity = &self.identity;
        let name = environment_name("sweep_key");
        let wrong = |what| Failure::Usage(format!("`sweep_key` ({name}) {what}"));
        let key = identity.settings()?.get("sweep_key");
        let key = key
            .map_err(|_| wrong("cannot be read"))?
            .unwrap_or_default();
        let key = AccessToken::new(key.trim().to_owned());
        let names_another = identity.token_file.is_some() || identity.credential != Who::Settings;
        if key.expose().is_empty() || names_another {
            return self.open(None).await;
        }
        let operator = Operator::new(identity.client()?, self.app.clone(), &key);
        operator.map_err(|_| wrong("may hold visible ASCII characters only"))
    }
}

impl Identity {
    /// What sends.
    pub(super) fn client(&self) -> Result<OutboundClient, Failure> {
        Ok(loading::client(loading::roots(self.ca.as_deref())?)?)
    }

    /// A token for a resource, which this option names, asked for in a tenant, if it takes one.
    pub(super) async fn token(
        &self,
        client: &OutboundClient,
        tenant: Result<TenantId, Failure>,
        resource: &str,
        option: &str,
    ) -> Result<AccessToken, Failure> {
        let scope = format!("{resource}/.default");
        if self.credential == Who::AzureCli {
            return azure_cli(&scope, tenant.ok().as_ref()).await;
        }
        let (mut settings, by_identity) = self.adopted(client).await?;
        // Nobody is asked for what these are about.
        settings.set("key_vault_url", "https://unused.vault.azure.net".to_owned());
        settings.set("tenants", "*".to_owned());
        let read = Settings::read(&settings)?;
        let tokens = OwnTokens::new(Console::new(client.clone(), settings), read);
        if by_identity {
            return Ok(tokens.of_identity(resource).await?);
        }
        let tenant = tenant?;
        let token = tokens.of_app(&tenant, &scope).await;
        token.map_err(|error| match refusal(&error, &tenant, resource, option) {
            Some((_, told)) => Failure::Credential(told),
            None => error.into(),
        })
    }

    /// The settings, with what a pipeline shows if it is one; and whether it is no app that asks, but the platform's managed identity.
    pub(super) async fn adopted(
        &self,
        client: &OutboundClient,
    ) -> Result<(CommandSettings, bool), Failure> {
        let mut settings = self.settings()?;
        self.credential.adopt(&mut settings, client).await?;
        let by_identity = settings.get("key_vault_credential");
        let by_identity =
            matches!(by_identity, Ok(Some(word)) if word.trim() == "managed-identity");
        if by_identity || self.credential == Who::AzureCli {
            // No app is asked for anything: it need not be known.
            settings.set("credential", "managed-identity".to_owned());
            if !settings.has("client_id") {
                settings.set("client_id", NOBODY.to_owned());
            }
        }
        Ok((settings, by_identity))
    }

    fn settings(&self) -> Result<CommandSettings, Failure> {
        let values = self.variables.iter().cloned();
        let files = self.variable_files.iter().cloned();
        let given = values
            .map(|(name, value)| (name, Given::Value(value)))
            .chain(files.map(|(name, path)| (name, Given::File(path.into()))));
        let given: Vec<_> = given.collect();
        if let Some((name, _)) = given.iter().find(|(name, _)| !SETTINGS.contains(&&**name)) {
            let known = SETTINGS.join(", ");
            return Err(Failure::Usage(format!(
                "--variable {name}: this command goes by no such setting, but by {known}"
            )));
        }
        let environment = Environment::of_process(Path::new(".env")).map_err(Failure::Usage)?;
        Ok(CommandSettings::only(environment.with(given), SETTINGS))
    }

    fn app_id(&self) -> Result<Guid, Failure> {
        let id = self.settings()?.get("client_id").ok().flatten();
        let id = id.unwrap_or_default();
        Guid::parse(id.trim()).ok_or_else(|| {
            let name = environment_name("client_id");
            Failure::Usage(if id.trim().is_empty() {
                format!(
                    "which app is it? Set {name}, or --audience to what tokens for it are for, like api://CLIENT-ID"
                )
            } else {
                format!("`client_id` ({name}) must be a client id: a GUID of 36 characters")
            })
        })
    }

    /// The tenant of the options, of the settings, or in question.
    fn tenant(&self, about: Option<&TenantId>) -> Result<TenantId, Failure> {
        if let Some(tenant) = &self.in_tenant {
            return Ok(tenant.clone());
        }
        let set = self.settings()?.get("operator_tenant").ok().flatten();
        let set = set.and_then(|tenant| Guid::parse(tenant.trim()));
        set.or_else(|| about.cloned()).ok_or_else(|| {
            let name = environment_name("operator_tenant");
            Failure::Usage(format!(
                "in which tenant is the token asked for? Set {name} or --in-tenant"
            ))
        })
    }
}

/// What it means that Entra ID gives this app no token of its own for a resource, which is named by `option`, and why it does not;
/// none: the error is another one. Its own text is of Key Vault, which is all that the app itself asks for.
pub(super) fn refusal(
    error: &VaultError,
    tenant: &TenantId,
    resource: &str,
    option: &str,
) -> Option<(Reason, String)> {
    let VaultError::Operator(OperatorError::KeyVaultTokenRefused(reason)) = error else {
        return None;
    };
    let number = reason.aadsts.map(|number| format!(" (AADSTS{number})"));
    let number = number.unwrap_or_default();
    let told = format!(
        "Entra ID refused this app a token for {resource}{number}: {tenant} is no tenant, or has not this app (`client_id`); is \
         {resource} (`{option}`) known there?"
    );
    Some((*reason, told))
}

/// A GUID of the command line.
pub(super) fn guid(text: &str) -> Result<Guid, &'static str> {
    Guid::parse(text).ok_or("write an id as Entra ID shows it: a GUID of 36 characters")
}

/// The token that a file holds.
pub(super) fn read_token(file: &Path) -> Result<AccessToken, Failure> {
    /// Longest token read, in bytes.
    const LONGEST: u64 = 64 * 1024;
    let unreadable = |error| Failure::Usage(format!("--token-file {}: {error}", file.display()));
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        std::io::stdin().take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|it| it.take(LONGEST).read_to_string(&mut text))
    };
    read.map_err(unreadable)?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(OperationError::NoToken.into());
    }
    Ok(AccessToken::new(token.to_owned()))
}
