//! Which methods of Python's strings, lists and dictionaries can a template call?
//!
//! Those that templates use and that only read; Python's sandbox refuses `append` and its like as
//! well. Each result is measured before it is made: one `replace` cannot fill the memory.

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

use crate::python_text::{str_text, too_long};
use crate::request::OUTPUT_BYTES_MAX;

pub(crate) fn call_method(value: &Value, method: &str, raw: &[Value]) -> Result<Value, Error> {
    let (positional, named): (&[Value], Kwargs) = from_args(raw)?;
    let arguments = Arguments { method, positional, named };
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            match case_method(text, method).or_else(|| test_method(text, method)) {
                Some(found) => Ok(found),
                None => string_method(text, &arguments),
            }
        }
        ValueKind::Map => map_method(value, &arguments),
        ValueKind::Seq | ValueKind::Iterable => list_method(value, &arguments),
        _ => Err(arguments.unknown(value)),
    }
}

struct Arguments<'a> {
    method: &'a str,
    positional: &'a [Value],
    named: Kwargs,
}

impl Arguments<'_> {
    fn get(&self, index: usize, name: &str) -> Option<Value> {
        let found = self.positional.get(index).cloned();
        found.or_else(|| self.named.get::<Option<Value>>(name).ok().flatten())
    }

    /// A string; `None` where it is absent or Python's None.
    fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.get(index, name) {
            Some(value) if !value.is_none() => match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(self.wrong(&format!("argument {} is no string", index + 1))),
            },
            _ => Ok(None),
        }
    }

    fn needed_text(&self, index: usize) -> Result<String, Error> {
        self.text(index, "")?
            .ok_or_else(|| self.wrong(&format!("argument {} is missing", index + 1)))
    }

    /// How often at most; Python's -1 is without limit.
    fn count(&self, index: usize, name: &str) -> Result<usize, Error> {
        match self.get(index, name) {
            None => Ok(usize::MAX),
            Some(value) => match value.as_i64() {
                Some(count) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
                None => Err(self.wrong(&format!("argument {} is no number", index + 1))),
            },
        }
    }

    fn wrong(&self, why: &str) -> Error {
        Error::new(ErrorKind::InvalidOperation, format!("{}(): {why}", self.method))
    }

    fn unknown(&self, value: &Value) -> Error {
        let text = format!("{} has no method named {}", value.kind(), self.method);
        Error::new(ErrorKind::UnknownMethod, text)
    }
}

fn case_method(text: &str, method: &str) -> Option<Value> {
    Some(Value::from(match method {
        "upper" => text.to_uppercase(),
        "lower" | "casefold" => text.to_lowercase(),
        "capitalize" => capitalized(text),
        "title" => titled(text),
        "swapcase" => text.chars().map(swapped).collect(),
        _ => return None,
    }))
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.as_str().to_lowercase().chars()).collect()
}

/// A word begins after anything that has no case: Python makes "don't" "Don'T".
fn titled(text: &str) -> String {
    let mut title = String::with_capacity(text.len());
    let mut in_word = false;
    for letter in text.chars() {
        if in_word {
            title.extend(letter.to_lowercase());
        } else {
            title.extend(letter.to_uppercase());
        }
        in_word = letter.is_lowercase() || letter.is_uppercase();
    }
    title
}

fn swapped(letter: char) -> String {
    if letter.is_uppercase() {
        letter.to_lowercase().collect()
    } else {
        letter.to_uppercase().collect()
    }
}

fn test_method(text: &str, method: &str) -> Option<Value> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let cased = |wanted: fn(char) -> bool, other: fn(char) -> bool| {
        text.chars().any(wanted) && !text.chars().any(other)
    };
    Some(Value::from(match method {
        "isdigit" | "isdecimal" => all(|letter| letter.is_numeric() && letter.is_ascii_digit()),
        "isnumeric" => all(char::is_numeric),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii(),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        _ => return None,
    }))
}

