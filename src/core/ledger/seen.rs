//! The fingerprint of the settings that records depend on, as it is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::identity::Fingerprint;
use crate::ledger::LedgerError;
use crate::ledger::record::{VERSION, from_json, to_json};

/// As JSON, with each hash under its setting's name.
pub(crate) fn to_stored(fingerprint: &Fingerprint) -> Vec<u8> {
    let seen = fingerprint.parts().into_iter();
    let seen = seen.map(|(setting, hash)| (setting.into(), hash.into()));
    to_json(&SeenSettings {
        v: VERSION,
        seen: seen.collect(),
    })
}

/// Reads it.
///
/// # Errors
/// [`LedgerError::RecordDamaged`], [`LedgerError::RecordTooNew`].
pub(crate) fn from_stored(json: &[u8]) -> Result<Fingerprint, LedgerError> {
    let SeenSettings { seen, .. } = from_json(json)?;
    let hashes = Fingerprint::SETTINGS.map(|setting| seen.get(setting).map_or("", String::as_str));
    Fingerprint::parse(hashes).ok_or(LedgerError::RecordDamaged)
}

#[derive(Serialize, Deserialize)]
struct SeenSettings {
    v: u32,
    seen: BTreeMap<String, String>,
}
