//! Generated from `wit/`: the vault that this component imports, and the older key-value interface: its listing does not
//! deadlock, and it writes many keys at once (PLATFORMS.md, "Spin", "Key-value").
#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code"
)]

spin_sdk::wit_bindgen::generate!({
    inline: "
        package behalf:http;
        world http-component {
            import behalf:vault/vault@0.2.0;
            import behalf:vault/call@0.2.0;
            import wasi:keyvalue/store@0.2.0-draft2;
            import wasi:keyvalue/batch@0.2.0-draft2;
        }
    ",
    path: "../../wit",
    runtime_path: "::spin_sdk::wit_bindgen::rt",
    with: {
        "wasi:http/types@0.3.0": ::spin_sdk::wasip3::http::types,
        "wasi:clocks/types@0.3.0": ::spin_sdk::wasip3::clocks::types,
    },
    generate_all,
});
