//! Generated from `wit/`: the interface that this component exports, and the configuration it imports.
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
    path: "../../wit",
    world: "vault-component",
    with: {
        "wasi:http/types@0.3.0": ::wasip3::http::types,
        "wasi:http/client@0.3.0": ::wasip3::http::client,
        "wasi:clocks/types@0.3.0": ::wasip3::clocks::types,
    },
    generate_all,
});

export!(Component with_types_in self);

/// What the interface is implemented on.
pub struct Component;
