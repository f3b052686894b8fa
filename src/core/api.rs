//! The HTTP API: routes, bodies in and out. Errors are [`crate::api::problem`]'s.

mod accept;
mod cors;
pub mod problem;
mod upstream;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Method, Request as HttpRequest, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::accept::{JSON, METRICS, prefers_second};
use crate::api::cors::Cors;
use crate::api::problem::{ApiError, BODY_TIME, LONGEST_BODY, Reader, json_response};
use crate::identity::{Guid, TenantId, UserName};
use crate::journal::Journal as _;
use crate::json::Object;
use crate::keeper::calls::{Called, Replacement};
use crate::keeper::{Keeper, KeeperError, Request, View};
use crate::ledger::record::Status;
use crate::ledger::{Ledger, LedgerError};
use crate::port::{BodyError, Environment, Random, RequestBody};
use crate::secret::Bearer;
use crate::vault::call::port::{CallPort, Target};
use crate::vault::port::{Subject, VaultPort};

/// The id of a request, which its answer has, too, and the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The answer to a request.
pub struct Answer<D> {
    /// It.
    pub response: Response<AnswerBody<D>>,
    /// What is to be stored once it is under way, with [`Keeper::store`]. It may be lost.
    pub replacement: Option<Replacement>,
}

impl<D> Answer<D> {
    fn own(response: Response<Bytes>) -> Self {
        Self {
            response: response.map(AnswerBody::Whole),
            replacement: None,
        }
    }
}

/// The body of an answer.
pub enum AnswerBody<D> {
    /// Our own.
    Whole(Bytes),
    /// That of an API that was called, which is under way.
    Passed(D),
}

impl<V: CallPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    /// Answers a request. It never fails: errors are answers.
    pub async fn handle<B: RequestBody + Into<V::Upload>>(
        &self,
        request: &Parts,
        body: B,
    ) -> Answer<V::Download> {
        let id = request_id(request, &self.env);
        let mut answer = if let Some(path) = call_path(request.uri.path()) {
            self.pass_on(request, body, path, &id).await
        } else {
            Answer::own(self.handle_own(request, body, &id).await)
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            answer.response.headers_mut().insert(REQUEST_ID, id);
        }
        answer
    }

    /// What is an API's to answer.
    async fn pass_on<B: Into<V::Upload>>(
        &self,
        request: &Parts,
        body: B,
        path: Result<CallPath<'_>, ApiError>,
        id: &str,
    ) -> Answer<V::Download> {
        let called = async {
            let CallPath { subject, api, rest } = path?;
            let query = request.uri.query();
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            let target = Target {
                api: api.into(),
                method: request.method.as_str().into(),
                path_with_query: format!("{rest}{query}"),
                claims: None,
            };
            let mut sent = HttpRequest::new(body.into());
            *sent.headers_mut() = request.headers.clone();
            let about = Request {
                id,
                bearer: &bearer(request),
                subject,
            };
            let Called {
                mut response,
                replacement,
            } = self.call(&about, target, sent).await?;
            upstream::mark(response.headers_mut(), api);
            Ok(Answer {
                response: response.map(AnswerBody::Passed),
                replacement,
            })
        };
        called.await.unwrap_or_else(|error| {
            self.tell(&error, id, Reader::Caller);
            Answer::own(error.to_response(id, Reader::Caller))
        })
    }
}

impl<V: VaultPort, L: Ledger, E: Environment> Keeper<V, L, E> {
    async fn handle_own(
        &self,
        request: &Parts,
        body: impl RequestBody,
        id: &str,
    ) -> Response<Bytes> {
        let cors = Cors::of(request, || self.vault.check_settings().ok());
        let preflight = cors.as_ref().and_then(Cors::preflight);
        let mut response = match preflight {
            Some(response) => response,
            None => self.answer(request, body, id).await,
        };
        if let Some(cors) = cors {
            cors.allow(response.headers_mut());
        }
        response
    }

    async fn answer(&self, request: &Parts, body: impl RequestBody, id: &str) -> Response<Bytes> {
        // Probes are the operator's own.
        let reader = if is_probe(request.uri.path()) {
            Reader::Operator
        } else {
            Reader::Caller
        };
        match self.route(request, body, id).await {
            Ok(response) => response,
            Err(error) => {
                self.tell(&error, id, reader);
                error.to_response(id, reader)
            }
        }
    }

