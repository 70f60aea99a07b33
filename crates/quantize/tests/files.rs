//! Are files made whole, with what was asked for, or not at all?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use quantize::{
    Exception, GgufChoices, GgufRecipe, MlxChoices, MlxException, MlxRecipe, QuantFormat,
    QuantizeError, Report, to_gguf, to_mlx,
};
use serde_json::{Value as Json, json};
use weights::GgufBuilder;

/// A weight for each place, all different, of a usual size.
fn floats(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (next() + next() + next()) * 0.1).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn model(path: &Path, broken: Option<f32>) {
    let mut builder = GgufBuilder::new();
    builder.key("general.architecture", "llama").key("llama.block_count", 8u32);
    builder.key("general.file_type", 0u32).key("split.count", 0u32).key("own.key", "kept");
    let mut embedding = floats(40 * 256, 1);
    if let Some(broken) = broken {
        embedding[77] = broken;
    }
    builder.tensor("token_embd.weight", QuantFormat::F32, &[256, 40], bytes(&embedding));
    for layer in 0..8 {
        for (stem, cols, rows) in [("attn_v", 256, 24), ("attn_q", 96, 33), ("ffn_down", 512, 5)] {
            let name = format!("blk.{layer}.{stem}.weight");
            let data = bytes(&floats(cols * rows, layer));
            builder.tensor(&name, QuantFormat::F32, &[cols as u64, rows as u64], data);
        }
        let name = format!("blk.{layer}.attn_norm.weight");
        builder.tensor(&name, QuantFormat::F32, &[256], bytes(&floats(256, layer)));
    }
    std::fs::write(path, builder.to_bytes().unwrap()).unwrap();
}

fn choices(recipe: &str) -> GgufChoices {
    let recipe = GgufRecipe::named(recipe).unwrap();
    GgufChoices { recipe, exceptions: Vec::new(), threads: 3, replaces: false }
}

fn made(report: &Report) -> BTreeMap<&str, &str> {
    report.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.to)).collect()
}

#[test]
fn a_gguf_file_becomes_what_its_recipe_says() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    model(&source, None);
    let mut choices = choices("Q4_K_M");
    choices.exceptions =
        vec![Exception { pattern: "blk.3.attn_q.*".to_owned(), becomes: QuantFormat::Q8_0 }];
    let mut seen = Vec::new();
    let report = to_gguf(&source, &out, &choices, &mut |at| {
        assert!(at.done_bytes <= at.total_bytes);
        seen.push(at.tensor.to_owned());
    })
    .unwrap();
    let made = made(&report);
    assert_eq!(made["token_embd.weight"], "Q6_K", "the head, too");
    assert_eq!(made["blk.0.attn_v.weight"], "Q6_K");
    assert_eq!(made["blk.1.attn_v.weight"], "Q4_K");
    assert_eq!(made["blk.7.ffn_down.weight"], "Q6_K");
    assert_eq!(made["blk.2.attn_q.weight"], "Q5_0", "rows of no whole blocks of 256");
    assert_eq!(made["blk.3.attn_q.weight"], "Q8_0", "the exception");
    assert_eq!(made["blk.0.attn_norm.weight"], "F32");
    assert_eq!(seen.len(), report.tensors.len() + 1);
    let (before, after) = (weights::open(&source).unwrap(), weights::open(&out).unwrap());
    assert_eq!(after.metadata().required::<&str>("own.key").unwrap(), "kept");
    assert_eq!(after.metadata().required::<u32>("general.file_type").unwrap(), 15);
    assert!(after.metadata().get("split.count").is_none());
    for tensor in &report.tensors {
        let (a, b) = (before.tensor(&tensor.name).unwrap(), after.tensor(&tensor.name).unwrap());
        assert_eq!((a.dims, b.format.name()), (b.dims, tensor.to), "{}", tensor.name);
        let (mut x, mut y) = (vec![0.0; a.cols], vec![0.0; a.cols]);
        let (mut errors, mut squares) = (0f64, 0f64);
        for row in 0..a.rows {
            a.format.decode_row(a.row(row), &mut x);
            b.format.decode_row(b.row(row), &mut y);
            for (x, y) in x.iter().zip(&y) {
                errors += f64::from(x - y).powi(2);
                squares += f64::from(*x).powi(2);
            }
        }
        let relative = (errors / squares).sqrt();
        let said = tensor.loss.relative();
        assert!((relative - said).abs() <= 1e-4, "{}: {relative}, said {said}", tensor.name);
        let most = match tensor.to {
            "F32" => 0.0,
            "Q4_K" => 0.09,
            "Q5_0" => 0.06,
            "Q6_K" => 0.025,
            _ => 0.006,
        };
        assert!(relative <= most, "{}: {relative} as {}", tensor.name, tensor.to);
    }
    // Another time: made of what is quantized, and the same whatever the threads.
    let again = folder.path().join("c.gguf");
    let one = GgufChoices { threads: 1, ..choices.clone() };
    to_gguf(&source, &again, &one, &mut |_| {}).unwrap();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap(), "threads");
    let small = folder.path().join("d.gguf");
    let report = to_gguf(&out, &small, &coarse(), &mut |_| {}).unwrap();
    assert!(report.tensors.iter().all(|tensor| tensor.to != "Q6_K" || tensor.from == "Q6_K"));
}

