//! Do adapters give what peft gives, many at once, and nothing to whoever asks for none?
//!
//! Model, adapters and answers are of `tools/golden/make_tiny_adapters.py`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine::{
    AdapterOptions, DeltaToken, End, Engine, EngineOptions, GenerateRequest, GpuLayers, ModelEntry,
    Prompt, Registry, RegistryOptions, Service, Speculation,
};
use messages::{CacheNamespace, Refusal, SamplingParams, SharingMode, SharingOutcome, TokenId};
use serde::Deserialize;

/// What follows the prompt, by adapter; the empty name is the model alone.
#[derive(Deserialize)]
struct Truth {
    prompt: Vec<TokenId>,
    /// The five likeliest at each place, the likeliest first.
    answers: BTreeMap<String, Vec<Vec<(TokenId, f32)>>>,
}

const ADAPTERS: [&str; 3] = ["wide", "narrow", "turned"];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/adapters").join(name)
}

fn truth() -> Truth {
    serde_json::from_slice(&std::fs::read(golden("truth.json")).unwrap()).unwrap()
}

fn options(base: &str, device: &str) -> EngineOptions {
    let adapter = |name: &str| AdapterOptions { name: name.to_owned(), path: golden(name) };
    EngineOptions {
        device: device.to_owned(),
        threads: Some(2),
        // The prompt takes several steps.
        step_tokens_max: Some(20),
        sequences_max: 4,
        adapters: ADAPTERS.map(adapter).into(),
        ..EngineOptions::new(golden(base), "base")
    }
}

struct Answer {
    tokens: Vec<DeltaToken>,
    cached_tokens: u32,
    outcome: SharingOutcome,
}

fn try_ask(
    engine: &dyn Service,
    model: &str,
    prompt: &[TokenId],
    sharing: SharingMode,
) -> Result<Answer, Refusal> {
    let request = GenerateRequest {
        model: model.to_owned(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        params: SamplingParams {
            max_tokens: Some(12),
            ignore_eos: true,
            logprobs: Some(5),
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request))?;
    let outcome = generation.sharing.outcome;
    let mut tokens = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end");
        tokens.extend(delta.tokens);
        match delta.end {
            None => {}
            Some(End::Finished { cached, .. }) => {
                return Ok(Answer { tokens, cached_tokens: cached.tokens, outcome });
            }
            Some(end) => panic!("{end:?}"),
        }
    }
}

fn ask(engine: &dyn Service, model: &str, prompt: &[TokenId]) -> Answer {
    try_ask(engine, model, prompt, SharingMode::Fresh).unwrap()
}

/// Largest difference of log-probabilities, of tokens that must be the same.
fn difference(got: &[DeltaToken], truth: &[Vec<(TokenId, f32)>]) -> f32 {
    assert_eq!(got.len(), truth.len());
    let mut most = 0f32;
    for (token, truth) in got.iter().zip(truth) {
        assert_eq!(token.id, truth[0].0);
        let logprob = token.logprob.as_ref().unwrap();
        for (one, (_, truth)) in logprob.top.iter().zip(truth) {
            most = most.max((one.logprob - truth).abs());
        }
    }
    most
}

/// For wgpu a software driver will do.
fn has(device: &str) -> bool {
    engine::probe_device(device).inspect_err(|error| eprintln!("{device} skipped: {error}")).is_ok()
}

#[test]
fn adapters_give_what_peft_gives() {
    let truth = truth();
    // Keys and values are in f16 on the last two, and what products read on the first of them.
    let gpus = [("cuda", 1e-1), ("wgpu", 2e-2)].into_iter().filter(|(device, _)| has(device));
    for (device, most) in [("reference", 1e-4), ("cpu", 6e-2)].into_iter().chain(gpus) {
        for base in ["base", "base.gguf"] {
            let engine = Engine::load(&options(base, device)).unwrap();
            for (name, expected) in &truth.answers {
                let model = if name.is_empty() { "base" } else { name };
                let far = difference(&ask(&engine, model, &truth.prompt).tokens, expected);
                eprintln!("{base} on {device}, `{name}`: {far:.1e}");
                assert!(far < most, "{base} on {device}, `{name}`: by {far:e}");
            }
        }
    }
}

/// Each device has the parts of adapters that are of its layers.
#[test]
fn adapters_of_a_split_model_give_the_same() {
    if !has("wgpu") {
        return;
    }
    let truth = truth();
    let split = EngineOptions { gpu_layers: GpuLayers::Count(1), ..options("base", "wgpu") };
    let engine = Engine::load(&split).unwrap();
    for (name, expected) in &truth.answers {
        let model = if name.is_empty() { "base" } else { name };
        let far = difference(&ask(&engine, model, &truth.prompt).tokens, expected);
        // As on the processor, which has the first layer.
        assert!(far < 6e-2, "`{name}`: by {far:e}");
    }
    assert_eq!(engine.status().resources.parts.len(), 2);
}

/// Bit for bit: beside others, with guesses checked, and without any adapter loaded.
#[test]
fn rows_of_different_adapters_do_not_touch_each_other() {
    for device in ["cpu", "cuda"].into_iter().filter(|device| *device == "cpu" || has(device)) {
        rows_are_apart(device);
    }
}

