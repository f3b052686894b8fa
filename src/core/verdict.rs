//! What an error means in a sweep: for the record, for its tenant, for the sweep. One place, and one function.
//!
//! The rule behind the table: whatever concerns one user, one scope, one key or one tenant holds up nobody else. Only
//! storage, the settings and the clock stop a sweep.

use crate::error::{
    CallerError, HoldsUp, OperatorError, StoredError, System, UpstreamError, UserError, VaultError,
};
use crate::record::Status;

/// What a sweep was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Work {
    /// Asking for the newest key of a tenant.
    NewestKey,
    /// Sealing a record anew under the newest key.
    Reseal,
    /// Refreshing a record.
    Refresh,
}

/// What follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// This record is tried again with back-off, and not before so many seconds.
    PutOff {
        retry_after_seconds: Option<u32>,
        /// Whether the operator has to look at it, rather than wait for another system.
        is_operators: bool,
    },
    /// This record cannot be read: it is kept, and looked at daily.
    SetAside,
    /// It is somebody else's turn: this record's token is kept with this status, and tried daily.
    Turn(Status),
    /// This tenant stays away from Entra ID for so many seconds; none: it did not say. The record is put off, too.
    HoldTenant { seconds: Option<u32> },
    /// This app's credential is not accepted for this tenant, which waits until the next sweep. All tenants wait if it is
    /// not accepted for a second one, with none succeeding in between.
    HoldCredential,
    /// The key version that this record is under cannot be had: its records wait.
    KeyVersionUnusable,
    /// The tenant has no newest key to seal under: its records wait.
    NewestKeyUnusable,
    /// The tenant is not among the setting `tenants`.
    NotServed,
    /// The sweep is over.
    Stop,
}

/// The table, without a catch-all arm: an error that is added does not compile until it is placed here.
pub(crate) fn verdict(error: &VaultError, work: Work) -> Verdict {
    // What fails on the way to a key is about that key, whichever system it was.
    let key = match work {
        Work::NewestKey => Verdict::NewestKeyUnusable,
        Work::Reseal | Work::Refresh => Verdict::KeyVersionUnusable,
    };
    // Entra ID answers for a user in a refresh alone. Otherwise it was asked for this app's own token, for a key.
    let of_refresh = |verdict| match work {
        Work::Refresh => verdict,
        Work::NewestKey | Work::Reseal => key.clone(),
    };
    let of_record = |verdict| match work {
        Work::Refresh | Work::Reseal => verdict,
        Work::NewestKey => Verdict::NewestKeyUnusable,
    };
    let put_off = |is_operators, retry_after_seconds| Verdict::PutOff {
        retry_after_seconds,
        is_operators,
    };
    match error {
        VaultError::Caller(CallerError::TenantNotAllowed) => Verdict::NotServed,
        // What is stored makes no valid parameter.
        VaultError::Caller(CallerError::InvalidRequest(_))
        | VaultError::Stored(StoredError::Damaged | StoredError::NotBound) => {
            of_record(Verdict::SetAside)
        }
        // A sweep's work has no caller who could be at fault. Should it seem so, no other record is.
        VaultError::Caller(
            CallerError::InvalidToken(_)
            | CallerError::AccountNotSupported(_)
            | CallerError::InsufficientScope(_)
            | CallerError::ScopeNotGranted
            | CallerError::InvalidScope(_)
            | CallerError::SweepNotAuthorized,
        ) => of_record(put_off(true, None)),
        VaultError::User(UserError::InteractionRequired(interaction)) => of_refresh(Verdict::Turn(
            Status::InteractionRequired(interaction.clone()),
        )),
        VaultError::User(UserError::ReenrolmentRequired(reason)) => {
            of_refresh(Verdict::Turn(Status::Quarantined(*reason)))
        }
        VaultError::Organisation(error) => {
            of_refresh(Verdict::Turn(Status::OrganisationRequired(*error)))
        }
        VaultError::Operator(error) => match error {
            OperatorError::Setting { .. } | OperatorError::ClockWrong => Verdict::Stop,
            OperatorError::KeyNotFound(_)
            | OperatorError::KeyDisabled(_)
            | OperatorError::KeyNotValid(_)
            | OperatorError::KeyMalformed(_)
            | OperatorError::KeyVaultForbidden
            | OperatorError::KeyVaultFirewall
            | OperatorError::KeyVaultRefused
            | OperatorError::KeyVaultTokenRefused(_) => key,
            OperatorError::KeyWornOut(_) => Verdict::NewestKeyUnusable,
            OperatorError::EntraRefused(_) | OperatorError::NoRefreshToken => {
                of_refresh(put_off(true, None))
            }
            OperatorError::CredentialRefused { .. } => of_refresh(Verdict::HoldCredential),
        },
        VaultError::Upstream(UpstreamError {
            system,
            retry_after_seconds,
            holds_up,
        }) => match (system, holds_up) {
            (System::Entra, HoldsUp::Request | HoldsUp::User) => {
                of_refresh(put_off(false, *retry_after_seconds))
            }
            (System::Entra, HoldsUp::Tenant) => of_refresh(Verdict::HoldTenant {
                seconds: *retry_after_seconds,
            }),
            (System::Entra, HoldsUp::Everyone) | (System::KeyVault | System::SigningKeys, _) => key,
            // It makes the app's credential, where it is not the one that fetches keys.
            (System::ManagedIdentity, _) => of_refresh(Verdict::HoldCredential),
        },
    }
}
