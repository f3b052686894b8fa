//! The settings, parsed and checked as a whole: a `Settings` that exists is usable (README, "Settings").

use std::net::IpAddr;

use url::{Host, Url};
use zeroize::Zeroizing;

use crate::credential::{Certificate, Credential};
use crate::error::{OperatorError, VaultError};
use crate::identity::{Guid, PERSONAL_ACCOUNTS, SecretTemplate, TenantId, UserTemplate};
use crate::managed_identity::IdentityEndpoint;
use crate::port::Config;
use crate::secret::{ClientAssertion, ClientSecret, IdentityHeader, PseudonymKey, SweepKey};

/// The vault's settings.
#[derive(Debug)]
pub struct Settings {
    /// `client_id`.
    pub client_id: String,
    /// `authority`: an origin.
    pub authority: Url,
    /// `issuers`.
    pub issuers: Vec<IssuerTemplate>,
    /// `tenants`.
    pub tenants: Tenants,
    /// `audience`: at least one.
    pub audiences: Vec<String>,
    /// `required_scope`: not empty, or ID tokens would pass (facts/threats.md 21).
    pub required_scope: String,
    /// `credential`, with the settings that belong to it.
    pub credential: Credential,
    /// `federation_audience`.
    pub federation_audience: String,
    /// `identity_endpoint` and `identity_header`.
    pub identity: IdentityEndpoint,
    /// `managed_identity_client_id`; none: the system-assigned identity.
    pub managed_identity_client_id: Option<Guid>,
    /// `client_capabilities`.
    pub client_capabilities: Vec<String>,
    /// `key_vault_url`: an origin.
    pub key_vault_url: Url,
    /// `key_vault_scope`.
    pub key_vault_scope: String,
    /// `key_vault_credential`.
    pub key_vault_credential: KeyVaultCredential,
    /// `key_vault_tenant`; none: what the vault's challenge names.
    pub key_vault_tenant: Option<TenantId>,
    /// `user_id_template`.
    pub user_id: UserTemplate,
    /// `secret_id_template`.
    pub secret_id: SecretTemplate,
    /// `scope`, without `offline_access`.
    pub scope: Scope,
    /// `operator_tenant`.
    pub operator_tenant: Option<TenantId>,
    /// `pseudonym_key`.
    pub pseudonym_key: Option<PseudonymKey>,
    /// `store_prefix`.
    pub store_prefix: String,
    /// `key_cache_seconds`.
    pub key_cache_seconds: u32,
    /// `key_latest_seconds`.
    pub key_latest_seconds: u32,
    /// `key_grace_seconds`.
    pub key_grace_seconds: u32,
    /// `refresh_after_seconds`.
    pub refresh_after_seconds: u32,
    /// `sweep_key` and `sweep_key_previous`; none: sweeping by key is off.
    pub sweep_keys: Vec<SweepKey>,
    /// `sweep_seconds`.
    pub sweep_seconds: u32,
    /// `sweep_concurrency`.
    pub sweep_concurrency: u32,
}

