//! Are heaps, copies and the ring on the path of every answer, and do they keep their promises?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use device::Gate;
use engine::{
    BlitSettings, End, Engine, EngineOptions, EngineStatus, Failpoints, GenerateRequest,
    Generation, HeapSettings, Prompt, RingSettings, Service, Speculation, TierSettings,
};
use messages::{CacheNamespace, Refusal, RefusalKind, SamplingParams, SharingMode};
use testkit::tiny_model::TinyModel;

fn tiny() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel { context: 1024, ..TinyModel::default() }.to_bytes()).unwrap();
    (folder, path)
}

fn options(path: &Path) -> EngineOptions {
    EngineOptions {
        threads: Some(2),
        speculation: Speculation::Off,
        ..EngineOptions::new(path.to_path_buf(), "tiny")
    }
}

fn start(engine: &Engine, prompt: &[u32], max_tokens: u32) -> Result<Generation, Refusal> {
    let params = SamplingParams {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..SamplingParams::greedy()
    };
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request))
}

fn finish(mut generation: Generation) -> (Vec<u32>, End) {
    let mut ids = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        ids.extend(delta.tokens.iter().map(|token| token.id));
        if let Some(end) = delta.end {
            return (ids, end);
        }
    }
}

/// Answers to some prompts side by side.
fn answers(engine: &Engine) -> Vec<Vec<u32>> {
    let prompts = (0..5).map(|seed| prompt(40 + 30 * seed, seed));
    let running: Vec<_> = prompts.map(|prompt| start(engine, &prompt, 60).unwrap()).collect();
    running.into_iter().map(|generation| finish(generation).0).collect()
}

fn prompt(length: u32, seed: u32) -> Vec<u32> {
    (0..length).map(|place| 3 + (place * place + seed * 31 + place * seed) % 250).collect()
}

