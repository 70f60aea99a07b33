//! Which bytes of a Rust file are code, which are comment, which lines are tests, where functions
//! begin and end? Enough of the lexer to keep text checks out of strings, and no more.

use std::ops::Range;

/// A file split into views of the same shape: byte `i` of each view is byte `i` of the file, or a
/// space where it belongs to another view. Newlines are in all of them.
pub(crate) struct RustSource {
    pub(crate) code: String,
    pub(crate) comments: String,
    /// For each line: does it belong to a test?
    test_lines: Vec<bool>,
    line_starts: Vec<usize>,
}

/// A function with a body.
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    /// From 1.
    pub(crate) line: usize,
    pub(crate) line_count: usize,
}

impl RustSource {
    pub(crate) fn new(text: &str, is_test: bool) -> Self {
        let (code, comments) = split(text);
        let line_starts: Vec<usize> = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1))
            .filter(|start| *start < text.len())
            .collect();
        let mut source =
            Self { test_lines: vec![is_test; line_starts.len()], code, comments, line_starts };
        for region in source.test_regions() {
            let (first, last) = (source.line(region.start), source.line(region.end));
            for line in &mut source.test_lines[first - 1..last] {
                *line = true;
            }
        }
        source
    }

    /// The line of a byte, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at).max(1)
    }

    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.get(line - 1).copied().unwrap_or(false)
    }

    pub(crate) fn non_test_line_count(&self) -> usize {
        self.test_lines.iter().filter(|is_test| !**is_test).count()
    }

    /// All functions with a body, in order.
    pub(crate) fn functions(&self) -> Vec<Function<'_>> {
        let code = &self.code;
        let mut functions = Vec::new();
        for at in words(code, "fn") {
            let rest = code[at + 2..].trim_start();
            let name_length = rest.bytes().take_while(|b| is_word_byte(*b)).count();
            if name_length == 0 {
                continue; // a function pointer type
            }
            if let Some(end) = item_end(code, at).filter(|end| code.as_bytes()[*end] == b'}') {
                let line = self.line(at);
                let line_count = self.line(end) - line + 1;
                functions.push(Function { name: &rest[..name_length], line, line_count });
            }
        }
        functions
    }

    /// Names of functions marked `#[test]`.
    pub(crate) fn test_names(&self) -> impl Iterator<Item = &str> {
        self.code.match_indices("#[test]").filter_map(|(at, _)| {
            let after = &self.code[at..];
            let name = after[words(after, "fn").next()? + 2..].trim_start();
            Some(&name[..name.bytes().take_while(|b| is_word_byte(*b)).count()])
        })
    }

    /// Items under `#[cfg(test)]`.
    fn test_regions(&self) -> Vec<Range<usize>> {
        let mut regions = Vec::new();
        for (at, mark) in self.code.match_indices("#[cfg(") {
            let after = at + mark.len();
            let Some(close) = self.code[after..].find(']') else { continue };
            let condition = &self.code[after..after + close];
            if words(condition, "test").next().is_none() || condition.contains("not(") {
                continue;
            }
            if let Some(end) = item_end(&self.code, after + close + 1) {
                regions.push(at..end);
            }
        }
        regions
    }
}

/// Where `word` stands in `code` with no letter, digit or underscore around it. Only those ends of
/// `word` that are such characters themselves are looked at: `todo!` is found before anything.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let (first, last) = (word.as_bytes()[0], word.as_bytes()[word.len() - 1]);
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).map(|i| bytes[i]);
        let after = bytes.get(at + word.len()).copied();
        let joined_before = is_word_byte(first) && before.is_some_and(is_word_byte);
        let joined_after = is_word_byte(last) && after.is_some_and(is_word_byte);
        !joined_before && !joined_after
    })
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The byte that ends the item starting at `from`: its `;`, or the brace that closes its body.
fn item_end(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut brace_depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.checked_sub(1)?,
            b'{' => brace_depth += 1,
            b'}' => {
                brace_depth = brace_depth.checked_sub(1)?;
                if brace_depth == 0 && depth == 0 {
                    return Some(at);
                }
            }
            b';' if depth == 0 && brace_depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// What a stretch of text is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// The text as code only and as comments only.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut at = 0;
    while at < bytes.len() {
        let (kind, length) = stretch(bytes, at);
        // A stretch starts and ends beside ASCII, so it holds whole characters.
        for character in text[at..at + length].chars() {
            let blank = if character == '\n' { 1 } else { character.len_utf8() };
            let filler = if character == '\n' { "\n" } else { " " };
            match kind {
                Kind::Code => code.push(character),
                _ => code.push_str(&filler.repeat(blank)),
            }
            match kind {
                Kind::Comment => comments.push(character),
                _ => comments.push_str(&filler.repeat(blank)),
            }
        }
        at += length;
    }
    (code, comments)
}

