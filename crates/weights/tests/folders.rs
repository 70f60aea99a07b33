//! Do folders of safetensors open as the model they are, and refuse what is wrong by name?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use weights::{Array, Value, WeightFile, WeightsError};

fn config() -> Json {
    json!({
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 500.0,
    })
}

/// The bytes of a file with this header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A file of F32 tensors, each value its place in the data.
fn floats(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        for index in 0..shape.iter().product::<u64>() {
            data.extend((start as f32 / 4.0 + index as f32).to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    file(&Json::Object(header).to_string(), &data)
}

fn folder(config: &Json, files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

const EMBEDDING: (&str, &[u64]) = ("model.embed_tokens.weight", &[3, 4]);
const NORM: (&str, &[u64]) = ("model.norm.weight", &[4]);

fn values(model: &WeightFile, name: &str) -> Vec<f32> {
    let view = model.tensor(name).unwrap();
    let mut values = vec![0.0; view.rows * view.cols];
    view.format.decode_row(view.bytes, &mut values);
    values
}

fn names(model: &WeightFile) -> Vec<&str> {
    let mut names: Vec<&str> = model.tensors().map(weights::TensorInfo::name).collect();
    names.sort_unstable();
    names
}

fn opened(folder: &TempDir) -> WeightFile {
    weights::open(folder.path()).unwrap()
}

fn refused(path: &Path) -> String {
    weights::open(path).unwrap_err().to_string()
}

#[test]
fn names_and_settings_are_those_of_gguf() {
    let bytes = floats(&[EMBEDDING, NORM, ("model.layers.0.mlp.up_proj.weight", &[8, 4])]);
    let folder = folder(&config(), &[("model.safetensors", &bytes)]);
    std::fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    for path in [folder.path().to_owned(), folder.path().join("model.safetensors")] {
        let model = weights::open(path).unwrap();
        assert_eq!(
            names(&model),
            ["blk.0.ffn_up.weight", "output_norm.weight", "token_embd.weight"]
        );
        let up = model.tensor("blk.0.ffn_up.weight").unwrap();
        assert_eq!((up.rows, up.cols, up.dims), (8, 4, [4, 8].as_slice()));
        assert_eq!(values(&model, "output_norm.weight"), [12.0, 13.0, 14.0, 15.0]);
        let metadata = model.metadata();
        assert_eq!(metadata.required::<&str>("general.architecture").unwrap(), "llama");
        assert_eq!(metadata.required::<u32>("llama.embedding_length").unwrap(), 4);
        assert_eq!(metadata.required::<f32>("llama.rope.freq_base").unwrap(), 500.0);
        assert_eq!(metadata.required::<&str>("tokenizer.chat_template").unwrap(), "{{ messages }}");
        assert_eq!(model.folder(), Some(folder.path()));
    }
}

#[test]
fn norms_that_lack_their_one_get_it() {
    let mut config = config();
    config["model_type"] = json!("gemma");
    let folder = folder(&config, &[("model.safetensors", &floats(&[NORM]))]);
    let model = opened(&folder);
    assert_eq!(values(&model, "output_norm.weight"), [1.0, 2.0, 3.0, 4.0]);
    assert!(!model.shape("output_norm.weight").unwrap().is_stored);
    let mut read = Vec::new();
    model.read_into("output_norm.weight", &mut read).unwrap();
    assert_eq!(read, model.tensor("output_norm.weight").unwrap().bytes);
}

#[test]
fn experts_are_stacked_in_order_whatever_file_they_are_in() {
    let mut config = config();
    config["model_type"] = json!("mixtral");
    config["num_local_experts"] = json!(2);
    config["num_experts_per_tok"] = json!(1);
    let expert =
        |index: usize| format!("model.layers.0.block_sparse_moe.experts.{index}.w1.weight");
    let (zero, one) = (expert(0), expert(1));
    let first = floats(&[(&one, &[1, 2])]);
    let second = floats(&[("model.norm.weight", &[4]), (&zero, &[1, 2])]);
    let files: [(&str, &[u8]); 2] = [
        ("model-00001-of-00002.safetensors", &first),
        ("model-00002-of-00002.safetensors", &second),
    ];
    let whole = folder(&config, &files);
    let model = opened(&whole);
    let stack = model.tensor("blk.0.ffn_gate_exps.weight").unwrap();
    assert_eq!(stack.dims, [2, 1, 2]);
    assert_eq!(stack.rows, 2);
    let bytes: Vec<u8> = [4f32, 5.0, 0.0, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(stack.bytes, bytes);

    let lonely = folder(&config, &[("model.safetensors", &first)]);
    let error = refused(lonely.path());
    assert!(error.contains("blk.0.ffn_gate_exps.weight: expert 0 is missing"), "{error}");
}

/// Qwen publishes them as `[inputs, outputs]`, newer versions of transformers save them turned.
#[test]
fn experts_of_qwen3_vl_are_read_both_ways() {
    let mut config = config();
    config["model_type"] = json!("qwen3_vl_moe_text");
    config["moe_intermediate_size"] = json!(3);
    config["num_experts"] = json!(2);
    config["num_experts_per_tok"] = json!(1);
    let path = "model.layers.0.mlp.experts";
    let (both, down) = (format!("{path}.gate_up_proj"), format!("{path}.down_proj"));
    let open = |shapes: [&[u64]; 2]| {
        let [both_shape, down_shape] = shapes;
        let bytes = floats(&[EMBEDDING, NORM, (&both, both_shape), (&down, down_shape)]);
        let folder = folder(&config, &[("model.safetensors", &bytes)]);
        let model = opened(&folder);
        ["gate", "up", "down"].map(|stem| {
            let name = format!("blk.0.ffn_{stem}_exps.weight");
            let info = model.tensors().find(|info| info.name() == name).unwrap();
            (info.dims().to_vec(), values(&model, &name))
        })
    };
    // Values are places in the data: 16 are before the first, 64 before the second.
    let at = |start: usize, places: [usize; 24]| -> Vec<f32> {
        places[..12].iter().map(|place| (start + place) as f32).collect()
    };
    let [gate, up, down] = open([&[2, 4, 6], &[2, 3, 4]]);
    assert_eq!((&gate.0, &up.0, &down.0), (&vec![4, 3, 2], &vec![4, 3, 2], &vec![3, 4, 2]));
    let column = |col: usize, cols: usize, index: usize| index % 4 * cols + col + index / 4;
    let first = |col: usize| std::array::from_fn(|index| column(col, 6, index % 12));
    assert_eq!(gate.1[..12], at(16, first(0)));
    assert_eq!(up.1[..12], at(16, first(3)));
    assert_eq!(down.1[..12], at(64, std::array::from_fn(|i| i % 12 % 3 * 4 + i % 12 / 3)));
    let [gate, up, down] = open([&[2, 6, 4], &[2, 4, 3]]);
    assert_eq!((&gate.0, &up.0, &down.0), (&vec![4, 3, 2], &vec![4, 3, 2], &vec![3, 4, 2]));
    assert_eq!(gate.1[..12], at(16, std::array::from_fn(|i| i % 12)));
    assert_eq!(up.1[..12], at(16, std::array::from_fn(|i| 12 + i % 12)));
    assert_eq!(down.1[..12], at(64, std::array::from_fn(|i| i % 12)));
}

/// Kimi K2 has V3's shape under a name of its own.
#[test]
fn kimi_k2_is_read_as_deepseek_v3() {
    let shared = json!({
        "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "kv_lora_rank": 4, "qk_rope_head_dim": 2,
        "qk_nope_head_dim": 2, "v_head_dim": 2, "q_lora_rank": 4, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0,
            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
    });
    let entries = |model_type: &str| {
        let mut config = shared.clone();
        config["model_type"] = json!(model_type);
        let model = settings_of(&config);
        let told = model.metadata().iter().filter(|(key, _)| *key != "general.name");
        let told = told.map(|(key, value)| (key.to_owned(), value.clone()));
        told.collect::<Vec<_>>()
    };
    let kimi = entries("kimi_k2");
    assert_eq!(kimi, entries("deepseek_v3"));
    assert!(kimi.iter().any(|(key, _)| key == "deepseek2.rope.scaling.yarn_log_multiplier"));
}

#[test]
fn an_index_is_believed_as_far_as_it_is_true() {
    let (first, second) = (floats(&[EMBEDDING]), floats(&[NORM]));
    let other = floats(&[EMBEDDING, NORM]);
    let index = |names: &[(&str, &str)]| {
        let map: serde_json::Map<String, Json> =
            names.iter().map(|(name, file)| ((*name).to_owned(), json!(file))).collect();
        json!({ "weight_map": map }).to_string().into_bytes()
    };
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let good = index(&[(EMBEDDING.0, one), (NORM.0, two)]);
    let gone = index(&[(EMBEDDING.0, "model-00001-of-00009.safetensors")]);
    let lies = index(&[("model.layers.9.mlp.up_proj.weight", one)]);
    let escapes = index(&[(EMBEDDING.0, "../model.safetensors")]);
    for index in [&good, &gone, &lies, &escapes, &b"no json".to_vec()] {
        let files: [(&str, &[u8]); 4] = [
            (one, &first),
            (two, &second),
            // The same weights in the layout of another program.
            ("consolidated.safetensors", &other),
            ("model.safetensors.index.json", index),
        ];
        let folder = folder(&config(), &files);
        assert_eq!(names(&opened(&folder)), ["output_norm.weight", "token_embd.weight"]);
    }
    let missing = folder(&config(), &[(two, &second)]);
    let error = weights::open(missing.path()).unwrap_err();
    assert!(matches!(error, WeightsError::PartMissing { part: 1, count: 2, .. }), "{error}");
    let twice =
        folder(&config(), &[("model-a.safetensors", &first), ("model.safetensors", &other)]);
    assert!(refused(twice.path()).contains("tensor token_embd.weight is in them twice"));
}

#[test]
fn scaled_frequencies_become_tensors() {
    let mut config = config();
    config["head_dim"] = json!(8);
    config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    });
    let folder = folder(&config, &[("model.safetensors", &floats(&[NORM]))]);
    // transformers 5.24.0, _compute_llama3_parameters, of base 500 and 8 dimensions.
    let expected = [1.0, 1.0, 8.0, 8.0];
    let found = values(&opened(&folder), "rope_freqs.weight");
    assert!(
        found.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-4),
        "{found:?}"
    );
}

#[test]
fn settings_that_are_wrong_are_named() {
    let bytes = floats(&[NORM]);
    let cases: &[(&str, Json, &str)] = &[
        ("model_type", json!("mamba"), "model_type is \"mamba\", which is not supported"),
        ("hidden_size", json!("wide"), "hidden_size is \"wide\", expected a whole number"),
        ("hidden_size", json!(-1), "hidden_size is -1"),
        ("num_hidden_layers", Json::Null, "num_hidden_layers is missing"),
        ("rms_norm_eps", json!([1]), "rms_norm_eps is a list of 1"),
        ("hidden_act", json!("relu"), "hidden_act is \"relu\", supported: \"silu\""),
        ("head_dim", json!(4_000_000_000u32), "head_dim is 4000000000, at most"),
        ("rope_scaling", json!({"rope_type": "odd"}), "scaled by \"odd\""),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor is missing"),
        ("rope_scaling", json!(3), "rope_scaling is 3, expected an object"),
        ("quantization_config", json!({"quant_method": "bnb"}), "quant_method is \"bnb\""),
    ];
    for (key, value, expected) in cases {
        let mut config = config();
        config[*key] = value.clone();
        let folder = folder(&config, &[("model.safetensors", &bytes)]);
        let error = refused(folder.path());
        assert!(error.contains(expected) && error.contains("config.json"), "{key}: {error}");
    }
    let deep = tempfile::tempdir().unwrap();
    std::fs::write(deep.path().join("config.json"), "[".repeat(100_000)).unwrap();
    assert!(refused(deep.path()).contains("it is no JSON"));
    let empty = folder(&config(), &[]);
    assert!(refused(empty.path()).contains("there are no .safetensors files in it"));
    assert!(refused(tempfile::tempdir().unwrap().path()).contains("a folder without config.json"));
}

fn key<'a, T: weights::FromValue<'a>>(model: &'a WeightFile, key: &str) -> Option<T> {
    model.metadata().optional(key).unwrap()
}

fn settings_of(config: &Json) -> WeightFile {
    opened(&folder(config, &[("model.safetensors", &floats(&[NORM]))]))
}

/// As Gemma 3 12B is published: the class fills in the rest.
#[test]
fn keys_that_are_left_out_are_those_of_the_class() {
    let sparse = json!({
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 4, "intermediate_size": 8,
            "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 2,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    });
    let gemma = settings_of(&sparse);
    for (name, expected) in [
        ("gemma3.context_length", 131_072),
        ("gemma3.attention.key_length", 256),
        ("gemma3.rope.dimension_count", 256),
        ("gemma3.attention.head_count_kv", 2),
        ("gemma3.attention.sliding_window", 1024),
    ] {
        assert_eq!(key::<u32>(&gemma, name), Some(expected), "{name}");
    }
    for (name, expected) in [
        ("gemma3.attention.layer_norm_rms_epsilon", 1e-6),
        ("gemma3.rope.freq_base", 1e6),
        ("gemma3.rope.freq_base_swa", 1e4),
        ("gemma3.rope.scaling.factor", 8.0),
        // The root of 256, below one.
        ("gemma3.attention.scale", 0.0625),
    ] {
        assert_eq!(key::<f32>(&gemma, name), Some(expected), "{name}");
    }
    assert_eq!(key::<f32>(&gemma, "gemma3.final_logit_softcapping"), None);
    let mut second = config();
    second["model_type"] = json!("gemma2");
    for (given, expected) in [(None, 30.0), (Some(Json::Null), 0.0), (Some(json!(2.0)), 2.0)] {
        given.into_iter().for_each(|given| second["final_logit_softcapping"] = given);
        let found = key::<f32>(&settings_of(&second), "gemma2.final_logit_softcapping");
        assert_eq!(found, Some(expected));
    }
    assert_eq!(key::<bool>(&gemma, "pelton.head_is_embedding"), Some(true));
    // A head that is there is one, unless the file itself says that it is a copy.
    let head: (&str, &[u64]) = ("lm_head.weight", &[3, 4]);
    let mut tied = config();
    tied["model_type"] = json!("smollm3");
    let heads = |config: &Json| {
        let files = [("model.safetensors", floats(&[EMBEDDING, head]))];
        let folder = folder(config, &files.each_ref().map(|(name, bytes)| (*name, &**bytes)));
        opened(&folder).contains("output.weight")
    };
    assert!(heads(&tied));
    tied["tie_word_embeddings"] = json!(true);
    assert!(!heads(&tied));
    // What is there holds, and so does a null.
    let mut mistral = config();
    mistral["model_type"] = json!("mistral");
    let window = "llama.attention.sliding_window";
    assert_eq!(key::<u32>(&settings_of(&mistral), window), Some(4096));
    for (given, expected) in [(Json::Null, None), (json!(7), Some(7))] {
        mistral["sliding_window"] = given;
        assert_eq!(key::<u32>(&settings_of(&mistral), window), expected);
    }
    // Positions that are scaled where nothing is said, and as is said where something is.
    let gpt = json!({
        "model_type": "gpt_oss", "hidden_size": 4, "num_hidden_layers": 1,
    });
    let factor = "gpt-oss.rope.scaling.factor";
    assert_eq!(key::<f32>(&settings_of(&gpt), factor), Some(32.0));
    let mut older = gpt.clone();
    older["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0, "truncate": false});
    assert_eq!(key::<f32>(&settings_of(&older), factor), Some(4.0));
    assert_eq!(key::<f32>(&settings_of(&older), "gpt-oss.rope.freq_base"), Some(150_000.0));
}

/// Relatives of families that differ by settings alone.
#[test]
fn variants_are_read_by_their_settings() {
    let of = |family: &str, changes: &[(&str, Json)]| {
        let mut config = config();
        config["model_type"] = json!(family);
        config["num_hidden_layers"] = json!(4);
        changes.iter().for_each(|(key, value)| config[*key] = value.clone());
        settings_of(&config)
    };
    let pattern = |model: &WeightFile, name: &str| match model.metadata().get(name) {
        Some(Value::Array(array)) => Some((**array).clone()),
        _ => None,
    };
    let kinds =
        json!(["full_attention", "sliding_attention", "sliding_attention", "full_attention"]);
    let listed = [false, true, true, false];
    let qwen = "qwen2.attention.sliding_window_pattern";
    let on = ("use_sliding_window", json!(true));
    let late = of("qwen2", &[on.clone(), ("max_window_layers", json!(3))]);
    assert_eq!(pattern(&late, qwen), Some(Array::Bool([false, false, false, true].into())));
    assert_eq!(key::<u32>(&late, "qwen2.attention.sliding_window"), Some(4096));
    let by_kind = of("qwen2", &[on.clone(), ("layer_types", kinds.clone())]);
    assert_eq!(pattern(&by_kind, qwen), Some(Array::Bool(listed.into())));
    for changes in [vec![], vec![on, ("sliding_window", Json::Null)]] {
        assert_eq!(key::<u32>(&of("qwen2", &changes), "qwen2.attention.sliding_window"), None);
    }
    let ministral = of("ministral", &[("layer_types", kinds), ("sliding_window", json!(7))]);
    let found = pattern(&ministral, "llama.attention.sliding_window_pattern");
    assert_eq!(found, Some(Array::Bool(listed.into())));
    let experts = of("qwen3_moe", &[("num_experts_per_tok", json!(1))]);
    assert_eq!(key::<bool>(&experts, "qwen3moe.expert_weights_norm"), Some(false));
    // Half of each head of 128.
    assert_eq!(key::<u32>(&of("glm", &[]), "glm4.rope.dimension_count"), Some(64));
    let columns = of("minimax_m2", &[("head_dim", json!(128)), ("rotary_dim", json!(64))]);
    assert_eq!(key::<u32>(&columns, "minimax-m2.rope.dimension_count"), Some(64));
    for dense in [
        ("first_k_dense_replace", json!(2)),
        ("mlp_layer_types", json!(["dense", "dense", "sparse", "sparse"])),
    ] {
        let lite = of("glm4_moe_lite", &[dense]);
        assert_eq!(key::<u32>(&lite, "deepseek2.leading_dense_block_count"), Some(2));
    }
    // Within the context that a model was made for, it is none.
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.0});
    let dynamic = of("llama", &[("rope_scaling", dynamic)]);
    assert_eq!(key::<&str>(&dynamic, "llama.rope.scaling.type"), None);
    let endless = json!(4_000_000_000u32);
    let mut config = config();
    config["model_type"] = json!("qwen2");
    config["use_sliding_window"] = json!(true);
    config["num_hidden_layers"] = endless;
    let error = refused(folder(&config, &[("model.safetensors", &floats(&[NORM]))]).path());
    assert!(error.contains("num_hidden_layers is 4000000000, at most"), "{error}");
}

/// The tokenizer's settings, further files, and the templates: the usual one and that for tools.
type TemplateCase<'a> = (&'a Json, &'a [(&'a str, &'a str)], [Option<&'a str>; 2]);

