//! A disk that loses what was not synced.

use crate::trace::{Change, Event};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a disk writes whole, in bytes.
const SECTOR: usize = 512;

/// What is there of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Survivors {
    Nothing,
    /// What is in files, but not how they are called.
    Contents,
    /// How files are called, but not what is in them.
    Names,
    /// Each sector and each name, or not, by chance.
    Some,
    All,
}

/// A sequence of numbers that is the same in each run (`SplitMix64`).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn is_lucky(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}

#[derive(Clone, Copy)]
enum Node {
    File(usize),
    Folder(usize),
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    /// With the number of the event that did it.
    since: Vec<(usize, Alteration)>,
}

enum Alteration {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Default)]
struct Folder {
    synced: BTreeMap<PathBuf, Node>,
    since: Vec<(usize, PathBuf, Option<Node>)>,
}

impl Folder {
    fn now(&self) -> BTreeMap<PathBuf, Node> {
        let mut names = self.synced.clone();
        for (_, name, node) in &self.since {
            rename(&mut names, name, *node);
        }
        names
    }
}

/// One with this folder on it, which is empty and will survive.
pub struct Disk {
    root: PathBuf,
    files: Vec<File>,
    folders: Vec<Folder>,
    events: usize,
}

impl Disk {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: Vec::new(),
            folders: vec![Folder::default()],
            events: 0,
        }
    }

    pub fn apply(&mut self, event: &Event) {
        match &event.change {
            Change::Create(path) => {
                if self.find(path).is_none() {
                    self.files.push(File::default());
                    self.name(path, Some(Node::File(self.files.len() - 1)));
                }
            }
            Change::Folder(path) => {
                self.folders.push(Folder::default());
                self.name(path, Some(Node::Folder(self.folders.len() - 1)));
            }
            Change::Write(path, at, bytes) => {
                self.alter(path, Alteration::Write(*at, bytes.clone()));
            }
            Change::Length(path, length) => self.alter(path, Alteration::Length(*length)),
            Change::Remove(path) => self.name(path, None),
            Change::Rename(from, to) => {
                let node = self.find(from);
                self.name(from, None);
                self.name(to, node);
            }
            Change::Sync(path) => self.sync(path, event.before),
        }
        self.events += 1;
    }

    /// Keeps what had been done before this event began.
    fn sync(&mut self, path: &Path, before: usize) {
        match self.find(path) {
            Some(Node::File(file)) => {
                let file = &mut self.files[file];
                let covered = file.since.partition_point(|(event, _)| *event < before);
                for (_, alteration) in file.since.drain(..covered) {
                    alter(&mut file.synced, &alteration);
                }
            }
            Some(Node::Folder(folder)) => {
                let folder = &mut self.folders[folder];
                let covered = folder.since.partition_point(|(event, ..)| *event < before);
                for (_, name, node) in folder.since.drain(..covered) {
                    rename(&mut folder.synced, &name, node);
                }
            }
            // One that was removed already.
            None => {}
        }
    }

    fn alter(&mut self, path: &Path, alteration: Alteration) {
        // One that was removed already is of no use any more.
        if let Some(Node::File(file)) = self.find(path) {
            let event = self.events;
            self.files[file].since.push((event, alteration));
        }
    }

    fn name(&mut self, path: &Path, node: Option<Node>) {
        let Some(Node::Folder(folder)) = self.find(path.parent().unwrap()) else {
            panic!("{} is in no folder", path.display());
        };
        let event = self.events;
        self.folders[folder]
            .since
            .push((event, path.file_name().unwrap().into(), node));
    }

    fn find(&self, path: &Path) -> Option<Node> {
        let mut node = Node::Folder(0);
        for name in path.strip_prefix(&self.root).unwrap() {
            let Node::Folder(folder) = node else {
                return None;
            };
            node = *self.folders[folder].now().get(Path::new(name))?;
        }
        Some(node)
    }

    /// Writes into the folder `to` what a power loss now leaves behind.
    pub fn write(&self, survivors: Survivors, chance: &mut Chance, to: &Path) {
        self.write_folder(0, survivors, chance, to);
    }

    fn write_folder(&self, folder: usize, survivors: Survivors, chance: &mut Chance, to: &Path) {
        let folder = &self.folders[folder];
        let mut names = folder.synced.clone();
        for (_, name, node) in &folder.since {
            let is_there = match survivors {
                Survivors::Nothing | Survivors::Contents => false,
                Survivors::Names | Survivors::All => true,
                Survivors::Some => chance.is_lucky(),
            };
            if is_there {
                rename(&mut names, name, *node);
            }
        }
        for (name, node) in names {
            match node {
                Node::File(file) => {
                    let bytes = self.files[file].after(survivors, chance);
                    std::fs::write(to.join(name), bytes).unwrap();
                }
                Node::Folder(inner) => {
                    std::fs::create_dir(to.join(&name)).unwrap();
                    self.write_folder(inner, survivors, chance, &to.join(name));
                }
            }
        }
    }
}

impl File {
    fn after(&self, survivors: Survivors, chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        for (_, alteration) in &self.since {
            match (survivors, alteration) {
                (Survivors::Nothing | Survivors::Names, _) => {}
                (Survivors::Contents | Survivors::All, _) => alter(&mut bytes, alteration),
                (Survivors::Some, Alteration::Length(_)) => {
                    if chance.is_lucky() {
                        alter(&mut bytes, alteration);
                    }
                }
                (Survivors::Some, Alteration::Write(at, all)) => {
                    let mut at = *at;
                    let mut rest = all.as_slice();
                    while !rest.is_empty() {
                        let (sector, others) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                        if chance.is_lucky() {
                            alter(&mut bytes, &Alteration::Write(at, sector.to_vec()));
                        }
                        at += sector.len();
                        rest = others;
                    }
                }
            }
        }
        bytes
    }
}

fn alter(bytes: &mut Vec<u8>, alteration: &Alteration) {
    match alteration {
        Alteration::Write(at, written) => {
            let end = at + written.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(written);
        }
        Alteration::Length(length) => bytes.resize(*length, 0),
    }
}

fn rename(names: &mut BTreeMap<PathBuf, Node>, name: &Path, node: Option<Node>) {
    match node {
        Some(node) => names.insert(name.to_owned(), node),
        None => names.remove(name),
    };
}
