//! Are texts ranked as transformers ranks them?
//!
//! Models and scores are of `tools/golden/make_tiny_rerankers.py`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use engine::{Engine, EngineOptions, GenerateRequest, Prompt, Service, TextPair, VectorInput};
use messages::{CacheNamespace, Refusal, SamplingParams, SharingMode, TokenId};
use serde::Deserialize;

#[derive(Deserialize)]
struct Truth {
    pairs: Vec<[String; 2]>,
    ids: Vec<Vec<TokenId>>,
    scores: Vec<Vec<f32>>,
}

const MODELS: [&str; 4] = ["bert", "xlm_roberta", "qwen3_classifier", "qwen3_answers"];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/rerankers").join(name)
}

fn load(name: &str, device: &str, step_tokens_max: u32) -> Engine {
    Engine::load(&EngineOptions {
        device: device.to_owned(),
        threads: Some(2),
        step_tokens_max: Some(step_tokens_max),
        sequences_max: 4,
        ranks: name == "qwen3_answers",
        ..EngineOptions::new(golden(name), "model")
    })
    .unwrap()
}

fn ask(engine: &Engine, input: VectorInput) -> Result<(Vec<f32>, u32), Refusal> {
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Vector(input),
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
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request))?;
    while generation.next_blocking().expect("an end").end.is_none() {}
    let scores = generation.take_vector().expect("scores");
    Ok((scores.into_vec(), generation.prompt_tokens))
}

fn pair([query, document]: &[String; 2]) -> VectorInput {
    let (query, document) = (query.clone(), document.clone());
    VectorInput::Pair(TextPair { query, document, instruction: None })
}

/// For wgpu a software driver will do.
fn has(device: &str) -> bool {
    engine::probe_device(device).inspect_err(|error| eprintln!("{device} skipped: {error}")).is_ok()
}

#[test]
fn scores_are_those_of_transformers() {
    // Keys and values are in f16 on the last two, and what products read on the first of them.
    let gpus = [("cuda", 6e-2), ("wgpu", 2e-2)].into_iter().filter(|(device, _)| has(device));
    for (device, most) in [("reference", 1e-4), ("cpu", 6e-2)].into_iter().chain(gpus) {
        for name in MODELS {
            let engine = load(name, device, 24);
            let truth = std::fs::read(golden(&format!("{name}.json"))).unwrap();
            let truth: Truth = serde_json::from_slice(&truth).unwrap();
            assert!(engine.models()[0].ranks);
            for ((texts, ids), expected) in truth.pairs.iter().zip(&truth.ids).zip(&truth.scores) {
                let (scores, tokens) = ask(&engine, pair(texts)).unwrap();
                assert_eq!(tokens as usize, ids.len(), "{name}: {texts:?}");
                assert_eq!(scores.len(), expected.len());
                for (score, expected) in scores.iter().zip(expected) {
                    let far = (score - expected).abs();
                    eprintln!("{name} on {device}: {far:.1e}");
                    assert!(far < most, "{name} on {device}: {texts:?}: {score}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn a_score_does_not_depend_on_what_runs_beside_it() {
    for device in ["cpu", "cuda"].into_iter().filter(|device| *device == "cpu" || has(device)) {
        scores_are_apart(device);
    }
}

fn scores_are_apart(device: &str) {
    for name in MODELS {
        let truth = std::fs::read(golden(&format!("{name}.json"))).unwrap();
        let truth: Truth = serde_json::from_slice(&truth).unwrap();
        let whole = load(name, device, 1024);
        let score = |engine: &Engine, texts| ask(engine, pair(texts)).unwrap().0;
        let alone: Vec<_> = truth.pairs.iter().map(|texts| score(&whole, texts)).collect();
        let cut = load(name, device, 24);
        std::thread::scope(|scope| {
            let cut = &cut;
            let asked: Vec<_> =
                truth.pairs.iter().map(|texts| scope.spawn(move || score(cut, texts))).collect();
            let together: Vec<_> = asked.into_iter().map(|one| one.join().unwrap()).collect();
            assert_eq!(together, alone, "{name}");
        });
    }
}

#[test]
fn who_asks_the_wrong_thing_is_told() {
    let engine = load("bert", "cpu", 24);
    let text = VectorInput::Text { text: "a".to_owned(), cuts: false };
    let refused = ask(&engine, text).unwrap_err();
    assert!(refused.message.contains("/v1/rerank"), "{refused}");
    let told = TextPair {
        query: "a".to_owned(),
        document: "b".to_owned(),
        instruction: Some("c".to_owned()),
    };
    let refused = ask(&engine, VectorInput::Pair(told)).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("instruction"));
    let long = "long ".repeat(200);
    let refused = ask(&engine, pair(&["a".to_owned(), long])).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("documents"));
}
