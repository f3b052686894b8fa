//! Whom connections to PostgreSQL trust: the certificate of a server is verified whenever there is TLS.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Certificate authorities that a component names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authorities(Arc<[CertificateDer<'static>]>);

impl Authorities {
    /// Reads all of a bundle in PEM. (Spin 4.1 reads the first.)
    ///
    /// # Errors
    ///
    /// It holds no certificate, or what is none.
    pub(super) fn parse(pem: &str) -> Result<Self, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let found = found.map_err(|error| error.to_string())?;
        if found.is_empty() {
            return Err("there is no certificate in PEM".to_owned());
        }
        let mut roots = RootCertStore::empty();
        for certificate in &found {
            roots
                .add(certificate.clone())
                .map_err(|error| error.to_string())?;
        }
        Ok(Self(found.into()))
    }
}

/// TLS that trusts `roots`, and these besides.
///
/// # Errors
///
/// The TLS library refuses its own defaults, or one of these.
pub(super) fn tls(
    roots: &RootCertStore,
    besides: Option<&Authorities>,
) -> Result<MakeRustlsConnect, rustls::Error> {
    let mut roots = roots.clone();
    for authority in besides.iter().flat_map(|it| it.0.iter()) {
        roots.add(authority.clone())?;
    }
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
