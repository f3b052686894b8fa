//! The boundary of the vault component: which value of the core is which of `wit/behalf.wit`.
//!
//! The types that wit-bindgen makes of the WIT belong to the component that it makes them for, so the vault component
//! and a component that imports it have twins of the same types. [`vault_twins!`](crate::vault_twins) is the one table
//! of what is whose twin. A component invokes it with the module of its bindings, and gets [`WitValue`], which is both
//! directions, for each. Every pattern in it is exhaustive: a case or a field that either side has and the table has
//! not does not compile.

use std::time::Duration;

use thiserror::Error;

use crate::deadline::LONGEST;
use crate::error::Suberror;
use crate::identity::{Fingerprint, KeyVersion, Nonce, StorageId, TenantId};
use crate::secret::{AccessToken, DatabaseAddress};

/// A value that has a twin at the boundary.
pub trait WitValue<T>: Sized {
    /// Its twin.
    fn into_wit(self) -> T;

    /// Reads its twin.
    ///
    /// # Errors
    /// [`Malformed`] if a text is not what the interface says of it.
    fn from_wit(twin: T) -> Result<Self, Malformed>;
}

/// A text of the boundary is not what the interface says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("`{}` must be {expected}", .name.replace('_', "-"))]
pub struct Malformed {
    name: &'static str,
    expected: &'static str,
}

impl Malformed {
    fn new(expected: &'static str) -> Self {
        Self { name: "", expected }
    }

    /// Names the field or parameter that it is about, unless a field within it did.
    #[must_use]
    pub fn named(self, name: &'static str) -> Self {
        match self.name {
            "" => Self { name, ..self },
            _ => self,
        }
    }
}

/// Texts that are parsed.
macro_rules! texts {
    ($($type:ty: $expected:literal,)*) => {$(
        impl WitValue<String> for $type {
            fn into_wit(self) -> String {
                self.as_str().into()
            }

            fn from_wit(twin: String) -> Result<Self, Malformed> {
                Self::parse(&twin).ok_or(Malformed::new($expected))
            }
        }
    )*};
}

texts! {
    TenantId: "a GUID",
    StorageId: "32 characters of [A-Za-z0-9_-]",
    Nonce: "1 to 64 characters of [A-Za-z0-9_-]",
    KeyVersion: "32 lower-case hexadecimal digits",
}

/// Values that are the same on both sides.
macro_rules! same {
    ($($type:ty,)*) => {$(
        impl WitValue<$type> for $type {
            fn into_wit(self) -> $type {
                self
            }

            fn from_wit(twin: $type) -> Result<Self, Malformed> {
                Ok(twin)
            }
        }
    )*};
}

same! { (), bool, u32, u64, String, }

/// Secrets that are given to whoever imports the vault.
macro_rules! secrets {
    ($($type:ty,)*) => {$(
        impl WitValue<String> for $type {
            fn into_wit(self) -> String {
                self.expose().into()
            }

            fn from_wit(twin: String) -> Result<Self, Malformed> {
                Ok(Self::new(twin))
            }
        }
    )*};
}

secrets! { AccessToken, DatabaseAddress, }

/// Milliseconds; none: as long as a call may take.
impl WitValue<Option<u32>> for Duration {
    fn into_wit(self) -> Option<u32> {
        u32::try_from(self.as_millis()).ok()
    }

    fn from_wit(twin: Option<u32>) -> Result<Self, Malformed> {
        Ok(twin.map_or(LONGEST, |milliseconds| {
            Self::from_millis(milliseconds.into())
        }))
    }
}

/// A word that is not known here is left out: it is another system's text.
impl WitValue<Option<String>> for Option<Suberror> {
    fn into_wit(self) -> Option<String> {
        self.map(|suberror| suberror.as_str().into())
    }

    fn from_wit(twin: Option<String>) -> Result<Self, Malformed> {
        Ok(twin.as_deref().and_then(Suberror::parse))
    }
}

/// In the order of [`Fingerprint::SETTINGS`].
impl WitValue<[String; 4]> for Fingerprint {
    fn into_wit(self) -> [String; 4] {
        self.parts().map(|(_, hash)| hash.into())
    }