fn coarse() -> GgufChoices {
    choices("Q4_0")
}

#[test]
fn nothing_is_left_of_what_failed_and_nothing_is_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    for broken in [f32::NAN, f32::INFINITY] {
        model(&source, Some(broken));
        let error = to_gguf(&source, &out, &choices("Q8_0"), &mut |_| {}).unwrap_err();
        assert!(
            matches!(&error, QuantizeError::NotFinite { name, .. } if name == "token_embd.weight")
        );
    }
    // Finite, and too large for f16.
    model(&source, Some(1e6));
    let error = to_gguf(&source, &out, &choices("F16"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("token_embd.weight"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the source is there");
    model(&source, None);
    std::fs::write(&out, "mine").unwrap();
    let error = to_gguf(&source, &out, &choices("Q8_0"), &mut |_| {}).unwrap_err();
    assert!(matches!(error, QuantizeError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let replacing = GgufChoices { replaces: true, ..choices("Q8_0") };
    to_gguf(&source, &out, &replacing, &mut |_| {}).unwrap();
    assert!(weights::open(&out).is_ok());
    let mut unmatched = choices("Q8_0");
    unmatched.exceptions =
        vec![Exception { pattern: "blk.9.*".to_owned(), becomes: QuantFormat::F16 }];
    let place = folder.path().join("c.gguf");
    let error = to_gguf(&source, &place, &unmatched, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("blk.9.*"), "{error}");
    unmatched.exceptions[0] =
        Exception { pattern: "*attn_q*".to_owned(), becomes: QuantFormat::Q4K };
    let error = to_gguf(&source, &place, &unmatched, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("blocks of 256, and its rows are 96"), "{error}");
}

/// More rows than the tokenizer has tokens.
const VOCABULARY: usize = 260;

/// Byte-level BPE: its alphabet, one merge, and a token that ends texts.
fn tokenizer() -> Json {
    let is_printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256u32).filter(|byte| !is_printable(byte)).count() as u32;
    let alphabet = (0..256u32).filter(is_printable).chain(256..256 + others);
    let texts = alphabet.map(|code| char::from_u32(code).unwrap().to_string());
    let texts = texts.chain(["he".to_owned()]);
    let vocabulary: serde_json::Map<String, Json> =
        texts.enumerate().map(|(id, text)| (text, json!(id))).collect();
    json!({
        "version": "1.0", "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 257, "content": "<|end|>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["h", "e"]]},
    })
}

/// A folder of a llama with two layers, in F32.
fn folder_model(path: &Path) {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "torch_dtype": "float32",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    });
    std::fs::create_dir(path).unwrap();
    std::fs::write(path.join("config.json"), config.to_string()).unwrap();
    std::fs::write(path.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    std::fs::write(path.join("pytorch_model.bin"), "not needed").unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, 64]),
        ("model.norm.weight".to_owned(), vec![64]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, 64]),
    ];
    for layer in 0..2 {
        let shapes = [
            ("self_attn.q_proj", 64, 64),
            ("self_attn.v_proj", 64, 64),
            ("mlp.up_proj", 96, 64),
            ("mlp.down_proj", 64, 96),
        ];
        for (stem, rows, cols) in shapes {
            tensors.push((format!("model.layers.{layer}.{stem}.weight"), vec![rows, cols]));
        }
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (seed, (name, shape)) in (0..).zip(&tensors) {
        let start = data.len();
        data.extend(bytes(&floats(shape.iter().product(), seed)));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Json::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path.join("model.safetensors"), file).unwrap();
}

