//! Serving HTTP/1.1, and stopping so that nothing is cut short.

use crate::app::App;
use crate::console;
use crate::instance::Lifetime;
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use wasmtime_wasi_http::Error;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

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
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>, lifetime: &Lifetime) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifetime.stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, client)) => {
                lifetime.at_work.spawn(connection(
                    stream,
                    client,
                    Arc::clone(&app),
                    lifetime.clone(),
                ));
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                console::warn(format_args!("cannot accept connections: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, app: Arc<App>, lifetime: Lifetime) {
    // A response's head and body are two writes; without this the second waits 40 ms for the client's delayed
    // acknowledgement (facts/spin.md, "Measured").
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let app = Arc::clone(&app);
        async move {
            let request = request.map(|body| body.map_err(Error::from).boxed_unsync());
            Ok::<_, Infallible>(app.handle(request, client).await)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    // Errors are the client's: it went away, or sent what is no HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = lifetime.stopping.cancelled() => connection.as_mut().graceful_shutdown(),
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