impl Settings {
    /// Reads and checks every setting.
    ///
    /// # Errors
    /// [`OperatorError::Setting`] for the first that is missing or wrong.
    pub fn read(config: &impl Config) -> Result<Self, VaultError> {
        let read = Reader { config };
        let client_id = read.required("client_id", "is empty: set it to this app's client id")?;
        let audiences = match read.list("audience")? {
            given if given.is_empty() => vec![client_id.clone(), format!("api://{client_id}")],
            given => given,
        };
        Ok(Self {
            authority: read.origin("authority")?,
            issuers: read.issuers()?,
            tenants: read.tenants()?,
            audiences,
            required_scope: read.required("required_scope", "is empty: name the delegated scope that callers need")?,
            credential: read.credential()?,
            federation_audience: read
                .required("federation_audience", "is empty: for Azure's public cloud it is api://AzureADTokenExchange")?,
            identity: read.identity()?,
            managed_identity_client_id: read.guid("managed_identity_client_id", "must be a client id (a GUID), or empty")?,
            client_capabilities: read.client_capabilities()?,
            key_vault_url: read.origin("key_vault_url")?,
            key_vault_scope: read
                .required("key_vault_scope", "is empty: for Azure's public cloud it is https://vault.azure.net/.default")?,
            key_vault_credential: read.key_vault_credential()?,
            key_vault_tenant: read.tenant("key_vault_tenant")?,
            user_id: UserTemplate::parse(&read.text("user_id_template")?)
                .map_err(|expected| VaultError::setting("user_id_template", expected))?,
            secret_id: SecretTemplate::parse(&read.text("secret_id_template")?)
                .map_err(|expected| VaultError::setting("secret_id_template", expected))?,
            scope: Scope::parse(&read.text("scope")?).filter(|scope| !scope.mixes_default()).ok_or_else(|| {
                VaultError::setting("scope", "must hold scopes of one resource, in full, like https://graph.microsoft.com/.default, which stands alone")
            })?,
            operator_tenant: read.tenant("operator_tenant")?,
            pseudonym_key: Some(read.text("pseudonym_key")?).filter(|key| !key.is_empty()).map(PseudonymKey::new),
            store_prefix: read.store_prefix()?,
            key_cache_seconds: read.number("key_cache_seconds", 1, 86_400)?,
            key_latest_seconds: read.number("key_latest_seconds", 1, 86_400)?,
            key_grace_seconds: read.number("key_grace_seconds", 0, 31_536_000)?,
            // Entra ID forgets a refresh token after 90 idle days (facts/entra-and-key-vault.md §A.9); half leaves room
            // for a long outage.
            refresh_after_seconds: read.number("refresh_after_seconds", 1, 3_888_000)?,
            sweep_keys: read.sweep_keys()?,
            sweep_seconds: read.number("sweep_seconds", 1, 25)?,
            sweep_concurrency: read.number("sweep_concurrency", 1, 256)?,
            client_id,
        })
    }
}

/// How the app authenticates to Key Vault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyVaultCredential {
    /// As the app, with its own credential.
    App,
    /// As the platform's managed identity.
    ManagedIdentity,
}

/// The tenants whose users are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tenants {
    /// `*`: any organisation, which leaves out personal accounts.
    AnyOrganisation,
    /// These.
    Listed(Vec<TenantId>),
}

impl Tenants {
    /// Whether this tenant's users are served.
    #[must_use]
    pub fn allow(&self, tenant: &TenantId) -> bool {
        match self {
            Self::AnyOrganisation => tenant.as_str() != PERSONAL_ACCOUNTS,
            Self::Listed(tenants) => tenants.contains(tenant),
        }
    }
}

/// An accepted `iss`, in which `{tid}` or `{tenantid}` stands for the token's tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IssuerTemplate(String);

impl IssuerTemplate {
    /// Takes one from the settings or from a signing key (facts/entra-and-key-vault.md §B).
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.replace("{tenantid}", "{tid}"))
    }

    /// Whether it stands for the issuers of many tenants.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.0.contains("{tid}")
    }

    /// Whether `issuer` is the issuer of `tenant`.
    #[must_use]
    pub fn matches(&self, issuer: &str, tenant: &TenantId) -> bool {
        self.0.replace("{tid}", tenant.as_str()) == issuer
    }
}

/// Scopes of one resource, each written in full: `{resource}/{permission}`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scope {
    text: String,
    resource: String,
}

impl Scope {
    /// Reads a space-separated list. Names without a resource (`User.Read`) are refused: which resource Entra ID takes
    /// them for depends on the cloud, and nothing is derived here.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut resources = text.split_ascii_whitespace().map(|scope| {
            let (resource, permission) = scope.rsplit_once('/')?;
            let printable = scope
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
            (printable && !resource.is_empty() && !permission.is_empty()).then_some(resource)
        });
        let resource = resources.next()??;
        resources
            .all(|other| other.is_some_and(|other| other.eq_ignore_ascii_case(resource)))
            .then(|| Self {
                text: text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
                resource: resource.into(),
            })
    }

    /// The scopes, separated by single spaces.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `.default`, which stands for all permissions of the resource, is among others: Entra ID refuses that.
    #[must_use]
    pub fn mixes_default(&self) -> bool {
        let mut scopes = self.text.split(' ');
        let is_default = |scope: &str| scope.to_ascii_lowercase().ends_with("/.default");
        scopes.clone().nth(1).is_some() && scopes.any(is_default)
    }

    /// Whether both are of the same resource.
    #[must_use]
    pub fn same_resource(&self, other: &Self) -> bool {
        self.resource.eq_ignore_ascii_case(&other.resource)
    }
}