fn string_method(text: &str, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let letters = || arguments.text(0, "chars");
    Ok(match arguments.method {
        "strip" => Value::from(strip(text, letters()?.as_deref(), true, true)),
        "lstrip" => Value::from(strip(text, letters()?.as_deref(), true, false)),
        "rstrip" => Value::from(strip(text, letters()?.as_deref(), false, true)),
        "startswith" => Value::from(any_of(arguments, |end| text.starts_with(end))?),
        "endswith" => Value::from(any_of(arguments, |end| text.ends_with(end))?),
        "removeprefix" => {
            let prefix = arguments.needed_text(0)?;
            Value::from(text.strip_prefix(prefix.as_str()).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = arguments.needed_text(0)?;
            Value::from(text.strip_suffix(suffix.as_str()).unwrap_or(text))
        }
        "split" => list(split(text, arguments)?),
        "rsplit" => list(split_from_right(text, arguments)?),
        "splitlines" => {
            list(lines(text, arguments.get(0, "keepends").is_some_and(|v| v.is_true())))
        }
        "partition" => partition(text, arguments, str::split_once, true)?,
        "rpartition" => partition(text, arguments, str::rsplit_once, false)?,
        "replace" => Value::from(replace(text, arguments)?),
        "format" => Value::from(format(text, arguments)?),
        "join" => Value::from(join(text, arguments)?),
        "count" => {
            let needle = arguments.needed_text(0)?;
            Value::from(match needle.as_str() {
                "" => text.chars().count() + 1,
                needle => text.matches(needle).count(),
            })
        }
        "find" | "index" | "rfind" | "rindex" => find(text, arguments)?,
        "zfill" => {
            let width = arguments.count(0, "width")?;
            let missing = width.saturating_sub(text.chars().count());
            if missing > OUTPUT_BYTES_MAX {
                return Err(too_long());
            }
            let sign = usize::from(text.starts_with(['+', '-']));
            Value::from(format!("{}{}{}", &text[..sign], "0".repeat(missing), &text[sign..]))
        }
        _ => return Err(arguments.unknown(&Value::from(""))),
    })
}

/// Python's whitespace: Unicode's and four separators of ASCII.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\x1c'..='\x1f').contains(&letter)
}

/// `str.strip` and its one-sided kin.
pub(crate) fn strip<'a>(text: &'a str, letters: Option<&str>, left: bool, right: bool) -> &'a str {
    let goes = |letter: char| letters.map_or(is_space(letter), |set| set.contains(letter));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// A string or a tuple of them, as `startswith` takes.
fn any_of(arguments: &Arguments<'_>, test: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let argument = arguments.get(0, "").ok_or_else(|| arguments.wrong("argument 1 is missing"))?;
    if let Some(text) = argument.as_str() {
        return Ok(test(text));
    }
    let choices: Vec<Value> = argument.try_iter()?.collect();
    Ok(choices.iter().any(|choice| choice.as_str().is_some_and(&test)))
}

fn list<'a>(parts: impl IntoIterator<Item = &'a str>) -> Value {
    parts.into_iter().map(Value::from).collect::<Vec<Value>>().into()
}

fn separator(arguments: &Arguments<'_>) -> Result<Option<String>, Error> {
    let separator = arguments.text(0, "sep")?;
    if separator.as_deref() == Some("") {
        return Err(arguments.wrong("the separator is empty"));
    }
    Ok(separator)
}

