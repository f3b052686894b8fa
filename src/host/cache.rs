//! Compiled components, kept from one start to the next: a start without compiling takes a hundredth of the time.
//!
//! A file's name is the hash of what it was compiled from and how, so a changed component or host finds none and
//! compiles; nothing is ever looked up by path or time. It begins with the hash of what follows, so that a damaged one is
//! compiled again.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use wasmtime::Engine;
use wasmtime::component::Component;

/// How many files are kept at least: those of the last starts, and of other apps.
const KEPT: usize = 32;

/// How long a SHA-256 is, in bytes.
const HASH: usize = 32;

/// A folder of compiled components that is this user's alone; or none, and everything is compiled.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
    opened: SystemTime,
}

impl Cache {
    /// Uses the folder at `path`, and makes it if it is not there. One that others could write is not used, and a line says
    /// so: a cache is worth no risk, and no error.
    pub(crate) fn open(path: Option<PathBuf>) -> Self {
        let folder = path.filter(|path| match private_folder(path) {
            Ok(()) => true,
            Err(reason) => {
                tracing::warn!(
                    "components are compiled at every start: {} {reason}; choose another folder with --cache-dir, or none \
                     with --cache-dir ''",
                    path.display()
                );
                false
            }
        });
        let opened = SystemTime::now();
        Self { folder, opened }
    }

    /// The component of these bytes, compiled or found.
    ///
    /// # Errors
    ///
    /// It does not compile.
    pub(crate) fn compile(&self, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
        let Some(folder) = &self.folder else {
            return Component::new(engine, bytes);
        };
        let file = folder.join(name(engine, bytes));
        if let Some(found) = load(engine, &file) {
            return Ok(found);
        }
        let compiled = Component::new(engine, bytes)?;
        // Without it the next start compiles again, which is no error.
        if let Ok(code) = compiled.serialize() {
            let _ = store(folder, &file, &code);
            let _ = prune(folder, self.opened);
        }
        Ok(compiled)
    }
}

fn name(engine: &Engine, bytes: &[u8]) -> String {
    // What of the engine and its settings goes into the code, and which build of this host it is.
    let mut compatibility = DefaultHasher::new();
    engine
        .precompile_compatibility_hash()
        .hash(&mut compatibility);
    let mut hash = Sha256::new();
    hash.update(compatibility.finish().to_le_bytes());
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(bytes);
    let mut digits = String::new();
    for byte in hash.finalize() {
        // A text takes all that is written.
        let _ = write!(digits, "{byte:02x}");
    }
    format!("{digits}.cwasm")
}

#[allow(
    unsafe_code,
    reason = "see below: the file is one that this program wrote, and nobody else could"
)]
fn load(engine: &Engine, path: &Path) -> Option<Component> {
    if !is_private(path).ok()? {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let (hash, code) = bytes.split_at_checked(HASH)?;
    if Sha256::digest(code).as_slice() != hash {
        return None;
    }
    // It is among the last that were used, for `prune`. Who cannot note that still can use it.
    let _ = file.set_modified(SystemTime::now());
    // SAFETY: code is taken from these bytes unseen, so they must be what `Component::serialize` wrote. They are whole, as
    // the hash shows. The folder and the file belong to this user and nobody else can write them (`private_folder`,
    // `is_private`); whoever can act as this user can replace this program as well. That they are for another engine or
    // version the header tells, and then this is an error like any other: the component is compiled.
    unsafe { Component::deserialize(engine, code) }.ok()
}

fn store(folder: &Path, file: &Path, code: &[u8]) -> io::Result<()> {
    // Made for this user alone.
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&Sha256::digest(code))?;
    temporary.write_all(code)?;
    temporary.persist(file)?;
    Ok(())
}

