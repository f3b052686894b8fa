//! What only the whole vault shows.

use std::collections::BTreeSet;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use pollster::block_on;
use serde_json::json;

use super::*;
use crate::error::*;
use crate::identity::{Guid, User};
use crate::simulation::world::{GRANTS, Shared, World};
use crate::vault::samples::{self, CERTIFICATE, FIRST_KEY, OTHER_USER, PRIVATE_KEY, TENANT};

mod calls;
mod credentials;
mod enrolments;
mod grants;
mod keys;
mod pauses;
mod refusals;
mod secrets;

fn nonce() -> Nonce {
    Nonce::parse("1793606000nonce").unwrap()
}

fn enrolled(vault: &Vault<Shared>, world: &Shared) -> (User, SealedToken) {
    let enrolment = block_on(vault.enrol(&world.bearer(), &nonce(), None, LONGEST.into())).unwrap();
    (enrolment.user, enrolment.sealed)
}

/// Draws, where nothing that was drawn before answers.
fn draw(
    vault: &Vault<Shared>,
    bearer: &Bearer,
    token: &str,
    draw: Draw,
) -> Result<Issued, VaultError> {
    vault.access_tokens.clear();
    block_on(vault.access_token(bearer, &Subject::Me, &nonce(), token, draw, LONGEST.into()))
}

/// A caller's token like the user's, with other claims.
fn token(edit: impl FnOnce(&mut serde_json::Value)) -> Bearer {
    let mut claims = samples::claims();
    edit(&mut claims);
    let header = json!({"typ": "JWT", "alg": "RS256", "kid": "k1"});
    samples::sign(&header, &claims)
}

fn credential_refused(setting: &str, code: Option<u32>) -> VaultError {
    OperatorError::CredentialRefused {
        setting: setting.into(),
        reason: code.map(reason).unwrap_or_default(),
    }
    .into()
}

fn reason(code: u32) -> Reason {
    Reason {
        aadsts: Some(code),
        suberror: None,
    }
}

/// A world with this credential: `credential`, and what belongs to it.
fn with_credential(credential: &str) -> Shared {
    let world = World::new();
    {
        let mut settings = world.settings.borrow_mut();
        settings.remove("client_secret");
        settings.insert("credential", credential.to_owned());
        settings.insert("certificate_pem", CERTIFICATE.to_owned());
        settings.insert("private_key_pem", PRIVATE_KEY.to_owned());
        settings.insert("federated_token", "federated-canary.b.c".to_owned());
    }
    world
}
