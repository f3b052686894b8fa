//! The settings, parsed and checked as a whole: a `Settings` that exists is usable (README, "Settings").

pub mod database;
pub(crate) mod source;

use std::cell::RefCell;

use url::Url;
use zeroize::Zeroizing;

use crate::endpoint::{self, is_confidential, is_link_local, origin};
use crate::error::{CallerError, OperatorError, SettingFault, VaultError};
use crate::identity::{
    Fingerprint, Guid, PERSONAL_ACCOUNTS, SecretTemplate, TenantId, UserTemplate,
};
use crate::port::{Config, trimmed};
use crate::secret::{ClientAssertion, ClientSecret, IdentityHeader, PseudonymKey, SweepKey};
use crate::vault::call::apis::Apis;
use crate::vault::credential::{Certificate, Credential};
use crate::vault::grants::Grants;
use crate::vault::issuer::{IssuerTemplate, is_external};
use crate::vault::managed_identity::IdentityEndpoint;
use crate::vault::port::Policy;
use crate::vault::scope::Scope;

/// The vault's settings.
#[derive(Debug)]
pub struct Settings {
    /// `client_id`.
    pub client_id: Guid,
    /// `authority`: an origin.
    pub authority: Url,
    /// `issuers`.
    pub issuers: Vec<IssuerTemplate>,
    /// `tenants`.
    pub tenants: Tenants,
    /// `audience`: at least one.
    pub audiences: Vec<String>,
    /// `required_scope`: not empty, or ID tokens would pass, which are for this app, too.
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
    /// `grants`.
    pub grants: Grants,
    /// `apis`, each of whose origins is among `api_origin_1` to `api_origin_8`.
    pub apis: Apis,
    /// `operator_tenant`.
    pub operator_tenant: Option<TenantId>,
    /// `user_routes`: whether apps with a role may name users.
    pub user_routes: bool,
    /// `cors_origins`, each as browsers write it.
    pub cors_origins: Vec<String>,
    /// `pseudonym_key`.
    pub pseudonym_key: Option<PseudonymKey>,
    /// Of `client_id`, the two templates and `pseudonym_key`.
    pub fingerprint: Fingerprint,
    /// `confirmed_settings`; none: no change of those four is confirmed.
    pub confirmed_settings: Option<String>,
    /// `store_prefix`.
    pub store_prefix: String,
    /// `key_cache_seconds`.
    pub key_cache_seconds: u32,
    /// `access_token_cache_seconds`.
    pub access_token_cache_seconds: u32,
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

/// Makes a struct of fields that may each be missing, after all of them were read: so every fault is told, and not the
/// first.
macro_rules! all {
    ($($field:ident: $value:expr,)*) => {{
        $(let $field = $value;)*
        Ok(Self { $($field: $field?,)* })
    }};
}

impl Settings {
    /// Reads and checks every setting.
    ///
    /// # Errors
    /// [`OperatorError::Setting`] with all that are missing or wrong.
    pub fn read(config: &impl Config) -> Result<Self, VaultError> {
        Reader::read(config, Self::read_all)
    }

