//! Errors of the vault, grouped by whose fault they are, one to one with `variant error` of the WIT.
//!
//! No case carries a token, a key, or free text that came from another system: of Entra ID's refusals the number and a
//! word out of a list. The tables that place each case are `api/problem.rs` (HTTP), `keeper/verdict.rs` (sweeps) and
//! `vault/wit.rs` (the boundary of the component); none has a catch-all arm.

pub mod call;

use thiserror::Error;

use crate::error::call::{CallDefect, CallRefusal, NoAnswer};
use crate::identity::{Guid, SecretName, User};

/// Why a function of the vault failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum VaultError {
    /// The caller sent something wrong.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// The user has to act before it can work.
    #[error(transparent)]
    User(#[from] UserError),
    /// The user's organisation has to act: neither signing in nor trying again helps.
    #[error(transparent)]
    Organisation(#[from] OrganisationError),
    /// What storage returned cannot be used.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The operator of this app has to act.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// Another system failed for now.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The API that was called failed.
    #[error(transparent)]
    Api(#[from] NoAnswer),
}

/// The caller's fault.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CallerError {
    /// A parameter is malformed.
    #[error("{0}")]
    InvalidRequest(String),
    /// The bearer token is not acceptable.
    #[error("{0}")]
    InvalidToken(#[from] TokenDefect),
    /// The token's tenant is not allowed.
    #[error("the token's tenant is not among the setting `tenants`")]
    TenantNotAllowed,
    /// The token's tenant has no key yet.
    #[error(
        "the token's tenant has no key: create Key Vault secret `{0}` with 32 random bytes in base64"
    )]
    TenantNotOnboarded(String),
    /// The token is of an account that no tenant of an organisation's own has.
    #[error(
        "{0} are not supported: only those of an organisation's own tenant are, its guests included"
    )]
    AccountNotSupported(AccountKind),
    /// The token lacks this scope or role.
    #[error("the token lacks `{0}`")]
    InsufficientScope(String),
    /// No grant lets this caller have what it asks for.
    #[error(transparent)]
    NotGranted(#[from] NotGranted),
    /// A user is named whom nobody can be asked about here.
    #[error("the setting `user_routes` is off: nobody acts on a user but the user")]
    UserRoutesOff,
    /// The scope asked for is none that Entra ID gives to this app, or none at all.
    #[error(
        "Entra ID gives this app no such scope{}: ask for permissions of one resource that the app is registered for, each in full, like https://graph.microsoft.com/User.Read, and for `.default` alone; 2,048 bytes at most",
        aadsts(*.0)
    )]
    InvalidScope(Reason),
    /// What is to be called is not let through, or there is no such API.
    #[error(transparent)]
    CallNotAllowed(#[from] CallRefusal),
    /// What came with a request to sweep is not accepted.
    #[error(
        "send the setting `sweep_key`, or an app token with role Behalf.Sweep from `operator_tenant`, as `Authorization: Bearer …`"
    )]
    SweepNotAuthorized,
}

/// No grant lets a caller have what it asks for.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{missing}")]
pub struct NotGranted {
    /// Client id of the app that asked; none: its token does not say.
    pub client: Option<Guid>,
    /// The user whom it asked about; none: it was about tenants.
    pub user: Option<User>,
    /// What is missing and how to grant it: for the operator.
    pub missing: String,
}

/// Kinds of accounts that are not supported: their signing keys are elsewhere, one place a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccountKind {
    /// Personal Microsoft accounts.
    Personal,
    /// Customers' accounts: External ID in external tenants, and Azure AD B2C.
    External,
}

impl std::fmt::Display for AccountKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Personal => "personal Microsoft accounts",
            Self::External => "accounts of external tenants (External ID, Azure AD B2C)",
        })
    }
}

/// What is wrong with a bearer token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum TokenDefect {
    /// There is none.
    #[error("send the user's access token as `Authorization: Bearer …`")]
    Missing,
    /// It is no JWT, or lacks a claim.
    #[error("the token is no JWT with the claims of an Entra ID access token")]
    Malformed,
    /// Its `alg` is not RS256.
    #[error("the token is not signed with RS256")]
    WrongAlgorithm,
    /// It is bound to a key of whoever it was issued to (`cnf`, RFC 7800 §3), which a bearer does not prove to hold.
    #[error(
        "the token is bound to a key (proof of possession): ask Entra ID for a bearer token, which has no claim cnf"
    )]
    ProofOfPossession,
    /// None of the signing keys has its `kid`.
    #[error("no signing key of the setting `authority` has the token's `kid`")]
    UnknownKey,
    /// Its signature does not verify.
    #[error("the token's signature does not verify")]
    BadSignature,
    /// Its `iss` is wrong.
    #[error(
        "the token's issuer is not among the setting `issuers`, or its key may not sign for it"
    )]
    WrongIssuer,
    /// Its `aud` is wrong.
    #[error(
        "the token's audience is not among the setting `audience`: ask Entra ID for a token for this API"
    )]
    WrongAudience,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Entra ID refused it.
    #[error("Entra ID refused the token as an On-Behalf-Of assertion")]
    Rejected,
}

