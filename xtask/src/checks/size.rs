//! Are functions and files small? Old exceptions stand in a ratchet file, and only shrink.
//!
//! `xtask/ratchet.txt` has a line an exception: path, function name (or `(file)`), lines.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::Findings;
use crate::tree::Tree;

/// A function fits on one screen; a file is read in one sitting (STYLE.md, rule 8).
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 1000;

const RATCHET: &str = "xtask/ratchet.txt";
const HEAD: &str = "\
# Functions over 70 lines and files over 1000 lines without tests: path, name, lines.
# A number here may only fall. `cargo xtask tidy --update-ratchet` lowers and removes lines;
# a new one is added by hand, with the reason in the commit.
";

/// What is over its limit, by (path, name): the present length and the line it starts on.
type Oversized = BTreeMap<(String, String), (usize, usize)>;

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    let ratchet = read_ratchet(tree, findings);
    let oversized = measure(tree);
    for ((path, name), (line_count, line)) in &oversized {
        let key = (path.clone(), name.clone());
        let message = match ratchet.get(&key) {
            Some(allowed) if line_count == allowed => continue,
            Some(allowed) if line_count < allowed => format!(
                "`{name}` shrank from {allowed} to {line_count} lines: keep it so with \
                 `cargo xtask tidy --update-ratchet`"
            ),
            Some(allowed) => {
                format!("`{name}` grew from {allowed} to {line_count} lines: split it")
            }
            None if name == "(file)" => format!(
                "{line_count} lines without tests; at most {FILE_LINES_MAX}: split it by subject"
            ),
            None => {
                format!("`{name}` has {line_count} lines; at most {FUNCTION_LINES_MAX}: split it")
            }
        };
        findings.add(path, *line, message);
    }
    for (path, name) in ratchet.keys().filter(|key| !oversized.contains_key(*key)) {
        let message = format!(
            "`{name}` of {path} is no longer too long: run `cargo xtask tidy --update-ratchet`"
        );
        findings.add(RATCHET, 1, message);
    }
}

/// Lowers and removes exceptions; never raises or adds one.
pub(crate) fn update_ratchet(tree: &Tree) -> Result<()> {
    let oversized = measure(tree);
    let mut text = HEAD.to_owned();
    for ((path, name), allowed) in read_ratchet(tree, &mut Findings::default()) {
        if let Some((line_count, _)) = oversized.get(&(path.clone(), name.clone())) {
            text += &format!("{path} {name} {}\n", line_count.min(&allowed));
        }
    }
    std::fs::write(tree.root.join(RATCHET), text).with_context(|| format!("writing {RATCHET}"))
}

fn measure(tree: &Tree) -> Oversized {
    let mut oversized = Oversized::new();
    let mut note = |path: &str, name: &str, line_count, line| {
        let longest = oversized.entry((path.to_owned(), name.to_owned())).or_insert((0, line));
        *longest = (*longest).max((line_count, line));
    };
    for (file, source) in tree.rust() {
        let line_count = source.non_test_line_count();
        if line_count > FILE_LINES_MAX {
            note(&file.path, "(file)", line_count, 1);
        }
        for function in source.functions() {
            if function.line_count > FUNCTION_LINES_MAX {
                note(&file.path, function.name, function.line_count, function.line);
            }
        }
    }
    oversized
}

fn read_ratchet(tree: &Tree, findings: &mut Findings) -> BTreeMap<(String, String), usize> {
    let mut ratchet = BTreeMap::new();
    let text = tree.text(RATCHET).unwrap_or_default();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let mut parts = line.split(' ');
        match (parts.next(), parts.next(), parts.next().map(str::parse), parts.next()) {
            (Some(path), Some(name), Some(Ok(lines)), None) => {
                ratchet.insert((path.to_owned(), name.to_owned()), lines);
            }
            _ => findings.add(RATCHET, index + 1, "not `path name lines`"),
        }
    }
    ratchet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_with(function_lines: usize, ratchet: &str, expected: &[&str]) {
        let text = format!("fn long() {{\n{}}}\n", "a();\n".repeat(function_lines - 2));
        let mut findings = Findings::default();
        check(&Tree::of(&[("crates/a/src/b.rs", &text), (RATCHET, ratchet)]), &mut findings);
        findings.expect(expected);
    }

    #[test]
    fn long_functions_are_found() {
        check_with(70, HEAD, &[]);
        check_with(71, HEAD, &["crates/a/src/b.rs:1: `long` has 71 lines"]);
    }

    #[test]
    fn exceptions_only_shrink() {
        check_with(80, "crates/a/src/b.rs long 80\n", &[]);
        check_with(81, "crates/a/src/b.rs long 80\n", &["grew from 80 to 81"]);
        check_with(79, "crates/a/src/b.rs long 80\n", &["shrank from 80 to 79"]);
        check_with(70, "crates/a/src/b.rs long 80\n", &["no longer too long"]);
        check_with(70, "nonsense\n", &["not `path name lines`"]);
    }

    #[test]
    fn tests_do_not_count_for_files() {
        let of = |lines: usize| {
            let text = format!("{}#[cfg(test)]\nmod tests {{\n\n\n}}\n", "a();\n".repeat(lines));
            let mut findings = Findings::default();
            check(&Tree::of(&[("crates/a/src/b.rs", &text)]), &mut findings);
            findings
        };
        of(1000).expect(&[]);
        of(1001).expect(&["1001 lines without tests"]);
    }
}
