//! Is a cached prefix worth exactly what computing it would have been?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use engine::{
    DeltaToken, End, Engine, EngineOptions, Failpoints, Gate, GenerateRequest, Generation,
    PacingOptions, Prompt, Service, TierSettings,
};
use messages::{CacheNamespace, SamplingParams, SharingMode, TokenId};
use testkit::tiny_model::TinyModel;

/// A tiny model with room for a conversation; gone when dropped.
fn tiny() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = TinyModel { context: 1024, ..TinyModel::default() };
    std::fs::write(&path, model.to_bytes()).unwrap();
    (folder, path)
}

fn options(path: &Path) -> EngineOptions {
    EngineOptions { threads: Some(2), ..EngineOptions::new(path.to_path_buf(), "model") }
}

fn load(path: &Path, prefix_cache: bool) -> Engine {
    Engine::load(&EngineOptions { prefix_cache, ..options(path) }).unwrap()
}

fn request(prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        params: SamplingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            // Bit-identical log-probabilities show more than equal choices.
            logprobs: Some(5),
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        // Computed each time, with what is cached of the prompt.
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    }
}

fn start(engine: &Engine, request: GenerateRequest) -> Generation {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request)).unwrap()
}

/// The tokens with their log-probabilities, and how much of the prompt was cached.
fn finish(mut generation: Generation) -> (Vec<DeltaToken>, u32) {
    let mut tokens = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        tokens.extend(delta.tokens);
        match delta.end {
            None => {}
            Some(End::Finished { cached, .. }) => return (tokens, cached.tokens),
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
        }
    }
}

fn answer(engine: &Engine, prompt: &[TokenId], max_tokens: u32) -> (Vec<DeltaToken>, u32) {
    finish(start(engine, request(prompt, max_tokens)))
}

fn prompt(length: u32, seed: u32) -> Vec<TokenId> {
    (0..length).map(|place| 3 + (place * place + seed * 31 + place * seed) % 250).collect()
}

/// Positions a block.
const BLOCK: u32 = 32;

/// Cold, warm, and side by side with others: the same bits.
fn check_exactness(path: &Path, prompt_tokens: u32, answer_tokens: u32) {
    let cold = load(path, false);
    let warm = load(path, true);
    let shared = prompt(prompt_tokens, 1);
    let mut longer = shared.clone();
    longer.extend(prompt(BLOCK + 9, 2));
    let mut other = shared[..shared.len() - 3].to_vec();
    other.extend(prompt(5, 3));
    for (text, most_cached) in [(&shared, 0), (&longer, prompt_tokens), (&other, prompt_tokens - 3)]
    {
        let (expected, cached) = answer(&cold, text, answer_tokens);
        assert_eq!(cached, 0, "it is turned off");
        let (first, cached) = answer(&warm, text, answer_tokens);
        assert_eq!(first, expected);
        assert_eq!(cached, most_cached / BLOCK * BLOCK);
        let (second, cached) = answer(&warm, text, answer_tokens);
        assert_eq!(second, expected);
        assert_eq!(cached, (text.len() as u32 - 1) / BLOCK * BLOCK, "all but the last token");
    }
    let status = warm.status().prefix_cache;
    assert!(status.hit_tokens_total > 0 && status.blocks > 0, "{status:?}");
    assert_eq!(cold.status().prefix_cache, engine::PrefixCacheStatus::default());
}

#[test]
fn a_cached_prefix_changes_no_bit_of_an_answer() {
    let (_folder, path) = tiny();
    check_exactness(&path, 300, 70);
}

#[test]
fn nor_of_the_default_models() {
    let Some(path) = testkit::default_model() else {
        eprintln!("skipped: the default model is not here; `pelton pull smollm2` brings it");
        return;
    };
    check_exactness(&path, 130, 6);
}

#[test]
fn a_conversation_computes_only_the_new_turn() {
    let (_folder, path) = tiny();
    let engine = load(&path, true);
    let mut conversation = Vec::new();
    for turn in 0..10 {
        let question = prompt(60, turn);
        conversation.extend(&question);
        let before = engine.status().computed_tokens_total;
        let (tokens, _) = answer(&engine, &conversation, 20);
        // The last step's count is published a moment after its token.
        while engine.status().sequences_running > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let computed = engine.status().computed_tokens_total - before;
        // The question, the answer's tokens but the last, one row beyond the end at most, and what
        // the turn before left in a block that was not full.
        let most = 60 + 20 + BLOCK + 1;
        assert!(computed <= u64::from(most), "turn {turn}: {computed} positions, at most {most}");
        conversation.extend(tokens.iter().map(|token| token.id));
    }
    assert_eq!(conversation.len(), 800);
}

#[test]
fn requests_that_run_at_once_meet() {
    let (_folder, path) = tiny();
    let engine = load(&path, true);
    let shared = prompt(900, 4);
    let generations: Vec<Generation> =
        (0..8).map(|_| start(&engine, request(&shared, 8))).collect();
    let answers: Vec<_> = generations.into_iter().map(finish).collect();
    for (tokens, _) in &answers {
        assert_eq!(*tokens, answers[0].0);
    }
    let cached = answers.iter().map(|(_, cached)| cached).sum::<u32>();
    // Seven follow the first, each at most two steps of 256 tokens and a block behind it.
    let least = 7 * (900 - 2 * 256 - BLOCK);
    assert!(cached >= least, "{cached} of 8 * 900 tokens were cached, at least {least} can be");
}

/// A tiny model's block: keys and values of 2 heads of 16, 2 bytes each, in 2 layers, 32 times.
const BLOCK_BYTES: u64 = 8192;

