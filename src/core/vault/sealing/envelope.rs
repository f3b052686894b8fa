//! Sealed refresh tokens: compact JWE (RFC 7516 §3.1) with `dir` (RFC 7518 §4.5) and `A256GCM` (RFC 7518 §5.3).
//! RECORD-FORMAT.md says the same to whoever reads them without this code.
//!
//! ```text
//! BASE64URL(header) . . BASE64URL(iv) . BASE64URL(ciphertext) . BASE64URL(tag)
//! header    {"alg":"dir","enc":"A256GCM","kid":"<secret name>/<key version>","typ":"behalf+jwe","bnd":"<binding>"}
//! plaintext {"refresh_token":"…","user_id":"…","scope":"…"}
//! ```
//!
//! Any JOSE library opens it with the key from Key Vault. The header is authenticated, so neither the name of the key
//! nor the binding can be changed; the binding ties it to one client, tenant, user and enrolment.
//!
//! ```
//! use behalf_core::Random;
//! use behalf_core::identity::{KeyVersion, Nonce, SecretName, TenantId, UserId};
//! use behalf_core::secret::{EncryptionKey, RefreshToken};
//! use behalf_core::vault::sealing::{Binding, Envelope, Payload, seal};
//! # struct Dice;
//! # impl Random for Dice {
//! #     fn fill(&self, buffer: &mut [u8]) { buffer.fill(9) } // Of this example alone.
//! # }
//!
//! let key = EncryptionKey::new([7; 32].into()); let (secret, version) = (SecretName::parse("obo-t").unwrap(),
//! KeyVersion::parse(&"0f".repeat(16)).unwrap()); let (tenant, user_id) =
//! (TenantId::parse("11111111-1111-1111-1111-111111111111").unwrap(), UserId::from_sealed("u")); let binding =
//! Binding::new("client", &tenant, &user_id, &Nonce::parse("nonce").unwrap()); let payload = Payload { refresh_token:
//! RefreshToken::new("0.AX…".into()), user_id, scope: "s".into() };
//!
//! let sealed = seal(&payload, &binding, (&secret, &version), &key, &Dice).unwrap();
//! let envelope = Envelope::parse(&sealed.token).unwrap();
//! assert!(envelope.is_bound_to(&binding));
//! assert_eq!(envelope.open(&key).unwrap().refresh_token.expose(), "0.AX…");
//! ```

use std::borrow::Cow;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::error::StoredError;
use crate::identity::{KeyVersion, Nonce, SecretName, TenantId, UserId};
use crate::json;
use crate::port::Random;
use crate::secret::{EncryptionKey, RefreshToken};
use crate::vault::port::SealedToken;

const ALG: &str = "dir";
const ENC: &str = "A256GCM";
const TYP: &str = "behalf+jwe";
const IV: usize = 12;
const TAG: usize = 16;
/// Far above any refresh token of Entra ID (1 to 2 KiB), far below what would hurt.
const LONGEST: usize = 64 * 1024;

/// What a sealed token is for: SHA-256 over client id, tenant, user id and enrolment nonce, each with its length in
/// front (four bytes, big-endian), so that no two different quadruples hash the same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding([u8; 32]);

impl Binding {
    /// Computes it.
    #[must_use]
    pub fn new(client_id: &str, tenant: &TenantId, user: &UserId, nonce: &Nonce) -> Self {
        let mut hash = Sha256::new();
        for part in [client_id, tenant.as_str(), user.as_str(), nonce.as_str()] {
            // All four are far shorter than 4 GiB: client id and user id are checked settings and claims.
            hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

/// What is sealed.
#[derive(Debug)]
pub struct Payload {
    /// The refresh token.
    pub refresh_token: RefreshToken,
    /// The user it belongs to.
    pub user_id: UserId,
    /// The scope drawn at enrolment.
    pub scope: String,
}

/// Seals a refresh token.
///
/// # Errors
/// [`SealError`] if the token is too long to be one.
pub fn seal(
    payload: &Payload,
    binding: &Binding,
    (secret, version): (&SecretName, &KeyVersion),
    key: &EncryptionKey,
    random: &impl Random,
) -> Result<SealedToken, SealError> {
    let header = Header {
        alg: ALG.into(),
        enc: ENC.into(),
        kid: format!("{}/{}", secret.as_str(), version.as_str()).into(),
        typ: TYP.into(),
        bnd: URL_SAFE_NO_PAD.encode(binding.0).into(),
    };
    let header = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).map_err(|_| SealError)?);

    // Sized for the worst case (every byte escaped), so that it never grows and leaves a copy behind.
    let length = payload
        .refresh_token
        .expose()
        .len()
        .saturating_add(payload.user_id.as_str().len())
        .saturating_add(payload.scope.len());
    let mut text = Zeroizing::new(Vec::with_capacity(
        length.saturating_mul(6).saturating_add(64),
    ));
    let plaintext = Plaintext {
        refresh_token: payload.refresh_token.expose(),
        user_id: payload.user_id.as_str(),
        scope: &payload.scope,
    };
    serde_json::to_writer(&mut *text, &plaintext).map_err(|_| SealError)?;
    if text.len() > LONGEST {
        return Err(SealError);
    }

    let mut iv = [0; IV];
    random.fill(&mut iv);
    let tag = encrypt(key, &iv, header.as_bytes(), &mut text).ok_or(SealError)?;

    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    Ok(SealedToken {
        token: format!(
            "{header}..{}.{}.{}",
            encode(&iv),
            encode(&text),
            encode(&tag)
        ),
        key_version: version.clone(),
    })
}

/// The refresh token is too long to be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealError;

/// A sealed token whose form is right. Nothing in it is trusted before [`Envelope::open`].
#[derive(Debug)]
pub struct Envelope<'a> {
    header: &'a str,
    /// The secret that it says it is sealed under.
    pub secret: SecretName,
    /// The version of that secret.
    pub version: KeyVersion,
    /// What it says it is for.
    pub binding: Binding,
    iv: [u8; IV],
    ciphertext: Vec<u8>,
    tag: [u8; TAG],
}

