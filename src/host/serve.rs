//! Serving HTTP/1.1 and HTTP/2, in clear or over TLS, and stopping so that nothing is cut short.
//!
//! In clear, a client that speaks HTTP/2 says so with its first bytes (RFC 9113 §3.3); over TLS, ALPN does.

use crate::app::App;
use crate::console;
use crate::instance::Lifetime;
use http::uri::Scheme;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wasmtime_wasi_http::Error;

/// How long a client may take to agree on TLS, and to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest head of a request, in bytes, give or take what was read with its end; a longer one is answered with 431.
const MAX_HEAD: usize = 64 * 1024;

/// The most header fields of a request; more are answered with 431.
const MAX_HEADERS: usize = 128;

/// How long a client may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(5);

/// How many requests one HTTP/2 connection may have in hand.
const MAX_STREAMS: u32 = 128;

/// How often a silent HTTP/2 client is asked whether it is still there; it has as long again to answer.
const PING: Duration = Duration::from_secs(30);

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long to wait for the rest of it.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);

/// How long to wait before accepting again when the system has no more sockets for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address`.
///
/// # Errors
///
/// It cannot be bound; the error says what to do.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(address),
            io::ErrorKind::PermissionDenied => BindError::NotPermitted(address),
            _ => BindError::Other {
                address,
                reason: error.to_string(),
            },
        })
}

/// Why an address cannot be bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Somebody else has it.
    #[error("another program listens on {0}; stop it, or choose another address with --listen")]
    InUse(SocketAddr),
    /// It is privileged.
    #[error("this user may not listen on {0}; choose a port above 1023 with --listen")]
    NotPermitted(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}: {reason}; choose another address with --listen")]
    Other { address: SocketAddr, reason: String },
}

/// Serves `app` until `lifetime` says to stop, or this future is dropped. Connections go on until the request that they
/// carry has been answered; `lifetime` knows which are still at work.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    app: Arc<App>,
    lifetime: &Lifetime,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifetime.stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, client)) => {
                let (tls, app) = (tls.clone(), Arc::clone(&app));
                lifetime
                    .at_work
                    .spawn(connection(stream, client, tls, app, lifetime.clone()));
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                console::warn(format_args!("cannot accept connections: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Lets this process have as many connections open as the system allows it to have.
pub(crate) fn allow_many_connections() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        // If not, there are fewer.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    app: Arc<App>,
    lifetime: Lifetime,
) {
    // A response's head and body are two writes; without this the second waits 40 ms for the client's delayed
    // acknowledgement (RFC 1122 §4.2.3.2; PLATFORMS.md, "HTTP trigger").
    let _ = stream.set_nodelay(true);
    // What comes before the first request is given up at a stop.
    let opening = async {
        if let Some(tls) = tls {
            let stream = TlsAcceptor::from(tls).accept(stream).await.ok()?;
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some(Opened::Encrypted(Box::new(stream), is_http2))
        } else {
            let is_http2 = begins_as_http2(&stream).await.ok()?;
            Some(Opened::Clear(stream, is_http2))
        }
    };
    let opened = tokio::select! {
        opened = timeout(HEAD_TIMEOUT, opening) => opened,
        () = lifetime.stopping.cancelled() => return,
    };
    match opened {
        Ok(Some(Opened::Clear(stream, is_http2))) => {
            requests(stream, is_http2, Scheme::HTTP, client, app, &lifetime).await;
        }
        Ok(Some(Opened::Encrypted(stream, is_http2))) => {
            requests(stream, is_http2, Scheme::HTTPS, client, app, &lifetime).await;
        }
        // The client's fault: it sent nothing, or no TLS.
        Ok(None) | Err(_) => {}
    }
}

/// A connection, and whether HTTP/2 is spoken on it.
enum Opened {
    Clear(TcpStream, bool),
    Encrypted(Box<tokio_rustls::server::TlsStream<TcpStream>>, bool),
}

/// Whether the first bytes, which stay to be read, are those of HTTP/2.
async fn begins_as_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut buffer = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut buffer).await?;
        let begun = buffer.get(..length).unwrap_or_default();
        if begun == PREFACE {
            return Ok(true);
        }
        if length == 0 || !PREFACE.starts_with(begun) {
            return Ok(false);
        }
        // No HTTP/1.1 request begins so; the rest is on its way.
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    is_http2: bool,
    scheme: Scheme,
    client: SocketAddr,
    app: Arc<App>,
    lifetime: &Lifetime,
) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (app, scheme) = (Arc::clone(&app), scheme.clone());
        async move {
            let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
            Ok::<_, Infallible>(app.handle(request, scheme, client).await)
        }
    });
    let stream = TokioIo::new(stream);
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(stream, service);
        until_stopped(connection, lifetime, http2::Connection::graceful_shutdown).await;
    } else {
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(stream, service);
        until_stopped(&mut connection, lifetime, |connection| {
            Pin::new(&mut **connection.get_mut()).graceful_shutdown();
        })
        .await;
        linger(connection.into_parts().io.into_inner(), lifetime).await;
    }
}

/// Ends a connection so that its last answer arrives: the system takes it back from a client that still sends, unless
/// that is read, too (RFC 9112 §9.6).
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, lifetime: &Lifetime) {
    // If it fails, nobody is there any more.
    let _ = stream.shutdown().await;
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        _ = timeout(LINGER, tokio::io::copy(&mut stream, &mut nowhere)) => {}
        () = lifetime.stopping.cancelled() => {}
    }
}

/// Serves a connection; at a stop until what is in hand is answered.
async fn until_stopped<C: Future>(
    connection: C,
    lifetime: &Lifetime,
    shut_down: impl FnOnce(Pin<&mut C>),
) {
    let mut connection = pin!(connection);
    // Errors are the client's: it went away, or sent what is no HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = lifetime.stopping.cancelled() => shut_down(connection.as_mut()),
    }
    let _ = connection.await;
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bound_address_cannot_be_bound_again() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let message = bind(address).await.unwrap_err().to_string();
        assert_eq!(
            message,
            format!(
                "another program listens on {address}; stop it, or choose another address with --listen"
            )
        );
    }
}
