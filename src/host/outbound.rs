//! Outbound HTTP: what a component sends through `wasi:http`, if its allow-list permits (PLATFORMS.md,
//! "Outbound HTTP").
//!
//! One client with one pool of connections serves the whole process: HTTP/1.1 in clear, whatever ALPN agrees on over
//! TLS. No redirects are followed, and nothing is decompressed.

use crate::allow_list::AllowList;
use crate::connector::{self, ConnectError, Connector, DEFAULT_TIMEOUT, Proxy, causes};
use crate::fate::Fate;
use http::header::HOST;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use std::collections::HashSet;
use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// How long an HTTP/2 connection may be silent before the other side is asked whether it is still there, and how long that
/// has to answer: what Azure's SDK for Go does (`azcore`, `transport_default_http_client.go`), for the same services.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);

/// How many denied origins are reported, per component, before silence.
const MAX_REPORTED: usize = 100;

/// The client of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OutboundClient {
    client: Client<HttpsConnector<Connector>, WasiBody>,
}

impl OutboundClient {
    /// A client that trusts these certificate authorities, and sends what is encrypted through this proxy.
    ///
    /// # Errors
    ///
    /// The TLS library refuses its own defaults.
    pub(crate) fn new(roots: RootCertStore, proxy: Option<Proxy>) -> Result<Self, rustls::Error> {
        let tls =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(Connector::new(proxy));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .http2_keep_alive_while_idle(true)
            .build(connector);
        Ok(Self { client })
    }

    /// Sends a request, whatever it is for: what a component may send [`Outbound`] knows.
    pub(crate) async fn send(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let connect = options.connect_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let first_byte = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let between_bytes = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
        let exchange = connector::within(connect, self.client.request(request));
        match timeout(first_byte, exchange).await {
            Ok(Ok(response)) => {
                Ok(response.map(|body| TimedBody::new(body, between_bytes).boxed_unsync()))
            }
            Ok(Err(error)) => Err(code(&error)),
            Err(_) => Err(Error::ConnectionReadTimeout),
        }
    }
}

/// What one component may send, and how.
pub(crate) struct Outbound {
    client: OutboundClient,
    component: Arc<str>,
    allowed: AllowList,
    app: Option<AppDoor>,
    rehearsal: Option<Rehearsal>,
    reported: Mutex<HashSet<String>>,
}

impl Outbound {
    /// Lets `component` send to the origins in `allowed`, and to the app itself through this door.
    pub(crate) fn new(
        client: OutboundClient,
        component: Arc<str>,
        allowed: AllowList,
        app: Option<AppDoor>,
    ) -> Self {
        Self {
            client,
            component,
            allowed,
            app,
            rehearsal: None,
            reported: Mutex::default(),
        }
    }

    /// The same, but what is permitted is only noted, and not sent.
    pub(crate) fn for_rehearsal(&self) -> (Self, Rehearsal) {
        let rehearsal = Rehearsal::default();
        let outbound = Self {
            client: self.client.clone(),
            component: Arc::clone(&self.component),
            allowed: self.allowed.clone(),
            app: self.app.clone(),
            rehearsal: Some(rehearsal.clone()),
            reported: Mutex::default(),
        };
        (outbound, rehearsal)
    }

    /// Whether the component may reach this origin, and does: the end of its way in a rehearsal. `host` is as in a URI.
    ///
    /// # Errors
    ///
    /// It may not, which is told, or does not.
    pub(crate) fn admit(&self, scheme: &str, host: &str, port: Option<u16>) -> Result<(), Refusal> {
        if !self.allowed.permits(scheme, host, port) {
            self.report_denied(&Origin { scheme, host, port });
            return Err(Refusal::Denied);
        }
        self.rehearse()
    }

    fn rehearse(&self) -> Result<(), Refusal> {
        match &self.rehearsal {
            Some(rehearsal) => {
                rehearsal.0.store(true, Ordering::Relaxed);
                Err(Refusal::Rehearsal)
            }
            None => Ok(()),
        }
    }

    async fn send(
        &self,
        mut request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let Some(origin) = Origin::of(request.uri()) else {
            return Err(Error::HttpRequestUriInvalid);
        };
        let app = self.app.as_ref().filter(|_| origin.is_the_app());
        let admitted = match app {
            Some(_) => self.rehearse(),
            None => self.admit(origin.scheme, origin.host, origin.port),
        };
        admitted.map_err(|refusal| match refusal {
            Refusal::Denied => Error::HttpRequestDenied,
            Refusal::Rehearsal => Error::DestinationUnavailable,
        })?;
        // Whoever sends it sets it from the URI where the protocol has it.
        request.headers_mut().remove(HOST);
        match app {
            Some(app) => app.send(request, &options).await,
            None => self.client.send(request, options).await,
        }
    }

