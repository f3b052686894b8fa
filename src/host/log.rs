//! What this host and its components say on standard error, a line a time: text, coloured on a terminal only, or JSON.
//!
//! Lines wait, in a bounded number of bytes, for a thread that writes them, so that a reader who stalls stops nobody else.
//! The host's own lines are dropped when there is no room, and counted. Those of components may be all that is known of
//! what was done for whom: they wait for room, for a time.

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// How many bytes may wait to be written. The host's own lines may take half of it.
const ROOM: usize = 1024 * 1024;

/// How many bytes are written at once at most, if so many wait.
const BATCH: usize = 64 * 1024;

/// How long lines are gathered after a write, so that a busy host does not wake the thread that writes for each of them.
const GATHER: Duration = Duration::from_millis(1);

/// How long the end of this process waits for its last lines to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long to wait before writing again what the system did not take.
const RETRY: Duration = Duration::from_millis(10);

/// The field of a span that tells which request it is about.
const REQUEST_ID: &str = "request_id";

const BOLD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const DIM: Style = Style::new().dimmed();

static LOG: OnceLock<Log> = OnceLock::new();

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line, with `time`, `level`, `message`, and what else there is: `component`, `request_id`, …
    Json,
}

/// Which lines there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verbosity {
    /// Why the process ends, and faults of the host.
    Error,
    /// And what somebody should look into.
    Warn,
    /// And one line for each request.
    Info,
    /// And what helps to find a fault.
    Debug,
}

/// Begins to say things, so. Before that nothing is said but why a process ends.
pub(crate) fn begin(format: Format, verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Error => LevelFilter::ERROR,
        Verbosity::Warn => LevelFilter::WARN,
        Verbosity::Info => LevelFilter::INFO,
        Verbosity::Debug => LevelFilter::DEBUG,
    };
    let coloured = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let log = LOG.get_or_init(|| Log::new(Rendering { format, coloured }, io::stderr()));
    // What other crates say may hold what nobody should read.
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), level);
    let lines = HostLines(log.clone()).with_filter(ours);
    // There is only one beginning.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        // A text that was put together could hold anything.
        let text = panic.payload().downcast_ref::<&str>().copied();
        tracing::error!(
            "a fault of this program, at {}: {}",
            place.unwrap_or_default(),
            text.unwrap_or("a panic")
        );
    }));
}

/// Says why this process ends. In text these are a command's last words, and begin with its name.
pub(crate) fn fail(message: impl Display) {
    let message = one_line(&message.to_string());
    if LOG
        .get()
        .is_some_and(|log| log.rendering.format == Format::Json)
    {
        tracing::error!("{message}");
    } else {
        end();
        // Nobody may be listening any more.
        let _ = writeln!(anstream::stderr().lock(), "{RED}behalf:{RED:#} {message}");
    }
}

/// Waits until what was said is written, but not for long.
pub(crate) fn end() {
    if let Some(log) = LOG.get() {
        let (written, all) = channel();
        if log.entries.send(Entry::Tell(written)).is_ok() {
            let _ = all.recv_timeout(LAST_WORDS);
        }
    }
}

/// A line of a component.
#[derive(Debug)]
pub(crate) struct GuestLine(Vec<u8>);

impl GuestLine {
    /// What `component` wrote. None if nobody is told anything.
    pub(crate) fn new(component: &str, text: &str) -> Option<Self> {
        let text = one_line(text);
        let log = LOG.get()?;
        let message = match log.rendering.format {
            // A component's own JSON stays what it is.
            Format::Json => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            Format::Text => Value::String(text),
        };
        let record = Record {
            component: Some(component),
            message,
            ..Record::new(Level::INFO)
        };
        Some(Self(log.rendering.line(&record)))
    }

    /// Says it, if there is room at once.
    ///
    /// # Errors
    ///
    /// The line itself, if there is none.
    pub(crate) fn say(self) -> Result<(), Self> {
        match LOG.get() {
            Some(log) => log.try_push(self.0, 0).map_err(Self),
            None => Ok(()),
        }
    }

    /// Says it when there is room. After `patience` it is dropped, and counted.
    pub(crate) async fn say_in_time(self, patience: Duration) {
        if let Some(log) = LOG.get() {
            log.push(self.0, patience).await;
        }
    }
}

/// Where lines go. Cheap to clone.
#[derive(Debug, Clone)]
struct Log {
    rendering: Rendering,
    entries: Sender<Entry>,
    /// A permit for each byte that may wait.
    room: Arc<Semaphore>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Word is sent when all before it is written.
    Tell(Sender<()>),
}

impl Log {
    fn new(rendering: Rendering, out: impl Write + Send + 'static) -> Self {
        let (entries, waiting) = channel();
        let log = Self {
            rendering,
            entries,
            room: Arc::new(Semaphore::new(ROOM)),
            dropped: Arc::default(),
        };
        let (room, dropped) = (Arc::clone(&log.room), Arc::clone(&log.dropped));
        let write = move || write_all(&waiting, out, rendering, &room, &dropped);
        // Without it nothing is said, and nothing waits.
        if std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(write)
            .is_err()
        {
            log.room.close();
        }
        log
    }