    /// Those of them that storage needs.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            store_prefix: self.store_prefix.clone(),
            refresh_after_seconds: self.refresh_after_seconds,
            fingerprint: self.fingerprint.clone(),
            confirmed_settings: self.confirmed_settings.clone(),
            cors_origins: self.cors_origins.clone(),
        }
    }

    fn read_all(read: &Reader<'_, impl Config>) -> Result<Self, Noted> {
        let id = read.client_id();
        all! {
            audiences: read.audiences(id.as_ref().ok()),
            client_id: id,
            tenants: read.tenants(),
            authority: read.authority(),
            issuers: read.issuers(),
            required_scope: read.required("required_scope", "is empty: name the delegated scope that callers need"),
            credential: read.credential(),
            federation_audience: read
                .required("federation_audience", "is empty: for Azure's public cloud it is api://AzureADTokenExchange"),
            identity: read.identity(),
            managed_identity_client_id: read.guid("managed_identity_client_id", "must be a client id (a GUID), or empty"),
            client_capabilities: read.client_capabilities(),
            key_vault_url: read.origin("key_vault_url"),
            key_vault_scope: read.key_vault_scope(),
            key_vault_credential: read.key_vault_credential(),
            key_vault_tenant: read.tenant("key_vault_tenant"),
            user_id: read.template("user_id_template", UserTemplate::parse),
            secret_id: read.template("secret_id_template", SecretTemplate::parse),
            scope: read.scope(),
            apis: read.apis(),
            grants: read.grants(apis.as_ref().ok()),
            operator_tenant: read.tenant("operator_tenant"),
            user_routes: read.user_routes(user_id.as_ref().ok()),
            cors_origins: read.cors_origins(),
            pseudonym_key: read.pseudonym_key(),
            fingerprint: match (&client_id, &user_id, &secret_id, &pseudonym_key) {
                (Ok(client_id), Ok(user_id), Ok(secret_id), Ok(key)) => {
                    Ok(Fingerprint::new(client_id, user_id, secret_id, key.as_ref()))
                }
                _ => Err(Noted),
            },
            confirmed_settings: read.confirmed_settings(),
            store_prefix: read.store_prefix(),
            key_cache_seconds: read.number("key_cache_seconds", 1, 86_400),
            access_token_cache_seconds: read.number("access_token_cache_seconds", 0, 900),
            key_latest_seconds: read.number("key_latest_seconds", 1, 86_400),
            key_grace_seconds: read.number("key_grace_seconds", 0, 31_536_000),
            // Entra ID forgets a refresh token after 90 idle days (Microsoft Learn, "Refresh tokens in the Microsoft
            // identity platform"); half leaves room for a long outage.
            refresh_after_seconds: read.number("refresh_after_seconds", 1, 3_888_000),
            sweep_keys: read.sweep_keys(),
            sweep_seconds: read.number("sweep_seconds", 1, 25),
            sweep_concurrency: read.number("sweep_concurrency", 1, 256),
        }
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

    /// The same, as an outcome.
    ///
    /// # Errors
    /// [`CallerError::TenantNotAllowed`].
    pub fn check(&self, tenant: &TenantId) -> Result<(), CallerError> {
        if self.allow(tenant) {
            Ok(())
        } else {
            Err(CallerError::TenantNotAllowed)
        }
    }
}

/// Something is wrong, and was noted among the faults.
struct Noted;

/// Reads settings, and notes what is wrong.
struct Reader<'a, C> {
    config: &'a C,
    faults: RefCell<Vec<SettingFault>>,
}

impl<'a, C: Config> Reader<'a, C> {
    /// Reads some settings, all of them whatever is wrong with one.
    fn read<T>(
        config: &'a C,
        read: impl FnOnce(&Self) -> Result<T, Noted>,
    ) -> Result<T, VaultError> {
        let reader = Self {
            config,
            faults: RefCell::default(),
        };
        read(&reader).map_err(|Noted| OperatorError::Setting(reader.faults.into_inner()).into())
    }

    fn fault<T>(&self, name: &str, expected: &str) -> Result<T, Noted> {
        self.faults
            .borrow_mut()
            .push(SettingFault::new(name, expected));
        Err(Noted)
    }

    fn expect<T>(&self, name: &str, value: Option<T>, expected: &str) -> Result<T, Noted> {
        value.map_or_else(|| self.fault(name, expected), Ok)
    }

    /// Undefined counts as empty: every setting has a default in `spin.toml`, and other embedders may leave some out.
    fn text(&self, name: &str) -> Result<String, Noted> {
        match self.config.get(name) {
            // Not copied when there is nothing to trim: it may be a secret.
            Ok(Some(value)) if trimmed(&value).len() == value.len() => Ok(value),
            Ok(Some(value)) => Ok(trimmed(&value).to_owned()),
            Ok(None) => Ok(default(name).to_owned()),
            Err(error) => self.fault(name, &format!("is not known: {error}")),
        }
    }

    fn required(&self, name: &str, expected: &str) -> Result<String, Noted> {
        let value = Some(self.text(name)?).filter(|value| !value.is_empty());
        self.expect(name, value, expected)
    }

