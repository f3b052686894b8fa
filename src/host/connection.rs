//! One client's connection: HTTP/1 or HTTP/2, in clear or over TLS, with a limit for whatever the client can delay, and an
//! end that cuts nothing short.

use crate::app::{App, Peer};
use crate::life::Lifetime;
use crate::talk::{Patience, Talk, Verdict};
use crate::wire::Wire;
use http::header::{CONNECTION, HeaderValue};
use http::uri::Scheme;
use http::{Request, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use wasmtime_wasi_http::Error;

/// The longest head of a request, in bytes, give or take what was read with its end; a longer one is answered with 431.
const MAX_HEAD: usize = 64 * 1024;

/// The most header fields of a request; more are answered with 431.
const MAX_HEADERS: usize = 128;

/// How many requests one HTTP/2 connection may have in hand.
const MAX_STREAMS: u32 = 128;

/// How often a silent HTTP/2 client is asked whether it is still there; it has as long again to answer.
const PING: Duration = Duration::from_secs(30);

/// How long a client that has just come has for its first request when the process stops.
const LAST_CALL: Duration = Duration::from_secs(1);

/// What all connections have in common.
pub(crate) struct Server {
    app: Arc<App>,
    lifetime: Lifetime,
    patience: Patience,
    http: auto::Builder<TokioExecutor>,
}

impl Server {
    /// Serves `app` to clients that keep nobody waiting for longer than `patience`.
    pub(crate) fn new(app: Arc<App>, patience: Patience, lifetime: Lifetime) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            // How long a head may take is this module's business, from the first byte on.
            .header_read_timeout(None)
            // A client that has said all may close its side.
            .half_close(true)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        Self {
            app,
            lifetime,
            patience,
            http,
        }
    }

    /// Serves a connection to its end.
    pub(crate) async fn serve(
        &self,
        stream: TcpStream,
        peer: Peer,
        tls: Option<Arc<ServerConfig>>,
        talk: Arc<Talk>,
    ) {
        // A response's head and body are two writes; without this the second waits 40 ms for the client's delayed
        // acknowledgement.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return self.requests(stream, Scheme::HTTP, peer, talk).await;
        };
        let opening = timeout(self.patience.head, TlsAcceptor::from(tls).accept(stream));
        let opened = tokio::select! {
            opened = opening => opened,
            () = talk.asked_to_leave() => return,
            () = self.lifetime.stopping.cancelled() => return,
        };
        // Else it is the client's fault: it sent nothing, or no TLS.
        if let Ok(Ok(stream)) = opened {
            self.requests(stream, Scheme::HTTPS, peer, talk).await;
        }
    }

    async fn requests(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        scheme: Scheme,
        peer: Peer,
        talk: Arc<Talk>,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let (app, scheme, lifetime) =
                (Arc::clone(&self.app), scheme.clone(), self.lifetime.clone());
            let is_http2 = request.version() == Version::HTTP_2;
            let in_hand = talk.begin(is_http2);
            async move {
                let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
                let mut response = app.answer(request, scheme, peer).await;
                if !is_http2 && lifetime.leaving.is_cancelled() {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response.map(|body| in_hand.answer(body)))
            }
        });
        let lifetime = &self.lifetime;
        let stream = Wire::new(stream, Arc::clone(&talk), lifetime.stopping.clone());
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        // Who came when clients were being sent away already is sent away at the stop.
        let mut leaving = lifetime.leaving.is_cancelled();
        let (mut stopping, mut dismissed) = (false, false);
        let mut next = Instant::now();
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tell(error.as_ref());
                    }
                    return;
                }
                () = talk.asked_to_leave() => return,
                () = lifetime.leaving.cancelled(), if !leaving => {
                    leaving = true;
                    // In HTTP/1 the next answer says it, and who sends a request meanwhile is not turned away.
                    if talk.is_http2() {
                        connection.as_mut().graceful_shutdown();
                    }
                }
                () = lifetime.stopping.cancelled(), if !stopping => {
                    stopping = true;
                    next = Instant::now();
                    if !talk.has_begun() {
                        next = next.checked_add(LAST_CALL).unwrap_or(next);
                    }
                }
                () = sleep_until(next.into()) => match talk.judge(&self.patience, Instant::now()) {
                    Verdict::Stay(_) if stopping && !dismissed => {
                        dismissed = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Verdict::Stay(until) => next = until,
                    Verdict::Leave if !dismissed => {
                        dismissed = true;
                        connection.as_mut().graceful_shutdown();
                        next = Instant::now().checked_add(self.patience.head).unwrap_or(next);
                    }
                    Verdict::Leave | Verdict::Cut => return,
                },
            }
        }
    }
}

/// Tells of a request that was refused before it was one. Everything else is the client's business: it went away.
fn tell(error: &(dyn StdError + 'static)) {
    let Some(error) = error.downcast_ref::<hyper::Error>() else {
        return;
    };
    if error.is_parse_too_large() {
        tracing::info!(status = 431_u64, "refused a request: its head is too large");
    } else if error.is_parse() {
        tracing::info!(status = 400_u64, "refused a request: it is no HTTP");
    }
}
