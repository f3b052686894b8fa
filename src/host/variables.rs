//! Variables: `{{ templates }}`, where values come from, and the interfaces through which a component reads them.
//!
//! An application variable is resolved at every lookup: the command line's value or file, the environment variable
//! `SPIN_VARIABLE_<NAME>`, then `.env` in the working directory, then the default in the manifest, as in Spin
//! (PLATFORMS.md, "Manifest and composition"). Components never see application variables, only their own, which are
//! templates over them.

use crate::bindings::fermyon::spin::variables as spin2;
use crate::bindings::spin::variables::variables as spin;
use crate::bindings::wasi::config::store as wasi;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env::VarError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::component::{Accessor, HasData};

/// What stands in front of a variable's upper-case name in the environment.
pub(crate) const PREFIX: &str = "SPIN_VARIABLE_";

/// An application variable as the manifest declares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Declaration {
    /// The value when the environment has none. Without one, the environment must have it.
    pub(crate) default: Option<String>,
    /// Whether the value must stay out of messages.
    pub(crate) secret: bool,
}

/// The application's variables.
#[derive(Debug)]
pub(crate) struct Variables {
    declared: BTreeMap<String, Declaration>,
    environment: Environment,
}

impl Variables {
    /// Variables with these declarations, resolved from `environment`.
    pub(crate) fn new(declared: BTreeMap<String, Declaration>, environment: Environment) -> Self {
        Self {
            declared,
            environment,
        }
    }

    /// The name of a value that the command line has for a variable that is not declared.
    pub(crate) fn unknown(&self) -> Option<&str> {
        let mut given = self.environment.given.keys().map(String::as_str);
        given.find(|name| !self.declared.contains_key(*name))
    }

    /// What the environment sets and nobody reads: most likely a name that is misspelt.
    pub(crate) fn set_in_vain(&self) -> Vec<SetInVain> {
        let known: BTreeSet<_> = self
            .declared
            .keys()
            .map(|name| environment_name(name))
            .collect();
        let names = self.environment.names();
        let unknown = names.into_iter().filter(|name| !known.contains(name));
        unknown
            .map(|name| SetInVain {
                nearest: nearest(&name, &known).map(ToOwned::to_owned),
                name,
            })
            .collect()
    }

    /// Looks every variable up.
    ///
    /// # Errors
    ///
    /// One has no value, or it cannot be read.
    pub(crate) fn check(&self) -> Result<(), LookupError> {
        self.declared
            .keys()
            .try_for_each(|name| self.value(name).map(drop))
    }

    /// Fills a template in.
    pub(crate) fn resolve(&self, template: &Template) -> Result<String, LookupError> {
        let mut text = String::new();
        for segment in &template.segments {
            match segment {
                Segment::Literal(literal) => text.push_str(literal),
                Segment::Variable(name) => text.push_str(&self.value(name)?),
            }
        }
        Ok(text)
    }

    /// Whether a template draws on a secret.
    pub(crate) fn has_secret(&self, template: &Template) -> bool {
        template
            .variables()
            .any(|name| self.declared.get(name).is_some_and(|it| it.secret))
    }

    fn value(&self, name: &str) -> Result<String, LookupError> {
        let declaration = self
            .declared
            .get(name)
            .ok_or_else(|| LookupError::Undefined(name.to_owned()))?;
        match self.environment.value(name)? {
            Some(value) => Ok(value),
            None => declaration
                .default
                .clone()
                .ok_or_else(|| LookupError::Unresolved {
                    name: name.to_owned(),
                }),
        }
    }
}

/// The environment variable that a variable is read from.
pub(crate) fn environment_name(variable: &str) -> String {
    format!("{PREFIX}{}", variable.to_ascii_uppercase())
}

/// An environment variable that no variable is read from.
#[derive(Debug)]
pub(crate) struct SetInVain {
    name: String,
    /// The one that was meant, as far as can be told.
    nearest: Option<String>,
}

impl fmt::Display for SetInVain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        write!(
            f,
            "{name} sets nothing: [variables] of the manifest has no such name"
        )?;
        match &self.nearest {
            Some(nearest) => write!(f, "; is it {nearest}?"),
            None => Ok(()),
        }
    }
}

fn nearest<'a>(name: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    /// What is less alike is another name (the command line's own suggestions begin at 0.7).
    const ALIKE: f64 = 0.7;
    let name = name.to_ascii_uppercase();
    let behind = |name: &'a str| name.get(PREFIX.len()..).unwrap_or_default();
    let likeness = |other: &str| strsim::jaro(name.get(PREFIX.len()..).unwrap_or_default(), other);
    known
        .iter()
        .map(|known| (likeness(behind(known)), known.as_str()))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

