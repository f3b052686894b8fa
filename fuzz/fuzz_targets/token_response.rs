//! An answer of the token endpoint: the first two bytes are its status, a line its `Retry-After`, the rest its body.
//! Neither throttling nor an answer that is no JSON ever kills a token.
#![no_main]

use behalf_core::vault::entra::{Class, Grant, read_token_response};
use behalf_core::secret::RefreshToken;
use behalf_core::vault::settings::Scope;
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

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
    let mut response = http::Response::builder().status(status);
    if !line.is_empty() {
        response = response.header("retry-after", line);
    }
    let Ok(response) = response.body(Zeroizing::new(body.to_vec())) else {
        return;
    };
    let grant = Grant::Refresh {
        token: &RefreshToken::new("rt".to_owned()),
        scope: &Scope::parse("https://graph.microsoft.com/.default").unwrap(),
        claims: None,
    };
    let answer = read_token_response(&response, &grant, 1_793_606_000);
    let throttled = status == 429 || status >= 500 || !line.is_empty();
    // What nobody looks at need not be UTF-8.
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    match answer {
        Ok(_) => assert_eq!(status, 200),
        Err(refusal) => {
            assert!(
                matches!(refusal.class, Class::Transient { .. }) || (is_json && !throttled),
                "{refusal:?}"
            );
            assert!(refusal.trace_id.is_none_or(|id| {
                id.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            }));
        }
    }
});
