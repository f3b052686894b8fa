//! Calls of APIs on a user's behalf: which there are, what may be called of them, and what crosses either way. The access token
//! is put in here, and goes to that API alone.
//!
//! A call takes two steps, so that whoever keeps the records can look between them whether the user is still enrolled: it is
//! prepared, and it is sent. What is prepared and not sent calls nobody.

pub mod apis;
mod body;
pub mod headers;
pub mod path;
pub mod pattern;
pub mod port;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use serde_json::json;
use zeroize::Zeroizing;

use crate::deadline::{Deadline, LONGEST};
use crate::error::call::{CallDefect, CallRefusal, NoAnswer};
use crate::error::{System, VaultError};
use crate::identity::Nonce;
use crate::port::{Relay, RelayError, RelayLimits, Timer, Upload};
use crate::secret::{AccessToken, Bearer};
use crate::vault::access_tokens::{Found, Outcome};
use crate::vault::authenticator::Known;
use crate::vault::call::apis::Api;
use crate::vault::call::body::{Body, Progress};
use crate::vault::call::headers::Way;
use crate::vault::call::path::{Path, query};
use crate::vault::call::pattern::allowed;
use crate::vault::call::port::{
    Allowed, CallPort, Held, Identified, Outgoing, Prepared, Sent, Target,
};
use crate::vault::claims_request;
use crate::vault::context::{Context, Environment};
use crate::vault::grants::Wanted;
use crate::vault::key_ring::KeyId;
use crate::vault::port::{Caller, Draw, Kept, KeptOutcome, Remembered, Role, Subject, Terms};
use crate::vault::token_client::ScopeChoice;
use crate::vault::{Vault, bound, may};

const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const CONNECT: Duration = Duration::from_secs(5);
/// How long nothing of a body may come, either way.
const BETWEEN_PARTS: Duration = Duration::from_mins(1);
/// How often it is seen whether the rest of a small body has come.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A call that can be made.
#[derive(Debug)]
pub struct Call {
    api: Rc<Api>,
    method: Method,
    uri: Uri,
    access_token: AccessToken,
    /// Whether its access token was drawn with claims: then the API is not answered a second time.
    has_claims: bool,
}

impl<E: Environment + Relay> CallPort for Vault<E> {
    type Call = Call;
    type Held = Held;
    type Upload = E::Upload;
    type Download = E::Download;

    async fn identify_call(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        target: &Target,
        terms: Terms,
    ) -> Result<Identified<Call>, VaultError> {
        let context = self.context(terms)?;
        let caller = self
            .authenticator
            .caller(&context, bearer, subject, Role::Act);
        let known = self.sources.while_verifying(&context, caller).await?;
        let (rule, asked) = Asked::of(&context, &known, target)?;
        let (kept, prepared) = match self.kept_call(&context, &known, &asked) {
            None => (None, None),
            Some(Ok(prepared)) => (None, Some(prepared)),
            Some(Err(kept)) => (Some(*kept), None),
        };
        if kept.is_none() && prepared.is_none() {
            self.sources.begin_key(&context, &known.user.tenant);
        }
        Ok(Identified {
            caller: Caller {
                app: known.app.client,
                rule: Some(rule),
                user: known.user,
                policy: context.policy(),
                kept,
            },
            allowed: asked.allowed,
            prepared,
        })
    }

