//! What proves to Entra ID who this app is, when it is more than a setting: assertions that are made, or fetched, and
//! kept.

use std::rc::Rc;

use crate::error::{Reason, System, VaultError};
use crate::identity::TenantId;
use crate::secret::ClientAssertion;
use crate::vault::cache::Cache;
use crate::vault::context::{Context, Environment};
use crate::vault::credential::{ASSERTION_SECONDS, Credential, Proof};
use crate::vault::single_flight::SingleFlight;
use crate::vault::token_client::grant::token_endpoint;
use crate::vault::token_client::identity::identity_token;

/// Seconds before its expiry at which a signed assertion is replaced.
const SIGNED_MARGIN: u64 = 120;
/// Seconds before its expiry at which a managed identity's token is.
const IDENTITY_MARGIN: u64 = 300;
/// Assertions that are kept: one a tenant, if they are signed; about a kilobyte each.
const KEPT: usize = 8192;

/// The assertions, by audience. Each is made once at a time, and kept.
pub(super) struct Assertions {
    kept: Cache<String, Rc<ClientAssertion>>,
    makings: SingleFlight<String, Rc<ClientAssertion>, VaultError>,
}

/// How this app proves who it is, for one request.
#[derive(Debug)]
pub(super) enum OwnProof {
    /// By what its setting says.
    Setting,
    /// By an assertion.
    Assertion {
        assertion: Rc<ClientAssertion>,
        audience: String,
        /// Whether it was made for a request before.
        is_kept: bool,
    },
}

impl OwnProof {
    /// As the request has it. None: the credential is one that no setting proves.
    pub(super) fn shown<'a>(&'a self, credential: &'a Credential) -> Option<Proof<'a>> {
        match (self, credential) {
            (Self::Assertion { assertion, .. }, _) => Some(Proof::Assertion(assertion)),
            (Self::Setting, Credential::ClientSecret(secret)) => Some(Proof::Secret(secret)),
            (Self::Setting, Credential::FederatedToken(token)) => Some(Proof::Assertion(token)),
            (Self::Setting, Credential::Certificate(_) | Credential::ManagedIdentity) => None,
        }
    }
}

impl Assertions {
    /// None kept yet.
    pub(super) fn new() -> Self {
        Self {
            kept: Cache::new(KEPT),
            makings: SingleFlight::new(VaultError::upstream(System::ManagedIdentity)),
        }
    }

    /// What proves who this app is, to the token endpoint of a tenant.
    ///
    /// # Errors
    /// [`VaultError`] if there is none to be had.
    pub(super) async fn proof<E: Environment>(
        &self,
        context: &Context<'_, E>,
        tenant: &TenantId,
    ) -> Result<OwnProof, VaultError> {
        match self.common_proof(context).await? {
            Some(proof) => Ok(proof),
            None => {
                self.assertion(context, token_endpoint(context, tenant))
                    .await
            }
        }
    }

    /// The same, if it is the same for every tenant.
    ///
    /// # Errors
    /// As [`Self::proof`].
    pub(super) async fn common_proof<E: Environment>(
        &self,
        context: &Context<'_, E>,
    ) -> Result<Option<OwnProof>, VaultError> {
        match &context.credential {
            Credential::ClientSecret(_) | Credential::FederatedToken(_) => {
                Ok(Some(OwnProof::Setting))
            }
            Credential::Certificate(_) => Ok(None),
            Credential::ManagedIdentity => {
                let audience = context.federation_audience.clone();
                self.assertion(context, audience).await.map(Some)
            }
        }
    }

    async fn assertion<E: Environment>(
        &self,
        context: &Context<'_, E>,
        audience: String,
    ) -> Result<OwnProof, VaultError> {
        let kept = self.kept.get(&audience, context.now());
        let is_kept = kept.is_some();
        let assertion = match kept {
            Some(assertion) => assertion,
            None => {
                self.makings
                    .run(context.env, &audience, context.deadline, async || {
                        self.make(context, &audience).await
                    })
                    .await?
            }
        };
        Ok(OwnProof::Assertion {
            assertion,
            audience,
            is_kept,
        })
    }

    /// Entra ID refused it. One that another request has made meanwhile stays.
    pub(super) fn forget(&self, proof: &OwnProof) {
        if let OwnProof::Assertion {
            assertion,
            audience,
            ..
        } = proof
        {
            self.kept
                .forget_if(audience, |kept| Rc::ptr_eq(kept, assertion));
        }
    }

    async fn make<E: Environment>(
        &self,
        context: &Context<'_, E>,
        audience: &str,
    ) -> Result<Rc<ClientAssertion>, VaultError> {
        let now = context.now();
        let refused = || context.credential.refused(Reason::default());
        let (assertion, until) = match &context.credential {
            Credential::Certificate(certificate) => {
                let client_id = context.client_id.as_str();
                let assertion = certificate.assertion(client_id, audience, now, context.env);
                let until = now.saturating_add(ASSERTION_SECONDS.saturating_sub(SIGNED_MARGIN));
                (assertion.ok_or_else(refused)?, until)
            }
            Credential::ManagedIdentity => {
                let (token, expires_at) = identity_token(context, audience).await?;
                let assertion = ClientAssertion::new(token.expose().into());
                (assertion, expires_at.saturating_sub(IDENTITY_MARGIN))
            }
            Credential::ClientSecret(_) | Credential::FederatedToken(_) => return Err(refused()),
        };
        let assertion = Rc::new(assertion);
        self.kept
            .put(audience.into(), Rc::clone(&assertion), now..until);
        Ok(assertion)
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;

    use super::*;
    use crate::simulation::world::World;
    use crate::vault::context::tests::Bench;
    use crate::vault::samples::{CERTIFICATE, PRIVATE_KEY, TENANT, shows_a_secret};

    #[test]
    fn debug_shows_no_assertion() {
        let tenant = TenantId::parse(TENANT).unwrap();
        for credential in ["certificate", "managed-identity"] {
            let world = World::new();
            {
                let mut settings = world.settings.borrow_mut();
                settings.remove("client_secret");
                settings.insert("credential", credential.to_owned());
                settings.insert("certificate_pem", CERTIFICATE.to_owned());
                settings.insert("private_key_pem", PRIVATE_KEY.to_owned());
            }
            let bench = Bench::new(&world);
            let proof = block_on(Assertions::new().proof(&bench.context(), &tenant)).unwrap();
            let OwnProof::Assertion { assertion, .. } = &proof else {
                panic!("{proof:?}");
            };
            assert!(shows_a_secret(assertion.expose()));
            assert!(!shows_a_secret(&format!("{proof:?}")));
        }
    }
}
