//! Has every invariant of ARCHITECTURE.md a test of its name, and every invariant named in code a
//! row there?

use std::collections::BTreeSet;

use super::{Findings, table};
use crate::rust_source::RustSource;
use crate::tree::Tree;

const DOCUMENT: &str = "ARCHITECTURE.md";

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    let Some(markdown) = tree.text(DOCUMENT) else {
        findings.add(DOCUMENT, 1, "is missing");
        return;
    };
    let tests: BTreeSet<&str> = tree.rust().flat_map(|(_, source)| source.test_names()).collect();
    let mut ids = BTreeSet::new();
    for (line, cells) in table(markdown, "Invariants") {
        let Some(id) = in_backticks(cells[0]) else {
            findings.add(DOCUMENT, line, "the first cell is not an id in backticks");
            continue;
        };
        if !ids.insert(id) {
            findings.add(DOCUMENT, line, format!("`{id}` is there twice"));
        }
        if !tests.contains(id) {
            findings.add(DOCUMENT, line, format!("no `#[test] fn {id}` shows this invariant"));
        }
    }
    if ids.is_empty() {
        findings.add(DOCUMENT, 1, "no table under `## Invariants`");
    }
    for (file, source) in tree.rust() {
        for (line, id) in cited(source) {
            if !ids.contains(id) {
                let message = format!("invariant `{id}` has no row in {DOCUMENT}");
                findings.add(&file.path, line, message);
            }
        }
    }
}

/// Ids that comments call invariants: "invariant `id`" in a sentence, or a list item "- `id`: ..."
/// below a line that says "Invariants".
fn cited(source: &RustSource) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_list = false;
    for (index, line) in source.comments.lines().enumerate() {
        let words = line.trim().trim_start_matches(['/', '!']).trim();
        if words.contains("Invariants") {
            in_list = true;
        } else if words.is_empty() {
            in_list = false;
        }
        let item = words.strip_prefix("- ").filter(|item| in_list && item.contains("`:"));
        let in_sentence = words.split("nvariant ").skip(1);
        for text in item.into_iter().chain(in_sentence) {
            if let Some(id) = text.strip_prefix('`').and_then(|rest| rest.split('`').next()) {
                let is_id = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                if id.contains('_') && id.bytes().all(is_id) {
                    found.push((index + 1, id));
                }
            }
        }
    }
    found
}

fn in_backticks(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_tests_come_in_pairs() {
        let markdown = "# A\n## Invariants\n\n| id | what |\n|---|---|\n\
                        | `a_b` | x |\n| `c_d` | y |\n| e | z |\n## Next\n| `f_g` | |\n";
        let code = "//! Invariants, checked:\n//! - `a_b`: yes;\n//! - `h_i`: yes.\n//!\n\
                    //! - `j_k`: no\n// (invariant `l_m` holds)\n#[test]\nfn a_b() {}\n\
                    fn c_d() {}\n";
        let mut findings = Findings::default();
        check(&Tree::of(&[(DOCUMENT, markdown), ("crates/a/src/b.rs", code)]), &mut findings);
        findings.expect(&[
            "ARCHITECTURE.md:7: no `#[test] fn c_d`",
            "ARCHITECTURE.md:8: the first cell",
            "b.rs:3: invariant `h_i`",
            "b.rs:6: invariant `l_m`",
        ]);
    }
}
