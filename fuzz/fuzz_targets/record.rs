//! A stored value: a record or a head is read or not, and what was read is written as it was; a record's marker can be found
//! again by its name.
#![no_main]

use behalf_core::identity::{Nonce, StorageId};
use behalf_core::ledger::key_value::layout::{Layout, Marker, Tag};
use behalf_core::identity::{User};
use behalf_core::ledger::record::{Head, Record, Unreadable};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let head = Head::from_json(json);
    if let Ok(head) = &head {
        assert_eq!(Head::from_json(&head.to_json()).as_ref(), Ok(head));
    }
    let record = Record::from_json(json);
    // Whatever it is a newer version of.
    assert_eq!(
        head == Err(Unreadable::Newer),
        record == Err(Unreadable::Newer)
    );
    let Ok(record) = record else {
        return;
    };
    assert_eq!(Record::from_json(&record.to_json()).as_ref(), Ok(&record));
    let layout = Layout::new("");
    let marker = Marker {
        time: record.due_at,
        tag: Tag::of(&record),
        key_version: record.key_version,
        user: User {
            tenant: record.tenant,
            id: StorageId::parse(&"A".repeat(32)).unwrap(),
        },
        nonce: Nonce::parse("1793606000n").unwrap(),
        write: record.write,
    };
    assert_eq!(layout.read_marker(&layout.marker(&marker)), Some(marker));
});
