//! Is unsafe code only on its islands, and does every block say why it is sound?

use std::collections::BTreeMap;

use super::Findings;
use crate::rust_source::{RustSource, words};
use crate::tree::Tree;

/// Crates that may lift `deny(unsafe_code)` for a module, and for how many: `None` is any number.
const ISLANDS: &[(&str, Option<usize>)] = &[
    ("weights", Some(1)),
    ("device", Some(2)),
    ("heap-library", Some(1)),
    ("backend-cpu", None),
    ("backend-cuda", None),
    ("backend-wgpu", Some(2)),
    ("embed", Some(1)),
];

/// An answer to "who says this is sound?" stands right above its block; a statement may be broken
/// over a few lines between the two.
const LINES_BETWEEN_MAX: usize = 6;

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for name in tree.crates() {
        check_crate(tree, name, findings);
    }
    for (file, source) in tree.rust() {
        for at in unsafe_blocks(source) {
            if !has_safety_comment(source, at) {
                let message = "unsafe without `// SAFETY:` above it: name the fact and its source";
                findings.add(&file.path, source.line(at), message);
            }
        }
    }
}

/// Unsafe blocks by crate, tests included.
pub(super) fn count_blocks(tree: &Tree) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for (file, source) in tree.rust() {
        let count = unsafe_blocks(source).count();
        if count > 0 {
            *counts.entry(file.crate_name().unwrap_or("")).or_insert(0) += count;
        }
    }
    counts
}

fn check_crate(tree: &Tree, name: &str, findings: &mut Findings) {
    let folder = if name == "xtask" { "xtask".to_owned() } else { format!("crates/{name}") };
    let island = ISLANDS.iter().find(|(island, _)| *island == name);
    let wanted = if island.is_some() { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
    let mut root_count = 0;
    let mut lifted = 0;
    for (file, source) in tree.rust().filter(|(file, _)| file.crate_name() == Some(name)) {
        let inside = file.path[folder.len()..].trim_start_matches('/');
        let is_root = matches!(inside, "src/lib.rs" | "src/main.rs") || is_program(inside);
        root_count += usize::from(is_root);
        if is_root && !source.code.contains(wanted) {
            findings.add(&file.path, 1, format!("`{wanted}` is missing"));
        }
        for lift in ["expect(unsafe_code", "allow(unsafe_code"] {
            lifted += words(&source.code, lift).count();
        }
    }
    if root_count == 0 {
        findings.add(&format!("{folder}/Cargo.toml"), 1, "no src/lib.rs and no src/main.rs");
    }
    if let Some((_, Some(allowed))) = island
        && lifted > *allowed
    {
        let message = format!("{lifted} unsafe modules; this crate has at most {allowed}");
        findings.add(&format!("{folder}/src/lib.rs"), 1, message);
    }
}

/// A file of `src/bin/` is the root of a program; so is a `main.rs` in a folder there.
fn is_program(inside: &str) -> bool {
    let name = inside.strip_prefix("src/bin/").unwrap_or("/");
    !name.contains('/') || name.split('/').nth(1) == Some("main.rs")
}

/// Where `unsafe` opens a block or begins an implementation.
fn unsafe_blocks(source: &RustSource) -> impl Iterator<Item = usize> {
    words(&source.code, "unsafe").filter(|at| {
        let rest = source.code[at + "unsafe".len()..].trim_start();
        rest.starts_with('{') || rest.starts_with("impl ") || rest.starts_with("impl<")
    })
}

fn has_safety_comment(source: &RustSource, at: usize) -> bool {
    let line = source.line(at);
    let code: Vec<&str> = source.code.lines().take(line).collect();
    let comments: Vec<&str> = source.comments.lines().take(line).collect();
    if comments[line - 1].contains("SAFETY:") {
        return true;
    }
    let mut between = 0;
    for index in (0..line - 1).rev() {
        let (code, comment) = (code[index].trim(), comments[index]);
        if comment.contains("SAFETY:") {
            return true;
        }
        if code.is_empty() && !comment.trim().is_empty() {
            continue; // an earlier line of the same comment may say it
        }
        between += 1;
        let ends_something_else = code.is_empty() || code.ends_with([';', '}', '{', ',']);
        if (ends_something_else && !code.starts_with("#[")) || between > LINES_BETWEEN_MAX {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_root(name: &str, text: &str, expected: &[&str]) {
        let manifest = format!("crates/{name}/Cargo.toml");
        let root = format!("crates/{name}/src/lib.rs");
        let mut findings = Findings::default();
        check(&Tree::of(&[(&manifest, ""), (&root, text)]), &mut findings);
        findings.expect(expected);
    }

    #[test]
    fn crates_forbid_unsafe_code_unless_they_are_islands() {
        check_root("chat", "#![forbid(unsafe_code)]\n", &[]);
        check_root("chat", "#![deny(unsafe_code)]\n", &["`#![forbid(unsafe_code)]` is missing"]);
        assert!(is_program("src/bin/a.rs") && is_program("src/bin/a/main.rs"));
        assert!(!is_program("src/bin/a/b.rs") && !is_program("src/binary.rs"));
        check_root("weights", "#![deny(unsafe_code)]\n#[expect(unsafe_code)] mod a;\n", &[]);
        let two =
            "#![deny(unsafe_code)]\n#[expect(unsafe_code)] mod a;\n#[allow(unsafe_code)] mod b;";
        check_root("weights", two, &["2 unsafe modules"]);
        check_root("backend-cpu", two, &[]);
        let mut findings = Findings::default();
        check(&Tree::of(&[("crates/chat/Cargo.toml", "")]), &mut findings);
        findings.expect(&["no src/lib.rs"]);
    }

    #[test]
    fn blocks_say_why_they_are_sound() {
        let check_block = |text: &str, expected: &[&str]| {
            let mut findings = Findings::default();
            check(&Tree::of(&[("crates/backend-cpu/src/a.rs", text)]), &mut findings);
            findings.expect(expected);
        };
        check_block("// SAFETY: `a` said so,\n// twice.\nunsafe { b() }\n", &[]);
        check_block("// SAFETY: a.\n#[allow(c)]\nlet x =\n    unsafe { b() };\n", &[]);
        check_block("// SAFETY: a.\nunsafe impl Send for A {}\n", &[]);
        check_block("unsafe { b() }\n", &["a.rs:1: unsafe without"]);
        check_block(
            "// SAFETY: a.\nunsafe { b() };\nunsafe { c() };\n",
            &["a.rs:3: unsafe without"],
        );
        check_block("unsafe fn a() {}\n", &[]);
    }
}
