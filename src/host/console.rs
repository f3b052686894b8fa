//! What this host says on standard error: one line a time, coloured on a terminal only.

use anstyle::{AnsiColor, Style};
use std::fmt::{Arguments, Display};
use std::io::Write as _;

const BOLD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();

/// Says how things are.
pub(crate) fn note(message: impl Display) {
    line(format_args!("{message}"));
}

/// Says a fact under a heading, aligned with others.
pub(crate) fn fact(heading: &str, message: impl Display) {
    line(format_args!("  {BOLD}{heading:<8}{BOLD:#} {message}"));
}

/// Says what somebody should look into.
pub(crate) fn warn(message: impl Display) {
    line(format_args!(
        "{YELLOW}behalf:{YELLOW:#} {}",
        one_line(&message.to_string())
    ));
}

/// Says why this process ends.
pub(crate) fn fail(message: impl Display) {
    line(format_args!(
        "{RED}behalf:{RED:#} {}",
        one_line(&message.to_string())
    ));
}

/// Says what a component wrote, one line of it.
pub(crate) fn guest(component: &str, message: &str) {
    line(format_args!(
        "{BOLD}{component}:{BOLD:#} {}",
        one_line(message)
    ));
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
