//! `behalf healthcheck`.

use super::Failure;
use super::values::{duration, listen_address, path};
use crate::tls::{self, pinned};
use clap::Args;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf healthcheck                             the host on 127.0.0.1:3000
  behalf healthcheck --path /readyz              the app, and what it needs
  behalf healthcheck --listen 0.0.0.0:443 --tls-cert cert.pem

Exit codes: 0 it answers well, 1 it does not, 2 the command line is wrong.";

/// The options of `behalf healthcheck`.
#[derive(Debug, Args)]
pub(super) struct Healthcheck {
    /// The address that `behalf up` listens on; of all addresses, this machine's own is asked.
    #[arg(long, value_name = "ADDR", env = "SPIN_HTTP_LISTEN_ADDR", default_value = "127.0.0.1:3000", value_parser = listen_address)]
    listen: SocketAddr,

    /// The certificate that it serves HTTPS with: no other is accepted, whatever name it is for.
    #[arg(long, value_name = "FILE", env = "SPIN_TLS_CERT")]
    tls_cert: Option<PathBuf>,

    /// What to ask for. By default the host answers itself; the app has /readyz.
    #[arg(long, value_name = "PATH", default_value = "/.well-known/spin/health", value_parser = path)]
    path: String,

    /// How long the answer may take.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

impl Healthcheck {
    /// Asks.
    pub(super) async fn run(self) -> Result<(), Failure> {
        match tokio::time::timeout(self.timeout, self.ask()).await {
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) => Err(Unhealthy::Status(status).into()),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Unhealthy::Silent(self.timeout).into()),
        }
    }

    async fn ask(&self) -> Result<StatusCode, Failure> {
        let mut address = self.listen;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let unreachable = |error: &dyn std::fmt::Display| Unhealthy::Unreachable {
            address,
            reason: error.to_string(),
        };
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| unreachable(&error))?;
        let status = match &self.tls_cert {
            None => self.status(address, stream).await,
            Some(file) => {
                let config =
                    pinned(tls::certificates(file)?).map_err(|error| unreachable(&error))?;
                let stream = TlsConnector::from(Arc::new(config))
                    .connect(address.ip().into(), stream)
                    .await
                    .map_err(|error| unreachable(&error))?;
                self.status(address, stream).await
            }
        };
        Ok(status.map_err(|error| unreachable(&error))?)
    }

    async fn status(
        &self,
        address: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> hyper::Result<StatusCode> {
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::new(Empty::<bytes::Bytes>::new());
        // Both were read as what they are.
        if let (Ok(uri), Ok(host)) = (self.path.parse(), address.to_string().parse()) {
            *request.uri_mut() = uri;
            request.headers_mut().insert(HOST, host);
        }
        Ok(send.send_request(request).await?.status())
    }
}

/// How a host is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unhealthy {
    /// There is no answer.
    #[error("{address} does not answer: {reason}")]
    Unreachable { address: SocketAddr, reason: String },
    /// There is none in time.
    #[error("there was no answer within the {0:?} of --timeout")]
    Silent(Duration),
    /// There is another.
    #[error("the answer was {0}")]
    Status(StatusCode),
}
