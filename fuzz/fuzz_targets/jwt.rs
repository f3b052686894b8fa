//! A caller's token: whatever it is, it is read or refused; and what was not signed does not verify.
#![no_main]

use behalf_core::vault::caller::{SigningKeys, Unverified};
use behalf_core::secret::Bearer;
use behalf_core::vault::settings::IssuerTemplate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|token: &str| {
    let bearer = Bearer::new(token.to_owned());
    let Ok(unverified) = Unverified::parse(&bearer) else {
        return;
    };
    let _ = (unverified.claims(), unverified.key_id());
    let keys = SigningKeys::parse(include_bytes!("../corpus/jwks/entra.json")).unwrap();
    let key = keys.find("k1").unwrap();
    let issuers = [IssuerTemplate::new(
        "https://login.microsoftonline.com/{tid}/v2.0",
    )];
    assert!(
        unverified.verify(key, &issuers).is_err(),
        "nobody has the private key of k1"
    );
});
