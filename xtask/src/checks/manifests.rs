//! Has every dependency a reason, every manifest the workspace's settings, every package a licence
//! we know, and the lock file a bound?

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Findings;
use crate::tree::Tree;

/// A dependency is code we answer for; beyond this many, nobody has an overview (STYLE.md 27). The
/// lock file also names what is built on other systems only: of wgpu's packages, 28 of 54 are for
/// Windows, macOS, browsers and Android.
const PACKAGES_MAX: usize = 310;

/// Licences that are fine in an Apache-2.0 program, as the packages write them. Sorted.
const LICENCES: &[&str] = &[
    "(Apache-2.0 OR MIT) AND BSD-3-Clause",
    "(MIT OR Apache-2.0) AND Unicode-3.0",
    "Apache-2.0",
    "Apache-2.0 AND ISC",
    "Apache-2.0 OR ISC OR MIT",
    "Apache-2.0 OR MIT",
    "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
    "Apache-2.0/MIT",
    "BSD-2-Clause OR Apache-2.0 OR MIT",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0 OR MIT-0 OR Apache-2.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT AND BSD-3-Clause",
    "MIT OR Apache-2.0",
    "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
    "MIT OR Apache-2.0 OR Zlib",
    "MIT-0",
    "MIT/Apache-2.0",
    "Unlicense OR MIT",
    "Zlib",
    "Zlib OR Apache-2.0 OR MIT",
];

/// Lines every manifest of a crate has.
const SHARED: &[&str] = &[
    "version.workspace = true",
    "edition.workspace = true",
    "rust-version.workspace = true",
    "license.workspace = true",
    "publish.workspace = true",
    "[lints]\nworkspace = true",
];

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    check_reasons(tree.text("Cargo.toml").unwrap_or_default(), findings);
    for file in tree.files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let text = file.text.as_deref().unwrap_or_default();
        for line in SHARED.iter().filter(|line| !text.contains(*line)) {
            let line = line.replace('\n', " ");
            findings.add(&file.path, 1, format!("`{line}` is missing"));
        }
        check_sources(&file.path, text, findings);
    }
    let lock = tree.text("Cargo.lock").unwrap_or_default();
    let packages = lock.lines().filter(|line| *line == "[[package]]").count();
    if packages > PACKAGES_MAX {
        let message = format!("{packages} packages; at most {PACKAGES_MAX}");
        findings.add("Cargo.lock", 1, message);
    }
}

/// Every run of lines in `[workspace.dependencies]` starts with a comment that says why.
fn check_reasons(text: &str, findings: &mut Findings) {
    let mut in_section = false;
    let mut has_reason = false;
    for (index, line) in text.lines().enumerate() {
        match line.trim() {
            "" => has_reason = false,
            heading if heading.starts_with('[') => {
                in_section = heading == "[workspace.dependencies]";
                has_reason = false;
            }
            comment if comment.starts_with('#') => has_reason = true,
            dependency if in_section && !has_reason => {
                let name = dependency.split(['=', '.', ' ']).next().unwrap_or_default();
                let message =
                    format!("`{name}` has no comment above it: why, and what it replaces");
                findings.add("Cargo.toml", index + 1, message);
            }
            _ => {}
        }
    }
}

/// Versions and paths are written once, in the workspace.
fn check_sources(path: &str, text: &str, findings: &mut Findings) {
    let mut in_section = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            in_section = line.trim_end_matches(']').ends_with("dependencies");
        } else if in_section
            && line.contains('=')
            && !line.starts_with('#')
            && !line.contains("workspace = true")
        {
            findings.add(path, index + 1, "write `NAME.workspace = true`, the rest in the root");
        }
    }
}

/// Licences of all packages of the lock file, for every platform.
///
/// # Errors
/// When cargo cannot say.
pub(super) fn check_licences(tree: &Tree, findings: &mut Findings) -> Result<()> {
    // What is on disk is enough after `cargo fetch`; otherwise cargo gets what is missing.
    let metadata = cargo_metadata(tree, &["--locked", "--offline"])
        .or_else(|_| cargo_metadata(tree, &["--locked"]))?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    for (licence, names) in unknown_licences(packages) {
        let message = format!(
            "licence `{licence}` of {} is not in the list of xtask/src/checks/manifests.rs",
            names.join(", ")
        );
        findings.add("Cargo.lock", 1, message);
    }
    Ok(())
}

fn unknown_licences(packages: &[Value]) -> BTreeMap<&str, Vec<&str>> {
    let mut unknown = BTreeMap::<&str, Vec<&str>>::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("(none)");
        if !LICENCES.contains(&licence) {
            unknown.entry(licence).or_default().push(package["name"].as_str().unwrap_or("?"));
        }
    }
    unknown
}

/// What cargo knows of the workspace.
///
/// # Errors
/// When cargo fails or says something that is not JSON.
pub(super) fn cargo_metadata(tree: &Tree, options: &[&str]) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .args(options)
        .current_dir(&tree.root)
        .output()
        .context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_have_reasons() {
        let text =
            "[a]\nb = 1\n[workspace.dependencies]\n# Why.\nc = \"1\"\nd = \"1\"\n\ne = \"1\"\n";
        let mut findings = Findings::default();
        check_reasons(text, &mut findings);
        findings.expect(&["Cargo.toml:8: `e` has no comment"]);
    }

    #[test]
    fn manifests_share_the_workspace_settings() {
        let good = format!("{}\n[dependencies]\na.workspace = true\n", SHARED.join("\n"));
        let bad = good.replace("edition.workspace = true\n", "") + "b = \"1\"\n";
        let mut findings = Findings::default();
        check(&Tree::of(&[("crates/a/Cargo.toml", &good)]), &mut findings);
        check(&Tree::of(&[("crates/b/Cargo.toml", &bad)]), &mut findings);
        findings.expect(&["`edition.workspace = true` is missing", "write `NAME.workspace"]);
    }

    #[test]
    fn the_lock_file_is_bounded() {
        let mut findings = Findings::default();
        check(&Tree::of(&[("Cargo.lock", &"[[package]]\n".repeat(PACKAGES_MAX))]), &mut findings);
        check(
            &Tree::of(&[("Cargo.lock", &"[[package]]\n".repeat(PACKAGES_MAX + 1))]),
            &mut findings,
        );
        findings.expect(&["311 packages"]);
    }

    #[test]
    fn unknown_licences_are_found() {
        let package = |name, licence| serde_json::json!({"name": name, "license": licence});
        let packages = [package("a", "MIT"), package("b", "GPL-3.0-only"), package("c", "Zlib")];
        let expected = BTreeMap::from([("GPL-3.0-only", vec!["b"])]);
        assert_eq!(unknown_licences(&packages), expected);
        assert!(LICENCES.is_sorted(), "the list is read by people");
    }
}