struct Reader<'a, C> {
    config: &'a C,
}

impl<C: Config> Reader<'_, C> {
    /// Undefined counts as empty: every setting has a default in `spin.toml`, and other embedders may leave some out.
    fn text(&self, name: &str) -> Result<String, VaultError> {
        let value = self
            .config
            .get(name)
            .map_err(|error| VaultError::setting(name, &format!("is not known: {error}")))?;
        Ok(match value {
            // Not copied when there is nothing to trim: it may be a secret.
            Some(value) if value.trim().len() == value.len() => value,
            Some(value) => value.trim().to_owned(),
            None => default(name).to_owned(),
        })
    }

    fn required(&self, name: &str, expected: &str) -> Result<String, VaultError> {
        let value = self.text(name)?;
        if value.is_empty() {
            Err(VaultError::setting(name, expected))
        } else {
            Ok(value)
        }
    }

    fn list(&self, name: &str) -> Result<Vec<String>, VaultError> {
        let text = self.text(name)?;
        Ok(text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(Into::into)
            .collect())
    }

    fn credential(&self) -> Result<Credential, VaultError> {
        Ok(match self.text("credential")?.as_str() {
            "client-secret" => Credential::ClientSecret(ClientSecret::new(self.required(
                "client_secret",
                "is empty: set it to a client secret of this app, or choose another `credential`",
            )?)),
            "certificate" => {
                let certificate =
                    self.required("certificate_pem", "is empty: `credential` is certificate")?;
                let key = Zeroizing::new(
                    self.required("private_key_pem", "is empty: `credential` is certificate")?,
                );
                let certificate = Certificate::read(&certificate, &key)
                    .map_err(|(name, expected)| VaultError::setting(name, expected))?;
                Credential::Certificate(Box::new(certificate))
            }
            "managed-identity" => Credential::ManagedIdentity,
            "federated-token" => Credential::FederatedToken(ClientAssertion::new(self.required(
                "federated_token",
                "is empty: `credential` is federated-token",
            )?)),
            _ => {
                return Err(VaultError::setting(
                    "credential",
                    "must be client-secret, certificate, managed-identity or federated-token",
                ));
            }
        })
    }

    fn key_vault_credential(&self) -> Result<KeyVaultCredential, VaultError> {
        match self.text("key_vault_credential")?.as_str() {
            "app" => Ok(KeyVaultCredential::App),
            "managed-identity" => Ok(KeyVaultCredential::ManagedIdentity),
            _ => Err(VaultError::setting(
                "key_vault_credential",
                "must be app or managed-identity",
            )),
        }
    }

    fn identity(&self) -> Result<IdentityEndpoint, VaultError> {
        let url = self.text("identity_endpoint")?;
        let header = self.text("identity_header")?;
        let expected =
            "must be a URL of https, or of http on loopback and in 169.254.0.0/16, without a query";
        let parse = |url: &str| {
            Url::parse(url).map_err(|_| VaultError::setting("identity_endpoint", expected))
        };
        if url.is_empty() {
            return Ok(IdentityEndpoint::Imds(parse(IdentityEndpoint::IMDS)?));
        }
        let url = parse(&url)?;
        let safe = url.scheme() == "https"
            || (url.scheme() == "http" && (is_loopback(&url) || is_link_local(&url)));
        if !safe || url.query().is_some() || url.fragment().is_some() || has_userinfo(&url) {
            return Err(VaultError::setting("identity_endpoint", expected));
        }
        // Otherwise the host forbids the request, and nobody sees why.
        if self.text("identity_origin")?.trim_end_matches('/') != url.origin().ascii_serialization()
        {
            return Err(VaultError::setting(
                "identity_origin",
                "must be the origin of `identity_endpoint`, like http://127.0.0.1:42356",
            ));
        }
        Ok(if header.is_empty() {
            IdentityEndpoint::Imds(url)
        } else {
            if !header.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(VaultError::setting(
                    "identity_header",
                    "must be printable ASCII",
                ));
            }
            IdentityEndpoint::AppService(url, IdentityHeader::new(header))
        })
    }

    fn client_capabilities(&self) -> Result<Vec<String>, VaultError> {
        let listed = self.list("client_capabilities")?;
        if listed
            .iter()
            .all(|word| word.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            Ok(listed)
        } else {
            Err(VaultError::setting(
                "client_capabilities",
                "must list capabilities like cp1, separated by commas, or be empty",
            ))
        }
    }

    fn number(&self, name: &str, least: u32, most: u32) -> Result<u32, VaultError> {
        let value = self
            .text(name)?
            .parse()
            .ok()
            .filter(|number| (least..=most).contains(number));
        value.ok_or_else(|| {
            VaultError::setting(
                name,
                &format!("must be a whole number from {least} to {most}"),
            )
        })
    }

    /// https; http on loopback only (design §4).
    fn origin(&self, name: &str) -> Result<Url, VaultError> {
        let expected = "must be an https:// origin without a path, like https://example.com (http:// on loopback)";
        let text = self.required(name, &format!("is empty: it {expected}"))?;
        let url = Url::parse(&text).map_err(|_| VaultError::setting(name, expected))?;
        let origin_alone = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && !has_userinfo(&url);
        let safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url));
        if origin_alone && safe {
            Ok(url)
        } else {
            Err(VaultError::setting(name, expected))
        }
    }

    fn tenant(&self, name: &str) -> Result<Option<TenantId>, VaultError> {
        self.guid(name, "must be a tenant id (a GUID), or empty")
    }

    fn guid(&self, name: &str, expected: &str) -> Result<Option<Guid>, VaultError> {
        let text = self.text(name)?;
        if text.is_empty() {
            return Ok(None);
        }
        Guid::parse(&text)
            .map(Some)
            .ok_or_else(|| VaultError::setting(name, expected))
    }

    fn tenants(&self) -> Result<Tenants, VaultError> {
        let expected =
            "must list tenant ids (GUIDs) separated by commas, or be `*` for any organisation";
        let listed = self.list("tenants")?;
        match listed.as_slice() {
            [] => Err(VaultError::setting(
                "tenants",
                &format!("is empty: it {expected}"),
            )),
            [any] if any == "*" => Ok(Tenants::AnyOrganisation),
            _ => {
                let tenants: Option<Vec<_>> =
                    listed.iter().map(|tenant| Guid::parse(tenant)).collect();
                Ok(Tenants::Listed(
                    tenants.ok_or_else(|| VaultError::setting("tenants", expected))?,
                ))
            }
        }
    }

    fn issuers(&self) -> Result<Vec<IssuerTemplate>, VaultError> {
        let listed = self.list("issuers")?;
        if listed.is_empty() || listed.iter().any(|issuer| !issuer.contains("{tid}")) {
            return Err(VaultError::setting(
                "issuers",
                "must list issuers separated by commas, each containing {tid}",
            ));
        }
        Ok(listed
            .iter()
            .map(|issuer| IssuerTemplate::new(issuer))
            .collect())
    }

    fn store_prefix(&self) -> Result<String, VaultError> {
        let prefix = self.text("store_prefix")?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if prefix.len() <= 32 && prefix.bytes().all(allowed) {
            Ok(prefix)
        } else {
            Err(VaultError::setting(
                "store_prefix",
                "may hold up to 32 characters of [A-Za-z0-9._-]",
            ))
        }
    }

    fn sweep_keys(&self) -> Result<Vec<SweepKey>, VaultError> {
        let mut keys = Vec::new();
        for name in ["sweep_key", "sweep_key_previous"] {
            let key = self.text(name)?;
            match key.len() {
                0 => {}
                32.. => keys.push(SweepKey::new(key)),
                _ => {
                    return Err(VaultError::setting(
                        name,
                        "must have at least 32 characters, or be empty to switch it off",
                    ));
                }
            }
        }
        Ok(keys)
    }
}

