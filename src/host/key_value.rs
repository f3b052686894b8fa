//! The interfaces through which components use the store: Spin's two and `wasi:keyvalue`, one behaviour behind all
//! (PLATFORMS.md, "Key-value").

use crate::bindings::fermyon::spin::key_value as spin2;
use crate::bindings::spin::key_value::key_value as spin;
use crate::bindings::wasi::keyvalue::{atomics, batch, store as wasi};
use crate::store::{Bucket, CompareAndSwap, Store};
use std::collections::BTreeMap;
use std::sync::Arc;
use wasmtime::component::{Accessor, FutureReader, HasData, Resource, ResourceTable, StreamReader};

/// How many open handles one instance may have, of either kind: Spin's limit.
const MAX_OPEN: usize = 256;

/// The stores that a component may open, by label.
pub(crate) type Stores = Arc<BTreeMap<String, Store>>;

/// What one instance may do with stores.
#[derive(Debug)]
pub(crate) struct KeyValueGrant {
    stores: Stores,
    open: usize,
    swaps: usize,
}

impl KeyValueGrant {
    /// A grant to open these stores.
    pub(crate) fn new(stores: Stores) -> Self {
        Self {
            stores,
            open: 0,
            swaps: 0,
        }
    }
}

/// Gives the host functions below their data.
pub(crate) struct HasKeyValue;

impl HasData for HasKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

/// The parts of an instance's state that the host functions below work on.
pub(crate) struct KeyValueView<'a> {
    /// What the instance may do.
    pub(crate) grant: &'a mut KeyValueGrant,
    /// Its handles.
    pub(crate) table: &'a mut ResourceTable,
}

enum Refusal {
    AccessDenied,
    TooManyOpen,
}

impl KeyValueView<'_> {
    fn open(&mut self, label: &str) -> wasmtime::Result<Result<Resource<Bucket>, Refusal>> {
        let Some(store) = self.grant.stores.get(label) else {
            return Ok(Err(Refusal::AccessDenied));
        };
        if self.grant.open >= MAX_OPEN {
            return Ok(Err(Refusal::TooManyOpen));
        }
        let bucket = self.table.push(store.bucket(label))?;
        self.grant.open = self.grant.open.saturating_add(1);
        Ok(Ok(bucket))
    }

    /// A copy of the handle, to work with while the instance's state is not borrowed.
    fn bucket(&self, handle: &Resource<Bucket>) -> wasmtime::Result<Bucket> {
        Ok(self.table.get(handle)?.clone())
    }

    fn close(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        self.grant.open = self.grant.open.saturating_sub(1);
        Ok(())
    }
}

// ---- spin:key-value@3.0.0 --------------------------------------------------------------------------------------------

impl spin::Host for KeyValueView<'_> {}

impl spin::HostStore for KeyValueView<'_> {
    async fn drop(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(handle)
    }
}

fn bucket<T: Send>(
    accessor: &Accessor<T, HasKeyValue>,
    handle: &Resource<Bucket>,
) -> wasmtime::Result<Bucket> {
    accessor.with(|mut access| access.get().bucket(handle))
}

impl<T: Send> spin::HostStoreWithStore<T> for HasKeyValue {
    async fn open(
        accessor: &Accessor<T, Self>,
        label: String,
    ) -> wasmtime::Result<Result<Resource<Bucket>, spin::Error>> {
        let opened = accessor.with(|mut access| access.get().open(&label))?;
        Ok(opened.map_err(|refusal| match refusal {
            Refusal::AccessDenied => spin::Error::AccessDenied,
            Refusal::TooManyOpen => spin::Error::StoreTableFull,
        }))
    }

