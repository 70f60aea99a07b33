//! Does a step ever wait for a page once the model is warm? One test, for the count is that of the
//! whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::time::{Duration, Instant};

use engine::{Engine, EngineOptions, GenerateRequest, PageFaults, Prompt, Service, page_faults};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use testkit::tiny_model::TinyModel;

const CONTEXT: usize = 2048;

/// Answers a prompt that fills new blocks of the cache, to its end.
fn fill(engine: &Engine, first: u32) {
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens((0..CONTEXT as u32 - 8).map(|at| (at * first) % 200).collect()),
        params: SamplingParams { max_tokens: Some(4), ..SamplingParams::greedy() },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        // So that blocks stay in the cache, and each prompt fills new ones.
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request)).unwrap();
    while generation.next_blocking().is_some_and(|delta| delta.end.is_none()) {}
}

/// Whether the thread that touches memory beside the steps still runs.
fn is_warming() -> bool {
    std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
        name.is_ok_and(|name| name.trim_end() == "pelton-warm")
    })
}

/// Faults of later requests on a model that was warmed up by so many bytes.
fn faults(folder: &tempfile::TempDir, warmup_bytes: u64) -> PageFaults {
    let path = folder.path().join("tiny.gguf");
    // Keys and values of 8 MB a prompt.
    let model = TinyModel {
        layers: 4,
        width: 256,
        heads: 8,
        heads_kv: 8,
        context: CONTEXT as u32,
        ..TinyModel::default()
    };
    std::fs::write(&path, model.to_bytes()).unwrap();
    let mut options = EngineOptions::new(path, "tiny");
    options.threads = Some(2);
    options.sequences_max = 16;
    options.weights.warmup_bytes = warmup_bytes;
    let engine = Engine::load(&options).unwrap();
    // Until the last page is touched nothing counts; then what the heap grows by is touched, too.
    let deadline = Instant::now() + Duration::from_secs(120);
    while is_warming() {
        assert!(Instant::now() < deadline, "it never ends");
        std::thread::sleep(Duration::from_millis(2));
    }
    fill(&engine, 1);
    fill(&engine, 2);
    let before = page_faults();
    for first in 3..14 {
        fill(&engine, first);
    }
    let after = page_faults();
    PageFaults { minor: after.minor - before.minor, major: after.major - before.major }
}

#[test]
fn a_warm_model_serves_without_page_faults() {
    let folder = tempfile::tempdir().unwrap();
    let cold = faults(&folder, 0);
    let warm = faults(&folder, 1 << 30);
    println!("11 long prompts: {cold:?} without warming up, {warm:?} with it");
    assert_eq!(warm.major, 0);
    // What is left is the heap's and the threads', a score or two; keys and values that nobody
    // touched before are 44 large pages, or 22,000 small ones.
    assert!(2 * warm.minor < cold.minor, "{warm:?}, {cold:?} without");
}
