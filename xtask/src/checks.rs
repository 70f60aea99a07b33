//! What must hold for every file of the tree? One file a subject.

mod boundaries;
mod documents;
mod invariants;
mod islands;
pub(crate) mod layers;
mod lines;
mod manifests;
pub(crate) mod size;

use anyhow::{Result, bail};

use crate::tree::Tree;

/// What was found wrong, in the order of the checks.
#[derive(Default)]
pub(crate) struct Findings {
    list: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, path: &str, line: usize, message: impl AsRef<str>) {
        self.list.push(format!("{path}:{line}: {}", message.as_ref()));
    }

    /// Prints `good` where nothing was found, else everything that was.
    ///
    /// # Errors
    /// When anything was found.
    pub(crate) fn conclude(self, good: &str) -> Result<()> {
        if self.list.is_empty() {
            println!("{good}");
            return Ok(());
        }
        bail!("{} findings\n{}", self.list.len(), self.list.join("\n"))
    }

    /// Fails the test unless exactly the findings that contain these texts are there.
    #[cfg(test)]
    fn expect(self, parts: &[&str]) {
        let all = self.list.join("\n");
        assert_eq!(self.list.len(), parts.len(), "findings:\n{all}");
        for (finding, part) in self.list.iter().zip(parts) {
            assert!(finding.contains(part), "`{part}` is not in `{finding}`");
        }
    }
}

/// All checks of the text; `layers` is a verb of its own.
///
/// # Errors
/// When a check cannot be made, not when it finds something.
pub(crate) fn all(tree: &Tree, findings: &mut Findings) -> Result<()> {
    lines::check(tree, findings);
    size::check(tree, findings);
    boundaries::check(tree, findings);
    islands::check(tree, findings);
    invariants::check(tree, findings);
    documents::check(tree, findings);
    manifests::check(tree, findings);
    manifests::check_licences(tree, findings)
}

/// One line for people: how large the tree is and where its unsafe blocks are.
pub(crate) fn summary(tree: &Tree) -> String {
    let lines: usize = tree.rust().map(|(_, source)| source.non_test_line_count()).sum();
    let islands: Vec<String> = islands::count_blocks(tree)
        .into_iter()
        .map(|(name, count)| format!("{count} in {name}"))
        .collect();
    let islands = if islands.is_empty() { "none".to_owned() } else { islands.join(", ") };
    format!(
        "tidy: {} files, {lines} lines of Rust without tests, unsafe blocks: {islands}",
        tree.files.len()
    )
}

/// The rows of the first table under the heading `title` of a markdown text: line number and
/// cells, without the two lines of the table's head.
fn table<'a>(markdown: &'a str, title: &str) -> Vec<(usize, Vec<&'a str>)> {
    let heading = |line: &str| line.trim_start_matches('#').trim().to_owned();
    markdown
        .lines()
        .enumerate()
        .skip_while(|(_, line)| !(line.starts_with("## ") && heading(line) == title))
        .skip(1)
        .take_while(|(_, line)| !line.starts_with("## "))
        .filter(|(_, line)| line.starts_with('|'))
        .skip(2)
        .map(|(index, line)| {
            (index + 1, line.trim().trim_matches('|').split('|').map(str::trim).collect())
        })
        .collect()
}
