//! The port under this ledger: key-value storage.
#![allow(
    async_fn_in_trait,
    reason = "callers are generic over one implementation; no future crosses a thread"
)]

use crate::ledger::StoreError;

/// Key-value storage with nothing but single-key operations: no compare-and-swap, no transaction, no order between keys.
pub trait Store {
    /// The value, or none if there is no such key.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Sets the value, whatever was there.
    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;
    /// Deletes the key; not an error if there is none.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// Keys of the store, in no order: from the start, or from where the page with this cursor ended.
    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError>;

    /// Sets many values, in no order. After an error some may be set and others not. A store that has no call for it sets
    /// them one by one.
    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        for (key, value) in pairs {
            self.set(key, value).await?;
        }
        Ok(())
    }

    /// Deletes many keys, in no order. After an error some may be deleted and others not. A store that has no call for it
    /// deletes them one by one.
    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError> {
        for key in keys {
            self.delete(key).await?;
        }
        Ok(())
    }
}

/// A page of the store's keys.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Page {
    /// The keys.
    pub keys: Vec<String>,
    /// Where the next page begins; none: this was the last.
    pub cursor: Option<String>,
}