    fn list(&self, name: &str) -> Result<Vec<String>, Noted> {
        let text = self.text(name)?;
        let items = text.split(',').map(str::trim);
        Ok(items
            .filter(|item| !item.is_empty())
            .map(Into::into)
            .collect())
    }

    fn client_id(&self) -> Result<Guid, Noted> {
        let name = "client_id";
        let text = self.required(name, "is empty: set it to this app's client id")?;
        let expected = "must be this app's client id at Entra ID: a GUID of 36 characters, without api://, braces or quotes";
        self.expect(name, Guid::parse(&text), expected)
    }

    /// Client ids in it are folded as `client_id` is: tokens have them in lower case.
    fn audiences(&self, client_id: Option<&Guid>) -> Result<Vec<String>, Noted> {
        let fold = |given: String| match Guid::parse(&given) {
            Some(guid) => guid.as_str().to_owned(),
            None => given,
        };
        let given: Vec<_> = self.list("audience")?.into_iter().map(fold).collect();
        if given.is_empty() {
            let id = client_id.ok_or(Noted)?;
            Ok(vec![id.as_str().to_owned(), format!("api://{id}")])
        } else {
            Ok(given)
        }
    }

    fn credential(&self) -> Result<Credential, Noted> {
        match self.text("credential")?.as_str() {
            "client-secret" => {
                let secret = self.required(
                    "client_secret",
                    "is empty: set it to a client secret of this app, or choose another `credential`",
                )?;
                Ok(Credential::ClientSecret(ClientSecret::new(secret)))
            }
            "certificate" => {
                let expected = "is empty: `credential` is certificate";
                let certificate = self.required("certificate_pem", expected);
                let key = self.required("private_key_pem", expected);
                let (certificate, key) = (certificate?, Zeroizing::new(key?));
                match Certificate::read(&certificate, &key) {
                    Ok(certificate) => Ok(Credential::Certificate(Box::new(certificate))),
                    Err(faults) => self.told(Err(faults)),
                }
            }
            "managed-identity" => Ok(Credential::ManagedIdentity),
            "federated-token" => {
                let expected = "is empty: `credential` is federated-token";
                let token = self.required("federated_token", expected)?;
                Ok(Credential::FederatedToken(ClientAssertion::new(token)))
            }
            _ => self.fault(
                "credential",
                "must be client-secret, certificate, managed-identity or federated-token",
            ),
        }
    }

    fn key_vault_credential(&self) -> Result<KeyVaultCredential, Noted> {
        let name = "key_vault_credential";
        match self.text(name)?.as_str() {
            "app" => Ok(KeyVaultCredential::App),
            "managed-identity" => Ok(KeyVaultCredential::ManagedIdentity),
            _ => self.fault(name, "must be app or managed-identity"),
        }
    }

    fn identity(&self) -> Result<IdentityEndpoint, Noted> {
        let name = "identity_endpoint";
        let (url, header) = (self.text(name), self.text("identity_header"));
        let (url, header) = (url?, header?);
        if url.is_empty() {
            let known = Url::parse(IdentityEndpoint::IMDS).map_err(|_| Noted)?;
            return Ok(IdentityEndpoint::Imds(known));
        }
        let is_safe =
            |url: &Url| is_confidential(url) || (url.scheme() == "http" && is_link_local(url));
        let is_bare = |url: &Url| url.query().is_none() && url.fragment().is_none();
        let url = endpoint::url(&url).filter(|url| is_safe(url) && is_bare(url));
        let expected =
            "must be a URL of https, or of http on loopback and in 169.254.0.0/16, without a query";
        let url = self.expect(name, url, expected)?;
        // Otherwise the host forbids the request, and nobody sees why.
        let origin = self.text("identity_origin")?;
        let is_its_origin = origin.trim_end_matches('/') == url.origin().ascii_serialization();
        let origin = self.expect(
            "identity_origin",
            is_its_origin.then_some(()),
            "must be the origin of `identity_endpoint`, like http://127.0.0.1:42356",
        );
        let is_header = header.bytes().all(|byte| byte.is_ascii_graphic());
        let expected = "must be printable ASCII";
        self.expect("identity_header", is_header.then_some(()), expected)?;
        origin?;
        Ok(if header.is_empty() {
            IdentityEndpoint::Imds(url)
        } else {
            IdentityEndpoint::AppService(url, IdentityHeader::new(header))
        })
    }

