//! Does a damaged model file ever do more than be refused or answer badly? Over a thousand seeded
//! damages of a tiny model, each through the whole load and a first token.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use engine::{End, Engine, EngineOptions, GenerateRequest, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use testkit::tiny_model::{TinyModel, VOCABULARY};

/// Two workers: as many as the smallest machine this runs on has cores.
const WORKERS: usize = 2;
/// A damaged file is refused, or answers, within this; a healthy one takes some milliseconds.
const CASE_TIME_MAX: Duration = Duration::from_secs(10);
/// What all cases together may add to the process: RELIABILITY's bound for one small file, for
/// each worker.
const GROWTH_KIB_MAX: u64 = 2 * 64 * 1024;
const ALIGNMENT: usize = 32;
const ARRAY: u32 = 9;

/// SplitMix64 (Steele, Lea, Flood 2014): the same cases on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A healthy file and where its parts are.
struct Healthy {
    bytes: Vec<u8>,
    /// End of the tensor table, before padding.
    header_end: usize,
    data_start: usize,
    /// Of each key: its name, where its type is, and where the next key begins.
    keys: Vec<(String, usize, usize)>,
    /// Of each tensor's entry: where its name ends.
    tensors: Vec<usize>,
}

impl Healthy {
    fn read() -> Self {
        let bytes = TinyModel::default().to_bytes();
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let (tensor_count, key_count) = (u64_at(8), u64_at(16));
        let mut at = 24;
        let mut keys = Vec::new();
        for _ in 0..key_count {
            let name_end = at + 8 + u64_at(at);
            let name = String::from_utf8(bytes[at + 8..name_end].to_vec()).unwrap();
            at = value_end(&bytes, name_end);
            keys.push((name, name_end, at));
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            let name_end = at + 8 + u64_at(at);
            tensors.push(name_end);
            let dims = u32::from_le_bytes(bytes[name_end..name_end + 4].try_into().unwrap());
            at = name_end + 4 + 8 * dims as usize + 4 + 8;
        }
        let data_start = at.next_multiple_of(ALIGNMENT);
        Self { header_end: at, data_start, keys, tensors, bytes }
    }

    /// The file with `range` of the header replaced, and the data aligned again.
    fn spliced(&self, range: std::ops::Range<usize>, with: &[u8]) -> Vec<u8> {
        let mut file = self.bytes[..range.start].to_vec();
        file.extend(with);
        file.extend(&self.bytes[range.end..self.header_end]);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&self.bytes[self.data_start..]);
        file
    }

    fn key(&self, name: &str) -> (usize, usize) {
        let (_, start, end) = self.keys.iter().find(|(key, ..)| key == name).unwrap();
        (*start, *end)
    }
}

/// Where the typed value ends whose type is at `at` (GGUF v3).
fn value_end(bytes: &[u8], at: usize) -> usize {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let size = |kind: u32| match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    };
    let kind = u32_at(at);
    match kind {
        8 => at + 12 + u64_at(at + 4),
        ARRAY => {
            let (inner, count) = (u32_at(at + 4), u64_at(at + 8));
            match inner {
                8 => (0..count).fold(at + 16, |at, _| at + 8 + u64_at(at)),
                inner => at + 16 + count * size(inner),
            }
        }
        kind => at + 4 + size(kind),
    }
}

/// Numbers where arithmetic goes wrong.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    255,
    513,
    (1 << 31) - 1,
    1 << 31,
    (1 << 31) + 1,
    u32::MAX as u64,
    1 << 32,
    (1 << 42) + 1,
    (1 << 61) + 3,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// A well-formed value of every type, for every number.
fn typed(kind: u32, number: u64) -> Vec<u8> {
    let mut value = kind.to_le_bytes().to_vec();
    match kind {
        0 | 1 | 7 => value.push(number as u8),
        2 | 3 => value.extend((number as u16).to_le_bytes()),
        4 | 5 => value.extend((number as u32).to_le_bytes()),
        6 => value.extend((number as f32).to_le_bytes()),
        8 => {
            let text = number.to_string();
            value.extend((text.len() as u64).to_le_bytes());
            value.extend(text.as_bytes());
        }
        ARRAY => {
            value.extend(5u32.to_le_bytes());
            value.extend(2u64.to_le_bytes());
            value.extend([(number as u32).to_le_bytes(); 2].concat());
        }
        12 => value.extend((number as f64).to_le_bytes()),
        _ => value.extend(number.to_le_bytes()),
    }
    value
}

type Case = (String, Vec<u8>);

