//! Does the default model say what an independent implementation says?
//!
//! The truth is transformers in float32 on the dequantized weights, made by
//! `tools/golden/make_smollm2_truth.py`: greedy continuations, and log-probabilities of nine texts.
//! Without the model's file a test says so and passes; `.ci/run` brings the file.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use backend_wgpu::{Api, WgpuBackend};
use device::Backend;
use serde_json::Value;
use testkit::Evaluation;
use weights::WeightFile;

/// Positions compared in full with the reference backend; the issue asks for 2,000.
const KL_POSITIONS: usize = 2_000;

fn golden(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/smollm2/");
    std::fs::read(format!("{folder}{name}")).unwrap()
}

fn model() -> Option<WeightFile> {
    let Some(path) = testkit::default_model() else {
        eprintln!("skipped: the default model is not here; `pelton pull smollm2` brings it");
        return None;
    };
    Some(weights::open(path).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == best).unwrap() as u32
}

/// Feeding the true continuation and comparing every choice is the same as continuing greedily,
/// by induction, and reads the weights once for many positions.
fn differing_choices(evaluation: &mut Evaluation, cases: usize) -> Vec<String> {
    let golden: Value = serde_json::from_slice(&golden("greedy.json")).unwrap();
    let mut differing = Vec::new();
    for case in golden["cases"].as_array().unwrap().iter().take(cases) {
        let (prompt, tokens) = (ids(&case["ids"]), ids(&case["tokens"]));
        let ties: Vec<u64> = serde_json::from_value(case["near_ties"].clone()).unwrap_or_default();
        assert_eq!(tokens.len(), 64, "64 tokens a prompt");
        let mut text = prompt.clone();
        text.extend_from_slice(&tokens[..63]);
        evaluation
            .each(&text, |position, logits| {
                let Some(at) = (position + 1).checked_sub(prompt.len()) else { return };
                let (got, want) = (argmax(logits), tokens[at]);
                if got != want && !ties.contains(&(at as u64)) {
                    let name = case["name"].as_str().unwrap();
                    differing.push(format!("{name}[{at}]: {got} for {want}"));
                }
            })
            .unwrap();
    }
    differing
}

#[test]
fn reference_continues_token_for_token() {
    let Some(file) = model() else { return };
    let mut evaluation = testkit::load(&file, &ReferenceBackend, 512, 128).unwrap();
    assert_eq!(differing_choices(&mut evaluation, usize::MAX), Vec::<String>::new());
}

#[test]
fn cpu_continues_token_for_token() {
    let Some(file) = model() else { return };
    let backend = CpuBackend::open(None, None).unwrap();
    let mut evaluation = testkit::load(&file, &backend, 512, 128).unwrap();
    let differing = differing_choices(&mut evaluation, usize::MAX);
    // Of 832 choices 18 differ (2.2 %): activations of 8 bits outside of outliers. The bound is no
    // more than llama.cpp's 8 bits for all do (3.1 to 3.4 % of first choices).
    assert!(differing.len() <= 26, "{} of 832 choices differ: {differing:?}", differing.len());
}

