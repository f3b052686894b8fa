//! How this app proves to Entra ID that it is itself (facts/entra-and-key-vault.md §A.2, §A.3).

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::pkcs8::der::pem::{self, PemLabel as _};
use rsa::pss::SigningKey;
use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{PrivateKey, pkcs1::DecodeRsaPrivateKey as _, rand_core};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::identity::Guid;
use crate::port::Random;
use crate::secret::{ClientAssertion, ClientSecret};

/// Seconds a signed assertion is valid for: Entra ID advises five to ten minutes (§A.3).
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
    /// Reads both from PEM: the certificate first in its text, the key as PKCS#8 or PKCS#1.
    ///
    /// # Errors
    /// The setting at fault, and what is expected of it.
    pub fn read(
        certificate_pem: &str,
        private_key_pem: &str,
    ) -> Result<Self, (&'static str, &'static str)> {
        let certificate = decode_certificate(certificate_pem).ok_or((
            "certificate_pem",
            "must be a certificate in PEM: -----BEGIN CERTIFICATE----- and so on, with its line breaks",
        ))?;
        let key = PrivateKey::from_pkcs8_pem(private_key_pem)
            .ok()
            .or_else(|| PrivateKey::from_pkcs1_pem(private_key_pem).ok())
            .filter(|key| key.n().bit_width_vartime() >= LEAST_BITS)
            .ok_or((
                "private_key_pem",
                "must be an RSA private key of at least 2048 bits in PEM, not encrypted, with its line breaks",
            ))?;
        // A certificate holds its key's modulus as it is; the rest of X.509 is for Entra ID to read.
        let modulus = key.n().to_be_bytes_trimmed_vartime();
        if !certificate
            .windows(modulus.len())
            .any(|window| *window == *modulus)
        {
            return Err((
                "private_key_pem",
                "must be the private key of `certificate_pem`: it belongs to another certificate",
            ));
        }
        Ok(Self {
            thumbprint: URL_SAFE_NO_PAD.encode(Sha256::digest(&certificate)),
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

/// DER of the first certificate in a PEM text.
fn decode_certificate(text: &str) -> Option<Vec<u8>> {
    let start = text.find("-----BEGIN CERTIFICATE-----")?;
    let end_mark = "-----END CERTIFICATE-----";
    let rest = text.get(start..)?;
    let end = rest.find(end_mark)?.checked_add(end_mark.len())?;
    let (label, der) = pem::decode_vec(rest.get(..end)?.as_bytes()).ok()?;
    (label == Label::PEM_LABEL).then_some(der)
}

struct Label;
impl pem::PemLabel for Label {
    const PEM_LABEL: &'static str = "CERTIFICATE";
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
pub(crate) mod tests {
    use rsa::pss::{Signature, VerifyingKey};
    use rsa::signature::Verifier as _;
    use serde_json::Value;

    use super::*;
    use crate::caller::tests::NOW;
    use crate::settings::tests::CLIENT;
    use crate::world::World;

    // openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj "/CN=behalf test" …
    pub(crate) const CERTIFICATE: &str = include_str!("tests/certificate.pem");
    pub(crate) const PRIVATE_KEY: &str = include_str!("tests/certificate-key.pem");
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

    #[test]
    fn what_is_no_certificate_with_its_key_is_named() {
        let chain = format!("subject=x\n{CERTIFICATE}\n{CERTIFICATE}");
        Certificate::read(&chain, PRIVATE_KEY).unwrap();
        for (certificate, key, setting) in [
            ("", PRIVATE_KEY, "certificate_pem"),
            (PRIVATE_KEY, PRIVATE_KEY, "certificate_pem"),
            (
                "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
                PRIVATE_KEY,
                "certificate_pem",
            ),
            (CERTIFICATE, "", "private_key_pem"),
            (CERTIFICATE, CERTIFICATE, "private_key_pem"),
            (CERTIFICATE, OTHER_KEY, "private_key_pem"),
        ] {
            let error = Certificate::read(certificate, key).map(|_| ()).unwrap_err();
            assert_eq!(error.0, setting);
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let certificate = Certificate::read(CERTIFICATE, PRIVATE_KEY).unwrap();
        let shown = format!("{:?}", Credential::Certificate(Box::new(certificate)));
        assert!(shown.contains("redacted") && shown.len() < 120, "{shown}");
    }
}
