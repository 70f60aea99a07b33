//! What becomes of many schemas: is each refused, or do its masks lead to answers?
//!
//! `cargo run --release -p constraint --example schemas -- MODEL.gguf < SCHEMAS > RESULTS`
//!
//! A line of the input is a schema, a line of the output `{"refused": why}` or `{"answers": [...],
//! "open": N, "mask_ns": [...], "compile_us": N}`: random walks through the masks, those without
//! an end within bounds counted only. `tools/schemas/check.py` feeds it and judges the answers.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::io::BufRead;
use std::sync::Arc;
use std::time::Instant;

use constraint::Grammars;
use messages::Constraint;
use ops::constraint::Grammar;
use serde_json::{Value, json};
use tokenizer::Tokenizer;

mod vocabulary;

const WALKS: u64 = 8;
const STEPS_MAX: u32 = 300;
/// From here on a walk looks for its end.
const ENDING_FROM: u32 = 40;
/// What ends objects and lists; then the shortest values.
const ENDINGS: [&str; 8] = ["}", "]", "0", "null", "true", "\"", ":", ","];
/// What ends a text, or goes on where that is too short.
const TEXT_ENDINGS: [&str; 3] = ["\"", "a", "0"];

struct Walks<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of [`ENDINGS`] and [`TEXT_ENDINGS`].
    endings: [Vec<u32>; 2],
    mask_ns: Vec<u64>,
}

impl Walks<'_> {
    /// One answer; `None`: it has no end within bounds.
    fn walk(&mut self, grammar: &dyn Grammar, seed: u64) -> Option<String> {
        let mut at = grammar.matcher();
        let mut bytes = Vec::new();
        for step in 0..STEPS_MAX {
            let started = Instant::now();
            let words = at.allowed().unwrap().to_vec();
            self.mask_ns.push(started.elapsed().as_nanos() as u64);
            let is_allowed = |token: u32| words[token as usize / 32] >> (token % 32) & 1 == 1;
            let count = self.tokenizer.vocabulary_size() as u32;
            let allowed: Vec<u32> = (0..count).filter(|&token| is_allowed(token)).collect();
            let ends = self.tokenizer.end_of_generation_ids();
            let draw = ops::sample_rows::uniform(seed, step);
            let may_end = ends.iter().any(|&end| is_allowed(end));
            if may_end && (step >= ENDING_FROM || draw < 0.3 || allowed.len() <= ends.len()) {
                return Some(String::from_utf8(bytes).unwrap());
            }
            let endings = &self.endings[usize::from(is_in_text(&bytes))];
            let ending = endings.iter().copied().find(|&token| is_allowed(token));
            let others: Vec<u32> =
                allowed.into_iter().filter(|token| !ends.contains(token)).collect();
            let drawn = others[(draw * others.len() as f64) as usize];
            let token = ending.filter(|_| step >= ENDING_FROM).unwrap_or(drawn);
            assert!(!self.tokenizer.is_control(token), "the mask allows {token}");
            bytes.extend_from_slice(self.tokenizer.token_bytes(token).unwrap());
            at.advance(token);
        }
        None
    }
}

/// Whether what comes next is within a string.
fn is_in_text(bytes: &[u8]) -> bool {
    let (mut is_in, mut is_escaped) = (false, false);
    for &byte in bytes {
        is_in ^= byte == b'"' && !is_escaped;
        is_escaped = is_in && byte == b'\\' && !is_escaped;
    }
    is_in
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let tokenizer = Arc::new(vocabulary::read(&path));
    let grammars = Grammars::new(Arc::clone(&tokenizer));
    grammars.compile(&Constraint::Regex("a".into())).unwrap();
    let ids = |texts: &[&str]| texts.iter().map(|text| tokenizer.token_id(text).unwrap()).collect();
    let endings = [ids(&ENDINGS), ids(&TEXT_ENDINGS)];
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let started = Instant::now();
        let compiled = grammars.compile(&Constraint::JsonSchema(line.as_str().into()));
        let compile_us = started.elapsed().as_micros() as u64;
        let result: Value = match compiled {
            Err(why) => json!({"refused": why.to_string(), "compile_us": compile_us}),
            Ok(grammar) => {
                let (endings, mask_ns) = (endings.clone(), Vec::new());
                let mut walks = Walks { tokenizer: &tokenizer, endings, mask_ns };
                let all: Vec<_> = (0..WALKS).map(|seed| walks.walk(&*grammar.0, seed)).collect();
                let open = all.iter().filter(|answer| answer.is_none()).count();
                let answers: Vec<_> = all.into_iter().flatten().collect();
                json!({"answers": answers, "open": open, "mask_ns": walks.mask_ns,
                    "compile_us": compile_us})
            }
        };
        println!("{result}");
    }
}
