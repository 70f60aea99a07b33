//! Does each family say what its authors' code says, layer by layer and in the end?
//!
//! Files and answers are of `tools/golden/make_tiny_families.py`: the same weights once as GGUF and
//! once in transformers' own implementation, which for many also saved them as a folder. Prompts
//! are longer than every window and every border of a rotary scaling; they are read in steps, so
//! that keys come from pages of earlier ones.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use backend_wgpu::{Api, WgpuBackend};
use device::Backend;
use models::{Beside, DecoderSpec, ExpertsSpec, FeedForward, HeadNorms, Mixer, Norms, Sinks};
use ops::experts::Scoring;
use ops::gated_delta::HeadSharing;
use ops::gated_linear::Activation;
use ops::paged_attention::Window;
use ops::rotary::{Pairing, RotaryScaling};
use testkit::device_steps::CAPACITY;
use testkit::{Evaluation, Nearness, StoredTensors, difference};
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
        let logits = logits.to_vec();
        // The same weights as the authors' code saves them.
        let folder = path.with_extension("");
        if folder.is_dir() {
            let file = weights::open(&folder).unwrap();
            let (ids, logits, streams) = (ids.clone(), logits.clone(), streams.clone());
            cases.push(Case { name: format!("{name}/"), file, ids, logits, streams });
        }
        cases.push(Case { name, file, ids, logits, streams });
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    let folders = cases.iter().filter(|case| case.file.folder().is_some()).count();
    assert!(folders >= FOLDERS_MIN, "{folders} folders");
    assert!(cases.len() >= models::FAMILIES.len() + folders, "{} cases", cases.len());
    cases
}

/// Whoever adds one raises it.
const FOLDERS_MIN: usize = 34;

fn rows(case: &Case, mut evaluation: Evaluation) -> Vec<f32> {
    let mut rows = Vec::new();
    evaluation.each(&case.ids, |_, row| rows.extend_from_slice(row)).unwrap();
    rows
}

fn logits(case: &Case, backend: &dyn Backend) -> Vec<f32> {
    rows(case, testkit::load(&case.file, backend, CONTEXT, STEP_TOKENS).unwrap())
}

/// How near the logits are, and the largest difference of the streams.
fn differences(case: &Case, backend: &dyn Backend) -> (Nearness, f32) {
    let mut of_streams = 0f32;
    for (layer, truth) in (1..).zip(&case.streams) {
        let stream = testkit::load_stream(&case.file, backend, layer, CONTEXT, STEP_TOKENS);
        of_streams = of_streams.max(difference(&rows(case, stream.unwrap()), truth));
    }
    (nearness(case, &logits(case, backend)), of_streams)
}

/// Fails where the order of the five likeliest tokens differs by more than rounding: two that
/// change places must be nearer to each other than twice `most`, relative to the largest logit.
fn same_order(case: &Case, near: Nearness, most: f32) {
    assert!(near.swapped <= 2.0 * most, "{}: {:e} apart changed places", case.name, near.swapped);
}

fn nearness(case: &Case, got: &[f32]) -> Nearness {
    Nearness::of(got, &case.logits, case.logits.len() / case.ids.len())
}

/// Both sides compute in f32 and differ in the order of sums; see `tiny_llama.rs`.
const REFERENCE_MOST: f32 = 1e-5;

#[test]
fn reference_says_what_the_authors_code_says() {
    for case in cases() {
        let (of_logits, of_streams) = differences(&case, &ReferenceBackend);
        eprintln!("{}: {of_logits}, streams {of_streams:.1e}", case.name);
        assert!(of_logits.apart < REFERENCE_MOST, "{}: logits {of_logits}", case.name);
        assert!(of_streams < REFERENCE_MOST, "{}: streams by {of_streams:e}", case.name);
        same_order(&case, of_logits, REFERENCE_MOST);
    }
}

