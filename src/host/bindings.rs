//! What components may import from this host beyond `wasi:cli`, `wasi:http` and their like, from the files in `wit/deps`.

wasmtime::component::bindgen!({
    inline: "
        package behalf:host;
        world imports {
            import spin:key-value/key-value@3.0.0;
            import spin:variables/variables@3.0.0;
            import wasi:config/store@0.2.0-draft-2024-09-27;
            import wasi:keyvalue/store@0.2.0-draft2;
        }
    ",
    path: [
        "../../wit/deps/spin-key-value@3.0.0",
        "../../wit/deps/spin-variables@3.0.0",
        "../../wit/deps/config@0.2.0-draft-2024-09-27",
        "../../wit/deps/keyvalue@0.2.0-draft2",
    ],
    imports: { default: async | trappable },
    with: {
        "spin:key-value/key-value@3.0.0.store": crate::key_value::Bucket,
        "wasi:keyvalue/store@0.2.0-draft2.bucket": crate::key_value::Bucket,
    },
});
