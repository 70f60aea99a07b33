//! Mixtures of experts against the scalar reference, and against themselves on other teams,
//! batches and instruction sets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use backend_cpu::kernels::experts::{Experts, ExpertsScratch, ExpertsSizes, experts};
use backend_cpu::{ArenaPiece, Isa, MatrixSource, PackedMatrix, PageAllocator, Rows, Team};
use device::{HeapPool, HeapSettings, HeapSource};
use ops::WeightId;
use ops::experts::{Choice, Learned, Routing, Scoring, Weights, reference};
use ops::gated_linear::Activation;
use ops::linear::Sum;
use ops::quant_format::QuantFormat;
use support::{Random, weights};

const WIDTH: usize = 64;

/// A mixture with its weights, packed and decoded.
struct World {
    shape: ops::experts::Experts,
    packed: [Vec<PackedMatrix>; 3],
    decoded: [Vec<f32>; 3],
    biases: Option<[Vec<f32>; 3]>,
    choice_bias: Option<Vec<f32>>,
    weight_scales: Option<Vec<f32>>,
}

impl World {
    fn new(formats: [QuantFormat; 3], inner: usize, scoring: Scoring, has_biases: bool) -> Self {
        let mut random = Random::new(5);
        let team = Team::new(1).unwrap();
        let count = 6;
        let (mut packed, mut decoded) = (Vec::new(), Vec::new());
        for (format, (rows, cols)) in
            formats.into_iter().zip([(inner, WIDTH), (inner, WIDTH), (WIDTH, inner)])
        {
            let mut all = Vec::new();
            let mut matrices = Vec::new();
            for _ in 0..count {
                let bytes = weights(&mut random, format, rows, cols);
                let source = MatrixSource { format, rows, cols, bytes: &bytes };
                let room = PackedMatrix::packed_bytes(format, rows, cols).unwrap();
                let piece = ArenaPiece::alone(room).unwrap();
                let matrix = PackedMatrix::pack(&source, piece, &team).unwrap();
                let mut row = vec![0.0; cols];
                for index in 0..rows {
                    matrix.decode_row(index, &mut row);
                    all.extend_from_slice(&row);
                }
                matrices.push(matrix);
            }
            packed.push(matrices);
            decoded.push(all);
        }
        let id = WeightId(0);
        let of = |random: &mut Random, rows| random.floats(count * rows);
        let biases = has_biases
            .then(|| [of(&mut random, inner), of(&mut random, inner), of(&mut random, WIDTH)]);
        let (groups, groups_used) = if scoring == Scoring::SigmoidNormed { (3, 2) } else { (1, 1) };
        Self {
            shape: ops::experts::Experts {
                routing: Routing {
                    experts: count as u32,
                    used: 2,
                    scoring,
                    groups,
                    groups_used,
                    scale: 1.5,
                    sharpness: 0.75,
                },
                choice_bias: None,
                weight_scales: None,
                gate: id,
                up: id,
                down: id,
                biases: None,
                activation: if has_biases { Activation::ClampedSilu } else { Activation::Silu },
                inner: inner as u32,
            },
            packed: packed.try_into().ok().unwrap(),
            decoded: decoded.try_into().ok().unwrap(),
            biases,
            choice_bias: (scoring == Scoring::SigmoidNormed).then(|| random.floats(count)),
            weight_scales: (scoring == Scoring::SoftmaxNormed).then(|| random.floats(count)),
        }
    }

    /// On `start`, added to it.
    fn compute(&self, team: &Team, isa: Isa, x: &[f32], scores: &[f32], start: f32) -> Vec<f32> {
        let tokens = x.len() / WIDTH;
        let sizes = ExpertsSizes {
            experts: self.shape.routing.experts as usize,
            used: 2,
            width: WIDTH,
            inner: self.shape.inner as usize,
        };
        let settings = HeapSettings { enabled: false, ..HeapSettings::default() };
        let source = HeapSource { settings, allocator: Arc::new(PageAllocator) };
        let pool = HeapPool::open(source, 0).unwrap();
        let scratch = ExpertsScratch::carve(&pool, sizes, tokens).unwrap();
        let (mut x, mut scores, mut out) =
            (x.to_vec(), scores.to_vec(), vec![start; tokens * WIDTH]);
        let call = Experts {
            routing: &self.shape.routing,
            learned: self.learned(),
            scores: Rows::new(&mut scores, tokens, sizes.experts),
            input: Rows::new(&mut x, tokens, WIDTH),
            gate_up: [&self.packed[0], &self.packed[1]],
            down: &self.packed[2],
            biases: self.biases.as_ref().map(|all| all.each_ref().map(Vec::as_slice)),
            activation: self.shape.activation,
            scratch: &scratch,
            output: Rows::new(&mut out, tokens, WIDTH),
            sum: Sum::Add,
        };
        // SAFETY: every member makes the same call on buffers of this function.
        team.run(&|worker| unsafe { experts(worker, isa, &call) });
        out
    }

