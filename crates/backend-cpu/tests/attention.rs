//! Rotary, append and attention against plain f64 code, and against themselves on other teams,
//! batches and instruction sets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use backend_cpu::kernels::paged_attention::{
    AttentionPlan, AttentionRows, AttentionScratch, AttentionShape, PagedAttention, paged_attention,
};
use backend_cpu::kernels::rotary::{
    HeadNorm, RotaryAppend, RotaryStyle, RotaryTable, rotary_append, rotary_table,
};
use backend_cpu::kv_cache::{CacheShape, CacheView};
use backend_cpu::{Isa, LargeBuffer, Rows, Team};
use ops::kv_format::KvFormat;
use ops::rotary::QueryGrowth;
use support::Random;

const BLOCK_TOKENS: usize = 32;

/// Sequences with their keys and values, and a cache that holds them in scattered blocks.
struct World {
    shape: AttentionShape,
    sinks: Option<Vec<f32>>,
    format: KvFormat,
    lengths: Vec<usize>,
    /// Per sequence `[length, kv_heads * head_dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Keys and values as the cache holds them.
    held: [Vec<Vec<f64>>; 2],
    /// Per sequence `[length, heads * head_dim]`.
    queries: Vec<Vec<f32>>,
    tables: Vec<u32>,
    table_starts: Vec<u32>,
    cache: LargeBuffer,
    blocks: usize,
}

impl World {
    fn new(shape: AttentionShape, format: KvFormat, lengths: &[usize]) -> Self {
        let mut random = Random::new(7);
        let kv = shape.kv_heads * shape.head_dim;
        let rows = |random: &mut Random, width: usize, size: f32| -> Vec<Vec<f32>> {
            let row = |length: &usize| random.floats(length * width);
            let rows: Vec<Vec<f32>> = lengths.iter().map(row).collect();
            rows.into_iter().map(|row| row.iter().map(|x| x * size).collect()).collect()
        };
        let keys = rows(&mut random, kv, 2.0);
        let values = rows(&mut random, kv, 1.0);
        let queries = rows(&mut random, shape.heads * shape.head_dim, 2.0);
        let counts: Vec<usize> = lengths.iter().map(|n| n.div_ceil(BLOCK_TOKENS)).collect();
        let blocks: usize = counts.iter().sum();
        // 7 is coprime to the counts used here (asserted), so this is a permutation.
        assert!(!blocks.is_multiple_of(7), "choose other lengths");
        let tables = (0..blocks).map(|block| (block * 7 % blocks) as u32).collect();
        let mut table_starts = vec![0];
        for count in counts {
            table_starts.push(table_starts.last().unwrap() + count as u32);
        }
        let AttentionShape { kv_heads, head_dim, .. } = shape;
        let cache_shape = CacheShape { block_tokens: BLOCK_TOKENS, kv_heads, head_dim, format };
        let cache = LargeBuffer::zeroed(blocks * cache_shape.block_bytes()).unwrap();
        let lengths = lengths.to_vec();
        let as_held = |rows: &[Vec<f32>], is_key: bool| {
            let one = |row: &Vec<f32>| {
                row.chunks_exact(head_dim).flat_map(|head| held(format, head, is_key)).collect()
            };
            rows.iter().map(one).collect::<Vec<Vec<f64>>>()
        };
        let held = [as_held(&keys, true), as_held(&values, false)];
        Self {
            shape,
            sinks: None,
            format,
            lengths,
            keys,
            values,
            held,
            queries,
            tables,
            table_starts,
            cache,
            blocks,
        }
    }

