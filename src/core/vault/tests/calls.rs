//! Calls of APIs, by the vault alone: whoever imports it never has the access token, and chooses nothing but headers and body.

use super::*;
use crate::error::call::{CallDefect, NoAnswer};
use crate::identity::UserName;
use crate::port::RelayError;
use crate::simulation::called::{Answer, Called, Part, Parts};
use crate::vault::call::Call;
use crate::vault::call::port::{CallPort as _, Held, Identified, Outgoing, Prepared, Sent, Target};
use crate::vault::samples::USER;
use http::{Request, Response};

const APIS: &str = r#"{"graph": {"url": "https://graph.microsoft.com", "scope": "https://graph.microsoft.com/User.Read",
    "allow": ["GET /v1.0/me/**", "POST /v1.0/me/**"], "request_headers": ["X-Added"], "response_headers": ["x-given"], "audit_paths": true},
  "own": {"url": "https://api.example", "scope": "api://own/.default", "allow": ["GET /**"]}}"#;
/// The app of the tests may call, and not draw.
const CALLS: &str = r#"[{"client": "33333333-3333-3333-3333-333333333333", "callers": "delegated", "apis": ["graph"]},
  {"client": "33333333-3333-3333-3333-333333333333", "callers": "app", "apis": ["*"]}]"#;

struct Desk {
    world: Shared,
    vault: Vault<Shared>,
    token: String,
}

impl Desk {
    fn new() -> Self {
        let world = World::new();
        world.settings.borrow_mut().extend([
            ("apis", APIS.to_owned()),
            ("api_origin_1", "https://graph.microsoft.com".to_owned()),
            ("api_origin_2", "https://api.example".to_owned()),
            ("grants", CALLS.to_owned()),
        ]);
        let vault = Vault::new(Rc::clone(&world));
        let (_, sealed) = enrolled(&vault, &world);
        world.take_calls();
        Self {
            world,
            vault,
            token: sealed.token,
        }
    }

    fn identify(&self, target: &Target) -> Result<Identified<Call>, VaultError> {
        let bearer = self.world.bearer();
        block_on(
            self.vault
                .identify_call(&bearer, &Subject::Me, target, LONGEST.into()),
        )
    }

    fn prepare(&self, target: &Target) -> Result<Prepared<Call>, VaultError> {
        let bearer = self.world.bearer();
        let nonce = nonce();
        let enrolment = (&nonce, self.token.as_str());
        let terms = LONGEST.into();
        block_on(
            self.vault
                .prepare(&bearer, &Subject::Me, enrolment, target, false, terms),
        )
    }

    fn send(
        &self,
        call: Call,
        outgoing: Outgoing<Parts, Held>,
    ) -> Result<Sent<Vec<u8>, Held>, VaultError> {
        block_on(self.vault.send(call, outgoing, LONGEST.into()))
    }

    /// Prepares a call, and makes it.
    fn call(
        &self,
        target: &Target,
        request: Request<Parts>,
    ) -> Result<Response<Vec<u8>>, VaultError> {
        let call = self.prepare(target)?.call;
        match self.send(call, Outgoing::Fresh(Box::new(request)))? {
            Sent::Answered(response) => Ok(response),
            Sent::Challenged { claims, .. } => panic!("challenged: {claims}"),
        }
    }

    fn called(&self) -> Vec<Called> {
        self.world.api.calls.take()
    }

    fn answers(&self, answer: Answer) {
        self.world.api.answers.borrow_mut().push_back(answer);
    }
}

fn target(method: &str, path: &str) -> Target {
    Target {
        api: "graph".into(),
        method: method.into(),
        path_with_query: path.into(),
        claims: None,
    }
}

fn me() -> Target {
    target("GET", "/v1.0/me")
}