    /// Tells once what would have to be allowed.
    fn report_denied(&self, origin: &Origin<'_>) {
        let Origin { scheme, host, port } = origin;
        let origin = port.map_or_else(
            || format!("{scheme}://{host}"),
            |port| format!("{scheme}://{host}:{port}"),
        );
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < MAX_REPORTED && reported.insert(origin.clone()) {
            let component = &self.component;
            tracing::warn!(
                "component {component} may not reach {origin}; if it should, add \"{origin}\" to \
                 allowed_outbound_hosts of [component.{component}]"
            );
        }
    }
}

/// Why a component does not reach an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its allow-list does not have it.
    Denied,
    /// Nothing is sent in a rehearsal.
    Rehearsal,
}

/// Where a request goes, in the words of the very URI that the client will follow.
struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Origin<'a> {
    /// None if it names no host, or hides one behind a user name.
    fn of(uri: &'a Uri) -> Option<Self> {
        let authority = uri
            .authority()
            .filter(|authority| !authority.as_str().contains('@'))?;
        let host = Some(authority.host()).filter(|host| !host.is_empty())?;
        let port = authority.port_u16();
        if port.is_none() && host != authority.as_str() {
            return None; // it has a port, but an impossible one
        }
        Some(Self {
            scheme: uri.scheme_str()?,
            host,
            port,
        })
    }

    fn is_the_app(&self) -> bool {
        let (scheme, host) = APP_ORIGIN.split_once("://").unwrap_or_default();
        self.scheme == scheme && self.host == host && self.port.is_none()
    }
}

/// Whether a component would have sent a request that it may send. All clones are about the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rehearsal(Arc<AtomicBool>);

