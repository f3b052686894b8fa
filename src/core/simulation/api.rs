//! The API that is called on users' behalf: whose access token reaches it, and when.

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{Request, Response};

use crate::port::{Relay, RelayError, RelayLimits, Upload};
use crate::simulation::called::Parts;
use crate::simulation::port::Port;
use crate::vault::call::port::Target;

pub(super) const API: &str = "https://graph.microsoft.com";
pub(super) const APIS: &str = r#"{"graph": {"url": "https://graph.microsoft.com",
    "scope": "https://graph.microsoft.com/.default", "allow": ["GET /v1.0/me"]}}"#;
/// It wants an access token with `{"access_token":{}}`.
const CHALLENGE: &str =
    r#"Bearer error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ==""#;

/// What is called of it.
pub(super) fn me() -> Target {
    Target {
        api: "graph".into(),
        method: "GET".into(),
        path_with_query: "/v1.0/me".into(),
        claims: None,
    }
}

impl Relay for Port {
    type Upload = Parts;
    /// The sign-in that the access token came of.
    type Download = usize;

    async fn relay<U: Upload + 'static>(
        &self,
        request: Request<Option<U>>,
        _: RelayLimits,
    ) -> Result<Response<usize>, RelayError> {
        let outside = &self.outside;
        for _ in 0..outside.chance.below(4) {
            outside.pause().await;
        }
        let fault = outside
            .chance
            .happens(outside.faults.get().network)
            .then(|| outside.chance.below(2));
        if fault == Some(0) {
            return Err(RelayError::Unreachable);
        }
        let bearer = request.headers()[AUTHORIZATION].to_str().unwrap();
        let lineage = bearer.strip_prefix("Bearer at-canary-").unwrap();
        let lineage = lineage.parse().unwrap();
        {
            let act = &mut outside.acts.borrow_mut()[outside.current.get()];
            act.calls.push((lineage, act.answered));
        }
        for _ in 0..outside.chance.below(4) {
            outside.pause().await;
        }
        if fault.is_some() {
            return Err(RelayError::TimedOut);
        }
        let mut response = Response::builder();
        if outside.chance.below(3) == 0 {
            response = response.status(401).header(WWW_AUTHENTICATE, CHALLENGE);
        }
        Ok(response.body(lineage).unwrap())
    }
}