    /// What the reader is not told, because it names secrets or settings, or because he can only wait, is for the log; and
    /// so is a wrong sweep key, which somebody tries, or has forgotten to change.
    fn tell(&self, error: &ApiError, request_id: &str, reader: Reader) {
        let event = match error {
            ApiError::Keeper(KeeperError::Ledger(LedgerError::Store(_))) => "store_failed",
            error if error.code() == "sweep_not_authorized" => "sweep_refused",
            _ => "request_failed",
        };
        let reason = match error {
            ApiError::Keeper(KeeperError::Ledger(LedgerError::Store(reason))) => reason.to_string(),
            error => error.detail(Reader::Operator),
        };
        if event == "sweep_refused" || reason != error.detail(reader) {
            let line = json!({"request_id": request_id, "code": error.code(), "reason": reason});
            self.env.event(event, line);
        }
    }

    async fn route(
        &self,
        parts: &Parts,
        body: impl RequestBody,
        id: &str,
    ) -> Result<Response<Bytes>, ApiError> {
        let (method, path) = (&parts.method, parts.uri.path());
        let bearer = &bearer(parts);
        let about = |subject| Request {
            id,
            bearer,
            subject,
        };
        match path {
            // An outage elsewhere is no reason to take this replica out, since it can still remove. So nobody is asked, but for a
            // ledger whether it is one that this version can work with.
            path if is_probe(path) => match *method {
                Method::GET | Method::HEAD => {
                    self.vault.check_settings()?;
                    if path == READY {
                        let checked = self.ledger.check().await;
                        checked.map_err(|error| KeeperError::Ledger(error.into()))?;
                    }
                    Ok(json_response(StatusCode::OK, &json!({"status": "ok"})))
                }
                _ => Err(ApiError::MethodNotAllowed("GET, HEAD")),
            },
            "/v1/sweep" => match *method {
                Method::POST => {
                    let report = self.sweep(&about(Subject::Me)).await?;
                    Ok(json_response(StatusCode::OK, &report))
                }
                _ => Err(ApiError::MethodNotAllowed("POST")),
            },
            "/v1/status" => match *method {
                Method::GET => {
                    let tenant = asked_tenant(parts)?;
                    let report = self.status(&about(Subject::Me), tenant.as_ref()).await?;
                    Ok(if prefers_second(&parts.headers, JSON, METRICS) {
                        text_response(report.to_prometheus())
                    } else {
                        json_response(StatusCode::OK, &report)
                    })
                }
                _ => Err(ApiError::MethodNotAllowed("GET")),
            },
            path => {
                if let Some(tenant) = path.strip_prefix("/v1/tenants/") {
                    let tenant = TenantId::parse(tenant)
                        .ok_or(ApiError::InvalidPath("a tenant id, which is a GUID"))?;
                    return match *method {
                        Method::DELETE => {
                            let removal = self.remove_tenant(&about(Subject::Me), &tenant).await?;
                            Ok(json_response(StatusCode::OK, &removal))
                        }
                        _ => Err(ApiError::MethodNotAllowed("DELETE")),
                    };
                }
                let (subject, of_user) = user_path(path).ok_or(ApiError::NotFound)??;
                self.of_user(method, &about(subject), of_user, body).await
            }
        }
    }

