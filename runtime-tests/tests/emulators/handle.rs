//! What tests do with the emulators: faults, the control port, start and stop.

use reqwest::{Method, header};
use runtime_tests::emulators::{Answer, Emulators, Fault, Options, TENANT, Target, USER, key_name};
use serde_json::{Value, json};

use crate::client::{OBO, World, header_of, payload};

#[tokio::test]
async fn faults_meet_the_requests_they_are_for() {
    let world = World::start().await;
    let refresh_token = world.refresh_token().await;
    let refresh = world.refresh(&refresh_token);
    let claims = r#"{"access_token":{"capolids":{"essential":true,"values":["x"]}}}"#;
    let mut blocked = Fault::entra(53_003).grant("refresh_token");
    if let Answer::Entra { claims: text, .. } = &mut blocked.answer {
        *text = Some(claims.to_owned());
    }
    world.emulators.fault(blocked);
    world.emulators.fault(
        Fault::entra(90_033)
            .grant("refresh_token")
            .times(2)
            .retry_after("7"),
    );
    world
        .emulators
        .fault(Fault::new(Target::EntraToken, Answer::BadGateway).grant("refresh_token"));
    world
        .emulators
        .fault(Fault::new(Target::EntraToken, Answer::Close).grant("refresh_token"));

    // Another grant is not met.
    world
        .token(&world.obo(&world.emulators.caller().mint()))
        .await;
    let body: Value = world
        .post_token(TENANT, &refresh)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&body["suberror"], body["claims"].as_str()),
        (&json!("message_only"), Some(claims))
    );
    for _ in 0..2 {
        let response = world.post_token(TENANT, &refresh).await;
        assert_eq!(
            (
                response.status().as_u16(),
                &response.headers()["retry-after"]
            ),
            (503, &header::HeaderValue::from_static("7"))
        );
    }
    let response = world.post_token(TENANT, &refresh).await;
    assert_eq!(response.status(), 502);
    assert!(response.text().await.unwrap().starts_with("<html>"));
    assert!(
        world.try_post_token(TENANT, &refresh).await.is_err(),
        "the connection is closed"
    );
    world.token(&refresh).await;

    let journal = world.emulators.journal();
    let statuses: Vec<_> = journal
        .iter()
        .filter(|entry| entry.fault)
        .map(|entry| (entry.status, entry.aadsts))
        .collect();
    let expected = [
        (Some(400), Some(53_003)),
        (Some(503), Some(90_033)),
        (Some(503), Some(90_033)),
        (Some(502), None),
        (None, None),
    ];
    assert_eq!(statuses, expected);
}

#[tokio::test]
async fn the_control_port_does_the_same_over_http() {
    let world = World::start().await;
    let control = world.emulators.control_url();
    let post = async |path: &str, body: Value| {
        world
            .client
            .post(format!("{control}{path}"))
            .json(&body)
            .send()
            .await
            .unwrap()
    };
    let line = world
        .client
        .get(format!("{control}/demo/authorization"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let token = line
        .trim_end()
        .strip_prefix("Authorization: Bearer ")
        .unwrap();
    assert_eq!(payload(token)["oid"], USER);
    for (who, role) in [("job", "Behalf.Act"), ("admin", "Behalf.Admin")] {
        let url = format!("{control}/demo/{who}-authorization");
        let line = world.client.get(url).send().await.unwrap();
        let line = line.text().await.unwrap();
        let token = line.trim_end().strip_prefix("Authorization: Bearer ");
        let claims = payload(token.unwrap());
        let options = world.emulators.options();
        assert_eq!(claims["roles"], json!([role]));
        assert_eq!(claims["azp"], json!(options.job_id));
        // The app's own, and no user's.
        assert_eq!(claims["oid"], json!(options.job_principal_id));
        assert_eq!(claims["sub"], claims["oid"]);
        assert!(claims.get("scp").is_none());
    }

    let minted: Value = post("/tokens", json!({ "user": "someone", "roles": ["Behalf.Sweep"], "claims": { "exp": 5, "uti": null }, "signature": "hs256" })).await.json().await.unwrap();
    let token = minted["token"].as_str().unwrap();
    assert_eq!(header_of(token)["alg"], "HS256");
    let claims = payload(token);
    assert_eq!(
        (&claims["sub"], &claims["roles"], &claims["exp"]),
        (&json!("someone"), &json!(["Behalf.Sweep"]), &json!(5))
    );
    assert!(claims.get("scp").is_none() && claims.get("uti").is_none());

    let rotated: Value = post(&format!("/tenants/{TENANT}/rotate-key"), json!({}))
        .await
        .json()
        .await
        .unwrap();
    let newest = world
        .vault()
        .await
        .ok(Method::GET, &key_name(TENANT), None)
        .await;
    assert!(
        newest["id"]
            .as_str()
            .unwrap()
            .ends_with(rotated["version"].as_str().unwrap())
    );

    let fault =
        json!({ "target": "entra-token", "grant": OBO, "answer": { "entra": { "code": 50_196 } } });
    assert_eq!(post("/faults", fault).await.status(), 204);
    assert_eq!(
        world
            .error(TENANT, &world.obo(&world.emulators.caller().mint()))
            .await
            .2,
        50_196
    );
    assert_eq!(
        post(&format!("/users/{TENANT}/{USER}/revoke"), json!({}))
            .await
            .status(),
        204
    );

    let journal = world.get(&format!("{control}/journal")).await;
    assert_eq!(
        journal.as_array().unwrap().last().unwrap()["aadsts"],
        50_196
    );
    world
        .client
        .delete(format!("{control}/journal"))
        .send()
        .await
        .unwrap();
    assert_eq!(world.get(&format!("{control}/journal")).await, json!([]));
}

#[tokio::test]
async fn a_stop_frees_the_ports() {
    let world = World::start().await;
    let address = world
        .emulators
        .authority()
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let taken = Emulators::start(Options {
        entra_port: port,
        ..Options::default()
    })
    .await;
    assert!(
        format!("{:#}", taken.err().unwrap())
            .contains(&format!("Entra ID cannot listen on 127.0.0.1:{port}"))
    );
    world.emulators.stop().await;
    tokio::net::TcpListener::bind(address).await.unwrap();
}
