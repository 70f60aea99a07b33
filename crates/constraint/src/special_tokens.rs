//! Which tokens does a grammar name, as `<|im_end|>`? The library looks for them among the texts of
//! tokens, where those without bytes are not: it is told their ids.

/// The grammar with `<[ID]>` for each token that it names.
///
/// # Errors
/// When it names one that the model does not have.
pub(crate) fn to_ids(
    grammar: &str,
    control: &dyn Fn(&str) -> Option<u32>,
) -> Result<String, String> {
    let mut written = String::with_capacity(grammar.len());
    let mut rest = grammar;
    while let Some(first) = rest.chars().next() {
        let bytes = match first {
            '"' => quoted(rest, '"'),
            '#' => line(rest),
            '/' if rest.starts_with("//") => line(rest),
            '/' => quoted(rest, '/'),
            '<' => token(rest),
            _ => first.len_utf8(),
        };
        let (piece, after) = rest.split_at(bytes);
        if first == '<' && bytes > 1 && !piece.starts_with("<[") {
            let Some(id) = control(piece) else {
                let shown: String = piece.chars().take(40).collect();
                return Err(format!(
                    "`{shown}` names no control token of this model: write a text in quotes, or a \
                     token by its id, as <[5]>"
                ));
            };
            written.push_str(&format!("<[{id}]>"));
        } else {
            written.push_str(piece);
        }
        rest = after;
    }
    Ok(written)
}

/// Bytes of a text between marks, with both; of all that is left where the second is missing.
fn quoted(text: &str, mark: char) -> usize {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if letter == mark => return at + letter.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

/// Bytes of a token's name with its brackets; 1: it is none.
fn token(text: &str) -> usize {
    let end = text[1..].find(|letter: char| matches!(letter, '<' | '>') || letter.is_whitespace());
    match end {
        Some(at @ 1..) if text[1 + at..].starts_with('>') => at + 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::to_ids;

    fn written(grammar: &str) -> Result<String, String> {
        to_ids(grammar, &|name| (name == "<|im_end|>").then_some(7))
    }

    #[test]
    fn names_outside_of_texts_become_ids() {
        for (grammar, expected) in [
            ("start: <|im_end|>", "start: <[7]>"),
            ("start: \"a\" <|im_end|>+ B", "start: \"a\" <[7]>+ B"),
            ("start: <[1-5]> <[*]>", "start: <[1-5]> <[*]>"),
            (
                "start: \"<|im_end|>\\\"<b>\" /<b>\\/<i>/",
                "start: \"<|im_end|>\\\"<b>\" /<b>\\/<i>/",
            ),
            ("# <b>\n// <i>\nstart: <|im_end|>", "# <b>\n// <i>\nstart: <[7]>"),
            ("start: \"a", "start: \"a"),
            ("start: < > é", "start: < > é"),
        ] {
            assert_eq!(written(grammar).as_deref(), Ok(expected), "{grammar}");
        }
        assert!(written("start: <|nobody|>").is_err_and(|why| why.contains("<|nobody|>")));
    }
}
