//! The vault component: translates between the WIT interfaces `behalf:vault/vault`, `call` and `database` and
//! [`behalf_core::Vault`], and between its ports and WASI 0.3. It decides nothing.

mod bindings;
mod call;
mod relay;
mod translation;
mod wasi;

use behalf_core::VaultPort as _;
use behalf_core::identity::{TenantId, User};
use behalf_core::secret::Bearer;
use behalf_core::vault::wit::WitValue as _;

use crate::bindings::Component;
use crate::bindings::exports::behalf::vault::database;
use crate::bindings::exports::behalf::vault::vault::{self as wit, Guest};
use crate::translation::{answer, asked, given};
use crate::wasi::vault;

impl Guest for Component {
    fn check_settings() -> Result<wit::Policy, wit::Error> {
        answer(vault().check_settings())
    }

    async fn identify(
        bearer: String,
        subject: wit::Subject,
        purpose: wit::Purpose,
        terms: Option<wit::Terms>,
    ) -> Result<wit::Caller, wit::Error> {
        let bearer = Bearer::new(bearer);
        let (subject, purpose) = (given("subject", subject)?, given("purpose", purpose)?);
        let terms = asked(terms)?;
        answer(vault().identify(&bearer, &subject, &purpose, terms).await)
    }

    async fn enrol(
        bearer: String,
        nonce: String,
        scope: Option<String>,
        terms: Option<wit::Terms>,
    ) -> Result<wit::Enrolment, wit::Error> {
        let (bearer, nonce) = (Bearer::new(bearer), given("nonce", nonce)?);
        let enrolment = vault().enrol(&bearer, &nonce, scope.as_deref(), asked(terms)?);
        answer(enrolment.await)
    }

    async fn access_token(
        bearer: String,
        subject: wit::Subject,
        nonce: String,
        token: String,
        draw: wit::Draw,
        terms: Option<wit::Terms>,
    ) -> Result<wit::Issued, wit::Error> {
        let (bearer, nonce) = (Bearer::new(bearer), given("nonce", nonce)?);
        let (subject, draw) = (given("subject", subject)?, given("draw", draw)?);
        let terms = asked(terms)?;
        let issued = vault().access_token(&bearer, &subject, &nonce, &token, draw, terms);
        answer(issued.await)
    }

    fn forget(user: wit::User) {
        // What is no user has nothing here.
        if let Ok(user) = User::from_wit(user) {
            vault().forget(&user);
        }
    }

    async fn refresh(
        stored: wit::StoredToken,
        terms: Option<wit::Terms>,
    ) -> Result<wit::SealedToken, wit::Error> {
        let stored = given("stored", stored)?;
        answer(vault().refresh(&stored, asked(terms)?).await)
    }

    async fn reseal(
        stored: wit::StoredToken,
        terms: Option<wit::Terms>,
    ) -> Result<Option<wit::SealedToken>, wit::Error> {
        let stored = given("stored", stored)?;
        answer(vault().reseal(&stored, asked(terms)?).await)
    }

    async fn newest_key_version(
        tenant: String,
        terms: Option<wit::Terms>,
    ) -> Result<wit::NewestKey, wit::Error> {
        let tenant = given("tenant", tenant)?;
        answer(vault().newest_key_version(&tenant, asked(terms)?).await)
    }

    async fn confirm_clock(terms: Option<wit::Terms>) -> Result<(), wit::Error> {
        answer(vault().confirm_clock(asked(terms)?).await)
    }

    async fn authorize_sweep(
        bearer: String,
        terms: Option<wit::Terms>,
    ) -> Result<wit::SweepLimits, wit::Error> {
        let bearer = Bearer::new(bearer);
        answer(vault().authorize_sweep(&bearer, asked(terms)?).await)
    }

    async fn authorize_operator(
        bearer: String,
        role: wit::Role,
        tenant: Option<String>,
        terms: Option<wit::Terms>,
    ) -> Result<wit::Operator, wit::Error> {
        let bearer = Bearer::new(bearer);
        let (role, tenant): (_, Option<TenantId>) =
            (given("role", role)?, given("tenant", tenant)?);
        let operator = vault().authorize_operator(&bearer, role, tenant.as_ref(), asked(terms)?);
        answer(operator.await)
    }
}

impl database::Guest for Component {
    fn check_settings() -> Result<(), wit::Error> {
        answer(vault().check_database_settings())
    }

    async fn locate(terms: Option<wit::Terms>) -> Result<database::Connection, wit::Error> {
        answer(vault().locate_database(asked(terms)?).await)
    }
}
