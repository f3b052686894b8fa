//! Calls as the vault's user sees them: interface `call` of the WIT, whose documentation is theirs.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use http::{HeaderMap, Request, Response};

use crate::error::VaultError;
use crate::identity::Nonce;
use crate::secret::Bearer;
use crate::vault::port::{Caller, SealedToken, Subject, Terms, VaultPort};

/// What is to be called: `call.target` of the WIT.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Target {
    /// The API, by its name in the setting `apis`.
    pub api: String,
    /// The method.
    pub method: String,
    /// The path as it came, with a slash in front, and the query behind a question mark if there is one.
    pub path_with_query: String,
    /// A claims request of the API's challenge.
    pub claims: Option<String>,
}

/// Who calls, and the call, if there is an access token for it: `call.identified` of the WIT.
#[derive(Debug)]
pub struct Identified<C> {
    /// Who calls, about whom. `kept` is a refusal, or none.
    pub caller: Caller,
    /// What may be called, as the audit is to have it.
    pub allowed: Allowed,
    /// The call, under the enrolment that its access token was drawn under; none: `prepare` it.
    pub prepared: Option<Prepared<C>>,
}

/// What allows a call: `call.allowed` of the WIT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// The pattern of the setting `apis`, like `GET /v1.0/me/**`.
    pub pattern: String,
    /// The path as it is sent, if the setting wants it in the audit.
    pub path: Option<String>,
    /// What its access tokens are drawn for.
    pub scope: String,
}

/// A call that can be made: `call.prepared` of the WIT.
#[derive(Debug)]
pub struct Prepared<C> {
    /// It. Dropped, it calls nobody.
    pub call: C,
    /// The nonce of the enrolment that its access token was drawn under.
    pub nonce: Nonce,
    /// The refresh token's successor.
    pub replacement: Option<SealedToken>,
}

/// What is sent with a call: `call.outgoing` of the WIT.
pub enum Outgoing<U, H> {
    /// What the caller sends: headers, and a body that is under way.
    Fresh(Box<Request<U>>),
    /// What the API has challenged before.
    Held(H),
}

/// What a call came to: `call.sent` of the WIT.
#[derive(Debug)]
pub enum Sent<D, H> {
    /// The API's answer.
    Answered(Response<D>),
    /// The API wants an access token with these claims, and what was sent can be sent again.
    Challenged {
        /// The claims request, as JSON text.
        claims: String,
        /// What was sent.
        held: H,
    },
}

/// What was sent, to be sent again.
#[derive(Debug)]
pub struct Held {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// The vault as whoever calls APIs through it sees it.
///
/// The time that [`Terms`] give is never more than [`crate::deadline::LONGEST`], and begins anew with each part of a body that is
/// sent.
pub trait CallPort: VaultPort {
    /// A call that is prepared.
    type Call;
    /// What was sent, to be sent again.
    type Held;
    /// A body on its way to the API.
    type Upload;
    /// A body on its way from the API.
    type Download;

    /// `identify`.
    async fn identify_call(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        target: &Target,
        terms: Terms,
    ) -> Result<Identified<Self::Call>, VaultError>;
    /// `prepare`.
    async fn prepare(
        &self,
        bearer: &Bearer,
        subject: &Subject,
        enrolment: (&Nonce, &str),
        target: &Target,
        replace: bool,
        terms: Terms,
    ) -> Result<Prepared<Self::Call>, VaultError>;
    /// `send`.
    async fn send(
        &self,
        call: Self::Call,
        outgoing: Outgoing<Self::Upload, Self::Held>,
        terms: Terms,
    ) -> Result<Sent<Self::Download, Self::Held>, VaultError>;
}
