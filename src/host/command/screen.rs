//! What commands show people: lines, times, and columns.

use super::Failure;
use chrono::DateTime;
use std::io::{self, Write as _};
use std::time::Duration;

/// Writes to standard output, a line's end behind it.
pub(super) fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Failure::Io)
}

/// A Unix time as a day in UTC, or what stands for none.
pub(super) fn day(time: Option<u64>, none: &str) -> String {
    let time = time.and_then(|time| DateTime::from_timestamp(i64::try_from(time).ok()?, 0));
    time.map_or_else(
        || none.to_owned(),
        |time| time.format("%Y-%m-%d").to_string(),
    )
}

/// How long ago a Unix time was, in its largest two units.
pub(super) fn ago(time: u64, now: u64) -> String {
    let seconds = now.saturating_sub(time);
    let unit = match seconds {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    let coarse = seconds.saturating_sub(seconds.checked_rem(unit).unwrap_or(0));
    format!(
        "{} ago",
        humantime::format_duration(Duration::from_secs(coarse))
    )
}

/// Columns below their heads, the last one as long as it is.
pub(super) fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let heads = heads.iter().map(|&head| head.to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(rows).collect();
    let mut widths: Vec<usize> = Vec::new();
    for line in &lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let aligned = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    });
    aligned.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "0s ago"),
            (59, "59s ago"),
            (3599, "59m 59s ago"),
            (3661, "1h 1m ago"),
            (90_061, "1day 1h ago"),
        ] {
            assert_eq!(ago(1_000_000, 1_000_000 + seconds), text);
        }
        assert_eq!(ago(5, 1), "0s ago", "another clock");
        assert_eq!(day(Some(0), "-"), "1970-01-01");
        assert_eq!([day(Some(u64::MAX), "-"), day(None, "-")], ["-", "-"]);
    }

    #[test]
    fn columns() {
        let rows = vec![
            vec!["aaaa".into(), "b".into()],
            vec!["é".into(), "cc".into()],
        ];
        assert_eq!(table(&["A", "B"], rows), "A     B\naaaa  b\né     cc");
    }
}
