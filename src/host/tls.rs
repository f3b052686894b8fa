//! Certificates and keys in PEM files: what is read once, and what HTTPS is served with, which is read again when it
//! changes.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The certificates in a file, one at least.
///
/// # Errors
///
/// It cannot be read, or holds none.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let fail = |reason: String| PemError {
        file: file.to_owned(),
        reason,
    };
    let found = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fail(format!("cannot read certificates: {error}")))?;
    if found.is_empty() {
        return Err(fail("holds no certificate in PEM".to_owned()));
    }
    Ok(found)
}

/// What HTTPS is served with.
#[derive(Debug)]
pub(crate) struct ServerIdentity {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Arc<ServerConfig>>,
}

impl ServerIdentity {
    /// Reads a certificate, with those above it, and the key that belongs to it.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or the two do not belong together.
    pub(crate) fn new(certificate: &Path, key: &Path) -> Result<Self, PemError> {
        let current = read(certificate, key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: Mutex::new(current),
        })
    }

    /// What the next connection is served with.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        let current = self.current.lock();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again when they change, and when `asked`, for as long as this future lives. Those that are of no use
    /// change nothing, and are told.
    pub(crate) async fn follow(&self, asked: &Notify) {
        let mut seen = self.stamp();
        loop {
            let forced = tokio::time::timeout(LOOK, asked.notified()).await.is_ok();
            let stamp = self.stamp();
            if !forced && stamp == seen {
                continue;
            }
            // Before reading: what changes meanwhile is seen the next time.
            seen = stamp;
            match read(&self.certificate, &self.key) {
                Ok(fresh) => {
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                    tracing::info!("the certificate was read again, and is served from now on");
                }
                Err(error) => {
                    tracing::warn!("{error}; the certificate that was read before stays in use");
                }
            }
        }
    }

    /// What changes when a file does. A file that is not there has none.
    fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.certificate, &self.key].map(|file| {
            let found = fs::metadata(file).ok()?;
            Some((found.modified().ok()?, found.len()))
        })
    }
}

/// HTTP/2 before HTTP/1.1.
fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, PemError> {
    let fail = |file: &Path, reason: String| PemError {
        file: file.to_owned(),
        reason,
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| fail(key, format!("cannot read a private key: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|it| it.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| fail(key, format!("does not fit the certificate: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .file.display())]
pub(crate) struct PemError {
    file: PathBuf,
    reason: String,
}

// ---- Asking ----------------------------------------------------------------------------------------------------------

/// The platform's certificate authorities (or those in `SSL_CERT_FILE`) and Mozilla's, as Spin trusts them, and these.
///
/// # Errors
///
/// One of these is of no use.
pub(crate) fn roots(
    authorities: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    // A certificate that cannot be read is one authority less to trust; there may be none at all in a container.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for authority in authorities {
        roots.add(authority)?;
    }
    Ok(roots)
}

/// For a client that takes the first of these certificates from its server, for whatever name, and no other.
///
/// # Errors
///
/// The TLS library refuses its own defaults.
pub(crate) fn pinned(
    certificates: Vec<CertificateDer<'static>>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(default_provider());
    let pin = Pin {
        certificate: certificates.into_iter().next(),
        algorithms: provider.signature_verification_algorithms,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pin))
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct Pin {
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.as_deref() == Some(presented.as_ref()) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
