//! Do blocks outside the device take the memory that was said before, as the system sees it? The
//! only test in its process: what others take there would be counted, too.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{
    BlitSettings, Engine, EngineOptions, GenerateRequest, ModelPlan, Prompt, Service, TierSettings,
};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use ops::quant_format::QuantFormat;
use testkit::tiny_model::TinyModel;

/// Resident bytes of this process.
fn resident_bytes() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

/// Reads a prompt like no other of another `seed`.
fn fill(engine: &Engine, seed: u32) {
    let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() };
    let tokens = (0..500).map(|index| (index * (seed + 1) + seed) % 200);
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(tokens.collect()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace { salt: seed.to_string(), ..CacheNamespace::default() },
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut answer = runtime.block_on(engine.generate(request)).unwrap();
    while answer.next_blocking().is_some_and(|delta| delta.end.is_none()) {}
}

/// Tiers of 64 MB beside weights of 17 MB and 9 MB of keys and values.
#[test]
fn tiers_take_the_memory_that_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel {
        layers: 4,
        width: 512,
        heads: 8,
        heads_kv: 8,
        feed_forward: 64,
        context: 512,
        format: QuantFormat::F32,
        ..TinyModel::default()
    };
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, model.to_bytes()).unwrap();
    let plain = EngineOptions {
        threads: Some(2),
        sequences_max: 1,
        kv_cache_bytes: Some(9 << 20),
        ..EngineOptions::new(path, "model")
    };
    drop(Engine::load(&plain).unwrap());
    let in_memory = TierSettings { ram_bytes: 64 << 20, ..TierSettings::default() };
    let disk_path = Some(folder.path().join("tiers"));
    let on_disk = TierSettings { disk_bytes: 16 << 20, disk_path, ..in_memory.clone() };
    for kv_tiers in [in_memory, on_disk] {
        // So small that it is within the tolerance, for not all of it need be used at once.
        let blit_queue = BlitSettings { staging_bytes: 1 << 20, ..BlitSettings::default() };
        let options = EngineOptions { kv_tiers, blit_queue, ..plain.clone() };
        let before = resident_bytes();
        let planned = ModelPlan::read(&options).unwrap().memory;
        let engine = Engine::load(&options).unwrap();
        assert_eq!(engine.memory().resident_bytes(), planned.resident_bytes(), "known before");
        let enough = planned.tiers_bytes() * 98 / 100;
        let is_full = || {
            let staging = engine.status().resources.staging;
            staging.buffers * staging.buffer_bytes >= enough
        };
        let filled = (0..60).any(|seed| {
            fill(&engine, seed);
            is_full()
        });
        assert!(filled, "{:?}", engine.status().resources.staging);
        let kept = engine.status().kv_tiers.ram_bytes;
        assert!(kept <= 64 << 20, "{kept}");
        let (grown, planned) = (resident_bytes() - before, planned.resident_bytes() as i64);
        drop(engine);
        let left = resident_bytes() - before;
        eprintln!("planned {planned} bytes, grown by {grown}, {left} left after the unload");
        assert!((grown - planned).abs() * 20 <= planned, "planned {planned}, grown {grown}");
        assert!(left * 20 <= planned, "planned {planned}, {left} are left after the unload");
    }
}
