//! Random bytes and texts.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::rand::{SecureRandom as _, SystemRandom};

pub(crate) fn bytes(number: usize) -> Vec<u8> {
    let mut random = vec![0; number];
    SystemRandom::new().fill(&mut random).expect("random bytes");
    random
}

/// So many random bytes, as base64url.
pub(crate) fn text(bytes: usize) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(self::bytes(bytes))
}