fn split<'a>(text: &'a str, arguments: &Arguments<'_>) -> Result<Vec<&'a str>, Error> {
    let count = arguments.count(1, "maxsplit")?;
    if let Some(separator) = separator(arguments)? {
        return Ok(text.splitn(count.saturating_add(1), separator.as_str()).collect());
    }
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() && parts.len() < count {
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    Ok(parts)
}

fn split_from_right<'a>(text: &'a str, arguments: &Arguments<'_>) -> Result<Vec<&'a str>, Error> {
    let count = arguments.count(1, "maxsplit")?;
    let mut parts: Vec<&str> = Vec::new();
    if let Some(separator) = separator(arguments)? {
        parts.extend(text.rsplitn(count.saturating_add(1), separator.as_str()));
    } else {
        let mut rest = text.trim_end_matches(is_space);
        while !rest.is_empty() && parts.len() < count {
            let letters = rest.char_indices().rev().find(|(_, letter)| is_space(*letter));
            let start = letters.map_or(0, |(at, letter)| at + letter.len_utf8());
            parts.push(&rest[start..]);
            rest = rest[..start].trim_end_matches(is_space);
        }
        if !rest.is_empty() {
            parts.push(rest);
        }
    }
    parts.reverse();
    Ok(parts)
}

fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends).unwrap_or(rest.len());
        let width = match &rest[end..] {
            tail if tail.starts_with("\r\n") => 2,
            tail => tail.chars().next().map_or(0, char::len_utf8),
        };
        parts.push(&rest[..if keep_ends { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    parts
}

/// `str.format` without format specifications: `{}`, `{0}`, `{name}`, and doubled braces.
fn format(text: &str, arguments: &Arguments<'_>) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut next = 0;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if let Some(doubled) = after.strip_prefix(brace) {
            out.push_str(brace);
            rest = doubled;
            continue;
        }
        let field = after.split_once('}').filter(|_| brace == "{");
        let (field, after) = field.ok_or_else(|| arguments.wrong("a brace stands alone"))?;
        let value = match (field, field.parse::<usize>()) {
            ("", _) => {
                next += 1;
                arguments.positional.get(next - 1).cloned()
            }
            (_, Ok(index)) => arguments.positional.get(index).cloned(),
            (name, Err(_)) => arguments.named.get::<Option<Value>>(name).ok().flatten(),
        };
        let value = value.ok_or_else(|| arguments.wrong(&format!("{{{field}}} has no value")))?;
        out.push_str(&str_text(&value)?);
        if out.len() > OUTPUT_BYTES_MAX {
            return Err(arguments.wrong("the text is too long"));
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn partition<'a>(
    text: &'a str,
    arguments: &Arguments<'_>,
    cut: impl Fn(&'a str, &'a str) -> Option<(&'a str, &'a str)>,
    whole_first: bool,
) -> Result<Value, Error> {
    let Some(separator) = separator(arguments)? else {
        return Err(arguments.wrong("argument 1 is missing"));
    };
    // The separator as it stands in the text, so that all parts borrow from it.
    let parts = text.find(&separator).and_then(|at| {
        let found = &text[at..at + separator.len()];
        cut(text, found).map(|(left, right)| [left, found, right])
    });
    let whole = if whole_first { [text, "", ""] } else { ["", "", text] };
    Ok(list(parts.unwrap_or(whole)))
}

fn replace(text: &str, arguments: &Arguments<'_>) -> Result<String, Error> {
    let (old, new) = (arguments.needed_text(0)?, arguments.needed_text(1)?);
    let places =
        if old.is_empty() { text.chars().count() + 1 } else { text.matches(old.as_str()).count() };
    let count = places.min(arguments.count(2, "count")?);
    let bytes = count.checked_mul(new.len()).and_then(|added| added.checked_add(text.len()));
    if bytes.is_none_or(|bytes| bytes > OUTPUT_BYTES_MAX) {
        return Err(too_long());
    }
    Ok(text.replacen(old.as_str(), &new, count))
}

fn join(separator: &str, arguments: &Arguments<'_>) -> Result<String, Error> {
    let items = arguments.get(0, "").ok_or_else(|| arguments.wrong("argument 1 is missing"))?;
    let mut joined = String::new();
    let mut add = |text: &str| {
        if joined.len() + text.len() > OUTPUT_BYTES_MAX {
            return Err(too_long());
        }
        joined.push_str(text);
        Ok(())
    };
    if let Some(text) = items.as_str() {
        for (index, letter) in text.chars().enumerate() {
            add(if index > 0 { separator } else { "" })?;
            add(letter.encode_utf8(&mut [0; 4]))?;
        }
        return Ok(joined);
    }
    for (index, item) in items.try_iter()?.enumerate() {
        add(if index > 0 { separator } else { "" })?;
        let text = item.as_str().ok_or_else(|| arguments.wrong("an item is no string"))?;
        add(text)?;
    }
    Ok(joined)
}

/// Positions count characters, as Python's do.
fn find(text: &str, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let needle = arguments.needed_text(0)?;
    let at = if arguments.method.starts_with('r') {
        text.rfind(needle.as_str())
    } else {
        text.find(needle.as_str())
    };
    match at {
        Some(at) => Ok(Value::from(text[..at].chars().count())),
        None if arguments.method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(arguments.wrong("substring not found")),
    }
}

fn map_method(map: &Value, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let pair = |key: Value| -> Result<Value, Error> {
        let value = map.get_item(&key)?;
        Ok(Value::from(vec![key, value]))
    };
    Ok(match arguments.method {
        "keys" => map.try_iter()?.collect::<Vec<Value>>().into(),
        "values" => {
            let values = map.try_iter()?.map(|key| map.get_item(&key));
            values.collect::<Result<Vec<Value>, Error>>()?.into()
        }
        "items" => map.try_iter()?.map(pair).collect::<Result<Vec<Value>, Error>>()?.into(),
        "get" => {
            let key = arguments.get(0, "").ok_or_else(|| arguments.wrong("no key is given"))?;
            match map.get_item(&key)? {
                found if found.is_undefined() => {
                    arguments.get(1, "default").unwrap_or(Value::from(()))
                }
                found => found,
            }
        }
        "copy" => map.clone(),
        _ => return Err(arguments.unknown(map)),
    })
}

fn list_method(items: &Value, arguments: &Arguments<'_>) -> Result<Value, Error> {
    let wanted = || arguments.get(0, "").ok_or_else(|| arguments.wrong("argument 1 is missing"));
    // By their text, whose writing is bounded: comparing nested lists is not.
    let same = |item: &Value, wanted: &Value| -> Result<bool, Error> {
        Ok(item.kind() == wanted.kind() && str_text(item)? == str_text(wanted)?)
    };
    match arguments.method {
        "count" => {
            let wanted = wanted()?;
            let found = items.try_iter()?.map(|item| same(&item, &wanted));
            let found = found.collect::<Result<Vec<bool>, Error>>()?;
            Ok(Value::from(found.into_iter().filter(|same| *same).count()))
        }
        "index" => {
            let wanted = wanted()?;
            for (index, item) in items.try_iter()?.enumerate() {
                if same(&item, &wanted)? {
                    return Ok(Value::from(index));
                }
            }
            Err(arguments.wrong("it is not in the list"))
        }
        "copy" => Ok(items.clone()),
        _ => Err(arguments.unknown(items)),
    }
}
