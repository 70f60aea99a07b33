//! Does any damage to a GGUF file make the reader panic, allocate without reason, or refuse
//! without saying what and where?
//!
//! A small model is cut at every length, mutated with fixed seeds, and broken in each way that has
//! hurt a GGUF reader before. Whatever still opens has every tensor decoded.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ops::quant_format::QuantFormat;
use weights::{Array, GgufBuilder, StringArray, Value, WeightFile};

/// Memory that opening may take at its peak: 16 bytes a byte of file and room for messages.
/// Measured: the small model takes 1.7, an array of empty arrays (12 bytes each) 7.7.
fn allocation_limit(file_bytes: usize) -> usize {
    (64 << 10) + 16 * file_bytes
}

#[test]
fn an_undamaged_file_opens() {
    let _alone = measuring_alone();
    let file = small_model();
    let model = WeightFile::from_bytes("small", file).unwrap();
    assert_eq!(model.tensor_count(), QuantFormat::ALL.len() + 5, "tensors");
    for info in model.tensors() {
        let view = model.tensor(info.name()).unwrap();
        assert_eq!(view.row(view.rows - 1).len() * view.rows, view.bytes.len(), "rows fill it");
    }
    assert_eq!(model.metadata().required::<u32>("llama.block_count").unwrap(), 2, "a key");
    assert_eq!(refusal(&with_version(2)), None, "version 2 is read, too");
}

#[test]
fn every_truncation_is_refused() {
    let _alone = measuring_alone();
    let file = small_model();
    // The builder pads the last tensor; only its padding may be missing.
    let data_end = data_end(&file);
    for length in 0..data_end {
        let text = refusal(&file[..length]).unwrap_or_else(|| panic!("{length} bytes opened"));
        let truncated = ["left", "incomplete", "empty", "download", "interrupted"];
        assert!(truncated.iter().any(|word| text.contains(word)), "{length} bytes: {text}");
    }
    assert!(data_end <= file.len() && file.len() - data_end < 32, "only padding remains");
}

#[test]
fn random_mutations_are_harmless() {
    let _alone = measuring_alone();
    let original = small_model();
    // Most bytes of a model are weights, where any value is fine: aim at the description.
    let described_bytes = original.len() - data_bytes(&original);
    let mut refused = 0;
    const SEEDS: u64 = 3000;
    for seed in 0..SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut file = original.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut file, described_bytes, &mut random);
        }
        refused += usize::from(refusal(&file).is_some());
    }
    assert!(refused > SEEDS as usize / 4, "only {refused} refused: mutations miss their aim");
    assert!(refused < SEEDS as usize, "all refused: nothing reached the decoders");
}

#[test]
fn every_byte_flipped_is_harmless() {
    let _alone = measuring_alone();
    let original = small_model();
    for index in 0..original.len() - data_bytes(&original) {
        for mask in [0x01, 0x80, 0xFF] {
            let mut file = original.clone();
            file[index] ^= mask;
            refusal(&file);
        }
    }
}

