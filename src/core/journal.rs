//! Lines for the operator: JSON objects, each with its `event`.

use serde_json::{Value, json};

use crate::identity::User;
use crate::port::Log;

/// How lines are written.
pub(crate) trait Journal: Log {
    /// Something has happened; `more` is an object with what else there is to tell.
    fn event(&self, event: &str, more: Value) {
        write(self, json!({"event": event}), more);
    }

    /// Something has happened to a user.
    fn about(&self, event: &str, user: &User, more: Value) {
        let line =
            json!({"event": event, "tenant": user.tenant.as_str(), "user": user.id.as_str()});
        write(self, line, more);
    }

    /// Something that the operator has to look after.
    fn alarm(&self, event: &str, more: Value) {
        write(self, json!({"level": "alarm", "event": event}), more);
    }

    /// Something about a user that the operator has to look after.
    fn alarm_about(&self, event: &str, user: &User) {
        self.about(event, user, json!({"level": "alarm"}));
    }
}

impl<L: Log + ?Sized> Journal for L {}

fn write(log: &(impl Log + ?Sized), mut line: Value, more: Value) {
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    log.line(&line.to_string());
}
