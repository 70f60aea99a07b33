//! What does a configuration file with every key look like?

use std::fmt::Write;

use serde_json::Value;

use crate::keys::{Key, Kind, Section, sections};

const COLUMNS: usize = 98;

/// `pelton.yaml` with every key at its default, commented; keys that are absent by default are
/// commented out.
pub fn template() -> String {
    let mut text = String::from(
        "# The configuration of Pelton: every key, at its default.\n\
         # Keys that are absent by default are commented out. `pelton config check` reads this\n\
         # file and says what holds; a flag overrides a variable, a variable the file.\n\
         # At SIGHUP a running server reads it again and takes up the keys marked \"reload\".\n\
         # The variable of a key is PELTON_ and its path in capitals, with two underscores for\n\
         # each dot: PELTON_SERVER__PORT.\n",
    );
    for section in sections() {
        write_section(&mut text, &section);
    }
    text
}

fn write_section(text: &mut String, section: &Section) {
    let is_top = section.name.is_empty();
    // A section without keys would be null, which is no section.
    let is_absent = section.keys.iter().all(|key| key.default.is_null());
    if !is_top {
        text.push('\n');
        write_comment(text, "", &section.meaning);
        let mark = if is_absent { "# " } else { "" };
        let _ = writeln!(text, "{mark}{}:", section.name);
    }
    for (index, key) in section.keys.iter().enumerate() {
        if is_top || index > 0 {
            text.push('\n');
        }
        let indent = if is_top { "" } else { "  " };
        write_comment(text, indent, &key.meaning);
        write_comment(text, indent, &facts(key));
        let mark = if key.default.is_null() { "# " } else { "" };
        let _ = writeln!(text, "{indent}{mark}{}: {}", key.name(), yaml(&key.default));
        write_items(text, key);
    }
}

/// An item of a list of records, with all keys it may have.
fn write_items(text: &mut String, key: &Key) {
    let Kind::List(item) = &key.kind else { return };
    let Kind::Record(keys) = &item.kind else { return };
    let _ = writeln!(text, "# An item of it may say:");
    for (index, key) in keys.iter().enumerate() {
        let dash = if index == 0 { "- " } else { "  " };
        let meaning = format!("{} {}", key.meaning, facts(key));
        let value = if key.default.is_null() { "null".to_owned() } else { yaml(&key.default) };
        write_comment(text, "#   ", &meaning);
        let _ = writeln!(text, "# {dash}{}: {value}", key.path);
    }
}

/// Type, range, unit and default.
fn facts(key: &Key) -> String {
    let mut facts = key.allowed();
    if let Some(unit) = key.unit() {
        let _ = write!(facts, " ({unit})");
    }
    let is_needed = key.default.is_null() && !key.nullable;
    let _ = match is_needed {
        true => write!(facts, "; needed"),
        false => write!(facts, "; default {}", yaml(&key.default)),
    };
    if key.reload {
        facts.push_str("; reload");
    }
    facts
}

/// A value as one line of YAML: JSON is, and simple words need no quotes.
pub(crate) fn yaml(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let starts = text.chars().next().is_some_and(|first| first.is_ascii_alphabetic());
    let is_word = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.'));
    // What YAML reads as something else than a text.
    let special = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    starts && is_word && !special.contains(&text)
}

fn write_comment(text: &mut String, indent: &str, comment: &str) {
    let mut line = format!("{indent}#");
    for word in comment.split_whitespace() {
        if line.len() + 1 + word.len() > COLUMNS {
            let _ = writeln!(text, "{line}");
            line = format!("{indent}#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use super::*;
    use crate::keys::keys;
    use crate::{Config, file};

    fn parse(text: &str) -> Vec<(String, Value)> {
        file::parse(Path::new("template"), text, &keys()).unwrap().values
    }

    #[test]
    fn the_template_says_the_defaults_and_every_key() {
        let text = template();
        let config: Config = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(config, Config::default());
        let there = parse(&text);
        for key in keys() {
            let found = there.iter().find(|(path, _)| *path == key.path);
            assert_eq!(found.is_some(), !key.default.is_null(), "{}", key.path);
            let value = found.map_or(&Value::Null, |(_, value)| value);
            assert_eq!(value, &key.default, "{}", key.path);
        }
        assert!(text.lines().all(|line| line.len() <= 100), "a line is too long");
    }

    /// What is commented out is right where it stands.
    #[test]
    fn every_commented_key_can_be_taken_up() {
        let keys = keys();
        let mut text = template();
        for key in keys.iter().filter(|key| key.default.is_null()) {
            let line = format!("# {}: null\n", key.name());
            assert!(text.contains(&line), "{} is missing", key.path);
            text = text.replace(&line, &format!("{}: null\n", key.name()));
        }
        let there = parse(&text);
        for key in keys {
            assert!(there.iter().any(|(path, _)| *path == key.path), "{} is not there", key.path);
        }
    }
}
