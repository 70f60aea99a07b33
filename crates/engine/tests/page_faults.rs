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

/// The state, and the minor faults, of the thread that touches memory beside the steps; `None` if
/// it has ended.
fn warming() -> Option<(String, u64)> {
    std::fs::read_dir("/proc/self/task").unwrap().find_map(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).ok()?;
        // The number, the name in parentheses, the state; the eighth is the minor faults.
        let fields = stat.split_once("(pelton-warm) ")?.1;
        let mut fields = fields.split(' ');
        let state = fields.next()?.to_owned();
        Some((state, fields.nth(6)?.parse().ok()?))
    })
}

/// It sleeps from when it has its lead until a step wakes it.
fn wait_for_warming() {
    let deadline = Instant::now() + Duration::from_secs(120);
    while warming().is_some_and(|(state, _)| state != "S") {
        assert!(Instant::now() < deadline, "it never ends");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Faults of steps of later requests on a model that was warmed up by so many bytes.
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
    options.sequences_max = 32;
    options.weights.warmup_bytes = warmup_bytes;
    let engine = Engine::load(&options).unwrap();
    wait_for_warming();
    // What the heap grows by is touched, too.
    fill(&engine, 1);
    fill(&engine, 2);
    wait_for_warming();
    let before = (page_faults(), warming());
    for first in 3..14 {
        fill(&engine, first);
        wait_for_warming();
    }
    let after = (page_faults(), warming());
    let own = match (before.1, after.1) {
        (Some((_, before)), Some((_, after))) => after - before,
        (None, None) => 0,
        _ => panic!("the cache is larger than what is used and the lead"),
    };
    let minor = after.0.minor - before.0.minor - own;
    PageFaults { minor, major: after.0.major - before.0.major }
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
