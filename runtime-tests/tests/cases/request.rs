//! What a step sends: whose token, which body.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join;
use reqwest::{Method, RequestBuilder};
use runtime_tests::app::{Answer, App};
use runtime_tests::emulators::{Caller, Emulators, OTHER_TENANT, OTHER_USER, Signature};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Whose token a request carries.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bearer {
    /// `user`, `other-user`, `other-tenant`, `job`, `admin`, `sweep`, `none`, or any text to be sent itself.
    Named(String),
    /// The user's, with differences.
    Minted(Box<Minted>),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Minted {
    tenant: Option<String>,
    user: Option<String>,
    v1: bool,
    /// An app's own token with these roles.
    roles: Option<Vec<String>>,
    /// Claims of other values; times are in seconds from now.
    claims: BTreeMap<String, Value>,
    /// Claims that are left out.
    without: Vec<String>,
    signature: Signature,
}

/// What a request carries.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Body {
    Text(String),
    /// JSON of so many bytes.
    Long {
        length: usize,
    },
    /// What arrives of a body before the connection ends, or `stalls`.
    Part {
        part: String,
        #[serde(default)]
        stalls: bool,
    },
}

impl Bearer {
    /// The token; none to send none.
    pub(crate) fn token(&self, emulators: &Emulators) -> Option<String> {
        let caller = emulators.caller();
        Some(match self {
            Self::Named(name) => match name.as_str() {
                "user" => caller.mint(),
                "other-user" => caller.user(OTHER_USER).mint(),
                "other-tenant" => caller.tenant(OTHER_TENANT).mint(),
                "job" => caller.app(&["Behalf.Act"]).mint(),
                "admin" => caller.app(&["Behalf.Admin"]).mint(),
                "sweep" => emulators.options().sweep_key.clone(),
                "none" => return None,
                text => text.to_owned(),
            },
            Self::Minted(minted) => minted.of(caller),
        })
    }
}

impl Minted {
    fn of(&self, mut caller: Caller<'_>) -> String {
        if let Some(tenant) = &self.tenant {
            caller = caller.tenant(tenant);
        }
        if let Some(user) = &self.user {
            caller = caller.user(user);
        }
        if self.v1 {
            caller = caller.v1();
        }
        if let Some(roles) = &self.roles {
            caller = caller.app(&roles.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for (name, value) in &self.claims {
            caller = match value.as_i64() {
                Some(seconds) => caller.claim(name, now() + seconds),
                None => caller.claim(name, value.clone()),
            };
        }
        for name in &self.without {
            caller = caller.claim(name, Value::Null);
        }
        caller.signature(self.signature).mint()
    }
}

pub(crate) async fn send(
    app: &App,
    request: &str,
    bearer: Option<&str>,
    headers: &BTreeMap<String, String>,
    body: &Body,
) -> anyhow::Result<Answer> {
    let (method, path) = request.split_once(' ').context("METHOD PATH")?;
    let method = Method::from_bytes(method.as_bytes())?;
    let with = |mut request: RequestBuilder| {
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request
    };
    let json = |request: RequestBuilder, body: String| {
        with(request)
            .header("content-type", "application/json")
            .body(body)
    };
    let request = match body {
        Body::Text(text) if text.is_empty() => with(app.request(method, path)),
        Body::Text(text) => json(app.request(method, path), text.clone()),
        Body::Long { length } => {
            let empty = r#"{"scope":""}"#.len();
            let text = "x".repeat(length.checked_sub(empty).context("too short")?);
            json(
                app.request(method, path),
                format!(r#"{{"scope":"{text}"}}"#),
            )
        }
        Body::Part { part, stalls } => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let url = format!("http://{}{path}", listener.local_addr()?);
            // More than arrives, so that the head announces more.
            let request = json(
                reqwest::Client::new().request(method, url),
                format!("{part}  "),
            );
            let (answer, ()) = try_join(
                async { Answer::read(request.send().await?).await },
                break_off(listener, app.address(), part.len(), *stalls),
            )
            .await?;
            return Ok(answer);
        }
    };
    Answer::read(request.send().await?).await
}

/// Passes a request on, but of its body only so many bytes, as if the client had gone or stalled; and the answer back.
async fn break_off(
    listener: TcpListener,
    app: SocketAddr,
    bytes: usize,
    stalls: bool,
) -> anyhow::Result<()> {
    let (mut client, _) = listener.accept().await?;
    let mut request = Vec::new();
    let end = loop {
        let head = request.windows(4).position(|four| four == b"\r\n\r\n");
        match head.map(|head| head + 4 + bytes) {
            Some(end) if request.len() >= end => break end,
            _ => ensure!(client.read_buf(&mut request).await? > 0, "no whole head"),
        }
    };
    let mut app = TcpStream::connect(app).await?;
    app.write_all(&request[..end]).await?;
    if !stalls {
        app.shutdown().await?;
    }
    tokio::io::copy(&mut app, &mut client).await?;
    Ok(())
}

pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
