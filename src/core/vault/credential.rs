//! How this app proves to Entra ID that it is itself: by a secret, or by an assertion (RFC 7523 §2.2).
//!
//! An assertion that this app signs has the certificate's SHA-256 thumbprint in its header and `PS256` as its algorithm
//! (Microsoft Learn, "Microsoft identity platform application authentication certificate credentials",
//! <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>). One of another issuer is sent as it
//! is: Entra ID compares its `iss`, `sub` and `aud` with what the app registration says (Microsoft Learn, "Workload
//! identity federation concepts", <https://learn.microsoft.com/entra/workload-id/workload-identity-federation>).

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::pss::SigningKey;
use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{PrivateKey, pkcs1::DecodeRsaPrivateKey as _, rand_core};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::error::{OperatorError, Reason, SettingFault, VaultError};
use crate::identity::Guid;
use crate::port::Random;
use crate::secret::{ClientAssertion, ClientSecret};

/// Seconds a signed assertion is valid for: Entra ID advises five to ten minutes (the page on certificate credentials).
pub const ASSERTION_SECONDS: u64 = 600;
/// Weakest key accepted, in bits; RSA of this size is what Entra ID takes.
const LEAST_BITS: u32 = 2048;

/// The app's credential: the setting `credential` and what belongs to it.
#[derive(Debug)]
pub enum Credential {
    /// A secret that Entra ID knows, too.
    ClientSecret(ClientSecret),
    /// A key whose certificate Entra ID knows.
    Certificate(Box<Certificate>),
    /// The platform's managed identity, which the app trusts as a federated credential.
    ManagedIdentity,
    /// A token of another issuer, which the app trusts as a federated credential.
    FederatedToken(ClientAssertion),
}

impl Credential {
    /// The setting to look at when it is refused.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        match self {
            Self::ClientSecret(_) => "client_secret",
            Self::Certificate(_) => "certificate_pem",
            Self::ManagedIdentity => "managed_identity_client_id",
            Self::FederatedToken(_) => "federated_token",
        }
    }

    /// The error of its being refused.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> VaultError {
        OperatorError::CredentialRefused {
            setting: self.setting().into(),
            reason,
        }
        .into()
    }
}

