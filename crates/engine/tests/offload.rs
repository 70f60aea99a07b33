//! Is a model that its device has no room for served by two devices, and as it would be by one?
//!
//! The GPU is the first adapter of wgpu; a software driver will do. It does not say how much memory
//! it has, so it is told.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use engine::{
    CpuMoeLayers, DeltaToken, End, Engine, EngineError, EngineOptions, Failpoints, GenerateRequest,
    GpuLayers, ModelPlan, PacingOptions, Prompt, Service, Speculation, TierSettings,
};
use messages::{CacheNamespace, SamplingParams, SharingMode, TokenId};
use testkit::tiny_model::TinyModel;

const GPU: &str = "wgpu";

fn has_gpu() -> bool {
    let probed = engine::probe_device(GPU);
    probed.inspect_err(|error| eprintln!("skipped: no adapter ({error})")).is_ok()
}

fn tiny() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = TinyModel { context: 1024, layers: 4, ..TinyModel::default() };
    std::fs::write(&path, model.to_bytes()).unwrap();
    (folder, path)
}

fn tiny_mixture() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixture.gguf");
    let model = TinyModel { context: 1024, layers: 4, experts: 16, ..TinyModel::default() };
    std::fs::write(&path, model.to_bytes()).unwrap();
    (folder, path)
}

fn options(path: &Path, layers: GpuLayers) -> EngineOptions {
    EngineOptions {
        device: GPU.to_owned(),
        gpu_layers: layers,
        threads: Some(2),
        context_tokens: Some(256),
        sequences_max: 4,
        step_tokens_max: Some(64),
        pacing: PacingOptions { itl_target: None, ..PacingOptions::default() },
        ..EngineOptions::new(path.to_owned(), "model")
    }
}

fn request(prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        params: SamplingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            logprobs: Some(3),
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    }
}

/// The tokens, and how many of the prompt were cached; or the device's fault.
fn ask(engine: &Engine, prompt: &[TokenId], count: u32) -> Result<(Vec<DeltaToken>, u32), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request(prompt, count))).unwrap();
    let mut tokens = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        tokens.extend(delta.tokens);
        match delta.end {
            None => {}
            Some(End::Finished { cached, .. }) => return Ok((tokens, cached.tokens)),
            Some(End::Failed(fault)) => return Err(fault.to_string()),
            Some(other) => panic!("{other:?}"),
        }
    }
}

fn prompt(length: u32, seed: u32) -> Vec<TokenId> {
    (0..length).map(|place| 3 + (place * place + seed * 31 + place * seed) % 250).collect()
}

fn load(options: &EngineOptions) -> Engine {
    Engine::load(options).unwrap_or_else(|error| panic!("{:?}: {error}", options.gpu_layers))
}

/// The test model, of whose weights the device is given room for some.
#[test]
fn what_does_not_fit_is_split_and_says_the_same() {
    let Some(path) = testkit::default_model() else {
        eprintln!("skipped: the test model is not here");
        return;
    };
    if !has_gpu() {
        return;
    }
    let auto = EngineOptions { kv_cache_bytes: Some(16 << 20), ..options(&path, GpuLayers::Auto) };
    let whole = ModelPlan::read(&auto).unwrap();
    assert_eq!((whole.split, whole.memory.host_bytes()), (None, 0), "it fits");
    let room = whole.memory.weights_bytes() * 3 / 4;
    let auto = EngineOptions { device_memory_bytes: Some(room), ..auto };
    let planned = ModelPlan::read(&auto).unwrap();
    let split = planned.split.expect("it does not fit");
    assert!(split.on_processor >= 5 && split.on_device >= 5, "{split}");
    let on_device = planned.memory.weights_bytes()
        + planned.memory.kv_bytes()
        + planned.memory.activations_bytes()
        - planned.memory.host_bytes();
    assert!(on_device <= room, "{on_device} of {room}");
    assert!(planned.memory.to_string().contains("in the machine's memory"), "{}", planned.memory);

    let engine = load(&auto);
    assert_eq!(engine.memory().host_bytes(), planned.memory.host_bytes());
    assert_eq!(engine.memory().weights_bytes(), planned.memory.weights_bytes());
    let text: Vec<TokenId> = (0..24).map(|place| 1000 + 37 * place).collect();
    let (tokens, _) = ask(&engine, &text, 24).unwrap();
    let parts = engine.status().resources.parts;
    let layers: Vec<u32> = parts.iter().map(|part| part.layers).collect();
    assert_eq!(layers, [split.on_processor, split.on_device]);
    assert_eq!(parts[0].device, "cpu");
    assert!(parts.iter().all(|part| part.run_seconds > 0.0), "{parts:?}");
    drop(engine);

    let alone = load(&EngineOptions { device: "cpu".to_owned(), ..auto.clone() });
    let (expected, _) = ask(&alone, &text, 24).unwrap();
    let ids = |tokens: &[DeltaToken]| tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    assert_eq!(ids(&tokens), ids(&expected));

    // With no room for one layer and the head, or asked for whole, it is refused as it always was.
    let none = EngineOptions { device_memory_bytes: Some(1 << 20), ..auto.clone() };
    let all = EngineOptions { gpu_layers: GpuLayers::All, ..auto };
    for options in [none, all] {
        let refused = Engine::load(&options).map(drop).unwrap_err();
        assert!(matches!(refused, EngineError::Memory { .. }), "{refused}");
    }
}

