//! Generated from `wit/`: the vault that is imported, with calls and what HTTP has to do with them, and the interfaces of this
//! example.
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
    path: ["../../../wit", "../wit"],
    world: "example:embed/embed-and-call@0.1.0",
    generate_all,
});

export!(Component with_types_in self);

/// What the interface is implemented on.
pub struct Component;
