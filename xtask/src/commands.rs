//! Which verbs are there? One file a verb, one line each in [`COMMANDS`].

mod ci;
mod kernels;
mod layers;
mod licenses;
mod sim;
mod tidy;

use anyhow::{Result, bail};

/// A verb: its name, what it does, and the code that does it with the arguments after the name.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) run: fn(&[String]) -> Result<()>,
}

/// Sorted by name.
pub(crate) const COMMANDS: &[Command] = &[
    Command { name: "ci", summary: "run exactly what .ci/run runs", run: ci::run },
    Command { name: "kernels", summary: "compile the GPU kernels with nvcc", run: kernels::run },
    Command { name: "layers", summary: "compare dependencies with the table", run: layers::run },
    Command { name: "licenses", summary: "print the terms of dependencies", run: licenses::run },
    Command { name: "sim", summary: "run seeded worlds: --seed N, --seeds N", run: sim::run },
    Command { name: "tidy", summary: "check the text of the tree", run: tidy::run },
];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        println!("usage: cargo xtask VERB\n");
        for command in COMMANDS {
            println!("  {:<10} {}", command.name, command.summary);
        }
        return Ok(());
    };
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(rest),
        None => {
            let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
            bail!("`{name}` is not a verb of xtask; there are: {}", names.join(", "))
        }
    }
}
