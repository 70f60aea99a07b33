//! How is plain ASCII split as the most common patterns split it, without a regex?
//!
//! Each style is a pattern of `pre_tokenizer.rs` written out for the 128 characters that most text
//! consists of: a table of classes and a few runs, a nanosecond a byte. Where a character beyond
//! ASCII could decide where a piece ends, the answer is `None` and the pattern itself is asked.

/// A pattern, as far as ASCII is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AsciiWords {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// The same after each digit has been set apart.
    Digits,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits_max}|`
    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Modern { digits_max: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Digit,
    Space,
    /// Marks and control characters.
    Other,
    /// Not ASCII: only the pattern knows.
    Beyond,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Beyond; 256];
    let mut byte = 0;
    while byte < 128 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            // White space as Unicode defines it: the separators 0x1C to 0x1F are not.
            b'\t'..=b'\r' | b' ' => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
};

fn class_at(bytes: &[u8], at: usize) -> Option<Class> {
    bytes.get(at).map(|byte| CLASSES[usize::from(*byte)])
}

/// Where a run of a class that goes on at `at` ends; `None` where it ends before a character
/// beyond ASCII, which may belong to it.
fn run_end(bytes: &[u8], at: usize, class: Class) -> Option<usize> {
    let rest = &bytes[at..];
    let length = rest.iter().position(|byte| CLASSES[usize::from(*byte)] != class);
    let end = at + length.unwrap_or(rest.len());
    (class_at(bytes, end) != Some(Class::Beyond)).then_some(end)
}

fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// The length of `'s`, `'re` and so on, in small letters, at the start of `bytes`; 0 if none.
fn contraction(bytes: &[u8], fold: impl Fn(u8) -> u8) -> usize {
    let at = |index: usize| bytes.get(index).map(|byte| fold(*byte));
    match (at(1), at(2)) {
        (Some(b's' | b't' | b'm' | b'd'), _) => 2,
        (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => 3,
        _ => 0,
    }
}

impl AsciiWords {
    /// Where the piece that begins at `at` ends; `None` where the pattern must be asked.
    pub(crate) fn piece_end(self, bytes: &[u8], at: usize) -> Option<usize> {
        match self {
            AsciiWords::Gpt2 => gpt2_end(bytes, at, false),
            AsciiWords::Digits => gpt2_end(bytes, at, true),
            AsciiWords::Modern { digits_max } => modern_end(bytes, at, digits_max),
        }
    }
}

fn gpt2_end(bytes: &[u8], at: usize, digits_apart: bool) -> Option<usize> {
    let first = bytes[at];
    if first == b'\'' {
        let length = contraction(&bytes[at..], |byte| byte);
        if length > 0 {
            return Some(at + length);
        }
    }
    // One space belongs to what follows it.
    let spaced = first == b' ' && at + 1 < bytes.len();
    let start = if spaced { at + 1 } else { at };
    match class_at(bytes, start)? {
        Class::Beyond => None,
        Class::Digit if digits_apart => Some(at + 1),
        class @ (Class::Letter | Class::Digit | Class::Other) => run_end(bytes, start, class),
        Class::Space => {
            let end = run_end(bytes, at, Class::Space)?;
            let kept = match class_at(bytes, end) {
                None => true,
                // Spaces before a digit set apart end a text of their own.
                Some(class) => end - at == 1 || digits_apart && class == Class::Digit,
            };
            Some(if kept { end } else { end - 1 })
        }
    }
}

fn modern_end(bytes: &[u8], at: usize, digits_max: usize) -> Option<usize> {
    let first = bytes[at];
    if first == b'\'' {
        // Whatever case, which has a letter beyond ASCII, too: the long s.
        if class_at(bytes, at + 1) == Some(Class::Beyond) {
            return None;
        }
        let length = contraction(&bytes[at..], |byte| byte.to_ascii_lowercase());
        if length > 0 {
            return Some(at + length);
        }
    }
    let class = CLASSES[usize::from(first)];
    let next = class_at(bytes, at + 1);
    match (class, next) {
        (Class::Beyond, _) => None,
        (Class::Letter, _) => run_end(bytes, at, Class::Letter),
        (Class::Digit, _) => digits_end(bytes, at, digits_max),
        // Anything but a line break belongs to the letters that follow.
        (Class::Space | Class::Other, Some(Class::Letter)) if !is_line_break(first) => {
            run_end(bytes, at + 1, Class::Letter)
        }
        (Class::Space | Class::Other, Some(Class::Beyond)) => None,
        (Class::Other, _) => marks_end(bytes, at),
        (Class::Space, Some(Class::Other)) if first == b' ' => marks_end(bytes, at + 1),
        (Class::Space, _) => {
            let end = run_end(bytes, at, Class::Space)?;
            let line = bytes[at..end].iter().rposition(|byte| is_line_break(*byte));
            Some(match line {
                Some(last) => at + last + 1,
                None if end == bytes.len() || end - at == 1 => end,
                None => end - 1,
            })
        }
    }
}

fn digits_end(bytes: &[u8], at: usize, digits_max: usize) -> Option<usize> {
    let most = bytes.len().min(at + digits_max);
    let mut end = at + 1;
    while end < most {
        match CLASSES[usize::from(bytes[end])] {
            Class::Digit => end += 1,
            Class::Beyond => return None,
            Class::Letter | Class::Space | Class::Other => break,
        }
    }
    Some(end)
}

/// A run of marks takes the line breaks behind it.
fn marks_end(bytes: &[u8], at: usize) -> Option<usize> {
    let end = run_end(bytes, at, Class::Other)?;
    let rest = &bytes[end..];
    let breaks = rest.iter().position(|byte| !is_line_break(*byte)).unwrap_or(rest.len());
    Some(end + breaks)
}