/// What guesses is on the GPU as a whole, and the model has what it leaves.
#[test]
fn a_draft_model_is_left_room() {
    if !has_gpu() {
        return;
    }
    let (folder, path) = tiny();
    let draft = folder.path().join("draft.gguf");
    let model = TinyModel { context: 1024, layers: 1, ..TinyModel::default() };
    std::fs::write(&draft, model.to_bytes()).unwrap();
    let plain = EngineOptions { kv_cache_bytes: Some(1 << 18), ..options(&path, GpuLayers::Auto) };
    let on_device = |memory: engine::ModelMemory| {
        let all = memory.weights_bytes() + memory.kv_bytes() + memory.activations_bytes();
        all - memory.host_bytes()
    };
    let whole = on_device(ModelPlan::read(&plain).unwrap().memory);
    let with = EngineOptions { draft_model: Some(draft), ..plain.clone() };
    let both = on_device(ModelPlan::read(&with).unwrap().memory);

    // For the model and a half of what the draft takes.
    let room = whole + (both - whole) / 2;
    let limited = |options: &EngineOptions| EngineOptions {
        device_memory_bytes: Some(room),
        ..options.clone()
    };
    assert_eq!(ModelPlan::read(&limited(&plain)).unwrap().split, None);
    let limited = limited(&with);
    let planned = ModelPlan::read(&limited).unwrap();
    let split = planned.split.expect("both do not fit");
    assert!(split.on_processor > 0 && split.on_device > 0, "{split}");
    assert!(on_device(planned.memory) <= room, "{} of {room}", planned.memory);

    let guessing = EngineOptions { speculation: Speculation::Always, ..limited };
    let engine = load(&guessing);
    let text = prompt(60, 3);
    let (tokens, _) = ask(&engine, &text, 20).unwrap();
    let guesses = engine.status().speculation;
    assert!(guesses.accepted_tokens_total + guesses.rejected_tokens_total > 0, "no guess");
    drop(engine);
    let layers = GpuLayers::Count(split.on_device);
    let alone = load(&EngineOptions { gpu_layers: layers, ..plain });
    assert_eq!(ask(&alone, &text, 20).unwrap().0, tokens);
}

/// Each device gets heaps of the configured size; the processor's are the machine's memory.
#[test]
fn heaps_of_a_set_size_count_on_each_device() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = tiny();
    let plain = options(&path, GpuLayers::Count(2));
    let plain = EngineOptions { device_memory_bytes: Some(1 << 30), ..plain };
    let without = ModelPlan::read(&plain).unwrap().memory;
    assert_eq!(without.heap_reserve_bytes(), 0);
    let mut heaps = plain;
    heaps.heap_pool.heap_bytes = Some(64 << 20);
    let planned = ModelPlan::read(&heaps).unwrap().memory;
    let used = without.weights_bytes() + without.kv_bytes() + without.activations_bytes();
    assert_eq!(planned.heap_reserve_bytes(), (128 << 20) - used);
    assert_eq!(planned.host_bytes(), 64 << 20);
    let engine = load(&heaps);
    assert_eq!(engine.memory().host_bytes(), planned.host_bytes());
    assert_eq!(engine.memory().resident_bytes(), planned.resident_bytes());
}

