//! Keys, values and spans as people write and read them.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::Args;

use super::exit::Trouble;
use crate::config::parse;

/// How the keys on the command line are written.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct KeyForm {
    /// Keys on the command line are base64
    #[arg(long, conflicts_with = "key_percent")]
    key_base64: bool,
    /// Keys on the command line are percent-encoded, as a%2Fb%FF
    #[arg(long)]
    key_percent: bool,
}

impl KeyForm {
    /// The bytes of a key or a prefix.
    pub fn read(self, text: &str) -> Result<Bytes, Trouble> {
        if self.key_base64 {
            return BASE64
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| Trouble::usage(format!("{text:?} is not base64: {error}")));
        }
        if self.key_percent {
            return percent(text);
        }
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }
}

fn percent(text: &str) -> Result<Bytes, Trouble> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(Trouble::usage(format!("{text:?}: two hexadecimal digits must follow each %")));
        }
    }
    Ok(percent_encoding::percent_decode(bytes).collect::<Vec<u8>>().into())
}

/// A span of time: `500ms`, `10s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse::millis(text).map(Duration::from_millis)
}

/// A size: `256`, `4KiB`.
pub fn size(text: &str) -> Result<u64, String> {
    parse::bytes(text)
}

/// Where a value comes from.
pub enum Source {
    /// The command line.
    Text(String),
    /// Standard input, to its end.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl Source {
    /// From an argument (`-`: standard input) or a file; exactly one must be given.
    pub fn of(argument: Option<String>, file: Option<PathBuf>, what: &str) -> Result<Source, Trouble> {
        match (argument, file) {
            (Some(text), None) if text == "-" => Ok(Source::Stdin),
            (Some(text), None) => Ok(Source::Text(text)),
            (None, Some(file)) => Ok(Source::File(file)),
            (None, None) => {
                Err(Trouble::usage(format!("{what} is missing: give it, or - for standard input, or --file")))
            }
            (Some(_), Some(_)) => Err(Trouble::usage(format!("{what} is given twice: as an argument and by --file"))),
        }
    }

    /// All of it.
    pub fn read(self) -> Result<Bytes, Trouble> {
        match self {
            Source::Text(text) => Ok(text.into()),
            Source::Stdin => {
                let mut bytes = Vec::new();
                std::io::stdin().lock().read_to_end(&mut bytes)?;
                Ok(bytes.into())
            }
            Source::File(path) => std::fs::read(&path)
                .map(Bytes::from)
                .map_err(|error| Trouble::usage(format!("{}: {error}", path.display()))),
        }
    }
}

/// Bytes on one line, without a tab: text as it is, all else escaped. Nothing is lost, and each has one form.
pub fn line_of(bytes: &[u8]) -> Cow<'_, str> {
    let plain = |c: char| !c.is_control() && c != '\\';
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(plain) => Cow::Borrowed(text),
        _ => {
            let mut line = String::new();
            for chunk in bytes.utf8_chunks() {
                for c in chunk.valid().chars() {
                    match c {
                        '\\' => line.push_str("\\\\"),
                        '\n' => line.push_str("\\n"),
                        '\t' => line.push_str("\\t"),
                        '\r' => line.push_str("\\r"),
                        c if c.is_control() => line.extend(c.to_string().bytes().map(|byte| format!("\\x{byte:02x}"))),
                        c => line.push(c),
                    }
                }
                line.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            }
            Cow::Owned(line)
        }
    }
}

/// A number of bytes for people, as `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (count.max(1).ilog2() / 10).min(4);
    match step {
        0 => format!("{count} B"),
        _ => format!("{:.1} {}", count as f64 / f64::from(1u32 << 10).powi(step as i32), units[step as usize]),
    }
}

/// A span for people: `1.2 s`, `3 m 4 s`, `2 d 5 h`.
pub fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} m {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} m", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;

    #[test]
    fn keys_are_read_in_three_forms() {
        let plain = KeyForm::default();
        let base64 = KeyForm { key_base64: true, ..plain };
        let percent = KeyForm { key_percent: true, ..plain };
        assert_eq!(plain.read("a%2F/+").unwrap(), "a%2F/+");
        assert_eq!(base64.read("/w==").unwrap(), &b"\xff"[..]);
        assert_eq!(percent.read("a%2Fb+%ff").unwrap(), &b"a/b+\xff"[..]);
        for (form, bad) in [(base64, "*"), (percent, "a%2"), (percent, "%zz"), (percent, "%")] {
            assert_eq!(form.read(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_line_loses_nothing_and_is_one_line() {
        for (bytes, line) in [
            (&b"a/b c"[..], "a/b c"),
            ("größe".as_bytes(), "größe"),
            (b"a\tb\nc\\\r", "a\\tb\\nc\\\\\\r"),
            (b"\xff\x00x", "\\xff\\x00x"),
            ("\u{85}".as_bytes(), "\\xc2\\x85"),
        ] {
            assert_eq!(line_of(bytes), line);
        }
    }

    #[test]
    fn a_value_has_one_source() {
        assert!(matches!(Source::of(Some("-".into()), None, "v"), Ok(Source::Stdin)));
        assert!(matches!(Source::of(Some("x".into()), None, "v"), Ok(Source::Text(_))));
        assert!(
            Source::of(None, None, "the value").is_err_and(|trouble| trouble.text.contains("the value is missing"))
        );
        assert!(Source::of(Some("x".into()), Some("f".into()), "v").is_err());
        let missing = Source::File("/does/not/exist".into()).read().unwrap_err();
        assert!(missing.text.contains("/does/not/exist"), "{}", missing.text);
    }

    #[test]
    fn sizes_have_their_units() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (1 << 50, "1024.0 TiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn spans_are_short() {
        let spans = [0.04, 59.94, 61.0, 3700.0, 200_000.0].map(span);
        assert_eq!(spans, ["0.0 s", "59.9 s", "1 m 1 s", "1 h 1 m", "2 d 7 h"]);
    }
}
