//! A name of a key in storage: what is read from it makes that name and no other, and no name is of two kinds.
#![no_main]

use behalf_core::ledger::key_value::layout::Layout;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|key: &str| {
    for prefix in ["", "p."] {
        let layout = Layout::new(prefix);
        let marker = layout.read_marker(key);
        let head = layout.read_head(key);
        let record = layout.read_private("rec", key);
        let off = layout.read_private("off", key);
        let version = layout.read_version(key);
        let made = [
            marker.map(|marker| layout.marker(&marker)),
            head.map(|user| layout.head(&user)),
            record.map(|(id, nonce)| layout.record(&id, &nonce)),
            off.map(|(id, nonce)| layout.off(&id, &nonce)),
            version.map(|(tenant, version, since)| layout.version(&tenant, &version, since)),
        ];
        let mut names = made.into_iter().flatten();
        assert!(names.next().is_none_or(|name| name == key));
        assert_eq!(names.next(), None);
    }
});
