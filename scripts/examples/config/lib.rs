//! `wasi:config/store` for a host that has none: the setting `client_id` is the environment variable `BEHALF_CLIENT_ID`.
//! Composed with the vault it leaves nothing but WASI to be imported.

mod bindings;

use bindings::Component;
use bindings::exports::wasi::config::store::{Error, Guest};

const PREFIX: &str = "BEHALF_";

impl Guest for Component {
    fn get(key: String) -> Result<Option<String>, Error> {
        Ok(std::env::var(format!("{PREFIX}{}", key.to_uppercase())).ok())
    }

    fn get_all() -> Result<Vec<(String, String)>, Error> {
        let settings = std::env::vars().filter_map(|(name, value)| {
            let name = name.strip_prefix(PREFIX)?.to_lowercase();
            Some((name, value))
        });
        Ok(settings.collect())
    }
}