    fn from_wit(twin: [String; 4]) -> Result<Self, Malformed> {
        let hashes = twin.each_ref().map(String::as_str);
        Self::parse(hashes).ok_or(Malformed::new("16 lower-case hexadecimal digits each"))
    }
}

impl<T: WitValue<W>, W> WitValue<Option<W>> for Option<T> {
    fn into_wit(self) -> Option<W> {
        self.map(T::into_wit)
    }

    fn from_wit(twin: Option<W>) -> Result<Self, Malformed> {
        twin.map(T::from_wit).transpose()
    }
}

impl<T: WitValue<W>, W> WitValue<Vec<W>> for Vec<T> {
    fn into_wit(self) -> Vec<W> {
        self.into_iter().map(T::into_wit).collect()
    }

    fn from_wit(twin: Vec<W>) -> Result<Self, Malformed> {
        twin.into_iter().map(T::from_wit).collect()
    }
}

/// Makes [`WitValue`] of a type and its twin in the module of the bindings, out of one list of their cases or fields.
///
/// `variant` is for enums: their cases have the same names on both sides, and what a case holds is a twin itself. A
/// case with fields, which the WIT can have in a record alone, names that record. `record` is for structs with the same
/// fields, and `wrapper` for a struct around the one value that is its twin.
///
/// ```
/// use behalf_core::{twins, vault::wit::WitValue};
///
/// # #[derive(Debug, PartialEq)]
/// enum Fault { Late, Missing(String), Refused { by: String, code: u32 } }
///
/// mod wit { // As wit-bindgen makes it.
/// #    #[derive(Debug, PartialEq)]
///     pub struct Refusal { pub by: String, pub code: u32 }
/// #    #[derive(Debug, PartialEq)]
///     pub enum Fault { Late, Missing(String), Refused(Refusal) }
/// }
///
/// twins! { wit:
///     variant Fault = Fault { Late, Missing(what), Refused { by, code } as Refusal }
/// }
///
/// let fault = Fault::Refused { by: "Entra ID".into(), code: 7 };
/// let twin: wit::Fault = fault.into_wit();
/// assert_eq!(twin, wit::Fault::Refused(wit::Refusal { by: "Entra ID".into(), code: 7 }));
/// assert_eq!(Fault::from_wit(wit::Fault::Late), Ok(Fault::Late));
/// ```
///
/// A case that is missing does not compile, whichever side has it. The same without `Late` in the table:
///
/// ```compile_fail,E0004
/// # use behalf_core::{twins, vault::wit::WitValue};
/// enum Fault { Late, Missing(String) }
/// mod wit { pub enum Fault { Late, Missing(String) } }
/// twins! { wit: variant Fault = Fault { Missing(what) } }
/// ```
///
/// With a case that the WIT alone has:
///
/// ```compile_fail,E0004
/// # use behalf_core::{twins, vault::wit::WitValue};
/// enum Fault { Missing(String) }
/// mod wit { pub enum Fault { Late, Missing(String) } }
/// twins! { wit: variant Fault = Fault { Missing(what) } }
/// ```
///
/// With a field that the table has not:
///
/// ```compile_fail,E0063
/// # use behalf_core::{twins, vault::wit::WitValue};
/// struct Refusal { by: String, code: u32 }
/// mod wit { pub struct Refusal { pub by: String } }
/// twins! { wit: record Refusal = Refusal { by } }
/// ```
#[macro_export]
macro_rules! twins {
    ($wit:ident:) => {};
    (
        $wit:ident: variant $core:ty = $twin:ident {
            $($case:ident $(($value:ident))? $({ $($field:ident),* } as $record:ident)?),* $(,)?
        } $($rest:tt)*
    ) => {
        impl $crate::vault::wit::WitValue<$wit::$twin> for $core {
            fn into_wit(self) -> $wit::$twin {
                match self {
                    $(Self::$case $(($value))? $({ $($field),* })? =>
                        $wit::$twin::$case
                            $(($crate::vault::wit::WitValue::into_wit($value)))?
                            $(($wit::$record {
                                $($field: $crate::vault::wit::WitValue::into_wit($field),)*
                            }))?,)*
                }
            }

            fn from_wit(twin: $wit::$twin) -> Result<Self, $crate::vault::wit::Malformed> {
                Ok(match twin {
                    $($wit::$twin::$case $(($value))? $(($wit::$record { $($field),* }))? =>
                        Self::$case
                            $(($crate::vault::wit::WitValue::from_wit($value)?))?
                            $({ $($field: $crate::vault::wit::WitValue::from_wit($field)?,)* })?,)*
                })
            }
        }
        $crate::twins! { $wit: $($rest)* }
    };
    (
        $wit:ident: record $core:ty = $twin:ident { $($field:ident),* $(,)? } $($rest:tt)*
    ) => {
        impl $crate::vault::wit::WitValue<$wit::$twin> for $core {
            fn into_wit(self) -> $wit::$twin {
                let Self { $($field),* } = self;
                $wit::$twin { $($field: $crate::vault::wit::WitValue::into_wit($field),)* }
            }

            fn from_wit(twin: $wit::$twin) -> Result<Self, $crate::vault::wit::Malformed> {
                let $wit::$twin { $($field),* } = twin;
                Ok(Self {
                    $($field: $crate::vault::wit::WitValue::from_wit($field)
                        .map_err(|error: $crate::vault::wit::Malformed| {
                            error.named(stringify!($field))
                        })?,)*
                })
            }
        }
        $crate::twins! { $wit: $($rest)* }
    };
    ($wit:ident: wrapper $core:ty = $twin:ident; $($rest:tt)*) => {
        impl $crate::vault::wit::WitValue<$wit::$twin> for $core {
            fn into_wit(self) -> $wit::$twin {
                let Self(value) = self;
                $crate::vault::wit::WitValue::into_wit(value)
            }

            fn from_wit(twin: $wit::$twin) -> Result<Self, $crate::vault::wit::Malformed> {
                Ok(Self($crate::vault::wit::WitValue::from_wit(twin)?))
            }
        }
        $crate::twins! { $wit: $($rest)* }
    };
}

