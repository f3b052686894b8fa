//! The port under this ledger: key-value storage.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use thiserror::Error;

/// Key-value storage with nothing but single-key operations: no compare-and-swap, no transaction, no order between keys
/// (facts/storage-protocol.md).
pub trait Store {
    /// The value, or none if there is no such key.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Sets the value, whatever was there.
    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;
    /// Deletes the key; not an error if there is none.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// Sets many values, in no order. After an error some may be set and others not.
    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError>;
    /// Deletes many keys, in no order. After an error some may be deleted and others not.
    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError>;
    /// Keys of the store, in no order: from the start, or from where the page with this cursor ended.
    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError>;
}

/// A page of the store's keys.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Page {
    /// The keys.
    pub keys: Vec<String>,
    /// Where the next page begins; none: this was the last.
    pub cursor: Option<String>,
}

/// An operation on storage failed. It may have happened all the same.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("key-value storage: {0}")]
pub struct StoreError(
    /// What the host says of it: a backend's message, which knows keys but no value.
    pub String,
);
