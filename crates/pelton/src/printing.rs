//! How is something printed? Safely for the terminal, and without losing it silently.
//!
//! Text that came from a model or its file can hold control characters; on a terminal they could
//! move the cursor or change its title, so only line ends and tabs get there. A reader that has
//! gone (`pelton list | head -1`) ends the program quietly; any other failure to write is an error.

use std::io::{ErrorKind, IsTerminal, Write};

/// Prints a line to stdout.
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::printing::line(&format!($($arguments)*))
    };
}

pub(crate) use say;

pub(crate) fn line(text: &str) {
    piece(&format!("{text}\n"));
}

/// Prints text at once, without a line's end.
pub(crate) fn piece(text: &str) {
    let is_terminal = std::io::stdout().is_terminal();
    let shown = if is_terminal { visible(text) } else { text.to_owned() };
    write(shown.as_bytes());
}

fn write(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("error: the output cannot be written: {error}");
            std::process::exit(1);
        }
    }
}

/// Prints a text that was made with [`crate::style`]: what is not ours in it went through
/// [`visible`] before.
pub(crate) fn painted(text: &str) {
    write(text.as_bytes());
}

/// The text without control characters other than line ends and tabs.
pub(crate) fn visible(text: &str) -> String {
    let shown = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if shown(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}
