//! What is measured? A list of tests, each of one kind, length, depth and number of sequences.

use anyhow::{Result, ensure};

use super::BenchArguments;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) kind: Kind,
    /// Of each sequence: of its prompt, or generated.
    pub(super) tokens: u32,
    /// Positions in each sequence's cache before the first measured token; 0 for prefill.
    pub(super) depth: u32,
    pub(super) batch: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Prefill,
    Decode,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Prefill => "prefill",
            Kind::Decode => "decode",
        }
    }
}

impl Test {
    /// The test as a line of text.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{} {}", self.kind.name(), self.tokens);
        if self.depth > 0 {
            text.push_str(&format!(" at {}", self.depth));
        }
        if self.batch > 1 {
            text.push_str(&format!(", {} sequences", self.batch));
        }
        text
    }
}

/// Every combination that was asked for, prefill first.
pub(super) fn tests(arguments: &BenchArguments) -> Result<Vec<Test>> {
    ensure!(arguments.batch.iter().all(|&batch| batch > 0), "--batch must be at least 1");
    let short = "--generate-tokens must be at least 2: the first comes with the prompt";
    ensure!(!arguments.generate_tokens.contains(&1), short);
    let mut tests = Vec::new();
    for &batch in &arguments.batch {
        for &tokens in arguments.prompt_tokens.iter().filter(|&&tokens| tokens > 0) {
            tests.push(Test { kind: Kind::Prefill, tokens, depth: 0, batch });
        }
    }
    for &batch in &arguments.batch {
        for &depth in &arguments.depth {
            for &tokens in arguments.generate_tokens.iter().filter(|&&tokens| tokens > 0) {
                tests.push(Test { kind: Kind::Decode, tokens, depth, batch });
            }
        }
    }
    ensure!(!tests.is_empty(), "nothing is left to measure: give --prompt-tokens above 0");
    Ok(tests)
}