fn eventually(engine: &Engine, holds: impl Fn(&EngineStatus) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds(&engine.status()) {
        assert!(Instant::now() < deadline, "{:?}", engine.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn heaps_of_any_shape_give_the_same_answers() {
    let (_folder, path) = tiny();
    let planned = Engine::load(&options(&path)).unwrap();
    let expected = answers(&planned);
    let heaps = planned.status().resources.heap_pool;
    assert_eq!((heaps.heaps, heaps.allocations_total, heaps.freed_total), (1, 1, 0));
    let memory = planned.memory();
    assert_eq!(heaps.used_bytes, memory.resident_bytes() - memory.tokenizer_bytes());
    assert!(heaps.reserved_bytes - heaps.used_bytes < 256 * heaps.carved_total);
    assert_eq!(heaps.free_bytes, 0, "it was made for what is in it");
    for (settings, heaps) in [
        (HeapSettings { enabled: false, ..HeapSettings::default() }, 0),
        (HeapSettings { heap_bytes: Some(24 << 20), heaps: 2, ..HeapSettings::default() }, 2),
        (HeapSettings { warm_up_bytes: vec![4096, 4096], may_grow: true, ..Default::default() }, 1),
        (HeapSettings { heap_bytes: Some(4096), may_grow: true, ..Default::default() }, 9),
    ] {
        let options = EngineOptions { heap_pool: settings.clone(), ..options(&path) };
        let engine = Engine::load(&options).unwrap();
        assert_eq!(answers(&engine), expected, "{settings:?}");
        let counts = engine.status().resources.heap_pool;
        let is_whole = counts.heaps == heaps || (heaps == 9 && counts.heaps >= 9);
        assert!(is_whole, "{settings:?}: {counts:?}");
        let again = answers(&engine);
        assert_eq!(again, expected);
        assert_eq!(engine.status().resources.heap_pool, counts, "nothing is carved for an answer");
    }
}

#[test]
fn a_heap_that_is_too_small_refuses_the_model_by_name() {
    let (_folder, path) = tiny();
    let heap_pool = HeapSettings { heap_bytes: Some(1 << 16), ..HeapSettings::default() };
    let error = Engine::load(&EngineOptions { heap_pool, ..options(&path) }).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("no room for") && text.contains("heap_pool.heap_size_mb"), "{text}");
}

/// All that requests need is carved at load: what can never be held is refused with words, what
/// cannot be held now waits, and whoever has its memory goes on.
#[test]
fn a_request_that_finds_no_memory_is_refused_and_others_go_on() {
    let (_folder, path) = tiny();
    let plain = Engine::load(&options(&path)).unwrap();
    let gate = Gate::default();
    // 288 bytes a token, 9 KiB a block of 32: sixteen blocks.
    let engine = Engine::load(&EngineOptions {
        kv_cache_bytes: Some(16 * (9 << 10)),
        queue_time_max: None,
        failpoints: Failpoints::default().behind(&gate),
        ..options(&path)
    })
    .unwrap();
    assert_eq!(engine.status().kv_blocks_total, 16);
    let heaps = engine.status().resources.heap_pool;
    gate.close();
    let running = start(&engine, &prompt(300, 0), 60).unwrap();
    eventually(&engine, |status| status.sequences_running == 1);
    let refused = start(&engine, &prompt(600, 1), 5).err().unwrap();
    assert_eq!(refused.kind, RefusalKind::TooLong);
    assert!(refused.message.contains("maximum context length is 512"), "{refused}");
    let waiting = start(&engine, &prompt(300, 2), 60).unwrap();
    eventually(&engine, |status| status.sequences_waiting == 1);
    assert_eq!(engine.status().sequences_running, 1);
    gate.open();
    for (generation, seed) in [(running, 0), (waiting, 2)] {
        let (expected, _) = finish(start(&plain, &prompt(300, seed), 60).unwrap());
        assert_eq!(finish(generation).0, expected);
    }
    let after = engine.status().resources.heap_pool;
    assert_eq!((after.carved_total, after.exhaustions_total), (heaps.carved_total, 0));
    assert_eq!(after.used_bytes, heaps.used_bytes);
}

#[test]
fn any_depth_of_the_ring_gives_the_same_answers() {
    let (_folder, path) = tiny();
    let mut expected = None;
    for depth in 1..=4 {
        for device in ["cpu", "reference"] {
            let command_ring = RingSettings { depth, ..RingSettings::default() };
            let device = device.to_owned();
            let engine =
                Engine::load(&EngineOptions { command_ring, device, ..options(&path) }).unwrap();
            let answers = answers(&engine);
            assert_eq!(*expected.get_or_insert(answers.clone()), answers, "{depth} steps");
            eventually(&engine, |status| status.sequences_running == 0);
            let counts = engine.status().resources.command_ring;
            assert_eq!((counts.depth, counts.timeouts_total), (depth as u32, 0));
            assert!(counts.steps_total >= 60 && counts.run_seconds > 0.0, "{counts:?}");
        }
    }
    let command_ring = RingSettings { depth: 5, ..RingSettings::default() };
    let error = Engine::load(&EngineOptions { command_ring, ..options(&path) }).err().unwrap();
    assert!(error.to_string().contains("command_ring.ring_size is 5"), "{error}");
}

/// A pool of 16 blocks that a few prompts overflow.
fn small(path: &Path, blit_queue: BlitSettings) -> Engine {
    let kv_tiers = TierSettings { ram_bytes: 12 * 8192, ..TierSettings::default() };
    let options = EngineOptions {
        context_tokens: Some(256),
        kv_cache_bytes: Some(16 * 8192),
        kv_tiers,
        blit_queue,
        ..options(path)
    };
    Engine::load(&options).unwrap()
}

#[test]
fn copies_beside_steps_are_worth_what_copies_within_are() {
    let (_folder, path) = tiny();
    let plain = Engine::load(&options(&path)).unwrap();
    let on = BlitSettings::default();
    for (blit, lanes) in [
        (BlitSettings { enabled: false, ..on }, 0),
        (BlitSettings { concurrent_ops_max: 1, ..on }, 1),
        (BlitSettings { concurrent_ops_max: 4, ..on }, 4),
    ] {
        let engine = small(&path, blit);
        let ask = |seed| {
            let text = prompt(200, seed);
            let (expected, _) = finish(start(&plain, &text, 10).unwrap());
            let (ids, _) = finish(start(&engine, &text, 10).unwrap());
            assert_eq!(ids, expected, "{lanes} lanes, {seed}");
        };
        // Three that come back from memory, once lanes have taken them there, then many that push
        // each other out of it.
        [0, 1, 2].into_iter().for_each(ask);
        eventually(&engine, |status| {
            [0, 1, 2].into_iter().for_each(ask);
            status.kv_tiers.loaded_blocks_total > 0
        });
        (3..12).for_each(ask);
        let status = engine.status();
        let (blit, staging) = (status.resources.blit_queue, status.resources.staging);
        assert_eq!(blit.lanes, lanes);
        assert_eq!(blit.ops_total > 0, lanes > 0, "{blit:?}");
        assert!(staging.taken_total > 10 && staging.exhaustions_total == 0, "{staging:?}");
        assert!(staging.buffers < staging.taken_total, "buffers are used again: {staging:?}");
    }
}

#[test]
fn a_device_that_hangs_fails_its_requests_and_may_come_back() {
    let (_folder, path) = tiny();
    let text = prompt(20, 1);
    let expected = finish(start(&Engine::load(&options(&path)).unwrap(), &text, 30).unwrap()).0;
    for depth in [2, 4] {
        let timeout = Some(Duration::from_millis(300));
        let hanging = EngineOptions {
            failpoints: Failpoints::parse("hang:4000@10").unwrap(),
            command_ring: RingSettings { depth, timeout, trace: None },
            sequences_max: 1,
            ..options(&path)
        };
        let engine = Engine::load(&hanging).unwrap();
        let running = start(&engine, &text, 500).unwrap();
        let waiting = start(&engine, &text, 500).unwrap();
        let (ids, end) = finish(running);
        let End::Failed(fault) = end else { panic!("its device hangs") };
        assert!(fault.0.contains("no step has finished for"), "{fault}");
        assert!(ids.len() < 12 && ids[..] == expected[..ids.len()], "{ids:?}");
        assert!(matches!(finish(waiting).1, End::Failed(_)), "what waits is told, too");
        let status = engine.status();
        if let Some(trouble) = status.trouble {
            // The device may have come back where this machine was slow.
            assert!(trouble.contains("hung"), "{trouble}");
            match start(&engine, &text, 5) {
                Err(refusal) => assert_eq!(refusal.kind, RefusalKind::Unavailable),
                Ok(generation) => drop(finish(generation)),
            }
        }
        eventually(&engine, |status| status.resources.command_ring.timeouts_total == 1);
        eventually(&engine, |status| {
            status.ready && status.resources.command_ring.steps_stuck == 0
        });
        assert_eq!(finish(start(&engine, &text, 30).unwrap()).0, expected, "it serves again");
        eventually(&engine, |status| status.kv_blocks_used == 0);
    }
}

#[test]
fn an_engine_stops_although_its_device_hangs() {
    let (_folder, path) = tiny();
    let hanging = EngineOptions {
        failpoints: Failpoints::parse("hang:600000@3").unwrap(),
        command_ring: RingSettings {
            timeout: Some(Duration::from_millis(100)),
            ..RingSettings::default()
        },
        ..options(&path)
    };
    let engine = Engine::load(&hanging).unwrap();
    let running = start(&engine, &prompt(20, 1), 100).unwrap();
    assert!(matches!(finish(running).1, End::Failed(_)));
    drop(engine);
}
