//! The embedded host on a disk that is full or may not be written. What was acknowledged holds, the answers say what is
//! wrong, and all is well once the disk is, without a restart.
#![cfg(target_os = "linux")]
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use reqwest::Method;
use runtime_tests::app::{Answer, App, Options, StartFailure};
use runtime_tests::emulators::{self, Emulators};

type Result<T = ()> = anyhow::Result<T>;

const FILE: &str = "sqlite_key_value.db";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_grow_is_told_and_loses_nothing() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let directory = tempfile::tempdir()?;
    let app = App::start(options(&emulators, directory.path())).await?;
    ask(&app, &emulators, 0, Method::PUT, "/v1/me", 201).await?;
    app.limit_files(Some(fs::metadata(directory.path().join(FILE))?.len()))?;

    // There is room left in the file, but not for many.
    let mut enrolled = 1;
    let refusal = loop {
        let answer = send(&app, &emulators, enrolled, Method::PUT, "/v1/me").await?;
        if answer.status != 201 {
            break answer;
        }
        enrolled += 1;
        ensure!(enrolled < 100, "the file has grown");
    };
    is_unavailable(&refusal)?;
    app.wait_for_output_after(0, "disk I/O error").await?;
    for user in 0..enrolled {
        draw(&app, &emulators, user).await?;
    }

    app.limit_files(None)?;
    let answer = send(&app, &emulators, enrolled, Method::PUT, "/v1/me").await?;
    ensure!(answer.status.is_success(), "{answer:?}");
    for user in 0..=enrolled {
        draw(&app, &emulators, user).await?;
    }
    app.stop().await?;
    Ok(())
}

/// The files of the store are open, and no other is needed: what is acknowledged meanwhile holds, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_any_more_loses_nothing() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let directory = tempfile::tempdir()?;
    let app = App::start(options(&emulators, directory.path())).await?;
    ask(&app, &emulators, 0, Method::PUT, "/v1/me", 201).await?;

    let read_only = ReadOnly::make(directory.path())?;
    ask(&app, &emulators, 1, Method::PUT, "/v1/me", 201).await?;
    ask(&app, &emulators, 0, Method::DELETE, "/v1/me", 204).await?;
    draw(&app, &emulators, 1).await?;
    app.stop().await?;

    drop(read_only);
    let app = App::start(options(&emulators, directory.path())).await?;
    draw(&app, &emulators, 1).await?;
    ask(&app, &emulators, 0, Method::GET, "/v1/me", 404).await?;
    app.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_stops_the_start() -> Result {
    let emulators = Emulators::start(emulators::Options::default()).await?;
    let directory = tempfile::tempdir()?;
    let app = App::start(options(&emulators, directory.path())).await?;
    ask(&app, &emulators, 0, Method::PUT, "/v1/me", 201).await?;
    app.stop().await?;

    let read_only = ReadOnly::make(&directory.path().join(FILE))?;
    let Err(error) = App::start(options(&emulators, directory.path())).await else {
        anyhow::bail!("it started on a file that it cannot write");
    };
    let failure: StartFailure = error.downcast()?;
    let told = failure
        .output
        .iter()
        .any(|line| line.contains(FILE) && line.contains("it is read-only"));
    ensure!(told && failure.code == Some(1), "{failure}");

    drop(read_only);
    let app = App::start(options(&emulators, directory.path())).await?;
    draw(&app, &emulators, 0).await?;
    app.stop().await?;
    Ok(())
}

/// A file or folder that its owner may not write, until this is dropped.
struct ReadOnly(PathBuf, fs::Permissions);

impl ReadOnly {
    fn make(path: &Path) -> Result<Self> {
        let before = fs::metadata(path)?.permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(before.mode() & 0o555))?;
        Ok(Self(path.to_owned(), before))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // So that the temporary folder can be removed.
        let _ = fs::set_permissions(&self.0, self.1.clone());
    }
}

fn options(emulators: &Emulators, directory: &Path) -> Options {
    // Root may write everything, unless it gives that up.
    let through: &[&str] = if rustix::process::geteuid().is_root() {
        &[
            "setpriv",
            "--bounding-set",
            "-dac_override,-dac_read_search",
        ]
    } else {
        &[]
    };
    Options {
        embedded: Some(through.iter().map(ToString::to_string).collect()),
        ..Options::for_emulators(emulators).state_dir(directory)
    }
}

async fn send(
    app: &App,
    emulators: &Emulators,
    user: u32,
    method: Method,
    path: &str,
) -> Result<Answer> {
    let user = format!("{user:08}-0000-4000-8000-000000000000");
    let token = emulators.caller().user(&user).mint();
    app.send(method, path, Some(&token), None).await
}

async fn ask(
    app: &App,
    emulators: &Emulators,
    user: u32,
    method: Method,
    path: &str,
    status: u16,
) -> Result {
    let answer = send(app, emulators, user, method, path).await?;
    ensure!(answer.status == status, "user {user}: {answer:?}");
    Ok(())
}

async fn draw(app: &App, emulators: &Emulators, user: u32) -> Result {
    let path = "/v1/me/access-token";
    ask(app, emulators, user, Method::POST, path, 200).await
}

fn is_unavailable(answer: &Answer) -> Result {
    ensure!(
        (answer.status.as_u16(), answer.code()) == (503, "store_unavailable"),
        "{answer:?}"
    );
    ensure!(!answer.header("retry-after").is_empty(), "{answer:?}");
    Ok(())
}