/// What a request to Entra ID carries to prove it is this app's.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// `client_secret`.
    Secret(&'a ClientSecret),
    /// `client_assertion`.
    Assertion(&'a ClientAssertion),
}

/// A certificate and its private key.
pub struct Certificate {
    thumbprint: String,
    // Zeroized when dropped. Signing is blinded, with the randomness that is handed in.
    key: SigningKey<Sha256>,
}

impl Certificate {
    /// Reads both from PEM (RFC 7468), each out of whatever else its text holds: the key as PKCS#8 or PKCS#1, and of
    /// the certificates the one that is the key's.
    ///
    /// # Errors
    /// What is expected of each setting at fault.
    pub fn read(certificate_pem: &str, private_key_pem: &str) -> Result<Self, Vec<SettingFault>> {
        let certificates: Vec<_> = blocks(certificate_pem, "CERTIFICATE").collect();
        let mut faults = Vec::new();
        if certificates.is_empty() {
            faults.push(SettingFault::new(
                "certificate_pem",
                "must hold a certificate in PEM: -----BEGIN CERTIFICATE----- and so on",
            ));
        }
        let key = private_key(private_key_pem);
        if key.is_none() {
            faults.push(SettingFault::new(
                "private_key_pem",
                "must hold an RSA private key of at least 2048 bits in PEM, not encrypted: -----BEGIN PRIVATE KEY----- and so on",
            ));
        }
        let Some(key) = key.filter(|_| faults.is_empty()) else {
            return Err(faults);
        };
        // A certificate holds its key's modulus as it is; the rest of X.509 is for Entra ID to read.
        let modulus = key.n().to_be_bytes_trimmed_vartime();
        let is_the_keys = |certificate: &&Zeroizing<Vec<u8>>| {
            let mut windows = certificate.windows(modulus.len());
            windows.any(|window| *window == *modulus)
        };
        let Some(certificate) = certificates.iter().find(is_the_keys) else {
            return Err(vec![SettingFault::new(
                "private_key_pem",
                "must be the private key of `certificate_pem`: it belongs to another certificate",
            )]);
        };
        Ok(Self {
            thumbprint: URL_SAFE_NO_PAD.encode(Sha256::digest(certificate)),
            key: SigningKey::new(key),
        })
    }

    /// Signs an assertion for a token endpoint.
    ///
    /// # Errors
    /// None if the key cannot sign, which a key that was checked can.
    #[must_use]
    pub fn assertion(
        &self,
        client_id: &str,
        token_endpoint: &str,
        now: u64,
        random: &impl Random,
    ) -> Option<ClientAssertion> {
        let header = json!({"typ": "JWT", "alg": "PS256", "x5t#S256": self.thumbprint});
        let claims = json!({
            "aud": token_endpoint, "iss": client_id, "sub": client_id, "jti": Guid::random(random).as_str(),
            "iat": now, "nbf": now, "exp": now.saturating_add(ASSERTION_SECONDS),
        });
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self
            .key
            .try_sign_with_rng(&mut FromPort(random), signed.as_bytes())
            .ok()?;
        let signature = URL_SAFE_NO_PAD.encode(signature.to_bytes());
        Some(ClientAssertion::new(format!("{signed}.{signature}")))
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificate({}, key redacted)", self.thumbprint)
    }
}

/// The first usable private key in a PEM text.
fn private_key(pem: &str) -> Option<PrivateKey> {
    let pkcs8 = blocks(pem, "PRIVATE KEY").filter_map(|der| PrivateKey::from_pkcs8_der(&der).ok());
    let pkcs1 =
        blocks(pem, "RSA PRIVATE KEY").filter_map(|der| PrivateKey::from_pkcs1_der(&der).ok());
    pkcs8
        .chain(pkcs1)
        .find(|key| key.n().bit_width_vartime() >= LEAST_BITS)
}

/// What the blocks of a label in a PEM text hold, whatever is around them, and however their lines are broken. Others
/// than those in base64 are passed over.
pub(crate) fn blocks(pem: &str, label: &str) -> impl Iterator<Item = Zeroizing<Vec<u8>>> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let mut rest = pem;
    std::iter::from_fn(move || {
        let (_, behind) = rest.split_once(&begin)?;
        let (block, behind) = behind.split_once(&end)?;
        rest = behind;
        // Room for all of it at once, so that no copy stays behind.
        let mut text = Zeroizing::new(String::with_capacity(block.len()));
        text.extend(block.split_ascii_whitespace());
        Some(STANDARD.decode(text.as_bytes()).ok().map(Zeroizing::new))
    })
    .flatten()
}

/// The randomness of the port, as the `rsa` crate takes it.
struct FromPort<'a, R>(&'a R);

impl<R: Random> rand_core::TryRng for FromPort<'_, R> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(buffer);
        Ok(())
    }
}

impl<R: Random> rand_core::TryCryptoRng for FromPort<'_, R> {}

#[cfg(test)]
mod tests {
    use rsa::pss::{Signature, VerifyingKey};
    use rsa::signature::Verifier as _;
    use serde_json::Value;

    use super::*;
    use crate::simulation::world::World;
    use crate::vault::samples::{CERTIFICATE, CLIENT, NOW, PRIVATE_KEY};

    const OTHER_CERTIFICATE: &str = include_str!("tests/other-certificate.pem");
    const OTHER_KEY: &str = include_str!("tests/signing-key.pem");
    const ENDPOINT: &str = "https://login.microsoftonline.com/t/oauth2/v2.0/token";

    #[test]
    fn an_assertion_is_as_entra_wants_it_and_its_signature_verifies() {
        let certificate = Certificate::read(CERTIFICATE, PRIVATE_KEY).unwrap();
        let world = World::new();
        let assertion = certificate
            .assertion(CLIENT, ENDPOINT, NOW, &world)
            .unwrap();
        let (signed, signature) = assertion.expose().rsplit_once('.').unwrap();
        let parts: Vec<Value> = signed
            .split('.')
            .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
            .collect();
        let [header, claims] = parts.as_slice() else {
            panic!("two parts")
        };
        // openssl x509 -outform DER | openssl dgst -sha256 -binary | base64 | tr +/ -_ | tr -d =
        let thumbprint = include_str!("tests/certificate-thumbprint.txt").trim();
        assert_eq!(thumbprint.len(), 43);
        assert_eq!(
            *header,
            json!({"typ": "JWT", "alg": "PS256", "x5t#S256": thumbprint})
        );
        assert_eq!(
            (&claims["iss"], &claims["sub"]),
            (&json!(CLIENT), &json!(CLIENT))
        );
        assert_eq!(claims["aud"], ENDPOINT);
        assert!(Guid::parse(claims["jti"].as_str().unwrap()).is_some());
        assert_eq!(claims["nbf"], NOW);
        assert_eq!(claims["exp"], NOW + 600);

        let public = PrivateKey::from_pkcs8_pem(PRIVATE_KEY)
            .unwrap()
            .to_public_key();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        VerifyingKey::<Sha256>::new(public)
            .verify(
                signed.as_bytes(),
                &Signature::try_from(signature.as_slice()).unwrap(),
            )
            .unwrap();
        let another = certificate
            .assertion(CLIENT, ENDPOINT, NOW, &world)
            .unwrap();
        assert_ne!(assertion.expose(), another.expose(), "a jti of its own");
    }

