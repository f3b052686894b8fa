//! The commands of OPERATIONS.md, by the headings that they stand under.

use anyhow::{Context as _, ensure};
use runtime_tests::app::root;

/// The page as it stands.
pub(crate) fn page() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(root().join("OPERATIONS.md"))?)
}

/// The commands under a heading, up to the next one, in order. A command goes on until the next prompt.
pub(crate) fn commands(heading: &str) -> anyhow::Result<Vec<String>> {
    let page = page()?;
    let part = parts(&page).find(|(name, _)| *name == heading);
    let (_, text) = part.with_context(|| format!("OPERATIONS.md has no heading {heading}"))?;
    let mut commands: Vec<String> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").context("the end of a block")?;
        ensure!(block.starts_with("$ "), "no command: {block}");
        for line in block.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                commands.push(command.to_owned());
            } else if let Some(last) = commands.last_mut() {
                last.push('\n');
                last.push_str(line);
            }
        }
    }
    Ok(commands)
}

/// Headings with commands under them.
pub(crate) fn procedures(page: &str) -> Vec<&str> {
    let with = parts(page).filter(|(_, text)| text.contains("```console"));
    with.map(|(heading, _)| heading).collect()
}

/// Every heading, with the text up to the next one.
fn parts(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.split("\n#").skip(1).map(|part| {
        let (heading, text) = part.split_once('\n').unwrap_or((part, ""));
        (heading.trim_start_matches('#').trim(), text)
    })
}
