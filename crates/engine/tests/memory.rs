//! Does a model take the memory that was said before, and give it back?

#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{Engine, EngineOptions, GenerateRequest, Generation, ModelPlan, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use ops::quant_format::QuantFormat;
use testkit::tiny_model::TinyModel;

fn options(folder: &tempfile::TempDir, model: &TinyModel) -> EngineOptions {
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, model.to_bytes()).unwrap();
    EngineOptions { threads: Some(2), ..EngineOptions::new(path, "model") }
}

#[test]
fn what_was_planned_is_what_is_taken() {
    let formats = [QuantFormat::Q4_1, QuantFormat::F32];
    for device in ["cpu", "reference"] {
        for format in formats {
            let folder = tempfile::tempdir().unwrap();
            let model = TinyModel { format, ..TinyModel::default() };
            let options = EngineOptions { device: device.to_owned(), ..options(&folder, &model) };
            let planned = ModelPlan::read(&options).unwrap();
            let engine = Engine::load(&options).unwrap();
            let (memory, used) = (planned.memory, engine.memory());
            assert_eq!(memory.resident_bytes(), used.resident_bytes(), "{device} {format:?}");
            assert!(memory.peak_bytes() >= used.resident_bytes());
            assert_eq!(memory.kv_bytes(), used.kv_bytes());
            assert_eq!(planned.card.context_tokens_max, engine.models()[0].context_tokens_max);
        }
    }
}

/// Resident bytes of this process.
#[cfg(target_os = "linux")]
fn resident_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
fn fill(engine: &Engine, tokens: usize) -> Generation {
    let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() };
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens((0..tokens as u32).map(|index| index % 200).collect()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request)).unwrap()
}

/// Weights of 55 MB, far above what a process takes anyway; the answer fills the whole cache.
#[cfg(target_os = "linux")]
#[test]
fn resident_memory_grows_as_planned_and_shrinks_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel {
        layers: 4,
        width: 512,
        heads: 8,
        heads_kv: 8,
        feed_forward: 1536,
        context: 512,
        format: QuantFormat::F32,
        ..TinyModel::default()
    };
    let options = EngineOptions { sequences_max: 1, ..options(&folder, &model) };
    // The first engine of a process leaves behind what the allocator and the threads keep.
    drop(Engine::load(&options).unwrap());
    let before = resident_bytes();
    let planned = ModelPlan::read(&options).unwrap().memory.resident_bytes() as i64;
    let engine = Engine::load(&options).unwrap();
    let mut answer = fill(&engine, 500);
    while answer.next_blocking().is_some_and(|delta| delta.end.is_none()) {}
    let grown = resident_bytes() - before;
    drop(answer);
    drop(engine);
    let left = resident_bytes() - before;
    eprintln!("planned {planned} bytes, grown by {grown}, {left} left after the unload");
    assert!((grown - planned).abs() * 20 <= planned, "planned {planned}, grown {grown}");
    assert!(left * 20 <= planned, "planned {planned}, {left} are left after the unload");
}
