//! What is wrong with a call of an API before anybody is called.

use thiserror::Error;

use crate::identity::{Guid, User};

/// A call that is not made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{defect}")]
pub struct CallRefusal {
    /// Client id of the app that asked; none: its token does not say, or it is known already.
    pub client: Option<Guid>,
    /// The user whom it asked about; none: that is known already.
    pub user: Option<User>,
    /// Why.
    pub defect: CallDefect,
}

/// Why a call is not made. None of the cases says what was asked for: a path names people.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
pub enum CallDefect {
    /// There is no such API.
    #[error("the setting `apis` has no API of this name")]
    Api,
    /// TRACE, TRACK or CONNECT.
    #[error("TRACE, TRACK and CONNECT are never passed on")]
    Method,
    /// The connection is to become another protocol's.
    #[error("a connection is not changed to another protocol (Upgrade)")]
    Upgrade,
    /// The path is too long.
    #[error("the path is over 4,096 bytes long")]
    TooLong,
    /// A `%` is left once the path is decoded.
    #[error("the path has a `%` once it is decoded: encode it once, and correctly")]
    Percent,
    /// What the path is once it is decoded is no UTF-8.
    #[error("the path is no UTF-8 once it is decoded")]
    NotUtf8,
    /// A slash is encoded.
    #[error("the path has an encoded slash")]
    Slash,
    /// There is a backslash.
    #[error("the path has a backslash")]
    Backslash,
    /// There is a semicolon, which some servers cut at.
    #[error("the path has a semicolon")]
    Semicolon,
    /// There is a control character.
    #[error("the path has a control character")]
    Control,
    /// A segment is empty.
    #[error("the path has an empty segment: two slashes, or one at its end")]
    EmptySegment,
    /// A segment is of dots.
    #[error("the path has a segment of dots")]
    DotSegment,
    /// A segment is `$batch`.
    #[error("$batch is never passed on: what is in it cannot be looked at")]
    Batch,
    /// The query is too long, or no part of a URL.
    #[error("the query is over 16,384 bytes long, or has characters that have to be encoded")]
    Query,
    /// No pattern of the API allows this method with this path.
    #[error("the API's `allow` has no pattern for this method and path")]
    NotAllowed,
}

impl CallDefect {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Api,
        Self::Method,
        Self::Upgrade,
        Self::TooLong,
        Self::Percent,
        Self::NotUtf8,
        Self::Slash,
        Self::Backslash,
        Self::Semicolon,
        Self::Control,
        Self::EmptySegment,
        Self::DotSegment,
        Self::Batch,
        Self::Query,
        Self::NotAllowed,
    ];

    /// A word for it, the same in every version: the member `defect` of the audit.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::TooLong => "too_long",
            Self::Percent => "percent",
            Self::NotUtf8 => "not_utf8",
            Self::Slash => "slash",
            Self::Backslash => "backslash",
            Self::Semicolon => "semicolon",
            Self::Control => "control",
            Self::EmptySegment => "empty_segment",
            Self::DotSegment => "dot_segment",
            Self::Batch => "batch",
            Self::Query => "query",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// Why an API that was called gave no answer. None of the cases says more: the text of a transport error could hold a URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
pub enum NoAnswer {
    /// There is no connection to it.
    #[error("the API cannot be reached; try again later")]
    Unreachable,
    /// It did not begin to answer in time.
    #[error("the API did not answer in time")]
    TimedOut,
    /// The connection ended without an answer, or what came is none that can be passed on.
    #[error("the API broke off before it answered, or what it answered is no HTTP response")]
    Garbled,
    /// What the caller sends broke off, or stopped.
    #[error("the body broke off, or nothing of it came for a minute")]
    BodyBrokeOff,
}
