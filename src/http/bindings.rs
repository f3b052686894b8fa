//! Generated from `wit/`: the older key-value interface, whose listing does not deadlock, and which writes many keys at once
//! (PLATFORMS.md, "Spin", "Key-value").
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
            import wasi:keyvalue/store@0.2.0-draft2;
            import wasi:keyvalue/batch@0.2.0-draft2;
        }
    ",
    path: "../../wit",
    runtime_path: "::spin_sdk::wit_bindgen::rt",
    generate_all,
});
