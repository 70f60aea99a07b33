//! Which crate may use which? The table under `## Layers` of ARCHITECTURE.md is the answer, and
//! cargo's own list of dependencies is held against it.
//!
//! Normal and build dependencies count; dev-dependencies are free, so that tests may look anywhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Findings, manifests, table};
use crate::tree::Tree;

const DOCUMENT: &str = "ARCHITECTURE.md";

/// For each crate of the table: the crates it may use.
type Allowed = BTreeMap<String, BTreeSet<String>>;

/// Returns the number of dependencies between crates of the workspace.
///
/// # Errors
/// When there is no table, or cargo cannot say.
pub(crate) fn check(tree: &Tree, findings: &mut Findings) -> Result<usize> {
    let markdown = tree.text(DOCUMENT).with_context(|| format!("{DOCUMENT} is missing"))?;
    let metadata = manifests::cargo_metadata(tree, &["--no-deps"])?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    Ok(compare(&read_table(markdown), packages, findings))
}

/// A cell lists crates with commas; `-` is none, `everything above` is every row before it.
fn read_table(markdown: &str) -> Allowed {
    let mut allowed = Allowed::new();
    let plain = |cell: &str| cell.replace('`', "");
    for (_, cells) in table(markdown, "Layers") {
        let may_use = match plain(cells.get(1).unwrap_or(&"")).as_str() {
            "-" => BTreeSet::new(),
            "everything above" => allowed.keys().cloned().collect(),
            list => list.split(',').map(|name| name.trim().to_owned()).collect(),
        };
        for name in plain(cells[0]).split(',') {
            allowed.insert(name.trim().to_owned(), may_use.clone());
        }
    }
    allowed
}

fn compare(allowed: &Allowed, packages: &[Value], findings: &mut Findings) -> usize {
    let name = |package: &Value| package["name"].as_str().unwrap_or("?").to_owned();
    let members: BTreeSet<String> = packages.iter().map(name).collect();
    for stale in allowed.keys().filter(|row| !members.contains(*row)) {
        findings.add(DOCUMENT, 1, format!("the layer table names `{stale}`, which is no crate"));
    }
    let mut edges = 0;
    for package in packages {
        let user = name(package);
        let path = if user == "xtask" { user.clone() } else { format!("crates/{user}") };
        let manifest = format!("{path}/Cargo.toml");
        let Some(may_use) = allowed.get(&user) else {
            findings.add(&manifest, 1, format!("`{user}` has no row in the layer table"));
            continue;
        };
        for used in uses(package).filter(|used| members.contains(*used)) {
            edges += 1;
            if !may_use.contains(used) {
                let message = format!(
                    "`{user}` may not use `{used}`: a new edge of the layer table is a commit and \
                     a discussion of its own"
                );
                findings.add(&manifest, 1, message);
            }
        }
    }
    edges
}

/// Names of what a package depends on to be built and run.
fn uses(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package["dependencies"].as_array();
    dependencies
        .into_iter()
        .flatten()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
        .filter_map(|dependency| dependency["name"].as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_outside_the_table_are_found() {
        let markdown = "# A\n## Layers\n\n| crate | may use | absent |\n|---|---|---|\n\
                        | `a` | - | x |\n| `b`, `c` | `a` | x |\n| d | everything above | x |\n\
                        | e | a | x |\n";
        let package = |name: &str, uses: &[(&str, Option<&str>)]| {
            let list: Vec<Value> = uses
                .iter()
                .map(|(name, kind)| serde_json::json!({"name": name, "kind": kind}))
                .collect();
            serde_json::json!({"name": name, "dependencies": list})
        };
        let packages = [
            package("a", &[("serde", None), ("d", Some("dev"))]),
            package("b", &[("a", None)]),
            package("c", &[("b", None), ("d", Some("build"))]),
            package("d", &[("a", None), ("b", None), ("c", None), ("e", None)]),
            package("f", &[]),
        ];
        let mut findings = Findings::default();
        let packages = [&packages[..], &[package("e", &[])]].concat();
        assert_eq!(compare(&read_table(markdown), &packages, &mut findings), 7);
        findings.expect(&[
            "crates/c/Cargo.toml:1: `c` may not use `b`",
            "`c` may not use `d`",
            "`d` may not use `e`",
            "`f` has no row",
        ]);
        let mut findings = Findings::default();
        compare(&read_table(markdown), &packages[..2], &mut findings);
        findings.expect(&["names `c`", "names `d`", "names `e`"]);
    }
}
