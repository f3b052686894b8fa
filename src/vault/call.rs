//! Interface `behalf:vault/call`: its resources, and bodies that are under way in both directions.

use behalf_core::error::VaultError;
use behalf_core::error::call::NoAnswer;
use behalf_core::secret::Bearer;
use behalf_core::vault::call::Call;
use behalf_core::vault::call::port::{CallPort as _, Held, Identified, Outgoing, Prepared, Sent};
use behalf_core::vault::wit::WitValue as _;
use http::HeaderMap;
use wasip3::http::types;

use crate::bindings::Component;
use crate::bindings::exports::behalf::vault::call::{
    self as wit, Guest, GuestHeldRequest, GuestPreparedCall,
};
use crate::bindings::exports::behalf::vault::vault::{Error, Subject, Terms};
use crate::relay::{Download, Upload};
use crate::translation::{asked, given};
use crate::wasi::vault;

impl GuestPreparedCall for Call {}
impl GuestHeldRequest for Held {}

impl Guest for Component {
    type PreparedCall = Call;
    type HeldRequest = Held;

    async fn identify(
        bearer: String,
        subject: Subject,
        target: wit::Target,
        terms: Option<Terms>,
    ) -> Result<wit::Identified, Error> {
        let bearer = Bearer::new(bearer);
        let (subject, target) = (given("subject", subject)?, given("target", target)?);
        let terms = asked(terms)?;
        let identified = vault().identify_call(&bearer, &subject, &target, terms);
        let Identified {
            caller,
            allowed,
            prepared: call,
        } = identified.await.map_err(VaultError::into_wit)?;
        Ok(wit::Identified {
            caller: caller.into_wit(),
            allowed: allowed.into_wit(),
            prepared: call.map(prepared),
        })
    }

    async fn prepare(
        bearer: String,
        subject: Subject,
        nonce: String,
        token: String,
        target: wit::Target,
        replace: bool,
        terms: Option<Terms>,
    ) -> Result<wit::Prepared, Error> {
        let (bearer, nonce) = (Bearer::new(bearer), given("nonce", nonce)?);
        let (subject, target) = (given("subject", subject)?, given("target", target)?);
        let terms = asked(terms)?;
        let enrolment = (&nonce, token.as_str());
        let call = vault().prepare(&bearer, &subject, enrolment, &target, replace, terms);
        call.await.map(prepared).map_err(VaultError::into_wit)
    }

    async fn send(
        call: wit::PreparedCall,
        outgoing: wit::Outgoing,
        terms: Option<Terms>,
    ) -> Result<wit::Sent, Error> {
        let terms = asked(terms)?;
        let outgoing = match outgoing {
            wit::Outgoing::Fresh(request) => Outgoing::Fresh(Box::new(fresh(request)?)),
            wit::Outgoing::Held(held) => Outgoing::Held(held.into_inner()),
        };
        let sent = vault().send(call.into_inner(), outgoing, terms).await;
        match sent.map_err(VaultError::into_wit)? {
            Sent::Answered(response) => {
                let response = Download::respond(response);
                response.map(wit::Sent::Answered).ok_or_else(garbled)
            }
            Sent::Challenged { claims, held } => Ok(wit::Sent::Challenged(wit::Challenge {
                claims,
                held: wit::HeldRequest::new(held),
            })),
        }
    }
}

fn prepared(prepared: Prepared<Call>) -> wit::Prepared {
    let Prepared {
        call,
        nonce,
        replacement,
    } = prepared;
    wit::Prepared {
        call: wit::PreparedCall::new(call),
        nonce: nonce.into_wit(),
        replacement: replacement.into_wit(),
    }
}

fn fresh(request: types::Request) -> Result<http::Request<Upload>, Error> {
    let headers = HeaderMap::try_from(request.get_headers());
    let headers = headers.map_err(|_| VaultError::from(NoAnswer::BodyBrokeOff).into_wit())?;
    let mut fresh = http::Request::new(Upload::new(request));
    *fresh.headers_mut() = headers;
    Ok(fresh)
}

fn garbled() -> Error {
    VaultError::from(NoAnswer::Garbled).into_wit()
}
