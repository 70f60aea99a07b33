//! What does `+` make of a text that is marked as `safe`?
//!
//! In Python such a text is a `Markup`, and whatever is added to one is escaped as HTML first. The
//! engine's `+` does not know that, so sums with a safe text in them are rewritten: each summand
//! goes through the filter [`FILTER`], which escapes what is not safe.
//!
//! Source: `Markup.__add__`, `Markup.__radd__` and `escape` of the Python package markupsafe.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// Applied to what stands beside a safe text.
pub(crate) const FILTER: &str = "__beside_safe";

/// Words that end an operand.
const WORDS: [&str; 11] =
    ["and", "do", "elif", "else", "for", "if", "in", "is", "not", "or", "set"];

/// # Errors
/// For what Python cannot add to a text.
pub(crate) fn beside_safe(value: Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value);
    }
    let text = value.as_str().ok_or_else(|| {
        let why = format!("a text and a value of kind {} cannot be added", value.kind());
        Error::new(ErrorKind::InvalidOperation, why)
    })?;
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            _ => escaped.push(letter),
        }
    }
    Ok(Value::from_safe_string(escaped))
}

/// The template with its sums of safe texts rewritten.
pub(crate) fn with_escaped_sums(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        text.push_str(&tag[..2]);
        let mut inside = Inside { rest: &tag[2..] };
        // Signs of whitespace control are no operators.
        if let Some(after) = inside.rest.strip_prefix(['-', '+']) {
            text.push_str(&tag[2..3]);
            inside.rest = after;
        }
        text.push_str(&inside.level());
        rest = inside.rest;
    }
    text + rest
}

/// An expression that is read from its start.
struct Inside<'a> {
    rest: &'a str,
}

impl<'a> Inside<'a> {
    /// All up to the bracket, or the end of the tag, that closes this level.
    fn level(&mut self) -> String {
        let (mut done, mut operands) = (String::new(), vec![String::new()]);
        while let Some(next) = self.rest.chars().next() {
            let last = operands.last_mut().expect("invariant: never empty");
            match next {
                '"' | '\'' => last.push_str(self.take(quoted_length(self.rest, next))),
                '(' | '[' | '{' => {
                    last.push_str(self.take(1));
                    let inner = self.level();
                    last.push_str(&inner);
                    last.push_str(self.take(1.min(self.rest.len())));
                }
                ')' | ']' | '}' => break,
                '%' | '-' | '+' if self.ends_tag() => break,
                '+' => {
                    self.take(1);
                    operands.push(String::new());
                }
                ',' | ':' | '=' | '<' | '>' | '!' => {
                    done.push_str(&sum(std::mem::replace(&mut operands, vec![String::new()])));
                    done.push_str(self.take(1));
                }
                _ => {
                    let word = self.take(word_length(self.rest));
                    if WORDS.contains(&word) {
                        done.push_str(&sum(std::mem::replace(&mut operands, vec![String::new()])));
                        done.push_str(word);
                    } else {
                        last.push_str(word);
                    }
                }
            }
        }
        done + &sum(operands)
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// Whether the tag ends here, after a sign or none.
    fn ends_tag(&self) -> bool {
        let rest = self.rest.strip_prefix(['-', '+']).unwrap_or(self.rest);
        rest.starts_with("%}") || rest.starts_with("}}")
    }
}

fn sum(mut operands: Vec<String>) -> String {
    let is_safe = |operand: &String| {
        let before = operand.trim_end().strip_suffix("safe");
        before.is_some_and(|before| before.trim_end().ends_with('|'))
    };
    if operands.len() > 1 && operands.iter().any(is_safe) {
        for operand in &mut operands {
            let spaces = operand.len() - operand.trim_start().len();
            let (spaces, own) = operand.split_at(spaces);
            *operand = format!("{spaces}({own})|{FILTER} ");
        }
    }
    operands.join("+")
}

/// Of a text in quotes, with both.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Of a word, or of one other letter.
fn word_length(text: &str) -> usize {
    let is_other = |letter: char| !(letter.is_alphanumeric() || letter == '_');
    match text.find(is_other) {
        Some(0) => text.chars().next().map_or(0, char::len_utf8),
        found => found.unwrap_or(text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::with_escaped_sums;

    #[test]
    fn what_is_cut_off_is_read_to_its_end() {
        for cut in ["{{ a + (b|safe", "{{ 'a", "{% a + b|safe", "{{", "{{ a)|safe + b"] {
            assert!(with_escaped_sums(cut).starts_with(&cut[..2]), "{cut}");
        }
    }

    #[test]
    fn sums_of_safe_texts_are_rewritten_and_others_not() {
        for same in [
            "{{- a + b -}}",
            "{{ a|safe }} + {{ b }}",
            "{% set x = [a|safe, b + c] %}",
            "{% if a|safe and b + c %}",
            "{{ 'x|safe + y' + \"%}\" + {'a': {'b': 1}}['a'] }}",
            "{%+ if a %}é",
        ] {
            assert_eq!(with_escaped_sums(same), same);
        }
        let cases = [
            ("{{- a + 'b'|safe -}}", "{{- (a )|__beside_safe + ('b'|safe )|__beside_safe -}}"),
            (
                "{% set x = f(a + b | safe) + c %}",
                "{% set x = f((a )|__beside_safe + (b | safe)|__beside_safe ) + c %}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(with_escaped_sums(source), expected);
        }
    }
}
