//! Compiled components, kept from one start to the next: a start without compiling takes a hundredth of the time.
//!
//! A file's name is the hash of what it was compiled from and how, so a changed component or host finds none and
//! compiles; nothing is ever looked up by path or time.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

/// A folder of compiled components that is this user's alone; or none, and everything is compiled.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// Uses the folder at `path`, and makes it if it is not there. One that others could write is not used: a cache is
    /// worth no risk, and no error.
    pub(crate) fn open(path: Option<PathBuf>) -> Self {
        let folder = path.filter(|path| private_folder(path).unwrap_or(false));
        Self { folder }
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
fn load(engine: &Engine, file: &Path) -> Option<Component> {
    if !is_private(file).ok()? {
        return None;
    }
    // SAFETY: code is taken from this file unseen, so it must be what `Component::serialize` wrote. The folder and the
    // file belong to this user and nobody else can write them (`private_folder`, `is_private`); whoever can act as this
    // user can replace this program as well. It was renamed into its place when it was whole. That it is for another
    // engine or version the header tells, and then this is an error like any other: the component is compiled.
    unsafe { Component::deserialize_file(engine, file) }.ok()
}

fn store(folder: &Path, file: &Path, code: &[u8]) -> io::Result<()> {
    // Made for this user alone.
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(code)?;
    temporary.persist(file)?;
    Ok(())
}

#[cfg(unix)]
fn private_folder(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::DirBuilderExt as _;
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    is_private(path)
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
fn private_folder(_: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(unix))]
fn is_private(_: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine;
    use std::os::unix::fs::PermissionsExt as _;

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
        fs::write(&file, "broken").unwrap();
        assert!(load(&engine, &file).is_none());
        cache.compile(&engine, &bytes).unwrap();
        assert!(load(&engine, &file).is_some(), "it was written anew");

        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(Some(folder.path().to_owned())).folder.is_none());
    }
}
