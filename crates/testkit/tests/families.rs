//! Does each family say what its authors' code says, layer by layer and in the end?
//!
//! Files and answers are of `tools/golden/make_tiny_families.py`: the same weights once as GGUF and
//! once in transformers' own implementation. Prompts are longer than every window and every border
//! of a rotary scaling; they are read in steps, so that keys come from pages of earlier ones.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use device::Backend;
use testkit::{Evaluation, StoredTensors};
use weights::{Array, Value, WeightFile};

/// Positions are evaluated so many at a time: no divisor of the prompt's length or of a window.
const STEP_TOKENS: u32 = 13;
const CONTEXT: u32 = 64;

struct Case {
    name: String,
    file: WeightFile,
    ids: Vec<u32>,
    /// `[tokens, vocabulary]`.
    logits: Vec<f32>,
    /// `[layers][tokens, width]`.
    streams: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let folder = format!("{}/golden/families", env!("CARGO_MANIFEST_DIR"));
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let file = weights::open(&path).unwrap();
        let Some(Value::Array(ids)) = file.metadata().get("golden.ids") else { panic!("{name}") };
        let Array::I32(ids) = &**ids else { panic!("{name}: {ids:?}") };
        let ids: Vec<u32> = ids.iter().map(|&id| id.try_into().unwrap()).collect();
        let truth = std::fs::read(path.with_extension("truth")).unwrap();
        let truth: Vec<f32> =
            truth.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let spec = models::read_spec(&file, &models::LoadSettings::default()).unwrap();
        let (logits, streams) = truth.split_at(ids.len() * spec.dims.vocabulary as usize);
        let streams = streams.chunks_exact(ids.len() * spec.dims.width as usize);
        let streams: Vec<Vec<f32>> = streams.map(<[f32]>::to_vec).collect();
        assert_eq!(streams.len(), spec.layers.len(), "{name}");
        cases.push(Case { name, file, ids, logits: logits.to_vec(), streams });
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(cases.len() >= CASES_MIN, "{} cases", cases.len());
    cases
}

/// Whoever adds a family raises it.
const CASES_MIN: usize = 17;

fn rows(case: &Case, mut evaluation: Evaluation) -> Vec<f32> {
    let mut rows = Vec::new();
    evaluation.each(&case.ids, |_, row| rows.extend_from_slice(row)).unwrap();
    rows
}

fn logits(case: &Case, backend: &dyn Backend) -> Vec<f32> {
    rows(case, testkit::load(&case.file, backend, CONTEXT, STEP_TOKENS).unwrap())
}

/// Largest difference over all positions, relative to the largest value.
fn difference(got: &[f32], truth: &[f32]) -> f32 {
    assert_eq!(got.len(), truth.len());
    let scale = truth.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    let pairs = got.iter().zip(truth);
    pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max) / scale
}

/// The largest differences of the logits and of the streams.
fn differences(case: &Case, backend: &dyn Backend) -> (f32, f32) {
    let mut of_streams = 0f32;
    for (layer, truth) in (1..).zip(&case.streams) {
        let stream = testkit::load_stream(&case.file, backend, layer, CONTEXT, STEP_TOKENS);
        of_streams = of_streams.max(difference(&rows(case, stream.unwrap()), truth));
    }
    (difference(&logits(case, backend), &case.logits), of_streams)
}

/// The ids of the `count` largest, the largest first.
fn top(row: &[f32], count: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    ids.truncate(count);
    ids
}

/// Fails where the order of the five likeliest tokens differs by more than rounding: two that
/// change places must be nearer to each other than twice `most`, relative to the largest logit.
fn same_order(case: &Case, got: &[f32], most: f32) {
    let scale = case.logits.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    let width = case.logits.len() / case.ids.len();
    let pairs = got.chunks_exact(width).zip(case.logits.chunks_exact(width));
    for (position, (got, truth)) in pairs.enumerate() {
        for (mine, theirs) in top(got, 5).into_iter().zip(top(truth, 5)) {
            let apart = (truth[mine] - truth[theirs]).abs();
            let name = &case.name;
            assert!(apart <= 2.0 * most * scale, "{name} at {position}: {mine} for {theirs}");
        }
    }
}

