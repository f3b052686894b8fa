//! What an error means in a sweep: for the record, for its tenant, for the sweep. One place, and one function.
//!
//! The rule behind the table: whatever concerns one user, one scope, one key or one tenant holds up nobody else. Only
//! storage, the settings and the clock stop a sweep.

use crate::error::{
    CallerError, HoldsUp, OperatorError, StoredError, System, UpstreamError, UserError, VaultError,
};
use crate::ledger::record::Status;

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
            | CallerError::TenantNotOnboarded(_)
            | CallerError::AccountNotSupported(_)
            | CallerError::InsufficientScope(_)
            | CallerError::NotGranted(_)
            | CallerError::UserRoutesOff
            | CallerError::InvalidScope(_)
            | CallerError::CallNotAllowed(_)
            | CallerError::SweepNotAuthorized,
        )
        | VaultError::Api(_) => of_record(put_off(true, None)),
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

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::error::call::{CallDefect, NoAnswer};
    use crate::error::{
        AccountKind, Interaction, NotGranted, OrganisationError, Reason, Suberror, TokenDefect,
    };

    const REASON: Reason = Reason {
        aadsts: Some(50_105),
        suberror: Some(Suberror::MessageOnly),
    };

    fn upstream(system: System, holds_up: HoldsUp) -> VaultError {
        UpstreamError {
            system,
            retry_after_seconds: Some(17),
            holds_up,
        }
        .into()
    }

    /// A number for every kind of error, without a gap: a kind that is added does not compile until it has one, and the
    /// table below fails until it has a row.
    fn kind(error: &VaultError) -> usize {
        match error {
            VaultError::Caller(error) => match error {
                CallerError::InvalidRequest(_) => 0,
                CallerError::InvalidToken(_) => 1,
                CallerError::TenantNotAllowed => 2,
                CallerError::InsufficientScope(_) => 3,
                CallerError::NotGranted(_) => 4,
                CallerError::InvalidScope(_) => 5,
                CallerError::SweepNotAuthorized => 6,
                CallerError::AccountNotSupported(_) => 26 + 16,
                CallerError::TenantNotOnboarded(_) => 26 + 17,
                CallerError::UserRoutesOff => 26 + 18,
                CallerError::CallNotAllowed(_) => 26 + 19,
            },
            VaultError::Api(_) => 26 + 20,
            VaultError::User(UserError::InteractionRequired(_)) => 7,
            VaultError::User(UserError::ReenrolmentRequired(_)) => 8,
            VaultError::Organisation(_) => 9,
            VaultError::Stored(StoredError::Damaged) => 10,
            VaultError::Stored(StoredError::NotBound) => 11,
            VaultError::Operator(error) => match error {
                OperatorError::Setting { .. } => 12,
                OperatorError::KeyNotFound(_) => 13,
                OperatorError::KeyDisabled(_) => 14,
                OperatorError::KeyNotValid(_) => 15,
                OperatorError::KeyMalformed(_) => 16,
                OperatorError::KeyWornOut(_) => 17,
                OperatorError::KeyVaultForbidden => 18,
                OperatorError::KeyVaultFirewall => 19,
                OperatorError::KeyVaultRefused => 20,
                OperatorError::EntraRefused(_) => 21,
                OperatorError::KeyVaultTokenRefused(_) => 22,
                OperatorError::CredentialRefused { .. } => 23,
                OperatorError::ClockWrong => 24,
                OperatorError::NoRefreshToken => 25,
            },
            VaultError::Upstream(error) => {
                let system = match error.system {
                    System::Entra => 0,
                    System::SigningKeys => 1,
                    System::KeyVault => 2,
                    System::ManagedIdentity => 3,
                };
                let holds_up = match error.holds_up {
                    HoldsUp::Request => 0,
                    HoldsUp::User => 1,
                    HoldsUp::Tenant => 2,
                    HoldsUp::Everyone => 3,
                };
                26 + system * 4 + holds_up
            }
        }
    }
    const KINDS: usize = 26 + 16 + 5;

    /// Errors, and what they mean in a refresh, in a re-seal, and of a question for the newest key.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn table() -> Vec<(Vec<VaultError>, [Verdict; 3])> {
        let name = || "obo-1".to_owned();
        let put_off = |is_operators| Verdict::PutOff {
            retry_after_seconds: None,
            is_operators,
        };
        let no_key = || Verdict::NewestKeyUnusable;
        let no_version = || Verdict::KeyVersionUnusable;
        let of_key = || [no_version(), no_version(), no_key()];
        let interaction = Interaction {
            claims: Some("{}".into()),
            reason: REASON,
        };
        let mut rows: Vec<(Vec<VaultError>, [Verdict; 3])> = vec![
            (
                vec![
                    CallerError::InvalidRequest("x".into()).into(),
                    StoredError::Damaged.into(),
                    StoredError::NotBound.into(),
                ],
                [Verdict::SetAside, Verdict::SetAside, no_key()],
            ),
            (
                vec![
                    TokenDefect::Rejected.into(),
                    CallerError::AccountNotSupported(AccountKind::Personal).into(),
                    CallerError::TenantNotOnboarded(name()).into(),
                    CallerError::InsufficientScope("x".into()).into(),
                    NotGranted {
                        client: None,
                        user: None,
                        missing: "x".into(),
                    }
                    .into(),
                    CallerError::UserRoutesOff.into(),
                    CallerError::InvalidScope(REASON).into(),
                    CallDefect::NotAllowed.into(),
                    NoAnswer::Unreachable.into(),
                    CallerError::SweepNotAuthorized.into(),
                ],
                [put_off(true), put_off(true), no_key()],
            ),
            (
                vec![CallerError::TenantNotAllowed.into()],
                [Verdict::NotServed, Verdict::NotServed, Verdict::NotServed],
            ),
            (
                vec![UserError::InteractionRequired(interaction.clone()).into()],
                [
                    Verdict::Turn(Status::InteractionRequired(interaction)),
                    no_version(),
                    no_key(),
                ],
            ),
            (
                vec![UserError::ReenrolmentRequired(REASON).into()],
                [
                    Verdict::Turn(Status::Quarantined(REASON)),
                    no_version(),
                    no_key(),
                ],
            ),
            (
                vec![OrganisationError(REASON).into()],
                [
                    Verdict::Turn(Status::OrganisationRequired(OrganisationError(REASON))),
                    no_version(),
                    no_key(),
                ],
            ),
            (
                vec![
                    VaultError::setting("client_id", "is empty"),
                    OperatorError::ClockWrong.into(),
                ],
                [Verdict::Stop, Verdict::Stop, Verdict::Stop],
            ),
            (
                vec![
                    OperatorError::KeyNotFound(name()).into(),
                    OperatorError::KeyDisabled(name()).into(),
                    OperatorError::KeyNotValid(name()).into(),
                    OperatorError::KeyMalformed(name()).into(),
                    OperatorError::KeyVaultForbidden.into(),
                    OperatorError::KeyVaultFirewall.into(),
                    OperatorError::KeyVaultRefused.into(),
                    OperatorError::KeyVaultTokenRefused(REASON).into(),
                ],
                of_key(),
            ),
            (
                vec![OperatorError::KeyWornOut(name()).into()],
                [no_key(), no_key(), no_key()],
            ),
            (
                vec![
                    OperatorError::EntraRefused(REASON).into(),
                    OperatorError::NoRefreshToken.into(),
                ],
                [put_off(true), no_version(), no_key()],
            ),
            (
                vec![
                    OperatorError::CredentialRefused {
                        setting: "client_secret".into(),
                        reason: REASON,
                    }
                    .into(),
                ],
                [Verdict::HoldCredential, no_version(), no_key()],
            ),
            (
                vec![
                    upstream(System::Entra, HoldsUp::Request),
                    upstream(System::Entra, HoldsUp::User),
                ],
                [
                    Verdict::PutOff {
                        retry_after_seconds: Some(17),
                        is_operators: false,
                    },
                    no_version(),
                    no_key(),
                ],
            ),
            (
                vec![upstream(System::Entra, HoldsUp::Tenant)],
                [
                    Verdict::HoldTenant { seconds: Some(17) },
                    no_version(),
                    no_key(),
                ],
            ),
            (vec![upstream(System::Entra, HoldsUp::Everyone)], of_key()),
        ];
        for holds_up in [
            HoldsUp::Request,
            HoldsUp::User,
            HoldsUp::Tenant,
            HoldsUp::Everyone,
        ] {
            let keys = [System::KeyVault, System::SigningKeys];
            let keys = keys.map(|system| upstream(system, holds_up));
            rows.push((keys.into(), of_key()));
            rows.push((
                vec![upstream(System::ManagedIdentity, holds_up)],
                [Verdict::HoldCredential, no_version(), no_key()],
            ));
        }
        rows
    }

    /// Every kind of error.
    pub(crate) fn every_error() -> Vec<VaultError> {
        table().into_iter().flat_map(|(errors, _)| errors).collect()
    }

    #[test]
    fn every_error_has_its_verdict_for_every_work() {
        let mut kinds = BTreeSet::new();
        for (errors, expected) in table() {
            for error in errors {
                kinds.insert(kind(&error));
                let works = [Work::Refresh, Work::Reseal, Work::NewestKey];
                let verdicts = works.map(|work| verdict(&error, work));
                assert_eq!(verdicts, expected, "{error:?}");
            }
        }
        assert_eq!(kinds, (0..KINDS).collect(), "each kind has a row");
    }

    /// The rule that the table is made by: what one record meets stops nobody else's work.
    #[test]
    fn only_settings_and_the_clock_stop_a_sweep() {
        for (errors, verdicts) in table() {
            for error in errors {
                let is_stop = verdicts.contains(&Verdict::Stop);
                let may_stop = matches!(
                    error,
                    VaultError::Operator(OperatorError::Setting { .. } | OperatorError::ClockWrong)
                );
                assert_eq!(is_stop, may_stop, "{error:?}");
            }
        }
    }
}
