//! A document of signing keys: it is read or refused, and what was read can be asked.
#![no_main]

use behalf_core::vault::caller::SigningKeys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|document: &[u8]| {
    if let Some(keys) = SigningKeys::parse(document) {
        let _ = keys.find("k1");
    }
});
