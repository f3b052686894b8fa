//! What is expected of JSON: answers, and lines of the log.

use std::collections::BTreeMap;

use anyhow::Context as _;
use runtime_tests::app::App;
use serde_json::Value;

/// Waits for a line of the log that has these members, behind the first `skipped` lines of output.
pub(crate) async fn wait_for(
    app: &App,
    skipped: usize,
    members: &BTreeMap<String, Value>,
) -> anyhow::Result<Value> {
    let has_all = |line: &Value| {
        let mut members = members.iter();
        members.all(|(name, expected)| is_like(&line[name], expected))
    };
    let found = app.wait_for_line_after(skipped, |line| read(line).filter(has_all));
    found
        .await
        .with_context(|| format!("a line with {members:?}"))
}

/// A line of the log, which Spin puts behind the component's name.
fn read(line: &str) -> Option<Value> {
    serde_json::from_str(line.get(line.find('{')?..)?).ok()
}

/// Whether a value is the one expected; of an object, whether the members expected are. A text in angle brackets stands for
/// all values of a kind.
pub(crate) fn is_like(value: &Value, expected: &Value) -> bool {
    let is_text_of = |lengths: &[usize], also: &[u8]| {
        value.as_str().is_some_and(|text| {
            let mut bytes = text.bytes();
            lengths.contains(&text.len())
                && bytes.all(|it| it.is_ascii_alphanumeric() || also.contains(&it))
        })
    };
    match expected {
        Value::Object(members) => members
            .iter()
            .all(|(name, expected)| is_like(&value[name], expected)),
        Value::String(kind) => match kind.as_str() {
            "<none>" => value.is_null(),
            "<number>" => value.is_u64(),
            "<guid>" => is_text_of(&[36], b"-"),
            "<pseudonym>" => is_text_of(&[32], b"-_"),
            _ => value == expected,
        },
        _ => value == expected,
    }
}
