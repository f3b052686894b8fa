//! Asking the platform's managed identity endpoint for a token.

use crate::error::{System, VaultError};
use crate::identity::Guid;
use crate::secret::AccessToken;
use crate::vault::context::{Context, Environment};
use crate::vault::managed_identity::LONGEST_ANSWER;

/// A token of the platform's managed identity for a resource, and until when it is good.
pub(crate) async fn identity_token<E: Environment>(
    context: &Context<'_, E>,
    resource: &str,
) -> Result<(AccessToken, u64), VaultError> {
    let client_id = context
        .managed_identity_client_id
        .as_ref()
        .map(Guid::as_str);
    let request = context
        .identity
        .request(resource, client_id)
        .map_err(|_| VaultError::setting("identity_header", "makes no header"))?;
    let response = context
        .send(request, LONGEST_ANSWER, System::ManagedIdentity)
        .await?;
    context.identity.read(&response, context.now())
}