/// The table: what of the core is which value of interface `behalf:vault/vault`, whose bindings are the module that it
/// is invoked with. The crate documentation of [`crate::vault::wit`] says why it is a macro.
#[macro_export]
macro_rules! vault_twins {
    ($wit:ident) => {
        $crate::twins! { $wit:
            variant $crate::error::VaultError = Error {
                Caller(error),
                User(error),
                Organisation(error),
                Stored(error),
                Operator(error),
                Upstream(error),
                Api(error),
            }
            variant $crate::error::CallerError = CallerError {
                InvalidRequest(what),
                InvalidToken(defect),
                TenantNotAllowed,
                TenantNotOnboarded(secret),
                AccountNotSupported(kind),
                InsufficientScope(lacking),
                NotGranted(grant),
                InvalidScope(reason),
                CallNotAllowed(refusal),
                SweepNotAuthorized,
                UserRoutesOff,
            }
            record $crate::error::call::CallRefusal = CallRefusal { client, user, defect }
            variant $crate::error::call::CallDefect = CallDefect {
                Api,
                Method,
                Upgrade,
                TooLong,
                Percent,
                NotUtf8,
                Slash,
                Backslash,
                Semicolon,
                Control,
                EmptySegment,
                DotSegment,
                Batch,
                Query,
                NotAllowed,
            }
            variant $crate::error::call::NoAnswer = NoAnswer {
                Unreachable,
                TimedOut,
                Garbled,
                BodyBrokeOff,
            }
            record $crate::error::NotGranted = NotGranted { client, user, missing }
            variant $crate::error::AccountKind = AccountKind { Personal, External }
            variant $crate::error::TokenDefect = TokenDefect {
                Missing,
                Malformed,
                WrongAlgorithm,
                ProofOfPossession,
                UnknownKey,
                BadSignature,
                WrongIssuer,
                WrongAudience,
                Expired,
                NotYetValid,
                Rejected,
            }
            variant $crate::error::UserError = UserError {
                InteractionRequired(interaction),
                ReenrolmentRequired(reason),
            }
            record $crate::error::Interaction = Interaction { claims, reason }
            record $crate::error::Reason = Reason { aadsts, suberror }
            wrapper $crate::error::OrganisationError = Reason;
            variant $crate::error::StoredError = StoredError { Damaged, NotBound }
            variant $crate::error::OperatorError = OperatorError {
                Setting(faults),
                KeyNotFound(secret),
                KeyDisabled(secret),
                KeyNotValid(secret),
                KeyMalformed(secret),
                KeyWornOut(secret),
                KeyVaultForbidden,
                KeyVaultFirewall,
                KeyVaultRefused,
                EntraRefused(reason),
                KeyVaultTokenRefused(reason),
                CredentialRefused { setting, reason } as CredentialFault,
                ClockWrong,
                NoRefreshToken,
            }
            record $crate::error::SettingFault = SettingFault { name, expected }
            record $crate::error::UpstreamError = UpstreamError {
                system,
                retry_after_seconds,
                holds_up,
            }
            variant $crate::error::System = System {
                Entra,
                SigningKeys,
                KeyVault,
                ManagedIdentity,
            }
            variant $crate::error::HoldsUp = HoldsUp { Request, User, Tenant, Everyone }
            record $crate::identity::User = User { tenant, id }
            record $crate::vault::port::Policy = Policy {
                store_prefix,
                refresh_after_seconds,
                fingerprint,
                confirmed_settings,
                cors_origins,
            }
            record $crate::vault::port::Terms = Terms { within, correlation_id }
            record $crate::identity::UserName = UserName { tenant, object }
            variant $crate::vault::port::Subject = Subject { Me, User(name) }
            variant $crate::vault::port::Purpose = Purpose { Manage, Enrol, Draw(draw) }
            record $crate::vault::port::Caller = Caller { app, rule, user, policy, kept }
            record $crate::vault::port::Kept = Kept { nonce, scope, outcome }
            variant $crate::vault::port::KeptOutcome = KeptOutcome { Issued(issued), Refused(refusal) }
            record $crate::vault::port::Remembered = Remembered { error, retry_after_seconds }
            record $crate::vault::port::SealedToken = SealedToken { token, key_version }
            record $crate::vault::port::Enrolment = Enrolment { app, user, policy, sealed, scope }
            record $crate::vault::port::Draw = Draw { scope, claims, replace }
            record $crate::vault::port::Issued = Issued {
                access_token,
                token_type,
                expires_in,
                scope,
                rule,
                replacement,
            }
            record $crate::vault::port::NewestKey = NewestKey { version, created_at, expires_at }
            record $crate::vault::port::SweepLimits = SweepLimits { policy, seconds, concurrency }
            variant $crate::vault::port::Role = Role { Read, Admin, Act }
            record $crate::vault::port::Operator = Operator { app, policy, tenant }
        }

        // Two that have another shape on either side.
        impl $crate::vault::wit::WitValue<$wit::StoredToken> for $crate::vault::port::StoredToken {
            fn into_wit(self) -> $wit::StoredToken {
                use $crate::vault::wit::WitValue;
                let Self { user, nonce, token } = self;
                let $wit::User { tenant, id } = user.into_wit();
                $wit::StoredToken {
                    tenant,
                    user_id: id,
                    nonce: nonce.into_wit(),
                    token,
                }
            }

            fn from_wit(twin: $wit::StoredToken) -> Result<Self, $crate::vault::wit::Malformed> {
                use $crate::vault::wit::{Malformed, WitValue};
                let $wit::StoredToken {
                    tenant,
                    user_id,
                    nonce,
                    token,
                } = twin;
                let named = |name| move |error: Malformed| error.named(name);
                Ok(Self {
                    user: $crate::identity::User {
                        tenant: WitValue::from_wit(tenant).map_err(named("tenant"))?,
                        id: WitValue::from_wit(user_id).map_err(named("user_id"))?,
                    },
                    nonce: WitValue::from_wit(nonce).map_err(named("nonce"))?,
                    token,
                })
            }
        }

        impl $crate::vault::wit::WitValue<$wit::Fingerprint> for $crate::identity::Fingerprint {
            fn into_wit(self) -> $wit::Fingerprint {
                use $crate::vault::wit::WitValue;
                let hashes: [String; 4] = self.into_wit();
                let [
                    client_id,
                    user_id_template,
                    secret_id_template,
                    pseudonym_key,
                ] = hashes;
                $wit::Fingerprint {
                    client_id,
                    user_id_template,
                    secret_id_template,
                    pseudonym_key,
                }
            }

            fn from_wit(twin: $wit::Fingerprint) -> Result<Self, $crate::vault::wit::Malformed> {
                let $wit::Fingerprint {
                    client_id,
                    user_id_template,
                    secret_id_template,
                    pseudonym_key,
                } = twin;
                $crate::vault::wit::WitValue::from_wit([
                    client_id,
                    user_id_template,
                    secret_id_template,
                    pseudonym_key,
                ])
            }
        }
    };
}

