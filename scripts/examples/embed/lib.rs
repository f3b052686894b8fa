//! behalf's vault without behalf's HTTP component: a component that imports `behalf:vault` and keeps the records itself.
//! `calls.rs` has what it takes to call APIs, too.
//!
//! What it keeps, it may keep anywhere; here it is a map in its memory. Composed with the vault it needs nothing but
//! WASI from its host (`src/host/tests/embed.rs` shows one).

mod bindings;
mod calls;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bindings::Component;
use bindings::behalf::vault::vault::{
    self, Draw, KeptOutcome, Purpose, SealedToken, StoredToken, Subject, UserName,
};
use bindings::exports::example::embed::tokens::Guest;

thread_local! {
    /// By storage id. Never held borrowed across an await: other calls run meanwhile.
    static RECORDS: RefCell<BTreeMap<String, Record>> = RefCell::default();
}

/// What is kept of an enrolment: all four are needed to give the token back to the vault.
#[derive(Clone)]
struct Record {
    tenant: String,
    nonce: String,
    token: String,
    key_version: String,
}

impl Guest for Component {
    async fn enrol(bearer: String) -> Result<String, String> {
        let nonce = new_nonce()?;
        let enrolment = vault::enrol(bearer, nonce.clone(), None, None)
            .await
            .map_err(text)?;
        let record = Record {
            tenant: enrolment.user.tenant,
            nonce,
            token: enrolment.sealed.token,
            key_version: enrolment.sealed.key_version,
        };
        RECORDS.with_borrow_mut(|records| records.insert(enrolment.user.id.clone(), record));
        Ok(enrolment.user.id)
    }

    async fn draw(bearer: String) -> Result<String, String> {
        draw(bearer, Subject::Me).await
    }

    async fn draw_for(bearer: String, tenant: String, object: String) -> Result<String, String> {
        draw(bearer, Subject::User(UserName { tenant, object })).await
    }

    async fn reseal() -> Result<u32, String> {
        let records = RECORDS.with_borrow(Clone::clone);
        let tenants: BTreeSet<_> = records.values().map(|it| it.tenant.clone()).collect();
        let mut moved: u32 = 0;
        for tenant in tenants {
            let newest = vault::newest_key_version(tenant.clone(), None)
                .await
                .map_err(text)?;
            let outdated = records
                .iter()
                .filter(|(_, it)| it.tenant == tenant && it.key_version != newest.version);
            for (id, record) in outdated {
                let stored = StoredToken {
                    tenant: tenant.clone(),
                    user_id: id.clone(),
                    nonce: record.nonce.clone(),
                    token: record.token.clone(),
                };
                let Some(sealed) = vault::reseal(stored, None).await.map_err(text)? else {
                    continue;
                };
                RECORDS.with_borrow_mut(|records| {
                    // Only in the place of what was re-sealed: a draw may have put a newer one there.
                    if let Some(current) = records
                        .get_mut(id)
                        .filter(|current| current.token == record.token)
                    {
                        current.token = sealed.token;
                        current.key_version = sealed.key_version;
                        moved = moved.saturating_add(1);
                    }
                });
            }
        }
        Ok(moved)
    }
}

async fn draw(bearer: String, subject: Subject) -> Result<String, String> {
    // Whoever may not draw for this user is told so before anything is looked up, so that nobody learns who is enrolled.
    let draw = Draw {
        scope: None,
        claims: None,
        // A real one asks for a replacement only if the stored token is over a day old: each is a write.
        replace: true,
    };
    let purpose = Purpose::Draw(draw.clone());
    let caller = vault::identify(bearer.clone(), subject.clone(), purpose, None)
        .await
        .map_err(text)?;
    let record = find(&caller.user.id)?;
    match caller.kept {
        // Drawn a moment ago, under the enrolment that is the current one now.
        Some(kept) if kept.nonce == record.nonce => {
            return match kept.outcome {
                KeptOutcome::Issued(issued) => Ok(issued.access_token),
                KeptOutcome::Refused(refusal) => Err(text(refusal.error)),
            };
        }
        Some(_) => vault::forget(&caller.user),
        None => {}
    }
    let nonce = record.nonce.clone();
    let issued = vault::access_token(bearer, subject, nonce, record.token, draw, None)
        .await
        .map_err(text)?;
    // Removed or enrolled anew meanwhile: the access token does not leave.
    is_current(&caller.user.id, &record.nonce)?;
    replace(&caller.user.id, issued.replacement);
    Ok(issued.access_token)
}

fn find(id: &str) -> Result<Record, String> {
    let record = RECORDS.with_borrow(|records| records.get(id).cloned());
    record.ok_or_else(|| "not enrolled".into())
}

/// The last look, before anything that was drawn under an enrolment is used.
fn is_current(id: &str, nonce: &str) -> Result<(), String> {
    let record = find(id)?;
    let is_current = record.nonce == nonce;
    is_current
        .then_some(())
        .ok_or_else(|| "not enrolled".into())
}

/// Puts a refresh token's successor in its place, if one came along.
fn replace(id: &str, successor: Option<SealedToken>) {
    RECORDS.with_borrow_mut(|records| {
        if let (Some(record), Some(sealed)) = (records.get_mut(id), successor) {
            record.token = sealed.token;
            record.key_version = sealed.key_version;
        }
    });
}

/// 128 random bits: never used before.
fn new_nonce() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| "the host has no randomness")?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// No error of the vault carries a secret, so it may be shown whole.
#[allow(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn text(error: vault::Error) -> String {
    format!("{error:?}")
}