    /// Takes a line in, if that leaves room for `others` bytes.
    fn try_push(&self, line: Vec<u8>, others: usize) -> Result<(), Vec<u8>> {
        let length = length(&line);
        let enough = self.room.available_permits() >= others.saturating_add(line.len());
        match self.room.try_acquire_many(length) {
            Ok(permit) if enough => {
                permit.forget();
                // It fails when nothing is written any more.
                let _ = self.entries.send(Entry::Line(line));
                Ok(())
            }
            Ok(_) | Err(_) => Err(line),
        }
    }

    async fn push(&self, line: Vec<u8>, patience: Duration) {
        match timeout(patience, self.room.acquire_many(length(&line))).await {
            Ok(Ok(permit)) => {
                permit.forget();
                let _ = self.entries.send(Entry::Line(line));
            }
            Ok(Err(_)) | Err(_) => self.drop_one(),
        }
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a line takes of the room; one that is longer than that takes all of it.
fn length(line: &[u8]) -> u32 {
    u32::try_from(line.len().min(ROOM)).unwrap_or(u32::MAX)
}

/// Writes what waits, as long as anybody can say anything.
fn write_all(
    waiting: &Receiver<Entry>,
    mut out: impl Write,
    rendering: Rendering,
    room: &Semaphore,
    dropped: &AtomicU64,
) {
    let mut batch = Vec::new();
    while let Ok(first) = waiting.recv() {
        let mut room_left = 0;
        let mut told = Vec::new();
        for entry in std::iter::once(first).chain(waiting.try_iter()) {
            match entry {
                Entry::Line(line) => {
                    room_left = usize::saturating_add(room_left, line.len().min(ROOM));
                    batch.extend_from_slice(&line);
                }
                Entry::Tell(written) => told.push(written),
            }
            if batch.len() >= BATCH {
                break;
            }
        }
        write(&mut out, &batch);
        room.add_permits(room_left);
        let is_full = batch.len() >= BATCH;
        batch.clear();
        let count = dropped.swap(0, Ordering::Relaxed);
        if count > 0 {
            let record = Record {
                message: json!(format!(
                    "{count} lines were dropped: standard error is not read as fast as it is written"
                )),
                ..Record::new(Level::WARN)
            };
            write(&mut out, &rendering.line(&record));
        }
        if told.is_empty() && !is_full {
            std::thread::sleep(GATHER);
        }
        for written in told {
            let _ = written.send(());
        }
    }
}

fn write(out: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who has the other end made it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            // Nobody may be listening any more; that is no reason to stop serving.
            Err(_) => return,
        }
    }
}

// ---- The host's own lines --------------------------------------------------------------------------------------------

struct HostLines(Log);

/// Which request a span is about.
struct RequestId(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for HostLines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut record = Record::new(Level::INFO);
        attributes.record(&mut record);
        if let (Some(span), Some(Value::String(id))) =
            (context.span(id), record.fields.remove(REQUEST_ID))
        {
            span.extensions_mut().insert(RequestId(id));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut record = Record::new(*event.metadata().level());
        event.record(&mut record);
        let mut scope = context.event_scope(event).into_iter().flatten();
        record.request_id =
            scope.find_map(|span| Some(span.extensions().get::<RequestId>()?.0.clone()));
        if self
            .0
            .try_push(self.0.rendering.line(&record), ROOM / 2)
            .is_err()
        {
            self.0.drop_one();
        }
    }
}

/// What a line tells.
struct Record<'a> {
    level: Level,
    component: Option<&'a str>,
    request_id: Option<String>,
    message: Value,
    fields: Map<String, Value>,
}