    async fn prepare(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        (nonce, token): (&Nonce, &str),
        target: &Target,
        replace: bool,
        terms: Terms,
    ) -> Result<Prepared<Call>, VaultError> {
        let context = self.context(terms)?;
        let caller = self
            .authenticator
            .caller(&context, bearer, subject, Role::Act);
        let known = self.sources.while_verifying(&context, caller).await?;
        let (_, asked) = Asked::of(&context, &known, target)?;
        let envelope = bound(&context, &known, nonce, token)?;
        let key = envelope.key();
        let payload = self.open_for(&context, envelope, &known).await?;
        // Another call may have been prepared since `identify` found nothing, or while the key was waited for.
        if !replace && let Some(kept) = self.kept_call(&context, &known, &asked) {
            match kept {
                Ok(prepared) if prepared.nonce == *nonce => return Ok(prepared),
                Err(kept) if kept.nonce == *nonce => {
                    if let KeptOutcome::Refused(remembered) = kept.outcome {
                        return Err(remembered.error);
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
        // The operator chose the scope.
        let redeemed = (&payload, &asked.api.scope, ScopeChoice::Settings);
        let of_draw = (&asked.draw, asked.claims.as_deref());
        let granted = self
            .redeem(&context, &known.user, (nonce, &key), redeemed, of_draw)
            .await?;
        let replacement = if replace {
            self.replacement(&context, &granted, payload, &known.user.tenant, nonce)
                .await
        } else {
            None
        };
        Ok(Prepared {
            call: asked.with(&granted.access_token),
            nonce: nonce.clone(),
            replacement,
        })
    }

    async fn send(
        &self,
        call: Call,
        outgoing: Outgoing<E::Upload, Held>,
        terms: Terms,
    ) -> Result<Sent<E::Download, Held>, VaultError> {
        let context = self.context(terms)?;
        let (mut headers, body) = match outgoing {
            Outgoing::Fresh(request) => {
                let (parts, upload) = request.into_parts();
                if is_upgrade(&parts.headers) {
                    return Err(CallDefect::Upgrade.into());
                }
                let headers = Way::Request.pass(&parts.headers, &call.api.request_headers);
                let body = body_of(&context, &headers, upload, !call.has_claims).await?;
                (headers, body)
            }
            Outgoing::Held(held) => (held.headers, Body::again(held.body)),
        };
        if body.is_none() {
            // A length of nothing is left to whoever sends it.
            headers.remove(CONTENT_LENGTH);
        }
        let progress = body.as_ref().map(Body::progress);
        let progress = progress.as_deref();
        let request = call.request(headers.clone(), body)?;
        let limits = RelayLimits {
            connect: CONNECT,
            between_parts: BETWEEN_PARTS,
        };
        let response = pin!(context.env.relay(request, limits));
        let stalled = pin!(stalled(context.env, context.deadline, progress));
        let answered = match select(response, stalled).await {
            // Another protocol was agreed on, and nobody asked for one.
            Either::Left((Ok(response), _)) if response.status().is_informational() => {
                Err(RelayError::Garbled)
            }
            Either::Left((response, _)) => response,
            Either::Right(((), _)) => Err(RelayError::TimedOut),
        };
        let response = answered.map_err(|error| call.failed(&context, error, progress))?;
        if !call.has_claims
            && let Some(claims) = challenged(&response)
            && let Some(body) = kept(&context, progress).await
        {
            return Ok(Sent::Challenged {
                claims,
                held: Held::new(headers, body),
            });
        }
        let (mut parts, download) = response.into_parts();
        parts.headers = Way::Response.pass(&parts.headers, &call.api.response_headers);
        Ok(Sent::Answered(Response::from_parts(parts, download)))
    }
}

impl Call {
    fn request<U>(&self, headers: HeaderMap, body: U) -> Result<Request<U>, VaultError> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        let bearer = Zeroizing::new(format!("Bearer {}", self.access_token.expose()));
        let value = HeaderValue::try_from(bearer.as_str());
        // Entra ID's tokens can stand in a header.
        let mut value = value.map_err(|_| VaultError::upstream(System::Entra))?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
        Ok(request)
    }

    /// Why there is no answer: to the operator, too, who is told which API it is.
    fn failed<E: Environment>(
        &self,
        context: &Context<'_, E>,
        error: RelayError,
        progress: Option<&Progress>,
    ) -> VaultError {
        if progress.is_some_and(Progress::broke_off) {
            return NoAnswer::BodyBrokeOff.into();
        }
        let system = format!("apis.{}", self.api.name);
        context.log(json!({"event": "no_answer", "system": system, "reason": error.to_string()}));
        match error {
            RelayError::Denied => {
                let expected = format!(
                    "is wrong at {system}.url: spin.toml does not allow that (allowed_outbound_hosts)"
                );
                VaultError::setting("apis", &expected)
            }
            RelayError::Unreachable => NoAnswer::Unreachable.into(),
            RelayError::TimedOut => NoAnswer::TimedOut.into(),
            RelayError::Garbled => NoAnswer::Garbled.into(),
        }
    }
}

impl Held {
    fn new(mut headers: HeaderMap, body: Vec<u8>) -> Self {
        if !body.is_empty() {
            headers.insert(CONTENT_LENGTH, body.len().into());
        }
        Self { headers, body }
    }
}

/// What is to be called, once it was looked at.
struct Asked {
    api: Rc<Api>,
    allowed: Allowed,
    method: Method,
    uri: Uri,
    claims: Option<String>,
    /// What is drawn for it.
    draw: Draw,
}

impl Asked {
    /// Looks whether a caller may call that: the rule, and what it is. The API and the rule go first: what may be called of an API
    /// is for those to know who may call it.
    fn of<E>(
        context: &Context<'_, E>,
        known: &Known,
        target: &Target,
    ) -> Result<(String, Self), VaultError> {
        let refused = |defect| CallRefusal {
            client: known.app.client.clone(),
            user: Some(known.user.clone()),
            defect,
        };
        let api = context.apis.find(&target.api);
        let api = api.ok_or_else(|| refused(CallDefect::Api))?;
        let rule = may(context, known, Wanted::Call(&api.name))?;
        let claims = target.claims.as_deref();
        let claims = claims.map(claims_request::of_caller).transpose()?;
        let asked = Self::allowed(api, target, claims).map_err(refused)?;
        Ok((rule, asked))
    }

    fn allowed(api: &Rc<Api>, target: &Target, claims: Option<String>) -> Result<Self, CallDefect> {
        let method = Method::from_bytes(target.method.as_bytes());
        let method = method.map_err(|_| CallDefect::Method)?;
        allowed(&method)?;
        let (path, behind) = match target.path_with_query.split_once('?') {
            Some((path, behind)) => (path, Some(query(behind)?)),
            None => (target.path_with_query.as_str(), None),
        };
        let path = Path::parse(path)?;
        let pattern = api.pattern(&method, &path)?.as_str().to_owned();
        Ok(Self {
            uri: api.uri(&path, behind)?,
            allowed: Allowed {
                pattern,
                path: api.audit_paths.then(|| path.to_string()),
                scope: api.scope.as_str().into(),
            },
            claims,
            draw: Draw {
                scope: Some(api.scope.as_str().into()),
                claims: None,
                replace: false,
            },
            method,
            api: Rc::clone(api),
        })
    }

    fn with(&self, access_token: &AccessToken) -> Call {
        Call {
            api: Rc::clone(&self.api),
            method: self.method.clone(),
            uri: self.uri.clone(),
            access_token: AccessToken::new(access_token.expose().into()),
            has_claims: self.claims.is_some(),
        }
    }
}

impl<E: Environment> Vault<E> {
    /// What the same draw came to before: the call that it makes, or a refusal. That what was given has more than a draw would be
    /// let have is nothing here: it goes to the API alone.
    fn kept_call(
        &self,
        context: &Context<'_, E>,
        known: &Known,
        asked: &Asked,
    ) -> Option<Result<Prepared<Call>, Box<Kept>>> {
        let take = |found: Found<'_>| match found.outcome {
            Outcome::Given { access_token, .. } => Ok(Prepared {
                call: asked.with(access_token),
                nonce: found.nonce.clone(),
                replacement: None,
            }),
            Outcome::Refused(error) => Err(Box::new(Kept {
                nonce: found.nonce.clone(),
                scope: found.asked.as_str().into(),
                outcome: KeptOutcome::Refused(Remembered {
                    error: error.clone(),
                    retry_after_seconds: found.left,
                }),
            })),
        };
        let claims = asked.claims.as_deref();
        let has_key = |key: &KeyId| self.sources.key_ring.has(context, key);
        self.access_tokens
            .find(context, &known.user, &asked.draw, claims, has_key, take)
    }
}

/// The body of what a caller sends; none: there is none.
async fn body_of<E: Environment, U: Upload>(
    context: &Context<'_, E>,
    headers: &HeaderMap,
    upload: U,
    keep: bool,
) -> Result<Option<Body<U>>, VaultError> {
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length == Some(0) {
        return Ok(None);
    }
    // Without a length it may be none, and that has to be known first: a GET with a body is refused by many.
    let body = pin!(Body::of_caller(upload, length.is_none(), keep));
    let late = pin!(context.env.sleep(context.deadline.left(context.env)));
    match select(body, late).await {
        Either::Left((body, _)) => Ok(body.map_err(|_| NoAnswer::BodyBrokeOff)?),
        Either::Right(((), _)) => Err(NoAnswer::BodyBrokeOff.into()),
    }
}

/// What was sent, if it is small enough to have been kept. The API may have answered while the caller still sends it.
async fn kept<E: Environment>(
    context: &Context<'_, E>,
    progress: Option<&Progress>,
) -> Option<Vec<u8>> {
    let Some(progress) = progress else {
        return Some(Vec::new());
    };
    let settled = pin!(async {
        while !progress.is_settled() {
            // Who sends it is another task, and cannot wake this one.
            context.env.sleep(LOOK_AGAIN).await;
        }
    });
    let stalled = pin!(stalled(context.env, context.deadline, Some(progress)));
    select(settled, stalled).await;
    progress.take()
}

/// Ends when a call has lasted too long: at the deadline, or, if some of a body was sent since, when none was for as long as a call
/// may take.
async fn stalled(timer: &impl Timer, deadline: Deadline, progress: Option<&Progress>) {
    let mut seen = 0;
    let mut left = deadline.left(timer);
    loop {
        timer.sleep(left).await;
        let parts = progress.map_or(0, Progress::parts);
        if parts == seen {
            return;
        }
        seen = parts;
        left = LONGEST;
    }
}

/// Whether the connection is to become another protocol's (RFC 9110 §7.8). Hosts take that away from what a component gets, and
/// answer as if it had not been asked for; so a WebSocket is known by its own headers (RFC 6455 §4.1), too.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    let mut options = values.flat_map(|value| value.split(','));
    let names = [
        UPGRADE,
        HTTP2_SETTINGS,
        SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION,
    ];
    names.iter().any(|name| headers.contains_key(name))
        || options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
}

/// The claims request of an API's challenge, if it has one that can be made.
fn challenged<D>(response: &Response<D>) -> Option<String> {
    if response.status() != StatusCode::UNAUTHORIZED {
        return None;
    }
    let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
    let challenges = values
        .filter_map(|value| http_auth::parse_challenges(value.to_str().ok()?).ok())
        .flatten();
    let mut bearer = challenges.filter(|it| it.scheme.eq_ignore_ascii_case("Bearer"));
    bearer.find_map(|challenge| {
        let mut params = challenge.params.iter();
        let (_, claims) = params.find(|(name, _)| name.eq_ignore_ascii_case("claims"))?;
        claims_request::of_caller(&claims.to_unescaped()).ok()
    })
}

#[cfg(test)]
mod tests {
    use http::Method;