/// The same of interface `behalf:vault/call`, as far as it is no resource.
#[macro_export]
macro_rules! call_twins {
    ($wit:ident) => {
        $crate::twins! { $wit:
            record $crate::vault::call::port::Target = Target { api, method, path_with_query, claims }
            record $crate::vault::call::port::Allowed = Allowed { pattern, path, scope }
        }
    };
}

/// The same of interface `behalf:vault/database`.
#[macro_export]
macro_rules! database_twins {
    ($wit:ident) => {
        $crate::twins! { $wit:
            record $crate::vault::database::Connection = Connection { address, ca_root }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{OrganisationError, Reason, SettingFault};
    use crate::identity::{Guid, User};

    /// A part of the bindings, as wit-bindgen makes them.
    mod wit {
        #[derive(Clone, PartialEq, Debug)]
        pub(super) struct User {
            pub(super) tenant: String,
            pub(super) id: String,
        }

        #[derive(Clone, PartialEq, Debug)]
        pub(super) struct Reason {
            pub(super) aadsts: Option<u32>,
            pub(super) suberror: Option<String>,
        }

        #[derive(Clone, PartialEq, Debug)]
        pub(super) struct SettingFault {
            pub(super) name: String,
            pub(super) expected: String,
        }
    }

    twins! { wit:
        record User = User { tenant, id }
        record Reason = Reason { aadsts, suberror }
        wrapper OrganisationError = Reason;
        record SettingFault = SettingFault { name, expected }
    }

    #[test]
    fn a_malformed_text_is_told_by_the_name_of_its_field() {
        let user = wit::User {
            tenant: "11111111-1111-1111-1111-111111111111".into(),
            id: "a".repeat(32),
        };
        let read = User::from_wit(user.clone()).unwrap();
        assert_eq!(read.into_wit(), user);
        let told = |user: wit::User| {
            let error = User::from_wit(user).unwrap_err();
            error.named("user").to_string()
        };
        let tenant = wit::User {
            tenant: "contoso".into(),
            ..user.clone()
        };
        assert_eq!(told(tenant), "`tenant` must be a GUID");
        let id = wit::User {
            id: String::new(),
            ..user
        };
        assert_eq!(told(id), "`id` must be 32 characters of [A-Za-z0-9_-]");
        let nonce = Nonce::from_wit(String::new()).unwrap_err();
        assert_eq!(
            nonce.named("user_nonce").to_string(),
            "`user-nonce` must be 1 to 64 characters of [A-Za-z0-9_-]"
        );
        assert_eq!(Guid::from_wit("x".into()), Err(Malformed::new("a GUID")));
    }

    #[test]
    fn a_suberror_that_is_not_known_is_left_out() {
        let reason = |suberror: &str| wit::Reason {
            aadsts: Some(50_076),
            suberror: Some(suberror.into()),
        };
        let known = Reason {
            aadsts: Some(50_076),
            suberror: Some(Suberror::BasicAction),
        };
        assert_eq!(Reason::from_wit(reason("basic_action")), Ok(known));
        assert_eq!(known.into_wit(), reason("basic_action"));
        let organisation = OrganisationError::from_wit(reason("Contoso's own text"));
        let left_out = Reason {
            suberror: None,
            ..known
        };
        assert_eq!(organisation, Ok(OrganisationError(left_out)));
    }

    #[test]
    fn a_list_crosses_one_by_one() {
        let faults = vec![SettingFault::new("a", "b"), SettingFault::new("c", "d")];
        let twins: Vec<wit::SettingFault> = faults.clone().into_wit();
        assert_eq!(twins[1].name, "c");
        assert_eq!(Vec::<SettingFault>::from_wit(twins), Ok(faults));
    }
}
