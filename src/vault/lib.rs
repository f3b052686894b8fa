//! The vault component: translates between the WIT interface `behalf:vault/vault` and [`behalf_core::Vault`], and
//! between its ports and WASI 0.3. It decides nothing.

mod bindings;
mod translation;
mod wasi;

use behalf_core::VaultPort as _;
use behalf_core::identity::User;
use behalf_core::secret::Bearer;
use behalf_core::vault::port::{Draw, StoredToken};

use crate::bindings::Component;
use crate::bindings::exports::behalf::vault::vault::{self as wit, Guest};
use crate::translation::{nonce, user, within};
use crate::wasi::vault;

impl Guest for Component {
    fn check_settings() -> Result<(), wit::Error> {
        Ok(vault().check_settings()?)
    }

    async fn identify(
        bearer: String,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Caller, wit::Error> {
        let (user, policy) = vault()
            .identify(&Bearer::new(bearer), within(limit))
            .await?;
        Ok(wit::Caller {
            user: user.into(),
            policy: policy.into(),
        })
    }

    async fn enrol(
        bearer: String,
        given: String,
        scope: Option<String>,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Enrolment, wit::Error> {
        let (bearer, nonce) = (Bearer::new(bearer), nonce(&given)?);
        let enrolment = vault().enrol(&bearer, &nonce, scope.as_deref(), within(limit));
        Ok(enrolment.await?.into())
    }

    async fn access_token(
        bearer: String,
        given: String,
        token: String,
        draw: wit::Draw,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Issued, wit::Error> {
        let draw = Draw {
            scope: draw.scope,
            claims: draw.claims,
            replace: draw.replace,
        };
        let (bearer, nonce) = (Bearer::new(bearer), nonce(&given)?);
        let issued = vault().access_token(&bearer, &nonce, &token, draw, within(limit));
        Ok(issued.await?.into())
    }

    async fn refresh(
        stored: wit::StoredToken,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::SealedToken, wit::Error> {
        let sealed = vault().refresh(&stored.try_into()?, within(limit)).await?;
        Ok(sealed.into())
    }

    async fn reseal(
        stored: wit::StoredToken,
        limit: Option<wit::Milliseconds>,
    ) -> Result<Option<wit::SealedToken>, wit::Error> {
        let sealed = vault().reseal(&stored.try_into()?, within(limit)).await?;
        Ok(sealed.map(Into::into))
    }

    async fn newest_key_version(
        tenant: String,
        limit: Option<wit::Milliseconds>,
    ) -> Result<String, wit::Error> {
        let tenant = translation::tenant(&tenant)?;
        let version = vault().newest_key_version(&tenant, within(limit)).await?;
        Ok(version.as_str().into())
    }

    async fn confirm_clock(limit: Option<wit::Milliseconds>) -> Result<(), wit::Error> {
        Ok(vault().confirm_clock(within(limit)).await?)
    }

    async fn authorize_sweep(
        bearer: String,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::SweepLimits, wit::Error> {
        let bearer = Bearer::new(bearer);
        let limits = vault().authorize_sweep(&bearer, within(limit)).await?;
        Ok(limits.into())
    }

    async fn authorize_operator(
        bearer: String,
        role: wit::Role,
        given: Option<String>,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Operator, wit::Error> {
        let given = given.as_deref().map(translation::tenant).transpose()?;
        let bearer = Bearer::new(bearer);
        let operator =
            vault().authorize_operator(&bearer, role.into(), given.as_ref(), within(limit));
        Ok(operator.await?.into())
    }
}

impl TryFrom<wit::StoredToken> for StoredToken {
    type Error = wit::Error;

    fn try_from(stored: wit::StoredToken) -> Result<Self, wit::Error> {
        let user: User = user(&stored.tenant, &stored.user_id)?;
        Ok(Self {
            user,
            nonce: nonce(&stored.nonce)?,
            token: stored.token,
        })
    }
}