    /// What is there for a user: for the user itself, and, but for the enrolment, for apps that name one.
    async fn of_user(
        &self,
        method: &Method,
        request: &Request<'_>,
        path: UserPath,
        body: impl RequestBody,
    ) -> Result<Response<Bytes>, ApiError> {
        match (path, method) {
            (UserPath::User, &Method::GET) => {
                let view = self.show(request).await?;
                Ok(view_response(StatusCode::OK, &view))
            }
            (UserPath::User, &Method::PUT) if request.subject == Subject::Me => {
                let asked: EnrolBody = read_json(body, "the optional text `scope`").await?;
                let (view, created) = self.enrol(request, asked.scope.as_deref()).await?;
                Ok(view_response(
                    if created {
                        StatusCode::CREATED
                    } else {
                        StatusCode::OK
                    },
                    &view,
                ))
            }
            (UserPath::User, &Method::DELETE) => {
                self.remove(request).await?;
                Ok(no_content())
            }
            (UserPath::AccessToken, &Method::POST) => {
                let asked: DrawBody =
                    read_json(body, "the optional texts `scope` and `claims`").await?;
                let issued = self.draw(request, asked.scope, asked.claims).await?;
                let body = IssuedBody {
                    access_token: issued.access_token.expose(),
                    token_type: &issued.token_type,
                    expires_in: issued.expires_in,
                    scope: &issued.scope,
                };
                Ok(json_response(StatusCode::OK, &body))
            }
            (UserPath::RefreshToken, &Method::DELETE) => {
                self.remove_refresh_token(request).await?;
                Ok(no_content())
            }
            (path, _) => Err(ApiError::MethodNotAllowed(path.methods(&request.subject))),
        }
    }
}

/// What there is of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum UserPath {
    User,
    AccessToken,
    RefreshToken,
}

impl UserPath {
    fn methods(self, subject: &Subject) -> &'static str {
        match (self, subject) {
            (Self::User, Subject::Me) => "GET, PUT, DELETE",
            (Self::User, Subject::User(_)) => "GET, DELETE",
            (Self::AccessToken, _) => "POST",
            (Self::RefreshToken, _) => "DELETE",
        }
    }
}

/// The path of a call.
struct CallPath<'a> {
    subject: Subject,
    /// The API, as the path has it.
    api: &'a str,
    /// The API's own path, as it came.
    rest: &'a str,
}

/// Reads the path of a call; none: it is none.
fn call_path(path: &str) -> Option<Result<CallPath<'_>, ApiError>> {
    let mut segments = path.strip_prefix("/v1/")?.splitn(5, '/');
    let subject = subject(&mut segments)?;
    if segments.next()? != "call" {
        return None;
    }
    let called = path.split_once("/call/")?.1;
    let end = called.find('/').unwrap_or(called.len());
    let (api, rest) = called.split_at(end);
    Some(subject.map(|subject| CallPath { subject, api, rest }))
}

/// Whom the path of a user is about, by its first segments; none: it is about no user.
fn subject<'a>(segments: &mut impl Iterator<Item = &'a str>) -> Option<Result<Subject, ApiError>> {
    match segments.next()? {
        "me" => Some(Ok(Subject::Me)),
        "users" => {
            let (tenant, object) = (segments.next()?, segments.next()?);
            Some(match (TenantId::parse(tenant), Guid::parse(object)) {
                (Some(tenant), Some(object)) => Ok(Subject::User(UserName { tenant, object })),
                (_, _) => Err(ApiError::InvalidPath(
                    "a tenant id and an object id, which are GUIDs",
                )),
            })
        }
        _ => None,
    }
}

/// Whom a path is about, and what of that; none: it is about no user.
fn user_path(path: &str) -> Option<Result<(Subject, UserPath), ApiError>> {
    let mut segments = path.strip_prefix("/v1/")?.split('/');
    let subject = subject(&mut segments)?;
    let of_user = match (segments.next(), segments.next()) {
        (None, _) => UserPath::User,
        (Some("access-token"), None) => UserPath::AccessToken,
        (Some("refresh-token"), None) => UserPath::RefreshToken,
        (Some(_), _) => return None,
    };
    Some(subject.map(|subject| (subject, of_user)))
}

/// Whether to send requests here.
const READY: &str = "/readyz";

fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | READY)
}

