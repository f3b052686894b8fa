//! The core's store on Spin's key-value interfaces: `spin:key-value@3.0.0` for single keys, since it waits without
//! holding up the instance, and `wasi:keyvalue` for the listing and for writes of many keys (facts/spin.md §4).

use behalf_core::ledger::key_value::store::{Page, Store, StoreError};
use spin_sdk::key_value;

use crate::bindings::wasi::keyvalue::{batch, store as draft};

/// The store with the label `default`.
pub(crate) struct SpinStore;

impl Store for SpinStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        open().await?.get(key).await.map_err(failed)
    }

    async fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        open().await?.set(key, value).await.map_err(failed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        open().await?.delete(key).await.map_err(failed)
    }

    async fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), StoreError> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
            .collect();
        batch::set_many(&bucket()?, &pairs).map_err(draft_failed)
    }

    async fn delete_many(&self, keys: &[&str]) -> Result<(), StoreError> {
        let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        batch::delete_many(&bucket()?, &keys).map_err(draft_failed)
    }

    async fn list_keys(&self, cursor: Option<&str>) -> Result<Page, StoreError> {
        let page = bucket()?.list_keys(cursor).map_err(draft_failed)?;
        Ok(Page {
            keys: page.keys,
            cursor: page.cursor,
        })
    }
}

/// A handle: cheap, since hosts keep the connection, and so not kept.
async fn open() -> Result<key_value::Store, StoreError> {
    key_value::Store::open_default().await.map_err(failed)
}

/// The same store by the older interface.
fn bucket() -> Result<draft::Bucket, StoreError> {
    draft::open("default").map_err(draft_failed)
}

fn failed(error: key_value::Error) -> StoreError {
    StoreError(match error {
        key_value::Error::NoSuchStore => "there is no store `default`".into(),
        key_value::Error::AccessDenied => {
            "the manifest does not give the component the store `default`".into()
        }
        key_value::Error::StoreTableFull => "too many stores are open".into(),
        key_value::Error::Other(what) => what,
    })
}

fn draft_failed(error: draft::Error) -> StoreError {
    StoreError(match error {
        draft::Error::NoSuchStore => "there is no store `default`".into(),
        draft::Error::AccessDenied => {
            "the manifest does not give the component the store `default`".into()
        }
        draft::Error::Other(what) => what,
    })
}
