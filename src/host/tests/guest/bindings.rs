//! Generated from `wit/`: everything that the host provides beyond `wasi:http`.
#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code"
)]

wit_bindgen::generate!({
    inline: "
        package behalf:test-guest;
        world test-guest {
            import spin:key-value/key-value@3.0.0;
            import spin:variables/variables@3.0.0;
            import wasi:config/store@0.2.0-draft-2024-09-27;
            import wasi:keyvalue/store@0.2.0-draft2;
        }
    ",
    path: [
        "../../../../wit/deps/spin-key-value@3.0.0",
        "../../../../wit/deps/spin-variables@3.0.0",
        "../../../../wit/deps/config@0.2.0-draft-2024-09-27",
        "../../../../wit/deps/keyvalue@0.2.0-draft2",
    ],
    generate_all,
});
