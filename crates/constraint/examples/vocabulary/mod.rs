//! The vocabulary of a byte-level GGUF file, for measurements.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use tokenizer::{TokenType, Tokenizer, Vocabulary, VocabularyKind};
use weights::{StringArray, WeightFile};

fn strings(file: &WeightFile, key: &str) -> Vec<String> {
    let array: &StringArray = file.metadata().required(key).unwrap();
    array.iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
}

pub(crate) fn read(path: &str) -> Tokenizer {
    let file = weights::open(std::path::Path::new(path)).unwrap();
    let tokens = strings(&file, "tokenizer.ggml.tokens");
    let merges = strings(&file, "tokenizer.ggml.merges");
    let types: Vec<i64> = file.metadata().required("tokenizer.ggml.token_type").unwrap();
    let eos: u64 = file.metadata().required("tokenizer.ggml.eos_token_id").unwrap();
    let vocabulary = Vocabulary {
        kind: VocabularyKind::ByteLevelBpe,
        pre_tokenizer: "smollm",
        tokens: tokens.iter().map(String::as_str).collect(),
        token_types: types.iter().map(|&kind| TokenType::from_number(kind).unwrap()).collect(),
        scores: vec![],
        merges: merges.iter().map(String::as_str).collect(),
        bos: None,
        eos: u32::try_from(eos).ok(),
        eot: None,
        unknown: None,
        pad: None,
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
    };
    Tokenizer::new(&vocabulary).unwrap()
}
