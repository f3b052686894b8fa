//! `behalf check`.

use super::Failure;
use super::source::Source;
use crate::instance::ReuseLimits;
use crate::life::Lifetime;
use crate::loading::{Options, load};
use clap::Args;
use std::net::SocketAddr;
use std::time::Duration;

pub(super) const EXAMPLES: &str = "\
Examples:
  behalf check                                   the spin.toml of this folder, with the settings of `behalf up`
  behalf check -f app/spin.toml --variable-file client_secret=/run/secrets/client

Exit codes: 0 all is well, 1 cannot run, 2 the command line, the manifest or a setting is wrong.";

/// How long an instance may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// The options of `behalf check`.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    source: Source,
}

impl Check {
    /// Checks.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let manifest = self.source.manifest()?;
        let lifetime = Lifetime::default();
        let of_instances = lifetime.clone();
        let load = move || {
            let options = Options {
                stores: self.source.stores()?,
                limits: ReuseLimits::default(),
                max_instances: 1,
                max_requests: 1,
                ready_path: None,
                cache: self.source.cache(),
                outbound_ca: self.source.outbound_ca.clone(),
                database_connections: 1,
                environment: self.source.environment()?,
            };
            Ok::<_, Failure>(load(manifest, options, &of_instances)?)
        };
        let app = tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Failure::Io(error.into()))??;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let checked = match app.rehearse(address).await {
            Ok(()) => app.rehearse_schedules().await,
            Err(error) => Err(error),
        };
        lifetime.stop();
        // An instance that does not end is no fault of the settings.
        let _ = lifetime.finish(GRACE).await;
        checked?;
        tracing::info!("all is well");
        Ok(())
    }
}
