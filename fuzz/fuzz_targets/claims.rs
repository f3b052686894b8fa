//! A claims request: merged with the capabilities it is JSON that declares them, and keeps what was asked for besides.
#![no_main]

use behalf_core::vault::entra::merged_claims;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|asked: &str| {
    assert_eq!(merged_claims(&[], Some(asked)).as_deref(), Some(asked));
    let merged =
        merged_claims(&["cp1".to_owned()], Some(asked)).expect("a capability was declared");
    let merged: Map<String, Value> = serde_json::from_str(&merged).expect("JSON");
    assert_eq!(merged["access_token"]["xms_cc"], json!({"values": ["cp1"]}));
    let asked: Map<String, Value> = serde_json::from_str(asked).unwrap_or_default();
    // A fraction may change in its last digit when it is read and written, which Entra ID does not look at.
    if asked.values().any(has_fraction) {
        return;
    }
    for (name, value) in asked {
        if name != "access_token" {
            assert_eq!(merged[&name], value);
        } else if let Value::Object(members) = value {
            for (name, value) in members {
                assert!(name == "xms_cc" || merged["access_token"][&name] == value);
            }
        }
    }
});

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
