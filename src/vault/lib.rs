//! The vault component: translates between the WIT interface `behalf:vault/vault` and [`behalf_core::Vault`], and
//! between its ports and WASI 0.3. It decides nothing.

mod bindings;
mod translation;
mod wasi;

use behalf_core::VaultPort as _;
use behalf_core::port::{Draw, StoredToken, User};
use behalf_core::secret::Bearer;

use crate::bindings::Component;
use crate::bindings::exports::behalf::vault::vault::{self as wit, Guest};
use crate::translation::{nonce, user};
use crate::wasi::vault;

impl Guest for Component {
    fn check_settings() -> Result<(), wit::Error> {
        Ok(vault().check_settings()?)
    }

    async fn identify(bearer: String) -> Result<wit::Caller, wit::Error> {
        let (user, policy) = vault().identify(&Bearer::new(bearer)).await?;
        Ok(wit::Caller {
            user: user.into(),
            policy: policy.into(),
        })
    }

    async fn enroll(
        bearer: String,
        given: String,
        scope: Option<String>,
    ) -> Result<wit::Enrolment, wit::Error> {
        Ok(vault()
            .enroll(&Bearer::new(bearer), &nonce(&given)?, scope.as_deref())
            .await?
            .into())
    }

    async fn access_token(
        bearer: String,
        given: String,
        token: String,
        draw: wit::Draw,
    ) -> Result<wit::Issued, wit::Error> {
        let draw = Draw {
            scope: draw.scope,
            claims: draw.claims,
            replace: draw.replace,
        };
        Ok(vault()
            .access_token(&Bearer::new(bearer), &nonce(&given)?, &token, draw)
            .await?
            .into())
    }

    async fn refresh(stored: wit::StoredToken) -> Result<wit::SealedToken, wit::Error> {
        Ok(vault().refresh(&stored.try_into()?).await?.into())
    }

    async fn reseal(stored: wit::StoredToken) -> Result<Option<wit::SealedToken>, wit::Error> {
        Ok(vault().reseal(&stored.try_into()?).await?.map(Into::into))
    }

    async fn newest_key_version(tenant: String) -> Result<String, wit::Error> {
        Ok(vault()
            .newest_key_version(&translation::tenant(&tenant)?)
            .await?
            .as_str()
            .into())
    }

    async fn authorize_sweep(bearer: String) -> Result<wit::SweepLimits, wit::Error> {
        Ok(vault().authorize_sweep(&Bearer::new(bearer)).await?.into())
    }

    async fn authorize_operator(
        bearer: String,
        role: wit::Role,
        given: Option<String>,
    ) -> Result<wit::Operator, wit::Error> {
        let given = given.as_deref().map(translation::tenant).transpose()?;
        Ok(vault()
            .authorize_operator(&Bearer::new(bearer), role.into(), given.as_ref())
            .await?
            .into())
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
