//! Do crates keep the promises of absence that a dependency table cannot see?

use super::Findings;
use crate::rust_source::words;
use crate::tree::Tree;

/// The crates at the edge: they read and write JSON, YAML or templates.
const SERDE_CRATES: &[&str] = &["chat", "config", "hub", "pelton", "server", "xtask"];

/// Names that say nothing: they fill with whatever had no home.
const BANNED_MODULES: &[&str] = &["utils", "util", "helpers", "common", "misc", "core"];

/// What only code that computes with tensors needs. `models` describes; it does not compute.
const TENSOR_WORDS: &[&str] = &["&mut [f32]", "bytemuck", "half", "WeightView", "reference"];

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    wire_stays_at_the_edge(tree, findings);
    models_only_describe(tree, findings);
    kernels_have_twins(tree, findings);
    for (file, source) in tree.rust() {
        for module in BANNED_MODULES {
            let named_so = file.path.split('/').any(|part| {
                part == *module || part.strip_suffix(".rs").is_some_and(|stem| stem == *module)
            });
            if named_so {
                let message = format!("`{module}` says nothing: name what the module is about");
                findings.add(&file.path, 1, message);
            }
            for at in words(&source.code, &format!("mod {module}")) {
                let message = format!("`mod {module}`: name what the module is about");
                findings.add(&file.path, source.line(at), message);
            }
        }
    }
}

/// Invariant `wire_only_in_server`: types below the edge have no wire form.
fn wire_stays_at_the_edge(tree: &Tree, findings: &mut Findings) {
    let message = format!(
        "serde belongs to the edge ({}): convert there, keep plain data here",
        SERDE_CRATES.join(", ")
    );
    let inside = |name: Option<&str>| name.is_some_and(|name| !SERDE_CRATES.contains(&name));
    for (file, source) in tree.rust().filter(|(file, _)| inside(file.crate_name())) {
        for word in ["Serialize", "Deserialize"] {
            for at in words(&source.code, word) {
                if !source.is_test_line(source.line(at)) {
                    findings.add(&file.path, source.line(at), &message);
                }
            }
        }
    }
    for file in tree.files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let text = file.text.as_deref().unwrap_or_default();
        let mut section = "";
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                section = line;
            }
            let is_serde = line.starts_with("serde.") || line.starts_with("serde =");
            if section == "[dependencies]" && is_serde && inside(file.crate_name()) {
                findings.add(&file.path, index + 1, &message);
            }
        }
    }
}

/// Invariant `models_are_words`: a family is described, never computed.
fn models_only_describe(tree: &Tree, findings: &mut Findings) {
    for (file, source) in tree.rust().filter(|(file, _)| file.crate_name() == Some("models")) {
        for word in TENSOR_WORDS {
            for at in words(&source.code, word) {
                let line = source.line(at);
                if !source.is_test_line(line) {
                    let message = format!("`{word}` in models: say it as an op in the graph");
                    findings.add(&file.path, line, message);
                }
            }
        }
    }
}

/// Invariant `twin_exists`: a kernel file is named after the op whose reference it is held against.
fn kernels_have_twins(tree: &Tree, findings: &mut Findings) {
    for file in &tree.files {
        let rust = file.path.split_once("/src/kernels/");
        let is_kernel = [".cu", ".wgsl"].iter().any(|ending| file.path.ends_with(ending));
        let device = file.path.split_once("/kernels/").filter(|_| is_kernel);
        let Some((backend, kernel)) = rust.or(device) else { continue };
        let twin = format!("crates/ops/src/{}.rs", kernel.split('.').next().unwrap_or(kernel));
        if backend.starts_with("crates/backend-") && tree.text(&twin).is_none() {
            let message = format!("there is no {twin}: a kernel is named after its op");
            findings.add(&file.path, 1, message);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn wire_only_in_server() {
        let mut findings = Findings::default();
        wire_stays_at_the_edge(&Tree::here().unwrap(), &mut findings);
        findings.expect(&[]);
    }

    #[test]
    fn models_are_words() {
        let mut findings = Findings::default();
        models_only_describe(&Tree::here().unwrap(), &mut findings);
        findings.expect(&[]);
    }

    #[test]
    fn twin_exists() {
        let mut findings = Findings::default();
        kernels_have_twins(&Tree::here().unwrap(), &mut findings);
        findings.expect(&[]);
        let mut findings = Findings::default();
        let alone = Tree::of(&[("crates/backend-cpu/src/kernels/softmax.rs", "//! What?\n")]);
        kernels_have_twins(&alone, &mut findings);
        findings.expect(&["kernels/softmax.rs:1: there is no crates/ops/src/softmax.rs"]);
        let mut findings = Findings::default();
        let alone = Tree::of(&[("crates/backend-cuda/kernels/softmax.cu", "// What?\n")]);
        kernels_have_twins(&alone, &mut findings);
        findings.expect(&["kernels/softmax.cu:1: there is no crates/ops/src/softmax.rs"]);
        let mut findings = Findings::default();
        let alone = Tree::of(&[("crates/backend-wgpu/kernels/softmax.wgsl", "// What?\n")]);
        kernels_have_twins(&alone, &mut findings);
        findings.expect(&["kernels/softmax.wgsl:1: there is no crates/ops/src/softmax.rs"]);
    }

    #[test]
    fn crossed_boundaries_are_found() {
        let derive = "#[derive(Clone, serde::Serialize)]\nstruct A;\n";
        let mut findings = Findings::default();
        let tree = Tree::of(&[
            ("crates/messages/Cargo.toml", "[dependencies]\nserde.workspace = true\n"),
            ("crates/messages/src/a.rs", derive),
            ("crates/models/src/a.rs", "fn a(x: &mut [f32]) {}\n"),
            ("crates/server/src/helpers.rs", derive),
            ("crates/server/src/lib.rs", "mod helpers;\nmod helpers_of_mine;\n"),
        ]);
        check(&tree, &mut findings);
        findings.expect(&[
            "messages/src/a.rs:1: serde",
            "messages/Cargo.toml:2: serde",
            "models/src/a.rs:1: `&mut [f32]`",
            "server/src/helpers.rs:1: `helpers`",
            "server/src/lib.rs:1: `mod helpers`",
        ]);
    }
}
