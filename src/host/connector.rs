//! Connections to others: looking up names, connecting, and the proxy that may be in between.

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;
use tower_service::Service;

/// Each of the three timeouts of a request, unless the component sets it: Spin's.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_mins(10);

/// How long a connection may be idle before the system probes it, how long between two probes, and how many of them may
/// stay without an answer: a dead one is found in a minute, and a firewall in between does not forget a living one.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 3;

/// The variables that may hold the proxy: the first that is set counts, as in curl.
const PROXY_NAMES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

tokio::task_local! {
    /// The connect timeout of the request that this task sends: the client has no other way to pass it on.
    static CONNECT_TIMEOUT: Duration;
}

/// Sends a request, for which a connection has to be made within this time.
pub(crate) async fn within<T>(limit: Duration, sending: impl Future<Output = T>) -> T {
    CONNECT_TIMEOUT.scope(limit, sending).await
}

/// The proxy that encrypted requests go through, and for whom not. What is sent in clear is for this machine or its next
/// neighbours, such as the endpoint of a managed identity, and goes there directly.
#[derive(Debug, Clone)]
pub(crate) struct Proxy(Arc<Matcher>);

impl Proxy {
    /// The proxy that these variables name: `HTTPS_PROXY` or `ALL_PROXY`, and `NO_PROXY`, each also in small letters.
    ///
    /// # Errors
    ///
    /// The value is of no use. The error does not hold it, because it may have a password.
    pub(crate) fn of(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxyError> {
        let mut named = PROXY_NAMES
            .into_iter()
            .filter_map(|name| Some((name, variable(name)?)));
        let Some((name, proxy)) = named.next().filter(|(_, proxy)| !proxy.is_empty()) else {
            return Ok(None);
        };
        let anything = Uri::from_static("https://anything.test");
        let found = Matcher::builder().https(proxy.as_str()).build();
        let found = found.intercept(&anything);
        if found.is_none_or(|it| it.uri().scheme_str() != Some("http")) {
            return Err(ProxyError { name });
        }
        let exceptions = variable("NO_PROXY").or_else(|| variable("no_proxy"));
        let matcher = Matcher::builder()
            .https(proxy)
            .no(exceptions.unwrap_or_default());
        Ok(Some(Self(Arc::new(matcher.build()))))
    }

    /// The way through it, if that is the way to `uri`.
    fn tunnel(&self, uri: &Uri, tcp: &Tcp) -> Option<Tunnel<Tcp>> {
        let proxy = self.0.intercept(uri)?;
        let tunnel = Tunnel::new(proxy.uri().clone(), tcp.clone());
        Some(match proxy.basic_auth() {
            Some(authorization) => tunnel.with_auth(authorization.clone()),
            None => tunnel,
        })
    }
}

/// A variable of the environment names no proxy that can be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} of the environment is no proxy for this host: set it to http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT"
)]
pub(crate) struct ProxyError {
    name: &'static str,
}

type Tcp = HttpConnector<Resolver>;

/// Looks a name up and connects, through the proxy if there is one, within the request's connect timeout. TLS comes after,
/// within the first-byte timeout.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    tcp: Tcp,
    proxy: Option<Proxy>,
}

impl Connector {
    /// Connections through this proxy, or else none.
    pub(crate) fn new(proxy: Option<Proxy>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_keepalive_interval(Some(KEEP_ALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEP_ALIVE_PROBES));
        Self { tcp, proxy }
    }
}

impl Service<Uri> for Connector {
    type Response = <Tcp as Service<Uri>>::Response;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let limit = CONNECT_TIMEOUT.try_with(|limit| *limit);
        let limit = limit.unwrap_or(DEFAULT_TIMEOUT);
        let proxy = self.proxy.as_ref();
        let mut tcp = self.tcp.clone();
        let tunnel = proxy.and_then(|it| it.tunnel(&uri, &tcp));
        Box::pin(async move {
            let connecting =
                async {
                    match tunnel {
                    Some(mut tunnel) => tunnel.call(uri).await.map_err(|error| {
                        let reason = causes(&error).last().map(ToString::to_string);
                        tracing::warn!(
                            "the proxy that the environment names (HTTPS_PROXY) cannot be used: {}",
                            reason.unwrap_or_default()
                        );
                        ConnectError::Proxy
                    }),
                    None => tcp.call(uri).await.map_err(|error| ConnectError::of(&error)),
                }
                };
            let connected = timeout(limit, connecting).await;
            connected.unwrap_or(Err(ConnectError::Timeout))
        })
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("name lookup failed")]
    Dns,
    #[error("timed out")]
    Timeout,
    #[error("no route")]
    Unavailable,
    #[error("refused")]
    Refused,
    #[error("no way through the proxy")]
    Proxy,
}

impl ConnectError {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut known = causes(error);
        known
            .find_map(|cause| {
                if let Some(it) = cause.downcast_ref::<Self>() {
                    return Some(*it);
                }
                cause
                    .downcast_ref::<io::Error>()
                    .map(|error| match error.kind() {
                        io::ErrorKind::TimedOut => Self::Timeout,
                        io::ErrorKind::AddrNotAvailable => Self::Dns, // as in Spin
                        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                            Self::Unavailable
                        }
                        _ => Self::Refused,
                    })
            })
            .unwrap_or(Self::Refused)
    }
}

/// An error and what caused it. What an `io::Error` wraps counts too: its `source` skips one.
pub(crate) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn StdError + 'static) = *error;
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// The platform's name lookup, with an error that can be told from others.
#[derive(Debug, Clone)]
pub(crate) struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|_| ConnectError::Dns)?;
            Ok(found.collect::<Vec<_>>().into_iter())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn proxy(variables: &[(&str, &str)]) -> Result<Option<Proxy>, ProxyError> {
        Proxy::of(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn encrypted_requests_go_through_the_proxy_but_for_exceptions() {
        let proxy = proxy(&[
            ("https_proxy", "http://user:secret@proxy.test:3128"),
            ("ALL_PROXY", "http://other.test"),
            ("NO_PROXY", "10.0.0.0/8, .corp.test,localhost"),
        ]);
        let proxy = proxy.unwrap().unwrap();
        let tcp = HttpConnector::new_with_resolver(Resolver);
        for (uri, through) in [
            ("https://login.microsoftonline.com/a", true),
            ("https://vault.corp.test", false),
            ("https://10.1.2.3:8443", false),
            ("https://localhost", false),
            ("http://169.254.169.254/metadata", false),
        ] {
            let tunnel = proxy.tunnel(&uri.parse().unwrap(), &tcp);
            assert_eq!(tunnel.is_some(), through, "{uri}");
        }
        assert!(!format!("{proxy:?}").contains("secret"));
    }

    #[test]
    fn what_is_no_proxy_is_told_without_its_value() {
        assert!(proxy(&[]).unwrap().is_none());
        let off = [("HTTPS_PROXY", ""), ("ALL_PROXY", "http://proxy.test")];
        assert!(proxy(&off).unwrap().is_none());
        for value in [
            "https://secret",
            "socks5://secret",
            "http://",
            "secret word",
        ] {
            let error = proxy(&[("ALL_PROXY", value)]).unwrap_err().to_string();
            assert!(
                error.starts_with("ALL_PROXY of the environment is no proxy"),
                "{error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
