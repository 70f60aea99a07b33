//! Does the whole step path leave memory alone? 10,000 steps through engine and device threads, no
//! allocation on either and none of the device's. The only test in its process: it counts.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::{
    End, Engine, EngineOptions, EngineStatus, GenerateRequest, Generation, Prompt, RingSettings,
    Service, Speculation,
};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use testkit::tiny_model::TinyModel;

struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Of the latest one that was counted, for whoever looks for it.
static LAST_BYTES: AtomicU64 = AtomicU64::new(0);

/// Where the first one came from.
static FIRST: Mutex<Option<Backtrace>> = Mutex::new(None);

/// Looking takes memory itself: nothing counts meanwhile.
fn note_where() {
    if let Ok(mut first) = FIRST.try_lock()
        && first.is_none()
        && ARMED.swap(false, Ordering::Relaxed)
    {
        *first = Some(Backtrace::force_capture());
        ARMED.store(true, Ordering::Relaxed);
    }
}

/// The threads that plan, run or help to run steps, by the numbers that the system gives them.
static THREADS: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];

fn is_of_steps() -> bool {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    THREADS.iter().any(|thread| thread.load(Ordering::Relaxed) == own)
}

/// Finds them by their names.
fn find_threads() -> usize {
    let mut places = THREADS.iter();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name.trim_end();
        if matches!(name, "pelton-engine" | "pelton-device") || name.starts_with("compute-") {
            let number = task.file_name().to_str().unwrap().parse().unwrap();
            places.next().unwrap().store(number, Ordering::Relaxed);
        }
    }
    THREADS.len() - places.len()
}

// SAFETY: every call is handed to the system allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) && is_of_steps() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            LAST_BYTES.store(layout.size() as u64, Ordering::Relaxed);
            note_where();
        }
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` with this layout, above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SEQUENCES: u32 = 8;
/// Of the longest answer of a round; each is a sixteenth shorter than the one before, so that all
/// have begun long before the first ends.
const TOKENS_MAX: u32 = 1800;

fn tokens_of(index: u32) -> u32 {
    TOKENS_MAX * (2 * SEQUENCES - index) / (2 * SEQUENCES)
}

const STEPS: u64 = 10_000;

/// All batch sizes from eight down to one; nobody reads meanwhile, for outboxes have room.
fn ask(engine: &Engine, seed: u32) -> Vec<Generation> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ask = |index: u32| {
        let params = SamplingParams {
            max_tokens: Some(tokens_of(index)),
            ignore_eos: true,
            // Greedy beside drawn ones.
            temperature: if index.is_multiple_of(2) { 0.0 } else { 0.8 },
            ..SamplingParams::greedy()
        };
        let request = GenerateRequest {
            model: "default".to_owned(),
            prompt: Prompt::Tokens((0..20 + index).map(|at| (at * 7 + seed) % 200).collect()),
            params,
            stop: Vec::new(),
            include_stop: false,
            namespace: CacheNamespace::default(),
            sharing: SharingMode::Off,
            urgency: engine::Urgency::default(),
        };
        runtime.block_on(engine.generate(request)).unwrap()
    };
    (0..SEQUENCES).map(ask).collect()
}

fn until(engine: &Engine, holds: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = engine.status();
        if holds(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One round; how many of its steps were counted.
fn round(engine: &Engine, seed: u32, counts: bool) -> u64 {
    let before = engine.status().generation_tokens_total;
    let running = ask(engine, seed);
    let all_run = |status: &EngineStatus| {
        let told = status.generation_tokens_total - before;
        status.sequences_running == SEQUENCES && told >= 4 * u64::from(SEQUENCES)
    };
    let start = until(engine, all_run).steps_total;
    ARMED.store(counts, Ordering::SeqCst);
    let last = until(engine, |status| status.sequences_running <= 1);
    let end = until(engine, |status| status.sequences_running == 0);
    ARMED.store(false, Ordering::SeqCst);
    assert!(last.steps_total <= end.steps_total);
    for (generation, index) in running.into_iter().zip(0..) {
        assert_eq!(tokens(generation), tokens_of(index), "answer {index}");
    }
    end.steps_total - start
}

fn tokens(mut generation: Generation) -> u32 {
    let mut count = 0;
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        count += delta.tokens.len() as u32;
        match delta.end {
            None => {}
            Some(End::Finished { .. }) => return count,
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
        }
    }
}

/// A test that cannot fail shows nothing: this thread is counted for a moment.
fn check_that_it_counts() {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    let last = THREADS.last().unwrap();
    last.store(own, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(vec![1_u8; 77]));
    ARMED.store(false, Ordering::SeqCst);
    last.store(0, Ordering::SeqCst);
    *FIRST.lock().unwrap() = None;
    let counted = ALLOCATIONS.swap(0, Ordering::SeqCst);
    assert_eq!((counted, LAST_BYTES.load(Ordering::SeqCst)), (1, 77));
}

#[test]
fn ten_thousand_steps_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = TinyModel { context: 2048, ..TinyModel::default() };
    std::fs::write(&path, model.to_bytes()).unwrap();
    for depth in [2, 4] {
        let options = EngineOptions {
            threads: Some(2),
            // More than run, or the limiter would keep some out: it spares room for longer answers.
            sequences_max: SEQUENCES + 2,
            speculation: Speculation::Off,
            command_ring: RingSettings { depth, ..RingSettings::default() },
            ..EngineOptions::new(path.clone(), "tiny")
        };
        let engine = Engine::load(&options).unwrap();
        round(&engine, 0, false);
        assert_eq!(find_threads(), 3, "engine, device and one helper; the device's is a member");
        check_that_it_counts();
        let heaps = engine.status().resources.heap_pool;
        assert!(heaps.allocations_total > 0 && heaps.carved_total > 0, "{heaps:?}");
        let (mut steps, mut seed) = (0, 1);
        while steps < STEPS {
            steps += round(&engine, seed, true);
            seed += 1;
        }
        let allocations = ALLOCATIONS.load(Ordering::SeqCst);
        let last = LAST_BYTES.load(Ordering::SeqCst);
        let first = FIRST.lock().unwrap().take();
        assert_eq!(
            allocations, 0,
            "in {steps} steps, {depth} deep; the last of {last} bytes, the first {first:#?}"
        );
        assert_eq!(engine.status().resources.heap_pool, heaps, "nothing of the device's");
    }
}
