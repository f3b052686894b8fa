//! What components may import from this host beyond `wasi:cli`, `wasi:http` and their like, and what it calls of a cron
//! component, from the files in `wit/deps`.

wasmtime::component::bindgen!({
    inline: "
        package behalf:host;
        world imports {
            import spin:key-value/key-value@3.0.0;
            import spin:postgres/postgres@4.2.0;
            import spin:variables/variables@3.0.0;
            import fermyon:spin/key-value@2.0.0;
            import fermyon:spin/variables@2.0.0;
            import wasi:config/store@0.2.0-draft-2024-09-27;
            import wasi:keyvalue/store@0.2.0-draft2;
            import wasi:keyvalue/batch@0.2.0-draft2;
            import wasi:keyvalue/atomics@0.2.0-draft2;
        }
    ",
    path: [
        "../../wit/deps/spin-key-value@3.0.0",
        "../../wit/deps/spin-postgres@4.2.0",
        "../../wit/deps/spin-variables@3.0.0",
        "../../wit/deps/fermyon-spin@2.0.0",
        "../../wit/deps/config@0.2.0-draft-2024-09-27",
        "../../wit/deps/keyvalue@0.2.0-draft2",
    ],
    imports: { default: async | trappable },
    with: {
        "spin:key-value/key-value@3.0.0.store": crate::store::Bucket,
        "spin:postgres/postgres@4.2.0.connection": crate::postgres::Connection,
        "spin:postgres/postgres@4.2.0.connection-builder": crate::postgres::Builder,
        "fermyon:spin/key-value@2.0.0.store": crate::store::Bucket,
        "wasi:keyvalue/store@0.2.0-draft2.bucket": crate::store::Bucket,
        "wasi:keyvalue/atomics@0.2.0-draft2.cas": crate::store::CompareAndSwap,
    },
});

pub mod cron {
    wasmtime::component::bindgen!({
        world: "fermyon:spin-cron/spin-cron",
        path: "../../wit/deps/fermyon-spin-cron@2.0.0",
        exports: { default: async },
    });
}
