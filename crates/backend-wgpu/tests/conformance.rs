//! Does the device say what the references say, and the same bits however a step is made up?
//!
//! Whole tapes of two layers, over ragged shapes and all weight formats, against
//! `backend-reference`. On a machine without an adapter each test says so and passes.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_reference::ReferenceBackend;
use backend_wgpu::{Api, WgpuBackend};
use device::{Backend, StepInputs, StepOutputs, TokenInput};
use ops::paged_attention::Window;
use ops::quant_format::QuantFormat;
use ops::rotary::Pairing;
use testkit::device_cases::{Extra, Model, PLAIN, VOCABULARY, models, tape};
use testkit::device_conformance::far_from;
use testkit::device_steps::{CAPACITY, difference, run, schedule, step};
use testkit::device_tensors::Tensors;

fn adapter() -> Option<WgpuBackend> {
    match WgpuBackend::open(Api::Any, 0) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// With all kernels that it can run: where there are matrix units, those without them, too, and
/// those that bring weights to them the long way.
fn all_ways() -> impl Iterator<Item = WgpuBackend> {
    let plain = adapter().filter(|backend| backend.facts().has_matrix_units);
    let long = adapter().filter(WgpuBackend::has_fragments);
    let others = plain.map(WgpuBackend::without_matrix_units);
    let others = others.into_iter().chain(long.map(WgpuBackend::without_fragments));
    adapter().into_iter().chain(others)
}

#[test]
fn weights_say_the_same_whichever_way_they_come_to_matrix_units() {
    let Some(backend) = adapter() else { return };
    if !backend.has_fragments() {
        eprintln!("skipped: the adapter has one way only");
        return;
    }
    for format in [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q4K, QuantFormat::Q8_0] {
        let model = Model { format, other: format, ..PLAIN };
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let logits = |backend: &WgpuBackend| {
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            run(program.as_mut(), &schedule())
        };
        let long = adapter().unwrap().without_fragments();
        assert_eq!(logits(&backend), logits(&long), "{format:?}");
    }
}

/// Keys and values have 11 bits: an error of 2^-12 each, which two layers of random weights carry
/// through some roundings. Scales of K-quants add as much again.
const BOUND: f32 = 6e-3;

/// See [`gated_values_beyond_f16_are_near_the_reference`].
const NORM_FACTOR: f32 = 150.0;

/// One of each kind of reader.
const OF_EXPERTS: [&str; 4] =
    ["experts in Q4_0", "experts in Q4_K", "experts in MXFP4", "experts in groups, and one of all"];

#[test]
fn every_format_and_shape_is_near_the_reference() {
    all_ways().for_each(|backend| is_near_the_reference(&backend));
}

fn is_near_the_reference(backend: &WgpuBackend) {
    // A software driver takes minutes for experts in all formats, which dense models have too.
    let is_short = backend.facts().is_software;
    let has_time = |(name, _): &(String, Model)| {
        !is_short || !name.starts_with("experts in ") || OF_EXPERTS.contains(&name.as_str())
    };
    let failed = far_from(&ReferenceBackend, backend, models().into_iter().filter(has_time), BOUND);
    assert_eq!(failed, Vec::<String>::new());
}

/// With the kernel of matrix units, which are emulated where there are none.
fn by_units() -> Option<WgpuBackend> {
    let backend = adapter()?;
    let has_units = backend.attends_by_units();
    Some(if has_units { backend } else { backend.with_emulated_attention() })
}

/// Heads of the sizes that matrix units take, alone or with others that share keys: as many as a
/// tile has, fewer, and more.
fn models_by_units() -> Vec<(String, Model)> {
    let format = QuantFormat::F32;
    let small = |heads, heads_kv, head_dim| Model {
        format,
        other: format,
        width: 64,
        inner: 96,
        heads,
        heads_kv,
        head_dim,
        ..PLAIN
    };
    let of = |extras, window| Model { extras, window, ..small(6, 2, 64) };
    let window = Window::Sliding(70);
    [
        ("alone", small(2, 2, 128)),
        ("twenty", small(20, 1, 64)),
        ("window", Model { pairing: Pairing::HalfSplit, ..of(&[Extra::HeadNorms], window) }),
        ("windows of some layers", of(&[Extra::LayersDiffer, Extra::Sinks], Window::Full)),
        ("soft cap", Model { soft_cap: Some(3.0), ..of(&[], Window::Full) }),
    ]
    .map(|(name, model)| (name.to_owned(), model))
    .into()
}

#[test]
fn attention_by_matrix_units_is_near_the_reference() {
    let Some(backend) = by_units() else { return };
    assert!(backend.attends_by_units());
    let failed = far_from(&ReferenceBackend, &backend, models_by_units(), BOUND);
    assert_eq!(failed, Vec::<String>::new());
}

/// More positions than a workgroup's parts have at once, and the same bits however they are cut.
#[test]
fn attention_by_matrix_units_has_one_order_of_sums() {
    let Some(backend) = by_units() else { return };
    let mut failed = Vec::new();
    for (name, model) in models_by_units() {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let last = |backend: &dyn Backend, steps: &[StepInputs]| {
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            run(program.as_mut(), steps).pop().unwrap()[..VOCABULARY as usize].to_vec()
        };
        let whole = last(&backend, &parts(&[0, 300]));
        let expected = last(&ReferenceBackend, &parts(&[0, 300]));
        let distance = difference(&whole, &expected);
        if distance.is_nan() || distance > BOUND {
            failed.push(format!("{name}: {distance:e} from the reference"));
        }
        let beside = [(0, 299, 1, Some(0)), (4, 0, 1, Some(0)), (5, 0, 1, Some(0))];
        let mut alone = parts(&[0, 129, 290, 299]);
        alone.push(step(&beside, &[4, 5]));
        for (way, steps) in [parts(&[0, 7, 100, 298, 299, 300]), alone].iter().enumerate() {
            if last(&backend, steps) != whole {
                failed.push(format!("{name}: other bits in way {way}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// A context that several workgroups share has the sums of one that none does.
#[test]
fn attention_by_matrix_units_shares_long_contexts_with_the_same_bits() {
    let Some(backend) = by_units() else { return };
    let mut models = models_by_units();
    models.push(("wide window".to_owned(), {
        let (_, model) = models[2].clone();
        Model { window: Window::Sliding(900), ..model }
    }));
    let named = ["twenty", "windows of some layers", "soft cap", "wide window"];
    let mut failed = Vec::new();
    for (name, model) in models.into_iter().filter(|(name, _)| named.contains(&name.as_str())) {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let last = |backend: &dyn Backend, steps: Vec<StepInputs>| {
            let steps: Vec<StepInputs> = steps.into_iter().map(in_many_blocks).collect();
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            run(program.as_mut(), &steps).pop().unwrap()[..VOCABULARY as usize].to_vec()
        };
        let whole = last(&backend, parts(&[0, 300, 600, 900, 1100]));
        let expected = last(&ReferenceBackend, parts(&[0, 300, 600, 900, 1100]));
        let distance = difference(&whole, &expected);
        if distance.is_nan() || distance > BOUND {
            failed.push(format!("{name}: {distance:e} from the reference"));
        }
        // Over the border of a turn of blocks, and beside short contexts.
        let mut alone = parts(&[0, 300, 600, 900, 1022]);
        alone.extend((1022..1026).map(|at| step(&[(0, at, 1, Some(0))], &[])));
        alone.extend(parts(&[1026, 1099]).into_iter().map(|mut step| {
            step.resets.clear();
            step
        }));
        alone.push(step(&[(0, 1099, 1, Some(0)), (4, 0, 1, Some(0))], &[4]));
        if last(&backend, alone) != whole {
            failed.push(format!("{name}: other bits"));
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// The first row's sequence has blocks of its own however long it is.
fn in_many_blocks(mut step: StepInputs) -> StepInputs {
    let count = step.rows[0].blocks_count;
    assert!(count <= 40, "others have the blocks behind");
    (0..count).for_each(|block| step.blocks[block as usize] = (7 * block + 3) % 40);
    step
}

/// One sequence of 240 tokens, sampled at its last: in parts that begin at these positions.
fn parts(cuts: &[u32]) -> Vec<StepInputs> {
    cuts.windows(2).map(|cut| step(&[(0, cut[0], cut[1] - cut[0], Some(0))], &[0])).collect()
}

#[test]
fn a_row_has_the_same_bits_however_steps_are_cut() {
    all_ways().for_each(|backend| has_the_same_bits(&backend));
}

fn has_the_same_bits(backend: &WgpuBackend) {
    let of = |format| Model { format, other: format, ..PLAIN };
    let named = |wanted: &str| models().into_iter().find(|(name, _)| name == wanted).unwrap().1;
    let mut failed = Vec::new();
    for model in [
        PLAIN,
        of(QuantFormat::Q4K),
        of(QuantFormat::Q6K),
        of(QuantFormat::Q8_0),
        named("heads of 128"),
        named("window"),
        named("ragged"),
        named("experts in Q4_K"),
        named("experts in groups, and one of all"),
    ] {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        // At once, in parts, the last ones token by token, and beside others.
        let beside: Vec<_> = (4..44).map(|slot| (slot, 0, 1, Some(0))).collect();
        let all: Vec<u32> = (0..44).collect();
        let with_others: Vec<_> = [(0, 239, 1, Some(0))].into_iter().chain(beside).collect();
        let mut beside_others = parts(&[0, 130, 239]);
        beside_others.push(step(&with_others, &all));
        let single: Vec<u32> = [0].into_iter().chain(210..=240).collect();
        let ways = [
            parts(&[0, 240]),
            parts(&[0, 100, 239, 240]),
            parts(&[0, 7, 20, 50, 114, 200, 240]),
            parts(&single),
            beside_others,
        ];
        let mut answers = Vec::new();
        for way in &ways {
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            let logits = run(program.as_mut(), way).pop().unwrap();
            // The sequence is the first row of its step.
            let row = &logits[..VOCABULARY as usize];
            answers.push(row.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        }
        for (way, answer) in answers.iter().enumerate().filter(|(_, answer)| **answer != answers[0])
        {
            let count = answer.iter().zip(&answers[0]).filter(|(a, b)| a != b).count();
            failed.push(format!("{} way {way}: {count} logits differ", model.format));
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// Gates and ups are 562 tiles of 32 rows: of 528 workgroups, some have one and some two.
#[test]
fn products_of_more_rows_than_workgroups_are_near_the_reference() {
    let format = QuantFormat::Q4_0;
    let model = Model { format, other: format, inner: 8992, ..PLAIN };
    for backend in all_ways() {
        let models = [("tall".to_owned(), model)].into_iter();
        assert_eq!(far_from(&ReferenceBackend, &backend, models, BOUND), Vec::<String>::new());
    }
}

/// Matrix units read f16, whose largest number is 65,504.
#[test]
fn gated_values_beyond_f16_are_near_the_reference() {
    let mut failed = Vec::new();
    for format in [QuantFormat::Q4_0, QuantFormat::Q8_0, QuantFormat::F16] {
        let model = Model { format, other: format, ..PLAIN };
        let tape = tape(&model);
        let mut tensors = Tensors::of(&model, &tape);
        // Of 256 normed columns, weights of 0.05 to 0.09 make gates and ups of about 1; of columns
        // 150 times as large, gates times ups of some 10,000 to 40,000, and of 15 times that in a
        // row's largest.
        let norms = tensors.0.iter_mut().filter(|tensor| tensor.0.ends_with(".norm 2"));
        for tensor in norms {
            for value in tensor.4.as_chunks_mut::<4>().0 {
                *value = (NORM_FACTOR * f32::from_le_bytes(*value)).to_le_bytes();
            }
        }
        let logits = |backend: &dyn Backend| {
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            run(program.as_mut(), &schedule()).concat()
        };
        let expected = logits(&ReferenceBackend);
        for backend in all_ways() {
            let distance = difference(&logits(&backend), &expected);
            if distance.is_nan() || distance > BOUND {
                failed.push(format!("{format:?}: {distance:e}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// A device that binds little has its matrices in parts, and says the same.
#[test]
fn matrices_above_the_binding_limit_are_split() {
    let Some(backend) = adapter() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let answer = |backend: &WgpuBackend| {
        let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
        run(program.as_mut(), &schedule())
    };
    let whole = answer(&backend);
    // The largest matrix is of 1,024 rows of 144 bytes; activations are some more than 6 MB.
    let pages = 2 * 2 * 2 * 32 * 64 * u64::from(CAPACITY.block_count);
    let small = backend.with_binding_bytes(pages.max(7 << 20));
    assert_eq!(answer(&small), whole);
}

#[test]
fn guesses_are_checked_until_one_is_wrong() {
    let Some(backend) = adapter() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let mut outputs = StepOutputs::default();
    let mut ask = |proposals: &[u32], start: u32, first: u32| {
        let count = proposals.len() as u32;
        let mut inputs = step(&[(0, start, 1 + count, Some(count))], &[0]);
        inputs.keep_logits = false;
        let tokens = [first].into_iter().chain(proposals.iter().copied());
        inputs.tokens = tokens.map(TokenInput::Known).collect();
        program.run(&inputs, &mut outputs).unwrap();
        let token = |sample: &device::SampleOutput| sample.sampled.clone().unwrap().token;
        outputs.samples.iter().map(token).collect::<Vec<_>>()
    };
    let mut truth = vec![17];
    for position in 0..4 {
        let next = ask(&[], position, truth[position as usize]);
        truth.push(next[0]);
    }
    assert_eq!(ask(&truth[1..4], 0, 17), truth[1..5]);
    let wrong = (truth[2] + 1) % VOCABULARY;
    assert_eq!(ask(&[truth[1], wrong, truth[3]], 0, 17), truth[1..3]);
}

/// What the device chooses is what the process chooses of the same logits.
#[test]
fn the_largest_logit_is_chosen_on_the_device() {
    let Some(backend) = adapter() else { return };
    let tape = tape(&PLAIN);
    let mut tensors = Tensors::of(&PLAIN, &tape);
    let sampled = |tensors: &Tensors, keep_logits| {
        let mut program = backend.load(tape.clone(), tensors, CAPACITY).unwrap();
        let mut outputs = StepOutputs::default();
        let mut samples = Vec::new();
        for mut step in schedule() {
            step.keep_logits = keep_logits;
            program.run(&step, &mut outputs).unwrap();
            assert_eq!(outputs.logits.is_empty(), !keep_logits);
            samples.append(&mut outputs.samples);
        }
        samples
    };
    let samples = sampled(&tensors, true);
    assert_eq!(sampled(&tensors, false), samples);
    // The row of what was chosen first, once more ahead of it and behind: the head is these rows.
    // An invocation looks at four that are beside one another, a workgroup at an eighth of all.
    let chosen = samples[0].sampled.clone().unwrap().token as usize;
    let embedding = tensors.0.iter_mut().find(|tensor| tensor.0 == "embedding").unwrap();
    let row_bytes = embedding.4.len() / VOCABULARY as usize;
    let row = embedding.4[chosen * row_bytes..][..row_bytes].to_vec();
    let first = chosen / 8 * 4;
    let equals = [first, first + 1, first + 5, (chosen + VOCABULARY as usize) / 2];
    for token in equals {
        embedding.4[token * row_bytes..][..row_bytes].copy_from_slice(&row);
    }
    let samples = sampled(&tensors, true);
    assert_eq!(sampled(&tensors, false), samples);
    let tokens: Vec<u32> =
        samples.iter().map(|sample| sample.sampled.clone().unwrap().token).collect();
    assert!(tokens.contains(&(first as u32)), "none of equals was chosen: {tokens:?}");
}

/// Their commands were written while the step before ran; those behind another kind of step were
/// not.
#[test]
fn steps_that_are_alike_say_what_they_say_behind_others() {
    let Some(backend) = adapter() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let load = || backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
    // Over the border of a block.
    let prompts = || step(&[(0, 0, 28, Some(0)), (1, 0, 60, Some(0))], &[0, 1]);
    let decode = |at: u32| step(&[(0, 28 + at, 1, Some(0)), (1, 60 + at, 1, Some(0))], &[]);
    let alone = |at: u32| step(&[(0, 28 + at, 1, Some(0))], &[]);
    let steps: Vec<StepInputs> = [prompts()].into_iter().chain((0..8).map(decode)).collect();
    let alike = run(load().as_mut(), &steps);
    let mut between = load();
    let mut got = run(between.as_mut(), &[prompts()]);
    for at in 0..8 {
        run(between.as_mut(), &[alone(at)]);
        got.extend(run(between.as_mut(), &[decode(at)]));
    }
    assert_eq!(alike, got);
}

#[test]
fn blocks_go_out_and_come_back() {
    let Some(backend) = adapter() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let form = program.block_form();
    let prompt = || step(&[(0, 0, 40, Some(0))], &[0]);
    let decode = || step(&[(0, 40, 1, Some(0))], &[]);
    let first = run(program.as_mut(), &[prompt(), decode()]);
    run(program.as_mut(), &[prompt()]);
    let mut kept = Vec::new();
    for &block in &decode().blocks {
        let mut bytes = vec![0; form.bytes];
        program.read_block(block, &mut bytes);
        program.write_block(block, &vec![0; form.bytes]);
        kept.push((block, bytes));
    }
    assert_ne!(run(program.as_mut(), &[decode()])[0], first[1], "they were not needed");
    kept.iter().for_each(|(block, bytes)| program.write_block(*block, bytes));
    assert_eq!(run(program.as_mut(), &[decode()])[0], first[1]);
}

#[test]
fn what_is_no_number_stays_in_its_sequence() {
    all_ways().chain(by_units()).for_each(|backend| no_number_stays_in_its_sequence(&backend));
}

fn no_number_stays_in_its_sequence(backend: &WgpuBackend) {
    let tape = tape(&PLAIN);
    let mut tensors = Tensors::of(&PLAIN, &tape);
    // Token 300's embedding is broken: its block's scale is no number.
    let embedding = tensors.0.iter_mut().find(|tensor| tensor.0 == "embedding").unwrap();
    let row_bytes = embedding.4.len() / VOCABULARY as usize;
    embedding.4[300 * row_bytes..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let mut outputs = StepOutputs::default();
    let mut inputs = step(&[(0, 0, 20, Some(0)), (1, 0, 20, Some(0))], &[0, 1]);
    inputs.tokens.iter_mut().for_each(|token| *token = TokenInput::Known(3));
    inputs.tokens[25] = TokenInput::Known(300);
    program.run(&inputs, &mut outputs).unwrap();
    let rows: Vec<&[f32]> = outputs.logits.chunks_exact(VOCABULARY as usize).collect();
    // The head is the embedding: its broken row breaks one logit of everybody, and no other.
    let broken = |row: &[f32]| row.iter().filter(|value| value.is_nan()).count();
    assert_eq!((broken(rows[0]), broken(rows[1])), (1, VOCABULARY as usize));
    assert!(outputs.samples.iter().all(|sample| sample.sampled.is_err()));
    // Nor does the device choose among them.
    inputs.resets.clear();
    inputs.keep_logits = false;
    program.run(&inputs, &mut outputs).unwrap();
    assert_eq!(outputs.samples.len(), 2);
    assert!(outputs.samples.iter().all(|sample| sample.sampled.is_err()));
}

#[test]
fn a_lost_device_fails_steps_and_another_is_opened() {
    let Some(backend) = adapter() else { return };
    let (tape, steps) = (tape(&PLAIN), schedule());
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
    let mut outputs = StepOutputs::default();
    program.run(&steps[0], &mut outputs).unwrap();
    let before = outputs.logits.clone();
    backend.lose();
    for step in &steps[..2] {
        let fault = program.run(step, &mut outputs).unwrap_err();
        assert!(!fault.to_string().is_empty());
    }
    assert!(backend.load(tape.clone(), &tensors, CAPACITY).is_err());
    drop(program);
    let again = adapter().unwrap();
    let mut program = again.load(tape, &tensors, CAPACITY).unwrap();
    program.run(&steps[0], &mut outputs).unwrap();
    assert_eq!(outputs.logits, before);
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let error = WgpuBackend::open(Api::Vulkan, 4_000).err().unwrap().to_string();
    assert!(error.contains("vulkan adapter"), "{error}");
    let error = WgpuBackend::open(Api::Metal, 4_000).err().unwrap().to_string();
    assert!(error.contains("metal adapter"), "{error}");
    let error = WgpuBackend::open(Api::Dx12, 4_000).err().unwrap().to_string();
    assert!(error.contains("dx12 adapter"), "{error}");
    // What to do is for this system.
    assert_eq!(error.contains("on Windows only"), !cfg!(windows), "{error}");
}
