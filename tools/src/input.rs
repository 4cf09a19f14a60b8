//! JSON lines from a file, a gzip file or standard input.
//!
//! A line is `{"key":"…","value":…}`. The key is the bytes of the unescaped string; the value is the JSON text, byte for
//! byte. Memory: one line.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Failure, Result};
use crate::render::{self, Notation};

/// The longest accepted line, so that a file without line breaks does not fill the memory.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// The first bytes of each gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The fields of a line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// A record to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Its key.
    pub(crate) key: Cow<'a, [u8]>,
    /// Its value.
    pub(crate) value: Cow<'a, [u8]>,
}

/// Parses a line. The error names the mistake.
pub(crate) fn parse(line: &[u8], notation: Notation) -> std::result::Result<Record<'_>, String> {
    let parsed: Line<'_> = serde_json::from_slice(line).map_err(|error| explain(&error))?;
    if notation == Notation::Hex {
        let text: Cow<'_, str> = serde_json::from_str::<String>(parsed.value.get())
            .map(Cow::Owned)
            .map_err(|_| "--hex wants the value to be a string".to_owned())?;
        let digits = |what: &str, text: &str| {
            render::unhex(text)
                .ok_or_else(|| format!("the {what} is not an even number of hexadecimal digits"))
        };
        let (key, value) = (digits("key", &parsed.key)?, digits("value", &text)?);
        return Ok(Record { key: Cow::Owned(key), value: Cow::Owned(value) });
    }
    let key = match parsed.key {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    Ok(Record { key, value: Cow::Borrowed(parsed.value.get().as_bytes()) })
}

/// A JSON error with the column, but without its "line 1": the caller knows the number of the line.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("column {}: {what} (wanted: {{\"key\":\"...\",\"value\":...}})", error.column())
}

/// Lines with their numbers, and a progress bar if standard error is a terminal.
pub(crate) struct Lines {
    name: PathBuf,
    reader: Box<dyn BufRead>,
    buffer: Vec<u8>,
    number: u64,
    bar: ProgressBar,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lines({}, line {})", self.name.display(), self.number)
    }
}

impl Lines {
    /// Opens a file, or standard input for `-`.
    pub(crate) fn open(path: &Path) -> Result<Lines> {
        if path == Path::new("-") {
            let bar = ProgressBar::new_spinner();
            let input = bar.wrap_read(std::io::stdin());
            return Lines::new(PathBuf::from("standard input"), input, bar);
        }
        #[expect(clippy::disallowed_methods, reason = "the input is no file of a store")]
        let file = std::fs::File::open(path).map_err(|error| Failure::file(path, &error))?;
        let found = file.metadata().map_err(|error| Failure::file(path, &error))?;
        if found.is_dir() {
            return Err(Failure::environment(format!(
                "{}: is a directory: give a file of JSON lines, or - for standard input",
                path.display()
            )));
        }
        let bar = ProgressBar::new(found.len());
        let template = "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let input = bar.wrap_read(file);
        Lines::new(path.to_owned(), input, bar)
    }

    fn new(name: PathBuf, input: impl Read + 'static, bar: ProgressBar) -> Result<Lines> {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let start = input.fill_buf().map_err(|error| Failure::input_stream(&name, &error))?;
        let packed = start.starts_with(&GZIP_MAGIC);
        if !packed && !start.is_empty() && name.extension().is_some_and(|end| end == "gz") {
            return Err(Failure::input(format!(
                "{}: not a gzip file: remove the .gz from its name if it is plain text",
                name.display()
            )));
        }
        let reader: Box<dyn BufRead> = if packed {
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input)))
        } else {
            Box::new(input)
        };
        Ok(Lines { name, reader, buffer: Vec::new(), number: 0, bar })
    }

    /// The next line without its line break; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>> {
        self.buffer.clear();
        self.number += 1;
        let read = (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.buffer);
        match read {
            Err(error) => Err(self.unreadable(&error)),
            Ok(0) => Ok(None),
            Ok(length) if self.buffer.ends_with(b"\n") => {
                self.buffer.truncate(length - 1);
                Ok(Some(&self.buffer))
            }
            Ok(length) if u64::try_from(length).is_ok_and(|length| length == MAX_LINE_BYTES) => {
                Err(self.malformed(format!("longer than {MAX_LINE_BYTES} bytes")))
            }
            Ok(_) => Ok(Some(&self.buffer)),
        }
    }

    /// A mistake in the last line.
    pub(crate) fn malformed(&self, what: impl std::fmt::Display) -> Failure {
        Failure::input(format!("{}: line {}: {what}", self.name.display(), self.number))
    }

    /// A gzip file that is cut or damaged is malformed input; any other error is the machine's.
    fn unreadable(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::UnexpectedEof => self.malformed("the gzip file ends too early: it is truncated"),
            Io::InvalidData | Io::InvalidInput => {
                self.malformed(format!("the gzip file is damaged: {error}"))
            }
            _ => Failure::input_stream(&self.name, error),
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(line: &str) -> std::result::Result<(Vec<u8>, Vec<u8>), String> {
        parse(line.as_bytes(), Notation::Plain)
            .map(|record| (record.key.into_owned(), record.value.into_owned()))
    }

    #[test]
    fn the_value_is_the_text_as_it_stands() {
        let (key, value) = plain(r#" {"key":"a\u00e9\"b", "value": {"z": 1.0,  "a":[ ]} } "#).unwrap();
        assert_eq!(key, "aé\"b".as_bytes());
        assert_eq!(value, br#"{"z": 1.0,  "a":[ ]}"#);
        assert_eq!(plain(r#"{"value":1e999,"key":"k"}"#).unwrap().1, b"1e999");
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for line in [
            "{",
            "[]",
            "{}",
            r#"{"key":"a"}"#,
            r#"{"value":1}"#,
            r#"{"key":1,"value":1}"#,
            r#"{"key":"a","value":}"#,
            r#"{"key":"a","value":1} x"#,
            r#"{"key":"a","value":1,"more":2}"#,
            r#"{"key":"a","key":"b","value":1}"#,
            "\"text\"",
        ] {
            let error = plain(line).expect_err(line);
            assert!(error.starts_with("column "), "{line}: {error}");
            assert!(!error.contains("at line"), "{line}: {error}");
        }
        assert!(parse(b"{\"key\":\"\xff\",\"value\":1}", Notation::Plain).is_err());
        assert!(parse(b"{\"key\":\"a\",\"value\":\"\xff\"}", Notation::Plain).is_err());
    }

    #[test]
    fn hexadecimal_lines_are_bytes() {
        let record = parse(br#"{"key":"00ff","value":"0a"}"#, Notation::Hex).unwrap();
        assert_eq!((record.key.as_ref(), record.value.as_ref()), (&[0, 0xff][..], &[0x0a][..]));
        assert!(parse(br#"{"key":"0","value":"0a"}"#, Notation::Hex).is_err());
        assert!(parse(br#"{"key":"00","value":10}"#, Notation::Hex).is_err());
    }
}
