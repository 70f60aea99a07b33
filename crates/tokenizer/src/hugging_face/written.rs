//! How is a GGUF vocabulary told in the files of a Hugging Face folder? Byte-level BPE only: its
//! tokens, merges and patterns are the same there, with the look ahead that ours leave out.

use serde_json::{Map, Value, json};

use super::patterns::with_look_ahead;
use crate::byte_level::spaced_merges;
use crate::pre_tokenizer::described;
use crate::tokenizer::index_texts;
use crate::vocabulary::{VocabularyError, shorten};
use crate::{TokenType, Vocabulary, VocabularyKind, pre_tokenizer_names};

/// `tokenizer.json` and `tokenizer_config.json`, the latter with the model's chat template.
///
/// # Errors
/// [`VocabularyError`] when it is of another kind, or damaged.
pub fn hugging_face_files(
    vocabulary: &Vocabulary<'_>,
    chat_template: Option<&str>,
) -> Result<[Value; 2], VocabularyError> {
    if vocabulary.kind != VocabularyKind::ByteLevelBpe {
        return Err(VocabularyError::NotByteLevel);
    }
    vocabulary.check_shape(false)?;
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
    let begins = vocabulary.add_bos.unwrap_or(row.adds_bos);
    let ends = vocabulary.add_eos.unwrap_or(false);
    let [begin, end] =
        [(begins, vocabulary.bos), (ends, vocabulary.eos)].map(|(adds, id)| id.filter(|_| adds));
    let (vocab, added) = tokens(vocabulary)?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": frame(vocabulary, begin, end),
        "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": row.whole_pieces, "vocab": vocab,
            "merges": merges},
    });
    Ok([tokenizer, config(vocabulary, chat_template)])
}

fn byte_level(decodes: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": decodes})
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
fn frame(vocabulary: &Vocabulary<'_>, begin: Option<u32>, end: Option<u32>) -> Value {
    if begin.is_none() && end.is_none() {
        return byte_level(true);
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
    json!({"type": "Sequence", "processors": [byte_level(true), template]})
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
