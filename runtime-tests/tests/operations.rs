//! OPERATIONS.md tells of every code, event and alarm that there is, and of no other.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use runtime_tests::app::root;
use runtime_tests::words;

type Result = anyhow::Result<()>;

const PAGE: &str = include_str!("../../OPERATIONS.md");

/// The words in the first column of the table under a heading.
fn told(page: &str, heading: &str) -> anyhow::Result<BTreeSet<String>> {
    let (_, part) = page
        .split_once(&format!("\n### {heading}\n"))
        .context("the heading")?;
    let part = part.split("\n#").next().unwrap_or_default();
    let mut words = BTreeSet::new();
    for row in part.lines().filter(|line| line.starts_with("| `")) {
        let (_, row) = row.split_once("| ").context("a cell")?;
        let (cell, _) = row.split_once(" |").context("its end")?;
        for word in cell.split('`').skip(1).step_by(2) {
            ensure!(words.insert(word.to_owned()), "{word} is there twice");
        }
    }
    Ok(words)
}

/// What is wrong with the page's lists.
fn check(page: &str) -> Result {
    let events = words::events()?;
    let those = |alarm: bool| -> BTreeSet<String> {
        let those = events.iter().filter(|(_, is_alarm)| **is_alarm == alarm);
        those.map(|(word, _)| word.clone()).collect()
    };
    for (heading, known) in [
        ("Problem codes", words::codes()?),
        ("Log events", those(false)),
        ("Alarms", those(true)),
    ] {
        let told = told(page, heading)?;
        let missing: Vec<_> = known.difference(&told).collect();
        let invented: Vec<_> = told.difference(&known).collect();
        ensure!(
            missing.is_empty() && invented.is_empty(),
            "OPERATIONS.md, {heading}: {missing:?} are missing, {invented:?} are nothing that the app says"
        );
    }
    Ok(())
}

#[test]
fn every_word_of_the_app_is_told() -> Result {
    check(PAGE)
}

#[test]
fn one_that_is_missing_or_too_many_is_noticed() {
    for word in ["key_worn_out", "tenant_held", "record_lost"] {
        for other in ["", "`no_such_word`"] {
            let page = PAGE.replacen(&format!("| `{word}`"), &format!("| {other}"), 1);
            assert_ne!(page, PAGE, "{word}");
            let error = check(&page).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(
                other.is_empty() || error.contains("no_such_word"),
                "{error}"
            );
        }
    }
}

/// What the table of the host's own lines quotes is in the host's source.
#[test]
fn the_hosts_lines_are_its_own() -> Result {
    let mut source = String::new();
    let mut folders = vec![root().join("src/host")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                source.push_str(&std::fs::read_to_string(path)?);
            }
        }
    }
    let told = told(PAGE, "Lines of the host")?;
    ensure!(told.len() > 5, "{told:?}");
    for words in told {
        ensure!(source.contains(&words), "the host never says {words:?}");
    }
    Ok(())
}

#[test]
fn every_way_to_write_a_line_is_seen() -> Result {
    let source = r#"
        self.env.event("one", line);
        self.env
            .alarm("two", line);
        self.env.alarm_about("three", &user);
        context.log(json!({"level": "alarm", "event": "four"}));
        context.log(json!({
            "event": "five", "tenant": tenant,
        }));
#[cfg(test)]
mod tests {
    env.event("six", line);
}"#;
    let found: BTreeSet<_> = words::of("src/core/any.rs", source)?.into_iter().collect();
    let expected = [
        ("one", false),
        ("two", true),
        ("three", true),
        ("four", true),
        ("five", false),
    ];
    assert_eq!(
        found,
        expected
            .map(|(word, alarm)| (word.to_owned(), alarm))
            .into()
    );
    // What cannot be read is told, and not left out.
    let error = words::of("src/core/any.rs", "env.event(name, line)").unwrap_err();
    assert!(error.to_string().contains("`name`"), "{error}");
    Ok(())
}