impl<'a> Envelope<'a> {
    /// The key that it says it is sealed under.
    #[must_use]
    pub fn key(&self) -> (SecretName, KeyVersion) {
        (self.secret.clone(), self.version.clone())
    }

    /// Reads a compact JWE of the one form that [`seal`] writes. Everything else, a known algorithm of other lengths
    /// included, is damage.
    ///
    /// # Errors
    /// [`StoredError::Damaged`].
    pub fn parse(token: &'a str) -> Result<Self, StoredError> {
        Self::read(token).ok_or(StoredError::Damaged)
    }

    fn read(token: &'a str) -> Option<Self> {
        if token.len() > LONGEST.saturating_mul(2) {
            return None;
        }
        let mut parts = token.split('.');
        let (header, key, iv, ciphertext, tag) = (
            parts.next()?,
            parts.next()?,
            parts.next()?,
            parts.next()?,
            parts.next()?,
        );
        if !key.is_empty() || parts.next().is_some() {
            return None;
        }
        // Canonical base64url only: no padding, no stray bits (the engine refuses both).
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let decoded = decode(header)?;
        let fields: Header<'_> = json::object(&decoded)?;
        if (&*fields.alg, &*fields.enc, &*fields.typ) != (ALG, ENC, TYP) {
            return None;
        }
        let (secret, version) = fields.kid.split_once('/')?;
        Some(Self {
            header,
            secret: SecretName::parse(secret)?,
            version: KeyVersion::parse(version)?,
            binding: Binding(decode(&fields.bnd)?.try_into().ok()?),
            iv: decode(iv)?.try_into().ok()?,
            ciphertext: decode(ciphertext)?,
            tag: decode(tag)?.try_into().ok()?,
        })
    }

    /// Whether it says that it is for this client, tenant, user and enrolment. Cheap, and so asked before a key is
    /// fetched; it holds once the envelope has been opened, since the header is authenticated.
    #[must_use]
    pub fn is_bound_to(&self, binding: &Binding) -> bool {
        self.binding.0.ct_eq(&binding.0).into()
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`StoredError::Damaged`] if any bit of it is not as it was sealed, or the key is another.
    pub fn open(self, key: &EncryptionKey) -> Result<Payload, StoredError> {
        let mut text = Zeroizing::new(self.ciphertext);
        decrypt(key, &self.iv, self.header.as_bytes(), &mut text, &self.tag)
            .ok_or(StoredError::Damaged)?;
        let plaintext: OwnedPlaintext = json::object(&text).ok_or(StoredError::Damaged)?;
        Ok(Payload {
            refresh_token: RefreshToken::new(plaintext.refresh_token),
            user_id: UserId::from_sealed(&plaintext.user_id),
            scope: plaintext.scope,
        })
    }
}

/// AES-256-GCM in place; returns the tag. None: the text is longer than the algorithm takes.
fn encrypt(key: &EncryptionKey, iv: &[u8; IV], aad: &[u8], text: &mut [u8]) -> Option<[u8; TAG]> {
    let tag = Aes256Gcm::new(key.expose().into())
        .encrypt_inout_detached(iv.into(), aad, text.into())
        .ok()?;
    Some(tag.into())
}

/// The way back. None: some bit is not as it was, and `text` is worth nothing.
fn decrypt(
    key: &EncryptionKey,
    iv: &[u8; IV],
    aad: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG],
) -> Option<()> {
    Aes256Gcm::new(key.expose().into())
        .decrypt_inout_detached(iv.into(), aad, text.into(), tag.into())
        .ok()
}