    fn cache(&self) -> CacheView<'_> {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        let format = self.format;
        let shape = CacheShape { block_tokens: BLOCK_TOKENS, kv_heads, head_dim, format };
        // SAFETY: the buffer was made for as many blocks.
        unsafe { CacheView::from_raw(self.cache.pointer(), self.blocks, shape) }
    }

    /// Appends everything, unturned.
    fn fill(&self, team: &Team, isa: Isa) {
        for sequence in 0..self.lengths.len() {
            let length = self.lengths[sequence];
            let table = &self.tables[self.table_starts[sequence] as usize..];
            let slot = |position: usize| {
                table[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32
                    + (position % BLOCK_TOKENS) as u32
            };
            let slots: Vec<u32> = (0..length).map(slot).collect();
            let (mut q, mut k) = (self.queries[sequence].clone(), self.keys[sequence].clone());
            let mut v = self.values[sequence].clone();
            let kv = self.shape.kv_heads * self.shape.head_dim;
            let call = RotaryAppend {
                query: Rows::new(&mut q, length, self.shape.heads * self.shape.head_dim),
                key: Rows::new(&mut k, length, kv),
                value: Rows::new(&mut v, length, kv),
                table: None,
                growth: None,
                head_norm: None,
                slots: &slots,
                cache: self.cache(),
            };
            // SAFETY: every member makes the same call on buffers of this function.
            team.run(&|worker| unsafe { rotary_append(worker, isa, &call) });
        }
    }

    /// Attention of the given (sequence, position) rows.
    fn attend(&self, team: &Team, isa: Isa, asked: &[(usize, usize)]) -> Vec<f32> {
        let width = self.shape.heads * self.shape.head_dim;
        let mut q: Vec<f32> = Vec::new();
        for (sequence, position) in asked {
            q.extend_from_slice(&self.queries[*sequence][position * width..][..width]);
        }
        let sequences: Vec<u32> = asked.iter().map(|(sequence, _)| *sequence as u32).collect();
        let positions: Vec<u32> = asked.iter().map(|(_, position)| *position as u32).collect();
        let mut out = vec![f32::NAN; q.len()];
        let scratch = AttentionScratch::new(team.members(), &self.shape, 4096).unwrap();
        let mut plan = AttentionPlan::default();
        let rows = AttentionRows {
            sequences: &sequences,
            positions: &positions,
            tables: &self.tables,
            table_starts: &self.table_starts,
        };
        plan.build(&rows, &self.shape, &scratch);
        let call = PagedAttention {
            shape: self.shape,
            sinks: self.sinks.as_deref(),
            query: Rows::new(&mut q, asked.len(), width),
            cache: self.cache(),
            rows,
            plan: &plan,
            scratch: &scratch,
            output: Rows::new(&mut out, asked.len(), width),
        };
        // SAFETY: every member makes the same call on buffers of this function.
        team.run(&|worker| unsafe { paged_attention(worker, isa, &call) });
        out
    }

    /// The definition, in f64 over what the cache holds.
    fn exact(&self, sequence: usize, position: usize) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim, scale, window, soft_cap } = self.shape;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        let mut out = Vec::new();
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let at = |p: usize| (p * kv_heads + kv) * head_dim;
            let held = |side: usize, p: usize| &self.held[side][sequence][at(p)..][..head_dim];
            let q = &self.queries[sequence][(position * heads + head) * head_dim..][..head_dim];
            let score = |p: usize| {
                let key = held(0, p);
                let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
                let score = dot * f64::from(scale);
                soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let weights: Vec<f64> = (first..=position).map(|p| score(p).exp()).collect();
            let sink = self.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
            let total: f64 = weights.iter().sum::<f64>() + sink;
            let mut sums = vec![0.0; head_dim];
            for (weight, p) in weights.iter().zip(first..) {
                let value = held(1, p);
                sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += weight * value);
            }
            out.extend(sums.iter().map(|sum| sum / total));
        }
        out
    }
}

/// What the cache holds for a key or value.
fn held(format: KvFormat, row: &[f32], is_key: bool) -> Vec<f64> {
    match format {
        KvFormat::F16 => row.iter().map(|x| half::f16::from_f32(*x).to_f64()).collect(),
        KvFormat::Bf16 => row.iter().map(|x| half::bf16::from_f32(*x).to_f64()).collect(),
        KvFormat::Int16 => coded(row.iter().map(|x| f64::from(*x)).collect(), 4095.0),
        KvFormat::Int8 if is_key => {
            let turned = hadamard(row.iter().map(|x| f64::from(*x)).collect());
            let size = f64::from(1 << row.len().trailing_zeros());
            hadamard(coded(turned, 127.0)).iter().map(|x| x / size).collect()
        }
        KvFormat::Int8 => coded(row.iter().map(|x| f64::from(*x)).collect(), 127.0),
    }
}

fn coded(row: Vec<f64>, code: f64) -> Vec<f64> {
    let largest = row.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    row.iter().map(|x| (x * code / largest).round_ties_even() * largest / code).collect()
}

/// Each block of the largest power of two that divides the length, by the matrix of signs
/// `(-1)^(bits that i and j share)`.
fn hadamard(row: Vec<f64>) -> Vec<f64> {
    let size = 1usize << row.len().trailing_zeros();
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let turned = |block: &[f64], i: usize| (0..size).map(|j| sign(i, j) * block[j]).sum::<f64>();
    row.chunks_exact(size).flat_map(|block| (0..size).map(move |i| turned(block, i))).collect()
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, soft_cap: None }
}

