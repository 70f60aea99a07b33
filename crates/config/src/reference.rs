//! What is there to read about every key?

use std::fmt::Write;

use crate::environment::{OTHER_NAMES, short_name, variable};
use crate::keys::{Key, Kind, sections};
use crate::template::yaml;

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = String::from(INTRODUCTION);
    for section in sections() {
        let title = if section.name.is_empty() { "Top level" } else { &section.name };
        let _ = writeln!(text, "\n## {title}\n");
        if !section.name.is_empty() {
            let _ = writeln!(text, "{}\n", section.meaning);
        }
        text.push_str("| key | value | default | variable | meaning |\n|---|---|---|---|---|\n");
        for key in &section.keys {
            write_row(&mut text, key, &section.name);
        }
        for key in &section.keys {
            write_items(&mut text, key);
        }
    }
    text.push_str("\n## Other variables\n\n| variable | meaning |\n|---|---|\n");
    for (name, meaning) in OTHER_NAMES {
        let _ = writeln!(text, "| `{name}` | {meaning} |");
    }
    text
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Written by `cargo run -p config --example reference`; a test holds it against the code. -->

Settings come from defaults, the file, the environment and flags; each overrides those before it.
The file is the one that `--config` or `PELTON_CONFIG` names, else `pelton.yaml` in the folder \
`pelton` of the user's configuration folder (`~/.config`).

- `pelton config init` writes a commented file with every key.
- `pelton config check` says what is wrong with a file, or what holds and where it came from.
- `pelton config schema` prints the JSON schema, for editors.

Every key has a variable: `PELTON_` and its path in capitals, with two underscores for each dot.
Every key can be set by a flag: `--set limits.waiting_max=64`.
In both, the items of a list are separated by commas, or the list is written as YAML in brackets.
An unknown key, variable or flag is an error that names the nearest known one.
The variables that Kubernetes makes for a service whose name begins with `pelton` \
(`PELTON_SERVICE_HOST`, `PELTON_PORT=tcp://...` and their like) are not settings and are passed \
over; `enableServiceLinks: false` in the pod leaves them out.

At SIGHUP a running server reads the file again.
It takes up the keys marked \u{21bb}, says which others changed and need a restart, and keeps \
running requests; a file with an error changes nothing.
";

fn write_row(text: &mut String, key: &Key, section: &str) {
    let mark = if key.reload { " \u{21bb}" } else { "" };
    let mut variables = format!("`{}`", variable(&key.path));
    if let Some(short) = short_name(&key.path) {
        let _ = write!(variables, ", `{short}`");
    }
    let name = if section.is_empty() { &key.path } else { key.name() };
    let (value, default) = (value(key), yaml(&key.default));
    let meaning = cell(&key.meaning);
    let _ = writeln!(text, "| `{name}`{mark} | {value} | `{default}` | {variables} | {meaning} |");
}

fn write_items(text: &mut String, key: &Key) {
    let Kind::List(item) = &key.kind else { return };
    let Kind::Record(keys) = &item.kind else { return };
    let _ = writeln!(text, "\nAn item of `{}`:\n", key.path);
    text.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let is_needed = key.default.is_null() && !key.nullable;
        let default =
            if is_needed { "needed".to_owned() } else { format!("`{}`", yaml(&key.default)) };
        let (value, meaning) = (value(key), cell(&key.meaning));
        let _ = writeln!(text, "| `{}` | {value} | {default} | {meaning} |", key.path);
    }
}

fn value(key: &Key) -> String {
    let unit = key.unit().map_or(String::new(), |unit| format!(", in {unit}"));
    cell(&format!("{}{unit}", key.allowed()))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
