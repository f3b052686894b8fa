//! `jsonwebtoken` on `ring`: well-formed tokens are made, and all tokens are verified, by code that shares nothing with
//! behalf-core.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::dangerous::insecure_decode;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::signature::{Error, Signer, Verifier};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Header, decode_header, encode,
};
use ring::rand::SystemRandom;
use ring::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RSA_PSS_2048_8192_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use serde_json::Value;

/// Signs with RS256. `key` is PKCS #8.
pub(crate) fn sign(header: &Header, claims: &Value, key: &[u8]) -> String {
    install();
    encode(header, claims, &EncodingKey::from_rsa_der(key)).expect("RSA signing")
}

/// The claims of a token whose signature verifies with this algorithm, whatever they say.
///
/// The parts may be padded, as those of Microsoft's `azure-identity` are. The signature is over the text as it came.
pub(crate) fn verify(
    token: &str,
    algorithm: Algorithm,
    public: &RsaPublicKeyComponents<Vec<u8>>,
) -> Option<Value> {
    install();
    let (message, signature) = token.rsplit_once('.')?;
    let key = DecodingKey::from_rsa_raw_components(&public.n, &public.e);
    let signature = signature.trim_end_matches('=');
    let verifies = header(token)?.alg == algorithm
        && jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, algorithm).ok()?;
    verifies.then(|| {
        insecure_decode(unpadded(token))
            .ok()
            .map(|token| token.claims)
    })?
}

/// The header, unverified.
pub(crate) fn header(token: &str) -> Option<Header> {
    decode_header(unpadded(token)).ok()
}

fn unpadded(token: &str) -> String {
    token.replace('=', "")
}

fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| {
            if *algorithm != Algorithm::RS256 {
                return Err(ErrorKind::InvalidAlgorithm.into());
            }
            let pair = RsaKeyPair::from_pkcs8(key.as_bytes())
                .map_err(|error| ErrorKind::InvalidRsaKey(error.to_string()))?;
            Ok(Box::new(RingSigner(pair)))
        },
        verifier_factory: |algorithm, key| match (algorithm, key.kind()) {
            (Algorithm::RS256 | Algorithm::PS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                Ok(Box::new(RingVerifier {
                    algorithm: *algorithm,
                    public: RsaPublicKeyComponents {
                        n: n.clone(),
                        e: e.clone(),
                    },
                }))
            }
            _ => Err(ErrorKind::InvalidAlgorithm.into()),
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        PROVIDER
            .install_default()
            .expect("nobody else installs one");
    });
}

struct RingSigner(RsaKeyPair);

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .map_err(|_| Error::new())?;
        Ok(signature)
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}

struct RingVerifier {
    algorithm: Algorithm,
    public: RsaPublicKeyComponents<Vec<u8>>,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Error> {
        let parameters = match self.algorithm {
            Algorithm::PS256 => &RSA_PSS_2048_8192_SHA256,
            _ => &RSA_PKCS1_2048_8192_SHA256,
        };
        self.public
            .verify(parameters, message, signature)
            .map_err(|_| Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