/// The user's turn.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UserError {
    /// Entra ID wants the user at the keyboard.
    #[error(
        "Entra ID asks the user to sign in{}: let the user sign in, with the `claims` if there are any, then enrol again with PUT /v1/me; drawing again without that has the same outcome",
        aadsts(.0.reason)
    )]
    InteractionRequired(Interaction),
    /// The refresh token is dead.
    #[error(
        "the refresh token is no longer valid{}: let the user sign in, then enrol again with PUT /v1/me",
        aadsts(*.0)
    )]
    ReenrolmentRequired(Reason),
}

/// What to ask the user for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Interaction {
    /// Claims for the next interactive sign-in, as JSON text, unchanged from Entra ID.
    pub claims: Option<String>,
    /// What Entra ID gave as its reason.
    pub reason: Reason,
}

/// The turn of the user's organisation: its administrators have not assigned the user, not consented, removed or disabled
/// the app, or forbid the sign-in whoever asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "the user's organisation does not let this app act for the user{}: its administrators have to change that; neither signing in nor trying again helps",
    aadsts(self.0)
)]
pub struct OrganisationError(
    /// What Entra ID gave as its reason.
    pub Reason,
);

/// What Entra ID gives as the reason of a refusal
/// (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct Reason {
    /// The AADSTS number.
    pub aadsts: Option<u32>,
    /// The suberror.
    pub suberror: Option<Suberror>,
}

/// The values of `suberror` that Microsoft's own client libraries know. Another one is dropped: it is another system's
/// text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Suberror {
    /// The refresh token cannot be used.
    BadToken,
    /// The refresh token has expired.
    TokenExpired,
    /// An interactive sign-in mends it.
    BasicAction,
    /// The user has to do something outside of the sign-in.
    AdditionalAction,
    /// It cannot be mended now.
    MessageOnly,
    /// The user has not consented.
    ConsentRequired,
    /// The user's password has expired.
    UserPasswordExpired,
    /// The token belongs to another client.
    ClientMismatch,
    /// The app would have to enforce Intune's policies.
    ProtectionPolicyRequired,
    /// The device has to register again.
    DeviceAuthenticationFailed,
    /// A sign-in is needed where none may be shown.
    UiNotAllowed,
    /// The user broke off.
    InterruptedUser,
}

impl Suberror {
    const ALL: [Self; 12] = [
        Self::BadToken,
        Self::TokenExpired,
        Self::BasicAction,
        Self::AdditionalAction,
        Self::MessageOnly,
        Self::ConsentRequired,
        Self::UserPasswordExpired,
        Self::ClientMismatch,
        Self::ProtectionPolicyRequired,
        Self::DeviceAuthenticationFailed,
        Self::UiNotAllowed,
        Self::InterruptedUser,
    ];

    /// Reads one; none if it is not known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text)
    }

    /// As Entra ID writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadToken => "bad_token",
            Self::TokenExpired => "token_expired",
            Self::BasicAction => "basic_action",
            Self::AdditionalAction => "additional_action",
            Self::MessageOnly => "message_only",
            Self::ConsentRequired => "consent_required",
            Self::UserPasswordExpired => "user_password_expired",
            Self::ClientMismatch => "client_mismatch",
            Self::ProtectionPolicyRequired => "protection_policy_required",
            Self::DeviceAuthenticationFailed => "device_authentication_failed",
            Self::UiNotAllowed => "ui_not_allowed",
            Self::InterruptedUser => "interrupted_user",
        }
    }
}

/// Storage returned something unusable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StoredError {
    /// Malformed, or a bit of it changed.
    #[error("the stored token is damaged; it was kept")]
    Damaged,
    /// Intact, but sealed for another user, tenant, enrolment or client.
    #[error("the stored token was sealed for another user, enrolment or app; it was kept")]
    NotBound,
}