/// Every key as every one of the 13 types, and every number where a number belongs.
fn type_confusions(file: &Healthy, random: &mut Random, cases: &mut Vec<Case>) {
    for (name, start, end) in &file.keys {
        for kind in 0..=12 {
            let number = random.pick(&NUMBERS);
            let damaged = file.spliced(*start..*end, &typed(kind, number));
            cases.push((format!("{name} as type {kind}, {number}"), damaged));
        }
        cases.push((format!("{name} of unknown type"), file.spliced(*start..*end, &typed(13, 7))));
        let own = u32::from_le_bytes(file.bytes[*start..*start + 4].try_into().unwrap());
        if !matches!(own, 7 | 8 | ARRAY) {
            for number in NUMBERS {
                let damaged = file.spliced(*start..*end, &typed(own, number));
                cases.push((format!("{name} is {number}"), damaged));
            }
        }
    }
    for (name, bits) in [("NaN", f32::NAN), ("minus zero", -0.0), ("infinity", f32::INFINITY)] {
        for key in ["llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"] {
            let (start, end) = file.key(key);
            let value = [6u32.to_le_bytes(), bits.to_le_bytes()].concat();
            cases.push((format!("{key} is {name}"), file.spliced(start..end, &value)));
        }
    }
}

/// Dimensions, types and offsets of tensors, and the two counts of the header.
fn table_damage(file: &Healthy, random: &mut Random, cases: &mut Vec<Case>) {
    for &entry in &file.tensors {
        let dims = u32::from_le_bytes(file.bytes[entry..entry + 4].try_into().unwrap()) as usize;
        let format_at = entry + 4 + 8 * dims;
        for dim in 0..dims {
            let number = random.pick(&NUMBERS);
            let at = entry + 4 + 8 * dim;
            let damaged = with(&file.bytes, at, &number.to_le_bytes());
            cases.push((format!("tensor at {entry}: dimension {dim} is {number}"), damaged));
        }
        for number in [0, 5, u32::MAX] {
            let damaged = with(&file.bytes, entry, &u32::to_le_bytes(number));
            cases.push((format!("tensor at {entry}: {number} dimensions"), damaged));
        }
        for _ in 0..3 {
            let format = random.pick(&[0u32, 1, 2, 4, 8, 12, 23, 30, 39, 40, u32::MAX]);
            let damaged = with(&file.bytes, format_at, &format.to_le_bytes());
            cases.push((format!("tensor at {entry}: format {format}"), damaged));
            let offset = random.pick(&NUMBERS).wrapping_mul(random.pick(&[1, 32]));
            let damaged = with(&file.bytes, format_at + 4, &offset.to_le_bytes());
            cases.push((format!("tensor at {entry}: offset {offset}"), damaged));
        }
    }
    for number in NUMBERS {
        for at in [8, 16] {
            let damaged = with(&file.bytes, at, &number.to_le_bytes());
            cases.push((format!("count at {at} is {number}"), damaged));
        }
    }
}

/// Vocabulary, token types and merges: shorter, longer, other, repeated, not text.
fn tokenizer_damage(file: &Healthy, random: &mut Random, cases: &mut Vec<Case>) {
    for name in ["tokens", "token_type", "merges"].map(|name| format!("tokenizer.ggml.{name}")) {
        let (start, end) = file.key(&name);
        for number in NUMBERS {
            let damaged = with(&file.bytes, start + 8, &number.to_le_bytes());
            cases.push((format!("{name} counts {number}"), damaged));
        }
        for round in 0..60 {
            let mut damaged = file.bytes.clone();
            for _ in 0..=random.below(8) {
                damaged[start + 16 + random.below(end - start - 16)] = random.next() as u8;
            }
            cases.push((format!("{name} with other bytes, {round}"), damaged));
        }
    }
    let (start, end) = file.key("tokenizer.ggml.merges");
    for merge in ["", " ", "  ", "a", "a b c", "\u{120} t x", "zz yy", "\0 \0"] {
        for count in [1usize, 70_000] {
            let mut array = [ARRAY.to_le_bytes(), 8u32.to_le_bytes()].concat();
            array.extend((count as u64).to_le_bytes());
            let text = [&(merge.len() as u64).to_le_bytes()[..], merge.as_bytes()].concat();
            array.extend(text.repeat(count));
            cases.push((format!("{count} merges {merge:?}"), file.spliced(start..end, &array)));
        }
    }
    for name in ["tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"] {
        let (start, end) = file.key(name);
        for text in ["", "llama", "bert", "t5", "rwkv", "llama3", "qwen2", "\0", "{{", "{% for"] {
            let mut value = 8u32.to_le_bytes().to_vec();
            value.extend((text.len() as u64).to_le_bytes());
            value.extend(text.as_bytes());
            cases.push((format!("{name} is {text:?}"), file.spliced(start..end, &value)));
        }
    }
}

