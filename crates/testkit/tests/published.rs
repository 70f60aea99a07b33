//! Do models that GPTQ, AWQ, compressed-tensors or an FP8 or MXFP4 release quantized say here what
//! they say where they come from?
//!
//! Folders and answers are of `tools/golden/make_tiny_published.py`: packed and read by the code of
//! each form, computed by transformers in f32.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use device::Backend;
use weights::WeightFile;

const STEP_TOKENS: u32 = 7;
const CONTEXT: u32 = 64;

struct Case {
    name: &'static str,
    file: WeightFile,
    ids: Vec<u32>,
    /// `[tokens, vocabulary]`.
    logits: Vec<f32>,
}

/// Each with the formats of its tensors. `F32` are worked out from settings.
const CASES: &[(&str, &[&str])] = &[
    ("awq", &["F16", "MLX 4-bit"]),
    ("experts_fp8", &["BF16"]),
    ("experts_gptq", &["BF16", "MLX 4-bit"]),
    ("fp8_blocks", &["BF16", "F16"]),
    ("fp8_rows", &["BF16", "F16"]),
    ("fp8_tensor", &["BF16", "F16"]),
    ("gpt_oss", &["BF16", "MLX mxfp4"]),
    ("gptq_3bit", &["F16", "MLX 3-bit"]),
    ("gptq_4bit", &["F16", "MLX 4-bit"]),
    ("gptq_8bit", &["F16", "MLX 8-bit"]),
    ("gptq_act_order", &["F16"]),
    ("gptq_asymmetric", &["F16", "MLX 4-bit"]),
    ("gptq_v2", &["F16", "MLX 4-bit"]),
    ("packed_4bit", &["F16", "MLX 4-bit"]),
    ("packed_8bit_rows", &["F16", "MLX 8-bit"]),
    ("packed_asymmetric", &["F16", "MLX 4-bit"]),
];

fn cases() -> Vec<Case> {
    let folder = format!("{}/golden/published", env!("CARGO_MANIFEST_DIR"));
    let read = |&(name, formats): &(&'static str, &[&str])| {
        let file = weights::open(format!("{folder}/{name}")).unwrap();
        let found = file.tensors().map(|tensor| tensor.format().unwrap().name());
        let found: BTreeSet<&str> = found.collect();
        assert!(found.iter().eq(formats), "{name}: {found:?}");
        let truth = std::fs::read(format!("{folder}/{name}.truth")).unwrap();
        let (words, _) = truth.as_chunks::<4>();
        let count = u32::from_le_bytes(words[0]) as usize;
        let (ids, logits) = words[1..].split_at(count);
        let ids = ids.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let logits = logits.iter().map(|&word| f32::from_le_bytes(word)).collect();
        Case { name, file, ids, logits }
    };
    CASES.iter().map(read).collect()
}

/// Largest difference of any logit, relative to the largest.
fn difference(case: &Case, backend: &dyn Backend) -> f32 {
    let mut evaluation = testkit::load(&case.file, backend, CONTEXT, STEP_TOKENS).unwrap();
    let mut got = Vec::new();
    evaluation.each(&case.ids, |_, row| got.extend_from_slice(row)).unwrap();
    assert_eq!(got.len(), case.logits.len());
    let scale = case.logits.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    let apart = got.iter().zip(&case.logits).map(|(got, want)| (got - want).abs());
    apart.fold(0.0, f32::max) / scale
}

/// Both compute in f32 and differ in the order of sums.
#[test]
fn reference_says_what_their_code_says() {
    for case in cases() {
        let apart = difference(&case, &ReferenceBackend);
        eprintln!("{}: {apart:.1e}", case.name);
        assert!(apart < 1e-5, "{}: {apart:e}", case.name);
    }
}

/// Weights stay exact but for FP8, which are BF16 in both; activations are 8 bits but for
/// outliers, keys and values 13, as in `mlx.rs`.
const CPU_MOST: f32 = 0.15;

#[test]
fn cpu_is_near() {
    for case in cases() {
        let apart = difference(&case, &CpuBackend::open(Some(2), None).unwrap());
        eprintln!("{}: {apart:.1e}", case.name);
        assert!(apart < CPU_MOST, "{}: {apart:e}", case.name);
    }
}
