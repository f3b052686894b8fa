//! Calls of APIs through the imported vault. Bodies pass from the host to the vault and back, and are not looked into here.

use behalf_core::call_twins;
use behalf_core::error::VaultError;
use behalf_core::identity::Nonce;
use behalf_core::secret::Bearer;
use behalf_core::vault::call::port::{CallPort, Identified, Outgoing, Prepared, Sent, Target};
use behalf_core::vault::port::{Subject, Terms};
use behalf_core::vault::wit::WitValue;
use http::{HeaderMap, Response, StatusCode};
use spin_sdk::wasip3::http::types::{self, ErrorCode, Fields, Trailers};
use spin_sdk::wasip3::wit_future;
use spin_sdk::wit_bindgen::{FutureReader, StreamReader};

use crate::Body;
use crate::bindings::behalf::vault::call as wit;
use crate::vault::{ImportedVault, another_vault, read, refused};

call_twins!(wit);

/// The body of an API's answer.
pub struct Download {
    stream: StreamReader<u8>,
    /// Whether it came to its end. The vault leaves trailers out.
    end: FutureReader<Result<Option<Trailers>, ErrorCode>>,
}

impl Download {
    fn of(response: types::Response) -> Option<Response<Self>> {
        let headers = HeaderMap::try_from(response.get_headers()).ok()?;
        let status = StatusCode::from_u16(response.get_status_code()).ok()?;
        let (_done, wanted) = wit_future::new(|| Ok(()));
        let (stream, end) = types::Response::consume_body(response, wanted);
        let mut response = Response::new(Self { stream, end });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Some(response)
    }

    /// The answer to our own caller, as the host takes it.
    pub(crate) fn respond(response: Response<Self>) -> Result<types::Response, ErrorCode> {
        let (parts, Self { stream, end }) = response.into_parts();
        let headers =
            Fields::try_from(parts.headers).map_err(|_| ErrorCode::InternalError(None))?;
        let (response, _sent) = types::Response::new(headers, Some(stream), end);
        let status = response.set_status_code(parts.status.as_u16());
        status.map_err(|()| ErrorCode::InternalError(None))?;
        Ok(response)
    }
}

impl CallPort for ImportedVault {
    type Call = wit::PreparedCall;
    type Held = wit::HeldRequest;
    type Upload = Body;
    type Download = Download;

    async fn identify_call(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        target: &Target,
        terms: Terms,
    ) -> Result<Identified<Self::Call>, VaultError> {
        let identified = wit::identify(
            bearer.expose().into(),
            subject.clone().into_wit(),
            target.clone().into_wit(),
            Some(terms.into_wit()),
        );
        let wit::Identified {
            caller,
            allowed,
            prepared: call,
        } = identified.await.map_err(refused)?;
        Ok(Identified {
            caller: read(Ok(caller))?,
            allowed: read(Ok(allowed))?,
            prepared: call.map(prepared).transpose()?,
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
    ) -> Result<Prepared<Self::Call>, VaultError> {
        let call = wit::prepare(
            bearer.expose().into(),
            subject.clone().into_wit(),
            nonce.as_str().into(),
            token.into(),
            target.clone().into_wit(),
            replace,
            Some(terms.into_wit()),
        );
        prepared(call.await.map_err(refused)?)
    }

    async fn send(
        &self,
        call: Self::Call,
        outgoing: Outgoing<Body, Self::Held>,
        terms: Terms,
    ) -> Result<Sent<Download, Self::Held>, VaultError> {
        let outgoing = match outgoing {
            // As it came from the host: the vault picks the headers.
            Outgoing::Fresh(request) => {
                let request = request.into_body().into_request();
                wit::Outgoing::Fresh(request.ok_or_else(another_vault)?)
            }
            Outgoing::Held(held) => wit::Outgoing::Held(held),
        };
        match wit::send(call, outgoing, Some(terms.into_wit()))
            .await
            .map_err(refused)?
        {
            wit::Sent::Answered(response) => {
                let response = Download::of(response);
                response.map(Sent::Answered).ok_or_else(another_vault)
            }
            wit::Sent::Challenged(wit::Challenge { claims, held }) => {
                Ok(Sent::Challenged { claims, held })
            }
        }
    }
}

fn prepared(prepared: wit::Prepared) -> Result<Prepared<wit::PreparedCall>, VaultError> {
    let wit::Prepared {
        call,
        nonce,
        replacement,
    } = prepared;
    Ok(Prepared {
        call,
        nonce: Nonce::from_wit(nonce).map_err(|_| another_vault())?,
        replacement: WitValue::from_wit(replacement).map_err(|_| another_vault())?,
    })
}
