//! What a refusal of Entra ID is to whoever asked: the same one is the user's turn in one grant and the operator's in
//! another.

use crate::error::{
    CallerError, HoldsUp, Interaction, OperatorError, OrganisationError, System, TokenDefect,
    UpstreamError, UserError, VaultError,
};
use crate::vault::credential::Credential;
use crate::vault::token_client::answer::{Class, Refusal, Suspect};
use crate::vault::token_client::grant::Grant;

/// Who chose the scope of a grant, and so whose fault it is if there is no such scope.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ScopeChoice {
    /// Whoever sent the request.
    Caller,
    /// The settings, now or when the user enrolled.
    Settings,
}

impl ScopeChoice {
    /// Of a request that names a scope, or does not.
    pub(crate) fn of(asked: Option<&str>) -> Self {
        asked.map_or(Self::Settings, |_| Self::Caller)
    }
}

/// What a refusal is to whoever asked.
///
/// Every pair of a class and a grant has its arm.
pub(super) fn ruling(
    credential: &Credential,
    refusal: Refusal,
    grant: &Grant<'_>,
    scope_choice: ScopeChoice,
) -> VaultError {
    let reason = refusal.reason;
    let ask_user = |claims| UserError::InteractionRequired(Interaction { claims, reason }).into();
    match (refusal.class, grant) {
        (
            Class::Transient {
                retry_after_seconds,
                holds_up,
            },
            grant,
        ) => UpstreamError {
            system: System::Entra,
            retry_after_seconds,
            holds_up: match grant {
                // Without it nobody's key can be read.
                Grant::ClientCredentials { .. } => HoldsUp::Everyone,
                Grant::OnBehalfOf { .. } | Grant::Refresh { .. } => holds_up,
            },
        }
        .into(),
        (Class::Operator(Suspect::Credential), _) => credential.refused(reason),
        // This app itself has no user who could act, and nobody chose the scope but the settings.
        (
            Class::Operator(Suspect::App)
            | Class::Interaction { .. }
            | Class::Dead
            | Class::Organisation
            | Class::Scope
            | Class::Assertion,
            Grant::ClientCredentials { .. },
        ) => OperatorError::KeyVaultTokenRefused(reason).into(),
        (Class::Scope, Grant::OnBehalfOf { .. } | Grant::Refresh { .. }) => match scope_choice {
            ScopeChoice::Caller => CallerError::InvalidScope(reason).into(),
            ScopeChoice::Settings => OperatorError::EntraRefused(reason).into(),
        },
        (
            Class::Operator(Suspect::App),
            Grant::OnBehalfOf { .. } | Grant::Refresh { .. },
        )
        // There was no assertion.
        | (Class::Assertion, Grant::Refresh { .. }) => {
            OperatorError::EntraRefused(reason).into()
        }
        (Class::Organisation, Grant::OnBehalfOf { .. } | Grant::Refresh { .. }) => {
            OrganisationError(reason).into()
        }
        (Class::Interaction { claims }, Grant::OnBehalfOf { .. } | Grant::Refresh { .. }) => {
            ask_user(claims)
        }
        // The sign-in behind the caller's own token was revoked. What is stored is another one's, and stays.
        (Class::Dead, Grant::OnBehalfOf { .. }) => ask_user(None),
        (Class::Dead, Grant::Refresh { .. }) => UserError::ReenrolmentRequired(reason).into(),
        (Class::Assertion, Grant::OnBehalfOf { .. }) => TokenDefect::Rejected.into(),
    }
}
