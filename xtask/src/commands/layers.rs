//! Does every crate depend only on what ARCHITECTURE.md lets it?

use anyhow::{Result, ensure};

use crate::checks::{Findings, layers};
use crate::tree::Tree;

pub(super) fn run(arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "`layers` takes no arguments");
    let mut findings = Findings::default();
    let edges = layers::check(&Tree::here()?, &mut findings)?;
    findings.conclude(&format!("{edges} dependencies between crates, all in the layer table"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn dependencies_follow_the_layer_table() {
        if let Err(error) = super::run(&[]) {
            panic!("{error}");
        }
    }
}
