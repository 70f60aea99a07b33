//! Do tiny llamas of every shape and rotary scaling say what transformers says?
//!
//! Files and logits are of `tools/golden/make_tiny_llama.py`: the same weights once as GGUF, as
//! llama.cpp's converter writes them, and once in transformers' own llama.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use device::Backend;
use serde_json::Value;

/// Positions are evaluated so many at a time: several steps, no divisor of any text's length.
const STEP_TOKENS: u32 = 13;

struct Case {
    name: String,
    ids: Vec<u32>,
    /// `[tokens, vocabulary]`.
    truth: Vec<f32>,
}

fn path(name: &str) -> String {
    format!("{}/golden/tiny_llama/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn cases() -> Vec<Case> {
    let listed: Value =
        serde_json::from_slice(&std::fs::read(path("cases.json")).unwrap()).unwrap();
    let case = |case: &Value| {
        let name = case["name"].as_str().unwrap().to_owned();
        let bytes = std::fs::read(path(&format!("{name}.logits"))).unwrap();
        Case {
            ids: serde_json::from_value(case["ids"].clone()).unwrap(),
            truth: bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            name,
        }
    };
    let cases: Vec<Case> = listed.as_array().unwrap().iter().map(case).collect();
    assert_eq!(cases.len(), 9);
    cases
}

fn logits(case: &Case, backend: &dyn Backend) -> Vec<f32> {
    let file = weights::open(path(&format!("{}.gguf", case.name))).unwrap();
    let mut evaluation = testkit::load(&file, backend, 64, STEP_TOKENS).unwrap();
    let mut logits = Vec::new();
    evaluation.each(&case.ids, |_, row| logits.extend_from_slice(row)).unwrap();
    assert_eq!(logits.len(), case.truth.len(), "{}", case.name);
    logits
}

/// Largest difference over all positions, relative to the largest logit.
fn difference(case: &Case, got: &[f32]) -> f32 {
    let scale = case.truth.iter().fold(0f32, |scale, logit| scale.max(logit.abs()));
    let pairs = got.iter().zip(&case.truth);
    pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max) / scale
}

/// Both sides compute in f32 and differ in the order of sums: of up to 256 products, where an order
/// costs some 16 units of 6e-8, through up to three layers and one head. Measured: 1.6e-6.
#[test]
fn reference_says_what_transformers_says() {
    for case in cases() {
        let differ = difference(&case, &logits(&case, &ReferenceBackend));
        assert!(differ < 1e-5, "{}: logits differ by {differ:e} of the largest", case.name);
    }
}

/// This backend keeps keys and values in 13 bits, which moves these logits by up to 1.4e-3: with
/// weights in floats the bound is three times that. Beside block weights it keeps activations in 8
/// bits (15 in groups of outliers, which random weights do not make): that moves them by 2.1e-2 to
/// 4.5e-2, bounded by twice the largest. Leaving a scaling out moves them by 0.2 and more.
#[test]
fn cpu_says_what_transformers_says() {
    for case in cases() {
        let backend = CpuBackend::open(Some(2), None).unwrap();
        let differ = difference(&case, &logits(&case, &backend));
        let floats = ["f32", "f16", "bf16"].iter().any(|format| case.name.ends_with(format));
        let most = if floats { 4e-3 } else { 0.09 };
        assert!(differ < most, "{}: logits differ by {differ:e} of the largest", case.name);
    }
}

/// Inputs of products, keys and values are kept in 11 bits here: three times what 13-bit keys move.
#[test]
fn cuda_says_what_transformers_says() {
    let backend = match CudaBackend::open(0) {
        Ok(backend) => backend,
        Err(error) => return eprintln!("skipped: no CUDA device ({error})"),
    };
    for case in cases() {
        let differ = difference(&case, &logits(&case, &backend));
        eprintln!("{}: {differ:e}", case.name);
        assert!(differ < 4e-3, "{}: logits differ by {differ:e} of the largest", case.name);
    }
}

#[test]
fn instruction_sets_and_threads_agree_bit_for_bit() {
    let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for case in cases() {
        let alone = CpuBackend::open(Some(1), Some("portable")).unwrap();
        let expected = bits(logits(&case, &alone));
        for instruction_set in ["portable", "avx2", "avx512-vnni"] {
            for threads in [2, 3] {
                // A machine without the set says so here; every machine has the first.
                let opened = CpuBackend::open(Some(threads), Some(instruction_set));
                assert!(opened.is_ok() || instruction_set != "portable");
                let Ok(backend) = opened else { continue };
                let name = &case.name;
                assert!(
                    bits(logits(&case, &backend)) == expected,
                    "{name}: {instruction_set} on {threads} threads gives other bits"
                );
            }
        }
    }
}
