//! What a program did to files, as `strace` wrote it down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A change, or a sync.
#[derive(Clone)]
pub struct Event {
    /// When it began, in seconds of Unix time.
    pub begun: f64,
    /// How many events had ended before it began: a sync covers no others.
    pub before: usize,
    pub change: Change,
}

#[derive(Clone)]
pub enum Change {
    /// A file, if it is not there.
    Create(PathBuf),
    Folder(PathBuf),
    Write(PathBuf, usize, Vec<u8>),
    Length(PathBuf, usize),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Sync(PathBuf),
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Create(path) => write!(f, "create {}", path.display()),
            Self::Folder(path) => write!(f, "make the folder {}", path.display()),
            Self::Write(path, at, bytes) => {
                write!(
                    f,
                    "write {} bytes at {at} of {}",
                    bytes.len(),
                    path.display()
                )
            }
            Self::Length(path, length) => write!(f, "cut {} to {length}", path.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::Rename(from, to) => write!(f, "rename {} to {}", from.display(), to.display()),
            Self::Sync(path) => write!(f, "sync {}", path.display()),
        }
    }
}

/// The program that runs another one and writes into `file` what that does.
pub fn command(file: &Path) -> [&str; 12] {
    [
        "strace",
        "--quiet=all",
        "--follow-forks",
        "--seccomp-bpf",
        "--decode-fds=path",
        "--absolute-timestamps=unix,us",
        "--strings-in-hex=all",
        "--string-limit=1000000",
        "--trace=open,openat,creat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,fsync,fdatasync,sync_file_range,\
         unlink,unlinkat,rmdir,rename,renameat,renameat2,link,linkat,mkdir,mkdirat",
        "--output",
        file.to_str().unwrap(),
        "--",
    ]
}

/// Adds what was done below `folder`, in the order in which it ended. What failed is left out.
pub fn read(file: &Path, folder: &Path, events: &mut Vec<Event>) {
    let text = std::fs::read_to_string(file).unwrap();
    // By thread: what it has begun, when, and behind how many events.
    let mut begun: BTreeMap<&str, (f64, usize, String)> = BTreeMap::new();
    for line in text.lines() {
        let (thread, line) = line.split_once(' ').unwrap();
        let (time, line) = line.trim_start().split_once(' ').unwrap();
        let time: f64 = time.parse().unwrap();
        if let Some(call) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (time, events.len(), call.to_owned()));
            continue;
        }
        let (time, before, call) = match line.strip_prefix("<... ") {
            Some(rest) => {
                let (_, rest) = rest.split_once(" resumed>").unwrap();
                let (time, before, call) = begun.remove(thread).unwrap();
                (time, before, call + rest)
            }
            None => (time, events.len(), line.to_owned()),
        };
        for change in changes(&call) {
            if change.path().starts_with(folder) {
                events.push(Event {
                    begun: time,
                    before,
                    change,
                });
            }
        }
    }
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Self::Create(path)
            | Self::Folder(path)
            | Self::Write(path, ..)
            | Self::Length(path, _)
            | Self::Remove(path)
            | Self::Rename(path, _)
            | Self::Sync(path) => path,
        }
    }
}

/// What a call did, such as `pwrite64(3</a/b>, "\x00", 1, 4096) = 1`. A kind that is not known stops the test if it is
/// about a file.
fn changes(call: &str) -> Vec<Change> {
    let Some((call, result)) = call.rsplit_once(" = ") else {
        return Vec::new(); // a signal, the end of a thread
    };
    let number = result.split(['<', ' ']).next().unwrap();
    let Some(done) = number.parse::<usize>().ok() else {
        return Vec::new(); // it failed
    };
    let (name, arguments) = call.split_once('(').unwrap();
    let arguments = arguments.trim_end().strip_suffix(')').unwrap();
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let path = |index: usize| path(arguments[index]);
    let length = |index: usize| arguments[index].parse::<usize>().unwrap();
    // The arguments of a path that is given from a folder on.
    let from = |index: usize| path(index).join(path(index + 1));
    match name {
        "open" | "openat" => {
            let at = if name == "open" { path(0) } else { from(0) };
            let flags = arguments[if name == "open" { 1 } else { 2 }];
            let mut all = Vec::new();
            if flags.contains("O_CREAT") {
                all.push(Change::Create(at.clone()));
            }
            if flags.contains("O_TRUNC") {
                all.push(Change::Length(at, 0));
            }
            all
        }
        "mkdir" => vec![Change::Folder(path(0))],
        "mkdirat" => vec![Change::Folder(from(0))],
        "pwrite64" => {
            let mut bytes = unescaped(arguments[1]);
            bytes.truncate(done);
            vec![Change::Write(path(0), length(3), bytes)]
        }
        "ftruncate" | "truncate" => vec![Change::Length(path(0), length(1))],
        "unlink" => vec![Change::Remove(path(0))],
        "unlinkat" => vec![Change::Remove(from(0))],
        "rename" => vec![Change::Rename(path(0), path(1))],
        "renameat" | "renameat2" => vec![Change::Rename(from(0), from(2))],
        "fsync" | "fdatasync" => vec![Change::Sync(path(0))],
        // Pipes and sockets. To a file of the store it would be a change that is missed here.
        "write" | "writev" if !is_of_store(&path(0)) => Vec::new(),
        _ => {
            assert!(!is_of_store(&path(0)), "{name} is not known here");
            Vec::new()
        }
    }
}

fn is_of_store(path: &Path) -> bool {
    path.to_string_lossy().contains("sqlite_key_value")
}

/// A path in quotes, or that of a descriptor behind its number.
fn path(argument: &str) -> PathBuf {
    let Some((_, path)) = argument.split_once('<') else {
        return text(argument).into();
    };
    // Of a file that was removed "(deleted)" stands behind it; no other has such a name.
    let (path, removed) = path.rsplit_once('>').unwrap();
    (text(path) + removed).into()
}

fn text(escaped: &str) -> String {
    String::from_utf8(unescaped(escaped)).unwrap()
}

fn unescaped(text: &str) -> Vec<u8> {
    let text = text.trim_matches('"');
    let digits = text.split("\\x").skip(1);
    digits
        .map(|two| u8::from_str_radix(&two[..2], 16).unwrap())
        .collect()
}