#[test]
fn known_attacks_are_refused_by_name() {
    let _alone = measuring_alone();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no keys, 2^63 tensors", header(1 << 63, 0), "tensor count is 9223372036854775808"),
        ("2^64-1 keys", header(0, u64::MAX), "key count is 18446744073709551615"),
        ("counts beyond the file", header(200, 5), "tensor count is 200"),
        ("key of 2^63 bytes", with_key(&u64s(&[1 << 63])), "length of the name of key 0"),
        ("key of 2^64-1 bytes", with_key(&u64s(&[u64::MAX])), "length of the name of key 0"),
        ("string of 2^62 bytes", with_value(8, &u64s(&[1 << 62])), "length of the value of key k"),
        ("array of 2^61 u64", with_array(10, 1 << 61), "element count of key k"),
        ("array of 2^64-1 strings", with_array(8, u64::MAX), "element count of key k"),
        ("array of 2^60 arrays", with_array(9, 1 << 60), "element count of key k"),
        ("array of type 13", with_array(13, 0), "value type 13"),
        ("value of type 99", with_value(99, &[0; 8]), "value type 99"),
        ("bool of 7", with_value(7, &[7]), "bool of 7"),
        ("string of broken UTF-8", with_value(8, &[&u64s(&[2])[..], b"a\xff"].concat()), "UTF-8"),
        ("arrays without end", with_value(9, &nested_arrays(50)), "deeper than the limit 4"),
        ("zero alignment", with_alignment(Value::U32(0)), "u32 0, must be a power of two"),
        ("odd alignment", with_alignment(Value::U32(24)), "u32 24, must be a power of two"),
        ("giant alignment", with_alignment(Value::U64(1 << 63)), "must be a power of two"),
        ("alignment of text", with_alignment("32".into()), "string \"32\", must be"),
        ("no dimension", with_tensor(&[], 0, 0), "has 0 dimensions"),
        ("five dimensions", with_tensor(&[1; 5], 0, 0), "has 5 dimensions"),
        ("zero dimension", with_tensor(&[32, 0], 0, 0), "dimension of 0"),
        ("2^32 squared", with_tensor(&[1 << 32, 1 << 32], 0, 0), "overflows"),
        ("2^42+1 cubed", with_tensor(&[(1 << 42) + 1; 3], 0, 0), "overflows"),
        ("2^63 f32", with_tensor(&[1 << 63], 0, 0), "overflows"),
        ("part of a block", with_tensor(&[33], 2, 0), "not a multiple"),
        ("a block short", with_tensor(&[1 << 40], 3, 0), "ends at byte"),
        ("offset beyond the end", with_tensor(&[1], 0, 1 << 40), "ends at byte"),
        ("offset that wraps", with_tensor(&[1], 0, u64::MAX - 31), "beyond 64 bits"),
        ("offset not aligned", with_tensor(&[1], 0, 4), "not a multiple of the alignment"),
        ("unknown type beyond the end", with_tensor(&[1], 77, 1 << 40), "ends at byte"),
        ("version 1", with_version(1), "version 1"),
        ("version 9", with_version(9), "version 9"),
        ("big-endian", with_version(3u32.swap_bytes()), "big-endian"),
        ("one key twice", twice(&small_key("a")), "key a is given twice"),
    ];
    for (case, file, words) in cases {
        let text = refusal(&file).unwrap_or_else(|| panic!("{case}: opened"));
        assert!(text.contains(words), "{case}: {text}");
    }
}

#[test]
fn tensors_may_not_overlap_or_share_a_name() {
    let _alone = measuring_alone();
    let two = |second_name: &[u8], offset: u64| {
        let first = tensor_info(b"a", &[32], 0, 0);
        let second = tensor_info(second_name, &[8], 0, offset);
        let mut file = [header(2, 0), first, second].concat();
        file.resize(file.len() + 400, 0);
        file
    };
    assert_eq!(refusal(&two(b"b", 128)), None, "apart is fine");
    let text = refusal(&two(b"b", 96)).unwrap();
    assert!(text.contains("tensor b starts at byte") && text.contains("inside tensor a"), "{text}");
    let text = refusal(&two(b"a", 128)).unwrap();
    assert!(text.contains("tensor a is described twice"), "{text}");
}

#[test]
fn an_unsupported_type_is_refused_only_when_asked_for() {
    let _alone = measuring_alone();
    for (type_id, name) in [(24, "I8 (type 24)"), (77, "type 77, which is not known")] {
        let mut builder = GgufBuilder::new();
        builder.tensor_of_type("odd", weights::TensorType(type_id), &[32], vec![0; 32]);
        builder.tensor("fine", QuantFormat::F32, &[1], vec![0; 4]);
        let model = WeightFile::from_bytes("mixed", builder.to_bytes().unwrap()).unwrap();
        assert!(model.tensor("fine").is_ok(), "the other tensor");
        let text = model.tensor("odd").unwrap_err().to_string();
        assert!(text.contains("tensor odd") && text.contains(name), "{text}");
        assert!(text.contains("Q4_1") && text.contains("IQ4_XS"), "lists what is: {text}");
        assert!(model.tensor("none").unwrap_err().to_string().contains("none"), "missing");
    }
}

