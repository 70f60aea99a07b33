//! Does a model take the memory that was said before, as the system sees it, and give it back? The
//! only test in its process: what others take there would be counted, too.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{Engine, EngineOptions, GenerateRequest, Generation, ModelPlan, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use ops::quant_format::QuantFormat;
use testkit::tiny_model::TinyModel;

/// Resident bytes of this process.
fn resident_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

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
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, model.to_bytes()).unwrap();
    let options =
        EngineOptions { threads: Some(2), sequences_max: 1, ..EngineOptions::new(path, "model") };
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