#[test]
fn a_number_of_layers_is_what_the_gpu_gets() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = tiny();
    for (asked, split) in [
        (GpuLayers::Count(1), Some((3, 1))),
        (GpuLayers::Count(3), Some((1, 3))),
        (GpuLayers::Count(4), None),
        (GpuLayers::Count(99), None),
        (GpuLayers::All, None),
        (GpuLayers::Auto, None),
    ] {
        let planned = ModelPlan::read(&options(&path, asked)).unwrap();
        let got = planned.split.map(|split| (split.on_processor, split.on_device));
        assert_eq!(got, split, "{asked:?}");
        assert_eq!(planned.card.device.contains("cpu"), split.is_some(), "{asked:?}");
    }
    let none = ModelPlan::read(&options(&path, GpuLayers::Count(0))).unwrap();
    assert_eq!((none.card.device.as_str(), none.split), ("cpu", None));
    let on_cpu = EngineOptions { device: "cpu".to_owned(), ..options(&path, GpuLayers::Count(2)) };
    let refused = ModelPlan::read(&on_cpu).unwrap_err().to_string();
    assert!(refused.contains("gpu_layers is 2 and the device is cpu"), "{refused}");
}

#[test]
fn experts_stay_with_the_processor_as_asked() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = tiny_mixture();
    let with = |layers, experts, path: &Path| EngineOptions {
        cpu_moe_layers: experts,
        ..options(path, layers)
    };
    for (layers, experts, split) in [
        (GpuLayers::Auto, CpuMoeLayers::Auto, None),
        (GpuLayers::All, CpuMoeLayers::Count(0), None),
        (GpuLayers::All, CpuMoeLayers::Count(3), Some((0, 4, 3))),
        (GpuLayers::Auto, CpuMoeLayers::Count(3), Some((0, 4, 3))),
        (GpuLayers::All, CpuMoeLayers::All, Some((0, 4, 4))),
        (GpuLayers::Count(99), CpuMoeLayers::Count(99), Some((0, 4, 4))),
        (GpuLayers::Count(3), CpuMoeLayers::Count(3), Some((1, 3, 2))),
        (GpuLayers::Count(3), CpuMoeLayers::Auto, Some((1, 3, 0))),
    ] {
        let planned = ModelPlan::read(&with(layers, experts, &path)).unwrap();
        let of = |split: engine::LayerSplit| {
            (split.on_processor, split.on_device, split.experts_on_processor)
        };
        assert_eq!(planned.split.map(of), split, "{layers:?}, {experts:?}");
    }
    let (_folder, dense) = tiny();
    let refused = ModelPlan::read(&with(GpuLayers::All, CpuMoeLayers::Count(2), &dense));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("this model has none"), "{refused}");
    let on_cpu = EngineOptions {
        device: "cpu".to_owned(),
        ..with(GpuLayers::Auto, CpuMoeLayers::Count(2), &path)
    };
    let refused = ModelPlan::read(&on_cpu).unwrap_err().to_string();
    assert!(refused.contains("cpu_moe_layers is 2 and the device is cpu"), "{refused}");
}