/// One component's variables.
#[derive(Debug, Clone)]
pub(crate) struct ComponentVariables {
    application: Arc<Variables>,
    templates: Arc<BTreeMap<String, Template>>,
}

impl ComponentVariables {
    /// The variables that `templates` give a component.
    pub(crate) fn new(application: Arc<Variables>, templates: BTreeMap<String, Template>) -> Self {
        Self {
            application,
            templates: Arc::new(templates),
        }
    }

    /// The value of one of them.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn get(&self, name: &str) -> Result<String, LookupError> {
        check_name(name)
            .map_err(|reason| LookupError::InvalidName(format!("{name:?} {reason}")))?;
        let template = self
            .templates
            .get(name)
            .ok_or_else(|| LookupError::Undefined(name.to_owned()))?;
        self.application.resolve(template)
    }

    fn all(&self) -> Result<Vec<(String, String)>, LookupError> {
        self.templates
            .iter()
            .map(|(name, template)| Ok((name.clone(), self.application.resolve(template)?)))
            .collect()
    }
}

/// Why a variable has no value. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    /// No variable can have this name.
    #[error("invalid variable name: {0}")]
    InvalidName(String),
    /// Nobody declared it.
    #[error("undefined variable: {0}")]
    Undefined(String),
    /// It has no default, and the environment has no value.
    #[error("the variable {name} is required and has no value; set {}", environment_name(.name))]
    Unresolved {
        /// Its name.
        name: String,
    },
    /// The file that has the value cannot be read.
    #[error("the variable {name} cannot be read from {}: {reason}", .path.display())]
    Unreadable {
        /// Its name.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: ReadError,
    },
    /// The environment variable is no Unicode text.
    #[error("the environment variable {0} is not valid UTF-8")]
    NotText(String),
}

/// Why a file of text cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system does not give it.
    #[error("{0}")]
    System(io::ErrorKind),
    /// It is in UTF-16, as some programs of Windows write text.
    #[error("it is UTF-16: save it as UTF-8")]
    Utf16,
    /// It is in another encoding, or no text.
    #[error("it is no UTF-8 text: save it as UTF-8")]
    NotUtf8,
}

/// Reads a file of text, without the byte order mark that it may begin with.
fn read_text(path: &Path) -> Result<String, ReadError> {
    let bytes = std::fs::read(path).map_err(|error| ReadError::System(error.kind()))?;
    // Without its mark, UTF-16 is known by the zeros that text does not have.
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.contains(&0) {
        return Err(ReadError::Utf16);
    }
    let text = String::from_utf8(bytes).map_err(|_| ReadError::NotUtf8)?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// A value from the command line.
#[derive(Debug, Clone)]
pub(crate) enum Given {
    /// Itself.
    Value(String),
    /// The file that holds it, read at every lookup: for a token that somebody else renews.
    File(PathBuf),
}

/// Where values come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// What the command line says, by variable; it goes first.
    given: BTreeMap<String, Given>,
    /// Whether this process's environment counts.
    process: bool,
    /// What a `.env` file says; the process's environment goes first.
    file: HashMap<String, String>,
}

