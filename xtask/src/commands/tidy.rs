//! Is the text of the tree as STYLE.md wants it?
//!
//! `--update-ratchet` rewrites `xtask/ratchet.txt` with the present sizes; it lowers and removes
//! exceptions, and never adds or raises one: that is done by hand, where a reviewer sees it.

use anyhow::{Result, bail};

use crate::checks::{self, Findings, size};
use crate::tree::Tree;

pub(super) fn run(arguments: &[String]) -> Result<()> {
    let tree = Tree::here()?;
    match arguments {
        [] => {}
        [flag] if flag == "--update-ratchet" => size::update_ratchet(&tree)?,
        _ => bail!("`tidy` takes no argument but `--update-ratchet`"),
    }
    // Read again: the ratchet may have been rewritten.
    let tree = Tree::here()?;
    let mut findings = Findings::default();
    checks::all(&tree, &mut findings)?;
    findings.conclude(&checks::summary(&tree))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        if let Err(error) = super::run(&[]) {
            panic!("{error}");
        }
    }
}
