//! Does a sequence that carries a state say the same, bit for bit, however its tokens came?
//!
//! In one step or in many, beside others or alone, with guesses that turn out right or wrong, from
//! the start or from a state that another sequence left: on every backend and instruction set.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use backend_cpu::{CpuBackend, Isa};
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use backend_split::{Share, SplitBackend};
use backend_wgpu::{Api, WgpuBackend};
use device::{
    Backend, BlockCopy, Capacity, HostBytes, Program, RowInput, SlotReset, StateCopy, StepInputs,
    StepOutputs, TokenInput,
};
use ops::sample_rows::SampleParams;
use testkit::StoredTensors;
use weights::WeightFile;

const CAPACITY: Capacity = Capacity {
    step_tokens_max: 48,
    slots: 3,
    proposed_tokens_max: 6,
    block_count: 6,
    block_tokens: 32,
    states: 2,
};
/// Blocks of each slot.
const OWN_BLOCKS: u32 = 2;
const MODELS: [&str; 3] = ["qwen35", "qwen35moe", "qwen3next"];

fn model(name: &str) -> WeightFile {
    let folder = format!("{}/golden/families", env!("CARGO_MANIFEST_DIR"));
    weights::open(format!("{folder}/{name}.gguf")).unwrap()
}

fn backends() -> Vec<Box<dyn Backend>> {
    let on_cpu = |isa: Isa| CpuBackend::open(Some(2), Some(isa.name())).unwrap();
    let cpu = Isa::all().into_iter().map(|isa| Box::new(on_cpu(isa)) as Box<dyn Backend>);
    let cuda = match CudaBackend::open(0) {
        Ok(backend) => Some(Box::new(backend) as Box<dyn Backend>),
        Err(error) => {
            eprintln!("without CUDA: there is no device ({error})");
            None
        }
    };
    let wgpu = match WgpuBackend::open(Api::Any, 0) {
        Ok(backend) => Some(Box::new(backend) as Box<dyn Backend>),
        Err(error) => {
            eprintln!("without wgpu: there is no adapter ({error})");
            None
        }
    };
    let reference = || Box::new(ReferenceBackend) as Box<dyn Backend>;
    let share = Share { layers: CUT, experts: 0 };
    let split = SplitBackend::new(Box::new(on_cpu(Isa::detect())), reference(), share);
    let alone = cpu.chain(cuda).chain(wgpu);
    [reference(), Box::new(split)].into_iter().chain(alone).collect()
}

/// The models have two layers: the first carries a state, the second has keys and values.
const CUT: u32 = 1;

struct Runner {
    program: Box<dyn Program>,
    vocabulary: usize,
    step: u64,
}

/// Tokens of one slot in a step: where they start, and how many of the last are guesses.
#[derive(Clone, Copy)]
struct Row<'a> {
    slot: u32,
    start: u32,
    tokens: &'a [u32],
    guesses: u32,
}

impl Runner {
    fn new(name: &str, backend: &dyn Backend) -> Self {
        let file = model(name);
        let spec = models::read_spec(&file, &models::LoadSettings::default()).unwrap();
        let tape = models::lower(&spec).unwrap();
        assert!(!tape.state.is_empty(), "{name} carries nothing");
        let vocabulary = tape.vocabulary as usize;
        let program = backend.load(tape, &StoredTensors(&file), CAPACITY).unwrap();
        Self { program, vocabulary, step: 0 }
    }