/// Mean Kullback-Leibler divergence of the distributions, in nats.
fn divergence(case: &Case, got: &[f32]) -> f64 {
    let width = case.logits.len() / case.ids.len();
    let distribution = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().fold(f32::MIN, |max, value| max.max(*value));
        let weights: Vec<f64> = row.iter().map(|value| f64::from(value - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    let mut sum = 0.0;
    for (got, truth) in got.chunks_exact(width).zip(case.logits.chunks_exact(width)) {
        let pairs = distribution(truth).into_iter().zip(distribution(got));
        sum += pairs.map(|(p, q)| if p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum::<f64>();
    }
    sum / case.ids.len() as f64
}

/// Both sides compute in f32 and differ in the order of sums; see `tiny_llama.rs`.
const REFERENCE_MOST: f32 = 1e-5;

#[test]
fn reference_says_what_the_authors_code_says() {
    for case in cases() {
        let (of_logits, of_streams) = differences(&case, &ReferenceBackend);
        eprintln!("{}: logits {of_logits:.1e}, streams {of_streams:.1e}", case.name);
        assert!(of_logits < REFERENCE_MOST, "{}: logits by {of_logits:e}", case.name);
        assert!(of_streams < REFERENCE_MOST, "{}: streams by {of_streams:e}", case.name);
        same_order(&case, &logits(&case, &ReferenceBackend), REFERENCE_MOST);
    }
}

/// Weights in f16 stay exact here; keys and values are in 13 bits, which moves logits by some 1e-3.
const CPU_MOST: f32 = 6e-3;

#[test]
fn cpu_says_what_the_authors_code_says() {
    for case in cases() {
        let backend = CpuBackend::open(Some(2), None).unwrap();
        let (of_logits, of_streams) = differences(&case, &backend);
        let got = logits(&case, &backend);
        let divergence = divergence(&case, &got);
        let name = &case.name;
        eprintln!("{name}: logits {of_logits:.1e}, streams {of_streams:.1e}, KL {divergence:.1e}");
        assert!(of_logits < CPU_MOST, "{name}: logits by {of_logits:e}");
        assert!(of_streams < CPU_MOST, "{name}: streams by {of_streams:e}");
        assert!(divergence < 2e-4, "{name}: {divergence:e} nats");
        same_order(&case, &got, CPU_MOST);
    }
}

/// Whether CUDA has all that a case needs, in the words of the page.
fn on_cuda(case: &Case) -> String {
    let spec = models::read_spec(&case.file, &models::LoadSettings::default()).unwrap();
    let tape = models::lower(&spec).unwrap();
    match CudaBackend::check(&tape, &StoredTensors(&case.file)) {
        Ok(()) => "yes".to_owned(),
        Err(refusal) => {
            let text = refusal.to_string();
            let what = text.strip_prefix("the model has ").unwrap();
            format!("no kernel for {}", what.split_once(", for which").unwrap().0)
        }
    }
}

/// `docs/models.md` has a row for each architecture, which says what this test finds.
#[test]
fn the_page_of_models_says_what_runs() {
    let cases = cases();
    let mut table = String::new();
    for (name, models) in models::FAMILIES.iter().flat_map(|family| family.architectures) {
        let is_mine = |case: &&Case| {
            let architecture: &str = case.file.metadata().required("general.architecture").unwrap();
            architecture == *name
        };
        let found: Vec<(&str, String)> =
            cases.iter().filter(is_mine).map(|case| (&*case.name, on_cuda(case))).collect();
        let Some((_, first)) = found.first() else { panic!("no golden file of {name}") };
        let is_one = found.iter().all(|(_, cuda)| cuda == first);
        let each = found.iter().map(|(case, cuda)| format!("`{case}`: {cuda}"));
        let cuda = if is_one { first.clone() } else { each.collect::<Vec<_>>().join(", ") };
        let listed: Vec<String> = found.iter().map(|(case, _)| format!("`{case}`")).collect();
        // That the processor runs them is what the tests above are about.
        table += &format!("| `{name}` | {models} | yes | {cuda} | {} |\n", listed.join(", "));
    }
    let page = format!("{}/../../docs/models.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(&table), "docs/models.md needs this table:\n{table}");
}

#[test]
fn instruction_sets_and_threads_agree_bit_for_bit() {
    let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for case in cases() {
        let alone = CpuBackend::open(Some(1), Some("portable")).unwrap();
        let expected = bits(logits(&case, &alone));
        for instruction_set in ["portable", "avx2", "avx512-vnni"] {
            // A machine without the set says so here; every machine has the first.
            let opened = CpuBackend::open(Some(3), Some(instruction_set));
            assert!(opened.is_ok() || instruction_set != "portable");
            let Ok(backend) = opened else { continue };
            let got = bits(logits(&case, &backend));
            assert!(got == expected, "{}: {instruction_set} gives other bits", case.name);
        }
    }
}
