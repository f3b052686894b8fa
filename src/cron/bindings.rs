//! Generated from `wit/deps`: the event that it handles, and its settings.
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
        package behalf:cron;
        world cron {
            import wasi:config/store@0.2.0-draft-2024-09-27;
            include fermyon:spin-cron/spin-cron@2.0.0;
        }
    ",
    path: [
        "../../wit/deps/fermyon-spin-cron@2.0.0",
        "../../wit/deps/config@0.2.0-draft-2024-09-27",
    ],
    generate_all,
});

/// The component.
pub(crate) struct Component;

export!(Component);