    async fn get(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .get(key)
            .await
            .map_err(spin::Error::Other))
    }

    async fn set(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .set(key, value)
            .await
            .map_err(spin::Error::Other))
    }

    async fn delete(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<(), spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .delete(key)
            .await
            .map_err(spin::Error::Other))
    }

    async fn exists(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<bool, spin::Error>> {
        Ok(bucket(accessor, &handle)?
            .exists(key)
            .await
            .map_err(spin::Error::Other))
    }

    async fn get_keys(
        accessor: &Accessor<T, Self>,
        handle: Resource<Bucket>,
    ) -> wasmtime::Result<(StreamReader<String>, FutureReader<Result<(), spin::Error>>)> {
        // All keys first, then the stream: Spin streams them under the store's lock and can lock itself up.
        let (keys, end) = match bucket(accessor, &handle)?.keys().await {
            Ok(keys) => (keys, Ok(())),
            Err(reason) => (Vec::new(), Err(spin::Error::Other(reason))),
        };
        accessor.with(|mut access| {
            let keys = StreamReader::new(&mut access, keys)?;
            let end = FutureReader::new(&mut access, async move { wasmtime::error::Ok(end) })?;
            Ok((keys, end))
        })
    }
}

// ---- fermyon:spin/key-value@2.0.0: its twin, synchronous to the component --------------------------------------------

impl spin2::Host for KeyValueView<'_> {}

