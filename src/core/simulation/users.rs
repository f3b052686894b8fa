//! The users of a run, and their tenants.

use crate::identity::UserId;
use crate::vault::samples::TENANT;

pub(super) const OTHER_TENANT: &str = "77777777-7777-7777-7777-777777777777";

/// The object ID of each user.
pub(super) const OBJECTS: [&str; 3] = [
    "aaaaaaaa-4444-4444-4444-444444444444",
    "bbbbbbbb-4444-4444-4444-444444444444",
    "cccccccc-4444-4444-4444-444444444444",
];
pub(super) const TENANTS: [&str; 2] = [TENANT, OTHER_TENANT];

/// The tenant of each user, as an index of `TENANTS`.
pub(super) const TENANT_OF: [usize; 3] = [0, 1, 0];

/// In the place of a user: whoever may remove users, and tenants.
pub(super) const OPERATOR: usize = OBJECTS.len();
/// In the place of a user: whoever may draw for users who are away.
pub(super) const JOB: usize = OPERATOR + 1;

/// How a user is called in the keys of the store.
pub(super) fn storage_id(user: usize) -> String {
    UserId::from_sealed(&format!("{}.{}", TENANTS[TENANT_OF[user]], OBJECTS[user]))
        .storage_id(None)
        .as_str()
        .to_owned()
}