/// Which template transformers takes, with tools and without, and which tokens it may name.
#[test]
fn templates_and_what_they_may_name_are_those_of_transformers() {
    let bytes = floats(&[NORM]);
    let list = json!({
        "chat_template": [
            {"name": "tool_use", "template": "T"}, {"name": "default", "template": "A"},
        ],
        "bos_token": "<s>", "unk_token": {"content": "<unk>", "lstrip": false},
        "extra_special_tokens": {"image_token": "<img>"}, "pad_token": null,
        "add_bos_token": true,
    });
    let one = json!({"chat_template": "C"});
    let cases: [TemplateCase<'_>; 4] = [
        (&list, &[], [Some("A"), Some("T")]),
        (&list, &[("chat_template.jinja", "J")], [Some("J"), None]),
        (
            &one,
            &[("chat_template.jinja", "J"), ("additional_chat_templates/tool_use.jinja", "U")],
            [Some("J"), Some("U")],
        ),
        (&one, &[], [Some("C"), None]),
    ];
    for (settings, files, expected) in cases {
        let folder = folder(&config(), &[("model.safetensors", &bytes)]);
        std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("tokenizer_config.json", &settings.to_string()).unwrap();
        write("special_tokens_map.json", r#"{"sep_token": "<sep>", "unk_token": "?"}"#).unwrap();
        files.iter().for_each(|(name, text)| write(name, text).unwrap());
        let model = opened(&folder);
        let found = ["tokenizer.chat_template", "tokenizer.chat_template.tool_use"]
            .map(|name| model.metadata().optional::<&str>(name).unwrap());
        assert_eq!(found, expected, "{files:?}");
        let Some(Value::Array(tokens)) = model.metadata().get("pelton.template_tokens") else {
            panic!("no tokens");
        };
        let both = ["unk_token", "<unk>", "image_token", "<img>", "sep_token", "<sep>"];
        let of_map = ["sep_token", "<sep>", "unk_token", "?"];
        let of: &[&str] = if *settings == list { &both } else { &of_map };
        assert_eq!(**tokens, Array::Strings(of.iter().collect()));
    }
}

/// A family's settings that change the answer, and that it has no word for here.
#[test]
fn settings_that_change_the_answer_are_refused_by_their_key() {
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "llama_4_scaling_beta": 0.1});
    let mixed = json!(["dense", "sparse", "dense"]);
    let growth = "rope_parameters.llama_4_scaling_beta is not supported in llama";
    let cases: &[(&str, &str, Json, &str)] = &[
        ("gemma3_text", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("gemma", "hidden_act", json!("relu"), "hidden_act is \"relu\""),
        ("gpt_oss", "swiglu_alpha", json!(0.5), "swiglu_alpha is 0.5"),
        ("gpt_oss", "swiglu_limit", json!(6), "swiglu_limit is 6"),
        ("llama", "rope_parameters", yarn, growth),
        ("deepseek_v2", "norm_topk_prob", json!(true), "norm_topk_prob is true"),
        ("glm4_moe_lite", "mlp_layer_types", mixed, "mlp_layer_types has \"dense\" behind others"),
        ("minimax_m2", "attn_type_list", json!([1, 0]), "attn_type_list has 0"),
        ("minimax_m2", "qk_norm_type", json!("per_head"), "qk_norm_type is \"per_head\""),
        ("minimax_m2", "shared_intermediate_size", json!(8), "shared_intermediate_size is 8"),
        ("llama", "partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5"),
    ];
    for (family, key, value, expected) in cases {
        let mut config = config();
        config["model_type"] = json!(family);
        config["topk_method"] = Json::Null;
        config["num_experts_per_tok"] = json!(1);
        settings_of(&config);
        config[*key] = value.clone();
        let folder = folder(&config, &[("model.safetensors", &floats(&[NORM]))]);
        let error = refused(folder.path());
        assert!(error.contains(expected), "{family} {key}: {error}");
    }
    // What is as it always is holds whatever way it is written.
    let mut config = config();
    config["model_type"] = json!("gpt_oss");
    config["swiglu_limit"] = json!(7);
    settings_of(&config);
}

