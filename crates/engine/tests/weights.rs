//! Are weights the same however they are read and kept, and is it told what was done?
#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{
    DirectIo, End, Engine, EngineOptions, GenerateRequest, Prompt, Service, WeightOptions,
};
use messages::{CacheNamespace, SamplingParams, SharingMode, TokenId};
use testkit::tiny_model::TinyModel;

fn load(folder: &tempfile::TempDir, weights: WeightOptions) -> Engine {
    let path = folder.path().join("tiny.gguf");
    if !path.exists() {
        std::fs::write(&path, TinyModel::default().to_bytes()).unwrap();
    }
    let mut options = EngineOptions::new(path, "tiny");
    options.device = "cpu".to_owned();
    options.threads = Some(2);
    options.weights = weights;
    Engine::load(&options).unwrap()
}

/// Tokens and log-probabilities of a greedy answer.
fn answer(engine: &Engine) -> Vec<(TokenId, u32)> {
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(vec![5, 6, 7, 8]),
        params: SamplingParams {
            max_tokens: Some(8),
            ignore_eos: true,
            logprobs: Some(1),
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut generation = runtime.block_on(engine.generate(request)).unwrap();
    let mut tokens = Vec::new();
    while let Some(delta) = generation.next_blocking() {
        assert!(!matches!(delta.end, Some(End::Failed(_))), "{delta:?}");
        let scored = delta.tokens.into_iter();
        tokens.extend(
            scored.map(|token| (token.id, token.logprob.unwrap().chosen.logprob.to_bits())),
        );
    }
    assert_eq!(tokens.len(), 8);
    tokens
}

/// Everything off: the system reads pages as they are looked at.
const PLAIN: WeightOptions = WeightOptions {
    pin_critical_weights: false,
    critical_layers: 0,
    pin_all_weights: false,
    pinned_bytes_max: None,
    prefetch_threads: 0,
    warmup_bytes: 0,
    use_mmap: true,
    direct_io: DirectIo::Off,
    pack_behind_bytes_min: u64::MAX,
};

#[test]
fn the_answer_is_the_same_however_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let plain = load(&folder, PLAIN);
    let expected = answer(&plain);
    let status = plain.status().weights;
    assert_eq!((status.prefetched_bytes, status.pinned_bytes, status.pins_refused), (0, 0, 0));
    for prefetch_threads in [0, 1, 3] {
        use DirectIo::{Auto, Off, On};
        for (use_mmap, direct_io) in [(false, Off), (true, Off), (true, On), (true, Auto)] {
            let options = WeightOptions { prefetch_threads, use_mmap, direct_io, ..PLAIN };
            let engine = load(&folder, WeightOptions { warmup_bytes: 1 << 20, ..options });
            assert_eq!(answer(&engine), expected, "{options:?}");
            let status = engine.status().weights;
            // All of the file is tensors but its head.
            let file = std::fs::metadata(folder.path().join("tiny.gguf")).unwrap().len();
            let read = status.prefetched_bytes;
            let all = read > file / 2 && read < file;
            assert_eq!(all, prefetch_threads > 0 || direct_io == On, "{status:?} of {file}");
            assert!(status.load_seconds > 0.0);
        }
    }
}

/// The first answer comes while weights are being packed, the second perhaps, too.
#[test]
fn the_answer_is_the_same_while_weights_are_packed_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let expected = answer(&load(&folder, PLAIN));
    for _ in 0..5 {
        let engine = load(&folder, WeightOptions { pack_behind_bytes_min: 0, ..PLAIN });
        for _ in 0..3 {
            assert_eq!(answer(&engine), expected);
        }
    }
}

#[test]
fn what_is_pinned_or_refused_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let expected = answer(&load(&folder, PLAIN));
    let all = WeightOptions { pin_all_weights: true, ..PLAIN };
    let critical = WeightOptions { pin_critical_weights: true, critical_layers: 1, ..PLAIN };
    let pinned = |options| {
        let engine = load(&folder, options);
        assert_eq!(answer(&engine), expected);
        (engine.status().weights, engine.memory().weights_bytes())
    };
    let (of_all, weights_bytes) = pinned(all);
    let (of_critical, _) = pinned(critical);
    assert!(of_all.pinned_bytes <= weights_bytes);
    if of_all.pins_refused == 0 {
        // Vectors are not pinned; they are small and used in every step.
        assert!(of_all.pinned_bytes > weights_bytes / 2, "{of_all:?} of {weights_bytes}");
        assert!(of_critical.pinned_bytes > 0);
        assert!(of_critical.pinned_bytes < of_all.pinned_bytes);
    }
    let (none, _) = pinned(WeightOptions { pinned_bytes_max: Some(0), ..all });
    assert_eq!(none.pinned_bytes, 0);
    assert!(none.pins_refused > 0);
}
