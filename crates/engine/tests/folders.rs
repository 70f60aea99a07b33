//! Is a folder of safetensors served, tokenizer and all, as it is evaluated? And from the weights
//! that an earlier start kept?
//!
//! The folders are golden ones of `testkit`, whose own tests hold the evaluation against the
//! authors' code and against MLX.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use backend_cpu::CpuBackend;
use engine::{End, Engine, EngineOptions, GenerateRequest, Generation, Prompt, Service};
use messages::{CacheNamespace, Refusal, RefusalKind, SamplingParams, SharingMode, TokenId};
use serde_json::json;

const CONTEXT: u32 = 64;
const PROMPT: &str = "ABBA+CAB";
/// By the tokenizer below: `AB` is one token.
const PROMPT_IDS: [TokenId; 6] = [71, 33, 32, 10, 34, 71];

/// Copies a golden folder and gives it a tokenizer of 72 tokens.
fn with_tokenizer(golden: &str, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let golden = format!("{}/../testkit/golden/{golden}", env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let mut vocabulary = serde_json::Map::new();
    for id in 0..71u32 {
        vocabulary.insert(char::from_u32(0x21 + id).unwrap().to_string(), json!(id));
    }
    vocabulary.insert("AB".to_owned(), json!(71));
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["A B"]},
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(to.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
}

/// Ids and text of an answer.
fn answer(engine: &Engine) -> (Vec<TokenId>, String) {
    answer_to(engine, Prompt::Text(PROMPT.to_owned())).unwrap()
}

fn answer_to(engine: &Engine, prompt: Prompt) -> Result<(Vec<TokenId>, String), Refusal> {
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt,
        params: SamplingParams {
            max_tokens: Some(20),
            ignore_eos: true,
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation: Generation = runtime.block_on(engine.generate(request))?;
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        ids.extend(delta.tokens.iter().map(|token| token.id));
        text.push_str(&delta.text);
        match delta.end {
            None => {}
            Some(End::Finished { .. }) => return Ok((ids, text)),
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
        }
    }
}

/// The likeliest token behind each position, evaluated without an engine.
fn likeliest(path: &Path, text: &[TokenId]) -> Vec<TokenId> {
    let file = weights::open(path).unwrap();
    let backend = CpuBackend::open(Some(1), None).unwrap();
    let mut evaluation = testkit::load(&file, &backend, CONTEXT, 7).unwrap();
    let mut best = Vec::new();
    let each = evaluation.each(text, |_, logits| {
        let largest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        best.push(largest.unwrap() as TokenId);
    });
    each.unwrap();
    best
}

/// As Gemma 3 1B, which shares its tokenizer with models of images and has no row for theirs.
#[test]
fn added_tokens_may_have_no_weights_and_then_are_in_no_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    with_tokenizer("families/gemma2", &path);
    let options = EngineOptions { threads: Some(2), ..EngineOptions::new(path.clone(), "model") };
    let expected = answer(&Engine::load(&options).unwrap());
    let place = path.join("tokenizer.json");
    let text = std::fs::read_to_string(&place).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = weights::open(&path).unwrap().shape("token_embd.weight").unwrap().rows as u32;
    tokenizer["added_tokens"] = json!([{
        "id": rows, "content": "<image>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false,
    }]);
    std::fs::write(&place, tokenizer.to_string()).unwrap();
    let engine = Engine::load(&options).unwrap();
    assert_eq!(answer(&engine), expected);
    for prompt in [Prompt::Text("A<image>B".to_owned()), Prompt::Tokens(vec![32, rows])] {
        let refusal = answer_to(&engine, prompt).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{}", refusal.message);
        let expected = format!("token {rows} (<image>), for which this model has no weights");
        assert!(refusal.message.contains(&expected), "{}", refusal.message);
    }
    // Text that the model has no weights for is of another model's tokenizer.
    tokenizer["added_tokens"] = json!([]);
    tokenizer["model"]["vocab"]["ABBA"] = json!(rows);
    std::fs::write(&place, tokenizer.to_string()).unwrap();
    let error = Engine::load(&options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(&format!("token {rows} is ordinary text")), "{error}");
}

#[test]
fn folders_are_served_as_they_are_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    for golden in ["mlx/llama_4bit", "mlx/qwen3_mixed", "mlx/llama_mxfp8", "families/gemma2"] {
        let path = folder.path().join(golden.replace('/', "-"));
        with_tokenizer(golden, &path);
        let summary = engine::inspect(&path).unwrap();
        assert!(summary.has_chat_template && summary.vocabulary_size == 72, "{golden}");
        let load = |use_mmap| {
            let mut options = EngineOptions::new(path.clone(), "model");
            options.threads = Some(2);
            options.repack_cache = Some(path.with_extension("packed"));
            options.weights.use_mmap = use_mmap;
            Engine::load(&options).unwrap_or_else(|error| panic!("{golden}: {error}"))
        };
        // The second start takes back what the first one kept.
        let (ids, text) = answer(&load(true));
        assert_eq!(answer(&load(false)), (ids.clone(), text.clone()), "{golden}");
        let whole = [PROMPT_IDS.as_slice(), &ids].concat();
        let best = likeliest(&path, &whole);
        assert_eq!(ids, best[PROMPT_IDS.len() - 1..whole.len() - 1], "{golden}");
        assert_eq!(text.chars().count(), ids.len() + ids.iter().filter(|&&id| id == 71).count());
    }
    let path = folder.path().join("mlx-llama_4bit");
    let says = json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [70, 71]});
    std::fs::write(path.join("generation_config.json"), says.to_string()).unwrap();
    let engine = Engine::load(&EngineOptions::new(path.clone(), "model")).unwrap();
    let defaults = &engine.models()[0].defaults;
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (0.6, 20, 0.95));
    let wild = json!({"temperature": 7.0});
    std::fs::write(path.join("generation_config.json"), wild.to_string()).unwrap();
    let error = Engine::load(&EngineOptions::new(path.clone(), "model")).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("generation_config.json: temperature is 7"), "{error}");
    std::fs::remove_file(path.join("tokenizer.json")).unwrap();
    let error = engine::inspect(&path).unwrap_err().to_string();
    assert!(error.contains("mlx-llama_4bit has no tokenizer.json"), "{error}");
}