    fn client_capabilities(&self) -> Result<Vec<String>, Noted> {
        let name = "client_capabilities";
        let listed = self.list(name)?;
        let mut characters = listed.iter().flat_map(|word| word.bytes());
        if characters.all(|byte| byte.is_ascii_alphanumeric()) {
            Ok(listed)
        } else {
            self.fault(
                name,
                "must list capabilities like cp1, separated by commas, or be empty",
            )
        }
    }

    fn number(&self, name: &str, least: u32, most: u32) -> Result<u32, Noted> {
        let number = self.text(name)?.parse().ok();
        let number = number.filter(|number| (least..=most).contains(number));
        let expected = format!("must be a whole number from {least} to {most}");
        self.expect(name, number, &expected)
    }

    /// https; http on loopback only.
    fn origin(&self, name: &str) -> Result<Url, Noted> {
        let text = self.required(name, &format!("is empty: it {ORIGIN}"))?;
        self.expect(name, origin(&text), ORIGIN)
    }

    fn authority(&self) -> Result<Url, Noted> {
        let name = "authority";
        let url = self.origin(name)?;
        self.expect(name, Some(url).filter(|url| !is_external(url)), EXTERNAL)
    }

    fn tenant(&self, name: &str) -> Result<Option<TenantId>, Noted> {
        self.guid(name, "must be a tenant id (a GUID), or empty")
    }

    fn guid(&self, name: &str, expected: &str) -> Result<Option<Guid>, Noted> {
        let text = self.text(name)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.expect(name, Guid::parse(&text), expected).map(Some)
    }

    fn tenants(&self) -> Result<Tenants, Noted> {
        let name = "tenants";
        let expected =
            "must list tenant ids (GUIDs) separated by commas, or be `*` for any organisation";
        let listed = self.list(name)?;
        match listed.as_slice() {
            [] => self.fault(name, &format!("is empty: it {expected}")),
            [any] if any == "*" => Ok(Tenants::AnyOrganisation),
            _ => {
                let tenants: Option<Vec<_>> =
                    listed.iter().map(|tenant| Guid::parse(tenant)).collect();
                let tenants = self.expect(name, tenants, expected)?;
                if tenants.iter().any(|it| it.as_str() == PERSONAL_ACCOUNTS) {
                    return self.fault(
                        name,
                        "names the tenant of personal accounts, which are not supported: leave it out",
                    );
                }
                Ok(Tenants::Listed(tenants))
            }
        }
    }

    fn issuers(&self) -> Result<Vec<IssuerTemplate>, Noted> {
        let name = "issuers";
        let listed = self.list(name)?;
        if listed.is_empty() || listed.iter().any(|issuer| !issuer.contains("{tid}")) {
            return self.fault(
                name,
                "must list issuers separated by commas, each containing {tid}",
            );
        }
        let mut urls = listed
            .iter()
            .filter_map(|issuer| Url::parse(&issuer.replace("{tid}", "tid")).ok());
        if urls.any(|url| is_external(&url)) {
            return self.fault(name, EXTERNAL);
        }
        Ok(listed
            .iter()
            .map(|issuer| IssuerTemplate::new(issuer))
            .collect())
    }

