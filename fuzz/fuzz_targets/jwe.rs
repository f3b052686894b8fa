//! A sealed token. As it comes from storage: it is read or damaged, and does not open with a key that it was not sealed
//! under. With a header (the first line) and a plaintext (the rest) of somebody who has the key: what opens is what they
//! say. And what the text itself is sealed as opens to the same, and to nothing once a character of it is another.
#![no_main]

use aes_gcm::aead::{Aead as _, Payload as Input};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use behalf_core::Random;
use behalf_core::error::StoredError;
use behalf_core::identity::{KeyVersion, Nonce, SecretName, TenantId, UserId};
use behalf_core::secret::{EncryptionKey, RefreshToken};
use behalf_core::vault::sealing::{Binding, Envelope, Payload, seal};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use zeroize::Zeroizing;

const KEY: [u8; 32] = [7; 32];
const IV: [u8; 12] = [9; 12];

struct Fixed;

impl Random for Fixed {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(9);
    }
}

fuzz_target!(|text: &str| {
    let (header, plaintext) = text.split_once('\n').unwrap_or((text, ""));
    from_storage(text);
    with_the_key(header, plaintext);
    there_and_back(header, plaintext);
});

fn key(byte: u8) -> EncryptionKey {
    EncryptionKey::new(Zeroizing::new([byte; 32]))
}

fn from_storage(token: &str) {
    if let Ok(envelope) = Envelope::parse(token) {
        assert_eq!(token.split('.').nth(1), Some(""));
        assert!(envelope.open(&key(8)).is_err());
    }
}

fn with_the_key(header: &str, plaintext: &str) {
    let header64 = URL_SAFE_NO_PAD.encode(header);
    let sealed = Aes256Gcm::new(&KEY.into())
        .encrypt(
            &IV.into(),
            Input {
                msg: plaintext.as_bytes(),
                aad: header64.as_bytes(),
            },
        )
        .unwrap();
    let (ciphertext, tag) = sealed.split_at(sealed.len() - 16);
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let token = format!(
        "{header64}..{}.{}.{}",
        encode(&IV),
        encode(ciphertext),
        encode(tag)
    );
    let Ok(envelope) = Envelope::parse(&token) else {
        return;
    };
    let said: Value = serde_json::from_str(header).expect("JSON");
    let members = said.as_object().expect("an object");
    assert_eq!(members.len(), 5);
    assert!(said["alg"] == "dir" && said["enc"] == "A256GCM" && said["typ"] == "behalf+jwe");
    let kid = format!("{}/{}", envelope.secret.as_str(), envelope.version.as_str());
    assert_eq!(said["kid"], kid);
    let Ok(payload) = envelope.open(&key(7)) else {
        return;
    };
    let said: Value = serde_json::from_str(plaintext).expect("JSON");
    assert_eq!(said.as_object().expect("an object").len(), 3);
    assert_eq!(said["refresh_token"], payload.refresh_token.expose());
    assert_eq!(said["user_id"], payload.user_id.as_str());
    assert_eq!(said["scope"], payload.scope);
}

fn there_and_back(token: &str, user: &str) {
    let user_id = UserId::from_sealed(user);
    let tenant = TenantId::parse("11111111-1111-1111-1111-111111111111").unwrap();
    let binding = Binding::new("client", &tenant, &user_id, &Nonce::parse("n").unwrap());
    let secret = SecretName::parse("obo-t").unwrap();
    let version = KeyVersion::parse(&"0f".repeat(16)).unwrap();
    let payload = Payload {
        refresh_token: RefreshToken::new(token.to_owned()),
        user_id,
        scope: "s".to_owned(),
    };
    let Ok(sealed) = seal(&payload, &binding, (&secret, &version), &key(7), &Fixed) else {
        // Every byte may be escaped to six.
        assert!(token.len() + user.len() > 10_000);
        return;
    };
    let envelope = Envelope::parse(&sealed.token).expect("what was sealed");
    assert!(envelope.is_bound_to(&binding));
    assert_eq!((&envelope.secret, &envelope.version), (&secret, &version));
    let opened = envelope.open(&key(7)).expect("what was sealed");
    assert_eq!(opened.refresh_token.expose(), token);
    assert_eq!((opened.user_id.as_str(), &*opened.scope), (user, "s"));

    // Which one is the input's affair.
    let at = (token.len() * 31 + user.len()) % sealed.token.len();
    let other = match sealed.token.as_bytes()[at] {
        b'A' => "B",
        _ => "A",
    };
    let mut changed = sealed.token;
    changed.replace_range(at..=at, other);
    let outcome = Envelope::parse(&changed).and_then(|envelope| envelope.open(&key(7)));
    assert_eq!(outcome.unwrap_err(), StoredError::Damaged);
}