/// Unknown members are refused, and with them `zip` and every `crit`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    // Not `&str`, which would refuse what another JSON library escapes, such as the slash of `kid`.
    alg: Cow<'a, str>,
    enc: Cow<'a, str>,
    kid: Cow<'a, str>,
    typ: Cow<'a, str>,
    bnd: Cow<'a, str>,
}

#[derive(Serialize)]
struct Plaintext<'a> {
    refresh_token: &'a str,
    user_id: &'a str,
    scope: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedPlaintext {
    refresh_token: String,
    user_id: String,
    scope: String,
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Guid;

    struct Counting(std::cell::Cell<u8>);

    impl Random for Counting {
        fn fill(&self, buffer: &mut [u8]) {
            for byte in buffer {
                *byte = self.0.get();
                self.0.set(byte.wrapping_add(1));
            }
        }
    }

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn key(first: u8) -> EncryptionKey {
        EncryptionKey::new(Zeroizing::new(std::array::from_fn(|at| {
            first.wrapping_add(at.try_into().unwrap())
        })))
    }

    fn binding(user: &str) -> Binding {
        let tenant = Guid::parse("11111111-1111-1111-1111-111111111111").unwrap();
        Binding::new(
            "client",
            &tenant,
            &UserId::from_sealed(user),
            &Nonce::parse("nonce").unwrap(),
        )
    }

    fn sealed(token: &str) -> String {
        let payload = Payload {
            refresh_token: RefreshToken::new(token.into()),
            user_id: UserId::from_sealed("user"),
            scope: "https://graph.microsoft.com/.default".into(),
        };
        let name = SecretName::parse("obo-t").unwrap();
        let version = KeyVersion::parse(VERSION).unwrap();
        seal(
            &payload,
            &binding("user"),
            (&name, &version),
            &key(0),
            &Counting(0xa0.into()),
        )
        .unwrap()
        .token
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_key_alone() {
        let token = sealed("0.AX-refresh");
        let envelope = Envelope::parse(&token).unwrap();
        assert_eq!(envelope.secret.as_str(), "obo-t");
        assert_eq!(envelope.version.as_str(), VERSION);
        assert!(envelope.is_bound_to(&binding("user")));
        assert!(!envelope.is_bound_to(&binding("other")));
        let payload = envelope.open(&key(0)).unwrap();
        assert_eq!(payload.refresh_token.expose(), "0.AX-refresh");
        assert_eq!(payload.user_id.as_str(), "user");
        assert_eq!(
            Envelope::parse(&token).unwrap().open(&key(1)).unwrap_err(),
            StoredError::Damaged
        );
    }

    #[test]
    fn the_refresh_token_is_not_to_be_seen() {
        let token = sealed("refresh-token-canary");
        assert!(!token.contains("canary"));
        assert!(!token.contains(&URL_SAFE_NO_PAD.encode("canary")));
        assert!(!format!("{:?}", Envelope::parse(&token).unwrap()).contains("canary"));
    }

    #[test]
    fn bits_flipped_at_every_position_are_noticed() {
        let token = sealed("0.AX-refresh");
        for at in 0..token.len() {
            for bit in 0..7 {
                let mut bytes = token.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(changed) = String::from_utf8(bytes) else {
                    continue;
                };
                let outcome = Envelope::parse(&changed).and_then(|envelope| {
                    // A changed `kid` or `bnd` is well-formed and is caught by the tag.
                    envelope.open(&key(0))
                });
                assert_eq!(
                    outcome.map(|_| ()),
                    Err(StoredError::Damaged),
                    "bit {bit} of character {at}"
                );
            }
        }
    }

    #[test]
    fn bindings_do_not_run_together() {
        let tenant = Guid::parse("11111111-1111-1111-1111-111111111111").unwrap();
        let new = |client: &str, user: &str, nonce: &str| {
            Binding::new(
                client,
                &tenant,
                &UserId::from_sealed(user),
                &Nonce::parse(nonce).unwrap(),
            )
        };
        assert_ne!(new("c", "ab", "cd"), new("c", "abc", "d"));
        assert_ne!(new("c", "a", "n"), new("c", "a", "m"));
    }

    proptest! {
        #[test]
        fn any_refresh_token_survives(token in ".{0,600}") {
            let sealed = sealed(&token);
            let opened = Envelope::parse(&sealed).unwrap().open(&key(0)).unwrap();
            prop_assert_eq!(opened.refresh_token.expose(), token.as_str());
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A-Za-z0-9._=-]{0,300}") {
            prop_assert!(Envelope::parse(&text).is_err());
        }
    }
}