    /// The scope of all that this app may do at one resource. Key Vault takes tokens for `https://vault.azure.net` and
    /// refuses (AKV10022) those for the same with a slash behind it.
    fn key_vault_scope(&self) -> Result<String, Noted> {
        let name = "key_vault_scope";
        let text = self.text(name)?;
        let is_resource = |resource: &str| {
            !resource.is_empty()
                && !resource.ends_with('/')
                && resource.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if text.strip_suffix("/.default").is_some_and(is_resource) {
            Ok(text)
        } else {
            self.fault(
                name,
                "must be the resource of Key Vault with /.default behind it: for Azure's public cloud it is https://vault.azure.net/.default",
            )
        }
    }

    fn template<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<T, Noted> {
        parse(&self.text(name)?).or_else(|expected| self.fault(name, expected))
    }

    fn scope(&self) -> Result<Scope, Noted> {
        let name = "scope";
        let scope = Scope::parse(&self.text(name)?).filter(|scope| !scope.mixes_default());
        let expected = "must hold scopes of one resource, in full, like https://graph.microsoft.com/.default, which stands alone";
        self.expect(name, scope, expected)
    }

    fn grants(&self, apis: Option<&Apis>) -> Result<Grants, Noted> {
        let grants = self.told(Grants::parse(&self.text("grants")?))?;
        let faults = apis.map(|apis| grants.without_api(apis));
        match faults.filter(|faults| !faults.is_empty()) {
            None => Ok(grants),
            Some(faults) => self.told(Err(faults)),
        }
    }

    /// Notes faults that are named already.
    fn told<T>(&self, read: Result<T, Vec<SettingFault>>) -> Result<T, Noted> {
        read.map_err(|faults| {
            self.faults.borrow_mut().extend(faults);
            Noted
        })
    }

    /// The origins stand apart, because a host allows what its manifest names, and a manifest cannot look into JSON.
    fn apis(&self) -> Result<Apis, Noted> {
        let origins = API_ORIGINS.map(|name| self.api_origin(name));
        let apis = self.told(Apis::parse(&self.text("apis")?))?;
        let origins: Vec<_> = origins.into_iter().collect::<Result<_, _>>()?;
        let origins: Vec<_> = origins.into_iter().flatten().collect();
        match apis.out_of_reach(&origins) {
            faults if faults.is_empty() => Ok(apis),
            faults => self.told(Err(faults)),
        }
    }

    fn api_origin(&self, name: &str) -> Result<Option<Url>, Noted> {
        let text = self.text(name)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.expect(name, origin(&text), &format!("{ORIGIN}, or be empty"))
            .map(Some)
    }

    /// Apps name users by their object ids, from which the id of one that is made of `{sub}` cannot be told.
    fn user_routes(&self, user_id: Option<&UserTemplate>) -> Result<bool, Noted> {
        let name = "user_routes";
        match (self.text(name)?.as_str(), user_id) {
            ("on", Some(template)) if template.has_sub() => self.fault(
                name,
                "must be off, because `user_id_template` has {sub}: apps name users by their object ids",
            ),
            ("on", _) => Ok(true),
            ("off", _) => Ok(false),
            (_, _) => self.fault(name, "must be on or off"),
        }
    }

    fn cors_origins(&self) -> Result<Vec<String>, Noted> {
        let name = "cors_origins";
        let origin = |text: &String| {
            let url = endpoint::url(text).filter(is_confidential)?;
            let is_one = !text.contains('*');
            let origin = url.origin().ascii_serialization();
            (is_one && origin == text.trim_end_matches('/').to_ascii_lowercase()).then_some(origin)
        };
        let origins = self.list(name)?.iter().map(origin).collect();
        let expected = "must list origins separated by commas, like https://app.example.com (http:// on loopback); `*` is none";
        self.expect(name, origins, expected)
    }

    fn pseudonym_key(&self) -> Result<Option<PseudonymKey>, Noted> {
        let key = Some(self.text("pseudonym_key")?);
        Ok(key.filter(|key| !key.is_empty()).map(PseudonymKey::new))
    }

    /// What an error told the operator to put here, and so nothing that a line could not hold.
    fn confirmed_settings(&self) -> Result<Option<String>, Noted> {
        let name = "confirmed_settings";
        let text = self.text(name)?;
        let is_printed = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if text.len() > 256 || !is_printed {
            return self.fault(
                name,
                "must be what the error about changed settings says, or empty",
            );
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn store_prefix(&self) -> Result<String, Noted> {
        let name = "store_prefix";
        let prefix = self.text(name)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if prefix.len() <= 32 && prefix.bytes().all(allowed) {
            Ok(prefix)
        } else {
            self.fault(name, "may hold up to 32 characters of [A-Za-z0-9._-]")
        }
    }

    fn sweep_keys(&self) -> Result<Vec<SweepKey>, Noted> {
        let [key, previous] = ["sweep_key", "sweep_key_previous"].map(|name| self.sweep_key(name));
        Ok([key?, previous?].into_iter().flatten().collect())
    }

    fn sweep_key(&self, name: &str) -> Result<Option<SweepKey>, Noted> {
        let key = self.text(name)?;
        match key.len() {
            0 => Ok(None),
            32.. => Ok(Some(SweepKey::new(key))),
            _ => self.fault(
                name,
                "must have at least 32 characters, or be empty to switch it off",
            ),
        }
    }
}

/// `api_origin_N`.
const API_ORIGINS: [&str; 8] = [
    "api_origin_1",
    "api_origin_2",
    "api_origin_3",
    "api_origin_4",
    "api_origin_5",
    "api_origin_6",
    "api_origin_7",
    "api_origin_8",
];

const ORIGIN: &str =
    "must be an https:// origin without a path, like https://example.com (http:// on loopback)";

const EXTERNAL: &str = "names External ID or Azure AD B2C, whose tenants are not supported: only those of organisations are";

/// The defaults of the manifests, for embedders whose configuration leaves a setting out. Tests hold them equal.
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
        "grants" => "[]",
        "apis" => "{}",
        "user_routes" => "on",
        "key_cache_seconds" => "3600",
        "access_token_cache_seconds" => "900",
        "key_latest_seconds" => "300",
        "key_grace_seconds" => "0",
        "refresh_after_seconds" => "604800",
        "sweep_seconds" => "20",
        "sweep_concurrency" => "32",
        "postgres_host" => "127.0.0.1",
        "postgres_port" => "5432",
        "postgres_database" => "behalf",
        "postgres_credential" => "password",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::ConfigError;
    use crate::vault::samples::{CERTIFICATE, CLIENT, PRIVATE_KEY, TENANT, Values, least, with};

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

    /// The names of what is wrong, in order.
    fn at_fault(values: &Values) -> Vec<String> {
        match Settings::read(values) {
            Ok(_) => Vec::new(),
            Err(VaultError::Operator(OperatorError::Setting(faults))) => {
                assert!(!faults.is_empty());
                faults.into_iter().map(|fault| fault.name).collect()
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_wrong_setting_is_named() {
        for (name, value) in [
            ("client_id", ""),
            ("client_id", "api://22222222-2222-2222-2222-222222222222"),
            ("client_id", "{22222222-2222-2222-2222-222222222222}"),
            ("client_id", "\"22222222-2222-2222-2222-222222222222\""),
            ("client_id", "22222222-2222-2222-2222-22222222222"),
            ("client_id", "my-app"),
            ("client_secret", " "),
            ("tenants", ""),
            ("tenants", "contoso.com"),
            ("tenants", "{11111111-1111-1111-1111-111111111111}"),
            ("tenants", "*,11111111-1111-1111-1111-111111111111"),
            ("tenants", PERSONAL_ACCOUNTS),
            ("authority", "http://login.microsoftonline.com"),
            ("authority", "https://login.microsoftonline.com/common"),
            ("authority", "https://user@login.microsoftonline.com"),
            ("authority", "https://contoso.ciamlogin.com"),
            ("key_vault_url", ""),
            ("key_vault_url", "demo.vault.azure.net"),
            ("key_vault_tenant", "contoso"),
            ("key_vault_credential", "managed"),
            ("key_vault_scope", ""),
            ("key_vault_scope", "https://vault.azure.net"),
            ("key_vault_scope", "https://vault.azure.net/"),
            ("key_vault_scope", "/.default"),
            // Key Vault takes no token whose audience ends with a slash.
            ("key_vault_scope", "https://vault.azure.net//.default"),
            (
                "key_vault_scope",
                "https://vault.azure.net/.default https://a.example/.default",
            ),
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
            ("grants", "{}"),
            ("grants", "[{}"),
            ("apis", "[]"),
            ("apis", "{\"a\":{}"),
            ("api_origin_1", "api.example"),
            ("api_origin_8", "https://api.example/v1.0"),
            ("api_origin_8", "http://api.example"),
            ("user_routes", ""),
            ("user_routes", "yes"),
            ("cors_origins", "*"),
            ("cors_origins", "null"),
            ("cors_origins", "https://*.example.com"),
            ("cors_origins", "https://app.example.com/path"),
            ("cors_origins", "https://app.example.com, app.example.org"),
            ("cors_origins", "http://app.example.com"),
            ("issuers", "https://login.microsoftonline.com/common/v2.0"),
            ("issuers", "https://{tid}.ciamlogin.com/{tid}/v2.0"),
            ("issuers", "https://contoso.b2clogin.com/{tid}/v2.0/"),
            ("user_id_template", "{oid}"),
            ("secret_id_template", "obo"),
            ("scope", "User.Read"),
            ("scope", "https://a.example/x https://b.example/y"),
            ("confirmed_settings", "client_id\nx"),
            ("confirmed_settings", &"x".repeat(257)),
            ("store_prefix", "a/b"),
            ("refresh_after_seconds", "0"),
            ("refresh_after_seconds", "7d"),
            ("sweep_seconds", "30"),
            ("sweep_concurrency", "-1"),
            ("sweep_key", "short"),
            ("sweep_key_previous", "short"),
            ("operator_tenant", "*"),
            ("operator_tenant", "22222222-2222-2222-2222-22222222222"),
        ] {
            let values = with(&[(name, value)]);
            assert_eq!(at_fault(&values), [name], "{value}");
            let told = Settings::read(&values).unwrap_err().to_string();
            let variable = format!("SPIN_VARIABLE_{}", name.to_ascii_uppercase());
            assert!(told.contains(&variable) && !told.contains('\n'), "{told}");
            assert!(
                !name.starts_with("sweep_key") || !told.contains(value),
                "{told}"
            );
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let values = Values::from([
            ("credential", "certificate".to_owned()),
            ("identity_endpoint", "http://127.0.0.1:1/token".to_owned()),
            ("identity_header", "two words".to_owned()),
            ("sweep_key", "short".to_owned()),
            ("sweep_key_previous", "short".to_owned()),
            ("sweep_seconds", "soon".to_owned()),
        ]);
        assert_eq!(
            at_fault(&values),
            [
                "client_id",
                "tenants",
                "certificate_pem",
                "private_key_pem",
                "identity_origin",
                "identity_header",
                "key_vault_url",
                "sweep_key",
                "sweep_key_previous",
                "sweep_seconds",
            ]
        );
        let told = Settings::read(&values).unwrap_err().to_string();
        assert_eq!(told.lines().count(), 10, "a line each: {told}");
    }

    /// Tokens, and so users' records, have them in lower case.
    #[test]
    fn guids_are_taken_in_any_case_and_kept_in_lower() {
        let upper = "AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE";
        let lower = upper.to_ascii_lowercase();
        let settings = Settings::read(&with(&[
            ("client_id", upper),
            ("tenants", upper),
            ("operator_tenant", upper),
            ("key_vault_tenant", upper),
            ("managed_identity_client_id", upper),
        ]))
        .unwrap();
        let guid = Guid::parse(&lower).unwrap();
        assert_eq!(settings.client_id.as_str(), lower);
        assert_eq!(
            settings.audiences,
            [lower.clone(), format!("api://{lower}")]
        );
        assert_eq!(settings.tenants, Tenants::Listed(vec![guid.clone()]));
        for setting in [
            settings.operator_tenant,
            settings.key_vault_tenant,
            settings.managed_identity_client_id,
        ] {
            assert_eq!(setting, Some(guid.clone()));
        }
        // What else an audience can be is compared as it is.
        let audience = format!("{upper},api://{upper}");
        let settings = Settings::read(&with(&[("audience", &audience)])).unwrap();
        assert_eq!(settings.audiences, [lower, format!("api://{upper}")]);
    }

    /// Another spelling of the same settings is no change of what is stored.
    #[test]
    fn the_fingerprint_is_of_what_is_used() {
        let of = |changes: &[(&'static str, &str)]| {
            let settings = Settings::read(&with(changes)).unwrap();
            settings.fingerprint
        };
        let upper = ("client_id", "AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE");
        let lower = ("client_id", " aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee\n");
        assert_eq!(of(&[upper]), of(&[lower]));
        let spelt_out = [
            ("user_id_template", "{tid}.{oid}"),
            ("secret_id_template", " obo-{tid}"),
            ("pseudonym_key", " "),
        ];
        assert_eq!(of(&spelt_out), of(&[]));
        let confirmed = |value: &str| {
            let settings = Settings::read(&with(&[("confirmed_settings", value)])).unwrap();
            settings.confirmed_settings
        };
        assert_eq!(confirmed(" "), None);
        assert_eq!(confirmed("a1 b2\n").as_deref(), Some("a1 b2"));
    }

    #[test]
    fn an_api_needs_its_origin_among_those_that_the_manifest_has() {
        let apis = r#"{"own": {"url": "https://api.example", "scope": "api://own/.default", "allow": ["GET /**"]}}"#;
        let read = |changes: &[(&'static str, &str)]| at_fault(&with(changes));
        assert_eq!(read(&[("apis", apis)]), ["apis"]);
        let other = ("api_origin_1", "https://other.example");
        assert_eq!(read(&[("apis", apis), other]), ["apis"]);
        let broken = ("api_origin_1", "api.example");
        assert_eq!(read(&[("apis", apis), broken]), ["api_origin_1"]);
        let own = ("api_origin_8", "https://api.example/");
        assert_eq!(read(&[("apis", apis), other, own]), [""; 0]);
        let rule = r#"[{"client": "33333333-3333-3333-3333-333333333333", "callers": "app", "apis": ["own"]}]"#;
        assert_eq!(read(&[("apis", apis), own, ("grants", rule)]), [""; 0]);
        assert_eq!(read(&[("grants", rule)]), ["grants"]);
        // Not told twice, if nobody knows which APIs there are.
        assert_eq!(read(&[("apis", "{"), ("grants", rule)]), ["apis"]);
        // An origin alone calls nobody.
        let settings = Settings::read(&with(&[own])).unwrap();
        assert_eq!(settings.apis, Apis::default());
    }

    /// Windows' editors put one in front of a file.
    #[test]
    fn a_byte_order_mark_is_no_part_of_a_setting() {
        let client_id = format!("\u{feff}{CLIENT}\r\n");
        let settings = Settings::read(&with(&[("client_id", &client_id)])).unwrap();
        assert_eq!(settings.client_id.as_str(), CLIENT);
    }

    #[test]
    fn each_credential_needs_its_own_settings_and_no_other() {
        for (changes, missing) in [
            (
                &[("credential", "certificate")][..],
                &["certificate_pem", "private_key_pem"][..],
            ),
            (
                &[
                    ("credential", "certificate"),
                    ("certificate_pem", CERTIFICATE),
                ],
                &["private_key_pem"],
            ),
            (
                &[
                    ("credential", "certificate"),
                    ("certificate_pem", CERTIFICATE),
                    ("private_key_pem", PRIVATE_KEY),
                ],
                &[],
            ),
            (&[("credential", "federated-token")], &["federated_token"]),
            (
                &[
                    ("credential", "federated-token"),
                    ("federated_token", "a.b.c"),
                ],
                &[],
            ),
            (&[("credential", "managed-identity")], &[]),
            (&[("key_vault_credential", "managed-identity")], &[]),
        ] {
            let mut values = with(changes);
            if values.contains_key("credential") {
                values.remove("client_secret");
            }
            assert_eq!(at_fault(&values), missing, "{changes:?}");
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
            assert_eq!(at_fault(&with(changes)), [name]);
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

    /// Notes which settings are asked for.
    pub(super) struct Asked<'a>(RefCell<Vec<String>>, &'a Values);

    impl<'a> Asked<'a> {
        pub(super) fn of(values: &'a Values) -> Self {
            Self(RefCell::default(), values)
        }

        pub(super) fn names(self) -> Vec<String> {
            self.0.into_inner()
        }
    }

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
        let manifest = include_str!("../../../spin.toml");
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
                ("certificate_pem", CERTIFICATE),
                ("private_key_pem", PRIVATE_KEY),
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
            let config = Asked::of(&values);
            Settings::read(&config).unwrap();
            asked.append(&mut config.names());
        }
        asked.sort_unstable();
        asked.dedup();
        names.sort_unstable();
        assert_eq!(asked, names);
    }
}