/// Whether a URL leads to this machine alone.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// 169.254.0.0/16, where platforms give out identities over plain HTTP (design §4).
fn is_link_local(url: &Url) -> bool {
    matches!(url.host(), Some(Host::Ipv4(ip)) if ip.is_link_local())
}

fn has_userinfo(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// The defaults of `spin.toml`, for embedders whose configuration leaves a setting out. A test holds the two equal.
fn default(name: &str) -> &'static str {
    match name {
        "authority" => "https://login.microsoftonline.com",
        "issuers" => "https://login.microsoftonline.com/{tid}/v2.0,https://sts.windows.net/{tid}/",
        "required_scope" => "access_as_user",
        "credential" => "client-secret",
        "federation_audience" => "api://AzureADTokenExchange",
        "key_vault_scope" => "https://vault.azure.net/.default",
        "key_vault_credential" => "app",
        "user_id_template" => "{tid}.{oid}",
        "secret_id_template" => "obo-{tid}",
        "scope" => "https://graph.microsoft.com/.default",
        "key_cache_seconds" => "3600",
        "key_latest_seconds" => "300",
        "key_grace_seconds" => "0",
        "refresh_after_seconds" => "604800",
        "sweep_seconds" => "20",
        "sweep_concurrency" => "32",
        _ => "",
    }
}

