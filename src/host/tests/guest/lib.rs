//! The component that the host's tests run: each path does one thing that a host must get right. It answers with text,
//! errors in the words of `Debug`.

#[cfg(target_family = "wasm")]
mod bindings;
#[cfg(target_family = "wasm")]
mod guest;
