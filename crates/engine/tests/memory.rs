//! Does a model take the memory that was said before? What the system sees of it is in
//! `resident_memory`.

#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{Engine, EngineOptions, ModelPlan, Service};
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