/// Damage that knows nothing of the format: bits, words, lost and doubled pieces, truncations.
fn blind_damage(file: &Healthy, random: &mut Random, cases: &mut Vec<Case>) {
    for round in 0..400 {
        let mut damaged = file.bytes.clone();
        for _ in 0..=random.below(3) {
            damaged[random.below(file.header_end)] ^= 1 << random.below(8);
        }
        cases.push((format!("flipped header bits, {round}"), damaged));
    }
    for round in 0..150 {
        let at = random.below(file.header_end - 8);
        let number = random.pick(&NUMBERS);
        let word = number.to_le_bytes();
        let word = if random.below(2) == 0 { &word[..4] } else { &word[..] };
        cases.push((format!("{number} at {at}, {round}"), with(&file.bytes, at, word)));
    }
    for round in 0..150 {
        let start = random.below(file.header_end);
        let end = start + random.below((file.header_end - start).min(64));
        let piece = if round % 2 == 0 { vec![] } else { file.bytes[start..end].repeat(2) };
        let damaged = file.spliced(start..end, &piece);
        cases.push((format!("{start}..{end} lost or doubled, {round}"), damaged));
    }
    for round in 0..150 {
        let length = random.below(file.bytes.len());
        cases.push((format!("cut to {length}, {round}"), file.bytes[..length].to_vec()));
    }
    for round in 0..100 {
        let mut damaged = file.bytes.clone();
        let range = damaged.len() - file.data_start;
        let start = file.data_start + random.below(range);
        let end = damaged.len().min(start + random.below(range));
        let fill = random.pick(&[None, Some(0u8), Some(0xff), Some(0x7f), Some(0x7c)]);
        damaged[start..end].iter_mut().for_each(|byte| {
            *byte = fill.unwrap_or(random.next() as u8);
        });
        cases.push((format!("data {start}..{end} is {fill:?}, {round}"), damaged));
    }
}

fn with(bytes: &[u8], at: usize, word: &[u8]) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    damaged[at..at + word.len()].copy_from_slice(word);
    damaged
}

/// What came of a case; everything else is a failure of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
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
            return Outcome::Refused;
        }
    };
    let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::greedy() };
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
            assert!(token.id < VOCABULARY * 2, "token {}", token.id);
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

/// Runs the cases on [`WORKERS`] threads; gives each case's outcome and time, in any order.
fn try_all(cases: &[Case]) -> Vec<(String, Outcome, Duration)> {
    let folder = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let (sender, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (next, sender) = (&next, sender.clone());
            let path = folder.path().join(format!("{worker}.gguf"));
            scope.spawn(move || {
                while let Some((name, bytes)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    std::fs::write(&path, bytes).unwrap();
                    let start = Instant::now();
                    let tried = std::panic::catch_unwind(|| try_file(&path));
                    let outcome = tried.unwrap_or_else(|_| panic!("a panic: {name}"));
                    sender.send((name.clone(), outcome, start.elapsed())).unwrap();
                }
            });
        }
        drop(sender);
        outcomes.iter().collect()
    })
}

#[test]
fn no_damage_panics_hangs_or_grows() {
    let file = Healthy::read();
    let mut cases = vec![("whole".to_owned(), file.bytes.clone())];
    let mut random = Random(2);
    type_confusions(&file, &mut random, &mut cases);
    table_damage(&file, &mut random, &mut cases);
    tokenizer_damage(&file, &mut random, &mut cases);
    blind_damage(&file, &mut random, &mut cases);
    assert!(cases.len() > 1_000, "{} cases", cases.len());

    // Panics of the engine's own threads end no test by themselves.
    let panics = Arc::new(Mutex::new(Vec::<String>::new()));
    let (seen, usual) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        seen.lock().unwrap().push(info.to_string());
        usual(info);
    }));
    let before = peak_kib();
    let outcomes = try_all(&cases);
    let after = peak_kib();

    // Copied out first: the hook locks it too when this assertion fails.
    let panics = panics.lock().unwrap().clone();
    assert_eq!(panics, Vec::<String>::new());
    assert_eq!(outcomes.len(), cases.len());
    let slow: Vec<_> = outcomes.iter().filter(|(_, _, time)| *time > CASE_TIME_MAX).collect();
    assert!(slow.is_empty(), "{slow:?}");
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after - before < GROWTH_KIB_MAX, "{before} to {after} KiB");
    }
    let count = |wanted| outcomes.iter().filter(|(_, outcome, _)| *outcome == wanted).count();
    let (refused, answered) = (count(Outcome::Refused), count(Outcome::Answered));
    // Both sides are reached: a loader that refused all or took all would pass without this.
    assert!(refused > cases.len() / 4 && answered > 100, "{refused} refused, {answered} answered");
    let whole = outcomes.iter().find(|(name, ..)| name == "whole").unwrap();
    assert_eq!(whole.1, Outcome::Answered);
}
