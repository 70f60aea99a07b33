//! A GGUF file, damaged over a thousand ways.

use std::path::Path;

use testkit::tiny_model::TinyModel;

use crate::trying::{Outcome, Random, try_all, turn, unharmed};

const ALIGNMENT: usize = 32;
const ARRAY: u32 = 9;

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

#[test]
fn no_damage_panics_hangs_or_grows() {
    let _turn = turn();
    let file = Healthy::read();
    let mut cases = vec![("whole".to_owned(), file.bytes.clone())];
    let mut random = Random(2);
    type_confusions(&file, &mut random, &mut cases);
    table_damage(&file, &mut random, &mut cases);
    tokenizer_damage(&file, &mut random, &mut cases);
    blind_damage(&file, &mut random, &mut cases);
    assert!(cases.len() > 1_000, "{} cases", cases.len());
    let place = |worker: &Path, bytes: &Vec<u8>| {
        let path = worker.with_extension("gguf");
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let outcomes = unharmed(|| try_all(&cases, place));
    let count = |wanted| outcomes.iter().filter(|(_, outcome)| *outcome == wanted).count();
    let (refused, answered) = (count(Outcome::Refused), count(Outcome::Answered));
    // Both sides are reached: a loader that refused all or took all would pass without this.
    assert!(refused > cases.len() / 4 && answered > 100, "{refused} refused, {answered} answered");
    let whole = outcomes.iter().find(|(name, _)| name == "whole").unwrap();
    assert_eq!(whole.1, Outcome::Answered);
}