/// A pool of 16 blocks, so that a third conversation pushes out the first.
fn small(path: &Path, device: &str, ram_blocks: u64, disk_path: Option<&Path>) -> Engine {
    Engine::load(&small_options(path, device, ram_blocks, disk_path)).unwrap()
}

fn small_options(
    path: &Path,
    device: &str,
    ram_blocks: u64,
    disk_path: Option<&Path>,
) -> EngineOptions {
    let element = if device == "reference" { 2 } else { 1 };
    let kv_tiers = TierSettings {
        ram_bytes: ram_blocks * element * BLOCK_BYTES,
        disk_bytes: if disk_path.is_some() { 1 << 20 } else { 0 },
        disk_path: disk_path.map(Path::to_owned),
    };
    EngineOptions {
        device: device.to_owned(),
        context_tokens: Some(256),
        kv_cache_bytes: Some(16 * BLOCK_BYTES),
        kv_tiers,
        // All at once, or answers would not push one another out.
        pacing: PacingOptions { itl_target: None, ..PacingOptions::default() },
        ..options(path)
    }
}

/// Fills the pool with other prompts.
fn push_out(engine: &Engine) {
    for seed in 50..54 {
        answer(engine, &prompt(200, seed), 2);
    }
}

#[test]
fn blocks_come_back_from_memory_as_they_were() {
    let (_folder, path) = tiny();
    for device in ["cpu", "reference"] {
        let text = prompt(200, 9);
        let expected = answer(&load_on(&path, device), &text, 20).0;
        let engine = small(&path, device, 64, None);
        assert_eq!(answer(&engine, &text, 20), (expected.clone(), 0));
        push_out(&engine);
        let (again, cached) = answer(&engine, &text, 20);
        assert_eq!(again, expected, "{device}");
        assert_eq!(cached, 6 * BLOCK, "{device}");
        let counts = engine.status().kv_tiers;
        assert!(counts.loaded_blocks_total > 0, "{device}: {counts:?}");
        assert!(counts.ram_bytes > 0 && counts.disk_bytes == 0, "{device}: {counts:?}");
    }
}

fn load_on(path: &Path, device: &str) -> Engine {
    let (device, prefix_cache) = (device.to_owned(), false);
    Engine::load(&EngineOptions { device, prefix_cache, ..options(path) }).unwrap()
}

#[test]
fn blocks_on_disk_survive_a_restart_and_damage() {
    let (folder, path) = tiny();
    let store = folder.path().join("blocks");
    let text = prompt(200, 9);
    let expected = answer(&load(&path, false), &text, 20).0;
    let engine = small(&path, "cpu", 0, Some(&store));
    assert_eq!(answer(&engine, &text, 20), (expected.clone(), 0));
    drop(engine);

    let engine = small(&path, "cpu", 4, Some(&store));
    assert_eq!(answer(&engine, &text, 20), (expected.clone(), 6 * BLOCK), "nothing was evicted");
    assert_eq!(engine.status().kv_tiers.loaded_blocks_total, 6);
    push_out(&engine);
    assert_eq!(answer(&engine, &text, 20).0, expected);
    drop(engine);

    // One byte of each record is turned around: all are noticed, and the answer is computed.
    let mut inside = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    let model = inside.find(|path| path.is_dir()).unwrap();
    for entry in std::fs::read_dir(&model).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "block") {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[3000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
    let engine = small(&path, "cpu", 0, Some(&store));
    assert_eq!(answer(&engine, &text, 20), (expected, 0));
    assert!(engine.status().kv_tiers.damaged_blocks_total > 0);
}

#[test]
fn another_model_or_layout_finds_nothing() {
    let (folder, path) = tiny();
    let store = folder.path().join("blocks");
    let text = prompt(200, 9);
    drop(answer(&small(&path, "cpu", 0, Some(&store)), &text, 4));
    let other = folder.path().join("other.gguf");
    let model = TinyModel { context: 1024, seed: 2, ..TinyModel::default() };
    std::fs::write(&other, model.to_bytes()).unwrap();
    assert_eq!(answer(&small(&other, "cpu", 0, Some(&store)), &text, 4).1, 0);
    assert_eq!(answer(&small(&path, "reference", 0, Some(&store)), &text, 4).1, 0);
    assert_eq!(answer(&small(&path, "cpu", 0, Some(&store)), &text, 4).1, 6 * BLOCK);
}

/// Five answers that grow beyond the pool push one another out; those that start again take from
/// memory what was given up of them, and say what they would say alone.
#[test]
fn preempted_answers_take_back_their_blocks_and_do_not_change() {
    let (_folder, path) = tiny();
    let texts: Vec<Vec<TokenId>> = (0..5).map(|seed| prompt(60, 20 + seed)).collect();
    let alone = load_on(&path, "reference");
    let expected: Vec<_> = texts.iter().map(|text| answer(&alone, text, 150).0).collect();
    for ram_blocks in [0, 256] {
        let gate = Gate::default();
        let failpoints = Failpoints::default().behind(&gate);
        let options = small_options(&path, "reference", ram_blocks, None);
        let engine = Engine::load(&EngineOptions { failpoints, ..options }).unwrap();
        gate.close();
        let running: Vec<_> = texts.iter().map(|text| start(&engine, request(text, 150))).collect();
        gate.open();
        for (generation, expected) in running.into_iter().zip(&expected) {
            assert_eq!(finish(generation).0, *expected, "with {ram_blocks} blocks of memory");
        }
        let status = engine.status();
        assert!(status.preemptions_total > 0, "the pool was meant to run out");
        assert_eq!(status.returned_blocks_total > 0, ram_blocks > 0, "{status:?}");
    }
}
