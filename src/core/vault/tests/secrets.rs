//! What is written by accident shows no secret.

use super::*;
use crate::secret::{AccessToken, ClientSecret};
use crate::vault::credential::Proof;
use crate::vault::key_ring::secret::{self, secret_request};
use crate::vault::samples::shows_a_secret;
use crate::vault::token_client::answer::{self, read_token_response};
use crate::vault::token_client::grant::token_request;

#[test]
fn debug_shows_no_secret() {
    let tenant = TenantId::parse(TENANT).unwrap();
    let world = World::new();
    let vault = Vault::new(Rc::clone(&world));
    let (user, sealed) = enrolled(&vault, &world);
    let context = vault.context(LONGEST.into()).unwrap();
    let newest = block_on(vault.newest_key(&context, &tenant)).unwrap();
    let token = AccessToken::new("at-canary".into());
    let question = secret_request(&context, &newest.secret, None, &token).unwrap();
    let mut shown = vec![format!("{newest:?} {question:?}")];
    let answer = context.send(question, secret::LONGEST_ANSWER, System::KeyVault);
    shown.push(format!("{:?}", block_on(answer).unwrap()));
    let bearer = Bearer::new("bearer-canary".into());
    let refresh_token = RefreshToken::new("rt-canary".into());
    let client_secret = ClientSecret::new("secret-canary".into());
    let scope = &context.scope;
    for grant in [
        Grant::OnBehalfOf {
            assertion: &bearer,
            scope,
        },
        Grant::Refresh {
            token: &refresh_token,
            scope,
            claims: None,
        },
    ] {
        let proof = Proof::Secret(&client_secret);
        let request = token_request(&context, &tenant, proof, &grant).unwrap();
        shown.push(format!("{grant:?} {proof:?} {request:?}"));
        let answer = context.send(request, answer::LONGEST_ANSWER, System::Entra);
        let answer = block_on(answer).unwrap();
        let granted = read_token_response(&answer, &grant, world.now.get()).unwrap();
        shown.push(format!("{answer:?} {granted:?}"));
    }
    let issued = draw(&vault, &world.bearer(), &sealed.token, Draw::default()).unwrap();
    let stored = StoredToken {
        user,
        nonce: nonce(),
        token: sealed.token,
    };
    let payload = block_on(vault.open_stored(&context, &stored)).unwrap();
    shown.push(format!("{issued:?} {stored:?} {payload:?}"));
    // The search finds what it looks for.
    assert!(shows_a_secret(refresh_token.expose()));
    assert!(shows_a_secret(&format!("{:?}", b"a canary")));
    for text in shown {
        assert!(!shows_a_secret(&text), "{text}");
    }
}

#[test]
fn debug_shows_no_setting_that_is_a_secret() {
    for credential in [
        "client-secret",
        "certificate",
        "managed-identity",
        "federated-token",
    ] {
        let world = with_credential(credential);
        world.settings.borrow_mut().extend([
            ("client_secret", "client-secret-canary".to_owned()),
            ("pseudonym_key", "pseudonym-canary".repeat(3)),
            ("sweep_key_previous", "previous-canary".repeat(3)),
            ("identity_header", "header-canary".to_owned()),
        ]);
        let vault = Vault::new(Rc::clone(&world));
        let shown = format!("{:?}", *vault.context(LONGEST.into()).unwrap());
        assert!(shown.contains("https://"), "the settings themselves");
        assert!(!shows_a_secret(&shown), "{shown}");
    }
}