fn near(got: &[f32], exact: &[f64], bound: f64, case: &str) {
    assert_eq!(got.len(), exact.len());
    for (got, exact) in got.iter().zip(exact) {
        assert!((f64::from(*got) - exact).abs() < bound, "{case}: {got} for {exact}");
    }
}

#[test]
fn attention_is_near_the_definition() {
    let team = Team::new(2).unwrap();
    let window = AttentionShape { window: Some(150), ..shape(4, 2, 32) };
    let capped = AttentionShape { soft_cap: Some(5.0), ..shape(4, 4, 80) };
    // More heads than a tile has rows, as latent attention has.
    let latent = shape(80, 1, 48);
    let shapes = [shape(9, 3, 64), shape(2, 1, 128), shape(16, 1, 16), latent, window, capped];
    for (shape, format) in shapes.into_iter().flat_map(|s| KvFormat::ALL.map(|f| (s, f))) {
        let world = World::new(shape, format, &[300, 33, 1]);
        world.fill(&team, Isa::detect());
        let prompt: Vec<(usize, usize)> = (0..300).map(|position| (0, position)).collect();
        let mixed = [(2, 0), (1, 30), (1, 31), (1, 32), (0, 299)];
        // Scores of size 20 in f32 are off by 2^-24 * 20 * 8 at most, and weights with them.
        // Integers: 2 / 8190 a query's element, 1 / 8190 a weight, and a code that rounds
        // the other way in f32.
        let bound = if format.has_scales() { 2e-3 } else { 2e-5 };
        for asked in [&prompt[..], &mixed[..], &prompt[120..137], &[(0, 299)]] {
            let got = world.attend(&team, Isa::detect(), asked);
            let width = shape.heads * shape.head_dim;
            for (row, (sequence, position)) in asked.iter().enumerate() {
                let exact = world.exact(*sequence, *position);
                let case = format!("{shape:?} at {position}, {}", format.name());
                near(&got[row * width..][..width], &exact, bound, &case);
            }
        }
    }
}

/// From one that is as good as none to one that takes nearly all.
#[test]
fn sinks_take_their_share() {
    let sinks = vec![-90.0, -2.0, 0.5, 9.0];
    let window = AttentionShape { window: Some(40), ..shape(4, 2, 32) };
    for (shape, format) in
        [shape(4, 2, 32), window].into_iter().flat_map(|s| KvFormat::ALL.map(|f| (s, f)))
    {
        let plain = World::new(shape, format, &[300, 33, 1]);
        let world = World { sinks: Some(sinks.clone()), ..plain };
        let asked: Vec<(usize, usize)> = (0..300).map(|at| (0, at)).chain([(1, 32)]).collect();
        let mut expected: Option<Vec<u32>> = None;
        for (isa, members) in Isa::all().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let team = Team::new(members).unwrap();
            world.fill(&team, isa);
            for asked in [&asked[..], &asked[299..300]] {
                let got = world.attend(&team, isa, asked);
                for (got, (sequence, position)) in got.chunks_exact(128).zip(asked) {
                    let bound = if format.has_scales() { 2e-3 } else { 2e-5 };
                    near(got, &world.exact(*sequence, *position), bound, isa.name());
                }
            }
            let all: Vec<u32> =
                world.attend(&team, isa, &asked).into_iter().map(f32::to_bits).collect();
            assert!(&all == expected.get_or_insert(all.clone()), "{}", isa.name());
        }
    }
}

#[test]
fn attention_does_not_depend_on_threads_batch_or_instruction_set() {
    let one = Team::new(1).unwrap();
    let window = AttentionShape { window: Some(140), ..shape(6, 2, 48) };
    let capped = AttentionShape { soft_cap: Some(5.0), ..shape(5, 1, 144) };
    let shapes = [shape(9, 3, 64), shape(7, 7, 96), window, capped];
    for (shape, format) in shapes.into_iter().flat_map(|s| KvFormat::ALL.map(|f| (s, f))) {
        let world = World::new(shape, format, &[400, 70]);
        world.fill(&one, Isa::detect());
        let asked: Vec<(usize, usize)> =
            (350..400).map(|position| (0, position)).chain([(1, 69), (0, 10)]).collect();
        let alone: Vec<u32> = asked
            .iter()
            .flat_map(|asked| world.attend(&one, Isa::detect(), &[*asked]))
            .map(f32::to_bits)
            .collect();
        for members in [1, 2, 7] {
            let team = Team::new(members).unwrap();
            for isa in Isa::all() {
                let again = World::new(shape, format, &[400, 70]);
                again.fill(&team, isa);
                let got = again.attend(&team, isa, &asked);
                let got: Vec<u32> = got.into_iter().map(f32::to_bits).collect();
                assert!(got == alone, "{members} threads, {}, {}", isa.name(), format.name());
            }
        }
    }
}

