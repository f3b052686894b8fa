//! An API that a command asks with an access token.

use behalf_core::endpoint;
use behalf_core::port::{Http, HttpError, Limits, SecretBody};
use behalf_core::secret::AccessToken;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use std::time::Duration;
use url::Url;
use zeroize::Zeroizing;

/// How long an answer may take: longer than the app takes for one at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer read, in bytes: of 5,000 tenants, some with many key versions.
const LONGEST_ANSWER: usize = 32 * 1024 * 1024;
/// How often something is asked again that there is no time for, and for how many seconds is waited at most.
const ATTEMPTS: u32 = 3;
const LONGEST_WAIT: u64 = 10;

/// The origin of an API.
#[derive(Debug, Clone)]
pub(crate) struct Origin(Url);

impl Origin {
    /// Reads an origin: of https, or of http on this machine, since a token goes there.
    ///
    /// # Errors
    /// What it has to be.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        endpoint::origin(text)
            .map(Self)
            .ok_or("write an origin, like https://behalf.example (http:// on this machine alone)")
    }

    /// As it is written, without a slash at its end.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }
}

/// An API, and the token to ask it with.
pub(crate) struct Remote<H> {
    http: H,
    origin: Origin,
    authorization: HeaderValue,
}

impl<H: Http> Remote<H> {
    /// None: the token cannot be one.
    pub(crate) fn new(http: H, origin: Origin, token: &AccessToken) -> Option<Self> {
        let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
        let mut authorization = HeaderValue::try_from(bearer.as_str()).ok()?;
        authorization.set_sensitive(true);
        Some(Self {
            http,
            origin,
            authorization,
        })
    }

    /// Where it is.
    pub(crate) fn origin(&self) -> &str {
        self.origin.as_str()
    }

    /// Asks for a path of checked parts, and again if the API has no time right now: so only for what can be repeated.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) async fn ask(
        &self,
        method: &Method,
        path: &str,
    ) -> Result<Response<SecretBody>, HttpError> {
        let mut attempts = 1;
        loop {
            let answer = self.send(method, path).await?;
            let wait = answer.headers().get(RETRY_AFTER);
            let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
            let is_busy = [
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::TOO_MANY_REQUESTS,
            ]
            .contains(&answer.status());
            match wait.filter(|wait| *wait <= LONGEST_WAIT) {
                Some(wait) if is_busy && attempts < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                    attempts = attempts.saturating_add(1);
                }
                _ => return Ok(answer),
            }
        }
    }

    async fn send(&self, method: &Method, path: &str) -> Result<Response<SecretBody>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.origin()))
            .header(AUTHORIZATION, &self.authorization)
            .header(ACCEPT, "application/json");
        if *method == Method::POST {
            request = request.header(CONTENT_LENGTH, "0");
        }
        let request = request
            .body(Zeroizing::default())
            .map_err(|_| HttpError::Unreachable)?;
        let limits = Limits {
            connect: PATIENCE,
            first_byte: PATIENCE,
            between_bytes: PATIENCE,
            body: LONGEST_ANSWER,
        };
        self.http.send(request, limits).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_tls_or_nowhere_but_this_machine() {
        for good in [
            "https://behalf.example",
            "https://behalf.example:8443/",
            "http://127.0.0.1:3000",
            "http://[::1]:3000",
            "http://localhost",
        ] {
            assert!(Origin::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "behalf.example",
            "http://behalf.example",
            "http://10.0.0.1",
            "http://127.0.0.1.example",
            "https://user:word@behalf.example",
            "https://behalf.example/v1/status",
            "https://behalf.example/?a",
            "ftp://behalf.example",
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad}");
        }
    }
}
