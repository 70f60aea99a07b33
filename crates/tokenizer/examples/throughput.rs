//! How fast is text encoded, by one thread and by several?
//!
//! `cargo run --release -p tokenizer --example throughput MODEL.gguf TEXT [THREADS] [IDS]` prints
//! megabytes a second of the tokenizer inside a model file, control tokens counting: alternating,
//! the median and the best of the rounds. `IDS` is a file of little-endian u32 that the ids are
//! compared with, of another tokenizer.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example")]

use std::time::Instant;

use tokenizer::{EncodeOptions, EncodeSettings, TokenType, Tokenizer, Vocabulary, VocabularyKind};
use weights::{Array, StringArray, Value, WeightFile};

const ROUNDS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, rest @ ..] = arguments.as_slice() else {
        println!("usage: throughput MODEL.gguf TEXT [THREADS] [IDS]");
        return;
    };
    let threads = rest.first().map_or(2, |threads| threads.parse().unwrap());
    let file = weights::open(model).unwrap();
    let text = std::fs::read_to_string(text).unwrap();
    let start = Instant::now();
    let one = read(&file);
    println!("tokenizer of {} tokens made in {:?}", one.vocabulary_size(), start.elapsed());
    let plain = EncodeSettings { cache_bytes: 0, ..EncodeSettings::default() };
    let several = EncodeSettings { threads, ..EncodeSettings::default() };
    let cases = [
        ("1 thread, nothing remembered".to_owned(), read(&file).with_settings(plain)),
        ("1 thread".to_owned(), one),
        (format!("{threads} threads"), read(&file).with_settings(several)),
    ];
    let expected = cases[0].1.encode(&text, EncodeOptions::TEMPLATE).unwrap();
    if let Some(path) = rest.get(1) {
        let bytes = std::fs::read(path).unwrap();
        let ids: Vec<u32> =
            bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let differs = ids.iter().zip(&expected).position(|(theirs, ours)| theirs != ours);
        match differs {
            None if ids.len() == expected.len() => {
                println!("{} ids, equal to those of {path}", ids.len());
            }
            _ => println!("{} ids, not the {} of {path}: {differs:?}", expected.len(), ids.len()),
        }
    }
    let mut rates = cases.each_ref().map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for ((_, tokenizer), rates) in cases.iter().zip(&mut rates) {
            let start = Instant::now();
            let ids = tokenizer.encode(&text, EncodeOptions::TEMPLATE).unwrap();
            rates.push(text.len() as f64 / 1e6 / start.elapsed().as_secs_f64());
            assert_eq!(ids, expected);
        }
    }
    for ((name, tokenizer), mut rates) in cases.iter().zip(rates) {
        rates.sort_by(f64::total_cmp);
        let (median, best) = (rates[ROUNDS / 2], rates[ROUNDS - 1]);
        println!("{name}: {median:.1} MB/s median, {best:.1} best; {:?}", tokenizer.counts());
    }
}

fn strings<'a>(file: &'a WeightFile, key: &str) -> Vec<&'a str> {
    let array: &StringArray = file.metadata().required(key).unwrap();
    (0..array.len()).map(|index| array.get_str(index).unwrap()).collect()
}

fn scores(file: &WeightFile) -> Vec<f32> {
    match file.metadata().get("tokenizer.ggml.scores") {
        Some(Value::Array(array)) => match array.as_ref() {
            Array::F32(scores) => scores.to_vec(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn read(file: &WeightFile) -> Tokenizer {
    let metadata = file.metadata();
    let is_sentence_piece = metadata.required::<&str>("tokenizer.ggml.model").unwrap() == "llama";
    let types: Vec<i64> = metadata.required("tokenizer.ggml.token_type").unwrap();
    let vocabulary = Vocabulary {
        kind: if is_sentence_piece {
            VocabularyKind::SentencePieceBpe
        } else {
            VocabularyKind::ByteLevelBpe
        },
        pre_tokenizer: metadata.optional("tokenizer.ggml.pre").unwrap().unwrap_or(""),
        tokens: strings(file, "tokenizer.ggml.tokens"),
        token_types: types.iter().map(|kind| TokenType::from_number(*kind).unwrap()).collect(),
        scores: if is_sentence_piece { scores(file) } else { Vec::new() },
        merges: if is_sentence_piece { Vec::new() } else { strings(file, "tokenizer.ggml.merges") },
        bos: None,
        eos: None,
        eot: None,
        unknown: Some(0),
        pad: None,
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
    };
    Tokenizer::new(&vocabulary).unwrap()
}
