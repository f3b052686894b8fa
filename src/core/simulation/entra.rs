//! Entra ID's token endpoint: sign-ins, and the refresh tokens that come of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use serde_json::{Value, json};

use crate::port::SecretBody;
use crate::simulation::chance::Chance;
use crate::simulation::users::{OBJECTS, TENANT_OF, TENANTS};

/// All refresh tokens that came of one sign-in. They are revoked together (PLATFORMS.md, "Refresh tokens").
pub(super) struct Lineage {
    pub(super) user: usize,
    pub(super) revoked: bool,
    /// The number of the newest token, counted from 1.
    newest: u64,
}

/// What a user's refresh token is got by, with the index of its lineage.
#[derive(Clone, Copy)]
pub(super) enum Grant {
    SignIn(usize),
    Refresh(usize),
}

/// An answer of the token endpoint.
pub(super) struct Answer {
    /// It is none for what this app asks for itself, and while Entra ID is down.
    pub(super) grant: Option<Grant>,
    pub(super) status: u16,
    pub(super) body: Value,
}

/// Entra ID, with all that it remembers of the users.
pub(super) struct Entra {
    /// Whether a lineage is revoked when a refresh token comes that has a successor.
    single_use: bool,
    pub(super) is_down: Cell<bool>,
    pub(super) lineages: RefCell<Vec<Lineage>>,
}

impl Entra {
    pub(super) fn new(single_use: bool) -> Self {
        Self {
            single_use,
            is_down: Cell::default(),
            lineages: RefCell::default(),
        }
    }

    /// The answer to a request at the token endpoint of a tenant, with so many faults in a thousand answers.
    pub(super) fn token(
        &self,
        tenant: &str,
        request: &Request<SecretBody>,
        chance: &Chance,
        faults: u64,
    ) -> Answer {
        let answer = |grant, (status, body)| Answer {
            grant,
            status,
            body,
        };
        let form: BTreeMap<String, String> = url::form_urlencoded::parse(request.body())
            .into_owned()
            .collect();
        if form["grant_type"] == "client_credentials" {
            let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "key-vault-at-canary"});
            return answer(None, (200, body));
        }
        let dead = (
            400,
            json!({"error": "invalid_grant", "error_codes": [50_173], "suberror": "bad_token"}),
        );
        if self.is_down.get() {
            return answer(None, (503, json!({})));
        }
        let mut lineages = self.lineages.borrow_mut();
        let grant = if let Some(token) = form.get("refresh_token") {
            let mut parts = token.strip_prefix("rt-canary-").unwrap().split('-');
            let lineage: usize = parts.next().unwrap().parse().unwrap();
            let serial: u64 = parts.next().unwrap().parse().unwrap();
            if self.single_use && serial < lineages[lineage].newest {
                lineages[lineage].revoked = true;
            }
            Grant::Refresh(lineage)
        } else {
            let payload = URL_SAFE_NO_PAD
                .decode(form["assertion"].split('.').nth(1).unwrap())
                .unwrap();
            let claims: Value = serde_json::from_slice(&payload).unwrap();
            let user = OBJECTS
                .iter()
                .position(|object| claims["oid"] == *object)
                .unwrap();
            lineages.push(Lineage {
                user,
                revoked: false,
                newest: 0,
            });
            Grant::SignIn(lineages.len() - 1)
        };
        let (Grant::SignIn(lineage) | Grant::Refresh(lineage)) = grant;
        assert_eq!(
            tenant, TENANTS[TENANT_OF[lineages[lineage].user]],
            "a token of one tenant redeemed at another"
        );
        let fault = chance.happens(faults).then(|| chance.below(4));
        let refused = match fault {
            Some(0) => Some((
                429,
                json!({"error": "temporarily_unavailable", "error_codes": [90_055]}),
            )),
            Some(1) => Some((
                400,
                json!({"error": "invalid_grant", "error_codes": [50_196]}),
            )),
            // The verdict is wrong: the token is good.
            Some(2) if matches!(grant, Grant::Refresh(_)) => Some(dead.clone()),
            Some(3) => Some((
                400,
                json!({"error": "interaction_required", "error_codes": [50_076], "claims": "{}"}),
            )),
            _ if lineages[lineage].revoked => Some(dead),
            _ => None,
        };
        if let Some(refused) = refused {
            return answer(Some(grant), refused);
        }
        lineages[lineage].newest += 1;
        let serial = lineages[lineage].newest;
        let body = json!({
            "token_type": "Bearer", "expires_in": 3599, "scope": form["scope"],
            "access_token": format!("at-canary-{lineage}"), "refresh_token": format!("rt-canary-{lineage}-{serial}"),
        });
        answer(Some(grant), (200, body))
    }
}