impl Rehearsal {
    /// Whether it would.
    pub(crate) fn has_sent(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The origin by which a component on a schedule reaches the app that it belongs to: what is sent there is handed over
/// within this process (DESIGN.md, "How does the cron component reach its app?").
pub(crate) const APP_ORIGIN: &str = "http://app.behalf.internal";

/// Answers a request as the app would that came from a client.
pub(crate) type Answering = dyn Fn(Request<WasiBody>) -> Pin<Box<dyn Future<Output = Response<WasiBody>> + Send>>
    + Send
    + Sync;

/// The way to the app, which is made before the app is. All clones lead to the same one.
#[derive(Clone, Default)]
pub(crate) struct AppDoor(Arc<OnceLock<Box<Answering>>>);

impl AppDoor {
    /// Opens it, once.
    pub(crate) fn open(&self, app: Box<Answering>) {
        // Whoever opened it before was the same app.
        let _ = self.0.set(app);
    }

    async fn send(
        &self,
        request: Request<WasiBody>,
        options: &RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let app = self.0.get().ok_or(Error::DestinationUnavailable)?;
        let first_byte = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
        timeout(first_byte, app(request))
            .await
            .map_err(|_| Error::ConnectionReadTimeout)
    }
}

/// An instance's way out.
pub(crate) struct OutboundHooks {
    /// Where it leads.
    pub(crate) outbound: Arc<Outbound>,
    /// What becomes of the instance, and so of what it is sending.
    pub(crate) fate: Fate,
}

/// What becomes of a request after its response: here nothing that could fail, because the client finishes on its own.
type Afterwards = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for OutboundHooks {
    fn set_host_header(&mut self) -> bool {
        false
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_processed: Afterwards,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Afterwards), Error>> + Send> {
        let outbound = Arc::clone(&self.outbound);
        let request = request.map(|body| self.fate.of_body(body));
        Box::new(async move {
            let response = outbound.send(request, options.unwrap_or_default()).await?;
            Ok((response, Box::new(std::future::ready(Ok(()))) as Afterwards))
        })
    }
}

// ---- Failing ---------------------------------------------------------------------------------------------------------

/// The code that tells a component what went wrong. Spin knows only some of these; a component that runs on both had
/// better treat all but `HTTP-request-denied` alike.
fn code(error: &(dyn StdError + 'static)) -> Error {
    causes(error)
        .find_map(code_of_cause)
        .unwrap_or(Error::HttpProtocolError)
}

fn code_of_cause(cause: &(dyn StdError + 'static)) -> Option<Error> {
    if let Some(error) = cause.downcast_ref::<ConnectError>() {
        return Some(match error {
            ConnectError::Dns => Error::DnsError {
                rcode: Some("address not available".to_owned()),
                info_code: Some(0),
            },
            ConnectError::Timeout => Error::ConnectionTimeout,
            ConnectError::Unavailable | ConnectError::Proxy => Error::DestinationUnavailable,
            ConnectError::Refused => Error::ConnectionRefused,
        });
    }
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(match error {
            rustls::Error::InvalidCertificate(_) => Error::TlsCertificateError,
            rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
                alert_id: Some(u8::from(*alert)),
                alert_message: Some(format!("{alert:?}")),
            },
            _ => Error::TlsProtocolError,
        });
    }
    // The component's own request body broke its promise.
    if let Some(Error::HttpRequestBodySize(size)) = cause.downcast_ref::<Error>() {
        return Some(Error::HttpRequestBodySize(*size));
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let terminated = matches!(
            error.kind(),
            ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof
        );
        return terminated.then_some(Error::ConnectionTerminated);
    }
    match cause.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_incomplete_message() => Some(Error::HttpResponseIncomplete),
        Some(error) if error.is_parse_too_large() => {
            Some(Error::HttpResponseHeaderSectionSize(None))
        }
        Some(error) if error.is_parse() || error.is_parse_status() => {
            Some(Error::HttpProtocolError)
        }
        Some(_) | None => None,
    }
}

// ---- Reading ---------------------------------------------------------------------------------------------------------

/// A response body that fails if nothing comes for too long.
struct TimedBody<B> {
    /// None after a timeout, which also drops the connection.
    body: Option<B>,
    limit: Duration,
    /// Runs while nothing comes.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<B> TimedBody<B> {
    fn new(body: B, limit: Duration) -> Self {
        Self {
            body: Some(body),
            limit,
            sleep: None,
        }
    }
}

impl<B: Body<Error = hyper::Error> + Unpin> Body for TimedBody<B> {
    type Data = B::Data;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            self.sleep = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| code(&error))));
        }
        let limit = self.limit;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(sleep.as_mut().poll(context));
        self.body = None;
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn outbound(allowed: &[&str]) -> Outbound {
        let entries: Vec<_> = allowed
            .iter()
            .map(|it| crate::variables::Template::parse(it).unwrap())
            .collect();
        let variables =
            crate::variables::Variables::new([].into(), crate::variables::Environment::default());
        let allowed = AllowList::resolve(&entries, &variables).unwrap();
        Outbound::new(
            OutboundClient::new(RootCertStore::empty(), None).unwrap(),
            "c".into(),
            allowed,
            None,
        )
    }

    fn get(uri: &str) -> Request<WasiBody> {
        let body = Full::new(Bytes::new())
            .map_err(|never| match never {})
            .boxed_unsync();
        Request::get(uri)
            .header(HOST, "forged.test")
            .body(body)
            .unwrap()
    }

    async fn send(
        outbound: &Outbound,
        uri: &str,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        outbound.send(get(uri), options).await
    }

    /// A server that answers each connection with `answer` and then stays silent; returns its address and what it read.
    async fn server(
        answer: &'static [u8],
    ) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, hearing) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let heard = heard.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    loop {
                        let read = stream.read(&mut buffer).await.unwrap_or(0);
                        if read == 0 {
                            return;
                        }
                        let _ = heard.send(
                            String::from_utf8_lossy(buffer.get(..read).unwrap()).into_owned(),
                        );
                        stream.write_all(answer).await.unwrap();
                        if answer.is_empty() {
                            return; // hangs up
                        }
                    }
                });
            }
        });
        (address, hearing)
    }

    const OK: &[u8] = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\r\nok";

    #[tokio::test]
    async fn a_permitted_request_is_answered() {
        let (address, mut heard) = server(OK).await;
        let outbound = outbound(&["http://127.0.0.1:*"]);
        for _ in 0..2 {
            let response = send(
                &outbound,
                &format!("http://{address}/a?b"),
                RequestOptions::default(),
            )
            .await
            .unwrap();
            assert_eq!(
                response.status(),
                302,
                "redirects are the component's business"
            );
            assert_eq!(
                response.into_body().collect().await.unwrap().to_bytes(),
                "ok"
            );
            let request = heard.recv().await.unwrap();
            assert!(request.starts_with("GET /a?b HTTP/1.1\r\n"), "{request}");
            assert!(
                request.contains(&format!("host: {address}\r\n")) && !request.contains("forged"),
                "{request}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_not_permitted_is_denied() {
        let outbound = outbound(&["http://127.0.0.1:1", "https://a.test"]);
        for uri in [
            "http://127.0.0.1:2/",
            "https://127.0.0.1:1/",
            "http://a.test/",
            "https://b.test/",
            "http://[::1]:1/",
        ] {
            let denied = send(&outbound, uri, RequestOptions::default()).await;
            assert!(matches!(denied, Err(Error::HttpRequestDenied)), "{uri}");
        }
        assert_eq!(outbound.reported.lock().unwrap().len(), 5);
        for uri in [
            "http://a.test@127.0.0.1:1/",
            "/relative",
            "http://127.0.0.1:99999/",
        ] {
            let Ok(uri) = uri.parse::<Uri>() else {
                continue;
            };
            assert!(Origin::of(&uri).is_none(), "{uri}");
        }
    }

    #[tokio::test]
    async fn the_app_is_reached_through_its_door_alone() {
        let none = RequestOptions::default();
        let allowed = AllowList::default();
        let client = OutboundClient::new(RootCertStore::empty(), None).unwrap();
        let denied = Outbound::new(client.clone(), "c".into(), allowed.clone(), None);
        let url = format!("{APP_ORIGIN}/a");
        let answer = send(&denied, &url, none).await;
        assert!(matches!(answer, Err(Error::HttpRequestDenied)));

        let door = AppDoor::default();
        let outbound = Outbound::new(client, "c".into(), allowed, Some(door.clone()));
        let early = send(&outbound, &url, none).await;
        assert!(matches!(early, Err(Error::DestinationUnavailable)));
        door.open(Box::new(|request| {
            let text = format!("{} {:?}", request.uri(), request.headers().get(HOST));
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            Box::pin(std::future::ready(Response::new(body.boxed_unsync())))
        }));
        let response = send(&outbound, &url, none).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, format!("{url} None"));
        for other in [
            "https://app.behalf.internal/",
            "http://app.behalf.internal:80/",
            "http://a.app.behalf.internal/",
        ] {
            let answer = send(&outbound, other, none).await;
            assert!(matches!(answer, Err(Error::HttpRequestDenied)), "{other}");
        }
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let outbound = outbound(&["*://*:*"]);
        let quick = Some(Duration::from_millis(200));
        let first_byte = RequestOptions {
            first_byte_timeout: quick,
            ..RequestOptions::default()
        };
        let between_bytes = RequestOptions {
            between_bytes_timeout: quick,
            ..RequestOptions::default()
        };
        let none = RequestOptions::default();

        let free = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let (silent, _heard) = server(b"HTTP/1.1 ").await;
        let (cut, _heard) = server(b"").await;
        let (half, _heard) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        let (junk, _heard) = server(b"this is no HTTP at all\r\n\r\n").await;
        for (uri, options, expected) in [
            (format!("http://{free}/"), none, "ConnectionRefused"),
            ("http://nowhere.invalid/".to_owned(), none, "DnsError"),
            (
                format!("http://{silent}/"),
                first_byte,
                "ConnectionReadTimeout",
            ),
            (format!("https://{silent}/"), first_byte, "TlsProtocolError"),
            (format!("http://{cut}/"), none, "HttpResponseIncomplete"),
            (format!("http://{junk}/"), none, "HttpProtocolError"),
        ] {
            let Err(error) = send(&outbound, &uri, options).await else {
                panic!("{uri} answered")
            };
            assert!(
                format!("{error:?}").starts_with(expected),
                "{uri}: {error:?}"
            );
        }
        let body = send(&outbound, &format!("http://{half}/"), between_bytes)
            .await
            .unwrap()
            .into_body();
        let error = body.collect().await.unwrap_err();
        assert!(matches!(error, Error::ConnectionReadTimeout), "{error:?}");
    }

    #[tokio::test]
    async fn connecting_has_its_own_timeout() {
        // A listener whose backlog is full does not answer: connections beyond it wait.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut backlog = Vec::new();
        while let Ok(Ok(stream)) = timeout(
            Duration::from_millis(300),
            tokio::net::TcpStream::connect(address),
        )
        .await
        {
            backlog.push(stream);
        }
        let options = RequestOptions {
            connect_timeout: Some(Duration::from_millis(200)),
            ..RequestOptions::default()
        };
        let error = send(
            &outbound(&["http://127.0.0.1:*"]),
            &format!("http://{address}/"),
            options,
        )
        .await
        .err();
        assert!(matches!(error, Some(Error::ConnectionTimeout)), "{error:?}");
    }

    #[test]
    fn an_io_error_hides_no_cause() {
        let certificate =
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, certificate));
        assert!(matches!(code(&error), Error::TlsCertificateError));
    }
}