/// On a software driver too, where one prompt takes seconds.
#[test]
fn wgpu_continues_token_for_token() {
    let Some(file) = model() else { return };
    let backend = match WgpuBackend::open(Api::Any, 0) {
        Ok(backend) => backend,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let cases = if backend.facts().is_software { 2 } else { usize::MAX };
    // As for cuda: activations have 11 bits where units multiply.
    let most = if backend.facts().has_matrix_units { 6 } else { 0 };
    let mut evaluation = testkit::load(&file, &backend, 512, 64).unwrap();
    let differing = differing_choices(&mut evaluation, cases);
    eprintln!("{} of 832 choices differ: {differing:?}", differing.len());
    assert!(differing.len() <= most, "{} of 832 choices differ: {differing:?}", differing.len());
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let normalizer = ops::sample_rows::log_sum_exp(logits);
    logits.iter().map(|&logit| f64::from(logit) - normalizer).collect()
}

/// KL(truth || program) in nats.
fn divergence(truth: &[f64], program: &[f64]) -> f64 {
    truth.iter().zip(program).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn cpu_perplexity_is_that_of_the_truth() {
    let Some(file) = model() else { return };
    let positions: Value = serde_json::from_slice(&golden("positions.json")).unwrap();
    let bytes = golden("positions_logprobs.f32");
    let truths: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let width = 1 + positions["top"].as_u64().unwrap() as usize;
    let backend = CpuBackend::open(None, None).unwrap();
    let mut evaluation = testkit::load(&file, &backend, 2048, 128).unwrap();
    let (mut difference, mut row, mut largest) = (0.0, 0, 0f64);
    for document in positions["documents"].as_array().unwrap() {
        let ids = ids(&document["ids"]);
        evaluation
            .each(&ids[..ids.len() - 1], |position, logits| {
                let next = ids[position + 1] as usize;
                let truth = f64::from(truths[row * width]);
                let got = log_probabilities(logits)[next];
                difference += got - truth;
                largest = largest.max((got - truth).abs());
                row += 1;
            })
            .unwrap();
    }
    assert!(row >= 2_000 && row * width == truths.len(), "{row} positions");
    // Perplexity is e^-mean: 0.2 % is 0.002 nats.
    let mean = difference / row as f64;
    assert!(mean.abs() < 2e-3, "mean log-probability differs by {mean}");
    assert!(largest < 0.5, "a log-probability differs by {largest}");
}

/// Mean KL divergence of a backend's distributions from the reference's.
fn mean_divergence(file: &WeightFile, backend: &dyn Backend) -> f64 {
    let positions: Value = serde_json::from_slice(&golden("positions.json")).unwrap();
    let mut reference = testkit::load(file, &ReferenceBackend, 2048, 128).unwrap();
    let mut evaluation = testkit::load(file, backend, 2048, 128).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for document in positions["documents"].as_array().unwrap() {
        let ids = ids(&document["ids"]);
        let ids = &ids[..(ids.len() - 1).min(KL_POSITIONS - count)];
        let mut truth = Vec::new();
        reference.each(ids, |_, logits| truth.extend_from_slice(logits)).unwrap();
        let read = |position: usize, logits: &[f32]| {
            let truth = &truth[position * logits.len()..][..logits.len()];
            sum += divergence(&log_probabilities(truth), &log_probabilities(logits));
            count += 1;
        };
        evaluation.each(ids, read).unwrap();
    }
    assert_eq!(count, KL_POSITIONS);
    sum / count as f64
}

#[test]
fn cpu_diverges_little_from_the_reference() {
    let Some(file) = model() else { return };
    let mean = mean_divergence(&file, &CpuBackend::open(None, None).unwrap());
    // Measured 6.9e-4; llama.cpp on the same file and positions: 3.0e-3, of which half is allowed.
    assert!(mean < 1.5e-3, "mean KL divergence {mean}");
}

fn cuda() -> Option<CudaBackend> {
    CudaBackend::open(0).inspect_err(|error| eprintln!("skipped: no CUDA device ({error})")).ok()
}

#[test]
fn cuda_continues_token_for_token() {
    let (Some(file), Some(backend)) = (model(), cuda()) else { return };
    let mut evaluation = testkit::load(&file, &backend, 512, 128).unwrap();
    let differing = differing_choices(&mut evaluation, usize::MAX);
    eprintln!("{} of 832 choices differ: {differing:?}", differing.len());
    // A quarter of the cpu device's bound: activations have 11 bits instead of 8.
    assert!(differing.len() <= 6, "{} of 832 choices differ: {differing:?}", differing.len());
}

#[test]
fn cuda_diverges_little_from_the_reference() {
    let (Some(file), Some(backend)) = (model(), cuda()) else { return };
    let mean = mean_divergence(&file, &backend);
    eprintln!("mean KL divergence {mean:e}");
    assert!(mean < 1e-4, "mean KL divergence {mean}");
}