/// The operator's turn.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum OperatorError {
    /// Settings are missing or wrong: these, at least one. A line each.
    #[error("{}", lines(.0))]
    Setting(Vec<SettingFault>),
    /// There is no key.
    #[error(
        "Key Vault has no secret `{0}`, or not this version of it: create it with 32 random bytes in base64"
    )]
    KeyNotFound(String),
    /// The key is disabled.
    #[error("Key Vault secret `{0}` is disabled: enable it, or create a new version")]
    KeyDisabled(String),
    /// The key is not valid now.
    #[error(
        "Key Vault secret `{0}` has expired or is not valid yet: create a new version; to open what this one sealed, move its dates or raise `key_grace_seconds`"
    )]
    KeyNotValid(String),
    /// The key is not 32 bytes.
    #[error(
        "Key Vault secret `{0}` is not 32 random bytes in base64 or base64url: create a new version that is"
    )]
    KeyMalformed(String),
    /// The key has sealed as often as it may.
    #[error(
        "the newest version of Key Vault secret `{0}` has sealed as often as a key may: create a new version"
    )]
    KeyWornOut(String),
    /// Key Vault does not let this app get secrets.
    #[error(
        "Key Vault does not let this app get secrets: give it the role Key Vault Secrets User, or an access policy with get; a role takes some minutes to work"
    )]
    KeyVaultForbidden,
    /// Key Vault is closed to where this app calls from.
    #[error(
        "Key Vault's firewall does not let this app's network in: allow it, or use a private endpoint"
    )]
    KeyVaultFirewall,
    /// Key Vault did not take this app's token or request.
    #[error(
        "Key Vault did not take this app's token: the settings `key_vault_url`, `key_vault_scope`, `key_vault_tenant` must fit it"
    )]
    KeyVaultRefused,
    /// Entra ID refused this app.
    #[error("Entra ID refused this app{}: check `client_id`, its credential, and its permissions", aadsts(*.0))]
    EntraRefused(Reason),
    /// Entra ID refused this app a token of its own for Key Vault.
    #[error("Entra ID refused this app a token for Key Vault{}: `client_id` must be an app in Key Vault's tenant, and `key_vault_scope` that of its cloud", aadsts(*.0))]
    KeyVaultTokenRefused(Reason),
    /// This app's credential was refused, by Entra ID or by the managed identity endpoint.
    #[error("this app's credential was refused{}: check the setting `{setting}`", aadsts(*.reason))]
    CredentialRefused {
        /// The setting to look at first.
        setting: String,
        /// What Entra ID gave as its reason; empty if it was not asked.
        reason: Reason,
    },
    /// The clock of this machine is wrong.
    #[error(
        "the clock of this machine is over five minutes off what Entra ID and Key Vault say: set it; no sweep runs meanwhile"
    )]
    ClockWrong,
    /// Entra ID answered without a refresh token.
    #[error(
        "Entra ID answered without a refresh token: the app needs the permission offline_access"
    )]
    NoRefreshToken,
}

/// A setting that is missing or wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettingFault {
    /// Its name.
    pub name: String,
    /// What is expected of it. Never its value.
    pub expected: String,
}

impl SettingFault {
    /// Names a setting, and says what is expected of it.
    #[must_use]
    pub fn new(name: &str, expected: &str) -> Self {
        Self {
            name: name.into(),
            expected: expected.into(),
        }
    }
}

/// With the environment variable that has it, if it is a variable and no place in the manifest.
impl std::fmt::Display for SettingFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, expected } = self;
        write!(f, "setting `{name}` ")?;
        if !name.contains('.') {
            write!(f, "(SPIN_VARIABLE_{}) ", name.to_ascii_uppercase())?;
        }
        f.write_str(expected)
    }
}

/// Another system's fault.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{system} does not answer as it should; try again later")]
pub struct UpstreamError {
    /// Which one.
    pub system: System,
    /// Seconds to wait before another try, if it said.
    pub retry_after_seconds: Option<u32>,
    /// Whose requests it concerns.
    pub holds_up: HoldsUp,
}

/// Whose requests a failure of another system concerns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HoldsUp {
    /// The one request: as far as is known, the next may work.
    Request,
    /// Those for the same user: Entra ID broke a loop of identical ones.
    User,
    /// Those for the same tenant: Entra ID throttles it, or fails for it.
    Tenant,
    /// Everyone's that need this app's keys: Key Vault throttles, or gives this app no token.
    Everyone,
}

/// A system that the vault calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    /// Entra ID's token endpoint.
    Entra,
    /// Entra ID's signing keys.
    SigningKeys,
    /// Azure Key Vault.
    KeyVault,
    /// The managed identity endpoint of the platform.
    ManagedIdentity,
}

