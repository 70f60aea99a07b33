//! Does a folder that is made of a GGUF file say what the file says, and does its tokenizer?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use backend_reference::ReferenceBackend;
use quantize::{
    Exception, GgufChoices, GgufRecipe, MlxChoices, MlxException, MlxRecipe, QuantFormat, to_gguf,
    to_mlx,
};
use testkit::Evaluation;
use tokenizer::{HuggingFaceFiles, Tokenizer};
use weights::{Array, GgufBuilder, StringArray, Value, WeightFile};

const CONTEXT: u32 = 64;

/// A golden file with a vocabulary: bytes, a merge, and a token that begins texts.
fn with_tokens(name: &str, to: &Path) -> WeightFile {
    with_keys(name, to, &[])
}

fn with_keys(name: &str, to: &Path, more: &[(&str, Value)]) -> WeightFile {
    let golden = format!("{}/golden/families/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
    let file = weights::open(golden).unwrap();
    let rows = file.shape("token_embd.weight").unwrap().rows;
    let text = |id: usize| match id {
        0 => "<s>".to_owned(),
        1 => "ab".to_owned(),
        id => char::from(b'@' + id as u8 % 94).to_string().repeat(1 + id / 94),
    };
    let tokens: Vec<String> = (0..rows).map(text).collect();
    let strings =
        |texts: &[String]| Value::Array(Box::new(Array::Strings(StringArray::from_iter(texts))));
    let mut types = vec![1i32; rows];
    types[0] = 3;
    let mut builder = GgufBuilder::new();
    for (key, value) in file.metadata().iter() {
        builder.key(key, value.clone());
    }
    builder.key("tokenizer.ggml.model", "gpt2").key("tokenizer.ggml.pre", "qwen2");
    builder.key("tokenizer.ggml.tokens", strings(&tokens));
    builder.key("tokenizer.ggml.merges", strings(&["a b".to_owned()]));
    builder.key("tokenizer.ggml.token_type", types).key("tokenizer.ggml.bos_token_id", 0u32);
    builder.key("tokenizer.ggml.add_bos_token", true);
    more.iter().for_each(|(key, value)| _ = builder.key(key, value.clone()));
    for tensor in file.tensors() {
        let view = file.tensor(tensor.name()).unwrap();
        builder.tensor(tensor.name(), view.format, view.dims, view.bytes.to_vec());
    }
    std::fs::write(to, builder.to_bytes().unwrap()).unwrap();
    weights::open(to).unwrap()
}

fn logits(file: &WeightFile, ids: &[u32]) -> Vec<f32> {
    let mut evaluation: Evaluation = testkit::load(file, &ReferenceBackend, CONTEXT, 13).unwrap();
    let mut rows = Vec::new();
    evaluation.each(ids, |_, row| rows.extend_from_slice(row)).unwrap();
    rows
}

/// Largest difference, relative to the largest value.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    let pairs = got.iter().zip(expected);
    pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max) / scale
}

/// Each with how far 8 bits may move its logits: a mixture may choose another expert, and nets of
/// few heads forget more or less for long.
const FAMILIES: &[(&str, f32)] = &[
    ("deepseek_v2", 0.4),
    ("deepseek_v3", 0.4),
    ("ernie4_5", 0.08),
    ("exaone4", 0.08),
    ("exaone4_large", 0.08),
    ("gemma", 0.08),
    ("gemma2", 0.08),
    ("gemma3", 0.08),
    ("gemma4", 0.4),
    ("gemma4_experts", 0.4),
    ("gemma4_large", 0.4),
    ("glm4", 0.08),
    ("glm4moe", 0.08),
    ("glm4_moe_lite", 0.4),
    ("gpt_oss", 0.4),
    ("minimax_m2", 0.4),
    ("mistral", 0.08),
    ("mistral3", 0.08),
    ("mixtral", 0.3),
    ("olmo2", 0.08),
    ("olmo3", 0.08),
    ("phi3", 0.08),
    ("phi4_mini", 0.08),
    ("qwen2", 0.08),
    ("qwen2_yarn", 0.08),
    ("qwen3", 0.08),
    ("qwen35", 0.4),
    ("qwen35moe", 0.08),
    ("qwen3moe", 0.3),
    ("qwen3next", 0.4),
    ("qwen3vl", 0.08),
    ("qwen3vlmoe", 0.4),
    ("seed_oss", 0.08),
    ("smollm3", 0.08),
];

