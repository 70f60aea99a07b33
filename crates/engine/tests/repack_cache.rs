//! Are repacked weights kept and used again, and is a cache that is not right never believed?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use engine::{End, Engine, EngineOptions, GenerateRequest, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode, TokenId};
use testkit::tiny_model::TinyModel;

struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let case = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(case.model(), TinyModel::default().to_bytes()).unwrap();
        case
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf.packed")
    }

    /// What is answered, twice, by an engine that looks at the cache in place, after comparing it
    /// with what one answers that copies it.
    fn answer(&self, cache: Option<&Path>) -> Vec<(TokenId, u32)> {
        let before = cache.and_then(|cache| std::fs::read(cache).ok());
        let in_place = self.answer_with(cache, true);
        // The same file as the other found.
        if let (Some(cache), Some(before)) = (cache, before) {
            std::fs::write(cache, before).unwrap();
        }
        assert_eq!(self.answer_with(cache, false), in_place);
        in_place
    }

    /// Tokens and log-probabilities of a greedy answer.
    fn answer_with(&self, cache: Option<&Path>, use_mmap: bool) -> Vec<(TokenId, u32)> {
        let mut options = EngineOptions::new(self.model(), "tiny");
        options.device = "cpu".to_owned();
        options.threads = Some(2);
        options.repack_cache = cache.map(Path::to_owned);
        options.weights.use_mmap = use_mmap;
        let engine = Engine::load(&options).unwrap();
        let answer = Self::ask(&engine);
        // Weights may have come into the heap meanwhile.
        assert_eq!(Self::ask(&engine), answer);
        answer
    }

    fn ask(engine: &Engine) -> Vec<(TokenId, u32)> {
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
}

#[test]
fn a_kept_model_answers_as_a_packed_one() {
    let case = Case::new();
    let cache = case.cache();
    let expected = case.answer(None);
    assert!(!cache.exists(), "nothing is kept unless it is asked for");
    assert_eq!(case.answer(Some(&cache)), expected);
    let kept = std::fs::read(&cache).unwrap();
    assert_eq!(case.answer(Some(&cache)), expected);
    assert_eq!(std::fs::read(&cache).unwrap(), kept, "a good cache is left alone");
    // What the second start used is the cache: the tensors' data in the model file is not looked
    // at. A model whose matrices are all zero but whose time and head are the same shows it.
    let modified = std::fs::metadata(case.model()).unwrap().modified().unwrap();
    let mut model = std::fs::read(case.model()).unwrap();
    let end = model.len();
    model[end - 2000..].fill(0);
    std::fs::write(case.model(), model).unwrap();
    let file = std::fs::File::options().write(true).open(case.model()).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    let other = case.answer(None);
    assert_ne!(other, expected, "the last tensor matters");
    assert_eq!(case.answer(Some(&cache)), expected);
}

#[test]
fn a_stale_or_damaged_cache_is_made_anew() {
    let case = Case::new();
    let cache = case.cache();
    let expected = case.answer(Some(&cache));
    let good = std::fs::read(&cache).unwrap();
    let mut flipped = good.clone();
    flipped[4096 + 1000] ^= 1;
    for bad in [&flipped[..], &good[..good.len() - 9], &good[..20], &[]] {
        std::fs::write(&cache, bad).unwrap();
        assert_eq!(case.answer(Some(&cache)), expected);
        assert_eq!(std::fs::read(&cache).unwrap(), good, "it was not made anew");
    }
    // Another model under the same name.
    let other = TinyModel { seed: 2, ..TinyModel::default() };
    std::fs::write(case.model(), other.to_bytes()).unwrap();
    let expected = case.answer(None);
    assert_eq!(case.answer(Some(&cache)), expected);
    assert_ne!(std::fs::read(&cache).unwrap(), good);
}

#[test]
fn a_cache_that_cannot_be_written_costs_no_answer() {
    let case = Case::new();
    let expected = case.answer(None);
    assert_eq!(case.answer(Some(&case.folder.path().join("no/such/folder"))), expected);
    // Named like the model itself: the model stays what it is.
    assert_eq!(case.answer(Some(&case.model())), expected);
    assert_eq!(case.answer(None), expected);
}