#[test]
fn millions_of_tiny_things_stay_within_the_limit() {
    let _alone = measuring_alone();
    // The smallest key-value pairs there are, 16 bytes each, and the smallest tensors.
    let keys: Vec<u8> = (0..60_000u32).flat_map(|n| small_key(&format!("{n:x}"))).collect();
    let file = [header(0, 60_000), keys].concat();
    assert_eq!(refusal(&file), None, "many keys are allowed");
    let empty_arrays: Vec<u8> =
        (0..50_000).flat_map(|_| [[0; 4], [0; 4], [0; 4]].concat()).collect();
    let value = [&9u32.to_le_bytes()[..], &u64s(&[50_000]), &empty_arrays].concat();
    assert_eq!(refusal(&with_value(9, &value)), None, "an array of empty arrays");
    let empty_strings = [&8u32.to_le_bytes()[..], &u64s(&[50_000]), &vec![0; 400_000]].concat();
    assert_eq!(refusal(&with_value(9, &empty_strings)), None, "an array of empty strings");
    let mut claims = with_array(9, 4000);
    claims.resize(60_000, 9);
    assert!(refusal(&claims).is_some(), "arrays that claim and do not deliver");
}

/// Opens `file`, decodes all it can, checks memory and the text; `Some(text)` if it was refused.
fn refusal(file: &[u8]) -> Option<String> {
    let copy = file.to_vec();
    let before = PEAK_BYTES.restart();
    let opened = WeightFile::from_bytes("mutant", copy);
    let peak = PEAK_BYTES.read() - before;
    assert!(peak <= allocation_limit(file.len()), "{peak} bytes to open {}", file.len());
    let model = match opened {
        Ok(model) => model,
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("mutant"), "names the file: {text}");
            let located = ["at byte ", "tensor ", "key ", "mutant is ", "the parts"];
            assert!(located.iter().any(|word| text.contains(word)), "says where: {text}");
            assert!(text.len() < 1000, "is short: {} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "is printable: {text:?}");
            return Some(text);
        }
    };
    decode_all(&model);
    None
}

fn decode_all(model: &WeightFile) {
    for info in model.tensors() {
        let Ok(view) = model.tensor(info.name()) else { continue };
        let mut weights = vec![0.0; view.cols];
        for index in 0..view.rows {
            view.format.decode_row(view.row(index), &mut weights);
        }
    }
    for (key, value) in model.metadata().iter() {
        let found = model.metadata().get(key);
        assert!(found.is_some_and(|found| std::ptr::eq(found, value)), "{key} is found");
        assert!(!value.to_string().is_empty(), "values can be shown");
    }
}

/// Two layers of a llama, with a tokenizer and every supported format somewhere.
fn small_model() -> Vec<u8> {
    const COLS: u64 = 256;
    let mut builder = GgufBuilder::new();
    builder
        .key("general.architecture", "llama")
        .key("general.name", "hostile \u{1F999}")
        .key("llama.block_count", 2u32)
        .key("llama.embedding_length", COLS as u32)
        .key("llama.rope.freq_base", 10_000.0f32)
        .key("llama.attention.causal", true)
        .key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.tokens", StringArray::from_iter((0..40).map(|n| format!("t{n}"))))
        .key("tokenizer.ggml.scores", vec![0.5f32; 40])
        .key("tokenizer.ggml.token_type", vec![1i32; 40])
        .key("odd.nested", Array::Nested(vec![Array::U8(vec![1, 2].into()); 3].into()))
        .key("odd.flags", Array::Bool(vec![true, false].into()))
        .key("odd.wide", Value::F64(0.25));
    let mut random = Random(7);
    let mut add = |name: String, format: QuantFormat, rows: u64| {
        let bytes = format.row_bytes(COLS as usize).unwrap() * rows as usize;
        let bytes: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
        builder.tensor(&name, format, &[COLS, rows], bytes);
    };
    for (index, format) in QuantFormat::ALL.iter().enumerate() {
        add(format!("blk.{}.part_{index}.weight", index % 2), *format, 2);
    }
    for index in 0..5 {
        add(format!("blk.{index}.attn_norm.weight"), QuantFormat::F32, 1);
    }
    builder.to_bytes().unwrap()
}

fn data_bytes(file: &[u8]) -> usize {
    let model = WeightFile::from_bytes("whole", file.to_vec()).unwrap();
    let start = model.tensors().map(weights::TensorInfo::offset).min().unwrap();
    file.len() - start as usize
}