    /// Logits behind the last certain token of each row, and behind each guess.
    fn run(&mut self, rows: &[Row<'_>], states: &[StateCopy]) -> Vec<Vec<f32>> {
        self.run_behind(rows, states, Vec::new())
    }

    /// The same with states that come from elsewhere.
    fn run_behind(
        &mut self,
        rows: &[Row<'_>],
        states: &[StateCopy],
        copies: Vec<BlockCopy>,
    ) -> Vec<Vec<f32>> {
        let mut inputs = StepInputs { step: self.step, keep_logits: true, ..Default::default() };
        inputs.copies = copies;
        self.step += 1;
        inputs.states.extend_from_slice(states);
        for &Row { slot, start, tokens, guesses } in rows {
            let loads =
                |copy: &StateCopy| matches!(copy, StateCopy::Load { slot: to, .. } if *to == slot);
            if start == 0 || states.iter().any(loads) || !inputs.copies.is_empty() {
                let (params, prompt, generated) = (SampleParams::default(), vec![], vec![]);
                inputs.resets.push(SlotReset { slot, params, prompt, generated, adapter: None });
            }
            inputs.rows.push(RowInput {
                slot,
                start,
                length: tokens.len() as u32,
                blocks_start: inputs.blocks.len() as u32,
                blocks_count: OWN_BLOCKS,
                sample_index: Some(0),
                proposed: guesses,
            });
            inputs.blocks.extend(slot * OWN_BLOCKS..(slot + 1) * OWN_BLOCKS);
            inputs.tokens.extend(tokens.iter().map(|&token| TokenInput::Known(token)));
        }
        let mut outputs = StepOutputs::default();
        self.program.run(&inputs, &mut outputs).unwrap();
        outputs.logits.chunks_exact(self.vocabulary).map(<[f32]>::to_vec).collect()
    }

    fn last(&mut self, row: Row<'_>) -> Vec<f32> {
        self.run(&[row], &[]).pop().unwrap()
    }
}

fn ids() -> Vec<u32> {
    (0..40).map(|index| (index * 7 + index * index) % 31).collect()
}

fn row(slot: u32, start: u32, tokens: &[u32]) -> Row<'_> {
    Row { slot, start, tokens, guesses: 0 }
}

/// Calls `check(name, fresh runner, logits behind all ids in one step)` for every model and
/// backend; those logits are the same on all instruction sets of the processor.
fn each(check: impl Fn(&str, &mut Runner, &[f32])) {
    for name in MODELS {
        let mut on_cpu: Option<Vec<f32>> = None;
        for backend in backends() {
            let expected = Runner::new(name, &*backend).last(row(0, 0, &ids()));
            if backend.name() == "cpu" {
                assert_eq!(*on_cpu.get_or_insert_with(|| expected.clone()), expected, "{name}");
            }
            check(name, &mut Runner::new(name, &*backend), &expected);
        }
    }
}

#[test]
fn cuts_of_a_prompt_do_not_matter() {
    let ids = ids();
    each(|name, runner, expected| {
        for cut in [1, 3, 4, 13, 32, 39] {
            let mut start = 0;
            let mut got = Vec::new();
            for part in ids.chunks(cut) {
                got = runner.last(row(0, start, part));
                start += part.len() as u32;
            }
            assert_eq!(got, expected, "{name} in parts of {cut}");
        }
    });
}

#[test]
fn neighbours_do_not_matter() {
    let ids = ids();
    let others: Vec<u32> = ids.iter().map(|id| 30 - id).collect();
    each(|name, runner, expected| {
        runner.run(&[row(1, 0, &others[..5]), row(2, 0, &ids[..20])], &[]);
        let rows = [row(0, 0, &others[..9]), row(1, 5, &others[5..6]), row(2, 20, &ids[20..])];
        let got = runner.run(&rows, &[]);
        assert_eq!(got[2], expected, "{name}");
    });
}

#[test]
fn guesses_do_not_matter() {
    let ids = ids();
    let wrong = [1, 2, 3];
    each(|name, runner, expected| {
        let one_by_one: Vec<Vec<f32>> =
            (0..40).map(|at| runner.last(row(1, at as u32, &ids[at..=at]))).collect();
        assert_eq!(one_by_one[39], expected, "{name}");
        runner.run(&[row(0, 0, &ids[..10])], &[]);
        let mut start = 10;
        // So many guesses are right, and some wrong ones follow.
        for right in [2, 0, 3, 1, 0, 3, 3] {
            let end = start + 1 + right;
            let tokens = [&ids[start..end], &wrong[..3]].concat();
            let guesses = (right + 3) as u32;
            let got =
                runner.run(&[Row { slot: 0, start: start as u32, tokens: &tokens, guesses }], &[]);
            for (place, got) in got[..=right].iter().enumerate() {
                assert_eq!(*got, one_by_one[start + place], "{name} at {start} + {place}");
            }
            start = end;
        }
        let got = runner.last(row(0, start as u32, &ids[start..]));
        assert_eq!(got, expected, "{name} behind guesses");
    });
}

#[test]
fn states_are_taken_up_where_they_were_left() {
    let ids = ids();
    each(|name, runner, expected| {
        runner.run(&[row(0, 0, &ids[..16])], &[StateCopy::Save { slot: 0, place: 1 }]);
        // The slot goes on and is taken by others.
        runner.run(&[row(0, 16, &ids[..9])], &[StateCopy::Save { slot: 0, place: 0 }]);
        runner.run(&[row(0, 0, &ids[7..30])], &[]);
        // Keys and values of the first 16 are in a block of slot 0; they are made anew.
        runner.run(&[row(2, 0, &ids[..16])], &[]);
        let got = runner.run(&[row(2, 16, &ids[16..])], &[StateCopy::Load { place: 1, slot: 2 }]);
        assert_eq!(got[0], expected, "{name}");
    });
}

#[test]
fn states_leave_the_device_and_come_back_in_pieces() {
    let ids = ids();
    each(|name, runner, expected| {
        runner.run(&[row(0, 0, &ids[..16])], &[StateCopy::Save { slot: 0, place: 1 }]);
        let bytes = runner.program.state_bytes().unwrap();
        let piece = |offset: usize| {
            // The last one is longer than what is left.
            let mut piece = vec![7; 260];
            runner.program.read_state(1, offset, &mut piece);
            assert!(piece.iter().skip(bytes - offset).all(|&byte| byte == 0), "{name}");
            let (slot, position, bytes) = (2, 16, HostBytes(Arc::new(piece)));
            BlockCopy::StateIn { slot, position, offset, bytes }
        };
        let pieces: Vec<BlockCopy> = (0..bytes).step_by(260).map(piece).collect();
        assert!(pieces.len() > 2, "{name}: {bytes} bytes");
        runner.run(&[row(2, 0, &ids[..16])], &[]);
        runner.run(&[row(2, 16, &ids[7..30])], &[]);
        let got = runner.run_behind(&[row(2, 16, &ids[16..])], &[], pieces);
        assert_eq!(got[0], expected, "{name}");
    });
}

#[test]
fn a_row_elsewhere_than_its_state_is_a_fault() {
    let ids = ids();
    for backend in backends() {
        let mut runner = Runner::new("qwen35", &*backend);
        runner.run(&[row(0, 0, &ids[..16])], &[]);
        let mut inputs = StepInputs::default();
        inputs.rows.push(RowInput {
            slot: 0,
            start: 12,
            length: 1,
            blocks_start: 0,
            blocks_count: 1,
            sample_index: Some(0),
            proposed: 0,
        });
        inputs.blocks.push(0);
        inputs.tokens.push(TokenInput::Known(1));
        let fault = runner.program.run(&inputs, &mut StepOutputs::default()).unwrap_err();
        assert!(fault.0.contains("state_at_start"), "{fault}");
    }
}
