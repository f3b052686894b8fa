//! Entra ID and Key Vault, as each tenant has them.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, Response};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::port::{Http, HttpError, Limits, SecretBody, Timer as _};
use crate::simulation::fairness::tenant::{Trouble, key, version};
use crate::simulation::fairness::world::{Shared, World};
use crate::vault::samples::jwks;

/// How long an answer of Entra ID or Key Vault takes, unless the tenant has trouble with it.
const LATENCY: Duration = Duration::from_millis(100);

impl Http for Shared {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        let path = request.uri().path();
        let (delay, status, body) = match request.uri().host().unwrap() {
            "login.microsoftonline.com" if path.ends_with("/token") => {
                let tenant = path.split('/').nth(1).unwrap();
                let tenant = usize::from_str_radix(&tenant[..8], 16).unwrap();
                self.token(tenant, &request)
            }
            "login.microsoftonline.com" => {
                let template = json!("https://login.microsoftonline.com/{tenantid}/v2.0");
                let keys = serde_json::from_slice(&jwks(template)).unwrap();
                (LATENCY, 200, keys)
            }
            _ => self.key_vault(&request),
        };
        self.sleep(delay.min(limits.first_byte)).await;
        if delay > limits.first_byte {
            return Err(HttpError::TimedOut);
        }
        let mut response = Response::builder().status(status);
        if status == 429 {
            response = response.header("retry-after", "600");
        }
        let date = UNIX_EPOCH + Duration::from_secs(self.seconds());
        Ok(response
            .header("date", httpdate::fmt_http_date(date))
            .body(Zeroizing::new(body.to_string().into_bytes()))
            .unwrap())
    }
}

impl World {
    /// What becomes of a request at the token endpoint: after how long the answer comes, its status, and its body.
    fn token(&self, tenant: usize, request: &Request<SecretBody>) -> (Duration, u16, Value) {
        let form: BTreeMap<_, _> = url::form_urlencoded::parse(request.body())
            .into_owned()
            .collect();
        let error = |status, error: &str, code: u32| {
            let body = json!({"error": error, "error_codes": [code]});
            (LATENCY, status, body)
        };
        let Some(token) = form.get("refresh_token") else {
            let body = json!({"token_type": "Bearer", "expires_in": 3599, "access_token": "at"});
            return (LATENCY, 200, body);
        };
        let user: usize = token.split('-').nth(1).unwrap().parse().unwrap();
        let of = &self.tenants[tenant];
        if user >= of.good {
            // Each of them is refused for a reason of its own, and none of the reasons concerns anybody else.
            return match user % 6 {
                0 => error(400, "invalid_grant", 50_105),
                1 => error(400, "invalid_grant", 70_000),
                2 => error(401, "invalid_grant", 50_097),
                3 => error(400, "unauthorized_client", 53_005),
                4 => error(400, "invalid_scope", 70_011),
                _ => error(400, "invalid_grant", 50_196),
            };
        }
        let delay = match of.trouble {
            Trouble::Throttled => return error(429, "temporarily_unavailable", 90_055),
            Trouble::CredentialRefused => return error(401, "invalid_client", 7_000_215),
            Trouble::Slow => Duration::from_secs(9),
            Trouble::Hanging => Duration::from_hours(1),
            Trouble::None
            | Trouble::Idle(_)
            | Trouble::HangingKey
            | Trouble::DeadKey
            | Trouble::Refused
            | Trouble::NotServed => LATENCY,
        };
        let body = json!({
            "token_type": "Bearer", "expires_in": 3599, "scope": form["scope"],
            "access_token": "at", "refresh_token": format!("rt-{user}-{}", self.next()),
        });
        (delay, 200, body)
    }

    /// The same of a request for a key.
    fn key_vault(&self, request: &Request<SecretBody>) -> (Duration, u16, Value) {
        let path = request.uri().path();
        let (name, asked) = path.rsplit_once('/').unwrap();
        let tenant = usize::from_str_radix(&name.rsplit('/').next().unwrap()[4..12], 16).unwrap();
        let of = &self.tenants[tenant];
        let newest = of.keys.borrow().len() - 1;
        let index = match asked {
            "" => newest,
            version => usize::from_str_radix(version, 16).unwrap(),
        };
        *self.asked.borrow_mut().entry(path.to_owned()).or_default() += 1;
        let delay = match of.trouble {
            Trouble::Idle(milliseconds) => Duration::from_millis(milliseconds),
            Trouble::HangingKey => Duration::from_hours(1),
            _ => LATENCY,
        };
        if of.trouble == Trouble::DeadKey && index < newest {
            let inner = json!({"code": "SecretDisabled"});
            let body = json!({"error": {"code": "Forbidden", "message": "m", "innererror": inner}});
            return (delay, 403, body);
        }
        let body = json!({
            "value": STANDARD.encode(key(tenant, index)),
            "id": format!("https://demo.vault.azure.net{name}/{}", version(index).as_str()),
            "attributes": {"enabled": true},
        });
        (delay, 200, body)
    }
}