/// The caller's own id of the request, if it can be written anywhere; else a new one.
fn request_id(request: &Parts, random: &impl Random) -> String {
    let mut values = request.headers.get_all(REQUEST_ID).iter();
    let is_id = |id: &&str| {
        let mut bytes = id.bytes();
        (1..=64).contains(&id.len())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    match (values.next(), values.next()) {
        (Some(id), None) => id.to_str().ok().filter(is_id).map(Into::into),
        (_, _) => None,
    }
    .unwrap_or_else(|| Guid::random(random).as_str().into())
}

/// The tenant of the query, if it names one.
fn asked_tenant(request: &Parts) -> Result<Option<TenantId>, ApiError> {
    let query = request.uri.query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let tenant = pairs.find(|(name, _)| name == "tenant");
    let Some((_, tenant)) = tenant else {
        return Ok(None);
    };
    let tenant = TenantId::parse(&tenant);
    tenant
        .map(Some)
        .ok_or(ApiError::InvalidQuery("`tenant`, a tenant id"))
}

fn text_response(text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct EnrolBody {
    scope: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct DrawBody {
    scope: Option<String>,
    claims: Option<String>,
}

/// A successful answer of the token endpoint, as RFC 6749 §5.1 has it.
#[derive(Serialize)]
struct IssuedBody<'a> {
    access_token: &'a str,
    token_type: &'a str,
    expires_in: u32,
    scope: &'a str,
}

/// The token of `Authorization: Bearer …` (RFC 6750 §2.1); empty, which counts as missing, without one.
fn bearer(request: &Parts) -> Bearer {
    let mut values = request.headers.get_all(AUTHORIZATION).iter();
    let token = match (
        values.next().and_then(|value| value.to_str().ok()),
        values.next(),
    ) {
        (Some(value), None) => value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
            .map(|(_, token)| token),
        // Two tokens are none: which one was meant is not for us to guess.
        (Some(_), Some(_)) | (None, _) => None,
    };
    Bearer::new(token.unwrap_or_default().trim().to_owned())
}

/// An empty body is an empty object.
async fn read_json<T: for<'a> Deserialize<'a> + Default>(
    body: impl RequestBody,
    members: &'static str,
) -> Result<T, ApiError> {
    let body = body
        .read(LONGEST_BODY, BODY_TIME)
        .await
        .map_err(|error| match error {
            BodyError::TooLong => ApiError::BodyTooLarge,
            BodyError::TooSlow => ApiError::BodyTooSlow,
            BodyError::BrokenOff => ApiError::BodyBrokenOff,
        })?;
    if body.is_empty() {
        return Ok(T::default());
    }
    // The text of serde's errors can quote the body, and the body a token: only the place is told.
    let read = serde_json::from_slice(&body).map(|Object(read)| read);
    read.map_err(|error| {
        if error.is_data() {
            ApiError::InvalidBody(members)
        } else {
            ApiError::InvalidJson {
                line: error.line(),
                column: error.column(),
            }
        }
    })
}

fn view_response(status: StatusCode, view: &View) -> Response<Bytes> {
    let record = view.record.as_ref();
    let reason = record.and_then(|record| record.status.reason());
    let body = ViewBody {
        status: record.map_or("no_refresh_token", |record| status_name(&record.status)),
        turn: record.map_or(USER, |record| turn(&record.status)),
        claims: record.and_then(|record| record.status.claims()),
        aadsts: reason.and_then(|reason| reason.aadsts),
        suberror: reason.and_then(|reason| Some(reason.suberror?.as_str())),
        scope: record.map(|record| record.scope.as_str()),
        enrolled_by: record.and_then(|record| Some(record.enrolled_by.as_ref()?.as_str())),
        key_version: record.map(|record| record.key_version.as_str()),
        enrolled_at: view.enrolled_at,
        refreshed_at: record.map(|record| record.refreshed_at),
        refresh_due_at: record.map(|record| record.due_at),
    };
    json_response(status, &body)
}

/// What a caller may know of his user; members that do not apply are left out.
#[derive(Serialize)]
struct ViewBody<'a> {
    status: &'static str,
    /// Who has to do something.
    turn: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aadsts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suberror: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enrolled_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_version: Option<&'a str>,
    enrolled_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refreshed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_due_at: Option<u64>,
}

fn status_name(status: &Status) -> &'static str {
    match status {
        Status::Active => "active",
        Status::InteractionRequired(_) => "interaction_required",
        Status::OrganisationRequired(_) => "organisation_required",
        Status::Quarantined(_) => "quarantined",
    }
}

/// The user has to sign in, with the claims if there are any, and to be enrolled again.
const USER: &str = "user";

/// Whose turn it is.
fn turn(status: &Status) -> &'static str {
    match status {
        Status::Active => "nobody",
        Status::InteractionRequired(_) | Status::Quarantined(_) => USER,
        Status::OrganisationRequired(_) => "organisation",
    }
}

fn no_content() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