/// Removes files of this program that were not used for longest, also those that a killed one left unfinished: all that are
/// over [`KEPT`], but none that was used since then.
fn prune(folder: &Path, since: SystemTime) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".cwasm") || name.starts_with(".tmp") {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    let excess = files.len().saturating_sub(KEPT);
    for (used, path) in files.into_iter().take(excess) {
        if used < since {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("cannot be used ({0})")]
    Io(#[from] io::Error),
    #[cfg(unix)]
    #[error("belongs to another user, or others can write there (mode {0:o})")]
    Shared(u32),
    #[cfg(not(unix))]
    #[error("may be others' here, which is not looked at")]
    Unknown,
}

#[cfg(unix)]
fn private_folder(path: &Path) -> Result<(), Unfit> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if is_private(path)? {
        return Ok(());
    }
    let mode = fs::symlink_metadata(path)?.mode();
    Err(Unfit::Shared(mode & 0o7777))
}

/// Whether this user owns it, and nobody else can write it.
#[cfg(unix)]
fn is_private(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::symlink_metadata(path)?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    Ok(own && !found.is_symlink() && found.mode() & 0o022 == 0)
}

/// Elsewhere who may write it is not looked at, so it is not used.
#[cfg(not(unix))]
fn private_folder(_: &Path) -> Result<(), Unfit> {
    Err(Unfit::Unknown)
}

#[cfg(not(unix))]
fn is_private(_: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
mod tests {
    use super::*;
    use crate::engine;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|it| it.unwrap().path())
            .collect();
        files.sort();
        files
    }

    #[test]
    fn what_was_compiled_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let cache = Cache::open(Some(path.clone()));
        let engine = engine::engine(1, 1, false).unwrap();
        let one = wat::parse_str("(component)").unwrap();
        let two = wat::parse_str(
            r#"(component
                (core module $m (func (export "f")))
                (core instance $m (instantiate $m))
                (func $f (canon lift (core func $m "f")))
                (export "f" (func $f)))"#,
        );
        let exports = |bytes: &[u8]| {
            let component = cache.compile(&engine, bytes).unwrap();
            component.component_type().exports(&engine).count()
        };
        assert_eq!(exports(&one), 0);
        let [file] = files(&path).try_into().unwrap();
        assert_eq!(exports(&two.unwrap()), 1);
        let all = files(&path);
        assert_eq!(all.len(), 2);
        // Proof that it is used: the other component stands in its place.
        let other = all.iter().find(|it| **it != file).unwrap();
        fs::rename(other, &file).unwrap();
        assert_eq!(exports(&one), 1);
        // For an engine that compiles differently there is none.
        let interruptible = engine::engine(1, 1, true).unwrap();
        cache.compile(&interruptible, &one).unwrap();
        assert_eq!(files(&path).len(), 2);
    }

    #[test]
    fn a_file_that_is_broken_or_anybodys_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(folder.path().to_owned()));
        let engine = engine::engine(1, 1, false).unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        cache.compile(&engine, &bytes).unwrap();
        let [file] = files(folder.path()).try_into().unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(load(&engine, &file).is_none());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        // One bit, at the beginning, in the hash, in what the loader looks at, and in the code that would only fail when run.
        let whole = fs::read(&file).unwrap();
        for at in [0, HASH, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&file, damaged).unwrap();
            assert!(load(&engine, &file).is_none(), "{at}");
        }
        for broken in [b"".as_slice(), b"broken", &whole[..whole.len() - 1]] {
            fs::write(&file, broken).unwrap();
            assert!(load(&engine, &file).is_none());
        }
        cache.compile(&engine, &bytes).unwrap();
        assert!(load(&engine, &file).is_some(), "it was written anew");

        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(Some(folder.path().to_owned())).folder.is_none());
    }

    #[test]
    fn what_was_used_last_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let now = SystemTime::now();
        let put = |name: &str, hours: u64| {
            let file = File::create(path(name)).unwrap();
            let age = Duration::from_hours(hours);
            file.set_modified(now - age).unwrap();
        };
        put("somebody's", 9999);
        put(".tmpKilled", 1000);
        for number in 0..40 {
            put(&format!("{number}.cwasm"), number);
        }
        let cache = Cache::open(Some(folder.path().to_owned()));
        let engine = engine::engine(1, 1, false).unwrap();
        let bytes = wat::parse_str("(component)").unwrap();
        cache.compile(&engine, &bytes).unwrap();
        let mut left = files(folder.path());
        left.retain(|it| *it != path("somebody's") && *it != path(&name(&engine, &bytes)));
        let mut expected: Vec<_> = (0..31).map(|it| path(&format!("{it}.cwasm"))).collect();
        expected.sort();
        assert_eq!(left, expected);

        // An app that has more of them keeps all.
        prune(folder.path(), SystemTime::UNIX_EPOCH).unwrap();
        for number in 100..150 {
            put(&format!("{number}.cwasm"), 50);
        }
        let begun = now - Duration::from_hours(51);
        prune(folder.path(), begun).unwrap();
        assert_eq!(files(folder.path()).len(), 31 + 1 + 1 + 50);
    }
}
