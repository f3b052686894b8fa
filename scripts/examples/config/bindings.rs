//! Generated from `wit/`: the one interface that is exported.
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

wit_bindgen::generate!({
    inline: "
        package example:config;
        world config {
            export wasi:config/store@0.2.0-draft-2024-09-27;
        }
    ",
    path: "../../../wit/deps/config@0.2.0-draft-2024-09-27",
    generate_all,
});

export!(Component with_types_in self);

/// What the interface is implemented on.
pub struct Component;