/// Experts are nearly all of a mixture, and a token reads few of them: leaving them leaves the
/// processor less to read than layers do.
#[test]
fn a_mixture_that_does_not_fit_leaves_experts_and_says_the_same() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = tiny_mixture();
    let plain = EngineOptions { kv_cache_bytes: Some(1 << 18), ..options(&path, GpuLayers::Auto) };
    let whole = ModelPlan::read(&plain).unwrap().memory;
    let all = whole.weights_bytes() + whole.kv_bytes() + whole.activations_bytes();
    // Without the experts of some layers.
    let auto = EngineOptions {
        device_memory_bytes: Some(all - whole.weights_bytes() / 3),
        cpu_moe_layers: CpuMoeLayers::Count(4),
        ..plain.clone()
    };
    let planned = ModelPlan::read(&auto).unwrap();
    let split = planned.split.unwrap();
    assert_eq!((split.on_processor, split.experts_on_processor), (0, 4), "{split}");
    let engine = load(&auto);
    assert_eq!(engine.memory().weights_bytes(), planned.memory.weights_bytes());
    assert_eq!(engine.memory().host_bytes(), planned.memory.host_bytes());
    let text = prompt(100, 5);
    let (tokens, _) = ask(&engine, &text, 24).unwrap();
    let again = ask(&engine, &text, 24).unwrap();
    assert_eq!((&again.0, again.1), (&tokens, 96), "behind a cached prefix");
    let parts = engine.status().resources.parts;
    assert_eq!(parts.iter().map(|part| part.layers).collect::<Vec<_>>(), [0, 4]);
    assert!(parts.iter().all(|part| part.run_seconds > 0.0), "{parts:?}");
    drop(engine);
    // Prompts in other steps are the same bits.
    let cut = load(&EngineOptions { step_tokens_max: Some(17), ..auto.clone() });
    assert_eq!(ask(&cut, &text, 24).unwrap().0, tokens);
    drop(cut);

    // With more room than that, no more than must be; with less than all of that, whole layers too.
    let fewer = EngineOptions { cpu_moe_layers: CpuMoeLayers::Auto, ..auto };
    let split = ModelPlan::read(&fewer).unwrap().split.unwrap();
    assert!(split.on_processor + split.experts_on_processor < 4, "{split}");
}

/// Bit for bit: behind a cached prefix, with guesses checked, and with blocks that have left both
/// devices and come back.
#[test]
fn what_surrounds_steps_does_not_notice() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = tiny();
    let plain = EngineOptions {
        prefix_cache: false,
        speculation: Speculation::Off,
        ..options(&path, GpuLayers::Count(2))
    };
    let text = prompt(150, 1);
    let alone = load(&plain);
    let (expected, _) = ask(&alone, &text, 20).unwrap();
    drop(alone);

    let guessing = EngineOptions { speculation: Speculation::Always, ..plain.clone() };
    let engine = load(&guessing);
    let looping: Vec<TokenId> = [7, 8, 9, 10].repeat(20);
    let (told, _) = ask(&engine, &looping, 30).unwrap();
    let guesses = engine.status().speculation;
    assert!(guesses.accepted_tokens_total + guesses.rejected_tokens_total > 0, "no guess");
    assert_eq!(ask(&engine, &text, 20).unwrap().0, expected);
    drop(engine);
    assert_eq!(ask(&load(&plain), &looping, 30).unwrap().0, told);

    let kept = EngineOptions {
        prefix_cache: true,
        // Room for two prompts; what is pushed out is kept in memory.
        kv_cache_bytes: Some(1 << 18),
        kv_tiers: TierSettings { ram_bytes: 64 << 20, ..TierSettings::default() },
        ..plain
    };
    let engine = load(&kept);
    assert_eq!(ask(&engine, &text, 20).unwrap(), (expected.clone(), 0));
    let (again, cached) = ask(&engine, &text, 20).unwrap();
    assert_eq!((again, cached), (expected.clone(), 128), "behind a cached prefix");
    let mut seed = 50;
    while engine.status().prefix_cache.evicted_blocks_total < 64 {
        ask(&engine, &prompt(200, seed), 2).unwrap();
        seed += 1;
        assert!(seed < 500, "nothing is pushed out");
    }
    let (again, cached) = ask(&engine, &text, 20).unwrap();
    assert_eq!((again, cached), (expected, 128), "behind blocks that came back");
    assert!(engine.status().kv_tiers.loaded_blocks_total >= 4, "from memory");
}

#[test]
fn a_failed_step_fails_its_answer_and_no_other() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = tiny();
    let failing = EngineOptions {
        failpoints: Failpoints::parse("fault@4").unwrap(),
        ..options(&path, GpuLayers::Count(2))
    };
    let engine = load(&failing);
    let text = prompt(40, 3);
    assert!(ask(&engine, &text, 12).is_err(), "its fourth step fails");
    let (told, _) = ask(&engine, &text, 12).unwrap();
    drop(engine);
    let whole = load(&options(&path, GpuLayers::Count(2)));
    assert_eq!(ask(&whole, &text, 12).unwrap().0, told);
}