fn request(headers: &[(&str, &str)], body: Parts) -> Request<Parts> {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

fn empty() -> Request<Parts> {
    request(&[], Parts::none())
}

#[test]
fn a_call_reaches_the_api_with_an_access_token_that_nobody_else_has() {
    let desk = Desk::new();
    let identified = desk
        .identify(&target("GET", "/v1.0/me/m%65ssages?$top=5"))
        .unwrap();
    assert_eq!(identified.caller.rule.as_deref(), Some("grants[0]"));
    assert_eq!(identified.allowed.pattern, "GET /v1.0/me/**");
    assert_eq!(
        identified.allowed.path.as_deref(),
        Some("/v1.0/me/messages")
    );
    assert!(identified.prepared.is_none(), "nothing was drawn yet");
    let headers = [
        ("accept", "text/plain"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        ("x-added", "7"),
        ("x-unknown", "7"),
        ("authorization", "Bearer callers-own"),
        ("cookie", "a=b"),
        ("forwarded", "for=192.0.2.1"),
        ("x-forwarded-host", "evil.example"),
        ("x-http-method-override", "DELETE"),
        ("x-original-url", "/v1.0/users"),
        ("host", "evil.example"),
    ];
    let given = vec![
        ("content-type", "text/plain".to_owned()),
        ("x-given", "7".to_owned()),
        ("x-unknown", "7".to_owned()),
        ("set-cookie", "a=b".to_owned()),
        ("access-control-allow-origin", "*".to_owned()),
        ("alt-svc", "h3=\":443\"".to_owned()),
        ("clear-site-data", "\"*\"".to_owned()),
        ("location", "https://elsewhere.example/".to_owned()),
    ];
    // A redirect is an answer.
    desk.answers(Answer::Status(302, given));
    let response = desk.call(
        &target("GET", "/v1.0/me/m%65ssages?$top=5"),
        request(&headers, Parts::none()),
    );
    let response = response.unwrap();
    let [called] = &desk.called()[..] else {
        panic!("not followed, and not repeated")
    };
    assert_eq!(called.method, "GET");
    assert_eq!(
        called.uri,
        "https://graph.microsoft.com/v1.0/me/messages?$top=5"
    );
    assert_eq!(called.body, None);
    let access_token = called.header("authorization").unwrap();
    assert!(
        access_token.starts_with("Bearer at-canary-"),
        "{access_token}"
    );
    let mut names: Vec<_> = called
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "authorization", "traceparent", "x-added"]);
    assert_eq!(response.status(), 302);
    let mut names: Vec<_> = response
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["content-type", "location", "x-given"]);
    assert_eq!(response.body(), b"answer");
    // To call is not to draw.
    let drawn = draw(
        &desk.vault,
        &desk.world.bearer(),
        &desk.token,
        Draw::default(),
    );
    assert!(
        matches!(drawn, Err(VaultError::Caller(CallerError::NotGranted(_)))),
        "{drawn:?}"
    );
}

#[test]
fn what_was_drawn_before_makes_the_next_call_and_says_under_which_enrolment() {
    let desk = Desk::new();
    desk.call(&me(), empty()).unwrap();
    desk.world.take_calls();
    let prepared = desk.identify(&me()).unwrap().prepared.unwrap();
    assert_eq!(prepared.nonce, nonce());
    desk.send(prepared.call, Outgoing::Fresh(Box::new(empty())))
        .unwrap();
    let again = desk.prepare(&me()).unwrap();
    drop(again);
    assert_eq!(
        desk.world.take_calls(),
        [""; 0],
        "Entra ID was not asked again"
    );
    let tokens: Vec<_> = desk
        .called()
        .iter()
        .map(|it| it.header("authorization").unwrap().to_owned())
        .collect();
    assert_eq!(
        tokens.len(),
        2,
        "what is prepared and not sent calls nobody"
    );
    assert_eq!(tokens[0], tokens[1]);
    // For another API another one is drawn.
    assert!(
        desk.identify(&Target {
            api: "own".into(),
            ..me()
        })
        .is_err(),
        "it is not granted"
    );
    // A refusal is remembered, too.
    let refusal = json!({"error": "invalid_grant", "error_codes": [65001]});
    desk.vault.access_tokens.clear();
    desk.world
        .entra_answers
        .borrow_mut()
        .push_back((400, refusal));
    let error = desk.prepare(&me()).unwrap_err();
    assert!(matches!(error, VaultError::User(_)), "{error:?}");
    let kept = desk.identify(&me()).unwrap().caller.kept.unwrap();
    assert_eq!(kept.nonce, nonce());
    assert!(matches!(kept.outcome, KeptOutcome::Refused(refused) if refused.error == error));
    assert_eq!(desk.prepare(&me()).unwrap_err(), error);
}