/// Errors about a folder name what its owner knows.
#[test]
fn every_key_of_a_folder_is_one_of_its_settings() {
    for case in cases().iter().filter(|case| case.file.folder().is_some()) {
        let architecture: &str = case.file.metadata().required("general.architecture").unwrap();
        for (key, _) in case.file.metadata().iter() {
            let is_known = !key.starts_with(architecture) || weights::own_key(key).is_some();
            assert!(is_known, "{}: {key}", case.name);
        }
    }
}

#[test]
fn what_is_wrong_with_a_folder_is_told_in_its_words() {
    let golden = format!("{}/golden/families/qwen3", env!("CARGO_MANIFEST_DIR"));
    let place = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&golden).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), place.path().join(file.file_name())).unwrap();
    }
    let settings = place.path().join("config.json");
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    for (key, value, expected) in [
        ("num_attention_heads", 3, "num_key_value_heads is 2: query heads must be a multiple"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("max_position_embeddings", 1, "max_position_embeddings is 1: it must"),
        ("num_hidden_layers", 4, "tensor model.layers.3.input_layernorm.weight is missing"),
        ("intermediate_size", 96, "tensor model.layers.0.mlp.gate_proj.weight has 48 rows of 32"),
    ] {
        let mut told = told.clone();
        told[key] = value.into();
        std::fs::write(&settings, told.to_string()).unwrap();
        let error = weights::open(place.path())
            .map_err(anyhow::Error::from)
            .and_then(|file| testkit::load(&file, &ReferenceBackend, CONTEXT, STEP_TOKENS));
        let Err(error) = error else { panic!("{key} may be {value}") };
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("blk.") && !error.contains("qwen3."), "{error}");
    }
}

