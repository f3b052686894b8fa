//! What is wrong with an app, found before it is served: whether its components can be instantiated at all, and what they
//! say about their settings.

use crate::access::Told;
use crate::allow_list::AllowListError;
use crate::answers::empty;
use crate::app::{App, Peer};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::uri::Scheme;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;
use wasmtime_wasi_http::WasiBody;

/// How long a component may take to say how it is before that goes on without.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most of a problem's description that is read, in bytes.
const MAX_PROBLEM: usize = 64 * 1024;

impl App {
    /// Instantiates every component, and asks the app itself whether its settings are right, at `/healthz`.
    ///
    /// # Errors
    ///
    /// A component that cannot be instantiated. What the app says is wrong, if it answers with a problem (RFC 9457) and a
    /// 5xx status; else what is wrong with an allow-list. That the app has no such route, or fails, is no error.
    pub(crate) async fn rehearse(&self, address: SocketAddr) -> Result<(), AppError> {
        for (component, service) in &self.services {
            let instantiated = service.instantiate().await;
            instantiated.map_err(|reason| AppError::Instantiation {
                component: component.clone(),
                reason,
            })?;
        }
        for job in &self.jobs {
            let instantiated = job.instantiate().await;
            instantiated.map_err(|reason| AppError::Instantiation {
                component: job.grants.component.to_string(),
                reason,
            })?;
        }
        let request = Request::get("/healthz")
            .header(HOST, address.to_string())
            .body(empty());
        if let Ok(request) = request
            && let Ok(response) = timeout(PATIENCE, self.ask(request)).await
            && let Some(problem) = problem(response).await
        {
            return Err(AppError::Problem(problem));
        }
        match &self.allow_list_fault {
            Some((component, fault)) => Err(AppError::AllowList {
                component: component.clone(),
                fault: fault.clone(),
            }),
            None => Ok(()),
        }
    }

    async fn ask(&self, request: Request<WasiBody>) -> Response<WasiBody> {
        self.dispatch(request, Scheme::HTTP, Peer::ITSELF, &mut Told::default())
            .await
    }

    /// Runs every component that is on a schedule as if its time had come, up to its first request to others, which is not
    /// sent. Not for an app with a store that is to be kept.
    ///
    /// # Errors
    ///
    /// What a component says that ends before. One that asks to go further, or takes long, has nothing to say.
    pub(crate) async fn rehearse_schedules(&self) -> Result<(), AppError> {
        for job in &self.jobs {
            if let Ok(Err(reason)) = timeout(PATIENCE, job.rehearse()).await {
                return Err(AppError::Schedule {
                    component: job.grants.component.to_string(),
                    reason,
                });
            }
        }
        Ok(())
    }
}

/// What a response says is wrong, if it is a problem of the server's.
async fn problem(response: Response<WasiBody>) -> Option<String> {
    let media_type = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    if !response.status().is_server_error() || !media_type.starts_with("application/problem+json") {
        return None;
    }
    let body = Limited::new(response.into_body(), MAX_PROBLEM).collect();
    let body: Bytes = timeout(PATIENCE, body).await.ok()?.ok()?.to_bytes();
    let problem: Problem = serde_json::from_slice(&body).ok()?;
    problem.detail.or(problem.title)
}

/// The part of a problem (RFC 9457) that is for people.
#[derive(Deserialize)]
struct Problem {
    detail: Option<String>,
    title: Option<String>,
}

/// What is wrong with an app that was loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AppError {
    /// A component has no instance.
    #[error("component {component} cannot be instantiated: {reason}")]
    Instantiation { component: String, reason: String },
    /// A component on a schedule says so.
    #[error("component {component}, which is on a schedule: {reason}")]
    Schedule { component: String, reason: String },
    /// In the words of the app, a line for each thing that is wrong.
    #[error("{0}")]
    Problem(String),
    /// A variable made an allow-list wrong.
    #[error("allowed_outbound_hosts of component {component}: {fault}")]
    AllowList {
        component: String,
        fault: AllowListError,
    },
}
