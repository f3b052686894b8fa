//! Certificates and keys in PEM files.

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// What to serve HTTPS with, HTTP/2 before HTTP/1.1.
///
/// # Errors
///
/// A file cannot be read, or the two do not belong together.
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, PemError> {
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
