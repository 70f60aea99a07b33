//! Are lines short, files introduced, and words that must not stay gone?

use super::Findings;
use crate::rust_source::{RustSource, words};
use crate::tree::{File, Tree};

const COLUMNS_MAX: usize = 100;

/// Text that must not be in code, what to write instead, and where that holds.
struct Ban {
    text: &'static str,
    instead: &'static str,
    place: Place,
}

enum Place {
    Everywhere,
    /// Code that is not a test, in these crates.
    In(&'static [&'static str]),
    /// Code that is not a test, in any crate but these.
    NotIn(&'static [&'static str]),
    /// Code that is not a test, in any file but these.
    NotInFiles(&'static [&'static str]),
}

/// Time and chance are arguments there, so that a seed repeats a run.
const PURE: Place = Place::In(&["kv-cache", "scheduler", "ops", "graph", "models"]);
/// What a program prints is its interface; libraries return or log.
const NOT_TERMINALS: Place = Place::NotIn(&["pelton", "xtask"]);
/// The order of a hash map differs from run to run.
const ORDERED: Place = Place::In(&["kv-cache", "scheduler"]);
/// What the CPU can do is found once and never changes; a tensor's bytes are a field, made by the
/// first who looks at them in place.
const MADE_ONCE: Place =
    Place::NotInFiles(&["crates/backend-cpu/src/arch.rs", "crates/weights/src/made_tensor.rs"]);

const CLOCK: &str = "take the time as an argument";
const PRINT: &str = "return it, or use `tracing`";
const GLOBAL: &str = "pass it as an argument";
const FINISH: &str = "finish it, or return an error that says what is not supported";

const BANS: &[Ban] = &[
    Ban { text: "todo!", instead: FINISH, place: Place::Everywhere },
    Ban { text: "unimplemented!", instead: FINISH, place: Place::Everywhere },
    Ban { text: "dbg!", instead: "use `tracing::debug!`", place: Place::Everywhere },
    Ban {
        text: "#[ignore",
        instead: "assert what happens now under a `// known_wrong(#issue):` line",
        place: Place::Everywhere,
    },
    Ban { text: "thread_local!", instead: GLOBAL, place: Place::Everywhere },
    Ban { text: "static mut", instead: GLOBAL, place: Place::Everywhere },
    Ban { text: "lazy_static", instead: GLOBAL, place: Place::Everywhere },
    Ban { text: "OnceLock", instead: GLOBAL, place: MADE_ONCE },
    Ban { text: "LazyLock", instead: GLOBAL, place: MADE_ONCE },
    Ban { text: "Instant::now", instead: CLOCK, place: PURE },
    Ban { text: "SystemTime", instead: CLOCK, place: PURE },
    Ban { text: "thread_rng", instead: "take a seed as an argument", place: Place::Everywhere },
    Ban { text: "HashMap", instead: "use a `BTreeMap` or an index", place: ORDERED },
    Ban { text: "HashSet", instead: "use a `BTreeSet` or an index", place: ORDERED },
    Ban { text: "println!", instead: PRINT, place: NOT_TERMINALS },
    Ban { text: "print!", instead: PRINT, place: NOT_TERMINALS },
    Ban { text: "eprintln!", instead: PRINT, place: NOT_TERMINALS },
    Ban { text: "eprint!", instead: PRINT, place: NOT_TERMINALS },
];

/// Crates that only tests use: a panic is how they report.
const TEST_CRATES: &[&str] = &["simulator", "testkit"];

/// Words of comments that mark unfinished work.
const LEFTOVERS: &[&str] = &["FIXME", "TODO", "XXX"];

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for (file, source) in tree.rust() {
        let text = file.text.as_deref().unwrap_or_default();
        if !text.starts_with("//! ") {
            findings.add(&file.path, 1, "starts without `//!`: say what question it answers");
        }
        for (index, line) in text.lines().enumerate() {
            check_line(&file.path, index + 1, line, findings);
        }
        for ban in BANS {
            check_ban(ban, file, source, findings);
        }
        for leftover in LEFTOVERS {
            for at in words(&source.comments, leftover) {
                let message = format!("`{leftover}`: do it now, or file an issue");
                findings.add(&file.path, source.line(at), message);
            }
        }
        for (at, _) in source.comments.match_indices("```ignore") {
            let message = "an example that never runs: make it compile, or mark it `text`";
            findings.add(&file.path, source.line(at), message);
        }
        check_expect(file, source, text, findings);
    }
}

