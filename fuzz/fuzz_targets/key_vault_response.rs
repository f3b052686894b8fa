//! An answer of Key Vault: the first two bytes are its status, a line its challenge, the rest its body. A key comes from
//! nothing but a whole answer about the secret that was asked for, and no error repeats what an answer says.
#![no_main]

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use behalf_core::error::{OperatorError, System, VaultError};
use behalf_core::identity::{KeyVersion, SecretName};
use behalf_core::vault::key_vault::{SecretError, challenged_tenant, read_secret};
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use zeroize::Zeroizing;

const VERSION: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// Nothing else of a body is looked at, here as there: a number of no size and a text that is no UTF-8 are all right.
#[derive(Deserialize)]
struct Body {
    value: String,
}

fuzz_target!(|data: &[u8]| {
    let Some(([high, low], rest)) = data.split_first_chunk() else {
        return;
    };
    let status = 100 + u16::from_be_bytes([*high, *low]) % 500;
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (line, body) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let response = http::Response::builder()
        .status(status)
        .header("www-authenticate", line)
        .body(Zeroizing::new(body.to_vec()));
    let Ok(response) = response else {
        return;
    };
    if let Some(tenant) = challenged_tenant(&response) {
        assert_eq!(status, 401);
        let line = line.to_ascii_lowercase();
        let tenant = tenant.as_str().as_bytes();
        assert!(line.windows(tenant.len()).any(|part| part == tenant));
    }
    let secret = SecretName::parse("obo-t").unwrap();
    let version = KeyVersion::parse(VERSION).unwrap();
    for asked in [None, Some(&version)] {
        match read_secret(&response, &secret, asked) {
            Ok(key) => {
                assert_eq!(status, 200);
                let body: Body = serde_json::from_slice(body).expect("an object with a value");
                let value = &body.value;
                let alphabet = if value.contains(['-', '_']) {
                    &URL_SAFE
                } else {
                    &STANDARD
                };
                let config = GeneralPurposeConfig::new()
                    .with_decode_padding_mode(DecodePaddingMode::Indifferent);
                let bytes = GeneralPurpose::new(alphabet, config).decode(value);
                assert_eq!(bytes.expect("base64"), key.key.expose());
                assert!(asked.is_none_or(|asked| *asked == key.version));
                assert!(!format!("{key:?}").contains(value.as_str()));
                assert!(!key.is_valid_at(0) || key.opens_at(0, 0));
            }
            Err(SecretError::Unauthorized { .. }) => assert_eq!(status, 401),
            Err(SecretError::Other(error)) => {
                let name = || "obo-t".to_owned();
                let known: [VaultError; 7] = [
                    OperatorError::KeyNotFound(name()).into(),
                    OperatorError::KeyDisabled(name()).into(),
                    OperatorError::KeyMalformed(name()).into(),
                    OperatorError::KeyVaultForbidden.into(),
                    OperatorError::KeyVaultFirewall.into(),
                    OperatorError::KeyVaultRefused.into(),
                    VaultError::upstream(System::KeyVault),
                ];
                assert!(known.contains(&error), "{error:?}");
            }
        }
    }
});
