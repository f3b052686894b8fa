//! The downstream API.

use runtime_tests::emulators::{Signature, TENANT, USER};
use serde_json::{Value, json};

use crate::client::{World, text};

#[tokio::test]
async fn the_downstream_api_wants_its_own_tokens() {
    let world = World::start().await;
    let url = format!("{}/v1.0/me", world.emulators.downstream_url());
    let get = async |token: Option<&str>| {
        let request = world.client.get(&url);
        token
            .map_or(request.try_clone().unwrap(), |token| {
                request.bearer_auth(token)
            })
            .send()
            .await
            .unwrap()
    };
    let token = text(
        &world
            .token(&world.obo(&world.emulators.caller().mint()))
            .await["access_token"],
    );
    let me: Value = get(Some(&token)).await.json().await.unwrap();
    assert_eq!((&me["id"], &me["tenant"]), (&json!(USER), &json!(TENANT)));

    let caller = || {
        world
            .emulators
            .caller()
            .claim("aud", "https://graph.microsoft.com")
            .claim("scp", "User.Read")
    };
    assert_eq!(get(Some(&caller().mint())).await.status(), 200);
    for (token, status) in [
        (None, 401),
        (Some(world.emulators.caller().mint()), 401),
        (Some(caller().claim("exp", 1).mint()), 401),
        (Some(caller().signature(Signature::Broken).mint()), 401),
        (Some(caller().claim("scp", "Mail.Read").mint()), 403),
    ] {
        let response = get(token.as_deref()).await;
        assert_eq!(response.status(), status);
        assert!(
            response.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .starts_with("Bearer realm=\"\", ")
        );
    }
}
