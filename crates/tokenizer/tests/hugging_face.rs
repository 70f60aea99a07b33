//! Does a `tokenizer.json` give the ids that the `tokenizers` package gives, kind by kind, and is
//! a damaged one refused by name?
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod fixtures;

use fixtures::{corpus, ids, read, vocabulary};
use serde_json::{Map, Value, json};
use tokenizer::{
    DecodeOptions, EncodeOptions, HuggingFaceError, HuggingFaceFiles, SpecialTokens, TokenType,
    Tokenizer, Vocabulary, VocabularyKind, gguf_scores, hugging_face_files,
};

/// The `vocab` of a model from texts in id order.
fn vocab(tokens: &Value) -> Value {
    let entries = tokens.as_array().unwrap().iter().enumerate();
    Value::Object(entries.map(|(id, t)| (t.as_str().unwrap().to_owned(), id.into())).collect())
}

/// A case with its vocabulary; merges as lists, or as texts with a space.
fn document(case: &Value, vocabulary: &Value, spaced: bool) -> Value {
    let mut document = case["tokenizer"].clone();
    let own: Vec<&Value> = vocabulary["tokens"].as_array().unwrap().iter().collect();
    let added = |text: &Value| {
        let mut added = document["added_tokens"].as_array().unwrap().iter();
        added.any(|token| token["content"] == *text)
    };
    // The two at the end of the byte-level vocabulary are added ones, or none at all.
    let kept = own.iter().filter(|t| !t.as_str().unwrap().ends_with("tool_call>") || added(t));
    let tokens: Vec<Value> = kept.map(|token| (*token).clone()).collect();
    document["model"]["vocab"] = vocab(&tokens.into());
    let merges = vocabulary["merges"].as_array().unwrap().iter();
    document["model"]["merges"] = merges
        .map(|merge| match (merge.as_str(), spaced) {
            (Some(text), false) => text.split(' ').collect::<Value>(),
            (None, true) => {
                let sides: Vec<&str> =
                    merge.as_array().unwrap().iter().map(|side| side.as_str().unwrap()).collect();
                sides.join(" ").into()
            }
            _ => merge.clone(),
        })
        .collect();
    document
}

fn load(document: &Value) -> Result<Tokenizer, HuggingFaceError> {
    let bytes = serde_json::to_vec(document).unwrap();
    let files = HuggingFaceFiles { tokenizer: &bytes, ..HuggingFaceFiles::default() };
    Ok(Tokenizer::from_hugging_face(&files)?.tokenizer)
}

fn check(golden: &Map<String, Value>, vocabulary: &Value, at_text_start: bool) -> usize {
    let corpus = corpus();
    let base = golden["base"].as_array().unwrap();
    let mut wrong = Vec::new();
    let mut cases = 0;
    for (name, case) in golden.iter().filter(|(_, case)| case.get("tokenizer").is_some()) {
        cases += 1;
        let tokenizer = load(&document(case, vocabulary, cases % 2 == 0)).unwrap();
        for (index, text) in corpus.iter().enumerate() {
            let own = case["differences"].get(index.to_string());
            let expected = ids(own.unwrap_or(&base[index]));
            let found = tokenizer.encode(text, EncodeOptions::TEMPLATE).unwrap();
            if found != expected {
                wrong.push(format!("{name} {text:?}: {found:?}, not {expected:?}"));
            }
            assert!(tokenizer.tokens_min(text.len()) <= found.len(), "{name} {text:?}");
            let decoded = case["decoded"].get(index.to_string());
            let expected_text = decoded.map_or(text.as_str(), |text| text.as_str().unwrap());
            let options = DecodeOptions { skip_control: true, at_text_start };
            let known = !expected.iter().any(|id| tokenizer.is_control(*id));
            let own = tokenizer.decode(&expected, options);
            if known && own != expected_text {
                wrong.push(format!("{name} decodes to {own:?}, not {expected_text:?}"));
            }
        }
        let framed = EncodeOptions {
            special: SpecialTokens::Parse,
            add_bos: tokenizer.adds_bos(),
            add_eos: tokenizer.adds_eos(),
        };
        assert_eq!(tokenizer.encode("a", framed).unwrap(), ids(&case["framed"]), "{name}");
    }
    let shown: Vec<&String> = wrong.iter().take(40).collect();
    assert!(wrong.is_empty(), "{} differ:\n{shown:#?}", wrong.len());
    cases
}

