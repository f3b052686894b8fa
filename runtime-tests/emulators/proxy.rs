//! A proxy that ends at the emulators: clients that insist on `https://login.microsoftonline.com` get it.
//!
//! It takes `CONNECT` for the real names of the three systems, and terminates TLS with a certificate of an authority that
//! is made at the start and trusted by nobody but the client under test, which is told to.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::server::serve_connection;

/// What answers under which name.
pub(crate) struct Upstreams {
    pub(crate) login: Router,
    pub(crate) key_vault: Router,
    pub(crate) graph: Router,
}

impl Upstreams {
    fn find(&self, host: &str) -> Option<&Router> {
        match host {
            "login.microsoftonline.com" => Some(&self.login),
            "graph.microsoft.com" => Some(&self.graph),
            _ => host
                .strip_suffix(".vault.azure.net")
                .filter(|vault| !vault.contains('.'))
                .map(|_| &self.key_vault),
        }
    }
}

/// A proxy for clients that insist on the real names, on a port of 127.0.0.1; stops when dropped.
pub struct Proxy {
    address: SocketAddr,
    authority: String,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(upstreams: Upstreams) -> anyhow::Result<Self> {
        let (authority, acceptor) = authority()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let upstreams = Arc::new(upstreams);
        let task = tokio::spawn(async move {
            // Dropped with this future, so that no connection outlives the proxy.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let (acceptor, upstreams) = (acceptor.clone(), upstreams.clone());
                        connections.spawn(async move {
                            // An error here is a client that went away, or one that does not trust the authority.
                            let _ = tunnel(stream, acceptor, &upstreams).await;
                        });
                    }
                    Some(_) = connections.join_next(), if !connections.is_empty() => {}
                }
            }
        });
        Ok(Self {
            address,
            authority,
            task,
        })
    }

    /// What `HTTPS_PROXY` is to be.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes the certificate that the client under test, and nobody else, is to trust, in PEM.
    pub fn write_authority(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, &self.authority)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A new authority, and TLS with a certificate that it signed for the real names.
fn authority() -> anyhow::Result<(String, TlsAcceptor)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "behalf emulators");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(
        [
            "login.microsoftonline.com",
            "*.vault.azure.net",
            "graph.microsoft.com",
        ]
        .map(str::to_owned),
    )?;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &authority)?;

    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )?;
    Ok((authority.pem(), TlsAcceptor::from(Arc::new(config))))
}

async fn tunnel(
    mut stream: TcpStream,
    acceptor: TlsAcceptor,
    upstreams: &Upstreams,
) -> anyhow::Result<()> {
    // The head of a CONNECT request is short, and nothing follows it before it is answered.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(head.len() < 8192, "a long head");
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let target = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next())
        .and_then(|target| target.strip_suffix(":443"));
    let Some(router) = target.and_then(|host| upstreams.find(host)) else {
        stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            .await?;
        anyhow::bail!("not one of ours: {head}");
    };
    stream
        .write_all(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        .await?;
    serve_connection(acceptor.accept(stream).await?, router.clone()).await;
    Ok(())
}