impl System {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Entra,
        Self::SigningKeys,
        Self::KeyVault,
        Self::ManagedIdentity,
    ];

    /// The setting that says where it is.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Entra | Self::SigningKeys => "authority",
            Self::KeyVault => "key_vault_url",
            Self::ManagedIdentity => "identity_endpoint",
        }
    }
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Entra => "Entra ID",
            Self::SigningKeys => "Entra ID (signing keys)",
            Self::KeyVault => "Key Vault",
            Self::ManagedIdentity => "the managed identity endpoint",
        })
    }
}

/// What a caller is told. Whoever operates the app reads the error itself, which names secrets and settings; callers have
/// no use for those names, and no right to them.
impl VaultError {
    /// The text.
    #[must_use]
    pub fn for_caller(&self) -> String {
        match self {
            Self::Caller(error) => error.for_caller(),
            Self::User(error) => error.to_string(),
            Self::Organisation(error) => error.to_string(),
            Self::Stored(error) => error.to_string(),
            Self::Operator(error) => format!(
                "{}: whoever operates this app finds why in its log, under the request id",
                error.for_caller()
            ),
            Self::Upstream(error) => error.to_string(),
            Self::Api(error) => error.to_string(),
        }
    }
}

impl CallerError {
    fn for_caller(&self) -> String {
        match self {
            Self::TenantNotAllowed => "this app does not serve the token's tenant".into(),
            Self::TenantNotOnboarded(_) => {
                "this app is not set up for the token's tenant yet: ask whoever operates it".into()
            }
            Self::NotGranted(_) => {
                "this is not granted to the app that asks: whoever operates behalf finds in its log what is missing, under the request id".into()
            }
            Self::UserRoutesOff => "there are no paths of users here".into(),
            Self::SweepNotAuthorized => {
                "what came as `Authorization: Bearer …` does not authorize a sweep".into()
            }
            Self::InvalidToken(defect) => defect.for_caller().into(),
            Self::InvalidRequest(_)
            | Self::AccountNotSupported(_)
            | Self::InsufficientScope(_)
            | Self::InvalidScope(_) => self.to_string(),
            Self::CallNotAllowed(refusal) => match refusal.defect {
                CallDefect::Api => "there is no API of this name here".into(),
                CallDefect::NotAllowed => {
                    "this method and path are not among those that may be called of this API".into()
                }
                defect => defect.to_string(),
            },
        }
    }
}

impl TokenDefect {
    /// Without a setting's name.
    #[must_use]
    pub fn for_caller(self) -> &'static str {
        match self {
            Self::Missing => "send the user's access token as `Authorization: Bearer …`",
            Self::Malformed => "the token is no JWT with the claims of an Entra ID access token",
            Self::WrongAlgorithm => "the token is not signed with RS256",
            Self::ProofOfPossession => {
                "the token is bound to a key (proof of possession): ask Entra ID for a bearer token, which has no claim cnf"
            }
            Self::UnknownKey => "Entra ID has no signing key with the token's `kid`",
            Self::BadSignature => "the token's signature does not verify",
            Self::WrongIssuer => "the token is from another issuer than this app accepts",
            Self::WrongAudience => {
                "the token is for another audience: ask Entra ID for a token for this API"
            }
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::Rejected => "Entra ID refused the token as an On-Behalf-Of assertion",
        }
    }
}

impl OperatorError {
    fn for_caller(&self) -> &'static str {
        match self {
            Self::Setting(_) => "this app is not set up as it should be",
            Self::KeyNotFound(_)
            | Self::KeyDisabled(_)
            | Self::KeyNotValid(_)
            | Self::KeyMalformed(_)
            | Self::KeyWornOut(_) => "the key of this tenant cannot be used",
            Self::KeyVaultForbidden
            | Self::KeyVaultFirewall
            | Self::KeyVaultRefused
            | Self::KeyVaultTokenRefused(_) => "this app does not get its keys",
            Self::EntraRefused(_) | Self::CredentialRefused { .. } | Self::NoRefreshToken => {
                "Entra ID does not give this app what it asks for"
            }
            Self::ClockWrong => "the clock of this app is wrong",
        }
    }
}

