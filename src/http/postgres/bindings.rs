//! Generated from `wit/`: the vault's interface that says where the database is.
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
        package behalf:http-postgres;
        world http-component {
            import behalf:vault/database@0.2.0;
        }
    ",
    path: "../../../wit",
    runtime_path: "::spin_sdk::wit_bindgen::rt",
    with: {
        "behalf:vault/vault@0.2.0": ::behalf_http_app::bindings::behalf::vault::vault,
    },
    generate_all,
});
