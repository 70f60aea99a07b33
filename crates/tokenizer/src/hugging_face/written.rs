//! How is a GGUF vocabulary told in the files of a Hugging Face folder? Byte-level BPE has its
//! tokens, merges and patterns there, with the look ahead that ours leave out. Scores of
//! SentencePiece become a list: every way to cut a token in two, the best token first.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::patterns::with_look_ahead;
use crate::byte_level::spaced_merges;
use crate::pre_tokenizer::described;
use crate::sentence_piece::SPACE;
use crate::tokenizer::index_texts;
use crate::vocabulary::{VocabularyError, shorten};
use crate::{TokenType, Vocabulary, VocabularyKind, pre_tokenizer_names};

/// What kinds of vocabulary say in their own way.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Behind which a frame comes.
    processor: Option<Value>,
    /// Of the model.
    unknown: Option<u32>,
    is_of_bytes: bool,
    whole_pieces: bool,
    merges: Vec<Value>,
    begins: bool,
}

/// `tokenizer.json` and `tokenizer_config.json`, the latter with the model's chat template.
///
/// # Errors
/// [`VocabularyError`] when it is of another kind, or damaged.
pub fn hugging_face_files(
    vocabulary: &Vocabulary<'_>,
    chat_template: Option<&str>,
) -> Result<[Value; 2], VocabularyError> {
    let is_scored = vocabulary.kind == VocabularyKind::SentencePieceBpe;
    vocabulary.check_shape(is_scored)?;
    let parts = match vocabulary.kind {
        VocabularyKind::ByteLevelBpe => byte_level_parts(vocabulary)?,
        VocabularyKind::SentencePieceBpe => scored_parts(vocabulary),
        _ => return Err(VocabularyError::NotMerged),
    };
    let begins = vocabulary.add_bos.unwrap_or(parts.begins);
    let ends = vocabulary.add_eos.unwrap_or(false);
    let [begin, end] =
        [(begins, vocabulary.bos), (ends, vocabulary.eos)].map(|(adds, id)| id.filter(|_| adds));
    let (vocab, added) = tokens(vocabulary)?;
    let unknown = parts.unknown.map(|id| vocabulary.tokens[id as usize]);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": frame(vocabulary, parts.processor, begin, end),
        "decoder": parts.decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": is_scored, "byte_fallback": parts.is_of_bytes,
            "ignore_merges": parts.whole_pieces, "vocab": vocab, "merges": parts.merges},
    });
    Ok([tokenizer, config(vocabulary, chat_template)])
}

fn byte_level_parts(vocabulary: &Vocabulary<'_>) -> Result<Parts, VocabularyError> {
    let name = vocabulary.pre_tokenizer;
    let row = described(name).ok_or_else(|| VocabularyError::UnknownPreTokenizer {
        name: shorten(name),
        known: pre_tokenizer_names().collect::<Vec<_>>().join(", "),
    })?;
    let split = |&(pattern, gives_back): &(&str, _)| {
        json!({"type": "Split", "pattern": {"Regex": with_look_ahead(pattern, gives_back)},
            "behavior": "Isolated", "invert": false})
    };
    let splits: Vec<Value> = row.steps.iter().map(split).chain([byte_level(false)]).collect();
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for sides in spaced_merges(&vocabulary.merges) {
        let (left, right) = sides?;
        merges.push(json!([left, right]));
    }
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": splits}),
        decoder: byte_level(true),
        processor: Some(byte_level(true)),
        unknown: None,
        is_of_bytes: false,
        whole_pieces: row.whole_pieces,
        merges,
        begins: row.adds_bos,
    })
}

fn byte_level(decodes: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": decodes})
}

