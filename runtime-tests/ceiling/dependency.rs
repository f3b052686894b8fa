//! The dependency: a call that computes nothing.

mod bindings {
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

    wit_bindgen::generate!({ path: "wit", world: "dependency" });

    export!(Component);

    /// The component.
    pub struct Component;
}

impl bindings::exports::bench::ceiling::greeting::Guest for bindings::Component {
    async fn greet(name: String) -> String {
        format!("Hello, {name}")
    }
}
