//! A release has what its pages name, and its scripts work there: `scripts/dist` lays it out, and nothing is built for it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use runtime_tests::app::{behalf, lay_out_release, root, said};
use tempfile::TempDir;
use toml::Table;

type Result = anyhow::Result<()>;

/// Scripts that pages of a release name, and that are of no use without the sources.
const OF_THE_SOURCES: [&str; 12] = [
    "scripts/bench",
    "scripts/build",
    "scripts/check",
    "scripts/dist",
    "scripts/fuzz",
    "scripts/image",
    "scripts/model",
    "scripts/package",
    "scripts/peers",
    "scripts/test",
    "scripts/up",
    "scripts/vendor-wit",
];

/// Pages for whoever works on the sources.
const ON_THE_SOURCES: [&str; 2] = ["ARCHITECTURE.md", "CONTRIBUTING.md"];

fn release() -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    lay_out_release(folder.path())?;
    Ok(folder)
}

fn pages(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            pages.extend(self::pages(&path)?);
        } else if path.extension().is_some_and(|it| it == "md") {
            pages.push(path);
        }
    }
    Ok(pages)
}

/// What links to a page's headings end with.
fn anchors(page: &Path) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(page)?;
    let headings = text.lines().filter(|it| it.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter_map(|it| match it {
            ' ' => Some('-'),
            '-' | '_' => Some(it),
            _ => it.is_alphanumeric().then_some(it),
        });
        kept.collect()
    };
    Ok(headings.map(anchor).collect())
}

/// What a page links to or names, and is not there.
fn missing(release: &Path) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    let pages = pages(release)?;
    ensure!(pages.len() > 10, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page)?;
        let name = page.strip_prefix(release)?.display().to_string();
        let beside = page.parent().context("a folder")?;
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|it| it.split(')').next());
        for link in links.filter(|it| !it.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match path {
                "" => page.clone(),
                _ => beside.join(path),
            };
            if !path.exists() || !(anchor.is_empty() || anchors(&path)?.contains(anchor)) {
                missing.push(format!("{name}: {link}"));
            }
        }
        if ON_THE_SOURCES.contains(&&*name) {
            continue;
        }
        for part in text.split("scripts/").skip(1) {
            let of_path = |it: &char| it.is_ascii_alphanumeric() || "-_./".contains(*it);
            let path: String = part.chars().take_while(of_path).collect();
            let path = format!("scripts/{}", path.trim_end_matches(['.', '/']));
            if !OF_THE_SOURCES.contains(&&*path) && !release.join(&path).exists() {
                missing.push(format!("{name}: {path}"));
            }
        }
    }
    Ok(missing)
}

#[test]
fn pages_name_what_is_there() -> Result {
    let release = release()?;
    assert_eq!(missing(release.path())?, Vec::<String>::new());
    for script in OF_THE_SOURCES {
        assert!(!release.path().join(script).exists(), "{script} is there");
        assert!(root().join(script).exists(), "{script} is nowhere");
    }
    // What is left out is noticed.
    fs::remove_file(release.path().join("SECURITY.md"))?;
    fs::remove_file(release.path().join("scripts/azure/register-app"))?;
    let page = release.path().join("scripts/azure/README.md");
    let text = fs::read_to_string(&page)?;
    fs::write(page, text.replace("### The first key", "### A first key"))?;
    let missing = missing(release.path())?;
    for expected in [
        "README.md: SECURITY.md",
        "OPERATIONS.md: scripts/azure/register-app",
        "scripts/kubernetes/README.md: ../azure/README.md#the-first-key",
    ] {
        assert!(missing.iter().any(|it| it == expected), "{missing:?}");
    }
    Ok(())
}

#[test]
fn its_manifests_name_what_is_beside_them() -> Result {
    let release = release()?;
    let components = |text: &str| -> anyhow::Result<Vec<String>> {
        let _: Table = text.parse()?;
        let quoted = text.split('"').skip(1).step_by(2);
        Ok(quoted
            .filter(|it| Path::new(it).extension().is_some_and(|it| it == "wasm"))
            .map(str::to_owned)
            .collect())
    };
    let beside = |names: &[String]| -> Vec<_> {
        let all = names.iter().map(|it| release.path().join(it));
        all.map(|it| it.display().to_string()).collect()
    };
    for (file, arguments) in [
        ("spin.toml", &[][..]),
        ("spin-postgres.toml", &["--ledger", "postgres"]),
    ] {
        let own = components(&fs::read_to_string(release.path().join(file))?)?;
        assert_eq!(own.len(), 3, "{own:?}");
        let mut print = Command::new(release.path().join("scripts/manifest"));
        let printed = components(&said(print.args(arguments))?)?;
        assert_eq!(printed, beside(&own));
        assert!(printed.iter().all(|it| Path::new(it).exists()));
    }
    // As for SpinKube.
    let mut print = Command::new(release.path().join("scripts/manifest"));
    print.args(["--no-cron", "--ledger", "postgres"]);
    let expected = ["behalf_http_postgres.wasm", "behalf_vault.wasm"].map(str::to_owned);
    assert_eq!(components(&said(&mut print)?)?, beside(&expected));
    Ok(())
}

#[test]
fn its_scripts_find_its_program() -> Result {
    let release = release()?;
    fs::remove_file(release.path().join("behalf"))?;
    let script = "#!/bin/sh\necho \"the release's: $*\"\n";
    let program = release.path().join("behalf");
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::metadata(behalf()?)?.permissions())?;
    let mut rotate = Command::new(release.path().join("scripts/rotate-key"));
    rotate.env_remove("BEHALF_BIN").arg("--help");
    assert_eq!(said(&mut rotate)?, "the release's: key rotate --help\n");
    // As the unit says it is installed.
    let unit = fs::read_to_string(release.path().join("scripts/systemd/behalf.service"))?;
    for path in unit
        .split_whitespace()
        .filter_map(|it| it.strip_prefix("/opt/behalf/"))
    {
        assert!(release.path().join(path).exists(), "{path}");
    }
    Ok(())
}
