//! Where clients arrive: listening, and how many there may be.

use crate::app::Peer;
use crate::connection::Server;
use crate::crowd::Crowd;
use crate::life::Lifetime;
use crate::talk::Talk;
use crate::tls::ServerIdentity;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// How long to wait before accepting again when the system has no more sockets for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long at a stop those are taken in that the system has let in already.
const LATECOMERS: Duration = Duration::from_millis(20);

/// Open files that are not for clients: the store, connections to others, and what starts.
const OTHER_FILES: u64 = 128;

/// So many connections at most, unless the command line says otherwise; each needs some 20 KiB.
const MOST_CONNECTIONS: u64 = 10_000;

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

/// Serves clients until `lifetime` says to stop, or this future is dropped. Connections go on until the request that they
/// carry has been answered; `lifetime` knows which are still at work.
pub(crate) async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    identity: Option<&ServerIdentity>,
    crowd: Crowd,
    lifetime: &Lifetime,
) {
    let mut reserve = Reserve::new();
    let welcome = |(stream, client): (TcpStream, SocketAddr)| {
        let talk = Talk::new();
        let local = stream.local_addr().or_else(|_| listener.local_addr());
        if !crowd.enter(&talk) {
            tracing::warn!("a connection was closed: all of --max-connections are at work");
        } else if let Ok(local) = local {
            let (server, tls) = (Arc::clone(&server), identity.map(ServerIdentity::current));
            let peer = Peer { client, local };
            let serving = async move { server.serve(stream, peer, tls, talk).await };
            lifetime.at_work.spawn(serving);
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifetime.stopping.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => welcome(accepted),
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!("cannot accept connections: {error}");
                if !crowd.make_room() {
                    reserve.turn_one_away(&listener).await;
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whom the system has let in already would be reset.
    let rest = async {
        while let Ok(accepted) = listener.accept().await {
            welcome(accepted);
        }
    };
    let _ = tokio::time::timeout(LATECOMERS, rest).await;
}

/// An open file that is of no use but to be closed when no more can be opened. Without it, clients that cannot be accepted
/// would wait for nothing.
struct Reserve(Option<File>);

impl Reserve {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    async fn turn_one_away(&mut self, listener: &TcpListener) {
        self.0 = None;
        if let Ok(accepted) = tokio::time::timeout(ACCEPT_PAUSE, listener.accept()).await {
            drop(accepted);
        }
        *self = Self::new();
    }
}

/// Lets this process have as many files open as the system allows it to have; returns for how many connections that is,
/// unless the command line says otherwise.
pub(crate) fn allow_many_connections() -> usize {
    let files = open_files().unwrap_or(u64::MAX);
    let connections = files
        .saturating_sub(OTHER_FILES)
        .max(files.div_euclid(2))
        .min(MOST_CONNECTIONS);
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// How many files may be open; none: nobody says.
#[cfg(unix)]
fn open_files() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If not, there are fewer.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current
}

#[cfg(not(unix))]
fn open_files() -> Option<u64> {
    None
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
