//! Are the vectors of texts those of sentence-transformers, whatever else runs?
//!
//! Models and vectors are of `tools/golden/make_tiny_embeddings.py`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{
    Deadline, End, Engine, EngineOptions, EngineStatus, Failpoints, Gate, GenerateRequest, Output,
    Pooling, Prompt, Service, VectorInput,
};
use messages::{CacheNamespace, Refusal, RefusalKind, SamplingParams, SharingMode, TokenId};
use serde::Deserialize;

/// What sentence-transformers says of some texts.
#[derive(Deserialize)]
struct Truth {
    texts: Vec<String>,
    ids: Vec<Vec<TokenId>>,
    vectors: Vec<Vec<f32>>,
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/embeddings").join(name)
}

fn truth(name: &str) -> Truth {
    let text = std::fs::read(golden(&format!("{name}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn options(file: &str, device: &str) -> EngineOptions {
    EngineOptions {
        device: device.to_owned(),
        threads: Some(2),
        // Longer texts take several steps, and some are read in one.
        step_tokens_max: Some(24),
        sequences_max: 3,
        ..EngineOptions::new(golden(file), "model")
    }
}

fn load(file: &str, device: &str) -> Engine {
    Engine::load(&options(file, device)).unwrap()
}

fn request(prompt: Prompt) -> GenerateRequest {
    GenerateRequest {
        model: "default".to_owned(),
        prompt,
        params: SamplingParams {
            max_tokens: Some(1),
            ignore_eos: true,
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::On,
        urgency: engine::Urgency::default(),
    }
}

fn text(text: &str) -> Prompt {
    Prompt::Vector(VectorInput::Text { text: text.to_owned(), cuts: false })
}

/// The vector, and how many tokens the text had.
fn try_vector(engine: &Engine, prompt: Prompt) -> Result<(Vec<f32>, u32), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request(prompt)))?;
    while generation.next_blocking().expect("an end").end.is_none() {}
    let vector = generation.take_vector().expect("a vector");
    Ok((vector.into_vec(), generation.prompt_tokens))
}

fn vector(engine: &Engine, prompt: Prompt) -> Vec<f32> {
    try_vector(engine, prompt).unwrap().0
}

/// Largest difference of a vector, of length 1, from the true one.
fn difference(mut got: Vec<f32>, truth: &[f32]) -> f32 {
    let length = got.iter().map(|value| value * value).sum::<f32>().sqrt();
    got.iter_mut().for_each(|value| *value /= length);
    assert_eq!(got.len(), truth.len());
    got.iter().zip(truth).map(|(got, truth)| (got - truth).abs()).fold(0.0, f32::max)
}

/// A golden folder with files of sentence-transformers beside it.
fn with_files(name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, EngineOptions) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for beside in ["", "1_Pooling"] {
        for entry in std::fs::read_dir(golden(name).join(beside)).unwrap() {
            let path = entry.unwrap().path();
            let to = folder.path().join(beside).join(path.file_name().unwrap());
            if path.is_file() {
                std::fs::copy(&path, to).unwrap();
            }
        }
    }
    for (file, text) in files {
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let options = options(name, "reference");
    let options = EngineOptions { path: folder.path().to_owned(), ..options };
    (folder, options)
}

/// As `encode` of sentence-transformers puts the default prompt before each text.
#[test]
fn texts_are_read_as_their_folder_says() {
    let prompts = r#"{"default_prompt_name": "query", "prompts": {"query": "Find\nQuery:"}}"#;
    let plain = load("qwen3_last", "reference");
    let (folder, options) =
        with_files("qwen3_last", &[("config_sentence_transformers.json", prompts)]);
    let engine = Engine::load(&options).unwrap();
    let expected = vector(&plain, text("Find\nQuery:a cat"));
    assert_eq!(vector(&engine, text("a cat")), expected);
    assert_ne!(vector(&plain, text("a cat")), expected);
    let nobody = r#"{"default_prompt_name": "passage", "prompts": {"query": "Q"}}"#;
    std::fs::write(folder.path().join("config_sentence_transformers.json"), nobody).unwrap();
    let error = Engine::load(&options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("default_prompt_name is \"passage\""), "{error}");

    let long = "word ".repeat(20);
    let cut = || Prompt::Vector(VectorInput::Text { text: long.clone(), cuts: true });
    assert!(try_vector(&plain, text(&long)).unwrap().1 > 8);
    let short = r#"{"max_seq_length": 8}"#;
    let (_folder, options) = with_files("qwen3_last", &[("sentence_bert_config.json", short)]);
    let engine = Engine::load(&options).unwrap();
    let refusal = try_vector(&engine, text(&long)).unwrap_err();
    assert!(refusal.message.contains("this model reads 1 to 8"), "{}", refusal.message);
    assert_eq!(try_vector(&engine, cut()).unwrap().1, 8);
}

/// Every model, and the name of its truth.
const MODELS: &[(&str, &str)] = &[
    ("bert_first", "bert_first"),
    ("bert_first.gguf", "bert_first"),
    ("bert_mean", "bert_mean"),
    ("llama_mean", "llama_mean"),
    ("nomic_mean", "nomic_mean"),
    ("nomic_mean.gguf", "nomic_mean"),
    ("qwen3_last", "qwen3_last"),
    ("qwen3_last.gguf", "qwen3_last"),
    ("xlm_roberta_first", "xlm_roberta_first"),
    ("xlm_roberta_first.gguf", "xlm_roberta_first"),
];

/// For wgpu a software driver will do.
fn has(device: &str) -> bool {
    engine::probe_device(device).inspect_err(|error| eprintln!("{device} skipped: {error}")).is_ok()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    // The reference computes as torch does, but for the order of sums; the processor keeps keys and
    // values in fewer bits.
    // Keys and values are in f16 on the last two.
    let gpus = [("cuda", 2e-3), ("wgpu", 2e-3)].into_iter().filter(|(device, _)| has(device));
    for (device, most) in [("reference", 2e-5), ("cpu", 6e-3)].into_iter().chain(gpus) {
        for (file, name) in MODELS {
            let (engine, truth) = (load(file, device), truth(name));
            assert_eq!(engine.models()[0].vector_width, Some(truth.vectors[0].len() as u32));
            for ((words, ids), expected) in truth.texts.iter().zip(&truth.ids).zip(&truth.vectors) {
                let (got, tokens) = try_vector(&engine, text(words)).unwrap();
                assert_eq!(tokens as usize, ids.len(), "{file}: {words}");
                let by_ids = vector(&engine, Prompt::Vector(VectorInput::Tokens(ids.clone())));
                assert_eq!(got, by_ids, "{file}: {words}: other tokens");
                let far = difference(got, expected);
                eprintln!("{file} on {device}: {far:.1e}");
                assert!(far < most, "{file} on {device}: {words}: by {far:e}");
            }
        }
    }
}

/// Bit for bit: alone or beside others, in one step or in many, behind a cached prefix or not.
#[test]
fn a_vector_does_not_depend_on_what_runs_beside_it() {
    for device in ["cpu", "cuda"].into_iter().filter(|device| *device == "cpu" || has(device)) {
        vectors_are_apart(device);
    }
}

fn vectors_are_apart(device: &str) {
    for (file, name) in MODELS {
        let texts = truth(name).texts;
        let many = EngineOptions { sequences_max: 1, prefix_cache: false, ..options(file, device) };
        let one = EngineOptions { step_tokens_max: Some(256), ..many.clone() };
        let (many, one) = (Engine::load(&many).unwrap(), Engine::load(&one).unwrap());
        let alone: Vec<_> = texts.iter().map(|words| vector(&many, text(words))).collect();
        let whole: Vec<_> = texts.iter().map(|words| vector(&one, text(words))).collect();
        assert_eq!(alone, whole, "{file}: by steps");
        let engine = load(file, device);
        for round in 0..3 {
            std::thread::scope(|scope| {
                let ask = |words: &String| vector(&engine, text(words));
                let asked: Vec<_> =
                    texts.iter().map(|words| scope.spawn(move || ask(words))).collect();
                let together = asked.into_iter().map(|thread| thread.join().unwrap());
                assert_eq!(together.collect::<Vec<_>>(), alone, "{file}, round {round}");
            });
        }
    }
}

#[test]
fn a_text_is_found_in_the_cache_only_where_its_last_token_counts() {
    for (file, found) in [("qwen3_last", true), ("llama_mean", false), ("bert_first", false)] {
        let engine = load(file, "cpu");
        let words = &truth(file).texts[4];
        let first = vector(&engine, text(words));
        assert_eq!(vector(&engine, text(words)), first);
        let hits = engine.status().prefix_cache.hit_tokens_total;
        assert_eq!(hits > 0, found, "{file}: {hits} tokens");
    }
}

#[test]
fn a_text_that_is_too_long_is_refused_or_cut() {
    let engine = load("qwen3_last", "cpu");
    let end = *truth("qwen3_last").ids[0].last().unwrap();
    let most = engine.models()[0].context_tokens_max as usize;
    let fits = vector(&engine, Prompt::Vector(VectorInput::Tokens(vec![5; most])));
    assert_eq!(fits.len(), 32);
    let refused = try_vector(&engine, Prompt::Vector(VectorInput::Tokens(vec![5; most + 1])));
    let refused = refused.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("input"));
    assert!(refused.message.contains("129 tokens"), "{refused}");
    let long = "§".repeat(2 * most);
    assert!(try_vector(&engine, text(&long)).is_err());
    let cut = Prompt::Vector(VectorInput::Text { text: long.clone(), cuts: true });
    let (cut, tokens) = try_vector(&engine, cut).unwrap();
    assert_eq!(tokens as usize, most);
    // Its end is the frame's.
    let tokenizer = weights::open(golden("qwen3_last.gguf").as_path()).unwrap();
    let tokenizer = engine::read_tokenizer(tokenizer.metadata()).unwrap();
    let mut ids = tokenizer.encode(&long, tokenizer::EncodeOptions::USER_TEXT).unwrap();
    ids.truncate(most - 1);
    ids.push(end);
    assert_eq!(vector(&engine, Prompt::Vector(VectorInput::Tokens(ids))), cut);
}