fn scored_parts(vocabulary: &Vocabulary<'_>) -> Parts {
    let has_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let replace = |from: &str, to: &str| {
        let pattern = json!({"String": from});
        json!({"type": "Replace", "pattern": pattern, "content": to})
    };
    let space = SPACE.to_string();
    let mut normalizers = vec![replace(" ", &space)];
    let mut decoders =
        vec![replace(&space, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if has_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": space}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let is_byte = |id: usize| vocabulary.token_type(id) == TokenType::Byte;
    Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        processor: None,
        unknown: vocabulary.unknown,
        is_of_bytes: (0..vocabulary.tokens.len()).any(is_byte),
        whole_pieces: false,
        merges: merges_of_scores(vocabulary),
        begins: true,
    }
}

fn merges_of_scores(vocabulary: &Vocabulary<'_>) -> Vec<Value> {
    let is_text = |id: usize| vocabulary.token_type(id) == TokenType::Normal;
    let texts = vocabulary.tokens.iter().enumerate().filter(|(id, _)| is_text(*id));
    let ids: HashMap<&str, usize> = texts.map(|(id, text)| (*text, id)).collect();
    let mut cuts = Vec::new();
    for (text, &whole) in &ids {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&left_id), Some(_)) = (ids.get(left), ids.get(right)) {
                cuts.push((whole, left_id, left, right));
            }
        }
    }
    cuts.sort_unstable_by(|one, other| {
        let [first, second] = [one, other].map(|cut| vocabulary.scores[cut.0]);
        // Scores are numbers: `check_shape` saw to that.
        let best = second.partial_cmp(&first).unwrap_or(Ordering::Equal);
        best.then((one.0, one.1).cmp(&(other.0, other.1)))
    });
    cuts.into_iter().map(|(.., left, right)| json!([left, right])).collect()
}

/// All tokens by text, and those that are matched before anything merges: the `tokenizers` package
/// numbers anew what is not in both.
fn tokens(
    vocabulary: &Vocabulary<'_>,
) -> Result<(Map<String, Value>, Vec<Value>), VocabularyError> {
    index_texts(vocabulary)?;
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, text) in vocabulary.tokens.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        vocab.insert((*text).to_owned(), json!(id));
        let kind = vocabulary.token_type(id);
        if matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unknown) {
            let special = kind != TokenType::UserDefined;
            added.push(json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special}));
        }
    }
    Ok((vocab, added))
}

/// What a prompt begins and ends with.
fn frame(
    vocabulary: &Vocabulary<'_>,
    processor: Option<Value>,
    begin: Option<u32>,
    end: Option<u32>,
) -> Value {
    if begin.is_none() && end.is_none() {
        return processor.unwrap_or(Value::Null);
    }
    let text = |id: u32| vocabulary.tokens[id as usize];
    let special = |id: u32| json!({"SpecialToken": {"id": text(id), "type_id": 0}});
    let framed = |sequence: &str| -> Vec<Value> {
        let sequence = json!({"Sequence": {"id": sequence, "type_id": 0}});
        begin.map(special).into_iter().chain([sequence]).chain(end.map(special)).collect()
    };
    let named =
        |id: u32| (text(id).to_owned(), json!({"id": text(id), "ids": [id], "tokens": [text(id)]}));
    let known: Map<String, Value> = begin.into_iter().chain(end).map(named).collect();
    let pair: Vec<Value> = [framed("A"), framed("B")].concat();
    let template = json!({"type": "TemplateProcessing", "single": framed("A"), "pair": pair,
        "special_tokens": known});
    match processor {
        Some(processor) => json!({"type": "Sequence", "processors": [processor, template]}),
        None => template,
    }
}

fn config(vocabulary: &Vocabulary<'_>, chat_template: Option<&str>) -> Value {
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    for (role, id) in [
        ("bos_token", vocabulary.bos),
        ("eos_token", vocabulary.eos),
        ("unk_token", vocabulary.unknown),
        ("pad_token", vocabulary.pad),
    ] {
        if let Some(id) = id {
            config.insert(role.to_owned(), json!(vocabulary.tokens[id as usize]));
        }
    }
    if let Some(template) = chat_template {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Value::Object(config)
}