#[test]
fn whoever_may_not_call_calls_nobody() {
    let desk = Desk::new();
    let not_granted = |target: &Target| match desk.identify(target) {
        Err(VaultError::Caller(CallerError::NotGranted(refused))) => refused.missing,
        other => panic!("{other:?}"),
    };
    let missing = not_granted(&Target {
        api: "own".into(),
        ..me()
    });
    assert!(missing.contains(r#""apis":["own"]"#), "{missing}");
    for (target, error) in [
        (
            Target {
                api: "grap".into(),
                ..me()
            },
            CallDefect::Api,
        ),
        (
            Target {
                api: "Graph".into(),
                ..me()
            },
            CallDefect::Api,
        ),
        (target("DELETE", "/v1.0/me"), CallDefect::NotAllowed),
        (target("get", "/v1.0/me"), CallDefect::NotAllowed),
        (target("GET", "/v1.0/users"), CallDefect::NotAllowed),
        (target("GET", "/v1.0/me?a b"), CallDefect::Query),
        (target("TRACE", "/v1.0/me"), CallDefect::Method),
        (target("G T", "/v1.0/me"), CallDefect::Method),
        (target("GET", "/v1.0/me/../users"), CallDefect::DotSegment),
        (
            target("GET", "https://evil.example/v1.0/me"),
            CallDefect::EmptySegment,
        ),
    ] {
        let refused = |outcome: Option<VaultError>| match outcome {
            Some(VaultError::Caller(CallerError::CallNotAllowed(refusal))) => refusal,
            other => panic!("{other:?}"),
        };
        for outcome in [desk.identify(&target).err(), desk.prepare(&target).err()] {
            let refusal = refused(outcome);
            assert_eq!(refusal.defect, error, "{target:?}");
            assert!(refusal.client.is_some() && refusal.user.is_some());
        }
    }
    // A job may, for a user who is away.
    let job = token(|claims| {
        claims.as_object_mut().unwrap().remove("scp");
        claims["sub"] = claims["oid"].clone();
        claims["roles"] = json!(["Behalf.Act"]);
    });
    let absent = Subject::User(UserName {
        tenant: Guid::parse(TENANT).unwrap(),
        object: Guid::parse(USER).unwrap(),
    });
    let own = Target {
        api: "own".into(),
        ..me()
    };
    let identified = block_on(
        desk.vault
            .identify_call(&job, &absent, &own, LONGEST.into()),
    );
    assert_eq!(
        identified.unwrap().caller.rule.as_deref(),
        Some("grants[1]")
    );
    assert_eq!(desk.world.take_calls(), [""; 0]);
    assert!(desk.called().is_empty());
    // A connection is not changed to another protocol.
    for header in [
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("connection", "keep-alive, Upgrade"),
        ("http2-settings", "AAMAAABk"),
    ] {
        let error = desk
            .call(&me(), request(&[header], Parts::none()))
            .unwrap_err();
        assert_eq!(error, CallDefect::Upgrade.into());
    }
    assert!(desk.called().is_empty());
}

fn challenge() -> (&'static str, String) {
    let claims = STANDARD.encode(r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#);
    let challenge = format!(
        r#"Basic realm="a, b", Bearer realm="", authorization_uri="https://login.microsoftonline.com/common", error="insufficient_claims", claims="{claims}""#
    );
    ("www-authenticate", challenge)
}

#[test]
fn a_challenge_is_answered_once_with_what_was_sent_if_that_is_small() {
    let desk = Desk::new();
    let small = vec![b'x'; 64 * 1024];
    for body in [Some(small.clone()), None] {
        desk.answers(Answer::Status(401, vec![challenge()]));
        let parts = body
            .as_ref()
            .map_or_else(Parts::none, |body| Parts::of(body));
        let call = desk.prepare(&target("POST", "/v1.0/me")).unwrap().call;
        let sent = desk
            .send(
                call,
                Outgoing::Fresh(Box::new(request(&[("prefer", "a")], parts))),
            )
            .unwrap();
        let Sent::Challenged { claims, held } = sent else {
            panic!("it has claims")
        };
        let again = Target {
            claims: Some(claims),
            ..target("POST", "/v1.0/me")
        };
        let call = desk.prepare(&again).unwrap().call;
        // The API goes on: the caller has to know.
        desk.answers(Answer::Status(401, vec![challenge()]));
        let sent = desk.send(call, Outgoing::Held(held)).unwrap();
        let Sent::Answered(response) = sent else {
            panic!("it is answered once")
        };
        assert_eq!(response.status(), 401);
        assert!(response.headers().contains_key("www-authenticate"));
        let [first, second] = &desk.called()[..] else {
            panic!("twice")
        };
        assert_eq!(second.header("prefer"), Some("a"));
        assert_eq!((&first.body, &second.body), (&body, &body));
        assert_ne!(
            first.header("authorization"),
            second.header("authorization")
        );
        assert_eq!(desk.world.claims.take().len(), 1);
        desk.vault.access_tokens.clear();
    }
    // Too large to keep, or no challenge that anybody could answer: relayed.
    let large = [Part::Bytes(small), Part::Bytes(b"x".to_vec())];
    desk.answers(Answer::Status(401, vec![challenge()]));
    let response = desk.call(
        &target("POST", "/v1.0/me"),
        request(&[], Parts(large.into())),
    );
    assert_eq!(response.unwrap().headers().len(), 1);
    for value in [
        "Bearer",
        "Bearer claims=\"x\"",
        "Basic claims=\"e30=\"",
        "claims=",
        "\u{7f}",
    ] {
        let headers = vec![("www-authenticate", value.to_owned())];
        desk.answers(Answer::Status(
            401,
            headers
                .into_iter()
                .filter(|(_, value)| value != "\u{7f}")
                .collect(),
        ));
        assert_eq!(desk.call(&me(), empty()).unwrap().status(), 401, "{value}");
    }
    desk.answers(Answer::Status(403, vec![challenge()]));
    assert_eq!(desk.call(&me(), empty()).unwrap().status(), 403);
}

#[test]
fn an_api_that_does_not_answer_is_told_by_what_it_did() {
    let desk = Desk::new();
    for (answer, error) in [
        (
            Answer::Fails(RelayError::Unreachable),
            NoAnswer::Unreachable,
        ),
        (Answer::Fails(RelayError::TimedOut), NoAnswer::TimedOut),
        (Answer::Fails(RelayError::Garbled), NoAnswer::Garbled),
        (Answer::Status(101, Vec::new()), NoAnswer::Garbled),
        (Answer::Hangs, NoAnswer::TimedOut),
    ] {
        desk.answers(answer);
        assert_eq!(desk.call(&me(), empty()).unwrap_err(), error.into());
    }
    assert_eq!(desk.world.lines("no_answer"), 5);
    assert!(
        desk.world
            .log
            .borrow()
            .iter()
            .any(|line| line.contains(r#""system":"apis.graph""#))
    );
    desk.answers(Answer::Fails(RelayError::Denied));
    let error = desk.call(&me(), empty()).unwrap_err().to_string();
    assert!(
        error.contains("apis.graph.url") && error.contains("allowed_outbound_hosts"),
        "{error}"
    );
    assert!(
        !desk
            .world
            .log
            .borrow()
            .iter()
            .any(|line| samples::shows_a_secret(line))
    );
}

#[test]
fn the_deadline_begins_anew_with_what_is_sent_and_ends_what_stands_still() {
    let desk = Desk::new();
    let slow = |pauses: &[u64], ends: Part| {
        let mut parts: Vec<_> = vec![Part::Bytes(b"a".to_vec())];
        for pause in pauses {
            parts.extend([Part::Pause(*pause), Part::Bytes(b"a".to_vec())]);
        }
        parts.push(ends);
        request(&[("content-length", "100")], Parts(parts.into()))
    };
    let post = target("POST", "/v1.0/me");
    let begun = desk.world.elapsed.get();
    // Over a minute, but never 25 seconds without a part.
    let response = desk.call(
        &post,
        slow(&[20_000, 20_000, 20_000], Part::Bytes(Vec::new())),
    );
    assert_eq!(response.unwrap().status(), 200);
    assert!(desk.world.elapsed.get() >= begun + LONGEST);
    let error = desk
        .call(&post, slow(&[20_000, 300_000], Part::Bytes(Vec::new())))
        .unwrap_err();
    assert_eq!(error, NoAnswer::TimedOut.into());
    let error = desk.call(&post, slow(&[10], Part::BreaksOff)).unwrap_err();
    assert_eq!(error, NoAnswer::BodyBrokeOff.into());
    // Nothing of it ever comes, and nobody knows whether there is any.
    let never = request(&[], Parts([Part::Pause(300_000)].into()));
    assert_eq!(
        desk.call(&post, never).unwrap_err(),
        NoAnswer::BodyBrokeOff.into()
    );
    assert_eq!(
        desk.called().len(),
        1,
        "what broke off did not reach it as a whole"
    );
    // A length of nothing is no body.
    let nothing = request(
        &[("content-length", "0")],
        Parts([Part::Pause(300_000)].into()),
    );
    desk.call(&post, nothing).unwrap();
    assert_eq!(desk.called()[0].body, None);
}
