//! Whether the clock of this machine is right, as far as the answers of other systems tell.

use std::cell::Cell;
use std::time::UNIX_EPOCH;

use http::Response;
use http::header::DATE;

use crate::error::OperatorError;
use crate::port::SecretBody;

/// Seconds by which the clock may be off: what callers' tokens are allowed, too. By a clock that is further off a sweep
/// would refresh what is not due, or leave what is, and delete by age what is not old.
const TOLERANCE: u64 = 300;

/// What the last answer that had a date (RFC 9110 §6.6.1) said of the clock.
#[derive(Default, Debug)]
pub(crate) struct ClockCheck {
    is_wrong: Cell<bool>,
}

impl ClockCheck {
    /// Compares with an answer that came now.
    pub(crate) fn compare(&self, answer: &Response<SecretBody>, now: u64) {
        if let Some(date) = date(answer) {
            self.is_wrong.set(date.abs_diff(now) > TOLERANCE);
        }
    }

    /// # Errors
    /// [`OperatorError::ClockWrong`].
    pub(crate) fn check(&self) -> Result<(), OperatorError> {
        if self.is_wrong.get() {
            Err(OperatorError::ClockWrong)
        } else {
            Ok(())
        }
    }
}

/// The date of an answer, in Unix seconds.
pub(crate) fn date(answer: &Response<SecretBody>) -> Option<u64> {
    let date = answer.headers().get(DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 9110 §5.6.7.
    const DATED: (&str, u64) = ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777);

    #[test]
    fn the_last_answer_with_a_date_decides() {
        let check = ClockCheck::default();
        let answer = |date: Option<&str>| {
            let mut answer = Response::builder();
            if let Some(date) = date {
                answer = answer.header(DATE, date);
            }
            answer.body(SecretBody::default()).unwrap()
        };
        let (text, date) = DATED;
        assert_eq!(check.check(), Ok(()), "nobody has said anything");
        for (now, outcome) in [
            (date, Ok(())),
            (date + 300, Ok(())),
            (date - 300, Ok(())),
            (date + 301, Err(OperatorError::ClockWrong)),
            (date - 301, Err(OperatorError::ClockWrong)),
        ] {
            check.compare(&answer(Some(text)), now);
            assert_eq!(check.check(), outcome, "{now}");
        }
        for nothing in [None, Some("today"), Some("")] {
            check.compare(&answer(nothing), date);
            assert_eq!(check.check(), Err(OperatorError::ClockWrong));
        }
    }
}
