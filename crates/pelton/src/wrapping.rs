//! How does a long text stand beside a column of names? Broken between words, where the terminal
//! says how wide it is.

/// Columns of the terminal that stdout is; `None` where it is none: who reads a file wants lines
/// whole.
#[cfg(unix)]
pub(crate) fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

#[cfg(not(unix))]
pub(crate) fn columns() -> Option<usize> {
    None
}

/// Room that no text is squeezed below.
const ROOM_MIN: usize = 20;

/// A text whose first line begins behind `indent` columns, with all others below it.
pub(crate) fn hanging(text: &str, indent: usize, columns: Option<usize>) -> String {
    let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(indent).max(ROOM_MIN));
    let lines: Vec<&str> = text.lines().flat_map(|line| broken(line, room)).collect();
    lines.join(&format!("\n{:indent$}", ""))
}

/// A line in parts of at most so many letters, but for words that are longer.
fn broken(line: &str, room: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = line;
    while let Some((beyond, _)) = rest.char_indices().nth(room) {
        // A space just behind the room ends a part, too.
        let within = rest[..beyond].rfind(' ').filter(|_| !rest[beyond..].starts_with(' '));
        let longer = || rest[beyond..].find(' ').map(|at| beyond + at);
        let Some(end) = within.filter(|&end| !rest[..end].trim().is_empty()).or_else(longer) else {
            break;
        };
        parts.push(rest[..end].trim_end());
        rest = rest[end..].trim_start();
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use super::hanging;

    #[test]
    fn lines_end_between_words_and_begin_below_each_other() {
        let text = "one two three four five six seven";
        assert_eq!(hanging(text, 4, None), text);
        assert_eq!(hanging(text, 4, Some(80)), text);
        let cases = [
            (24, "one two three four\n    five six seven"),
            (31, "one two three four five six\n    seven"),
            (32, "one two three four five six\n    seven"),
            (5, "one two three four\n    five six seven"),
        ];
        for (columns, expected) in cases {
            assert_eq!(hanging(text, 4, Some(columns)), expected, "{columns}");
        }
        let long = "a word_that_is_much_longer_than_the_room is_left whole";
        let expected = "a\n  word_that_is_much_longer_than_the_room\n  is_left whole";
        assert_eq!(hanging(long, 2, Some(22)), expected);
        assert_eq!(hanging("two\nlines", 1, Some(80)), "two\n lines");
        assert_eq!(hanging("", 4, Some(80)), "");
    }
}
