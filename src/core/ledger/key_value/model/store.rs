//! What is stored of the one user: keys and values, cut down to what the protocol goes by.

/// Number of an enrolment: what the nonce is in real keys. 0 is the one before everything.
pub type Enrolment = u8;

/// Number of a write: what the write id is in real keys. It never recurs.
pub type Write = u8;

/// A key. The real ones are in `layout.rs`, beside this folder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// `usr.`: the head.
    Head,
    /// `rec.`: the record of an enrolment.
    Record(Enrolment),
    /// `off.`: application access was removed for an enrolment.
    Off(Enrolment),
    /// `due.`: a marker of an enrolment, by the write that set it.
    Marker(Enrolment, Write),
    /// `bar.`: the tenant is being removed.
    Bar,
}

/// What is stored under a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    /// A head names an enrolment.
    Head(Enrolment),
    /// A record.
    Record(Record),
    /// Nothing but that the key is there.
    Flag,
}

/// A record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// The enrolment whose sign-in the token is of.
    pub enrolment: Enrolment,
    /// The token: the so-manieth that Entra ID issued in that sign-in.
    pub token: u8,
    /// Counts the tokens that the record has had.
    pub generation: u8,
    /// The write that made it, and its marker.
    pub write: Write,
    /// Whether Entra ID has refused the token.
    pub is_refused: bool,
    /// Whether it is sealed under an old key.
    pub is_outdated: bool,
}

/// Key-value storage: single keys, and nothing more.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Store {
    /// In order.
    rows: Vec<(Key, Value)>,
}

impl Store {
    /// The value under a key.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<Value> {
        let at = self.find(key).ok()?;
        Some(self.rows[at].1)
    }

    /// Sets a value, or deletes it.
    pub fn put(&mut self, key: Key, value: Option<Value>) {
        match (self.find(key), value) {
            (Ok(at), Some(value)) => self.rows[at].1 = value,
            (Err(at), Some(value)) => self.rows.insert(at, (key, value)),
            (Ok(at), None) => {
                self.rows.remove(at);
            }
            (Err(_), None) => {}
        }
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.rows.iter().map(|(key, _)| *key)
    }

    /// The enrolment that the head names.
    #[must_use]
    pub fn head(&self) -> Option<Enrolment> {
        match self.get(Key::Head)? {
            Value::Head(enrolment) => Some(enrolment),
            Value::Record(_) | Value::Flag => None,
        }
    }

    /// The record under a key.
    #[must_use]
    pub fn record(&self, key: Key) -> Option<Record> {
        self.get(key).and_then(Value::record)
    }

    /// The markers of an enrolment, in order.
    pub fn markers(&self, of: Enrolment) -> impl Iterator<Item = Key> {
        self.keys()
            .filter(move |key| matches!(key, Key::Marker(enrolment, _) if *enrolment == of))
    }

    /// The enrolments of which anything is stored but a head, in order.
    #[must_use]
    pub fn enrolments(&self) -> Vec<Enrolment> {
        let mut enrolments: Vec<_> = self.keys().filter_map(Key::enrolment).collect();
        enrolments.sort_unstable();
        enrolments.dedup();
        enrolments
    }

    fn find(&self, key: Key) -> Result<usize, usize> {
        self.rows.binary_search_by_key(&key, |(key, _)| *key)
    }
}

impl Key {
    /// The enrolment that the key is private to.
    #[must_use]
    pub fn enrolment(self) -> Option<Enrolment> {
        match self {
            Self::Record(enrolment) | Self::Off(enrolment) | Self::Marker(enrolment, _) => {
                Some(enrolment)
            }
            Self::Head | Self::Bar => None,
        }
    }
}

impl Value {
    /// The record, if it is one.
    #[must_use]
    pub fn record(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(record),
            Self::Head(_) | Self::Flag => None,
        }
    }
}