#[test]
fn byte_level_ids_are_those_of_the_package() {
    let golden = read("tokenizer_json_byte_level.json");
    let vocabulary = read("byte_level_vocabulary.json");
    assert_eq!(check(golden.as_object().unwrap(), &vocabulary, false), 14);
}

#[test]
fn ids_of_characters_are_those_of_the_package() {
    let golden = read("tokenizer_json_characters.json");
    assert_eq!(check(golden.as_object().unwrap(), &golden, true), 9);
}

/// The same tokens and merges as a GGUF file of Gemma 4 has them: in lists, and runs of line ends
/// as ordinary text.
#[test]
fn ids_of_ranked_merges_in_gguf_are_those_of_the_package() {
    let golden = read("tokenizer_json_characters.json");
    let case = &golden["gemma"];
    let text = |value: &'_ Value| value.as_str().unwrap().to_owned();
    let mut tokens: Vec<String> = golden["tokens"].as_array().unwrap().iter().map(text).collect();
    for token in case["tokenizer"]["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        tokens.resize(tokens.len().max(id + 1), String::new());
        tokens[id] = text(&token["content"]);
    }
    let merges: Vec<String> = golden["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sides| format!("{} {}", text(&sides[0]), text(&sides[1])))
        .collect();
    let kind = |token: &String| match token.as_str() {
        "<unk>" => TokenType::Unknown,
        "<s>" | "</s>" => TokenType::Control,
        byte if byte.starts_with("<0x") => TokenType::Byte,
        _ => TokenType::Normal,
    };
    let vocabulary = Vocabulary {
        kind: VocabularyKind::MetaspaceBpe,
        pre_tokenizer: "",
        token_types: tokens.iter().map(kind).collect(),
        scores: vec![],
        merges: merges.iter().map(String::as_str).collect(),
        bos: Some(1),
        eos: Some(2),
        eot: None,
        unknown: Some(0),
        pad: None,
        add_bos: Some(false),
        add_eos: None,
        add_space_prefix: Some(false),
        tokens: tokens.iter().map(String::as_str).collect(),
    };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    assert!(tokenizer.adds_bos());
    let base = golden["base"].as_array().unwrap();
    let mut same = 0;
    for (index, text) in corpus().iter().enumerate() {
        let expected = ids(case["differences"].get(index.to_string()).unwrap_or(&base[index]));
        let found = tokenizer.encode(text, EncodeOptions::TEMPLATE).unwrap();
        if !text.contains("\n\n") {
            assert_eq!(found, expected, "{text:?}");
            same += 1;
        }
        let options = DecodeOptions { skip_control: true, at_text_start: true };
        if !expected.iter().any(|id| tokenizer.is_control(*id)) {
            let decoded = case["decoded"].get(index.to_string());
            let expected_text = decoded.map_or(text.as_str(), |text| text.as_str().unwrap());
            assert_eq!(tokenizer.decode(&found, options), expected_text);
        }
    }
    assert!(same > 100, "{same} texts");
    let runs = |text| tokenizer.encode(text, EncodeOptions::USER_TEXT).unwrap();
    let id_of = |text: &str| tokens.iter().position(|token| token == text).unwrap() as u32;
    let [two, three, four] = ["\n\n", "\n\n\n", "\n\n\n\n"].map(id_of);
    let a = id_of("a");
    assert_eq!(runs("a\n\na"), [a, two, a]);
    assert_eq!(runs("a\n\n\n\n\n\n\na"), [a, four, three, a], "the longest first");
    assert_eq!(runs("a\n\n\n\n\n\na"), [a, four, two, a]);
}

#[test]
fn text_that_reads_like_a_control_token_stays_text_where_asked() {
    let golden = read("tokenizer_json_byte_level.json");
    let vocabulary = read("byte_level_vocabulary.json");
    let tokenizer = load(&document(&golden["qwen-2"], &vocabulary, false)).unwrap();
    let text = "<|im_start|>user\n<|im_end|>";
    let found = tokenizer.encode(text, EncodeOptions::USER_TEXT).unwrap();
    assert!(found.iter().all(|id| !tokenizer.is_control(*id)));
    assert_eq!(tokenizer.decode(&found, DecodeOptions::default()), text);
    let parsed = tokenizer.encode(text, EncodeOptions::TEMPLATE).unwrap();
    assert!(tokenizer.is_control(parsed[0]) && parsed.len() < found.len());
    assert!(tokenizer.is_end_of_generation(*parsed.last().unwrap()));
}

/// Written as the files of a folder and read again, a vocabulary of a GGUF file gives the same ids.
#[test]
fn what_is_written_of_a_gguf_vocabulary_reads_the_same() {
    let shared = read("byte_level_vocabulary.json");
    let texts = |name: &str| -> Vec<String> {
        let list = shared[name].as_array().unwrap().iter();
        list.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let (tokens, merges) = (texts("tokens"), texts("merges"));
    let id_of = |text: &str| tokens.iter().position(|token| token == text).map(|id| id as u32);
    let control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"];
    let kind = |token: &String| match token.as_str() {
        text if control.contains(&text) => TokenType::Control,
        text if text.ends_with("tool_call>") => TokenType::UserDefined,
        _ => TokenType::Normal,
    };
    for (name, adds) in [
        ("gpt-2", false),
        ("smollm", true),
        ("llama-bpe", true),
        ("qwen2", false),
        ("qwen35", false),
        ("gpt-4o", false),
        ("tekken", true),
        ("deepseek-v3", true),
        ("deepseek-coder", true),
        ("kimi-k2", false),
    ] {
        let vocabulary = Vocabulary {
            kind: VocabularyKind::ByteLevelBpe,
            pre_tokenizer: name,
            tokens: tokens.iter().map(String::as_str).collect(),
            token_types: tokens.iter().map(kind).collect(),
            scores: vec![],
            merges: merges.iter().map(String::as_str).collect(),
            bos: id_of("<s>").or(id_of("<|im_start|>")),
            eos: id_of("</s>").or(id_of("<|im_end|>")),
            eot: None,
            unknown: None,
            pad: None,
            add_bos: Some(adds),
            add_eos: Some(adds && name == "smollm"),
            add_space_prefix: None,
        };
        let files = hugging_face_files(&vocabulary, Some("T")).unwrap();
        for (id, text) in tokens.iter().enumerate() {
            assert_eq!(files[0]["model"]["vocab"][text], id, "the package numbers others anew");
        }
        let [tokenizer, config] = files.map(|file| file.to_string());
        let files = HuggingFaceFiles {
            tokenizer: tokenizer.as_bytes(),
            tokenizer_config: Some(config.as_bytes()),
            ..HuggingFaceFiles::default()
        };
        let written = Tokenizer::from_hugging_face(&files).unwrap();
        assert_eq!(written.chat_templates.choose(false), Some("T"));
        let (ours, written) = (Tokenizer::new(&vocabulary).unwrap(), written.tokenizer);
        assert_eq!(ours.special_ids(), written.special_ids(), "{name}");
        for text in corpus() {
            for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
                let framed = |tokenizer: &Tokenizer| EncodeOptions {
                    special,
                    add_bos: tokenizer.adds_bos(),
                    add_eos: tokenizer.adds_eos(),
                };
                let expected = ours.encode(&text, framed(&ours)).unwrap();
                let found = written.encode(&text, framed(&written)).unwrap();
                assert_eq!(found, expected, "{name}, {text:?}");
            }
        }
    }
}

#[test]
fn scores_of_sentence_piece_become_merges_and_scores_again() {
    for name in ["sentence_piece_fallback.json", "sentence_piece_plain.json"] {
        let golden = read(name);
        let own = vocabulary(&golden, "");
        let [tokenizer, config] = hugging_face_files(&own, None).unwrap();
        let text = tokenizer.to_string();
        let config = config.to_string();
        let files = HuggingFaceFiles {
            tokenizer: text.as_bytes(),
            tokenizer_config: Some(config.as_bytes()),
            ..HuggingFaceFiles::default()
        };
        let written = Tokenizer::from_hugging_face(&files).unwrap().tokenizer;
        let scored = gguf_scores(text.as_bytes()).unwrap().unwrap();
        assert_eq!(Some(scored.add_space_prefix), own.add_space_prefix, "{name}");
        assert_ne!(scored.scores, own.scores, "the test would prove little");
        let again = Tokenizer::new(&Vocabulary { scores: scored.scores, ..own.clone() }).unwrap();
        for (index, text) in corpus().iter().enumerate() {
            let expected = ids(&golden["ids"][index]);
            // The package begins anew behind a token that stands for text, with a space in front.
            let is_in_one = !["[INST]", "<tool_call>"].iter().any(|own| text.contains(own));
            for tokenizer in [&again].into_iter().chain(is_in_one.then_some(&written)) {
                let found = tokenizer.encode(text, EncodeOptions::USER_TEXT).unwrap();
                assert_eq!(found, expected, "{name}, {text:?}");
            }
        }
        // Nobody's scores leave out one way to make a token, or rank it apart from the others.
        let mut changed = tokenizer.clone();
        let merges = changed["model"]["merges"].as_array_mut().unwrap();
        let whole = |merge: &Value| {
            let side = |at: usize| merge[at].as_str().unwrap().to_owned();
            side(0) + &side(1)
        };
        let two = merges.windows(2).position(|two| whole(&two[0]) == whole(&two[1])).unwrap();
        let moved = merges.remove(two);
        let refused =
            |changed: &Value| gguf_scores(changed.to_string().as_bytes()).unwrap_err().to_string();
        assert!(refused(&changed).contains("not all its parts"), "{}", refused(&changed));
        changed["model"]["merges"].as_array_mut().unwrap().push(moved);
        assert!(refused(&changed).contains("with others between"), "{}", refused(&changed));
    }
}

fn small() -> Value {
    json!({
        "added_tokens": [{"id": 3, "content": "<e>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    })
}

#[test]
fn roles_templates_and_defaults_come_from_the_files_beside() {
    let tokenizer = serde_json::to_vec(&small()).unwrap();
    let config = br#"{"bos_token": {"content": "<e>"}, "add_bos_token": true,
        "chat_template": [{"name": "default", "template": "D"},
                          {"name": "tool_use", "template": "T"}]}"#;
    let files = HuggingFaceFiles {
        tokenizer: &tokenizer,
        tokenizer_config: Some(config),
        special_tokens_map: Some(br#"{"eos_token": "<e>", "bos_token": "a"}"#),
        generation_config: Some(br#"{"eos_token_id": [1, 3], "temperature": 0.6, "top_k": 20}"#),
        config: Some(br#"{"eos_token_id": 0}"#),
        chat_template: None,
    };
    let read = Tokenizer::from_hugging_face(&files).unwrap();
    assert_eq!(read.tokenizer.special_ids().bos, Some(3));
    assert_eq!(read.tokenizer.special_ids().eos, Some(3));
    assert!(read.tokenizer.adds_bos() && !read.tokenizer.adds_eos());
    assert_eq!(read.tokenizer.end_of_generation_ids(), [1, 3]);
    assert_eq!(read.generation.temperature, Some(0.6));
    assert_eq!((read.generation.top_k, read.generation.top_p), (Some(20), None));
    assert_eq!(read.chat_templates.choose(false), Some("D"));
    assert_eq!(read.chat_templates.choose(true), Some("T"));
    let own = HuggingFaceFiles { chat_template: Some(b"J"), generation_config: None, ..files };
    let read = Tokenizer::from_hugging_face(&own).unwrap();
    assert_eq!(read.chat_templates.choose(true), Some("J"));
    assert_eq!(read.tokenizer.end_of_generation_ids(), [0, 3]);
}

/// A role whose name is no token plays no part, but where answers would be wrong without a word.
#[test]
fn roles_that_name_no_token_are_left_out_or_refused() {
    let tokenizer = serde_json::to_vec(&small()).unwrap();
    let read = |config: Value, ends: Value| {
        let (config, ends) = (config.to_string(), ends.to_string());
        let files = HuggingFaceFiles {
            tokenizer: &tokenizer,
            tokenizer_config: Some(config.as_bytes()),
            generation_config: Some(ends.as_bytes()),
            ..HuggingFaceFiles::default()
        };
        Tokenizer::from_hugging_face(&files).map(|read| read.tokenizer)
    };
    let ends = json!({"eos_token_id": 3});
    let plain = read(json!({"bos_token": "<s>", "eos_token": "</s>"}), ends.clone()).unwrap();
    assert_eq!((plain.special_ids().bos, plain.end_of_generation_ids()), (None, [3].as_slice()));
    for (config, ends, word) in [
        (json!({"bos_token": "<s>", "add_bos_token": true}), &ends, "bos_token is \"<s>\""),
        (json!({"add_bos_token": true}), &ends, "bos_token is \"\""),
        (json!({"eos_token": "</s>", "add_eos_token": true}), &ends, "eos_token is \"</s>\""),
        (json!({"eos_token": "</s>"}), &json!({}), "no other ends answers"),
        (json!({}), &json!({"eos_token_id": 9}), "eos_token_id 9"),
    ] {
        let error = read(config.clone(), ends.clone()).unwrap_err().to_string();
        assert!(error.contains(word), "{config}: {error}");
    }
}

/// Changes the small one at a place and tells what the error says.
fn refused(pointer: &str, value: Value) -> String {
    let mut document = small();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    document.pointer_mut(parent).unwrap()[name] = value;
    load(&document).unwrap_err().to_string()
}

#[test]
fn what_is_damaged_or_unknown_is_refused_by_name() {
    let mut said = Vec::new();
    let mut refuses = |pointer: &str, value: Value, word: &str| {
        let error = refused(pointer, value);
        if !error.contains(word) {
            said.push(format!("{pointer}: {error}, not {word}"));
        }
    };
    refuses("/model/type", json!("WordPiece"), "WordPiece");
    refuses("/model/vocab", json!({"a": 0, "b": 1, "ab": 1}), "both");
    refuses("/model/vocab", json!({"a": 0, "b": 1, "ab": 4_000_000_000u32}), "too large");
    refuses("/model/vocab", json!({"a": 0, "b": 1, "ab": -2}), "-2");
    refuses("/model/vocab", json!([["a", 0.5]]), "scores");
    refuses("/model/merges", json!(["a c"]), "merge 0");
    refuses("/model/merges", json!(["a"]), "merge 0");
    refuses("/model/merges", json!([["a", "b", "c"]]), "tokenizer.json");
    refuses("/model/end_of_word_suffix", json!("</w>"), "suffix");
    refuses("/added_tokens", json!([{"id": 1, "content": "c"}]), "both");
    refuses("/added_tokens", json!([{"id": 9, "content": "a"}]), "both");
    refuses("/pre_tokenizer", json!({"type": "Whitespace"}), "Whitespace");
    refuses("/normalizer", json!({"type": "StripAccents"}), "StripAccents");
    let split = json!({"type": "Split", "pattern": {"Regex": "(?=x)"}, "behavior": "Isolated"});
    refuses("/pre_tokenizer/type", json!("Sequence"), "Sequence");
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let sequence = json!({"type": "Sequence", "pretokenizers": [split, byte_level]});
    refuses("/pre_tokenizer", sequence, "(?=x)");
    let single = json!([{"SpecialToken": {"id": "z"}}, {"Sequence": {"id": "A"}}]);
    let template = json!({"type": "TemplateProcessing", "single": single, "special_tokens": {}});
    refuses("/post_processor", template, "no ids");
    assert!(said.is_empty(), "{said:#?}");
    let files = HuggingFaceFiles { tokenizer: b"{\"model\": 3", ..HuggingFaceFiles::default() };
    let error = Tokenizer::from_hugging_face(&files).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json cannot be read"), "{error}");
}

/// Every byte of a file changed, and every length of it: no panic.
#[test]
fn no_damage_panics() {
    let bytes = serde_json::to_vec(&small()).unwrap();
    for at in 0..bytes.len() {
        for byte in [b'0', b'"', b'}', b'a', 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            let files = HuggingFaceFiles { tokenizer: &damaged, ..HuggingFaceFiles::default() };
            if let Ok(read) = Tokenizer::from_hugging_face(&files) {
                let ids = read.tokenizer.encode("ab <e> aab", EncodeOptions::TEMPLATE).unwrap();
                read.tokenizer.decode(&ids, DecodeOptions::default());
            }
        }
        let files = HuggingFaceFiles { tokenizer: &bytes[..at], ..HuggingFaceFiles::default() };
        assert!(Tokenizer::from_hugging_face(&files).is_err());
    }
}
