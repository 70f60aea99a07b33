//! Is a model served where the system refuses to pin its weights? The only test in its process,
//! whose limit on locked memory it lowers.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{End, Engine, EngineOptions, GenerateRequest, Prompt, Service, WeightOptions};
use messages::{CacheNamespace, SamplingParams, SharingMode, TokenId};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use testkit::tiny_model::TinyModel;

/// Root may lock memory whatever the limit: the thread that loads gives that up, too.
fn allow_locked_memory(bytes: u64) {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Memlock, limit).unwrap();
    let mut sets = capabilities(None).unwrap();
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(CapabilitySet::IPC_LOCK);
    }
    set_capabilities(None, sets).unwrap();
}

fn load(options: &EngineOptions, pin_all_weights: bool) -> Engine {
    let weights = WeightOptions { pin_all_weights, ..WeightOptions::default() };
    Engine::load(&EngineOptions { weights, ..options.clone() }).unwrap()
}

fn answer(engine: &Engine) -> Vec<TokenId> {
    let params =
        SamplingParams { max_tokens: Some(8), ignore_eos: true, ..SamplingParams::greedy() };
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(vec![5, 6, 7, 8]),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request)).unwrap();
    let mut tokens = Vec::new();
    while let Some(delta) = generation.next_blocking() {
        assert!(!matches!(delta.end, Some(End::Failed(_))), "{delta:?}");
        tokens.extend(delta.tokens.iter().map(|token| token.id));
    }
    assert_eq!(tokens.len(), 8);
    tokens
}

#[test]
fn a_refusal_costs_the_pins_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = TinyModel::default();
    std::fs::write(&path, model.to_bytes()).unwrap();
    let options = EngineOptions {
        device: "cpu".to_owned(),
        threads: Some(2),
        ..EngineOptions::new(path, "tiny")
    };
    let expected = answer(&load(&options, false));
    // Too little for the embedding, which is asked for first; what is smaller is pinned.
    allow_locked_memory(16 << 10);
    let engine = load(&options, true);
    let status = engine.status().weights;
    assert!(status.pinned_bytes > 0 && status.pinned_bytes <= 16 << 10, "{status:?}");
    assert!(status.pins_refused > 0, "{status:?}");
    assert_eq!(answer(&engine), expected);
    drop(engine);
    allow_locked_memory(0);
    let engine = load(&options, true);
    let status = engine.status().weights;
    assert_eq!(status.pinned_bytes, 0, "{status:?}");
    // The embedding, each layer's seven matrices, and maybe an output of its own.
    assert!(status.pins_refused > 7 * u64::from(model.layers), "{status:?}");
    assert_eq!(answer(&engine), expected);
}
