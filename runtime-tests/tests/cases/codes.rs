//! Whether every code of the API has a case.

use std::collections::BTreeSet;

use runtime_tests::words;

/// Codes that no case can meet, and why.
const NEVER_MET: [(&str, &str); 2] = [
    ("key_worn_out", "it takes 2^31 seals under one key"),
    (
        "clock_wrong",
        "no request is answered with it: a sweep says it in its output (clock-is-wrong.toml)",
    ),
];

/// Compares the codes that the cases expect with the core's tables of them, read from their source: they are matches that
/// the compiler keeps complete, and a list beside them would not be. README.md names each of them.
pub(crate) fn every_code_has_a_case(mut met: BTreeSet<String>) -> Result<(), String> {
    let readme = include_str!("../../../README.md");
    let codes = words::codes().map_err(|error| format!("{error:#}"))?;
    if let Some(code) = met
        .iter()
        .find(|code| !readme.contains(&format!("`{code}`")))
    {
        return Err(format!("README.md, \"API\", does not name {code}"));
    }
    for (code, _) in NEVER_MET {
        if !met.insert(code.to_owned()) {
            return Err(format!("{code} is met: take it out of NEVER_MET"));
        }
    }
    if met == codes {
        Ok(())
    } else {
        Err(format!(
            "without a case: {:?}; not in the tables: {:?}",
            codes.difference(&met).collect::<Vec<_>>(),
            met.difference(&codes).collect::<Vec<_>>()
        ))
    }
}