impl Environment {
    /// The environment of this process, and below it the file at `path` if there is one.
    ///
    /// # Errors
    ///
    /// The file exists, but is no `.env` file. The text says where, and nothing of what it holds.
    pub(crate) fn of_process(path: &Path) -> Result<Self, String> {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(ReadError::System(io::ErrorKind::NotFound)) => String::new(),
            Err(error) => return Err(format!("{}: cannot read: {error}", path.display())),
        };
        let mut file = HashMap::new();
        let mut place = "at its beginning".to_owned();
        for entry in dotenvy::from_read_iter(text.as_bytes()) {
            let (name, value) = entry.map_err(|_| {
                format!("{}: malformed {place}; write NAME='value'", path.display())
            })?;
            place = format!("after {name}");
            file.insert(name, value);
        }
        Ok(Self {
            given: BTreeMap::new(),
            process: true,
            file,
        })
    }

    /// With values from the command line.
    pub(crate) fn with(mut self, given: impl IntoIterator<Item = (String, Given)>) -> Self {
        self.given.extend(given);
        self
    }

    /// The environment variables that begin as those that variables are read from. What is no text is no name of one.
    fn names(&self) -> BTreeSet<String> {
        let process = self.process.then(std::env::vars_os).into_iter().flatten();
        let process = process.filter_map(|(name, _)| name.into_string().ok());
        let mut names: BTreeSet<_> = process.chain(self.file.keys().cloned()).collect();
        names.retain(|name| name.starts_with(PREFIX));
        names
    }

    /// The value of a variable, if there is any besides its default.
    pub(crate) fn value(&self, name: &str) -> Result<Option<String>, LookupError> {
        match self.given.get(name) {
            Some(Given::Value(value)) => Ok(Some(value.clone())),
            Some(Given::File(path)) => {
                let mut text = read_text(path).map_err(|reason| LookupError::Unreadable {
                    name: name.to_owned(),
                    path: path.clone(),
                    reason,
                })?;
                // The line's end that editors add.
                text.truncate(text.trim_end_matches(['\r', '\n']).len());
                Ok(Some(text))
            }
            None => self.get(&environment_name(name)),
        }
    }

    /// The value of an environment variable.
    pub(crate) fn get(&self, name: &str) -> Result<Option<String>, LookupError> {
        if self.process {
            match std::env::var(name) {
                Ok(value) => return Ok(Some(value)),
                Err(VarError::NotUnicode(_)) => return Err(LookupError::NotText(name.to_owned())),
                Err(VarError::NotPresent) => {}
            }
        }
        Ok(self.file.get(name).cloned())
    }
}

/// A text with `{{ variables }}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Variable(String),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// A `{{` without `}}`, or an invalid name between them; the text says which.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut segments = Vec::new();
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once("{{") {
            let (name, tail) = tail.split_once("}}").ok_or("has `{{` without `}}`")?;
            let name = name.trim();
            check_name(name)
                .map_err(|reason| format!("names the variable {name:?}, which {reason}"))?;
            if !literal.is_empty() {
                segments.push(Segment::Literal(literal.to_owned()));
            }
            segments.push(Segment::Variable(name.to_owned()));
            rest = tail;
        }
        if !rest.is_empty() {
            segments.push(Segment::Literal(rest.to_owned()));
        }
        Ok(Self { segments })
    }

    /// The variables it draws on, in order.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Variable(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// Whether it draws on no variable.
    pub(crate) fn is_literal(&self) -> bool {
        self.variables().next().is_none()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.segments.iter().try_for_each(|segment| match segment {
            Segment::Literal(literal) => f.write_str(literal),
            Segment::Variable(name) => write!(f, "{{{{ {name} }}}}"),
        })
    }
}

/// Checks a variable's name: lower-case letters, digits and single underscores between them, a letter first.
///
/// # Errors
///
/// What is wrong with it, as the end of a sentence about the name.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let bytes = name.as_bytes();
    if !bytes.first().is_some_and(u8::is_ascii_lowercase) {
        Err("must start with a lower-case letter")
    } else if !bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
    {
        Err("may hold only lower-case letters, digits and underscores")
    } else if bytes.last() == Some(&b'_') || name.contains("__") {
        Err("may have only single underscores, between other characters")
    } else {
        Ok(())
    }
}

/// Gives the host functions below their data.
pub(crate) struct HasVariables;

impl HasData for HasVariables {
    type Data<'a> = &'a mut ComponentVariables;
}

impl wasi::Host for ComponentVariables {
    async fn get(&mut self, name: String) -> wasmtime::Result<Result<Option<String>, wasi::Error>> {
        // A name that no variable can have is absent, not an error, as in Spin (`factor-variables`).
        Ok(match ComponentVariables::get(self, &name) {
            Ok(value) => Ok(Some(value)),
            Err(LookupError::InvalidName(_) | LookupError::Undefined(_)) => Ok(None),
            Err(error) => Err(wasi::Error::Upstream(error.to_string())),
        })
    }

    async fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, wasi::Error>> {
        Ok(self
            .all()
            .map_err(|error| wasi::Error::Upstream(error.to_string())))
    }
}

impl spin::Host for ComponentVariables {}