fn check_line(path: &str, number: usize, line: &str, findings: &mut Findings) {
    let columns = line.chars().count();
    // An address cannot be broken.
    let only_an_address = line
        .split_whitespace()
        .any(|word| word.contains("://") && word.chars().count() + "    /// ".len() > COLUMNS_MAX);
    if columns > COLUMNS_MAX && !only_an_address {
        let message = format!("{columns} columns; at most {COLUMNS_MAX}: break the line");
        findings.add(path, number, message);
    }
    if line.ends_with([' ', '\t', '\r']) {
        findings.add(path, number, "white space at the end of the line: remove it");
    }
}

fn check_ban(ban: &Ban, file: &File, source: &RustSource, findings: &mut Findings) {
    let name = file.crate_name().unwrap_or_default();
    let tests_too = match ban.place {
        Place::Everywhere => true,
        Place::In(crates) if crates.contains(&name) => false,
        Place::NotIn(crates) if !crates.contains(&name) => false,
        Place::NotInFiles(files) if !files.contains(&file.path.as_str()) => false,
        Place::In(_) | Place::NotIn(_) | Place::NotInFiles(_) => return,
    };
    if ban.instead == PRINT && file.path.contains("/examples/") {
        // A development tool's figures are its output.
        return;
    }
    for at in words(&source.code, ban.text) {
        let line = source.line(at);
        if tests_too || !source.is_test_line(line) {
            findings.add(&file.path, line, format!("`{}`: {}", ban.text, ban.instead));
        }
    }
}

/// `expect` is for what cannot happen, and says so.
fn check_expect(file: &File, source: &RustSource, text: &str, findings: &mut Findings) {
    for (at, call) in source.code.match_indices(".expect(") {
        let line = source.line(at);
        let argument = text[at + call.len()..].trim_start();
        if !source.is_test_line(line)
            && !file.crate_name().is_some_and(|name| TEST_CRATES.contains(&name))
            && argument.starts_with('"')
            && !argument.starts_with("\"invariant: ")
        {
            let message = "`expect`: return an error, or write `expect(\"invariant: ...\")`";
            findings.add(&file.path, line, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(path: &str, text: &str, expected: &[&str]) {
        let mut findings = Findings::default();
        check(&Tree::of(&[(path, text)]), &mut findings);
        findings.expect(expected);
    }

    #[test]
    fn good_files_pass() {
        let text = "//! What?\n// a \"todo!()\" in words\nconst A: &str = \"dbg!(FIXME)\";\n";
        check_text("crates/ops/src/a.rs", text, &[]);
    }

    #[test]
    fn lines_and_heads_are_checked() {
        check_text("crates/ops/src/a.rs", "fn a() {}\n", &["a.rs:1: starts without"]);
        let long = format!("//! What?\n// {}\n// https://{}\n", "a ".repeat(60), "b".repeat(99));
        check_text("crates/ops/src/a.rs", &long, &["a.rs:2: 123 columns", "a.rs:2: white space"]);
    }

    #[test]
    fn banned_words_are_found_where_they_are_banned() {
        let all = "//! What?\nfn a() { todo!() }\n#[ignore]\nstatic mut B: u8 = 0; // FIXME\n";
        let expected = ["`todo!`: finish it", "`#[ignore`", "`static mut`", "`FIXME`"];
        check_text("crates/hub/src/a.rs", all, &expected);
        let clock = "//! What?\nfn a() { Instant::now(); println!(); }\n\
                     #[cfg(test)]\nmod tests { fn b() { println!(); SystemTime::now(); } }\n";
        check_text("crates/ops/src/a.rs", clock, &["`Instant::now`", "`println!`"]);
        check_text("crates/engine/src/a.rs", clock, &["`println!`"]);
        check_text("crates/pelton/src/a.rs", clock, &[]);
        check_text("crates/scheduler/tests/a.rs", clock, &[]);
        let map = "//! What?\nuse std::collections::HashMap;\n";
        check_text("crates/scheduler/src/a.rs", map, &["`BTreeMap`"]);
        check_text("crates/chat/src/a.rs", map, &[]);
    }

    #[test]
    fn expect_names_an_invariant() {
        let text =
            "//! What?\nfn a() { b().expect(\"no\"); c().expect(\n    \"invariant: d\"); }\n";
        check_text("crates/hub/src/a.rs", text, &["a.rs:2: `expect`"]);
    }
}