#[test]
fn folders_of_gguf_files_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for &(name, quantized_most) in FAMILIES {
        let source = folder.path().join(format!("{name}.gguf"));
        let file = with_tokens(name, &source);
        let numbers: Vec<i64> = file.metadata().required("golden.ids").unwrap();
        let ids: Vec<u32> = numbers.iter().map(|&id| u32::try_from(id).unwrap()).collect();
        let expected = logits(&file, &ids);
        // Of the decay of nets a folder has the logarithm, which is rounded.
        let plain_most = if ["qwen35", "qwen3next"].contains(&name) { 1e-5 } else { 0.0 };
        for (plain, most) in [(true, plain_most), (false, quantized_most)] {
            let place = folder.path().join(format!("{name}-{plain}"));
            let all = Exception { pattern: "*".to_owned(), becomes: MlxException::Plain };
            let choices = MlxChoices {
                recipe: MlxRecipe { bits: 8, better_bits: 8, group: 32 },
                exceptions: if plain { vec![all] } else { Vec::new() },
                threads: 2,
            };
            to_mlx(&source, &place, &choices, &mut |_| {}).unwrap();
            let made = weights::open(&place).unwrap();
            let moved = difference(&logits(&made, &ids), &expected);
            assert!(moved <= most, "{name}, plain {plain}: logits by {moved:e}");
            let quantized =
                |info: &weights::TensorInfo| matches!(info.format(), Ok(QuantFormat::MlxAffine(_)));
            assert_eq!(made.tensors().any(quantized), !plain, "{name}");
            assert_eq!(encoded(&place, "abc"), [0, 1, u32::from(b'c' - b'@')], "{name}");
        }
    }
}

/// Whoever adds a family adds it above, or says here why it has no folder.
#[test]
fn every_architecture_becomes_a_folder() {
    let golden = format!("{}/golden/families", env!("CARGO_MANIFEST_DIR"));
    let mut unseen: Vec<&str> = models::FAMILIES
        .iter()
        .flat_map(|family| family.architectures)
        .map(|(name, _)| *name)
        .collect();
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(FAMILIES.iter().any(|(known, _)| *known == name), "{name} is not in FAMILIES");
        let file = weights::open(&path).unwrap();
        let architecture: &str = file.metadata().required("general.architecture").unwrap();
        unseen.retain(|name| *name != architecture);
    }
    assert!(unseen.is_empty(), "no file of {unseen:?}");
}

#[test]
fn models_for_vectors_stay_that() {
    let folder = tempfile::tempdir().unwrap();
    let choices = MlxChoices {
        recipe: MlxRecipe { bits: 8, better_bits: 8, group: 32 },
        exceptions: Vec::new(),
        threads: 2,
    };
    for (number, kind) in [(1u32, "mean"), (3, "lasttoken")] {
        let at = |name: &str| folder.path().join(format!("{name}-{kind}"));
        let source = at("source.gguf");
        let keys = [
            ("qwen3.pooling_type", Value::from(number)),
            ("pelton.text_prefix", Value::from("query: ")),
            ("pelton.text_tokens_max", Value::from(31u32)),
        ];
        with_keys("qwen3", &source, &keys);
        to_mlx(&source, &at("first"), &choices, &mut |_| {}).unwrap();
        // Of a folder, and back to a file.
        to_mlx(&at("first"), &at("second"), &choices, &mut |_| {}).unwrap();
        let recipe = GgufRecipe::named("F16").unwrap();
        let to_file = GgufChoices { recipe, exceptions: Vec::new(), threads: 2, replaces: false };
        to_gguf(&at("second"), &at("back.gguf"), &to_file, &mut |_| {}).unwrap();
        for made in ["first", "second", "back.gguf"] {
            let made = weights::open(at(made)).unwrap();
            for (key, value) in &keys {
                assert_eq!(made.metadata().get(key), Some(value), "{}", made.path().display());
            }
        }
    }
    let ranks = [("qwen3.pooling_type", Value::from(4u32))];
    with_keys("qwen3", &folder.path().join("ranks.gguf"), &ranks);
    let place = folder.path().join("none");
    let error = to_mlx(&folder.path().join("ranks.gguf"), &place, &choices, &mut |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("pooling_type 4"), "{error}");
}

