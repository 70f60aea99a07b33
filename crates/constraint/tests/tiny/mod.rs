//! A vocabulary of a few tokens over all bytes.
#![allow(clippy::unwrap_used, dead_code, reason = "tests, each of which uses a part of it")]

use std::sync::Arc;

use constraint::Grammars;
use tokenizer::{TokenType, Tokenizer, Vocabulary, VocabularyKind};

/// Two tokens that end answers and one that is neither end nor text.
const CONTROL: [&str; 3] = ["</s>", "<|eot|>", "<s>"];
/// Beside the single bytes: words that cross the borders of a grammar's parts.
const WORDS: [&str; 9] = ["{\"", "\":", "\",", "tr", "true", "12", "ab", "abc", "yes"];

pub(crate) fn grammars() -> Grammars {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens: Vec<&str> = CONTROL.to_vec();
    tokens.extend(bytes.iter().map(String::as_str));
    tokens.extend(WORDS);
    let kind = |id: usize| match id {
        0..3 => TokenType::Control,
        3..259 => TokenType::Byte,
        _ => TokenType::Normal,
    };
    let vocabulary = Vocabulary {
        kind: VocabularyKind::SentencePieceBpe,
        pre_tokenizer: "",
        token_types: (0..tokens.len()).map(kind).collect(),
        scores: vec![0.0; tokens.len()],
        tokens,
        merges: vec![],
        bos: Some(2),
        eos: Some(0),
        eot: Some(1),
        unknown: None,
        pad: None,
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
    };
    Grammars::new(Arc::new(Tokenizer::new(&vocabulary).unwrap()))
}

pub(crate) fn bytes_of(token: u32) -> Vec<u8> {
    match token as usize {
        id @ 3..259 => vec![(id - 3) as u8],
        id => WORDS[id - 259].as_bytes().to_vec(),
    }
}
