//! Results as text, JSON or hexadecimal digits; the only file that writes to standard output and standard error.
//!
//! Invariants: `kvtool load` accepts each record that is printed with `--json`; a closed pipe ends the command without a
//! message.

use std::fmt::Write as _;
use std::io::{BufWriter, Stdout, Write as _};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::{Failure, Result};

/// The notation of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notation {
    /// As they are.
    Plain,
    /// Two hexadecimal digits a byte.
    Hex,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// For people and pipes.
    Text,
    /// One JSON object a line.
    Json,
}

/// Buffered standard output.
#[derive(Debug)]
pub(crate) struct Out {
    writer: BufWriter<Stdout>,
    notation: Notation,
    style: Style,
}

impl Out {
    pub(crate) fn new(notation: Notation, style: Style) -> Out {
        Out { writer: BufWriter::with_capacity(64 << 10, std::io::stdout()), notation, style }
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    pub(crate) fn notation(&self) -> Notation {
        self.notation
    }

    /// Bytes and a line break.
    pub(crate) fn line(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.writer
            .write_all(bytes.as_ref())
            .and_then(|()| self.writer.write_all(b"\n"))
            .map_err(|error| Failure::output(&error))
    }

    /// A key or a value alone on its line.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match self.notation {
            Notation::Plain => self.line(bytes),
            Notation::Hex => self.line(hex(bytes)),
        }
    }

    /// A key with its value.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match (self.style, self.notation) {
            (Style::Json, notation) => self.line(json_line(key, Some(value), notation)),
            (Style::Text, Notation::Hex) => self.line(format!("{}\t{}", hex(key), hex(value))),
            (Style::Text, Notation::Plain) => {
                self.writer
                    .write_all(key)
                    .and_then(|()| self.writer.write_all(b"\t"))
                    .map_err(|error| Failure::output(&error))?;
                self.line(value)
            }
        }
    }

    /// A key without its value.
    pub(crate) fn key(&mut self, key: &[u8]) -> Result<()> {
        match self.style {
            Style::Json => self.line(json_line(key, None, self.notation)),
            Style::Text => self.bytes(key),
        }
    }

    /// A JSON object, or the same as two aligned columns with one line for each nested figure.
    pub(crate) fn table(&mut self, rows: &Map<String, Value>) -> Result<()> {
        if self.style == Style::Json {
            return self.line(Value::from(rows.clone()).to_string());
        }
        let mut lines = Vec::new();
        for (name, value) in rows {
            flatten(&name.replace('_', " "), value, &mut lines);
        }
        let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, text) in lines {
            self.line(format!("{name:width$}  {text}"))?;
        }
        Ok(())
    }

    /// Passes everything to the system. Must be called at the end, because a drop cannot report a failure.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(|error| Failure::output(&error))
    }
}

/// A line on standard error. A failure cannot be reported anywhere.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr(), "kvtool: {text}"));
}

/// The lines of a nested value: `io read count  12`. The `name` of each item of a list tells them apart.
fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields.iter().filter(|(field, _)| *field != "name") {
                flatten(&format!("{name} {}", field.replace('_', " ")), value, lines);
            }
        }
        Value::Array(things) => {
            for thing in things {
                let which = thing.get("name").and_then(Value::as_str).unwrap_or_default();
                flatten(format!("{name} {which}").trim_end(), thing, lines);
            }
        }
        Value::String(text) => lines.push((name.to_owned(), text.clone())),
        Value::Number(number) => {
            let text =
                number.as_u64().map_or_else(|| format!("{:.3}", number.as_f64().unwrap_or(0.0)), thousands);
            lines.push((name.to_owned(), text));
        }
        other => lines.push((name.to_owned(), other.to_string())),
    }
}

/// `{"key":…,"value":…}` without line breaks. Bytes that are not text become `key_hex` and `value_hex`; text that is not
/// JSON becomes `value_text`.
fn json_line(key: &[u8], value: Option<&[u8]>, notation: Notation) -> String {
    let mut line = String::with_capacity(key.len() + value.map_or(0, <[u8]>::len) + 24);
    line.push('{');
    match (notation, std::str::from_utf8(key)) {
        (Notation::Hex, _) => field(&mut line, "key", &quoted(&hex(key))),
        (Notation::Plain, Ok(text)) => field(&mut line, "key", &quoted(text)),
        (Notation::Plain, Err(_)) => field(&mut line, "key_hex", &quoted(&hex(key))),
    }
    if let Some(value) = value {
        line.push(',');
        json_value(&mut line, value, notation);
    }
    line.push('}');
    line
}

fn json_value(line: &mut String, value: &[u8], notation: Notation) {
    let Ok(text) = std::str::from_utf8(value) else {
        let name = if notation == Notation::Hex { "value" } else { "value_hex" };
        return field(line, name, &quoted(&hex(value)));
    };
    if notation == Notation::Hex {
        field(line, "value", &quoted(&hex(value)));
    } else if serde_json::from_str::<&RawValue>(text).is_ok() {
        // A line break in JSON text can only stand between tokens, where a space means the same.
        field(line, "value", &text.replace(['\n', '\r'], " "));
    } else {
        field(line, "value_text", &quoted(text));
    }
}

fn field(line: &mut String, name: &str, json: &str) {
    line.push('"');
    line.push_str(name);
    line.push_str("\":");
    line.push_str(json);
}

/// A JSON string.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Two lower-case digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // a `String` takes everything
    }
    text
}

/// The bytes of [`hex`]; `None` if it is anything else.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some((nibble(*high)? << 4) | nibble(*low)?)).collect()
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Measures the duration of a command for its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "shown to people, decides nothing")]
    pub(crate) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_printed_as_the_line_it_was_loaded_from() {
        let line = json_line("CH/Zürich".as_bytes(), Some(br#"{"a":[1, 2],"b":"x\ny"}"#), Notation::Plain);
        assert_eq!(line, r#"{"key":"CH/Zürich","value":{"a":[1, 2],"b":"x\ny"}}"#);
    }

    #[test]
    fn a_record_of_any_content_is_one_line() {
        assert_eq!(
            json_line(b"k", Some(b"{\n\"a\":\r\n1}"), Notation::Plain),
            r#"{"key":"k","value":{ "a":  1}}"#
        );
        assert_eq!(
            json_line(b"\xff\n", Some(b"a\nb"), Notation::Plain),
            r#"{"key_hex":"ff0a","value_text":"a\nb"}"#
        );
        assert_eq!(json_line(b"k", Some(b"\xff"), Notation::Hex), r#"{"key":"6b","value":"ff"}"#);
        assert_eq!(json_line(b"k", None, Notation::Plain), r#"{"key":"k"}"#);
    }

    #[test]
    fn hexadecimal_digits_go_both_ways() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)), Some(all));
        for bad in ["f", "0g", "+1", "é"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(123), "123");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }
}
