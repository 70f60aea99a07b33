//! Whose work is in the binary, and under which terms? A list of packages and the texts of their
//! licenses, as they came with them. Goes into the wheel and the container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tree;

/// The package that people install.
const PRODUCT: &str = "pelton";
/// How files with terms are called, in capitals.
const TEXTS: [&str; 4] = ["LICENSE", "LICENCE", "COPYING", "NOTICE"];

pub(super) fn run(arguments: &[String]) -> Result<()> {
    let packages = linked(&metadata()?)?;
    let page = page(&packages)?;
    match arguments {
        [] => print!("{page}"),
        [flag, path] if flag == "--output" => {
            std::fs::write(path, page).with_context(|| format!("cannot write {path}"))?;
        }
        _ => bail!("`licenses` prints, or writes with `--output FILE`"),
    }
    Ok(())
}

/// Someone else's package.
#[derive(Debug, PartialEq)]
struct Package {
    name: String,
    version: String,
    license: String,
    folder: String,
}

fn metadata() -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(tree::root()?)
        .output()
        .context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// All that normal dependencies lead to from the product, on any platform, in order of names.
fn linked(metadata: &Value) -> Result<Vec<Package>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let known: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|one| (text(&one["id"]), one)).collect();
    let nodes: BTreeMap<String, Value> = list(&metadata["resolve"]["nodes"])
        .into_iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let product = known.iter().find(|(_, package)| package["name"] == PRODUCT);
    let mut waiting = vec![product.context("the product is not in the workspace")?.0.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        for dependency in list(&nodes[&id]["deps"]) {
            let is_linked =
                list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            if is_linked && seen.insert(text(&dependency["pkg"])) {
                waiting.push(text(&dependency["pkg"]));
            }
        }
    }
    // Packages without a source are this workspace's own.
    let foreign = seen.iter().map(|id| &known[id]).filter(|package| !package["source"].is_null());
    let mut packages: Vec<Package> = foreign
        .map(|package| Package {
            name: text(&package["name"]),
            version: text(&package["version"]),
            license: package["license"].as_str().unwrap_or("see its text").to_owned(),
            folder: text(&package["manifest_path"]).replace("Cargo.toml", ""),
        })
        .collect();
    packages.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    Ok(packages)
}

fn page(packages: &[Package]) -> Result<String> {
    let mut page = format!(
        "# Licenses of what is in Pelton's binary\n\n{} packages, made by `cargo xtask licenses`. \
         Pelton itself is under Apache-2.0.\n\n",
        packages.len()
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages {
        let named = format!("{} {}", package.name, package.version);
        page.push_str(&format!("- {named}: {}\n", package.license));
        for text in texts_in(Path::new(&package.folder))? {
            texts.entry(text).or_default().push(named.clone());
        }
    }
    let mut texts: Vec<(String, Vec<String>)> = texts.into_iter().collect();
    texts.sort_by(|one, other| one.1.cmp(&other.1));
    for (text, names) in texts {
        page.push_str(&format!("\n## {}\n\n```text\n{}\n```\n", names.join(", "), text.trim_end()));
    }
    Ok(page)
}

fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && TEXTS.iter().any(|start| name.starts_with(start)) {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
    };
    paths.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_only_built_or_tested_with_is_not_in_the_binary() {
        let package = |name: &str, source: Value| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT",
                   "manifest_path": format!("/{name}/Cargo.toml"), "source": source})
        };
        let depends = |on: &str, kind: Value| json!({"pkg": on, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("pelton", Value::Null), package("own", Value::Null),
                package("linked", "r".into()), package("deep", "r".into()),
                package("tested", "r".into()), package("built", "r".into())],
            "resolve": {"nodes": [
                {"id": "pelton", "deps": [depends("own", Value::Null),
                    depends("tested", "dev".into()), depends("built", "build".into())]},
                {"id": "own", "deps": [depends("linked", Value::Null)]},
                {"id": "linked", "deps": [depends("deep", Value::Null)]},
                {"id": "deep", "deps": [depends("linked", Value::Null)]},
            ]},
        });
        let names: Vec<String> =
            linked(&metadata).expect("found").into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["deep", "linked"]);
    }

    #[test]
    fn a_text_that_several_share_is_told_once() {
        let folder = std::env::temp_dir().join(format!("pelton-licenses-{}", std::process::id()));
        let packages: Vec<Package> = ["a", "b"]
            .iter()
            .map(|name| {
                let place = folder.join(name);
                std::fs::create_dir_all(&place).expect("made");
                std::fs::write(place.join("LICENSE-MIT"), "Do as you like.\r\n").expect("written");
                let folder = place.display().to_string();
                let (name, version) = ((*name).to_owned(), "1".to_owned());
                Package { name, version, license: "MIT".to_owned(), folder }
            })
            .collect();
        let page = page(&packages).expect("readable");
        std::fs::remove_dir_all(folder).expect("removed");
        assert_eq!(page.matches("Do as you like.").count(), 1, "{page}");
        assert!(page.contains("- a 1: MIT\n- b 1: MIT\n\n## a 1, b 1\n"), "{page}");
    }
}
