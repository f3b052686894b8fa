//! The runtime configuration: which stores there are, in the file and the words that Spin has for it.

use crate::store::{FILE_NAME, LABEL, RedisUrlError, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where the key-value store `default` is, unless the file says so itself.
#[derive(Debug, Clone)]
pub(crate) enum StateDir {
    /// In this folder, whatever the file says.
    Given(PathBuf),
    /// In memory, whatever the file says.
    Memory,
    /// In this folder, unless the file names another.
    Default(PathBuf),
}

/// The stores, by label. None of them is opened yet.
#[derive(Debug)]
pub(crate) struct RuntimeConfig {
    pub(crate) stores: BTreeMap<String, Store>,
}

impl RuntimeConfig {
    /// Reads the file; without one there is the store `default` alone.
    ///
    /// # Errors
    ///
    /// See [`RuntimeConfigError`].
    pub(crate) fn read(
        file: Option<&Path>,
        state_dir: StateDir,
    ) -> Result<Self, RuntimeConfigError> {
        let fail = |reason: String| RuntimeConfigError {
            file: file.unwrap_or(Path::new("")).to_owned(),
            reason,
        };
        let Some(file) = file else {
            return Self::parse(Table::new(), Path::new(""), state_dir).map_err(fail);
        };
        let text =
            std::fs::read_to_string(file).map_err(|error| fail(format!("cannot read: {error}")))?;
        // Not the line itself, which may hold a password.
        let table = toml::from_str(&text).map_err(|error| fail(error.message().to_owned()))?;
        // Relative to the file, as Spin has it.
        let folder = file.parent().unwrap_or(Path::new(""));
        Self::parse(table, folder, state_dir).map_err(fail)
    }

    fn parse(mut table: Table, folder: &Path, state_dir: StateDir) -> Result<Self, String> {
        let of_file = match table.remove("state_dir") {
            None => None,
            Some(Value::String(path)) => Some(path),
            Some(_) => return Err("state_dir must be a text".to_owned()),
        };
        let state_dir = match (state_dir, of_file) {
            (StateDir::Given(path), _) | (StateDir::Default(path), None) => Some(path),
            (StateDir::Default(_), Some(path)) if !path.is_empty() => Some(PathBuf::from(path)),
            (StateDir::Memory, _) | (StateDir::Default(_), Some(_)) => None,
        };
        let mut stores = BTreeMap::new();
        match table.remove("key_value_store") {
            None => {}
            Some(Value::Table(all)) => {
                for (label, value) in all {
                    let name = format!("[key_value_store.{label}]");
                    let store = store(&name, value, folder)?;
                    stores.insert(label, store);
                }
            }
            Some(_) => {
                return Err("key_value_store must be tables: [key_value_store.default]".to_owned());
            }
        }
        if let Some((name, value)) = table.into_iter().next() {
            return Err(unsupported(&name, &value));
        }
        stores
            .entry(LABEL.to_owned())
            .or_insert_with(|| Store::file(state_dir.map(|folder| folder.join(FILE_NAME))));
        Ok(Self { stores })
    }
}

fn store(name: &str, value: Value, folder: &Path) -> Result<Store, String> {
    let Value::Table(mut table) = value else {
        return Err(format!("{name} must be a table"));
    };
    let mut take = |key: &str| match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{name}: {key} must be a text")),
    };
    let kind =
        take("type")?.ok_or_else(|| format!("{name} has no type: write \"spin\" or \"redis\""))?;
    let store = match kind.as_str() {
        "spin" => Store::file(take("path")?.map(|path| folder.join(path))),
        "redis" => {
            let url = take("url")?.ok_or_else(|| format!("{name} has no url"))?;
            Store::redis(&url)
                .map_err(|RedisUrlError| format!("{name}: the url {RedisUrlError}"))?
        }
        other => {
            return Err(format!(
                "{name} has the type {other:?}; this host has \"spin\" and \"redis\""
            ));
        }
    };
    match table.keys().next() {
        None => Ok(store),
        Some(key) => Err(format!(
            "{name}: a store of the type {kind:?} has no {key:?}"
        )),
    }
}

fn unsupported(name: &str, value: &Value) -> String {
    let shown = match value {
        Value::Table(_) => format!("[{name}]"),
        Value::Array(_) => format!("[[{name}]]"),
        _ => name.to_owned(),
    };
    let instead = match name {
        "variables_provider" | "config_provider" => {
            ": set variables with SPIN_VARIABLE_… or --variable-file"
        }
        "client_tls" => ": certificate authorities are --outbound-ca",
        "log_dir" => ": this host logs on standard error",
        _ => "",
    };
    format!("this host has no {shown}, only [key_value_store.…] and state_dir{instead}")
}