impl spin2::HostStore for KeyValueView<'_> {
    async fn open(
        &mut self,
        label: String,
    ) -> wasmtime::Result<Result<Resource<Bucket>, spin2::Error>> {
        Ok(
            KeyValueView::open(self, &label)?.map_err(|refusal| match refusal {
                Refusal::AccessDenied => spin2::Error::AccessDenied,
                Refusal::TooManyOpen => spin2::Error::StoreTableFull,
            }),
        )
    }

    async fn get(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, spin2::Error>> {
        let value = self.bucket(&handle)?.get(key).await;
        Ok(value.map_err(spin2::Error::Other))
    }

    async fn set(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), spin2::Error>> {
        let done = self.bucket(&handle)?.set(key, value).await;
        Ok(done.map_err(spin2::Error::Other))
    }

    async fn delete(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<(), spin2::Error>> {
        let done = self.bucket(&handle)?.delete(key).await;
        Ok(done.map_err(spin2::Error::Other))
    }

    async fn exists(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<bool, spin2::Error>> {
        let exists = self.bucket(&handle)?.exists(key).await;
        Ok(exists.map_err(spin2::Error::Other))
    }

    async fn get_keys(
        &mut self,
        handle: Resource<Bucket>,
    ) -> wasmtime::Result<Result<Vec<String>, spin2::Error>> {
        let keys = self.bucket(&handle)?.keys().await;
        Ok(keys.map_err(spin2::Error::Other))
    }

    async fn drop(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(handle)
    }
}

// ---- wasi:keyvalue@0.2.0-draft2 --------------------------------------------------------------------------------------

impl wasi::Host for KeyValueView<'_> {
    async fn open(
        &mut self,
        label: String,
    ) -> wasmtime::Result<Result<Resource<Bucket>, wasi::Error>> {
        Ok(
            KeyValueView::open(self, &label)?.map_err(|refusal| match refusal {
                Refusal::AccessDenied => wasi::Error::AccessDenied,
                Refusal::TooManyOpen => wasi::Error::Other("store table full".to_owned()),
            }),
        )
    }
}

// These are synchronous to the component: while one waits, nothing else in its instance runs. So it is in Spin.
impl wasi::HostBucket for KeyValueView<'_> {
    async fn get(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .get(key)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn set(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .set(key, value)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn delete(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<(), wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .delete(key)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn exists(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<bool, wasi::Error>> {
        Ok(self
            .bucket(&handle)?
            .exists(key)
            .await
            .map_err(wasi::Error::Other))
    }

    async fn list_keys(
        &mut self,
        handle: Resource<Bucket>,
        cursor: Option<String>,
    ) -> wasmtime::Result<Result<wasi::KeyResponse, wasi::Error>> {
        if cursor.is_some() {
            return Ok(Err(wasi::Error::Other(
                "list_keys: cursor not supported".to_owned(),
            )));
        }
        let keys = self.bucket(&handle)?.keys().await;
        Ok(keys
            .map(|keys| wasi::KeyResponse { keys, cursor: None })
            .map_err(wasi::Error::Other))
    }

    async fn drop(&mut self, handle: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(handle)
    }
}

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        handle: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Vec<(String, Option<Vec<u8>>)>, wasi::Error>> {
        let pairs = self.bucket(&handle)?.get_many(keys).await;
        Ok(pairs.map_err(wasi::Error::Other))
    }

    async fn set_many(
        &mut self,
        handle: Resource<Bucket>,
        pairs: Vec<(String, Vec<u8>)>,
    ) -> wasmtime::Result<Result<(), wasi::Error>> {
        let done = self.bucket(&handle)?.set_many(pairs).await;
        Ok(done.map_err(wasi::Error::Other))
    }

    async fn delete_many(
        &mut self,
        handle: Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<(), wasi::Error>> {
        let done = self.bucket(&handle)?.delete_many(keys).await;
        Ok(done.map_err(wasi::Error::Other))
    }
}

impl KeyValueView<'_> {
    fn hold(
        &mut self,
        swap: CompareAndSwap,
    ) -> wasmtime::Result<Result<Resource<CompareAndSwap>, wasi::Error>> {
        if self.grant.swaps >= MAX_OPEN {
            let reason = "too many compare_and_swaps opened".to_owned();
            return Ok(Err(wasi::Error::Other(reason)));
        }
        self.grant.swaps = self.grant.swaps.saturating_add(1);
        Ok(Ok(self.table.push(swap)?))
    }
}

impl atomics::Host for KeyValueView<'_> {
    async fn increment(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, wasi::Error>> {
        let sum = self.bucket(&handle)?.increment(key, delta).await;
        Ok(sum.map_err(wasi::Error::Other))
    }

    async fn swap(
        &mut self,
        handle: Resource<CompareAndSwap>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), atomics::CasError>> {
        // Spin forgets to count it as closed, so an instance can swap 256 times at most; a test should notice here.
        let swap = self.table.delete(handle)?;
        let failed = |reason| atomics::CasError::StoreError(wasi::Error::Other(reason));
        match swap.swap(value).await {
            Ok(true) => Ok(Ok(())),
            Ok(false) => {
                let again = swap.again();
                if let Err(reason) = again.current().await {
                    return Ok(Err(failed(reason)));
                }
                Ok(Err(match self.hold(again)? {
                    Ok(again) => atomics::CasError::CasFailed(again),
                    Err(error) => atomics::CasError::StoreError(error),
                }))
            }
            Err(reason) => Ok(Err(failed(reason))),
        }
    }
}

impl atomics::HostCas for KeyValueView<'_> {
    async fn new(
        &mut self,
        handle: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Resource<CompareAndSwap>, wasi::Error>> {
        let bucket = self.bucket(&handle)?;
        self.hold(CompareAndSwap::new(bucket, key))
    }

    async fn current(
        &mut self,
        handle: Resource<CompareAndSwap>,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, wasi::Error>> {
        let swap = self.table.get(&handle)?.clone();
        Ok(swap.current().await.map_err(wasi::Error::Other))
    }

    async fn drop(&mut self, handle: Resource<CompareAndSwap>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        self.grant.swaps = self.grant.swaps.saturating_sub(1);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::LABEL;

    fn grant() -> KeyValueGrant {
        let stores = BTreeMap::from([(LABEL.to_owned(), Store::file(None))]);
        KeyValueGrant::new(Arc::new(stores))
    }

    #[test]
    fn only_granted_labels_open() {
        let mut view = KeyValueView {
            grant: &mut grant(),
            table: &mut ResourceTable::new(),
        };
        assert!(view.open(LABEL).unwrap().is_ok());
        assert!(matches!(
            view.open("other").unwrap(),
            Err(Refusal::AccessDenied)
        ));
    }

    #[test]
    fn handles_are_bounded_and_come_back() {
        let mut view = KeyValueView {
            grant: &mut grant(),
            table: &mut ResourceTable::new(),
        };
        let mut handles: Vec<_> = (0..MAX_OPEN)
            .map(|_| view.open(LABEL).unwrap().ok().unwrap())
            .collect();
        assert!(matches!(
            view.open(LABEL).unwrap(),
            Err(Refusal::TooManyOpen)
        ));
        view.close(handles.pop().unwrap()).unwrap();
        assert!(view.open(LABEL).unwrap().is_ok());
    }
}
