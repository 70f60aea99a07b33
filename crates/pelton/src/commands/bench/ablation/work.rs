//! What is served in every turn? People who ask at once: chats of several turns that begin alike,
//! the same chats again, long documents, short questions, texts that repeat themselves, texts whose
//! tokens are counted; and before all that one question to a server that has just started.
//!
//! Each person asks when the answer before is there, as people do, so the work is the same however
//! fast it is served.

use std::time::Instant;

use anyhow::Result;
use engine::{Engine, Service};
use messages::SamplingParams;
use serde_json::json;

use super::served::{Asking, Served, Tally};
use crate::commands::bench::BenchArguments;
use crate::commands::bench::measuring::peak_memory_bytes;
use crate::commands::bench::report::statistics_json;
use crate::printing::say;

/// Words of the instructions that all chats begin with, and of one question.
const INSTRUCTIONS_WORDS: f64 = 300.0;
const QUESTION_WORDS: f64 = 24.0;
const CHAT_ANSWER_TOKENS: f64 = 32.0;
const TURNS: usize = 3;
const CHATS: u64 = 4;
const DOCUMENT_WORDS: f64 = 1000.0;
const DOCUMENTS: u64 = 2;
const DOCUMENT_ANSWER_TOKENS: f64 = 16.0;
const PARAGRAPH_WORDS: f64 = 120.0;
const PARAGRAPH_ANSWER_TOKENS: f64 = 96.0;
const LONG_TEXTS: u64 = 4;
/// Of the shortest that is shared.
const LONG_TEXT_SHARES: f64 = 4.0;
const SHORT_QUESTIONS: u64 = 8;
const SHORT_ANSWER_TOKENS: f64 = 32.0;

/// Room in the cache for what is served at once, and not for all that was: 5 chats of 650 tokens
/// with their answers, a document of 1,500, and the small ones.
pub(super) fn pool_tokens(scale: f64) -> u64 {
    // A short context still has a question and its answer.
    (6144.0 * scale).max(512.0) as u64
}

/// Serves the work in this process and prints the figures.
pub(in crate::commands::bench) fn run(arguments: &BenchArguments) -> Result<()> {
    let start = Instant::now();
    let config = arguments.model.config()?;
    let options = arguments.model.engine_options(&config)?;
    let engine = Engine::load(&options)?;
    let loaded = start.elapsed();
    let work =
        Work { scale: arguments.scale(), shared_bytes_min: 2 * config.tokenizer.min_chunk_size };
    let mut first = Asking::new(&engine)?;
    first.ask(&text(1, 16), work.greedy(1.0))?;
    let first_token = start.elapsed();
    let served = work.serve(&engine)?;
    let status = engine.status();
    let figures = json!({
        "load_seconds": loaded.as_secs_f64(),
        "start_seconds": first_token.as_secs_f64(),
        "tokens_per_second": served.tokens_per_second(),
        "first_token_ms": served.first_token_ms_mean(),
        "first_token_ms_p99": served.first_token_ms_p99(),
        "gap_ms_p99": served.gap_ms_p99(),
        "seconds": served.seconds,
        "answers": served.answers(),
        "tokens": served.tokens(),
        "peak_memory_bytes": peak_memory_bytes("self"),
        "statistics": statistics_json(&status.statistics()),
    });
    say!("{figures}");
    Ok(())
}

struct Work {
    scale: f64,
    /// A text as long as this is shared among threads when it is encoded.
    shared_bytes_min: usize,
}

impl Work {
    fn serve(&self, engine: &Engine) -> Result<Served> {
        let start = Instant::now();
        let tallies = std::thread::scope(|scope| {
            let mut people = Vec::new();
            for chat in 0..CHATS {
                people.push(scope.spawn(move || self.chat(engine, chat, 1)));
            }
            // The same at the same time, and the same once more when it is over.
            people.push(scope.spawn(move || self.chat(engine, 0, 1)));
            people.push(scope.spawn(move || self.chat(engine, CHATS, 2)));
            people.push(scope.spawn(move || self.documents(engine)));
            people.push(scope.spawn(move || self.paragraphs(engine)));
            people.push(scope.spawn(move || self.short_questions(engine)));
            people.push(scope.spawn(move || self.long_texts(engine)));
            let ended = people.into_iter().map(|person| person.join());
            ended.map(|tally| tally.unwrap_or_else(|_| anyhow::bail!("an asker broke"))).collect()
        });
        let mut tallies: Vec<Tally> = Result::from_iter::<Vec<_>>(tallies)?;
        // Chats that rested while others filled the cache go on.
        let again = std::thread::scope(|scope| {
            let rested: Vec<_> =
                (0..CHATS).map(|chat| scope.spawn(move || self.last_turn(engine, chat))).collect();
            let ended = rested.into_iter().map(|person| person.join());
            ended
                .map(|tally| tally.unwrap_or_else(|_| anyhow::bail!("an asker broke")))
                .collect::<Result<Vec<_>>>()
        });
        tallies.extend(again?);
        Ok(Served { tallies, seconds: start.elapsed().as_secs_f64() })
    }

    fn words(&self, words: f64) -> usize {
        ((words * self.scale) as usize).max(4)
    }

