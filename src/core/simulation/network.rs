//! The network between the replicas and other systems: it loses, delays and doubles what it carries.

use std::time::{Duration, UNIX_EPOCH};

use http::{Request, Response};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::port::{Clock as _, Http, HttpError, Limits, SecretBody};
use crate::simulation::entra::Grant;
use crate::simulation::mutation::Mutation;
use crate::simulation::outside::Outside;
use crate::simulation::port::Port;
use crate::simulation::users::storage_id;
use crate::vault::samples::jwks;

impl Http for Port {
    async fn send(
        &self,
        request: Request<SecretBody>,
        _: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        let outside = &self.outside;
        for _ in 0..outside.chance.below(4) {
            outside.pause().await;
        }
        let fault = outside
            .chance
            .happens(outside.faults.get().network)
            .then(|| outside.chance.below(4));
        match fault {
            Some(0) => return Err(HttpError::Unreachable),
            Some(1) => {
                // It arrives when nobody waits for the answer any more, and after what was sent later.
                let at = outside.step.get() + outside.chance.below(200);
                outside.late_requests.borrow_mut().push((at, request));
                return Err(HttpError::TimedOut);
            }
            _ => {}
        }
        let act = Some(outside.current.get());
        let (status, body) = outside.serve(&request, act);
        if fault == Some(2) && !body["refresh_token"].is_null() {
            // The request came twice, and the first answer is lost.
            outside.serve(&request, act);
        }
        for _ in 0..outside.chance.below(4) {
            outside.pause().await;
        }
        if fault.is_some() {
            return Err(HttpError::TimedOut);
        }
        let mut response = Response::builder().status(status);
        if status == 429 {
            response = response.header("retry-after", "600");
        }
        // Now and then something between drops the date.
        if !outside.chance.happens(outside.faults.get().network * 3) {
            let now = if outside.is(Mutation::EveryClockConfirmed) {
                self.now()
            } else {
                outside.now.get()
            };
            let date = UNIX_EPOCH + Duration::from_secs(now);
            response = response.header("date", httpdate::fmt_http_date(date));
        }
        if !body["refresh_token"].is_null() {
            let act = &mut outside.acts.borrow_mut()[outside.current.get()];
            (act.answered, act.has_read_head) = (outside.step.get(), false);
        }
        Ok(response
            .body(Zeroizing::new(body.to_string().into_bytes()))
            .unwrap())
    }
}

impl Outside {
    /// What the other systems do with a request. Without an act, whoever asked has given up.
    fn serve(&self, request: &Request<SecretBody>, act: Option<usize>) -> (u16, Value) {
        let path = request.uri().path();
        match request.uri().host().unwrap() {
            "login.microsoftonline.com" if path.ends_with("/token") => {
                let tenant = path.split('/').nth(1).unwrap();
                let faults = self.faults.get().entra;
                let answer = self.entra.token(tenant, request, &self.chance, faults);
                self.note(answer.grant, &answer.body, act);
                (answer.status, answer.body)
            }
            "login.microsoftonline.com" => {
                let template = json!("https://login.microsoftonline.com/{tenantid}/v2.0");
                (200, serde_json::from_slice(&jwks(template)).unwrap())
            }
            _ => self.key_vault.secret(request),
        }
    }

    /// Notes which sign-in an act began, and makes the mistake that an answer of the token endpoint leads to.
    fn note(&self, grant: Option<Grant>, answer: &Value, act: Option<usize>) {
        if let (Some(Grant::SignIn(lineage)), Some(act)) = (grant, act) {
            self.acts.borrow_mut()[act].lineage = Some(lineage);
        }
        if let Some(Grant::SignIn(lineage) | Grant::Refresh(lineage)) = grant
            && self.is(Mutation::DeletedOnInvalidGrant)
            && answer["suberror"] == "bad_token"
        {
            let id = storage_id(self.entra.lineages.borrow()[lineage].user);
            self.rows
                .borrow_mut()
                .retain(|key, _| !key.starts_with(&format!("rec.{id}")));
        }
    }

    /// Delivers what is late, up to a step.
    pub(super) fn deliver(&self, until: u64) {
        let late = self.late_requests.take();
        let (due, later) = late.into_iter().partition(|(step, _)| *step <= until);
        self.late_requests.replace(later);
        let due: Vec<_> = due;
        for (_, request) in due {
            self.serve(&request, None);
        }
    }
}
