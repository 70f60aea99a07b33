//! How long do compiling, starting and masks take, for the vocabulary of a byte-level GGUF file?
//!
//! `cargo run --release -p constraint --example mask_times -- MODEL.gguf`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use constraint::Grammars;
use messages::Constraint;
use serde_json::json;

mod vocabulary;

const WALKS: u64 = 20;
const STEPS_MAX: u32 = 200;

fn part(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let tokenizer = Arc::new(vocabulary::read(&path));
    println!("{} tokens", tokenizer.vocabulary_size());
    let grammars = Grammars::new(tokenizer);
    let person = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3}
        }
    });
    let people = json!({"type": "array", "items": person, "minItems": 20});
    let schema = |value: serde_json::Value| Constraint::JsonSchema(value.to_string().into());
    for (name, constraint) in [
        ("first, with the vocabulary", Constraint::Regex("a".into())),
        ("JSON object", Constraint::JsonObject),
        ("schema of a person", schema(person)),
        ("schema of 20 people", schema(people)),
        ("schema of a text", schema(json!({"type": "string"}))),
        ("regex of a date", Constraint::Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}".into())),
        ("choice of 3", Constraint::Choice(["yes", "no", "maybe"].map(str::to_owned).into())),
    ] {
        let started = Instant::now();
        let grammar = grammars.compile(&constraint).unwrap();
        let compiled = started.elapsed();
        let (mut starts, mut masks, mut advances) = (Vec::new(), Vec::new(), Vec::new());
        for seed in 0..WALKS {
            let started = Instant::now();
            let mut at = grammar.0.matcher();
            starts.push(started.elapsed());
            for step in 0..STEPS_MAX {
                let started = Instant::now();
                let words = at.allowed().unwrap().to_vec();
                masks.push(started.elapsed());
                let tokens: Vec<u32> = (0..words.len() as u32 * 32)
                    .filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1)
                    .collect();
                let place = ops::sample_rows::uniform(seed, step) * tokens.len() as f64;
                let started = Instant::now();
                at.advance(tokens[place as usize]);
                advances.push(started.elapsed());
            }
        }
        for times in [&mut starts, &mut masks, &mut advances] {
            times.sort_unstable();
        }
        println!(
            "{name}: compiled in {compiled:?}, start {:?}, mask p50 {:?} p99 {:?} max {:?}, \
             advance p50 {:?} p99 {:?}",
            part(&starts, 0.5),
            part(&masks, 0.5),
            part(&masks, 0.99),
            part(&masks, 1.0),
            part(&advances, 0.5),
            part(&advances, 0.99)
        );
    }
}