/// Who goes away, or comes too late, holds no place; what others are told does not change.
#[test]
fn a_text_that_nobody_waits_for_gives_everything_back() {
    for (file, name) in [("llama_mean", "llama_mean"), ("bert_first", "bert_first")] {
        let texts = truth(name).texts;
        let expected = vector(&load(file, "cpu"), text(&texts[4]));
        let gate = Gate::default();
        let failpoints = Failpoints::default().behind(&gate);
        let engine = EngineOptions { failpoints, ..options(file, "cpu") };
        let engine = Engine::load(&engine).unwrap();
        gate.close();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let asked = |index: usize| request(text(&texts[index]));
        let gone: Vec<_> =
            (0..3).map(|index| runtime.block_on(engine.generate(asked(index))).unwrap()).collect();
        let mut late = asked(2);
        late.urgency.deadline = Deadline::after(Instant::now(), Duration::from_millis(50));
        let late = runtime.block_on(engine.generate(late));
        let mut stays = runtime.block_on(engine.generate(asked(4))).unwrap();
        drop(gone);
        // On a slow machine it may be late before it is admitted.
        let cancelled = 3 + u64::from(late.is_ok());
        match late {
            Ok(mut late) => {
                let end = late.next_blocking().and_then(|delta| delta.end);
                assert!(matches!(end, Some(End::Late(_))), "{file}: {end:?}");
            }
            Err(refusal) => assert_eq!(refusal.kind, RefusalKind::Late, "{file}: {refusal}"),
        }
        gate.open();
        while stays.next_blocking().expect("an end").end.is_none() {}
        assert_eq!(stays.take_vector().expect("a vector").into_vec(), expected, "{file}");
        let patience = Instant::now() + Duration::from_secs(60);
        let is_over = |status: &EngineStatus| {
            let here = status.sequences_running + status.sequences_waiting + status.kv_blocks_used;
            here == 0 && status.requests_cancelled_total == cancelled
        };
        while !is_over(&engine.status()) {
            assert!(Instant::now() < patience, "{file}: {:?}", engine.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn who_asks_the_wrong_model_is_told() {
    let engine = load("qwen3_last", "cpu");
    for prompt in [Prompt::Text("a".to_owned()), Prompt::Tokens(vec![1])] {
        let refused = try_vector(&engine, prompt).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("model"));
        assert!(refused.message.contains("/v1/embeddings"), "{refused}");
    }
    // A setting says what a model is for, against its files.
    let words = EngineOptions { output: Some(Output::Logits), ..options("qwen3_last", "cpu") };
    let words = Engine::load(&words).unwrap();
    assert_eq!(words.models()[0].vector_width, None);
    let refused = try_vector(&words, text("a")).unwrap_err();
    assert!(refused.message.contains("model.pooling"), "{refused}");
    let words = EngineOptions { output: Some(Output::Logits), ..options("bert_mean", "cpu") };
    let refused = Engine::load(&words).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("cannot go on"), "{refused}");
    let mean = Output::Vector(Pooling::Mean);
    let mean = EngineOptions { output: Some(mean), ..options("qwen3_last", "cpu") };
    let mean = Engine::load(&mean).unwrap();
    assert_ne!(vector(&mean, text("ab cd")), vector(&engine, text("ab cd")));
}