/// By how much turns grow, where two factors are told; DeepSeek's scores by the second.
#[test]
fn factors_of_yarn_are_told_as_transformers_works_them_out() {
    let grown = |by: f32| 0.1 * by * 8f32.ln() + 1.0;
    let cases = [
        ("deepseek_v3", json!({"mscale": 1.0, "mscale_all_dim": 1.0}), None, Some(0.1)),
        (
            "deepseek_v3",
            json!({"mscale": 1.0, "mscale_all_dim": 0.5}),
            Some(grown(1.0) / grown(0.5)),
            Some(0.05),
        ),
        ("deepseek_v3", json!({"mscale_all_dim": 0.5}), Some(grown(1.0)), Some(0.05)),
        ("deepseek_v3", json!({"mscale": 0.5}), None, None),
        ("llama", json!({}), None, None),
        ("llama", json!({"mscale": 2.0, "mscale_all_dim": 2.0}), Some(1.0 / grown(1.0)), None),
        ("llama", json!({"attention_factor": 0.7}), Some(0.7 / grown(1.0)), None),
        ("ministral3", json!({"mscale": 1.0, "mscale_all_dim": 1.0}), None, Some(1.0)),
    ];
    for (family, told, factor, multiplier) in cases {
        let mut config = config();
        config["model_type"] = json!(family);
        config["topk_method"] = Json::Null;
        config["num_experts_per_tok"] = json!(1);
        config["rope_parameters"] = told.clone();
        config["rope_parameters"]["rope_type"] = json!("yarn");
        config["rope_parameters"]["factor"] = json!(8.0);
        let model = settings_of(&config);
        let metadata = model.metadata();
        let prefix: &str = metadata.required("general.architecture").unwrap();
        let float = |key: &str| -> Option<f32> {
            metadata.optional(&format!("{prefix}.rope.scaling.{key}")).unwrap()
        };
        let near = |found: Option<f32>, expected: Option<f32>| match (found, expected) {
            (Some(found), Some(expected)) => (found - expected).abs() < 1e-6,
            (found, expected) => found == expected,
        };
        let found = (float("attn_factor"), float("yarn_log_multiplier"));
        let is_same = near(found.0, factor) && near(found.1, multiplier);
        assert!(is_same, "{family} {told}: {found:?}, not {:?}", (factor, multiplier));
    }
}

