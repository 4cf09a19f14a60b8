//! JSON by hand: the crate has no other use for a library that writes it.

use std::fmt::{Display, Write};
use std::time::Duration;

/// A list of values that are JSON already.
pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("[{}]", items.join(","))
}

/// An object in the making. Names need no escapes.
#[derive(Debug)]
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Object {
        Object("{".to_owned())
    }

    /// A value that is JSON already.
    pub(crate) fn raw(mut self, name: &str, value: &impl Display) -> Object {
        let comma = if self.0.len() > 1 { "," } else { "" };
        // A String takes all that is written to it; so below.
        let _ = write!(self.0, "{comma}\"{name}\":{value}");
        self
    }

    pub(crate) fn nanos(self, name: &str, time: Duration) -> Object {
        self.raw(&format!("{name}_ns"), &time.as_nanos())
    }

    pub(crate) fn text(self, name: &str, text: &str) -> Object {
        let mut quoted = String::from("\"");
        for character in text.chars() {
            if character < ' ' || matches!(character, '"' | '\\') {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            } else {
                quoted.push(character);
            }
        }
        quoted.push('"');
        self.raw(name, &quoted)
    }

    pub(crate) fn end(self) -> String {
        self.0 + "}"
    }
}