    fn greedy(&self, tokens: f64) -> SamplingParams {
        SamplingParams {
            max_tokens: Some(((tokens * self.scale) as u32).max(2)),
            ignore_eos: true,
            ..SamplingParams::greedy()
        }
    }

    /// A chat of several turns, as often as asked; what was said before is in each prompt.
    fn chat(&self, engine: &Engine, chat: u64, times: usize) -> Result<Tally> {
        let mut asking = Asking::new(engine)?;
        for _ in 0..times {
            let mut said = text(7, self.words(INSTRUCTIONS_WORDS));
            for turn in 0..TURNS as u64 {
                self.one_turn(&mut asking, &mut said, chat, turn)?;
            }
        }
        Ok(asking.tally)
    }

    /// The turn after those of `chat`, whose answers are asked for anew where nobody kept them.
    fn last_turn(&self, engine: &Engine, chat: u64) -> Result<Tally> {
        let mut asking = Asking::new(engine)?;
        let mut said = text(7, self.words(INSTRUCTIONS_WORDS));
        for turn in 0..TURNS as u64 {
            said.push_str(&text(1000 + 10 * chat + turn, self.words(QUESTION_WORDS)));
        }
        self.one_turn(&mut asking, &mut said, chat, TURNS as u64)?;
        Ok(asking.tally)
    }

    fn one_turn(
        &self,
        asking: &mut Asking<'_>,
        said: &mut String,
        chat: u64,
        turn: u64,
    ) -> Result<()> {
        said.push_str(&text(1000 + 10 * chat + turn, self.words(QUESTION_WORDS)));
        let answer = asking.ask(said, self.greedy(CHAT_ANSWER_TOKENS))?;
        said.push_str(&answer);
        Ok(())
    }

    fn documents(&self, engine: &Engine) -> Result<Tally> {
        let mut asking = Asking::new(engine)?;
        for document in 0..DOCUMENTS {
            let text = text(2000 + document, self.words(DOCUMENT_WORDS));
            asking.ask(&text, self.greedy(DOCUMENT_ANSWER_TOKENS))?;
        }
        Ok(asking.tally)
    }

    /// A paragraph twice and its beginning a third time: a model that reads goes on with it.
    fn paragraphs(&self, engine: &Engine) -> Result<Tally> {
        let mut asking = Asking::new(engine)?;
        for paragraph in 0..2 {
            let whole = text(3000 + paragraph, self.words(PARAGRAPH_WORDS));
            let beginning: Vec<&str> = whole.split_inclusive(' ').take(8).collect();
            let prompt = format!("{whole}\n\n{whole}\n\n{}", beginning.concat().trim_end());
            asking.ask(&prompt, self.greedy(PARAGRAPH_ANSWER_TOKENS))?;
        }
        Ok(asking.tally)
    }

    /// Whose tokens are counted only, for no context has room for them: of what people ask for,
    /// the only texts long enough for several threads to encode.
    fn long_texts(&self, engine: &Engine) -> Result<Tally> {
        let mut asking = Asking::new(engine)?;
        for number in 0..LONG_TEXTS {
            let bytes = (self.shared_bytes_min as f64 * LONG_TEXT_SHARES * self.scale) as usize;
            // Words have fewer than nine bytes with the space behind them, and more than four.
            let mut long = text(5000 + number, bytes.max(self.shared_bytes_min) / 4);
            long.truncate(bytes.max(self.shared_bytes_min));
            asking.count(&long)?;
        }
        Ok(asking.tally)
    }

    /// Drawn, not the likeliest: each with a seed of its own.
    fn short_questions(&self, engine: &Engine) -> Result<Tally> {
        let mut asking = Asking::new(engine)?;
        for question in 0..SHORT_QUESTIONS {
            let params = SamplingParams {
                temperature: 0.8,
                seed: Some(question),
                ..self.greedy(SHORT_ANSWER_TOKENS)
            };
            asking.ask(&text(4000 + question, 8), params)?;
        }
        Ok(asking.tally)
    }
}

/// Words that every tokenizer of English has.
const WORDS: [&str; 48] = [
    "the",
    "river",
    "carries",
    "small",
    "stones",
    "from",
    "mountains",
    "to",
    "a",
    "wide",
    "plain",
    "where",
    "people",
    "built",
    "houses",
    "and",
    "planted",
    "trees",
    "long",
    "before",
    "anyone",
    "wrote",
    "down",
    "their",
    "names",
    "each",
    "spring",
    "water",
    "rises",
    "over",
    "fields",
    "leaving",
    "dark",
    "soil",
    "that",
    "feeds",
    "wheat",
    "for",
    "many",
    "years",
    "after",
    "which",
    "farmers",
    "move",
    "on",
    "with",
    "animals",
    "again",
];

/// So many words, the same for the same number.
fn text(number: u64, words: usize) -> String {
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut text = String::new();
    for index in 0..words {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = WORDS[((mixed ^ (mixed >> 31)) % WORDS.len() as u64) as usize];
        text.push_str(word);
        text.push_str(if index % 12 == 11 { ". " } else { " " });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_for_the_same_number_only() {
        assert_eq!(text(1, 20), text(1, 20));
        assert_ne!(text(1, 20), text(2, 20));
        assert_eq!(text(3, 20).split_whitespace().count(), 20);
        assert!(text(1, 30).starts_with(&text(1, 20)));
    }
}