impl<T: Send> spin::HostWithStore<T> for HasVariables {
    async fn get(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<String, spin::Error>> {
        let value = accessor.with(|mut access| access.get().get(&name));
        Ok(value.map_err(|error| match error {
            LookupError::InvalidName(name) => spin::Error::InvalidName(name),
            LookupError::Undefined(name) => spin::Error::Undefined(name),
            LookupError::Unresolved { .. }
            | LookupError::Unreadable { .. }
            | LookupError::NotText(_) => spin::Error::Provider(error.to_string()),
        }))
    }
}

impl spin2::Host for ComponentVariables {
    async fn get(&mut self, name: String) -> wasmtime::Result<Result<String, spin2::Error>> {
        Ok(
            ComponentVariables::get(self, &name).map_err(|error| match error {
                LookupError::InvalidName(name) => spin2::Error::InvalidName(name),
                LookupError::Undefined(name) => spin2::Error::Undefined(name),
                LookupError::Unresolved { .. }
                | LookupError::Unreadable { .. }
                | LookupError::NotText(_) => spin2::Error::Provider(error.to_string()),
            }),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn variables(
        declared: &[(&str, Option<&str>)],
        environment: &[(&str, &str)],
    ) -> Arc<Variables> {
        let declared = declared.iter().map(|(name, default)| {
            (
                (*name).to_owned(),
                Declaration {
                    default: default.map(str::to_owned),
                    secret: name.contains("secret"),
                },
            )
        });
        let file = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Arc::new(Variables::new(
            declared.collect(),
            Environment {
                given: BTreeMap::new(),
                process: false,
                file,
            },
        ))
    }

    #[test]
    fn templates() {
        for (text, names, shown) in [
            ("", vec![], ""),
            ("plain", vec![], "plain"),
            ("{{a}}", vec!["a"], "{{ a }}"),
            (
                "https://{{ host }}:{{port}}/",
                vec!["host", "port"],
                "https://{{ host }}:{{ port }}/",
            ),
            ("{ not } a { variable }", vec![], "{ not } a { variable }"),
        ] {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.variables().collect::<Vec<_>>(), names, "{text}");
            assert_eq!(template.to_string(), shown, "{text}");
            assert_eq!(template.is_literal(), names.is_empty(), "{text}");
        }
        for (text, reason) in [
            ("{{ a", "has `{{` without `}}`"),
            ("{{ A }}", "names the variable \"A\""),
        ] {
            assert!(
                Template::parse(text).unwrap_err().starts_with(reason),
                "{text}"
            );
        }
    }

    #[test]
    fn names() {
        for name in ["a", "client_id", "api_origin_1", "a1"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "1a", "_a", "a_", "a__b", "A", "a-b", "ä", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_environment_goes_before_the_default() {
        let variables = variables(
            &[("a", Some("x")), ("b", Some("y"))],
            &[("SPIN_VARIABLE_B", "z")],
        );
        assert_eq!(
            variables
                .resolve(&Template::parse("{{ a }}-{{ b }}").unwrap())
                .unwrap(),
            "x-z"
        );
        assert_eq!(variables.check(), Ok(()));
    }

    #[test]
    fn the_file_is_below_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        assert!(Environment::of_process(&path).unwrap().file.is_empty());
        std::fs::write(&path, "# comment\nSPIN_VARIABLE_A='b c'\nPATH=nowhere\n").unwrap();
        let environment = Environment::of_process(&path).unwrap();
        assert_eq!(
            environment.get("SPIN_VARIABLE_A"),
            Ok(Some("b c".to_owned()))
        );
        assert_ne!(environment.get("PATH"), Ok(Some("nowhere".to_owned())));
        for (text, place) in [
            ("A=1\nB=two words\n", "after A"),
            ("A='secret\n", "at its beginning"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Environment::of_process(&path).unwrap_err();
            assert_eq!(
                error,
                format!("{}: malformed {place}; write NAME='value'", path.display())
            );
        }
    }

    #[test]
    fn a_file_is_read_at_every_lookup() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "one\n").unwrap();
        let given = [
            ("token".to_owned(), Given::File(file.path().to_owned())),
            ("plain".to_owned(), Given::Value("text\n".to_owned())),
        ];
        let environment = Environment::default().with(given);
        let declared = ["token", "plain"].map(|name| (name.to_owned(), Declaration::default()));
        let variables = Variables::new(BTreeMap::from(declared), environment);
        assert_eq!(variables.unknown(), None);
        assert_eq!(variables.check(), Ok(()));
        let resolve = |text| variables.resolve(&Template::parse(text).unwrap());
        assert_eq!(
            resolve("{{ token }} {{ plain }}"),
            Ok("one text\n".to_owned())
        );
        std::fs::write(&file, "two").unwrap();
        assert_eq!(resolve("{{ token }}"), Ok("two".to_owned()));
        drop(file);
        let error = resolve("{{ token }}").unwrap_err().to_string();
        assert!(
            error.starts_with("the variable token cannot be read from /"),
            "{error}"
        );
        let other = Environment::default().with([("x".to_owned(), Given::Value(String::new()))]);
        assert_eq!(Variables::new(BTreeMap::new(), other).unknown(), Some("x"));
    }

    /// As editors of Windows save it, and as PowerShell's `>` does.
    #[test]
    fn a_byte_order_mark_is_dropped_and_utf_16_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let environment = || {
            let given = [("token".to_owned(), Given::File(path.clone()))];
            Environment::default().with(given)
        };
        std::fs::write(&path, "\u{feff}SPIN_VARIABLE_A='b'\r\n").unwrap();
        let text = Some("SPIN_VARIABLE_A='b'".to_owned());
        assert_eq!(environment().value("token"), Ok(text));
        let file = Environment::of_process(&path).unwrap().file;
        assert_eq!(file.get("SPIN_VARIABLE_A").map(String::as_str), Some("b"));

        let secret = "SPIN_VARIABLE_A=canary";
        let little: Vec<_> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<_> = secret.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (bytes, reason) in [
            (
                [&[0xff, 0xfe], &*little].concat(),
                "it is UTF-16: save it as UTF-8",
            ),
            (
                [&[0xfe, 0xff], &*big].concat(),
                "it is UTF-16: save it as UTF-8",
            ),
            (little, "it is UTF-16: save it as UTF-8"),
            (big, "it is UTF-16: save it as UTF-8"),
            (b"caf\xe9".to_vec(), "it is no UTF-8 text: save it as UTF-8"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let shown = path.display();
            assert_eq!(
                environment().value("token").unwrap_err().to_string(),
                format!("the variable token cannot be read from {shown}: {reason}")
            );
            assert_eq!(
                Environment::of_process(&path).unwrap_err(),
                format!("{shown}: cannot read: {reason}")
            );
        }
    }

    #[test]
    fn what_sets_nothing_is_told_with_the_nearest_name() {
        let variables = variables(
            &[("client_id", Some("")), ("key_vault_url", Some(""))],
            &[
                ("SPIN_VARIABLE_CLIENT_ID", "canary"),
                ("SPIN_VARIABLE_CLEINT_ID", "canary"),
                ("SPIN_VARIABLE_KEYVAULT_URL", "canary"),
                ("SPIN_VARIABLE_client_id", "canary"),
                ("SPIN_VARIABLE_ZZZ", "canary"),
                ("SPIN_VARIABLES", "canary"),
            ],
        );
        let told: Vec<_> = variables
            .set_in_vain()
            .iter()
            .map(ToString::to_string)
            .collect();
        let nothing = "sets nothing: [variables] of the manifest has no such name";
        assert_eq!(
            told,
            [
                format!("SPIN_VARIABLE_CLEINT_ID {nothing}; is it SPIN_VARIABLE_CLIENT_ID?"),
                format!("SPIN_VARIABLE_KEYVAULT_URL {nothing}; is it SPIN_VARIABLE_KEY_VAULT_URL?"),
                format!("SPIN_VARIABLE_ZZZ {nothing}"),
                format!("SPIN_VARIABLE_client_id {nothing}; is it SPIN_VARIABLE_CLIENT_ID?"),
            ]
        );
    }

    #[test]
    fn a_variable_without_value_is_named() {
        let variables = variables(&[("client_id", None)], &[]);
        assert!(variables.check().is_err());
        let error = variables
            .resolve(&Template::parse("{{ client_id }}").unwrap())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the variable client_id is required and has no value; set SPIN_VARIABLE_CLIENT_ID"
        );
    }

    #[test]
    fn a_component_sees_only_its_own() {
        let application = variables(&[("a", Some("x")), ("the_secret", Some("y"))], &[]);
        let templates =
            BTreeMap::from([("mine".to_owned(), Template::parse("<{{ a }}>").unwrap())]);
        let component = ComponentVariables::new(Arc::clone(&application), templates);
        assert_eq!(component.get("mine").unwrap(), "<x>");
        assert_eq!(
            component.get("a"),
            Err(LookupError::Undefined("a".to_owned()))
        );
        assert!(matches!(
            component.get("Not A Name"),
            Err(LookupError::InvalidName(_))
        ));
        assert_eq!(
            component.all().unwrap(),
            [("mine".to_owned(), "<x>".to_owned())]
        );
        assert!(application.has_secret(&Template::parse("{{ the_secret }}").unwrap()));
        assert!(!application.has_secret(&Template::parse("{{ a }}").unwrap()));
    }
}
