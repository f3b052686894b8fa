//! One request of a user, or of whoever sweeps, and what became of it.

use std::rc::Rc;

use serde_json::json;

use crate::error::{StoredError, VaultError};
use crate::identity::{Guid, UserName};
use crate::keeper::{KeeperError, Request};
use crate::ledger::{Ledger, LedgerError};
use crate::secret::Bearer;
use crate::simulation::api::me;
use crate::simulation::called::Parts;
use crate::simulation::history::{End, Operation, View};
use crate::simulation::outside::{DAY, Outside};
use crate::simulation::port::App;
use crate::simulation::users::{JOB, OBJECTS, OPERATOR, TENANT_OF, TENANTS};
use crate::simulation::world::SWEEP_KEY;
use crate::vault::port::Subject;
use crate::vault::samples::{NOW, TENANT, claims, sign};

/// Makes a request, and notes how it ended.
pub(super) async fn ask<L: Ledger>(
    outside: Rc<Outside>,
    app: Rc<App<L>>,
    act: usize,
    operation: Operation,
    user: usize,
) {
    if app.env.is_days_off() && operation != Operation::Sweep {
        let mut acts = outside.acts.borrow_mut();
        (acts[act].end, acts[act].ended) = (End::Failed, outside.step.get());
        return;
    }
    // Of what an app may do for a user who is away, a third is done so.
    let caller = match (operation, outside.chance.below(3)) {
        (Operation::Draw | Operation::Call, 0) => JOB,
        (Operation::RemoveToken | Operation::Remove, 0) | (Operation::RemoveTenant, _) => OPERATOR,
        _ => user,
    };
    let bearer = match operation {
        Operation::Sweep => Bearer::new(SWEEP_KEY.to_owned()),
        _ => bearer(caller),
    };
    let request = Request {
        id: "simulated",
        bearer: &bearer,
        subject: if caller == user {
            Subject::Me
        } else {
            Subject::User(name(user))
        },
    };
    let mut replacement = None;
    let outcome = match operation {
        Operation::Enrol => app.enrol(&request, None).await.map(|_| End::Acknowledged),
        Operation::Draw => app.draw(&request, None, None).await.map(|issued| {
            let lineage = issued
                .access_token
                .expose()
                .strip_prefix("at-canary-")
                .unwrap();
            End::Saw(View::Has(lineage.parse().unwrap()))
        }),
        Operation::Call => {
            let answer = app.call(&request, me(), http::Request::new(Parts::none()));
            answer.await.map(|called| {
                replacement = called.replacement;
                End::Saw(View::Has(called.response.into_body()))
            })
        }
        Operation::RemoveToken => {
            let removed = app.remove_refresh_token(&request).await;
            removed.map(|()| End::Acknowledged)
        }
        Operation::Remove => app.remove(&request).await.map(|()| End::Acknowledged),
        Operation::RemoveTenant => {
            let removal = app.remove_tenant(&request, &name(user).tenant).await;
            removal.map(|removal| match removal.remaining {
                0 => End::Acknowledged,
                _ => End::Failed,
            })
        }
        Operation::Sweep => app.sweep(&request).await.map(|_| End::Acknowledged),
    };
    let end = match outcome {
        Ok(end) => end,
        Err(KeeperError::Ledger(LedgerError::NotEnrolled)) => End::Saw(View::Absent),
        Err(KeeperError::Ledger(LedgerError::NoRefreshToken)) => End::Saw(View::NoToken),
        Err(error) => {
            if matches!(
                error,
                KeeperError::Ledger(
                    LedgerError::RecordLost
                        | LedgerError::RecordDamaged
                        | LedgerError::RecordTooNew
                ) | KeeperError::ChangedSettings(_)
                    | KeeperError::Vault(VaultError::Stored(
                        StoredError::Damaged | StoredError::NotBound
                    ))
            ) {
                outside.violation(format!("{operation:?} of user {user}: {error}"));
            }
            if error.to_string().contains("canary") {
                outside.violation(format!("a secret in {error}"));
            }
            End::Failed
        }
    };
    {
        let act = &mut outside.acts.borrow_mut()[act];
        (act.end, act.ended) = (end, outside.step.get());
    }
    // While the answer is under way; it may be lost.
    if let Some(replacement) = replacement
        && outside.chance.below(4) > 0
    {
        app.store(replacement).await;
    }
}

/// A user, as an app names one.
fn name(user: usize) -> UserName {
    UserName {
        tenant: Guid::parse(TENANTS[TENANT_OF[user]]).unwrap(),
        object: Guid::parse(OBJECTS[user]).unwrap(),
    }
}

/// A caller's token. Signing costs more than the rest of a run, so each token is signed once: each user's, and behind them
/// an operator's and a job's.
fn bearer(caller: usize) -> Bearer {
    thread_local! {
        static BEARERS: [String; JOB + 1] = std::array::from_fn(|caller| {
            let mut claims = claims();
            let tenant = TENANT_OF.get(caller).map_or(TENANT, |tenant| TENANTS[*tenant]);
            claims["tid"] = json!(tenant);
            claims["iss"] = json!(format!("https://login.microsoftonline.com/{tenant}/v2.0"));
            claims["nbf"] = json!(NOW - DAY);
            claims["exp"] = json!(NOW + 4000 * DAY);
            if let Some(object) = OBJECTS.get(caller) {
                claims["oid"] = json!(object);
            } else {
                claims["scp"].take();
                claims["sub"] = claims["oid"].clone();
                claims["roles"] = json!([if caller == JOB { "Behalf.Act" } else { "Behalf.Admin" }]);
            }
            sign(&json!({"typ": "JWT", "alg": "RS256", "kid": "k1"}), &claims).expose().to_owned()
        });
    }
    BEARERS.with(|bearers| Bearer::new(bearers[caller].clone()))
}