    /// Certificates as Key Vault exports them have key and chain in one text; others have them in another order, with
    /// the line ends of Windows, or with what `openssl pkcs12` writes around them.
    #[test]
    fn the_certificate_and_its_key_are_found_in_a_bundle() {
        let thumbprint = Certificate::read(CERTIFICATE, PRIVATE_KEY)
            .unwrap()
            .thumbprint;
        let around = "Bag Attributes\n    friendlyName: behalf\nsubject=CN = behalf test\n";
        let one_line = |pem: &str| pem.replace('\n', " ");
        let wide: String = PRIVATE_KEY
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let wide = format!("-----BEGIN PRIVATE KEY-----\n{wide}\n-----END PRIVATE KEY-----");
        for bundle in [
            format!("{PRIVATE_KEY}{CERTIFICATE}"),
            format!("{CERTIFICATE}{PRIVATE_KEY}"),
            format!("{PRIVATE_KEY}{CERTIFICATE}{OTHER_CERTIFICATE}"),
            format!("{OTHER_CERTIFICATE}{CERTIFICATE}{PRIVATE_KEY}"),
            format!("{PRIVATE_KEY}{CERTIFICATE}").replace('\n', "\r\n"),
            format!("{around}{CERTIFICATE}{around}{PRIVATE_KEY}{around}"),
            format!("{}{}", one_line(PRIVATE_KEY), one_line(CERTIFICATE)),
            format!("{CERTIFICATE}{wide}"),
            format!("{CERTIFICATE}{}", pkcs1(PRIVATE_KEY)),
        ] {
            let read = Certificate::read(&bundle, &bundle);
            assert_eq!(read.unwrap().thumbprint, thumbprint, "{bundle}");
        }
    }

    /// As `openssl rsa -traditional` writes it.
    fn pkcs1(pem: &str) -> String {
        use rsa::pkcs1::EncodeRsaPrivateKey as _;
        let key = PrivateKey::from_pkcs8_pem(pem).unwrap();
        key.to_pkcs1_pem(rsa::pkcs8::LineEnding::LF)
            .unwrap()
            .to_string()
    }

    #[test]
    fn what_is_no_certificate_with_its_key_is_named() {
        let encrypted = PRIVATE_KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        for (certificate, key, settings) in [
            ("", PRIVATE_KEY, &["certificate_pem"][..]),
            (PRIVATE_KEY, PRIVATE_KEY, &["certificate_pem"]),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
                PRIVATE_KEY,
                &["certificate_pem"],
            ),
            (CERTIFICATE, "", &["private_key_pem"]),
            (CERTIFICATE, CERTIFICATE, &["private_key_pem"]),
            (CERTIFICATE, OTHER_KEY, &["private_key_pem"]),
            (OTHER_CERTIFICATE, PRIVATE_KEY, &["private_key_pem"]),
            (CERTIFICATE, &encrypted, &["private_key_pem"]),
            (
                PRIVATE_KEY,
                CERTIFICATE,
                &["certificate_pem", "private_key_pem"],
            ),
            (
                "-----BEGIN CERTIFICATE-----",
                "-----END PRIVATE KEY----------BEGIN PRIVATE KEY-----",
                &["certificate_pem", "private_key_pem"],
            ),
        ] {
            let faults = Certificate::read(certificate, key).map(drop).unwrap_err();
            let names: Vec<_> = faults.iter().map(|fault| &*fault.name).collect();
            assert_eq!(names, settings);
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let certificate = Certificate::read(CERTIFICATE, PRIVATE_KEY).unwrap();
        let shown = format!("{:?}", Credential::Certificate(Box::new(certificate)));
        assert!(shown.contains("redacted") && shown.len() < 120, "{shown}");
    }
}