fn rows_are_apart(device: &str) {
    let prompt = truth().prompt;
    let plain = EngineOptions { adapters: Vec::new(), ..options("base", device) };
    let plain = ask(&Engine::load(&plain).unwrap(), "base", &prompt).tokens;
    let models = ["base", "wide", "narrow", "turned"];
    let alone = Engine::load(&options("base", device)).unwrap();
    let alone = models.map(|model| ask(&alone, model, &prompt).tokens);
    assert_eq!(alone[0], plain, "the model without its adapters");
    assert_eq!(alone[1], alone[3], "the same adapter in two layouts");
    for speculation in [Speculation::Off, Speculation::Always] {
        let engine = EngineOptions { speculation, ..options("base", device) };
        let engine = Engine::load(&engine).unwrap();
        for round in 0..3 {
            std::thread::scope(|scope| {
                let (engine, prompt) = (&engine, &prompt);
                let asked = models.map(|model| scope.spawn(move || ask(engine, model, prompt)));
                for (model, (asked, alone)) in models.iter().zip(asked.into_iter().zip(&alone)) {
                    assert_eq!(&asked.join().unwrap().tokens, alone, "{model}, round {round}");
                }
            });
        }
    }
}

#[test]
fn nothing_is_kept_for_another_adapter() {
    let prompt = truth().prompt;
    let engine = Engine::load(&options("base", "cpu")).unwrap();
    let on = |model| try_ask(&engine, model, &prompt, SharingMode::On).unwrap();
    for model in ["base", "wide", "narrow"] {
        let first = on(model);
        let found = (first.cached_tokens, first.outcome);
        assert_eq!(found, (0, SharingOutcome::Miss), "{model}: of another");
        assert_eq!(on(model).outcome, SharingOutcome::Hit, "{model}: its own answer");
        let again = ask(&engine, model, &prompt);
        assert_eq!((again.cached_tokens, again.tokens), (32, first.tokens), "{model}: its own");
    }
}

#[test]
fn adapters_are_named_alone_or_behind_their_model() {
    let prompt = truth().prompt;
    let engine = Engine::load(&options("base", "cpu")).unwrap();
    let cards = engine.models();
    let listed: Vec<_> =
        cards.iter().map(|card| (card.id.as_str(), card.base.as_deref())).collect();
    let base = Some("base");
    assert_eq!(listed, [("base", None), ("wide", base), ("narrow", base), ("turned", base)]);
    let wide = ask(&engine, "wide", &prompt).tokens;
    assert_eq!(ask(&engine, "base:wide", &prompt).tokens, wide);
    assert_eq!(ask(&engine, "default:wide", &prompt).tokens, wide);
    for unknown in ["other", "base:other", "other:wide", "base:", ":wide", "base:base"] {
        assert!(try_ask(&engine, unknown, &prompt, SharingMode::Fresh).is_err(), "{unknown}");
    }
}

/// Whether the model is in memory already, or is loaded for the request.
#[test]
fn a_registry_knows_the_adapters_of_its_models() {
    let truth = truth();
    let entry = |base: &str, id: &str| {
        let options = EngineOptions { model_id: id.to_owned(), ..options(base, "cpu") };
        ModelEntry { options, pinned: false, idle_max: None }
    };
    let plain = |base: &str, id: &str| {
        let mut entry = entry(base, id);
        entry.options.adapters.clear();
        entry
    };
    let entries = vec![plain("base.gguf", "first"), entry("base", "second")];
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    let expect = |model: &str, adapter: &str| {
        let far = difference(&ask(&registry, model, &truth.prompt).tokens, &truth.answers[adapter]);
        assert!(far < 6e-2, "{model}: by {far:e}");
    };
    for _ in 0..2 {
        expect("second:narrow", "narrow");
        expect("narrow", "narrow");
        expect("wide", "wide");
        expect("second", "");
        expect("first", "");
        expect("default", "");
    }
    for unknown in ["first:wide", "default:wide", "second:other"] {
        let asked = try_ask(&registry, unknown, &truth.prompt, SharingMode::Fresh);
        assert!(asked.is_err(), "{unknown}");
    }
    let ids: Vec<_> = registry.models().into_iter().map(|card| card.id).collect();
    assert_eq!(ids, ["first", "second", "wide", "narrow", "turned"]);
    for same in [entry("base", "third"), plain("base", "wide")] {
        let refused = registry.add(same).unwrap_err().to_string();
        assert!(refused.contains("two models are named `wide`"), "{refused}");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str, change: fn(String) -> String| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(golden("narrow").join(weights), path.join(weights)).unwrap();
        let config = golden("narrow").join("adapter_config.json");
        let config = change(std::fs::read_to_string(config).unwrap());
        std::fs::write(path.join("adapter_config.json"), config).unwrap();
        AdapterOptions { name: name.to_owned(), path }
    };
    let dora = copy("dora", |text| text.replace("\"use_dora\": false", "\"use_dora\": true"));
    let bias = copy("bias", |text| text.replace("\"bias\": \"none\"", "\"bias\": \"all\""));
    let start = copy("start", |text| {
        text.replace("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"")
    });
    let good = AdapterOptions { name: "good".to_owned(), path: golden("wide") };
    let nowhere = AdapterOptions { name: "nowhere".to_owned(), path: folder.path().to_owned() };
    let same = AdapterOptions { name: "base".to_owned(), ..good.clone() };
    for (adapters, word) in [
        (vec![dora], "use_dora"),
        (vec![bias], "bias"),
        (vec![start], "pissa"),
        (vec![nowhere], "adapter_model.safetensors"),
        (vec![good.clone(), good.clone()], "has this name"),
        (vec![same], "has this name"),
    ] {
        let name = adapters.last().unwrap().name.clone();
        let refused = EngineOptions { adapters, ..options("base", "cpu") };
        let refused = Engine::load(&refused).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(&format!("`{name}`")), "{refused}");
        assert!(refused.contains(word), "{refused}");
    }
}