impl Record<'_> {
    fn new(level: Level) -> Self {
        Self {
            level,
            component: None,
            request_id: None,
            message: Value::Null,
            fields: Map::new(),
        }
    }

    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value,
            name => {
                self.fields.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Record<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, json!(one_line(&format!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, json!(one_line(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, json!(value));
    }
}

// ---- Rendering --------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
struct Rendering {
    format: Format,
    coloured: bool,
}

impl Rendering {
    fn line(self, record: &Record<'_>) -> Vec<u8> {
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let mut line = match self.format {
            Format::Json => json(&time, record),
            Format::Text if self.coloured => text(&time, record),
            Format::Text => anstream::adapter::strip_str(&text(&time, record)).to_string(),
        };
        line.push('\n');
        line.into_bytes()
    }
}

fn json(time: &str, record: &Record<'_>) -> String {
    let level = record.level.as_str().to_ascii_lowercase();
    let mut object = Map::new();
    object.insert("time".to_owned(), json!(time));
    object.insert("level".to_owned(), json!(level));
    if let Some(component) = record.component {
        object.insert("component".to_owned(), json!(component));
    }
    object.insert("message".to_owned(), record.message.clone());
    object.extend(record.fields.clone());
    if let Some(id) = &record.request_id {
        object.insert(REQUEST_ID.to_owned(), json!(id));
    }
    Value::Object(object).to_string()
}

fn text(time: &str, record: &Record<'_>) -> String {
    let style = match record.level {
        Level::ERROR => RED,
        Level::WARN => YELLOW,
        _ => Style::new(),
    };
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let word = |value: &Value| match value {
        Value::String(text) if !text.contains([' ', '"']) => text.clone(),
        value => value.to_string(),
    };
    let mut line = format!(
        "{DIM}{time}{DIM:#} {style}{:<5}{style:#} ",
        record.level.as_str()
    );
    // A text takes all that is written.
    if let Some(component) = record.component {
        let _ = write!(line, "{BOLD}{component}:{BOLD:#} ");
    }
    line.push_str(&plain(&record.message));
    let id = record.request_id.as_ref().map(|id| json!(id));
    let id = id.as_ref().map(|id| (REQUEST_ID, id));
    let fields = record
        .fields
        .iter()
        .map(|(name, value)| (name.as_str(), value));
    for (name, value) in fields.chain(id) {
        let _ = write!(line, " {DIM}{name}={DIM:#}{}", word(value));
    }
    line
}

/// A text without line breaks and other control characters, whatever it was made from.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{SyncSender, sync_channel};

    const PLAIN: Rendering = Rendering {
        format: Format::Text,
        coloured: false,
    };

    /// What was written, each write when the test has let it.
    #[derive(Clone)]
    struct Slow {
        writes: Arc<Mutex<Vec<String>>>,
        let_go: Arc<Mutex<Receiver<()>>>,
    }

    impl Slow {
        fn new() -> (Self, SyncSender<()>) {
            let (go, let_go) = sync_channel(1_000_000);
            let slow = Self {
                writes: Arc::default(),
                let_go: Arc::new(Mutex::new(let_go)),
            };
            (slow, go)
        }

        fn all(&self) -> String {
            self.writes.lock().unwrap().concat()
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // When the test is over, nobody lets it any more.
            let _ = self.let_go.lock().unwrap().recv();
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.writes.lock().unwrap().push(text);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(log: &Log) {
        let (tell, told) = channel();
        log.entries.send(Entry::Tell(tell)).unwrap();
        told.recv().unwrap();
    }

    #[test]
    fn a_message_stays_in_its_line() {
        assert_eq!(one_line("a\nb\u{1b}[31mc"), "a b [31mc");
    }

    #[test]
    fn a_line_tells_all_in_either_look() {
        let mut record = Record {
            component: Some("web"),
            request_id: Some("r-1".to_owned()),
            message: json!("answered"),
            ..Record::new(Level::WARN)
        };
        record.fields.insert("status".to_owned(), json!(503));
        assert_eq!(
            anstream::adapter::strip_str(&text("now", &record)).to_string(),
            "now WARN  web: answered status=503 request_id=r-1"
        );
        let object: Value = serde_json::from_str(&json("now", &record)).unwrap();
        let expected = json!({
            "time": "now", "level": "warn", "component": "web", "message": "answered", "status": 503, "request_id": "r-1",
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn lines_of_requests_have_their_id_and_one_write_each() {
        let (out, go) = Slow::new();
        let log = Log::new(PLAIN, out.clone());
        let subscriber = tracing_subscriber::registry().with(HostLines(log.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("request", request_id = "r-2");
            let _entered = span.enter();
            go.send(()).unwrap();
            tracing::info!(status = 200_u64, "answered\n");
        });
        written(&log);
        let writes = out.writes.lock().unwrap().clone();
        assert_eq!(writes.len(), 1, "{writes:?}");
        assert!(
            out.all()
                .ends_with(" INFO  answered  status=200 request_id=r-2\n")
        );
    }

    /// As the reader of a pipe does that has stopped.
    #[tokio::test]
    async fn a_stalled_reader_costs_the_host_s_lines_and_lets_the_components_wait() {
        let (out, go) = Slow::new();
        let log = Log::new(PLAIN, out.clone());
        let line = |text: &str| format!("{text:0>1000}\n").into_bytes();
        let mut taken = 0;
        while log.try_push(line("host"), ROOM / 2).is_ok() {
            taken += 1;
        }
        assert!(taken >= 500, "{taken}");
        log.drop_one();
        let mut guests = 0;
        while log.try_push(line("guest"), 0).is_ok() {
            guests += 1;
        }
        assert!(guests >= 500, "the host's leave room: {guests}");
        log.push(line("lost"), Duration::from_millis(50)).await;
        let late = log.push(line("late"), Duration::from_mins(1));
        let reader = async {
            for _ in 0..1000 {
                go.send(()).unwrap();
            }
        };
        tokio::join!(late, reader);
        written(&log);
        let all = out.all();
        assert_eq!(all.matches("host\n").count(), taken);
        assert_eq!(all.matches("guest\n").count(), guests);
        assert!(all.contains("late\n") && !all.contains("lost\n"));
        assert!(all.contains(" WARN  2 lines were dropped: "), "{all}");
    }
}