#[test]
fn an_unknown_kind_is_told_the_nearest_known_one() {
    for (kind, nearest) in [
        ("deepseek_v4", "deepseek_v3"),
        ("qwen2_moe", "qwen3_moe"),
        ("llama4", "llama"),
        ("lama", "llama"),
        ("Gemma-3", "gemma3"),
    ] {
        let mut config = config();
        config["model_type"] = json!(kind);
        let error = refused(folder(&config, &[]).path());
        assert!(error.contains(&format!("(the nearest that is: {nearest})")), "{kind}: {error}");
    }
}

#[test]
fn hostile_headers_are_refused() {
    let one = |entry: &str| file(&format!("{{\"model.norm.weight\":{entry}}}"), &[0; 16]);
    let good = r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16]}"#;
    let cases: &[(Vec<u8>, &str)] = &[
        (b"PK\x03\x04and so on".to_vec(), "a zip archive"),
        (vec![1, 2, 3], "no safetensors file"),
        (u64::MAX.to_le_bytes().to_vec(), "no safetensors file"),
        (file("{", &[])[..9].to_vec(), "its header is not what it must be"),
        (file("{}", &[])[..9].to_vec(), "its header ends at byte 10"),
        (file("[]", &[]), "no safetensors file"),
        (file(&format!("{{\"a\":{}", "[".repeat(1000)), &[]), "its header is not"),
        (one(r#"{"dtype":"F99","shape":[4],"data_offsets":[0,16]}"#), "dtype F99"),
        (one(r#"{"dtype":"F32","shape":[5],"data_offsets":[0,16]}"#), "takes bytes 0 to 16"),
        (one(r#"{"dtype":"F32","shape":[4],"data_offsets":[16,0]}"#), "takes bytes 16 to 0"),
        (one(r#"{"dtype":"F32","shape":[4],"data_offsets":[4,20]}"#), "ends 20 bytes into"),
        (one(r#"{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}"#), "no shape as it must be"),
        (
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}"#),
            "overflow",
        ),
        (
            file(
                r#"{"model.norm.weight":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}"#,
                &[],
            ),
            "must be 1 to 4 dimensions",
        ),
        (one(r#"{"dtype":"F32","shape":[1,1,1,1,4],"data_offsets":[0,16]}"#), "must be 1 to 4"),
        (one(r#"{"dtype":"I8","shape":[16],"data_offsets":[0,16]}"#), "stored as I8"),
        (
            one(&format!(
                "{},\"model.norm.weight\":{}",
                r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
                r#"{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#
            )),
            "apart from the one before it",
        ),
        (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), "its 8 last bytes"),
        (one(&format!("{good},\"lm_head.weight\":{good}")), "inside the one before it"),
        (
            one(&format!(
                "{good},\"a\":{}",
                r#"{"dtype":"F32","shape":[2],"data_offsets":[8,18446744073709551615]}"#
            )),
            "tensor a takes bytes",
        ),
    ];
    for (bytes, expected) in cases {
        let folder = folder(&config(), &[("model.safetensors", bytes)]);
        let error = refused(folder.path());
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("model.safetensors"), "{error}");
    }
    // Cut anywhere, it is an error and no crash.
    let whole = floats(&[EMBEDDING, NORM]);
    for length in 1..whole.len() {
        let folder = folder(&config(), &[("model.safetensors", &whole[..length])]);
        assert!(weights::open(folder.path()).is_err(), "{length}");
    }
}

/// 2 rows of 64 codes of 4 bits, all 0x21, with a scale and a bias for each 32.
fn quantized(words: u64, scales: &str) -> Vec<u8> {
    quantized_as("lm_head", words, scales)
}

fn quantized_as(path: &str, words: u64, scales: &str) -> Vec<u8> {
    let part = |dtype: &str, cols: u64, from: u64, to: u64| {
        let offsets = [8 * words + from, 8 * words + to];
        json!({"dtype": dtype, "shape": [2, cols], "data_offsets": offsets})
    };
    let header = json!({
        format!("{path}.weight"): {
            "dtype": "U32", "shape": [2, words], "data_offsets": [0, 8 * words],
        },
        format!("{path}.scales"): part(scales, 2, 0, 8),
        format!("{path}.biases"): part("F16", 2, 8, 16),
    });
    let mut data = vec![0x21; 8 * words as usize];
    // In f16: scales of 2, biases of 1 to 4.
    data.extend([0, 0x40, 0, 0x40, 0, 0x40, 0, 0x40]);
    data.extend([0, 0x3c, 0, 0x40, 0, 0x42, 0, 0x44]);
    file(&header.to_string(), &data)
}

#[test]
fn quantized_weights_are_put_together_from_three_tensors() {
    let mut config = config();
    config["quantization"] = json!({"group_size": 32, "bits": 4});
    let folder_of = |config: &Json, bytes: &[u8]| folder(config, &[("model.safetensors", bytes)]);
    let model = opened(&folder_of(&config, &quantized(8, "F16")));
    let shape = model.shape("output.weight").unwrap();
    assert_eq!((shape.rows, shape.cols, shape.format.name()), (2, 64, "MLX 4-bit"));
    let values = values(&model, "output.weight");
    // Codes 1, 2, 1, 2, ...; the lower four bits first.
    let expected = |bias: f32| [bias + 2.0, bias + 4.0].repeat(16);
    assert_eq!(values, [1.0, 2.0, 3.0, 4.0].map(expected).concat());

    // Shapes tell the bits that the settings leave out.
    config["quantization"]["bits"] = json!(8);
    let model = opened(&folder_of(&config, &quantized(8, "F16")));
    assert_eq!(model.shape("output.weight").unwrap().format.name(), "MLX 4-bit");
    config["quantization"]["lm_head"] = json!({"group_size": 32, "bits": 4});
    assert!(weights::open(folder_of(&config, &quantized(8, "F16")).path()).is_ok());

    config["quantization"]["lm_head"] = json!({"group_size": 32, "bits": 4, "mode": "mxfp4"});
    let error = refused(folder_of(&config, &quantized(8, "F16")).path());
    assert!(error.contains("tensor lm_head.weight has rows of 8 words"), "{error}");
    config["quantization"]["lm_head"] = json!(false);
    let error = refused(folder_of(&config, &quantized(8, "F16")).path());
    assert!(error.contains("has scales, which the settings say it does not"), "{error}");
    config["quantization"]["lm_head"] = json!(true);
    for (words, scales, expected) in [(9, "F16", "has rows of 9 words"), (8, "BF16", "no biases")] {
        let error = refused(folder_of(&config, &quantized(words, scales)).path());
        assert!(error.contains(expected), "{expected}: {error}");
    }
    config["quantization"]["mode"] = json!("odd");
    let error = refused(folder_of(&config, &quantized(8, "F16")).path());
    assert!(error.contains("mode is \"odd\""), "{error}");
}

/// As MLX stores DeepSeek V2; of V3 it stores both parts, and calls them otherwise.
#[test]
fn a_quantized_matrix_behind_a_latent_is_parted_too() {
    let mut config = config();
    config["model_type"] = json!("deepseek_v2");
    config["quantization"] = json!({"group_size": 32, "bits": 4});
    for (key, value) in [
        ("num_attention_heads", 1),
        ("qk_nope_head_dim", 1),
        ("v_head_dim", 1),
        ("num_experts_per_tok", 1),
        ("kv_lora_rank", 64),
    ] {
        config[key] = json!(value);
    }
    let of = |path: &str| {
        let bytes = quantized_as(&format!("model.layers.0.self_attn.{path}"), 8, "F16");
        opened(&folder(&config, &[("model.safetensors", &bytes)]))
    };
    let row = |biases: [f32; 2]| biases.map(|bias| [bias + 2.0, bias + 4.0].repeat(16)).concat();
    let model = of("kv_b_proj");
    let (keys, wanted) = (model.tensor("blk.0.attn_k_b.weight").unwrap(), [1, 64, 1].as_slice());
    assert_eq!(keys.dims, wanted);
    assert_eq!(values(&model, "blk.0.attn_k_b.weight"), row([1.0, 2.0]));
    assert_eq!(values(&model, "blk.0.attn_v_b.weight"), row([3.0, 4.0]));
    assert_eq!(names(&of("embed_q")), ["blk.0.attn_k_b.weight"]);
    assert_eq!(names(&of("unembed_out")), ["blk.0.attn_v_b.weight"]);
}

#[test]
fn a_missing_adapter_is_told_from_one_that_is_none() {
    let folder = TempDir::new().unwrap();
    let refused = |path: &Path| weights::Adapter::open(path).err().unwrap().to_string();
    assert!(refused(folder.path()).contains("it is no adapter"));
    assert!(refused(&folder.path().join("nowhere")).contains("there is no such folder"));
}