    fn learned(&self) -> Learned<'_> {
        Learned {
            choice_bias: self.choice_bias.as_deref(),
            weight_scales: self.weight_scales.as_deref(),
        }
    }

    fn exact(&self, x: &[f32], scores: &[f32], start: f32) -> Vec<f32> {
        let mut out = vec![start; x.len()];
        let weights = Weights {
            gate: &self.decoded[0],
            up: &self.decoded[1],
            down: &self.decoded[2],
            biases: self.biases.as_ref().map(|all| all.each_ref().map(Vec::as_slice)),
        };
        let experts = self.shape.routing.experts as usize;
        let rows = x.chunks_exact(WIDTH).zip(out.chunks_exact_mut(WIDTH));
        for ((x, out), scores) in rows.zip(scores.chunks_exact(experts)) {
            let mut chosen = [Choice::default(); 2];
            self.shape.routing.choose(scores, self.learned(), &mut chosen);
            reference(&self.shape, &weights, x, &chosen, Sum::Add, out);
        }
        out
    }
}

fn worlds() -> Vec<(World, f32)> {
    use QuantFormat::{F16, F32, Q4_0, Q8_0};
    let (float, integer) = (2e-6, 2e-2);
    vec![
        (World::new([F32, F32, F32], 48, Scoring::SoftmaxNormed, false), float),
        (World::new([F16, F16, F16], 32, Scoring::SigmoidNormed, true), float),
        (World::new([Q4_0, Q8_0, Q8_0], 96, Scoring::SoftmaxOfChosen, true), integer),
        (World::new([Q4_0, F32, F32], 32, Scoring::Softmax, false), integer),
        (World::new([F32, F32, Q8_0], 64, Scoring::Sigmoid, false), integer),
    ]
}

/// More tokens than are sorted together, most of them for two of the experts.
fn inputs(tokens: usize) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random::new(3);
    let x = random.floats(tokens * WIDTH).iter().map(|x| x * 2.0).collect();
    let mut scores: Vec<f32> = random.floats(tokens * 6).iter().map(|x| x * 3.0).collect();
    scores.chunks_exact_mut(6).skip(3).for_each(|scores| scores[4] += 2.0);
    (x, scores)
}

#[test]
fn experts_are_near_the_reference() {
    let team = Team::new(2).unwrap();
    let (x, scores) = inputs(530);
    for (world, bound) in worlds() {
        let exact = world.exact(&x, &scores, 0.25);
        let got = world.compute(&team, Isa::detect(), &x, &scores, 0.25);
        let scale = exact.iter().fold(0f32, |scale, x| scale.max(x.abs()));
        let differ = got.iter().zip(&exact).map(|(got, x)| (got - x).abs()).fold(0.0, f32::max);
        assert!(differ <= bound * scale, "{:?}: {differ} of {scale}", world.shape.routing);
        // One token alone, and none at all.
        let one = world.compute(&team, Isa::detect(), &x[..WIDTH], &scores[..6], 0.25);
        assert_eq!(one, got[..WIDTH]);
        assert!(world.compute(&team, Isa::detect(), &[], &[], 0.0).is_empty());
    }
}

#[test]
fn results_do_not_depend_on_threads_batch_or_instruction_set() {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let (x, scores) = inputs(37);
    for (world, _) in worlds() {
        let one = Team::new(1).unwrap();
        let alone = x.chunks_exact(WIDTH).zip(scores.chunks_exact(6));
        let alone = alone.flat_map(|(x, s)| world.compute(&one, Isa::detect(), x, s, -1.0));
        let alone = bits(alone.collect());
        for members in [1, 2, 7] {
            let team = Team::new(members).unwrap();
            for isa in Isa::all() {
                let got = bits(world.compute(&team, isa, &x, &scores, -1.0));
                assert!(got == alone, "{members} threads, {}", isa.name());
            }
        }
    }
}
