//! Secrets as types: no `Clone`, no `Display`, no `Serialize`, a redacted `Debug`, and zeroized when dropped.
//!
//! ```
//! use behalf_core::secret::{Bearer, SweepKey};
//!
//! let key = SweepKey::new("correct-horse-battery-staple-0123456789".into());
//! assert_eq!(format!("{key:?}"), "SweepKey(redacted)");
//! assert!(key.matches(&Bearer::new("correct-horse-battery-staple-0123456789".into())));
//! ```
//!
//! What would show or copy one does not compile:
//!
//! ```compile_fail,E0277
//! # let token = behalf_core::secret::RefreshToken::new("0.AX…".into());
//! println!("{token}");
//! ```
//!
//! ```compile_fail,E0599
//! # let token = behalf_core::secret::RefreshToken::new("0.AX…".into());
//! let copy = token.clone();
//! ```

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

macro_rules! secret_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(Zeroizing<String>);

        impl $name {
            /// Takes the text over; it is zeroized when this is dropped.
            #[must_use]
            pub fn new(text: String) -> Self {
                Self(Zeroizing::new(text))
            }

            /// The secret itself. Every use is a place to look at in a review.
            #[must_use]
            pub fn expose(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret_text! {
    /// A token that a caller presents (RFC 6750), or the sweep key.
    Bearer
}
secret_text! {
    /// An access token from Entra ID (RFC 6749 §1.4).
    AccessToken
}
secret_text! {
    /// A refresh token from Entra ID (RFC 6749 §1.5).
    RefreshToken
}
secret_text! {
    /// The app's client secret at Entra ID.
    ClientSecret
}
secret_text! {
    /// What this app shows Entra ID in place of a secret (RFC 7523 §2.2): a JWT it signed, or another issuer's.
    ClientAssertion
}
secret_text! {
    /// What the managed identity endpoint of App Service wants to see
    /// (<https://learn.microsoft.com/azure/app-service/overview-managed-identity>).
    IdentityHeader
}
secret_text! {
    /// Key of the pseudonyms that storage knows users by.
    PseudonymKey
}
secret_text! {
    /// What the cron doorbell presents.
    SweepKey
}
secret_text! {
    /// The password of the database that records are kept in.
    DatabasePassword
}
secret_text! {
    /// Where that database is, and as whom: with the password in it.
    DatabaseAddress
}

impl Bearer {
    /// SHA-256 of the token: what caches know it by.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }
}

impl RefreshToken {
    /// SHA-256 of the token: what identical requests are known by.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.expose()).into()
    }
}

impl SweepKey {
    /// Whether the caller presented this key, in time that does not depend on how much of it is right.
    ///
    /// Digests are compared, so the time does not depend on the length either.
    #[must_use]
    pub fn matches(&self, presented: &Bearer) -> bool {
        let expected: [u8; 32] = Sha256::digest(self.expose()).into();
        expected.ct_eq(&presented.digest()).into()
    }
}

/// A tenant's encryption key: 32 bytes for AES-256-GCM.
pub struct EncryptionKey(Zeroizing<[u8; 32]>);

impl EncryptionKey {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// The key itself.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_kind_and_never_the_secret() {
        for shown in [
            format!("{:?}", RefreshToken::new("0.AX-canary".into())),
            format!("{:?}", Some(AccessToken::new("eyJ-canary".into()))),
            format!("{:?}", ClientSecret::new("canary".into())),
            format!(
                "{:?}",
                EncryptionKey::new(Zeroizing::new(*b"canary-canary-canary-canary-cana"))
            ),
        ] {
            assert!(shown.contains("(redacted)"), "{shown}");
            assert!(!shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn a_sweep_key_matches_itself_alone() {
        let key = SweepKey::new("k".repeat(32));
        assert!(key.matches(&Bearer::new("k".repeat(32))));
        assert!(!key.matches(&Bearer::new("k".repeat(33))));
        assert!(!key.matches(&Bearer::new(String::new())));
    }
}
