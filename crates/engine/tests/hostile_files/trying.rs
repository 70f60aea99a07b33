//! Loads a damaged model, asks it for a token, and looks what that did to the process.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use engine::{End, Engine, EngineOptions, GenerateRequest, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode};

/// Two workers: as many as the smallest machine this runs on has cores.
const WORKERS: usize = 2;
/// A damaged file is refused, or answers, within this; a healthy one takes some milliseconds.
const CASE_TIME_MAX: Duration = Duration::from_secs(10);
/// What all cases together may add to the process: RELIABILITY's bound for one small file, for
/// each worker.
const GROWTH_KIB_MAX: u64 = 2 * 64 * 1024;

/// SplitMix64 (Steele, Lea, Flood 2014): the same cases on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What came of a case; everything else is a failure of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    Refused,
    Failed,
    Answered,
}

fn try_file(path: &Path) -> Outcome {
    let options = EngineOptions {
        threads: Some(1),
        kv_cache_bytes: Some(1 << 20),
        ..EngineOptions::new(path.to_owned(), "tiny")
    };
    let engine = match Engine::load(&options) {
        Ok(engine) => engine,
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 4096, "an error of {} bytes", text.len());
            assert!(!text.contains(char::is_control), "an error that is no line: {text:?}");
            return Outcome::Refused;
        }
    };
    let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() };
    let vocabulary = engine.models()[0].vocabulary_size;
    let prompt = Prompt::Text("a test of 7 \u{1f600}".to_owned());
    let (model, stop) = ("default".to_owned(), Vec::new());
    let (namespace, sharing) = (CacheNamespace::default(), SharingMode::Off);
    let include_stop = false;
    let urgency = engine::Urgency::default();
    let request =
        GenerateRequest { model, prompt, params, stop, include_stop, namespace, sharing, urgency };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let Ok(mut generation) = runtime.block_on(engine.generate(request)) else {
        return Outcome::Refused;
    };
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        for token in &delta.tokens {
            assert!(token.id < vocabulary, "token {}", token.id);
        }
        match delta.end {
            Some(End::Finished { .. }) => return Outcome::Answered,
            Some(End::Failed(_) | End::Late(_) | End::Refused(_)) => return Outcome::Failed,
            None => {}
        }
    }
}

/// Highest resident size of this process so far; `None` where the system does not say.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Puts each case's damage at a place of its worker, and tries it there; on [`WORKERS`] threads.
pub(crate) fn try_all<T: Sync>(
    cases: &[(String, T)],
    put: impl Fn(&Path, &T) -> PathBuf + Sync,
) -> Vec<(String, Outcome)> {
    let folder = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let (sender, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (next, put, sender) = (&next, &put, sender.clone());
            let place = folder.path().join(worker.to_string());
            scope.spawn(move || {
                while let Some((name, damage)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = put(&place, damage);
                    let start = Instant::now();
                    let tried = std::panic::catch_unwind(|| try_file(&path));
                    let is_late = start.elapsed() > CASE_TIME_MAX;
                    let outcome = tried.ok().filter(|_| !is_late);
                    sender.send((name.clone(), outcome)).unwrap();
                }
            });
        }
        drop(sender);
        let mut harmed = Vec::new();
        let mut unharmed = Vec::new();
        for (name, outcome) in outcomes {
            match outcome {
                Some(outcome) => unharmed.push((name, outcome)),
                None => harmed.push(name),
            }
        }
        assert_eq!(harmed, Vec::<String>::new(), "panicked, or took too long");
        unharmed
    })
}

/// Tests take turns, so that each sees its own memory and panics alone.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `tries` gives, if no thread of the process panicked meanwhile and its memory stayed within
/// bounds.
pub(crate) fn unharmed<T>(tries: impl FnOnce() -> T) -> T {
    // Panics of the engine's own threads end no test by themselves.
    let panics = Arc::new(Mutex::new(Vec::<String>::new()));
    let (seen, usual) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        seen.lock().unwrap().push(info.to_string());
        usual(info);
    }));
    let before = peak_kib();
    let given = tries();
    let after = peak_kib();
    // Copied out first: the hook locks it too when this assertion fails.
    let panics = panics.lock().unwrap().clone();
    assert_eq!(panics, Vec::<String>::new());
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after - before < GROWTH_KIB_MAX, "{before} to {after} KiB");
    }
    given
}