/// By a folder's tokenizer.
fn encoded(place: &Path, text: &str) -> Vec<u32> {
    let read = |name: &str| std::fs::read(place.join(name)).unwrap();
    let (tokenizer, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let files = HuggingFaceFiles {
        tokenizer: &tokenizer,
        tokenizer_config: Some(&config),
        ..HuggingFaceFiles::default()
    };
    let tokenizer = Tokenizer::from_hugging_face(&files).unwrap().tokenizer;
    let options = tokenizer::EncodeOptions {
        special: tokenizer::SpecialTokens::AsText,
        add_bos: tokenizer.adds_bos(),
        add_eos: tokenizer.adds_eos(),
    };
    tokenizer.encode(text, options).unwrap()
}

/// The same file with pieces and scores of SentencePiece: single letters, and three longer ones.
fn with_pieces(name: &str, to: &Path) -> Vec<String> {
    let golden = format!("{}/golden/families/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
    let file = weights::open(golden).unwrap();
    let rows = file.shape("token_embd.weight").unwrap().rows;
    let named = ["<unk>", "<s>", "</s>", "\u{2581}", "ab", "\u{2581}ab", "\u{2581}abc"];
    let text = |id: usize| match named.get(id) {
        Some(text) => (*text).to_owned(),
        None => char::from(b'0' + (id - named.len()) as u8).to_string(),
    };
    let tokens: Vec<String> = (0..rows).map(text).collect();
    let mut types = vec![1i32; rows];
    (types[0], types[1], types[2]) = (2, 3, 3);
    let mut scores = vec![-100.0f32; rows];
    (scores[4], scores[5], scores[6]) = (-1.0, -2.0, -3.0);
    let mut builder = GgufBuilder::new();
    for (key, value) in file.metadata().iter() {
        builder.key(key, value.clone());
    }
    let strings = Array::Strings(StringArray::from_iter(&tokens));
    builder.key("tokenizer.ggml.model", "llama");
    builder.key("tokenizer.ggml.tokens", Value::Array(Box::new(strings)));
    builder.key("tokenizer.ggml.scores", Value::Array(Box::new(Array::F32(scores.into()))));
    builder.key("tokenizer.ggml.token_type", types);
    for (role, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
        builder.key(&format!("tokenizer.ggml.{role}_token_id"), id);
    }
    for tensor in file.tensors() {
        let view = file.tensor(tensor.name()).unwrap();
        builder.tensor(tensor.name(), view.format, view.dims, view.bytes.to_vec());
    }
    std::fs::write(to, builder.to_bytes().unwrap()).unwrap();
    tokens
}

#[test]
fn pieces_of_sentence_piece_go_to_a_folder_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["gemma2", "mistral"] {
        let (source, place, back) = (at("first.gguf"), at("folder"), at("second.gguf"));
        let tokens = with_pieces(name, &source);
        let choices = MlxChoices {
            recipe: MlxRecipe { bits: 8, better_bits: 8, group: 32 },
            exceptions: Vec::new(),
            threads: 2,
        };
        to_mlx(&source, &place, &choices, &mut |_| {}).unwrap();
        let (text, config) = ("tokenizer.json", "tokenizer_config.json");
        let [text, config] = [text, config].map(|name| std::fs::read(place.join(name)).unwrap());
        let files = HuggingFaceFiles {
            tokenizer: &text,
            tokenizer_config: Some(&config),
            ..HuggingFaceFiles::default()
        };
        let tokenizer = Tokenizer::from_hugging_face(&files).unwrap().tokenizer;
        assert!(tokenizer.adds_bos(), "{name}");
        let id = |text: &str| tokens.iter().position(|token| token == text).unwrap() as u32;
        let expected = ["\u{2581}abc", "ab", "\u{2581}ab", "b", "<unk>"].map(id);
        let found = tokenizer.encode("abcab abb\u{e9}", tokenizer::EncodeOptions::USER_TEXT);
        assert_eq!(found.unwrap(), expected, "{name}");
        let choices = GgufChoices {
            recipe: GgufRecipe::named("F16").unwrap(),
            exceptions: Vec::new(),
            threads: 2,
            replaces: false,
        };
        to_gguf(&place, &back, &choices, &mut |_| {}).unwrap();
        let (first, second) = (weights::open(&source).unwrap(), weights::open(&back).unwrap());
        for key in ["model", "tokens", "token_type", "bos_token_id", "eos_token_id"] {
            let key = format!("tokenizer.ggml.{key}");
            assert_eq!(first.metadata().get(&key), second.metadata().get(&key), "{name}: {key}");
        }
        let Some(Value::Array(scores)) = second.metadata().get("tokenizer.ggml.scores") else {
            panic!("{name} has no scores");
        };
        let Array::F32(scores) = &**scores else { panic!("{name}: {scores:?}") };
        let best = [4, 5, 6, 3].map(|id| scores[id]);
        assert!(best.is_sorted_by(|one, next| one > next), "{name}: {best:?}");
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::remove_file(&back).unwrap();
    }
}
