//! Where an `SQLite` store is.

use rusqlite::{Connection, OpenFlags};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file, or the memory of this process.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    File(PathBuf),
    /// With the name by which `SQLite` knows it.
    Memory(String),
}

impl Place {
    /// This file; none: memory of its own.
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        static MEMORIES: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(if let Some(path) = path {
            Kind::File(path)
        } else {
            let number = MEMORIES.fetch_add(1, Ordering::Relaxed);
            // The slash makes it one for all connections of this process.
            Kind::Memory(format!("file:/key-value-{number}?vfs=memdb"))
        }))
    }

    /// The file, if it is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match &*self.0 {
            Kind::File(path) => Some(path),
            Kind::Memory(_) => None,
        }
    }

    /// Makes the file, and its folder, if they are not there: for this user alone, and so that they survive a power loss.
    pub(super) fn make(&self) -> io::Result<()> {
        let Kind::File(path) = &*self.0 else {
            return Ok(());
        };
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        make_folder(folder)?;
        // SQLite gives the files beside it the same permissions. One that is there is left alone: to close it here would
        // take away the locks of whoever has it open in this process.
        match private().create_new(true).write(true).open(path) {
            Ok(_) => sync(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A connection for reading and writing. It makes no file.
    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match &*self.0 {
            Kind::File(path) => Connection::open_with_flags(path, flags),
            Kind::Memory(name) => {
                let memory = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_CREATE;
                Connection::open_with_flags(name, flags | memory)
            }
        }
    }

    /// Why it cannot be opened.
    pub(super) fn fail(&self, reason: impl fmt::Display) -> OpenError {
        OpenError::Unusable(self.to_string(), reason.to_string())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::File(path) => path.display().fmt(f),
            Kind::Memory(_) => f.write_str("in memory"),
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its file is of no use.
    #[error(
        "cannot open the key-value store {0}: {1}; choose another folder with --state-dir, or another file in the runtime configuration"
    )]
    Unusable(String, String),
    /// Its server does not answer, or refuses.
    #[error("cannot use the key-value store {0}: {1}")]
    Unreachable(String, String),
}

/// Lets what is in a folder survive a power loss under the names that it has now.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_folder(parent)?;
    match private_folder().create(folder) {
        Ok(()) => sync(parent),
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn private() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(unix)]
fn private_folder() -> DirBuilder {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

#[cfg(not(unix))]
fn private() -> OpenOptions {
    OpenOptions::new()
}

#[cfg(not(unix))]
fn private_folder() -> DirBuilder {
    DirBuilder::new()
}
