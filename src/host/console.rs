//! The world as behalf-core takes it, for commands by which an operator does himself what no component may do.

use crate::log;
use crate::outbound::OutboundClient;
use crate::variables::Environment;
use behalf_core::error::System;
use behalf_core::port::{
    Background, Clock, Config, ConfigError, Http, HttpError, Limits, Log, Random, SecretBody, Timer,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wasmtime_wasi_http::{Error, RequestOptions};
use zeroize::Zeroizing;

/// Where a command's settings come from: its own words first, then what `behalf up` would read.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandSettings {
    environment: Environment,
    own: BTreeMap<&'static str, Zeroizing<String>>,
    /// Those that the command goes by; none: all. What else is set does not concern it, right or wrong.
    only: Option<&'static [&'static str]>,
}

impl CommandSettings {
    /// These alone.
    pub(crate) fn only(environment: Environment, names: &'static [&'static str]) -> Self {
        Self {
            environment,
            own: BTreeMap::new(),
            only: Some(names),
        }
    }

    /// With a value of the command's own.
    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.own.insert(name, Zeroizing::new(value));
    }

    /// Whether there is a value that is not empty.
    pub(crate) fn has(&self, name: &str) -> bool {
        matches!(self.get(name), Ok(Some(value)) if !value.trim().is_empty())
    }
}

impl Config for CommandSettings {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        if let Some(value) = self.own.get(name) {
            return Ok(Some(value.to_string()));
        }
        if self.only.is_some_and(|only| !only.contains(&name)) {
            return Ok(None);
        }
        self.environment.value(name).map_err(|error| {
            tracing::warn!("{error}");
            ConfigError
        })
    }
}

/// The world of one command.
pub(crate) struct Console {
    client: OutboundClient,
    settings: CommandSettings,
    began: Instant,
}

impl Console {
    /// One that sends with this client, and goes by these settings.
    pub(crate) fn new(client: OutboundClient, settings: CommandSettings) -> Self {
        Self {
            client,
            settings,
            began: Instant::now(),
        }
    }
}

impl Http for OutboundClient {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        // Zeroized when the last who sends it lets go of it.
        let request = request.map(|body| {
            Full::new(Bytes::from_owner(body))
                .map_err(|never| match never {})
                .boxed_unsync()
        });
        let options = RequestOptions {
            connect_timeout: Some(limits.connect),
            first_byte_timeout: Some(limits.first_byte),
            between_bytes_timeout: Some(limits.between_bytes),
        };
        let response = Self::send(self, request, options).await;
        let (head, mut body) = response.map_err(|error| failed(&error))?.into_parts();
        let mut read = Zeroizing::new(Vec::with_capacity(limits.body));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(&error))?;
            if let Ok(data) = frame.into_data() {
                if data.len() > limits.body.saturating_sub(read.len()) {
                    return Err(HttpError::TooLong);
                }
                read.extend_from_slice(&data);
            }
        }
        Ok(Response::from_parts(head, read))
    }
}

fn failed(error: &Error) -> HttpError {
    match error {
        Error::ConnectionTimeout | Error::ConnectionReadTimeout => HttpError::TimedOut,
        _ => HttpError::Unreachable,
    }
}

impl Http for Console {
    async fn send(
        &self,
        request: Request<SecretBody>,
        limits: Limits,
    ) -> Result<Response<SecretBody>, HttpError> {
        Http::send(&self.client, request, limits).await
    }
}

impl Clock for Console {
    fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    }
}

impl Timer for Console {
    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

impl Random for Console {
    fn fill(&self, buffer: &mut [u8]) {
        if getrandom::fill(buffer).is_err() {
            // Zeros would be a key that everybody knows.
            log::fail("this machine gives no random numbers");
            std::process::abort();
        }
    }
}

impl Config for Console {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        self.settings.get(name)
    }
}

impl Log for Console {
    /// For people: what happened, and then what there is to it.
    fn line(&self, line: &str) {
        let members: Result<serde_json::Map<_, _>, _> = serde_json::from_str(line);
        let Ok(members) = members else { return };
        let text = |name| members.get(name).and_then(serde_json::Value::as_str);
        let is_system = |it: &System| text("system") == Some(it.to_string().as_str());
        if let ("no_answer", Some(system), Some(origin), Some(reason)) = (
            text("event").unwrap_or_default(),
            System::ALL.into_iter().find(is_system),
            text("origin"),
            text("reason"),
        ) {
            let setting = system.setting();
            let option = if system == System::KeyVault {
                " or --vault"
            } else {
                ""
            };
            tracing::warn!(
                "{origin} gives no answer ({reason}): is it {system} (see `{setting}`{option}), and within reach (see HTTPS_PROXY)?"
            );
            return;
        }
        let mut told = text("event").unwrap_or("event").replace('_', " ");
        for (name, value) in &members {
            if name != "event" && !value.is_null() {
                let _ = write!(told, ", {} {value}", name.replace('_', " "));
            }
        }
        tracing::warn!("{told}");
    }
}

impl Background for Console {
    /// Nothing is fetched ahead: a command ends with what it was for.
    fn begin(&self, _: impl Future<Output = ()> + 'static) {}
}