/// A part of a family that someone might leave out, and how.
type Change = (&'static str, fn(&mut DecoderSpec));

const CHANGES: &[Change] = &[
    ("windows", |spec| spec.layers.iter_mut().for_each(|layer| layer.window = Window::Full)),
    ("rotations of their own", |spec| {
        let last = spec.layers.last().unwrap().rotary.clone();
        spec.layers.iter_mut().for_each(|layer| layer.rotary.clone_from(&last));
    }),
    ("scalings of positions", |spec| {
        let rotaries = spec.layers.iter_mut().filter_map(|layer| layer.rotary.as_mut());
        rotaries.for_each(|rotary| rotary.scaling = RotaryScaling::None);
    }),
    ("heads that turn in part", |spec| {
        let dims = spec.dims.head_dim;
        let rotaries = spec.layers.iter_mut().filter_map(|layer| layer.rotary.as_mut());
        // A table of divisors is as long as what turns.
        rotaries.filter(|rotary| rotary.scaling == RotaryScaling::None).for_each(|rotary| {
            rotary.dims = dims;
        });
    }),
    ("pairs", |spec| {
        let rotaries = spec.layers.iter_mut().filter_map(|layer| layer.rotary.as_mut());
        rotaries.for_each(|rotary| {
            rotary.pairing = match rotary.pairing {
                Pairing::Adjacent => Pairing::HalfSplit,
                Pairing::HalfSplit => Pairing::Adjacent,
            };
        });
    }),
    ("norms of heads", |spec| spec.attention.head_norms = HeadNorms::None),
    ("norms behind blocks", |spec| {
        if spec.norms == Norms::BeforeAndAfter {
            spec.norms = Norms::Before;
        }
    }),
    ("caps of scores", |spec| spec.attention.soft_cap = None),
    ("caps of logits", |spec| spec.logit_soft_cap = None),
    ("sinks", |spec| spec.attention.sinks = Sinks::None),
    ("biases", |spec| spec.attention.biases = [false; 4]),
    ("growing queries", |spec| spec.attention.growth = None),
    ("scaled embeddings", |spec| spec.embedding_scale = 1.0),
    ("scaled scores", |spec| spec.attention.scale *= 1.1),
    ("bias of the choice", |spec| {
        experts(spec).for_each(|experts| experts.has_choice_bias = false);
    }),
    ("groups of experts", |spec| {
        experts(spec).for_each(|experts| {
            (experts.routing.groups, experts.routing.groups_used) = (1, 1);
        });
    }),
    ("weights of experts", |spec| {
        // Behind a norm of their own it does not matter what they sum to.
        experts(spec).filter(|experts| experts.beside != Beside::Apart).for_each(|experts| {
            experts.routing.scoring = match experts.routing.scoring {
                Scoring::Softmax => Scoring::SoftmaxNormed,
                Scoring::SoftmaxNormed | Scoring::SoftmaxOfChosen => Scoring::Softmax,
                Scoring::Sigmoid => Scoring::SigmoidNormed,
                Scoring::SigmoidNormed => Scoring::Sigmoid,
            };
        });
    }),
    ("biases of experts", |spec| {
        experts(spec).for_each(|experts| experts.has_biases = false);
    }),
    ("scales of layers", |spec| spec.scales_layers = false),
    ("embeddings of layers", |spec| spec.per_layer = None),
    ("shares of an expert", |spec| {
        let shares = experts(spec).filter(|experts| experts.beside == Beside::Share);
        shares.for_each(|experts| experts.beside = Beside::Shared);
    }),
    ("scales of experts", |spec| {
        experts(spec).for_each(|experts| experts.has_weight_scales = false);
    }),
    ("sharpness of the choice", |spec| {
        experts(spec).for_each(|experts| experts.routing.sharpness = 1.0);
    }),
    ("heads that share keys", |spec| {
        let nets = spec.layers.iter_mut().filter_map(|layer| match &mut layer.mixer {
            Mixer::Delta(delta) => Some(delta),
            Mixer::Attention => None,
        });
        nets.filter(|net| net.shape.heads_key > 1).for_each(|net| {
            net.shape.sharing = match net.shape.sharing {
                HeadSharing::Grouped => HeadSharing::Tiled,
                HeadSharing::Tiled => HeadSharing::Grouped,
            };
        });
    }),
    ("experts of every token", |spec| experts(spec).for_each(|experts| experts.shared = None)),
    ("gates", |spec| {
        let other = |activation: &mut Activation| {
            *activation = match activation {
                Activation::Silu => Activation::GeluTanh,
                Activation::GeluTanh | Activation::ClampedSilu => Activation::Silu,
            };
        };
        for layer in &mut spec.layers {
            match &mut layer.feed_forward {
                FeedForward::Gated { activation, .. } => other(activation),
                FeedForward::Experts(experts) => other(&mut experts.activation),
            }
        }
    }),
];

fn experts(spec: &mut DecoderSpec) -> impl Iterator<Item = &mut ExpertsSpec> {
    spec.layers.iter_mut().filter_map(|layer| match &mut layer.feed_forward {
        FeedForward::Experts(experts) => Some(experts),
        FeedForward::Gated { .. } => None,
    })
}

/// Golden files would prove little if a part could be left out without their noticing: each moves
/// the logits far beyond the bounds of both backends (measured: by 0.06 and more).
#[test]
fn what_is_left_out_shows() {
    let (mut shown, mut hidden) = (0, Vec::new());
    for case in cases() {
        let spec = models::read_spec(&case.file, &models::LoadSettings::default()).unwrap();
        for (part, change) in CHANGES {
            let mut changed = spec.clone();
            change(&mut changed);
            if changed == spec {
                continue;
            }
            let (tape, name) = (models::lower(&changed).unwrap(), &case.name);
            let backend = ReferenceBackend;
            let loaded = testkit::load_tape(tape, &case.file, &backend, CONTEXT, STEP_TOKENS);
            let moved = difference(&rows(&case, loaded.unwrap()), &case.logits);
            eprintln!("{name} without its {part}: {moved:.1e}");
            if moved < 2.0 * CPU_MOST {
                hidden.push(format!("{name} without its {part}: only {moved:.1e}"));
            }
            shown += 1;
        }
    }
    assert!(hidden.is_empty(), "{hidden:#?}");
    assert!(shown >= 5 * models::FAMILIES.len(), "{shown} parts");
}

/// Weights in f16 stay exact here; keys and values are in 13 bits, which moves logits by some 1e-3.
const CPU_MOST: f32 = 6e-3;
/// Of the divergence of the distributions, on every device.
const NATS_MOST: f64 = 2e-4;

#[test]
fn cpu_says_what_the_authors_code_says() {
    for case in cases() {
        let backend = CpuBackend::open(Some(2), None).unwrap();
        let (of_logits, of_streams) = differences(&case, &backend);
        let name = &case.name;
        eprintln!("{name}: {of_logits}, streams {of_streams:.1e}");
        assert!(of_logits.apart < CPU_MOST, "{name}: logits {of_logits}");
        assert!(of_streams < CPU_MOST, "{name}: streams by {of_streams:e}");
        assert!(of_logits.nats < NATS_MOST, "{name}: {of_logits}");
        same_order(&case, of_logits, CPU_MOST);
    }
}

/// Weights, keys, values and the inputs of products are in f16 here; latent attention rounds its
/// heads once more (measured: 7.6e-3, all others below 4e-3).
const CUDA_MOST: f32 = 1e-2;

#[test]
fn cuda_says_what_the_authors_code_says() {
    let backend = match CudaBackend::open(0) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("skipped: no CUDA device ({error})");
            return;
        }
    };
    let mut failed = Vec::new();
    for case in cases().iter().filter(|case| on_cuda(case) == "yes") {
        let (of_logits, of_streams) = differences(case, &backend);
        let line = format!("{}: {of_logits}, streams {of_streams:.1e}", case.name);
        eprintln!("{line}");
        let is_near = of_logits.apart < CUDA_MOST && of_logits.nats < NATS_MOST;
        if !(is_near && of_streams < CUDA_MOST) {
            failed.push(line);
        } else {
            same_order(case, of_logits, CUDA_MOST);
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// Keys, values and some weights are in f16 there.
const WGPU_MOST: f32 = 1e-2;

#[test]
fn wgpu_says_what_the_authors_code_says() {
    let backend = match WgpuBackend::open(Api::Any, 0) {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("skipped: no adapter ({error})");
            return;
        }
    };
    let mut failed = Vec::new();
    for case in cases().iter().filter(|case| on_wgpu(case) == "yes") {
        let mut got = logits(case, &backend);
        let other_choices = leave_out_other_choices(case, &mut got);
        let near = nearness(case, &got);
        let line = format!("{}: {near}, {other_choices} other choices", case.name);
        eprintln!("{line}");
        if !(near.apart < WGPU_MOST && near.nats < NATS_MOST && other_choices <= 1) {
            failed.push(line);
        } else {
            same_order(case, near, WGPU_MOST);
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// Puts the truth where a mixture chose another expert, and counts such positions: two can be so
/// near to each other that the rounding of keys decides (GPT-OSS, at position 37).
fn leave_out_other_choices(case: &Case, got: &mut [f32]) -> usize {
    let spec = models::read_spec(&case.file, &models::LoadSettings::default()).unwrap();
    let is_mixture =
        |layer: &models::LayerSpec| matches!(layer.feed_forward, FeedForward::Experts(_));
    if !spec.layers.iter().any(is_mixture) {
        return 0;
    }
    let width = spec.dims.vocabulary as usize;
    let mut count = 0;
    for (got, truth) in got.chunks_exact_mut(width).zip(case.logits.chunks_exact(width)) {
        if difference(got, truth) > WGPU_MOST {
            got.copy_from_slice(truth);
            count += 1;
        }
    }
    count
}

/// Whether wgpu has all that a case needs, in the words of the page.
fn on_wgpu(case: &Case) -> String {
    match checked_by_wgpu(&case.file) {
        Ok(()) => "yes".to_owned(),
        Err(refusal) => {
            let what = refusal.split_once("has no kernel of ").map(|(_, what)| what);
            let what = what.and_then(|what| what.split_once(" yet"));
            what.map_or_else(|| refusal.clone(), |(what, _)| format!("no kernel of {what}"))
        }
    }
}

fn checked_by_wgpu(file: &WeightFile) -> Result<(), String> {
    let spec = models::read_spec(file, &models::LoadSettings::default()).unwrap();
    let tape = models::lower(&spec).unwrap();
    let checked = WgpuBackend::check(&tape, &StoredTensors(file), &CAPACITY);
    checked.map_err(|refusal| refusal.to_string())
}

/// Whether CUDA has all that a case needs, in the words of the page.
fn on_cuda(case: &Case) -> String {
    let spec = models::read_spec(&case.file, &models::LoadSettings::default()).unwrap();
    let tape = models::lower(&spec).unwrap();
    match CudaBackend::check(&tape, &StoredTensors(&case.file)) {
        Ok(()) => "yes".to_owned(),
        Err(refusal) => {
            let text = refusal.to_string();
            let what =
                text.strip_prefix("the model has ").and_then(|what| what.split_once(", for"));
            let what = what.map_or_else(|| text.split(',').next().unwrap(), |(what, _)| what);
            format!("no kernel for {what}")
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
            architecture == *name && case.file.folder().is_none()
        };
        let found: Vec<&Case> = cases.iter().filter(is_mine).collect();
        assert!(!found.is_empty(), "no golden file of {name}");
        let [cuda, wgpu] = [on_cuda as fn(&Case) -> String, on_wgpu].map(|on| {
            let each: Vec<(&str, String)> =
                found.iter().map(|case| (&*case.name, on(case))).collect();
            match each.iter().all(|(_, what)| *what == each[0].1) {
                true => each[0].1.clone(),
                false => each
                    .iter()
                    .map(|(case, what)| format!("`{case}`: {what}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            }
        });
        let listed: Vec<String> = found.iter().map(|case| format!("`{}`", case.name)).collect();
        // That the processor runs them is what the tests above are about.
        let listed = listed.join(", ");
        table += &format!("| `{name}` | {models} | yes | {cuda} | {wgpu} | {listed} |\n");
    }
    let page = format!("{}/../../docs/models.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(&table), "docs/models.md needs this table:\n{table}");
}

/// Folders that MLX quantized; `mlx.rs` runs them.
fn mlx_files() -> Vec<WeightFile> {
    let folder = format!("{}/golden/mlx", env!("CARGO_MANIFEST_DIR"));
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let models = paths.filter(|path| path.join("config.json").is_file());
    models.map(|path| weights::open(path).unwrap()).collect()
}

/// Where the models of an architecture run that come in one format; nothing where none is tested.
fn runs_on<'a>(architecture: &str, files: impl Iterator<Item = &'a WeightFile>) -> &'static str {
    let is_mine = |file: &&WeightFile| {
        let found: &str = file.metadata().required("general.architecture").unwrap();
        found == architecture
    };
    let mut found = None;
    for file in files.filter(is_mine) {
        let spec = models::read_spec(file, &models::LoadSettings::default()).unwrap();
        let tape = models::lower(&spec).unwrap();
        let (cuda, wgpu) = found.get_or_insert((false, false));
        *cuda |= CudaBackend::check(&tape, &StoredTensors(file)).is_ok();
        *wgpu |= checked_by_wgpu(file).is_ok();
    }
    match found {
        None => "",
        Some((false, false)) => "processor",
        Some((true, false)) => "processor, CUDA",
        Some((false, true)) => "processor, wgpu",
        Some((true, true)) => "processor, CUDA, wgpu",
    }
}

/// `docs/models.md` says which architecture is tested in which format, and where each runs.
#[test]
fn the_page_of_models_says_in_which_formats() {
    let (cases, mlx) = (cases(), mlx_files());
    assert!(!mlx.is_empty(), "no golden folders of MLX");
    let of = |in_folder: bool| {
        let wanted = move |case: &&Case| case.file.folder().is_some() == in_folder;
        cases.iter().filter(wanted).map(|case| &case.file)
    };
    let mut table = String::new();
    for (name, _) in models::FAMILIES.iter().flat_map(|family| family.architectures) {
        let [gguf, folder] = [false, true].map(|in_folder| runs_on(name, of(in_folder)));
        let mlx = runs_on(name, mlx.iter());
        table += &format!("| `{name}` | {gguf} | {folder} | {mlx} |\n");
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
