//! How is something printed when the reader may have gone? `pelton list | head -1` is no error.

use std::io::Write;

/// Prints a line to stdout; a closed pipe is left alone.
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
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