/// A word for each error that stays the same from version to version: the `code` of the API's problems.
impl VaultError {
    /// The word.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Caller(error) => error.code(),
            Self::User(UserError::InteractionRequired(_)) => "interaction_required",
            Self::User(UserError::ReenrolmentRequired(_)) => "reenrolment_required",
            Self::Organisation(OrganisationError(_)) => "organisation_required",
            Self::Stored(StoredError::Damaged) => "record_damaged",
            Self::Stored(StoredError::NotBound) => "record_not_bound",
            Self::Operator(error) => error.code(),
            Self::Upstream(UpstreamError { system, .. }) => match system {
                System::Entra => "entra_unavailable",
                System::SigningKeys => "signing_keys_unavailable",
                System::KeyVault => "key_vault_unavailable",
                System::ManagedIdentity => "managed_identity_unavailable",
            },
            Self::Api(NoAnswer::Unreachable) => "api_unreachable",
            Self::Api(NoAnswer::TimedOut) => "api_timed_out",
            Self::Api(NoAnswer::Garbled) => "api_garbled",
            Self::Api(NoAnswer::BodyBrokeOff) => "body_broken_off",
        }
    }
}

impl CallerError {
    fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidToken(defect) => defect.code(),
            Self::TenantNotAllowed => "tenant_not_allowed",
            Self::TenantNotOnboarded(_) => "tenant_not_onboarded",
            Self::AccountNotSupported(_) => "account_not_supported",
            Self::InsufficientScope(_) => "insufficient_scope",
            Self::NotGranted(_) => "not_granted",
            Self::UserRoutesOff => "user_routes_off",
            Self::InvalidScope(_) => "invalid_scope",
            Self::CallNotAllowed(CallRefusal {
                defect: CallDefect::Api,
                ..
            }) => "api_unknown",
            Self::CallNotAllowed(_) => "call_not_allowed",
            Self::SweepNotAuthorized => "sweep_not_authorized",
        }
    }
}

impl TokenDefect {
    fn code(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Malformed => "token_malformed",
            Self::WrongAlgorithm => "token_wrong_algorithm",
            Self::ProofOfPossession => "token_proof_of_possession",
            Self::UnknownKey => "token_unknown_key",
            Self::BadSignature => "token_bad_signature",
            Self::WrongIssuer => "token_wrong_issuer",
            Self::WrongAudience => "token_wrong_audience",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Rejected => "token_rejected",
        }
    }
}

impl OperatorError {
    fn code(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "setting",
            Self::KeyNotFound(_) => "key_not_found",
            Self::KeyDisabled(_) => "key_disabled",
            Self::KeyNotValid(_) => "key_not_valid",
            Self::KeyMalformed(_) => "key_malformed",
            Self::KeyWornOut(_) => "key_worn_out",
            Self::KeyVaultForbidden => "key_vault_forbidden",
            Self::KeyVaultFirewall => "key_vault_firewall",
            Self::KeyVaultRefused => "key_vault_refused",
            Self::EntraRefused(_) => "entra_refused",
            Self::KeyVaultTokenRefused(_) => "key_vault_token_refused",
            Self::CredentialRefused { .. } => "credential_refused",
            Self::ClockWrong => "clock_wrong",
            Self::NoRefreshToken => "entra_gave_no_refresh_token",
        }
    }
}

impl VaultError {
    /// For the flow of `?`: a setting is missing or wrong.
    #[must_use]
    pub fn setting(name: &str, expected: &str) -> Self {
        OperatorError::Setting(vec![SettingFault::new(name, expected)]).into()
    }

    /// For the flow of `?`: a system failed, and did not say when to come back.
    #[must_use]
    pub fn upstream(system: System) -> Self {
        UpstreamError {
            system,
            retry_after_seconds: None,
            holds_up: HoldsUp::Request,
        }
        .into()
    }
}

impl From<NotGranted> for VaultError {
    fn from(error: NotGranted) -> Self {
        CallerError::from(error).into()
    }
}

impl From<TokenDefect> for VaultError {
    fn from(defect: TokenDefect) -> Self {
        CallerError::from(defect).into()
    }
}

impl From<CallRefusal> for VaultError {
    fn from(refusal: CallRefusal) -> Self {
        CallerError::from(refusal).into()
    }
}

/// By a caller who is known already.
impl From<CallDefect> for VaultError {
    fn from(defect: CallDefect) -> Self {
        CallRefusal {
            client: None,
            user: None,
            defect,
        }
        .into()
    }
}

impl OperatorError {
    /// A key's name, as the cases carry it.
    pub(crate) fn name(secret: &SecretName) -> String {
        secret.as_str().into()
    }
}

fn lines(faults: &[SettingFault]) -> String {
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn aadsts(reason: Reason) -> String {
    reason
        .aadsts
        .map(|number| format!(" (AADSTS{number})"))
        .unwrap_or_default()
}