impl OperatorError {
    /// The setting at fault, if it is one.
    #[must_use]
    pub fn setting(&self) -> Option<&str> {
        match self {
            Self::Setting { name, .. } => Some(name),
            Self::KeyNotFound(_)
            | Self::KeyDisabled(_)
            | Self::KeyNotValid(_)
            | Self::KeyMalformed(_)
            | Self::KeyWornOut(_)
            | Self::KeyVaultForbidden
            | Self::KeyVaultFirewall
            | Self::KeyVaultRefused
            | Self::EntraRefused(_)
            | Self::KeyVaultTokenRefused(_)
            | Self::ClockWrong
            | Self::NoRefreshToken => None,
            Self::CredentialRefused { setting, .. } => Some(setting),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::port::ConfigError;

    pub(crate) type Values = HashMap<&'static str, String>;

    impl Config for Values {
        fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
            Ok(self.get(name).cloned())
        }
    }

    pub(crate) const TENANT: &str = "11111111-1111-1111-1111-111111111111";
    pub(crate) const CLIENT: &str = "22222222-2222-2222-2222-222222222222";

    pub(crate) fn least() -> Values {
        [
            ("client_id", CLIENT),
            ("tenants", TENANT),
            ("client_secret", "client-secret-canary"),
            ("key_vault_url", "https://demo.vault.azure.net"),
        ]
        .into_iter()
        .map(|(name, value)| (name, value.to_owned()))
        .collect()
    }

    #[test]
    fn four_settings_are_enough() {
        let settings = Settings::read(&least()).unwrap();
        assert_eq!(
            settings.audiences,
            [CLIENT.to_owned(), format!("api://{CLIENT}")]
        );
        assert_eq!(
            settings.scope.as_str(),
            "https://graph.microsoft.com/.default"
        );
        assert!(settings.sweep_keys.is_empty());
    }

    #[test]
    fn each_wrong_setting_is_named() {
        for (name, value) in [
            ("client_id", ""),
            ("client_secret", " "),
            ("tenants", ""),
            ("tenants", "contoso.com"),
            ("tenants", "*,11111111-1111-1111-1111-111111111111"),
            ("authority", "http://login.microsoftonline.com"),
            ("authority", "https://login.microsoftonline.com/common"),
            ("authority", "https://user@login.microsoftonline.com"),
            ("key_vault_url", ""),
            ("key_vault_url", "demo.vault.azure.net"),
            ("key_vault_tenant", "contoso"),
            ("key_vault_credential", "managed"),
            ("credential", "certificat"),
            ("federation_audience", ""),
            ("managed_identity_client_id", "my-identity"),
            ("identity_endpoint", "http://10.0.0.1/token"),
            (
                "identity_endpoint",
                "http://169.254.169.254/token?resource=x",
            ),
            ("identity_endpoint", "token"),
            ("client_capabilities", "cp1;cp2"),
            ("required_scope", ""),
            ("issuers", "https://login.microsoftonline.com/common/v2.0"),
            ("user_id_template", "{oid}"),
            ("secret_id_template", "obo"),
            ("scope", "User.Read"),
            ("scope", "https://a.example/x https://b.example/y"),
            ("store_prefix", "a/b"),
            ("refresh_after_seconds", "0"),
            ("refresh_after_seconds", "7d"),
            ("sweep_seconds", "30"),
            ("sweep_concurrency", "-1"),
            ("sweep_key", "short"),
            ("sweep_key_previous", "short"),
            ("operator_tenant", "*"),
        ] {
            let mut values = least();
            values.insert(name, value.to_owned());
            match Settings::read(&values).map(|_| ()) {
                Err(VaultError::Operator(error)) => {
                    assert_eq!(error.setting(), Some(name), "{value}");
                    assert!(
                        !name.starts_with("sweep_key")
                            || value.is_empty()
                            || !error.to_string().contains(value),
                        "{error}"
                    );
                }
                other => panic!("{name} = {value:?}: {other:?}"),
            }
        }
    }

    pub(crate) fn with(changes: &[(&'static str, &str)]) -> Values {
        let mut values = least();
        for (name, value) in changes {
            values.insert(name, (*value).to_owned());
        }
        values
    }

    #[test]
    fn each_credential_needs_its_own_settings_and_no_other() {
        use crate::credential::tests::{CERTIFICATE, PRIVATE_KEY};
        for (changes, missing) in [
            (
                &[("credential", "certificate")][..],
                Some("certificate_pem"),
            ),
            (
                &[
                    ("credential", "certificate"),
                    ("certificate_pem", CERTIFICATE),
                ],
                Some("private_key_pem"),
            ),
            (
                &[
                    ("credential", "certificate"),
                    ("certificate_pem", CERTIFICATE),
                    ("private_key_pem", PRIVATE_KEY),
                ],
                None,
            ),
            (
                &[("credential", "federated-token")],
                Some("federated_token"),
            ),
            (
                &[
                    ("credential", "federated-token"),
                    ("federated_token", "a.b.c"),
                ],
                None,
            ),
            (&[("credential", "managed-identity")], None),
            (&[("key_vault_credential", "managed-identity")], None),
        ] {
            let mut values = with(changes);
            if values.contains_key("credential") {
                values.remove("client_secret");
            }
            let outcome = Settings::read(&values).map(|_| ());
            let at_fault = match &outcome {
                Err(VaultError::Operator(error)) => error.setting(),
                _ => None,
            };
            assert_eq!(at_fault, missing, "{outcome:?}");
        }
    }

    #[test]
    fn an_identity_endpoint_is_where_spin_toml_lets_it_be() {
        let read = |changes: &[(&'static str, &str)]| {
            Settings::read(&with(changes)).map(|settings| match settings.identity {
                IdentityEndpoint::Imds(url) => format!("imds {url}"),
                IdentityEndpoint::AppService(url, _) => format!("app service {url}"),
            })
        };
        assert_eq!(read(&[]), Ok(format!("imds {}", IdentityEndpoint::IMDS)));
        let endpoint = ("identity_endpoint", "http://127.0.0.1:42356/msi/token");
        let origin = ("identity_origin", "http://127.0.0.1:42356");
        assert_eq!(
            read(&[endpoint, origin, ("identity_header", "h")]),
            Ok("app service http://127.0.0.1:42356/msi/token".to_owned())
        );
        assert_eq!(
            read(&[endpoint, origin]),
            Ok("imds http://127.0.0.1:42356/msi/token".to_owned())
        );
        for (changes, name) in [
            (&[endpoint][..], "identity_origin"),
            (
                &[endpoint, ("identity_origin", "http://127.0.0.1:1")],
                "identity_origin",
            ),
            (
                &[endpoint, origin, ("identity_header", "two words")],
                "identity_header",
            ),
        ] {
            let error = read(changes).unwrap_err();
            assert!(
                matches!(&error, VaultError::Operator(error) if error.setting() == Some(name)),
                "{error:?}"
            );
        }
    }

    #[test]
    fn http_is_for_loopback_alone() {
        for url in [
            "http://127.0.0.1:3003",
            "http://[::1]:3003/",
            "http://localhost:3003",
        ] {
            let mut values = least();
            values.insert("key_vault_url", url.to_owned());
            assert!(Settings::read(&values).is_ok(), "{url}");
        }
    }

    #[test]
    fn any_organisation_leaves_out_personal_accounts() {
        let any = Tenants::AnyOrganisation;
        assert!(any.allow(&Guid::parse(TENANT).unwrap()));
        assert!(!any.allow(&Guid::parse(PERSONAL_ACCOUNTS).unwrap()));
    }

    #[test]
    fn a_scope_has_one_resource_and_is_written_in_full() {
        let scope = |text| Scope::parse(text);
        let graph = scope("https://graph.microsoft.com/.default").unwrap();
        assert!(
            graph.same_resource(
                &scope(
                    " https://Graph.microsoft.com/User.Read  https://graph.microsoft.com/Mail.Read "
                )
                .unwrap()
            )
        );
        assert!(
            !graph.same_resource(
                &scope("https://graph.microsoft.com.evil.example/.default").unwrap()
            )
        );
        assert!(!graph.same_resource(&scope("api://x/.default").unwrap()));
        for text in [
            "",
            "User.Read",
            "offline_access",
            "https://a/x https://b/y",
            "https://a/",
            "/x",
            "https://a/x\u{e9}",
        ] {
            assert_eq!(scope(text), None, "{text}");
        }
    }

    struct Asked<'a>(std::cell::RefCell<Vec<String>>, &'a Values);
    impl Config for Asked<'_> {
        fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
            self.0.borrow_mut().push(name.to_owned());
            Config::get(self.1, name)
        }
    }

    /// A setting that `spin.toml` misses would silently keep its default; one with another default would mean something
    /// else to other embedders.
    #[test]
    fn the_manifest_has_the_same_settings_and_defaults() {
        let manifest = include_str!("../../spin.toml");
        // Those of the doorbell stand apart.
        let variables = manifest
            .split("[variables]")
            .nth(1)
            .unwrap()
            .split("\n\n")
            .next()
            .unwrap();
        let mut names = Vec::new();
        for line in variables.lines().filter(|line| line.contains('=')) {
            let (name, rest) = line.split_once(" = ").unwrap();
            let value = rest
                .split_once("default = \"")
                .unwrap()
                .1
                .split_once('"')
                .unwrap()
                .0;
            assert_eq!(value, default(name), "{name}");
            assert!(
                manifest.contains(&format!("\n{name} = \"{{{{ {name} }}}}\"\n")),
                "{name} does not reach the component"
            );
            names.push(name);
        }
        let mut asked = Vec::new();
        // What only some choices need is asked for by these.
        for values in [
            least(),
            with(&[
                ("credential", "certificate"),
                ("certificate_pem", crate::credential::tests::CERTIFICATE),
                ("private_key_pem", crate::credential::tests::PRIVATE_KEY),
            ]),
            with(&[
                ("credential", "federated-token"),
                ("federated_token", "a.b.c"),
            ]),
            with(&[
                ("identity_endpoint", "http://127.0.0.1:1/token"),
                ("identity_origin", "http://127.0.0.1:1"),
            ]),
        ] {
            let config = Asked(std::cell::RefCell::default(), &values);
            Settings::read(&config).unwrap();
            asked.append(&mut config.0.into_inner());
        }
        asked.sort_unstable();
        asked.dedup();
        names.sort_unstable();
        assert_eq!(asked, names);
    }
}