fn data_end(file: &[u8]) -> usize {
    let model = WeightFile::from_bytes("whole", file.to_vec()).unwrap();
    model.tensors().map(|info| info.offset() + info.bytes().unwrap()).max().unwrap() as usize
}

fn mutate(file: &mut Vec<u8>, described_bytes: usize, random: &mut Random) {
    const WORDS: [u64; 8] =
        [0, 1, u64::MAX, 1 << 63, 1 << 31, (1 << 31) - 1, (1 << 42) + 1, u32::MAX as u64];
    let limit = if random.below(4) == 0 { file.len() } else { described_bytes.min(file.len()) };
    let at = random.below(limit);
    let word = WORDS[random.below(WORDS.len())].to_le_bytes();
    match random.below(6) {
        0 => file[at] ^= 1 << random.below(8),
        1 => file[at] = random.next() as u8,
        2 => file.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new),
        3 => file.iter_mut().skip(at).zip(&word[..4]).for_each(|(byte, new)| *byte = *new),
        4 => {
            let end = (at + 1 + random.below(24)).min(file.len());
            file.drain(at..end);
        }
        _ => {
            let end = (at + 1 + random.below(24)).min(file.len());
            let copied = file[at..end].to_vec();
            file.splice(at..at, copied);
        }
    }
}

fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn header(tensors: u64, keys: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &u64s(&[tensors, keys])].concat()
}

fn with_version(version: u32) -> Vec<u8> {
    [b"GGUF".as_slice(), &version.to_le_bytes(), &u64s(&[0, 0])].concat()
}

/// One key, whose bytes are `raw` and then plenty of zeros.
fn with_key(raw: &[u8]) -> Vec<u8> {
    [header(0, 1), raw.to_vec(), vec![0; 64]].concat()
}

/// A key `k` of value type `type_id`, with `raw` where the value is expected.
fn with_value(type_id: u32, raw: &[u8]) -> Vec<u8> {
    with_key(&[&u64s(&[1])[..], b"k", &type_id.to_le_bytes(), raw].concat())
}

fn with_array(element_type: u32, count: u64) -> Vec<u8> {
    with_value(9, &[&element_type.to_le_bytes()[..], &u64s(&[count])].concat())
}

fn nested_arrays(depth: usize) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &u64s(&[1])].concat().repeat(depth)
}

fn small_key(name: &str) -> Vec<u8> {
    [&u64s(&[name.len() as u64])[..], name.as_bytes(), &0u32.to_le_bytes(), &[1]].concat()
}

fn twice(key: &[u8]) -> Vec<u8> {
    [&header(0, 2), key, key].concat()
}

fn with_alignment(value: Value) -> Vec<u8> {
    let mut builder = GgufBuilder::new();
    builder.key("general.alignment", value);
    builder.to_bytes().unwrap()
}

fn tensor_info(name: &[u8], dims: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let name = [&u64s(&[name.len() as u64])[..], name].concat();
    let shape = [&(dims.len() as u32).to_le_bytes()[..], &u64s(dims)].concat();
    [name, shape, type_id.to_le_bytes().to_vec(), u64s(&[offset])].concat()
}

fn with_tensor(dims: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut file = [header(1, 0), tensor_info(b"t", dims, type_id, offset)].concat();
    file.resize(file.len() + 256, 0);
    file
}

/// SplitMix64: Steele, Lea, Flood 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// The tests of this file take turns, so that each measures only its own memory.
fn measuring_alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[global_allocator]
static PEAK_BYTES: PeakAllocator =
    PeakAllocator { now: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// The system's allocator, counting bytes in use and their peak.
struct PeakAllocator {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl PeakAllocator {
    /// Starts a new peak at the bytes in use, which it returns.
    fn restart(&self) -> usize {
        let now = self.now.load(Ordering::SeqCst);
        self.peak.store(now, Ordering::SeqCst);
        now
    }

    fn read(&self) -> usize {
        self.peak.load(Ordering::SeqCst)
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract;
// counting touches two atomics and never allocates. `realloc` is the default: allocate, copy and
// free through this allocator, so both blocks count while they exist.
unsafe impl GlobalAlloc for PeakAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        self.peak.fetch_max(now, Ordering::SeqCst);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise that `alloc` gave `pointer` for `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
