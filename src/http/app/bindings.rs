//! Generated from `wit/`: the vault that the components import.
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
        package behalf:http-app;
        world http-app {
            import behalf:vault/vault@0.2.0;
            import behalf:vault/call@0.2.0;
        }
    ",
    path: "../../../wit",
    runtime_path: "::spin_sdk::wit_bindgen::rt",
    with: {
        "wasi:http/types@0.3.0": ::spin_sdk::wasip3::http::types,
        "wasi:clocks/types@0.3.0": ::spin_sdk::wasip3::clocks::types,
    },
    generate_all,
});
