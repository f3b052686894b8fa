//! The service that people write today in Node for what behalf does: `runtime-tests/peer`, which says what it is and why
//! it is fair to compare the two.

use std::path::PathBuf;

use tokio::process::Command;

use crate::app::{App, root};
use crate::emulators::{Emulators, Proxy};
use crate::peers;
use crate::redis::Redis;
use crate::store::Store;

/// The service on emulators and a Redis server. It ends when this is dropped, and when this process ends.
pub struct Peer {
    /// The service as a child process. [`App::store`] is all that is in its Redis server.
    pub app: App,
    // Dropped after the service.
    _proxy: Proxy,
}

impl Peer {
    /// Installs it if need be, starts it with this many processes that serve, and waits until they do.
    ///
    /// Microsoft's clients want HTTPS and the real names, so it reaches the emulators through a proxy that has both.
    pub async fn start(emulators: &Emulators, redis: &Redis, workers: u32) -> anyhow::Result<Self> {
        peers::installed()?;
        let proxy = emulators.proxy().await?;
        let folder = tempfile::Builder::new().prefix("peer-").tempdir()?;
        let authority = folder.path().join("authority.pem");
        proxy.write_authority(&authority)?;
        let options = emulators.options();
        let mut command = Command::new("node");
        command
            .arg(program())
            // No setting of this machine, nor one for Node.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NODE_ENV", "production")
            .env("NODE_EXTRA_CA_CERTS", &authority)
            .env("HTTPS_PROXY", proxy.url())
            .env("CLIENT_ID", &options.client_id)
            .env("CLIENT_SECRET", &options.client_secret)
            .env("TENANTS", options.tenants.join(","))
            .env("KEY_VAULT_URL", "https://behalf.vault.azure.net")
            .env("KEY_VAULT_TENANT", &options.key_vault_tenant)
            .env("REDIS_URL", redis.url())
            .env("WORKERS", workers.to_string());
        let store = Store::Redis(redis.url());
        let app = App::serving(command, store, false, Some(folder)).await?;
        Ok(Self { app, _proxy: proxy })
    }
}

/// Where `scripts/peers` installs it.
fn program() -> PathBuf {
    root().join("target/peers/service/service.mjs")
}