/// The kind and length of what starts at `at`.
fn stretch(bytes: &[u8], at: usize) -> (Kind, usize) {
    let rest = &bytes[at..];
    match rest[0] {
        b'/' if rest.starts_with(b"//") => {
            (Kind::Comment, rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()))
        }
        b'/' if rest.starts_with(b"/*") => (Kind::Comment, block_comment_length(rest)),
        b'"' => (Kind::Literal, string_length(rest)),
        b'\'' => quote(rest),
        b'r' | b'b' | b'c' if at == 0 || !is_word_byte(bytes[at - 1]) => {
            match raw_string_length(rest) {
                Some(length) => (Kind::Literal, length),
                None => (Kind::Code, 1),
            }
        }
        first => (Kind::Code, character_length(first)),
    }
}

fn character_length(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A character literal, or the quote of a lifetime or label.
fn quote(rest: &[u8]) -> (Kind, usize) {
    match rest.get(1) {
        Some(b'\\') => {
            let close = rest.iter().skip(3).position(|b| *b == b'\'');
            (Kind::Literal, close.map_or(rest.len(), |close| close + 4))
        }
        Some(first) => {
            let close = 1 + character_length(*first);
            if rest.get(close) == Some(&b'\'') {
                (Kind::Literal, close + 1)
            } else {
                (Kind::Code, 1)
            }
        }
        None => (Kind::Code, 1),
    }
}

/// Of `r"`, `r#"`, `br"`, `cr#"`...; `None` for anything else, also for `b"`, whose quote follows.
fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let prefix = if rest[0] == b'r' { 1 } else { 2 };
    if rest.get(prefix - 1) != Some(&b'r') {
        return None;
    }
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let body = prefix + hashes + 1;
    if rest.get(body - 1) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let found = rest[body..].windows(close.len()).position(|window| window == close);
    Some(found.map_or(rest.len(), |at| body + at + close.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn check(text: &str, code: &str, comments: &str) {
        let source = RustSource::new(text, false);
        let squeeze = |view: &str| view.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&source.code), code, "code of {text}");
        assert_eq!(squeeze(&source.comments), comments, "comments of {text}");
        assert_eq!(source.code.len(), text.len(), "the view keeps positions");
        assert_eq!(source.comments.len(), text.len(), "the view keeps positions");
    }

    #[test]
    fn strings_and_comments_are_not_code() {
        check("a(\"x // y\") // é\nb", "a( ) b", "// é");
        check(r##"a(r#"x " /* "#) /* 1 /* 2 */ " */ b"##, "a( ) b", "/* 1 /* 2 */ \" */");
        check(r"a('\'', '\\', '\u{41}', 'é', '/') b", "a( , , , , ) b", "");
        check("fn f<'a>(x: &'a str) {} // 'it'", "fn f<'a>(x: &'a str) {}", "// 'it'");
        check(r#"b"\"" br"\" r#type c"x""#, "b r#type c", "");
        check("\"\\\\\" + \"no end", "+", "");
    }

    #[test]
    fn functions_have_their_lengths() {
        let text = "fn a() -> [u8; 2] {\n    b(|| {});\n}\ntrait T {\n fn c();\n}\nfn d() {}\n";
        let source = RustSource::new(text, false);
        let found: Vec<_> =
            source.functions().iter().map(|f| (f.name.to_owned(), f.line, f.line_count)).collect();
        assert_eq!(found, [("a".to_owned(), 1, 3), ("d".to_owned(), 7, 1)]);
    }

    #[test]
    fn tests_are_told_from_code() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn b() {}\n}\n\
                    fn c() {}\n#[cfg(not(test))]\nfn d() {}\n#[cfg(test)]\nmod more;\n";
        let source = RustSource::new(text, false);
        let tests: Vec<usize> = (1..=11).filter(|line| source.is_test_line(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5, 6, 10, 11]);
        assert_eq!(source.non_test_line_count(), 4);
        assert_eq!(source.test_names().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn words_end_where_they_end() {
        let found = |code: &str, word: &str| words(code, word).count();
        assert_eq!(found("fn x; fnord; a_fn; (fn)", "fn"), 2);
        assert_eq!(found("todo!(); not_todo!(); todo! {}", "todo!"), 2);
    }
}
