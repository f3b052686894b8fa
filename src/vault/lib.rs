//! The vault component: translates between the WIT interface `behalf:vault/vault` and [`behalf_core::Vault`], and
//! between its ports and WASI 0.3. It decides nothing.

mod bindings;
mod translation;
mod wasi;

use behalf_core::VaultPort as _;
use behalf_core::identity::TenantId;
use behalf_core::secret::Bearer;

use crate::bindings::Component;
use crate::bindings::exports::behalf::vault::vault::{self as wit, Guest};
use crate::translation::{answer, given, within};
use crate::wasi::vault;

impl Guest for Component {
    fn check_settings() -> Result<(), wit::Error> {
        answer(vault().check_settings())
    }

    async fn identify(
        bearer: String,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Caller, wit::Error> {
        let bearer = Bearer::new(bearer);
        answer(vault().identify(&bearer, within(limit)).await)
    }

    async fn enrol(
        bearer: String,
        nonce: String,
        scope: Option<String>,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Enrolment, wit::Error> {
        let (bearer, nonce) = (Bearer::new(bearer), given("nonce", nonce)?);
        let enrolment = vault().enrol(&bearer, &nonce, scope.as_deref(), within(limit));
        answer(enrolment.await)
    }

    async fn access_token(
        bearer: String,
        nonce: String,
        token: String,
        draw: wit::Draw,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Issued, wit::Error> {
        let (bearer, nonce) = (Bearer::new(bearer), given("nonce", nonce)?);
        let draw = given("draw", draw)?;
        let issued = vault().access_token(&bearer, &nonce, &token, draw, within(limit));
        answer(issued.await)
    }

    async fn refresh(
        stored: wit::StoredToken,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::SealedToken, wit::Error> {
        let stored = given("stored", stored)?;
        answer(vault().refresh(&stored, within(limit)).await)
    }

    async fn reseal(
        stored: wit::StoredToken,
        limit: Option<wit::Milliseconds>,
    ) -> Result<Option<wit::SealedToken>, wit::Error> {
        let stored = given("stored", stored)?;
        answer(vault().reseal(&stored, within(limit)).await)
    }

    async fn newest_key_version(
        tenant: String,
        limit: Option<wit::Milliseconds>,
    ) -> Result<String, wit::Error> {
        let tenant = given("tenant", tenant)?;
        answer(vault().newest_key_version(&tenant, within(limit)).await)
    }

    async fn confirm_clock(limit: Option<wit::Milliseconds>) -> Result<(), wit::Error> {
        answer(vault().confirm_clock(within(limit)).await)
    }

    async fn authorize_sweep(
        bearer: String,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::SweepLimits, wit::Error> {
        let bearer = Bearer::new(bearer);
        answer(vault().authorize_sweep(&bearer, within(limit)).await)
    }

    async fn authorize_operator(
        bearer: String,
        role: wit::Role,
        tenant: Option<String>,
        limit: Option<wit::Milliseconds>,
    ) -> Result<wit::Operator, wit::Error> {
        let bearer = Bearer::new(bearer);
        let (role, tenant): (_, Option<TenantId>) =
            (given("role", role)?, given("tenant", tenant)?);
        let operator = vault().authorize_operator(&bearer, role, tenant.as_ref(), within(limit));
        answer(operator.await)
    }
}
