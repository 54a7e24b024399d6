//! The terminal: sentences that stay, and below them a table that is drawn again in place. Where standard output is
//! not a terminal there are only the sentences.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

/// Puts the cursor up by lines and clears what is below it.
const CLEAR_BELOW: &str = "\x1b[J";
/// While the table is drawn long lines are cut, so that its height is known.
const WRAP_OFF: &str = "\x1b[?7l";
const WRAP_ON: &str = "\x1b[?7h";

/// Where things are shown.
pub struct Screen {
    start: Instant,
    terminal: bool,
    /// Whether the greeting was shown.
    live: bool,
    table: Vec<String>,
    /// Lines of the table that are on the screen now.
    drawn_lines: usize,
}

impl Screen {
    /// Standard output.
    pub fn new() -> Screen {
        let terminal = io::stdout().is_terminal();
        Screen { start: Instant::now(), terminal, live: false, table: Vec::new(), drawn_lines: 0 }
    }

    /// Whether the greeting was shown, which is when all members were ready for the first time.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Shows the greeting; from now on the table is drawn.
    pub fn greet(&mut self, lines: &[String]) {
        self.live = true;
        let mut text = lines.join("\n");
        text.push_str("\n\n");
        self.print(&text);
    }

    /// Shows a sentence that stays.
    pub fn say(&mut self, sentence: &str) {
        let text = format!("[{:7.1} s] {sentence}\n", self.start.elapsed().as_secs_f64());
        self.print(&text);
    }

    /// Shows the table in place of the one before.
    pub fn draw(&mut self, table: &[String]) {
        if self.terminal && self.live && self.table != table {
            self.table = table.to_vec();
            self.print("");
        }
    }

    /// Writes text where the table stood, and the table below it.
    fn print(&mut self, text: &str) {
        let mut out = String::new();
        if self.drawn_lines > 0 {
            out.push_str(&format!("\x1b[{}A\r{CLEAR_BELOW}", self.drawn_lines));
        }
        out.push_str(text);
        if !self.table.is_empty() {
            out.push_str(&format!("{WRAP_OFF}\n{}\n{WRAP_ON}", self.table.join("\n")));
            self.drawn_lines = self.table.len() + 1;
        }
        let mut stdout = io::stdout().lock();
        // Whoever closed our output is not interested; the members go on.
        let _ = stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush());
    }
}
