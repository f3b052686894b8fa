//! The words that the app says to programs and operators, read from the source that says them: `code` of problems, `event` of log
//! lines, and which of these are alarms. A list beside the source would not be complete; what cannot be read here is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::app::root;

/// Matches from errors to codes, which the compiler keeps complete: a file, and where in it they begin and end.
const CODES: [(&str, &str, &str); 4] = [
    ("src/core/api/problem.rs", "fn row(", "struct Row"),
    (
        "src/core/keeper.rs",
        "/// A word for it",
        "impl From<StoreError>",
    ),
    (
        "src/core/ledger.rs",
        "/// A word for it",
        "/// An operation on storage",
    ),
    (
        "src/core/error.rs",
        "/// A word for each error",
        "/// For the flow of `?`",
    ),
];

/// Methods of `src/core/journal.rs`, and whether what they write is an alarm.
const WRITERS: [(&str, bool); 4] = [
    (".event(", false),
    (".about(", false),
    (".alarm(", true),
    (".alarm_about(", true),
];

/// Where an event is no literal: the file, the expression, and in that file what stands before each of its names, between which texts.
const CHOSEN: [(&str, &str, [&str; 3]); 4] = [
    (
        "src/core/keeper/audit.rs",
        "event.name()",
        EVENTS_OF_THE_AUDIT,
    ),
    (
        "src/core/keeper/audit.rs",
        "Event::UserRemoved.name()",
        EVENTS_OF_THE_AUDIT,
    ),
    (
        "src/core/api.rs",
        "event",
        ["=> \"", "let event = match error", "};"],
    ),
    (
        "src/core/keeper/holds.rs",
        "event",
        ["tell(\"", "let tell =", "/// Why the sweep has stopped"],
    ),
];
const EVENTS_OF_THE_AUDIT: [&str; 3] = ["=> \"", "impl Event {", "fn of("];
/// One of them, which is not written by the audit itself.
const OF_THE_AUDIT: (&str, &str) = ("src/core/keeper/visit.rs", "event");

/// Every code of a problem.
pub fn codes() -> anyhow::Result<BTreeSet<String>> {
    let mut codes = BTreeSet::new();
    for (file, begin, end) in CODES {
        let text = fs::read_to_string(root().join(file))?;
        let part = between(&text, begin, end).with_context(|| file.to_owned())?;
        codes.extend(part.split('"').skip(1).step_by(2).map(str::to_owned));
    }
    Ok(codes)
}

/// Every event of the app's log, and whether it is an alarm.
pub fn events() -> anyhow::Result<BTreeMap<String, bool>> {
    let mut events = BTreeMap::new();
    let mut files = Vec::new();
    for folder in ["core", "vault", "http", "cron", "wasi"] {
        find(&root().join("src").join(folder), &mut files)?;
    }
    ensure!(files.len() > 100, "the source is somewhere else");
    for file in files {
        let name = file.strip_prefix(root())?.display().to_string();
        let text = fs::read_to_string(&file)?;
        for (word, is_alarm) in of(&name, &text)? {
            let known = events.entry(word).or_insert(is_alarm);
            *known |= is_alarm;
        }
    }
    Ok(events)
}

/// The events that a file writes.
pub fn of(file: &str, text: &str) -> anyhow::Result<Vec<(String, bool)>> {
    let text = shipped(text);
    let mut found = Vec::new();
    for (writer, is_alarm) in WRITERS {
        for (at, _) in text.match_indices(writer) {
            let rest = &text[at + writer.len()..];
            found.extend(named(file, rest)?.into_iter().map(|it| (it, is_alarm)));
        }
    }
    let member = "\"event\":";
    for (at, _) in text.match_indices(member) {
        let before = text[..at].rfind("json!").context("an object")?;
        let is_alarm = text[before..at].contains("\"level\": \"alarm\"");
        let rest = &text[at + member.len()..];
        found.extend(named(file, rest)?.into_iter().map(|it| (it, is_alarm)));
    }
    Ok(found)
}

/// Without the tests, which stand at a file's end.
fn shipped(text: &str) -> &str {
    let mut tests = text.match_indices("#[cfg(test)]\n").filter(|(at, it)| {
        let next = text[at + it.len()..].lines().next().unwrap_or_default();
        next.contains("mod ") && next.ends_with('{')
    });
    tests.next().map_or(text, |(at, _)| &text[..at])
}

/// The name, or names, that an expression can be.
fn named(file: &str, rest: &str) -> anyhow::Result<Vec<String>> {
    let rest = rest.trim_start();
    if let Some(literal) = rest.strip_prefix('"') {
        let (name, _) = literal.split_once('"').context("the end of a text")?;
        return Ok(vec![name.to_owned()]);
    }
    let end = rest.find([',', '}']).unwrap_or(rest.len());
    let expression = rest[..end].trim();
    if (file, expression) == OF_THE_AUDIT {
        return Ok(Vec::new());
    }
    let chosen = CHOSEN.iter().find(|it| (it.0, it.1) == (file, expression));
    let Some((source, _, [before, begin, end])) = chosen else {
        bail!("{file}: which events can `{expression}` be? Write a text, or say it in CHOSEN");
    };
    let text = fs::read_to_string(root().join(source))?;
    let part = between(&text, begin, end).with_context(|| (*source).to_owned())?;
    let names = part.split(before).skip(1);
    let names: Vec<_> = names
        .filter_map(|it| Some(it.split_once('"')?.0.to_owned()))
        .collect();
    ensure!(!names.is_empty(), "{source} has no name of `{expression}`");
    Ok(names)
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> anyhow::Result<&'a str> {
    let (_, behind) = text.split_once(begin).with_context(|| begin.to_owned())?;
    let (part, _) = behind.split_once(end).with_context(|| end.to_owned())?;
    Ok(part)
}

/// All that is compiled into the components. The journal is what writes; simulations and models are tests.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    const NOT: [&str; 8] = [
        "tests",
        "tests.rs",
        "simulation",
        "simulation.rs",
        "model",
        "model.rs",
        "journal.rs",
        "target",
    ];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if NOT.contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            find(&path, files)?;
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    Ok(())
}