#[test]
fn what_is_no_number_shows_and_stays_in_its_sequence() {
    let team = Team::new(2).unwrap();
    let asked = [(0, 40), (0, 60), (0, 69), (1, 20)];
    for format in KvFormat::ALL {
        for of_keys in [true, false] {
            let mut world = World::new(shape(4, 2, 32), format, &[70, 41]);
            let rows = if of_keys { &mut world.keys } else { &mut world.values };
            rows[0][50 * 64 + 3] = f32::NAN;
            world.fill(&team, Isa::detect());
            let got = world.attend(&team, Isa::detect(), &asked);
            let lost = |row: usize| got[row * 128..][..128].iter().any(|x| x.is_nan());
            let name = format.name();
            assert!(!lost(3), "{name}: another sequence");
            assert!(lost(1) && lost(2), "{name}: positions that see it");
            assert!(!format.has_scales() || !lost(0), "{name}: a position before it");
        }
    }
}

/// Two neighbors' codes are written at once, and 16 positions by one member: neither may show.
#[test]
fn the_cache_is_the_same_however_tokens_come() {
    let (tokens, kv_heads, head_dim) = (75, 2, 48);
    let mut random = Random::new(11);
    let (keys, values) = (random.floats(tokens * 96), random.floats(tokens * 96));
    let positions: Vec<u32> = (0..tokens as u32).map(|position| position + 5).collect();
    let frequencies: Vec<f32> = (0..20).map(|i| 10_000f32.powf(-(i as f32) / 20.0)).collect();
    for (format, style) in KvFormat::ALL
        .into_iter()
        .flat_map(|f| [(f, RotaryStyle::HalfSplit), (f, RotaryStyle::AdjacentPair)])
    {
        let shape = CacheShape { block_tokens: BLOCK_TOKENS, kv_heads, head_dim, format };
        let mut expected: Option<Vec<u8>> = None;
        let sets = Isa::all().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]);
        for ((isa, members), step) in sets.flat_map(|set| [(set, 1), (set, 7), (set, 75)]) {
            let team = Team::new(members).unwrap();
            let bytes = 3 * shape.block_bytes();
            let room = LargeBuffer::zeroed(bytes).unwrap();
            // SAFETY: room for three blocks.
            let cache = unsafe { CacheView::from_raw(room.pointer(), 3, shape) };
            for first in (0..tokens).step_by(step) {
                let count = step.min(tokens - first);
                let part = |all: &[f32]| all[first * 96..][..count * 96].to_vec();
                let (mut query, mut key, mut value) = (part(&keys), part(&keys), part(&values));
                let (mut cos, mut sin) = (vec![0.0; count * 20], vec![0.0; count * 20]);
                let table = RotaryTable {
                    cos: Rows::new(&mut cos, count, 20),
                    sin: Rows::new(&mut sin, count, 20),
                    style,
                };
                let slots = &positions[first..first + count];
                let call = RotaryAppend {
                    query: Rows::new(&mut query, count, 96),
                    key: Rows::new(&mut key, count, 96),
                    value: Rows::new(&mut value, count, 96),
                    table: Some(table),
                    growth: None,
                    head_norm: None,
                    slots,
                    cache,
                };
                // SAFETY: every member makes the same calls on buffers of this function.
                team.run(&|worker| unsafe {
                    rotary_table(worker, slots, &frequencies, 1.0, &table);
                    rotary_append(worker, isa, &call);
                });
                let turned: Vec<u32> = query.iter().map(|x| x.to_bits()).collect();
                let stored: Vec<u32> = key.iter().map(|x| x.to_bits()).collect();
                assert!(format == KvFormat::Int8 || turned == stored, "queries turn as keys do");
            }
            // SAFETY: the team has finished; the buffer holds as many bytes.
            let got = unsafe { std::slice::from_raw_parts(room.pointer(), bytes) }.to_vec();
            let expected = expected.get_or_insert_with(|| got.clone());
            let case = format!("{}, {}", isa.name(), format.name());
            assert!(&got == expected, "{members} threads, {step} at once, {case}");
        }
    }
}

const GROWTH: QueryGrowth = QueryGrowth { factor: 0.5, every: 4 };

