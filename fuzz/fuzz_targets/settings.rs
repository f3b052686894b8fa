//! Settings, as lines `name=value` over the least that works: they are taken, or one that is named is refused.
#![no_main]

use std::collections::HashMap;

use behalf_core::error::{OperatorError, VaultError};
use behalf_core::port::{Config, ConfigError};
use behalf_core::vault::settings::Settings;
use libfuzzer_sys::fuzz_target;

struct Values<'a>(HashMap<&'a str, &'a str>);

impl Config for Values<'_> {
    fn get(&self, name: &str) -> Result<Option<String>, ConfigError> {
        Ok(self.0.get(name).map(|value| (*value).to_owned()))
    }
}

fuzz_target!(|text: &str| {
    let mut values = HashMap::from([
        ("client_id", "22222222-2222-2222-2222-222222222222"),
        ("tenants", "11111111-1111-1111-1111-111111111111"),
        ("client_secret", "secret"),
        ("key_vault_url", "https://demo.vault.azure.net"),
    ]);
    values.extend(text.split('\n').filter_map(|line| line.split_once('=')));
    match Settings::read(&Values(values)) {
        Ok(settings) => {
            assert!(!settings.required_scope.is_empty() && !settings.audiences.is_empty());
            let _ = format!("{settings:?}");
        }
        Err(VaultError::Operator(OperatorError::Setting(faults))) => assert!(!faults.is_empty()),
        Err(other) => panic!("{other:?}"),
    }
});
