//! Calls of APIs: the vault makes them, and this component never has an access token for one.

use crate::bindings::Component;
use crate::bindings::behalf::vault::call::{
    self, Challenge, Outgoing, Prepared, PreparedCall, Sent, Target,
};
use crate::bindings::behalf::vault::vault::{KeptOutcome, Subject};
use crate::bindings::exports::example::embed::calls::{Answer, Guest};
use crate::bindings::wasi::http::types::{Fields, Request, Response};
use crate::bindings::wit_future;
use crate::{find, is_current, replace, text};

impl Guest for Component {
    async fn read(bearer: String, api: String, path: String) -> Result<Answer, String> {
        let mut target = Target {
            api,
            method: "GET".into(),
            path_with_query: path,
            claims: None,
        };
        // Whoever may not call that is told so before anything is looked up.
        let identified = call::identify(bearer.clone(), Subject::Me, target.clone(), None);
        let identified = identified.await.map_err(text)?;
        let id = identified.caller.user.id;
        let record = find(&id)?;
        if let Some(kept) = identified.caller.kept
            && kept.nonce == record.nonce
            && let KeptOutcome::Refused(refusal) = kept.outcome
        {
            return Err(text(refusal.error));
        }
        let prepared = match identified.prepared {
            // Drawn a moment ago, under the enrolment that is the current one now.
            Some(prepared) if prepared.nonce == record.nonce => prepared.call,
            // One that is dropped calls nobody.
            Some(_) | None => prepare(&bearer, &id, &target).await?,
        };
        let (ended, trailers) = wit_future::new(|| Ok(None));
        drop(ended);
        // Headers are the API's own; a body would be a stream.
        let (request, _sent) = Request::new(Fields::new(), None, trailers, None);
        let sent = call::send(prepared, Outgoing::Fresh(request), None);
        let response = match sent.await.map_err(text)? {
            Sent::Answered(response) => response,
            Sent::Challenged(Challenge { claims, held }) => {
                target.claims = Some(claims);
                let prepared = prepare(&bearer, &id, &target).await?;
                let sent = call::send(prepared, Outgoing::Held(held), None);
                match sent.await.map_err(text)? {
                    Sent::Answered(response) => response,
                    Sent::Challenged(_) => return Err("challenged twice".into()),
                }
            }
        };
        let status = response.get_status_code();
        let (done, wanted) = wit_future::new(|| Ok(()));
        let (body, end) = Response::consume_body(response, wanted);
        let body = body.collect().await;
        drop(done);
        // A body that broke off is none.
        end.await.map_err(|_| "the API broke its answer off")?;
        Ok(Answer { status, body })
    }
}

/// A call that may be made: drawn for, and looked at once more.
async fn prepare(bearer: &str, id: &str, target: &Target) -> Result<PreparedCall, String> {
    let record = find(id)?;
    // As for a draw, a real one asks for a replacement only if the stored token is over a day old.
    let prepared = call::prepare(
        bearer.into(),
        Subject::Me,
        record.nonce,
        record.token,
        target.clone(),
        true,
        None,
    );
    let Prepared {
        call,
        nonce,
        replacement,
    } = prepared.await.map_err(text)?;
    is_current(id, &nonce)?;
    replace(id, replacement);
    Ok(call)
}
