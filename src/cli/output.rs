//! Three ways to print: JSON for programs, plain lines for shells, tables for people.
//!
//! JSON is the form of the HTTP API, a document a line. Plain lines have their fields separated by one tab and are
//! escaped, so that `cut` and `read` can take them apart. Tables may change; the other two do not.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use serde::Serialize;

/// Rows of which the widths of the columns are computed together. More rows come in further blocks.
const BLOCK: usize = 1000;
/// A cell of a table is cut behind so many characters.
const WIDEST: usize = 60;

/// A way to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Documents of the HTTP API, one a line
    Json,
    /// Columns for people
    Table,
    /// Fields separated by tabs, without headings
    Plain,
}

impl Format {
    /// What is usual where standard output goes.
    pub fn usual() -> Format {
        if io::stdout().is_terminal() { Format::Table } else { Format::Plain }
    }
}

/// Prints a document as one line.
pub fn json(document: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, document)?;
    out.write_all(b"\n")
}

/// Prints a line, at once.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints rows as a table or as plain lines, as they come.
pub struct Rows<const N: usize> {
    heading: Option<[&'static str; N]>,
    plain: bool,
    rows: Vec<[String; N]>,
    widths: [usize; N],
}

impl<const N: usize> Rows<N> {
    /// Rows under these headings, which plain lines do not have.
    pub fn new(format: Format, heading: [&'static str; N]) -> Rows<N> {
        let widths = heading.map(|name| name.chars().count());
        Rows { heading: Some(heading), plain: format == Format::Plain, rows: Vec::new(), widths }
    }

    /// Prints a row, or keeps it until its block is full.
    pub fn add(&mut self, row: [String; N]) -> io::Result<()> {
        self.rows.push(row);
        if self.plain || self.rows.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Prints what was kept.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().write_all(self.text().as_bytes())
    }

    /// What was kept, as it is printed.
    fn text(&mut self) -> String {
        let rows = std::mem::take(&mut self.rows);
        if self.plain {
            return rows.iter().map(|row| row.join("\t") + "\n").collect();
        }
        let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(cut)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let heading = self.heading.take().map(|heading| heading.map(str::to_owned));
        heading.iter().chain(&rows).map(|row| self.padded(row) + "\n").collect()
    }

    fn padded(&self, row: &[String; N]) -> String {
        let cells: Vec<String> = row.iter().zip(self.widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    }
}

fn cut(cell: String) -> String {
    if cell.chars().count() <= WIDEST {
        return cell;
    }
    let kept: String = cell.chars().take(WIDEST - 1).collect();
    format!("{kept}…")
}

/// Says how far something long has come, on one line of standard error that is written over. Silent when that is no
/// terminal.
pub struct Ticker {
    shown: bool,
}

impl Ticker {
    /// A line that is empty yet.
    pub fn new() -> Ticker {
        Ticker { shown: io::stderr().is_terminal() }
    }

    /// Replaces the line.
    pub fn say(&self, text: &str) {
        if self.shown {
            eprint!("\r\x1b[K{text}");
        }
    }

    /// Removes the line.
    pub fn clear(&self) {
        self.say("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_and_plain_lines_do_not_care() {
        let rows = [["a", "größe", ""], ["longer than its heading", "2", "x"]];
        let mut table = Rows::new(Format::Table, ["KEY", "VALUE", "LEASE"]);
        let mut plain = Rows::new(Format::Plain, ["KEY", "VALUE", "LEASE"]);
        for row in rows {
            table.rows.push(row.map(str::to_owned));
            plain.rows.push(row.map(str::to_owned));
        }
        assert_eq!(
            table.text(),
            concat!(
                "KEY                      VALUE  LEASE\n",
                "a                        größe\n",
                "longer than its heading  2      x\n"
            )
        );
        assert_eq!(plain.text(), "a\tgröße\t\nlonger than its heading\t2\tx\n");
        // A second block goes on under the same heading.
        table.rows.push(["b", "3", "y"].map(str::to_owned));
        assert_eq!(table.text(), "b                        3      y\n");
    }

    #[test]
    fn a_cell_of_a_table_has_an_end() {
        assert_eq!(cut("x".repeat(WIDEST)), "x".repeat(WIDEST));
        assert_eq!(cut("x".repeat(500)).chars().count(), WIDEST);
    }
}
