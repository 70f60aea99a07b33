//! Do documents have one title, fixtures a maker, blobs a bound, and commands in README a verb?

use super::Findings;
use crate::commands::COMMANDS;
use crate::tree::Tree;

/// Larger files belong to where models are downloaded from; git keeps every version for ever.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Folders whose files are data that tests compare with.
const FIXTURE_FOLDERS: &[&str] = &["fixtures", "golden", "testdata"];

const README: &str = "README.md";

/// Its tables are records' own, so that no figure outlives or betters its record.
const PERFORMANCE: &str = "docs/performance.md";
const RECORDS: &str = "bench/records/";

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    for file in &tree.files {
        if file.bytes > FILE_BYTES_MAX {
            let message = format!("{} bytes; at most {FILE_BYTES_MAX} in git", file.bytes);
            findings.add(&file.path, 1, message);
        }
        if file.path.ends_with(".md") {
            check_titles(&file.path, file.text.as_deref().unwrap_or_default(), findings);
        }
    }
    check_fixtures(tree, findings);
    check_commands(tree, findings);
    check_figures(tree, findings);
}

/// Each row of a table stands in the record that is named last before it.
fn check_figures(tree: &Tree, findings: &mut Findings) {
    let mut record = None;
    for (number, line) in outside_fences(tree.text(PERFORMANCE).unwrap_or_default()) {
        if let Some(name) = line.split(RECORDS).nth(1).and_then(|rest| rest.split(".md").next()) {
            let path = format!("{RECORDS}{name}.md");
            record = tree.text(&path);
            if record.is_none() {
                findings.add(PERFORMANCE, number, format!("there is no {path}"));
            }
        }
        let stands = |text: &str| text.lines().any(|known| known == line);
        if line.starts_with('|') && !record.is_some_and(stands) {
            findings.add(PERFORMANCE, number, "this row is not in the record named above it");
        }
    }
}

fn check_titles(path: &str, text: &str, findings: &mut Findings) {
    let titles = outside_fences(text).filter(|(_, line)| line.starts_with("# ")).count();
    if titles != 1 {
        findings.add(path, 1, format!("{titles} titles (`# `); a document has one"));
    }
}

/// Data that tests compare with says who made it: a script under `tools/golden/` names the file,
/// or the folder it is in.
fn check_fixtures(tree: &Tree, findings: &mut Findings) {
    let scripts: String = tree
        .files
        .iter()
        .filter(|file| file.path.starts_with("tools/golden/") && file.path.ends_with(".py"))
        .filter_map(|file| file.text.as_deref())
        .collect();
    for file in &tree.files {
        let parts: Vec<&str> = file.path.split('/').collect();
        let is_fixture = parts.iter().any(|part| FIXTURE_FOLDERS.contains(part))
            && file.path.starts_with("crates/")
            && file.rust.is_none();
        if is_fixture && !is_named(&parts, &scripts) {
            findings.add(&file.path, 1, "no script under tools/golden/ names this fixture");
        }
    }
}

/// By its own name, by the folder it is in, or by the whole path of any folder above.
fn is_named(parts: &[&str], scripts: &str) -> bool {
    let (folder, name) = (parts[parts.len() - 2], parts[parts.len() - 1]);
    let by_folder = !FIXTURE_FOLDERS.contains(&folder) && scripts.contains(&format!("{folder}/"));
    scripts.contains(name)
        || by_folder
        || (3..parts.len()).any(|end| scripts.contains(&format!("{}\"", parts[..end].join("/"))))
}

/// Commands in README's code blocks exist.
///
/// Verbs of `pelton` are the files of its `commands/` folder; without that folder there is nothing
/// to compare with.
fn check_commands(tree: &Tree, findings: &mut Findings) {
    let Some(text) = tree.text(README) else {
        findings.add(README, 1, "is missing");
        return;
    };
    let xtask: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let pelton: Vec<&str> = tree
        .files
        .iter()
        .filter_map(|file| file.path.strip_prefix("crates/pelton/src/commands/"))
        .filter_map(|name| name.strip_suffix(".rs"))
        .collect();
    for (number, line) in in_fences(text) {
        let known =
            |prefix: &str| line.split(prefix).nth(1).and_then(|rest| rest.split(' ').next());
        for (prefix, verbs) in
            [("cargo xtask ", &xtask), ("cargo run --release -- ", &pelton), ("pelton ", &pelton)]
        {
            let unknown = |verb: &&str| !verbs.is_empty() && !verbs.contains(verb);
            if let Some(verb) = known(prefix).filter(unknown) {
                findings.add(README, number, format!("`{prefix}{verb}`: there is no such verb"));
            }
        }
    }
}

/// Numbered lines outside of code blocks.
fn outside_fences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    fenced(text).filter(|(_, _, inside)| !inside).map(|(number, line, _)| (number, line))
}

/// Numbered lines of shell code blocks, comments left out.
fn in_fences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    fenced(text)
        .filter(|(_, line, inside)| *inside && !line.starts_with("```") && !line.starts_with('#'))
        .map(|(number, line, _)| (number, line))
}

fn fenced(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut inside = false;
    text.lines().enumerate().map(move |(index, line)| {
        let is_fence = line.starts_with("```");
        inside ^= is_fence;
        (index + 1, line, inside || is_fence)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_files(files: &[(&str, &str)], expected: &[&str]) {
        let mut findings = Findings::default();
        check(&Tree::of(files), &mut findings);
        findings.expect(expected);
    }

    #[test]
    fn titles_and_sizes_are_checked() {
        check_files(&[(README, "# A\n```sh\n# no title\n```\n")], &[]);
        check_files(&[(README, "# A\n# B\n")], &["2 titles"]);
        let blob = "x".repeat(262_145);
        check_files(&[(README, "# A\n"), ("a.bin", &blob)], &["a.bin:1: 262145 bytes"]);
    }

    #[test]
    fn figures_are_of_the_record_named_above_them() {
        let record =
            ("bench/records/day.md", "# Day\n| work | tok/s |\n|---|---|\n| decode | 5 |\n");
        let page = |name, row| format!("# P\nFrom [it](../bench/records/{name}.md):\n\n{row}\n");
        let check_page = |page: &str, expected: &[&str]| {
            check_files(&[(README, "# A\n"), record, (PERFORMANCE, page)], expected);
        };
        check_page(&page("day", "| decode | 5 |"), &[]);
        check_page(&page("day", "| decode | 6 |"), &["performance.md:4: this row"]);
        check_page(&page("night", "| decode | 5 |"), &[":2: there is no", ":4: this row"]);
        check_page("# P\n| decode | 5 |\n", &[":2: this row"]);
    }

    #[test]
    fn fixtures_name_their_maker() {
        let script = ("tools/golden/make.py", "OUT = ROOT / \"crates/a/golden/x\"  # and y.bin");
        let good = [
            (README, "# A\n"),
            script,
            ("crates/a/golden/x/deep/z.txt", ""),
            ("crates/a/src/testdata/y.bin", ""),
        ];
        check_files(&good, &[]);
        check_files(&[(README, "# A\n"), script, ("crates/b/golden/w", "")], &["golden/w:1: no"]);
    }

    #[test]
    fn commands_exist() {
        let verbs = "# A\npelton none\n```sh\npelton serve --port 1\ncargo xtask tidy\n\
                     ./pelton gone\ncargo run --release -- lost \"a\"\ncargo xtask away\n```\n";
        check_files(
            &[(README, verbs), ("crates/pelton/src/commands/serve.rs", "")],
            &["`pelton gone`", "`cargo run --release -- lost`", "`cargo xtask away`"],
        );
    }
}
