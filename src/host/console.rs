//! What this host says on standard error, one line a time: text, coloured on a terminal only, or JSON.

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use serde_json::json;
use std::fmt::{Arguments, Display};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

const BOLD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object a line, with `time`, `level`, `message`, and `component` where one says it.
    Json,
}

static JSON: AtomicBool = AtomicBool::new(false);

/// Chooses how lines look from now on.
pub(crate) fn set_format(format: Format) {
    JSON.store(format == Format::Json, Ordering::Relaxed);
}

/// Says how things are.
pub(crate) fn note(message: impl Display) {
    say("info", &message, format_args!("{message}"));
}

/// Says a fact under a heading, aligned with others.
pub(crate) fn fact(heading: &str, message: impl Display) {
    say(
        "info",
        &format_args!("{heading} {message}"),
        format_args!("  {BOLD}{heading:<8}{BOLD:#} {message}"),
    );
}

/// Says what somebody should look into.
pub(crate) fn warn(message: impl Display) {
    let message = one_line(&message.to_string());
    say(
        "warning",
        &message,
        format_args!("{YELLOW}behalf:{YELLOW:#} {message}"),
    );
}

/// Says why this process ends.
pub(crate) fn fail(message: impl Display) {
    let message = one_line(&message.to_string());
    say(
        "error",
        &message,
        format_args!("{RED}behalf:{RED:#} {message}"),
    );
}

/// Says what a component wrote, one line of it.
pub(crate) fn guest(component: &str, message: &str) {
    let message = one_line(message);
    if JSON.load(Ordering::Relaxed) {
        // A component's own JSON stays what it is.
        let message = serde_json::from_str(&message).unwrap_or_else(|_| json!(message));
        let (time, level) = (now(), "info");
        let object =
            json!({"time": time, "level": level, "component": component, "message": message});
        line(format_args!("{object}"));
    } else {
        line(format_args!("{BOLD}{component}:{BOLD:#} {message}"));
    }
}

fn say(level: &str, message: &dyn Display, text: Arguments<'_>) {
    if JSON.load(Ordering::Relaxed) {
        let object = json!({"time": now(), "level": level, "message": message.to_string()});
        line(format_args!("{object}"));
    } else {
        line(text);
    }
}

fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn line(text: Arguments<'_>) {
    // Nobody may be listening any more; that is no reason to stop serving.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// A text without line breaks and other control characters, whatever it was made from.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_in_its_line() {
        assert_eq!(one_line("a\nb\u{1b}[31mc"), "a b [31mc");
    }
}