/// Why there is no runtime configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", .file.display())]
pub(crate) struct RuntimeConfigError {
    file: PathBuf,
    reason: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str, state_dir: StateDir) -> Result<BTreeMap<String, String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("runtime-config.toml");
        std::fs::write(&file, text).unwrap();
        let shown = folder.path().display().to_string();
        let config = RuntimeConfig::read(Some(&file), state_dir)
            .map_err(|error| error.to_string().replace(&shown, "FOLDER"))?;
        let stores = config.stores.into_iter();
        Ok(stores
            .map(|(label, store)| (label, store.to_string().replace(&shown, "FOLDER")))
            .collect())
    }

    #[test]
    fn stores_are_where_spin_has_them() {
        let default = || StateDir::Default("/app/.spin".into());
        let file = "/app/.spin/sqlite_key_value.db";
        for (text, state_dir, expected) in [
            ("", default(), [("default", file)].as_slice()),
            ("", StateDir::Memory, &[("default", "in memory")]),
            (
                "state_dir = '/a'",
                default(),
                &[("default", "/a/sqlite_key_value.db")],
            ),
            ("state_dir = ''", default(), &[("default", "in memory")]),
            (
                "state_dir = '/a'",
                StateDir::Given("/b".into()),
                &[("default", "/b/sqlite_key_value.db")],
            ),
            (
                "[key_value_store.default]\ntype = 'spin'\npath = 'a/b.db'",
                StateDir::Given("/b".into()),
                &[("default", "FOLDER/a/b.db")],
            ),
            (
                "[key_value_store.default]\ntype = 'spin'\npath = '/a/b.db'",
                default(),
                &[("default", "/a/b.db")],
            ),
            (
                "[key_value_store.default]\ntype = 'spin'",
                default(),
                &[("default", "in memory")],
            ),
            (
                "[key_value_store.other]\ntype = 'redis'\nurl = 'redis://user:canary@r.test:7/2'",
                default(),
                &[("default", file), ("other", "Redis at r.test:7")],
            ),
            (
                "[key_value_store.default]\ntype = 'redis'\nurl = 'rediss://r.test'",
                default(),
                &[("default", "Redis at r.test:6379")],
            ),
        ] {
            let expected = expected
                .iter()
                .map(|(label, store)| ((*label).to_owned(), (*store).to_owned()));
            assert_eq!(parse(text, state_dir), Ok(expected.collect()), "{text}");
        }
    }

    #[test]
    fn what_this_host_does_not_have_is_named() {
        let only = "only [key_value_store.…] and state_dir";
        for (text, expected) in [
            (
                "[key_value_store.default]\ntype = 'azure_cosmos'\nkey = 'canary'",
                "[key_value_store.default] has the type \"azure_cosmos\"; this host has \"spin\" and \"redis\"".to_owned(),
            ),
            (
                "[key_value_store.default]\nurl = 'canary'",
                "[key_value_store.default] has no type: write \"spin\" or \"redis\"".to_owned(),
            ),
            (
                "[key_value_store.default]\ntype = 'redis'",
                "[key_value_store.default] has no url".to_owned(),
            ),
            (
                "[key_value_store.default]\ntype = 'redis'\nurl = 'http://canary'",
                "[key_value_store.default]: the url must be redis://HOST:PORT, or rediss:// with TLS".to_owned(),
            ),
            (
                "[key_value_store.default]\ntype = 'spin'\npth = 'canary'",
                "[key_value_store.default]: a store of the type \"spin\" has no \"pth\"".to_owned(),
            ),
            (
                "[key_value_store.default]\ntype = 'spin'\npath = 7",
                "[key_value_store.default]: path must be a text".to_owned(),
            ),
            ("key_value_store = 7", "key_value_store must be tables: [key_value_store.default]".to_owned()),
            ("[sqlite_database.default]\ntype = 'spin'", format!("this host has no [sqlite_database], {only}")),
            (
                "[[variables_provider]]\ntype = 'vault'\ntoken = 'canary'",
                format!("this host has no [[variables_provider]], {only}: set variables with SPIN_VARIABLE_… or --variable-file"),
            ),
            ("log_dir = 'x'", format!("this host has no log_dir, {only}: this host logs on standard error")),
            ("url = 'canary", "invalid literal string".to_owned()),
        ] {
            let error = parse(text, StateDir::Memory).unwrap_err();
            let (file, reason) = error.split_once(": ").unwrap();
            assert_eq!(file, "FOLDER/runtime-config.toml", "{text}");
            assert!(reason.starts_with(&expected), "{text}: {reason}");
            assert!(!reason.contains("canary"), "{text}: {reason}");
        }
        let missing = RuntimeConfig::read(Some(Path::new("/none")), StateDir::Memory).unwrap_err();
        assert!(
            missing.to_string().starts_with("/none: cannot read: "),
            "{missing}"
        );
    }
}