    use crate::error::call::CallDefect;
    use crate::vault::call::path::{Path, query};
    use crate::vault::call::pattern::{Pattern, allowed};

    /// Each under a pattern that allows everything.
    #[test]
    fn every_attack_of_the_table_is_refused_for_its_defect() {
        let mut met = Vec::new();
        for line in include_str!("call/attacks.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let [defect, method, target] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let (path, rest) = target
                .split_once('?')
                .map_or((target, None), |(path, rest)| (path, Some(rest)));
            let checked = allowed(&method)
                .and_then(|()| Path::parse(path))
                .and_then(|path| rest.map(query).transpose().map(|_| path));
            let found = checked.expect_err(line).name();
            assert_eq!(found, defect, "{line}");
            met.push(found);
        }
        let of_a_path = |defect: &&CallDefect| {
            !matches!(
                defect,
                CallDefect::Api
                    | CallDefect::Upgrade
                    | CallDefect::TooLong
                    | CallDefect::Query
                    | CallDefect::NotAllowed
            )
        };
        for defect in CallDefect::ALL.iter().filter(of_a_path) {
            assert!(met.contains(&defect.name()), "no attack is {defect:?}");
        }
    }

    #[test]
    fn what_is_always_refused_cannot_be_allowed() {
        for text in ["GET /**", "GET /v1.0/me/**"] {
            let pattern = Pattern::parse(text).unwrap();
            assert_eq!(pattern.as_str(), text);
        }
        for text in [
            "TRACE /**",
            "CONNECT /**",
            "POST /v1.0/$batch",
            "GET /a/../b",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