/// A head of 32, grown, after its norm and its turn by half the angle's cosine and sine, in f64.
fn turned(
    row: &[f32],
    weight: &[f32],
    (position, grown): (u32, f32),
    frequencies: &[f32],
    style: RotaryStyle,
) -> Vec<f64> {
    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 32.0;
    let factor = f64::from(grown) / (mean + 1e-6).sqrt();
    let scaled = row.iter().zip(weight);
    let mut row: Vec<f64> = scaled.map(|(x, w)| factor * f64::from(*x) * f64::from(*w)).collect();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (a, b) = match style {
            RotaryStyle::HalfSplit => (i, i + 12),
            RotaryStyle::AdjacentPair => (2 * i, 2 * i + 1),
        };
        let (x, y) = (row[a], row[b]);
        row[a] = 0.5 * (x * cos - y * sin);
        row[b] = 0.5 * (y * cos + x * sin);
    }
    row
}

#[test]
fn heads_are_normed_turned_and_stored() {
    let team = Team::new(2).unwrap();
    let (tokens, heads, kv_heads, head_dim) = (5, 4, 2, 32);
    let positions = [3u32, 4, 5, 100, 7];
    let frequencies: Vec<f32> = (0..12).map(|i| 10_000f32.powf(-(i as f32) / 12.0)).collect();
    let mut random = Random::new(9);
    let (weight_q, weight_k) = (random.floats(head_dim), random.floats(head_dim));
    let (q, k) = (random.floats(tokens * heads * head_dim), random.floats(tokens * 2 * head_dim));
    let v = random.floats(tokens * kv_heads * head_dim);
    let norm = HeadNorm { query: &weight_q, key: &weight_k, epsilon: 1e-6 };
    let (format, slots) = (KvFormat::F16, [31u32, 0, 17, 5, 16]);
    let cache_shape = CacheShape { block_tokens: 16, kv_heads, head_dim, format };
    for style in [RotaryStyle::HalfSplit, RotaryStyle::AdjacentPair] {
        for isa in Isa::all() {
            let room = LargeBuffer::zeroed(2 * cache_shape.block_bytes()).unwrap();
            // SAFETY: room for two blocks.
            let cache = unsafe { CacheView::from_raw(room.pointer(), 2, cache_shape) };
            let (mut q_out, mut k_out, mut v_out) = (q.clone(), k.clone(), v.clone());
            let (mut cos, mut sin) = (vec![0.0; tokens * 12], vec![0.0; tokens * 12]);
            let table = RotaryTable {
                cos: Rows::new(&mut cos, tokens, 12),
                sin: Rows::new(&mut sin, tokens, 12),
                style,
            };
            let call = RotaryAppend {
                query: Rows::new(&mut q_out, tokens, heads * head_dim),
                key: Rows::new(&mut k_out, tokens, kv_heads * head_dim),
                value: Rows::new(&mut v_out, tokens, kv_heads * head_dim),
                table: Some(table),
                growth: Some((GROWTH, &positions)),
                head_norm: Some(norm),
                slots: &slots,
                cache,
            };
            // SAFETY: every member makes the same calls on buffers of this function.
            team.run(&|worker| unsafe {
                rotary_table(worker, &positions, &frequencies, 0.5, &table);
                rotary_append(worker, isa, &call);
            });
            let turned = |row: &[f32], weight: &[f32], at: (u32, f32)| {
                turned(row, weight, at, &frequencies, style)
            };
            let rows = q_out.chunks_exact(head_dim).zip(q.chunks_exact(head_dim));
            for (head, (got, row)) in rows.enumerate() {
                let at = positions[head / heads];
                near(got, &turned(row, &weight_q, (at, GROWTH.at(at))), 2e-5, isa.name());
            }
            // SAFETY: the team has finished; two blocks were made.
            let stored = unsafe {
                let start = room.pointer().cast::<half::f16>();
                std::slice::from_raw_parts(start, cache_shape.block_bytes())
            };
            for token in 0..tokens {
                for head in 0..kv_heads {
                    let row = &k[(token * kv_heads + head) * head_dim..][..head_dim];
                    let key = turned(row, &weight_k, (positions[token], 1.0));
                    let (block, offset) = (slots[token] as usize / 16, slots[token] as usize % 16);
                    let base = block * cache_shape.block_bytes() / 2 + head * 2 * 16 * head_dim;
                    for d in 0..head_dim {
                        let got = stored[base + d * 16 + offset].to_f64();
                        assert!((got - key[d]).abs() <= 1e-3 * key[d].abs() + 1e-5, "key {d}");
                        let value = v[(token * kv_heads + head) * head_dim + d];
                        let got = stored[base + (16 + offset) * head_dim + d];
                        assert_eq!(got, half::f16::from_f32(value), "value {d}");
                    }
                }
            }
        }
    }
}