#[test]
fn a_folder_becomes_one_for_mlx() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("a"), folder.path().join("b"));
    folder_model(&source);
    let choices = MlxChoices {
        recipe: MlxRecipe { bits: 4, better_bits: 6, group: 32 },
        exceptions: vec![Exception {
            pattern: "*layers.1.mlp.up_proj*".to_owned(),
            becomes: MlxException::Plain,
        }],
        threads: 2,
    };
    let report = to_mlx(&source, &out, &choices, &mut |_| {}).unwrap();
    let made = made(&report);
    assert_eq!(made["model.embed_tokens.weight"], "MLX 4-bit");
    assert_eq!(made["model.layers.1.self_attn.v_proj.weight"], "MLX 6-bit");
    assert_eq!(made["model.layers.1.mlp.up_proj.weight"], "F32");
    assert!(!made.contains_key("lm_head.weight"), "a copy of the embedding");
    let config = std::fs::read(out.join("config.json")).unwrap();
    let config: Json = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["quantization"]["bits"], 4);
    assert_eq!(config["quantization"]["model.layers.1.mlp.up_proj"], false);
    assert_eq!(config["quantization"]["model.layers.1.self_attn.v_proj"]["bits"], 6);
    assert_eq!(config["quantization"], config["quantization_config"]);
    assert_eq!(config["rope_theta"], 5000.0, "where MLX-LM looks");
    assert_eq!(config["rope_scaling"], config["rope_parameters"]);
    assert!(out.join("tokenizer.json").is_file() && !out.join("pytorch_model.bin").exists());
    // What is read again is what was written, and near what it was made of.
    let (before, after) = (weights::open(&source).unwrap(), weights::open(&out).unwrap());
    for tensor in after.tensors() {
        let (a, b) = (before.tensor(tensor.name()).unwrap(), after.tensor(tensor.name()).unwrap());
        let (mut x, mut y) = (vec![0.0; a.cols], vec![0.0; a.cols]);
        for row in 0..a.rows {
            a.format.decode_row(a.row(row), &mut x);
            b.format.decode_row(b.row(row), &mut y);
            let apart = x.iter().zip(&y).fold(0f32, |most, (x, y)| most.max((x - y).abs()));
            assert!(apart < 0.02, "{}: {apart}", tensor.name());
        }
    }
    let error = to_mlx(&source, &out, &choices, &mut |_| {}).unwrap_err();
    assert!(matches!(error, QuantizeError::Exists { .. }), "{error}");
    // What is quantized can be quantized again.
    let again = folder.path().join("c");
    let recipe = MlxRecipe { bits: 8, better_bits: 8, group: 64 };
    let choices = MlxChoices { recipe, exceptions: Vec::new(), threads: 1 };
    let report = to_mlx(&out, &again, &choices, &mut |_| {}).unwrap();
    assert!(report.loss().relative() < 0.01);
    let wrong = MlxChoices { recipe: MlxRecipe { bits: 7, ..recipe }, ..choices };
    let error = to_mlx(&source, &folder.path().join("d"), &wrong, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("7 bits in groups of 64"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

/// Experts are published in stacks of one tensor or two, rows or columns in turn, or one by one.
#[test]
fn experts_are_quantized_however_they_are_stored() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/golden/families");
    let folder = tempfile::tempdir().unwrap();
    let recipe = MlxRecipe { bits: 8, better_bits: 8, group: 32 };
    let choices = MlxChoices { recipe, exceptions: Vec::new(), threads: 2 };
    for (family, stack) in [
        ("gemma4_experts", "model.layers.1.experts.switch_glu"),
        ("gpt_oss", "model.layers.1.mlp.experts"),
        ("qwen35moe", "model.layers.1.mlp.switch_mlp"),
        ("qwen3moe", "model.layers.1.mlp.switch_mlp"),
    ] {
        let (source, out) = (families.join(family), folder.path().join(family));
        let report = to_mlx(&source, &out, &choices, &mut |_| {}).unwrap();
        let made = made(&report);
        for matrix in ["gate_proj", "up_proj"] {
            let name = format!("{stack}.{matrix}.weight");
            assert_eq!(made.get(name.as_str()), Some(&"MLX 8-bit"), "{family}: {made:?}");
        }
        assert!(made.contains_key(format!("{stack}.down_proj.weight").as_str()), "{family}");
        let (before, after) = (weights::open(&source).unwrap(), weights::open(&out).unwrap());
        assert_eq!(before.tensors().count(), after.tensors().count(), "{family}");
        for tensor in before.tensors() {
            let name = tensor.name();
            let (a, b) = (before.tensor(name).unwrap(), after.tensor(name).unwrap());
            assert_eq!((a.rows, a.cols), (b.rows, b.cols), "{family}: {name}");
            let (mut x, mut y) = (vec![0.0; a.cols], vec![0.0; a.cols]);
            for row in 0..a.rows {
                a.format.decode_row(a.row(row), &mut x);
                b.format.decode_row(b.row(row), &mut y);
                let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                let apart = x.iter().zip(&y).fold(0f32, |most, (x, y)| most.max((x - y).abs()));
                // A step is a 255th of a group's width, which is at most twice its largest.
                assert!(apart <= most / 120.0, "{family}: {name}: {apart} of {most}");
            }
        }
    }
}

#[test]
fn a_folder_becomes_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("a"), folder.path().join("a.gguf"));
    folder_model(&source);
    to_gguf(&source, &out, &choices("F32"), &mut |_| {}).unwrap();
    let (before, after) = (weights::open(&source).unwrap(), weights::open(&out).unwrap());
    let said = after.metadata();
    assert_eq!(said.required::<&str>("tokenizer.ggml.model").unwrap(), "gpt2");
    assert_eq!(said.required::<&str>("tokenizer.ggml.pre").unwrap(), "gpt-2");
    assert!(said.get("pelton.rotary_pairs").is_none());
    let Some(weights::Value::Array(tokens)) = said.get("tokenizer.ggml.tokens") else { panic!() };
    let weights::Array::Strings(tokens) = &**tokens else { panic!("tokens are no texts") };
    let text = |id: usize| tokens.get_str(id).unwrap();
    assert_eq!(tokens.len(), VOCABULARY, "as many as rows");
    assert_eq!([text(0), text(256), text(257), text(258)], ["!", "he", "<|end|>", "[PAD258]"]);
    let Some(weights::Value::Array(types)) = said.get("tokenizer.ggml.token_type") else {
        panic!()
    };
    let weights::Array::I32(types) = &**types else { panic!("types are no numbers") };
    assert_eq!([types[0], types[257], types[259]], [1, 3, 5]);
    // Queries of two heads of 32 rows: in pairs of one row of each half.
    let (a, b) = ("blk.1.attn_q.weight", "blk.1.attn_v.weight");
    let (old, new) = (before.tensor(a).unwrap(), after.tensor(a).unwrap());
    for (row, from) in [(0, 0), (1, 16), (2, 1), (31, 31), (32, 32), (33, 48)] {
        assert_eq!(new.row(row), old.row(from), "row {row}");
    }
    assert_eq!(before.tensor(b).unwrap().bytes, after.tensor(b).unwrap().bytes);
    // A tokenizer of another kind is refused by its file's name.
    let mut other = tokenizer();
    other["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}"});
    std::fs::write(source.join("tokenizer.json"), other.to_string()).unwrap();
    let place = folder.path().join("b.gguf");
    let error = to_gguf(&source, &place, &choices("F32"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(!place.exists());
}

#[test]
fn a_gguf_file_that_is_not_told_in_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("a.gguf"), folder.path().join("out"));
    let recipe = MlxRecipe { bits: 4, better_bits: 4, group: 32 };
    let choices = MlxChoices { recipe, exceptions: Vec::new(), threads: 1 };
    let refused = |architecture: &str, expected: &str| {
        let mut builder = GgufBuilder::new();
        builder.key("general.architecture", architecture);
        builder.tensor("token_embd.weight", QuantFormat::F32, &[32, 1], bytes(&floats(32, 1)));
        std::fs::write(&file, builder.to_bytes().unwrap()).unwrap();
        let error = to_mlx(&file, &out, &choices, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    };
    refused("bert", "an encoder");
    refused("zebra", "qwen3moe, ");
    refused("qwen3", "qwen3.embedding_length");
}
