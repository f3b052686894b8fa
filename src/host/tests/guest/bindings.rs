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
            import fermyon:spin/key-value@2.0.0;
            import fermyon:spin/variables@2.0.0;
            import wasi:keyvalue/store@0.2.0-draft2;
            import wasi:keyvalue/batch@0.2.0-draft2;
            import wasi:keyvalue/atomics@0.2.0-draft2;
            include fermyon:spin-cron/spin-cron@2.0.0;
        }
    ",
    path: [
        "../../../../wit/deps/spin-key-value@3.0.0",
        "../../../../wit/deps/spin-variables@3.0.0",
        "../../../../wit/deps/fermyon-spin@2.0.0",
        "../../../../wit/deps/fermyon-spin-cron@2.0.0",
        "../../../../wit/deps/config@0.2.0-draft-2024-09-27",
        "../../../../wit/deps/keyvalue@0.2.0-draft2",
    ],
    generate_all,
});

/// The component, as far as these bindings go.
pub(crate) struct Clock;

export!(Clock);
