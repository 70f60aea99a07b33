//! Does a model take the memory that was said before? What the system sees of it is in
//! `resident_memory`.

#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{Engine, EngineError, EngineOptions, ModelPlan, Service, available_memory};
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

/// The system gives addresses for more than it has; a heap is a promise all the same.
#[test]
fn heaps_count_whole_and_fit_or_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plain =
        EngineOptions { device: "cpu".to_owned(), ..options(&folder, &TinyModel::default()) };
    let plain = EngineOptions { kv_cache_bytes: Some(1 << 20), ..plain };
    let heaps = |size: usize, count: u32| {
        let mut options = plain.clone();
        (options.heap_pool.heap_bytes, options.heap_pool.heaps) = (Some(size), count);
        options
    };
    let needed = ModelPlan::read(&plain).unwrap().memory;
    assert_eq!(needed.heap_reserve_bytes(), 0);
    let two = heaps(64 << 20, 2);
    let planned = ModelPlan::read(&two).unwrap().memory;
    let engine = Engine::load(&two).unwrap();
    let (used, pool) = (engine.memory(), engine.status().resources.heap_pool);
    assert_eq!(pool.reserved_bytes, 128 << 20);
    assert_eq!(planned.resident_bytes(), pool.reserved_bytes + planned.tokenizer_bytes());
    assert_eq!(used.resident_bytes(), planned.resident_bytes());
    drop(engine);
    let Some(available) = available_memory() else { return };
    let many = heaps(1 << 30, (available >> 30) as u32 + 8);
    match Engine::load(&many) {
        Err(EngineError::Memory { needed, .. }) => {
            let text = needed.to_string();
            assert!(text.contains("of heaps beyond that"), "{text}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("heaps that the machine has not"),
    }
}
