//! Is each family served as it is evaluated: in chunks, behind a cached prefix, beside guesses?
//!
//! The models are the golden ones of `testkit`, whose windows are shorter than a block of the
//! cache and than the prompts. `testkit/tests/families.rs` holds the evaluation against the
//! authors' code.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use backend_cpu::CpuBackend;
use engine::{
    DeltaToken, End, Engine, EngineOptions, Failpoints, Gate, GenerateRequest, Generation, Prompt,
    Service, Speculation, TierSettings,
};
use messages::{CacheNamespace, ProposalCounts, SamplingParams, SharingMode, TokenId};
use weights::{Array, GgufBuilder, Value, WeightFile};

const CONTEXT: u32 = 64;

struct Case {
    name: String,
    file: WeightFile,
    /// The same with a tokenizer.
    path: PathBuf,
    ids: Vec<TokenId>,
}

fn cases(folder: &Path) -> Vec<Case> {
    let golden = format!("{}/../testkit/golden/families", env!("CARGO_MANIFEST_DIR"));
    let paths = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    let models = paths.filter(|path| path.extension().is_some_and(|kind| kind == "gguf"));
    let case = |path: PathBuf| {
        let file = weights::open(&path).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let Some(Value::Array(ids)) = file.metadata().get("golden.ids") else { panic!("{name}") };
        let Array::I32(ids) = &**ids else { panic!("{name}: {ids:?}") };
        let ids = ids.iter().map(|&id| id as TokenId).collect();
        let path = folder.join(path.file_name().unwrap());
        std::fs::write(&path, with_tokenizer(&file)).unwrap();
        Case { name, file, path, ids }
    };
    let cases: Vec<Case> = models.map(case).collect();
    assert!(cases.len() >= models::FAMILIES.len(), "{} cases", cases.len());
    cases
}

/// The engine wants a text for each token; these tests only send ids.
fn with_tokenizer(file: &WeightFile) -> Vec<u8> {
    let mut builder = GgufBuilder::new();
    for (key, value) in file.metadata().iter() {
        builder.key(key, value.clone());
    }
    let rows = file.tensor("token_embd.weight").unwrap().rows as u32;
    let mut tokens: Vec<String> =
        (0..rows - 1).map(|id| char::from_u32(0x21 + id).unwrap().to_string()).collect();
    tokens.push("AB".to_owned());
    let list = |array| Value::Array(Box::new(array));
    builder
        .key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.pre", "gpt-2")
        .key("tokenizer.ggml.tokens", list(Array::Strings(tokens.iter().collect())))
        .key("tokenizer.ggml.merges", list(Array::Strings(["A B"].into_iter().collect())))
        .key("tokenizer.ggml.eos_token_id", 0u32);
    for tensor in file.tensors() {
        let bytes = file.tensor(tensor.name()).unwrap().bytes;
        builder.tensor_of_type(tensor.name(), tensor.kind(), tensor.dims(), bytes.to_vec());
    }
    builder.to_bytes().unwrap()
}

fn load(case: &Case, prefix_cache: bool, speculation: Speculation) -> Engine {
    Engine::load(&EngineOptions {
        threads: Some(2),
        // Prompts take several steps.
        step_tokens_max: Some(11),
        sequences_max: 4,
        prefix_cache,
        // The second of them takes back what the first one kept.
        repack_cache: prefix_cache.then(|| case.path.with_extension("packed")),
        speculation,
        ..EngineOptions::new(case.path.clone(), "model")
    })
    .unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

fn answer(engine: &Engine, prompt: &[TokenId]) -> (Vec<DeltaToken>, u32, ProposalCounts) {
    finish(start(engine, prompt))
}

fn start(engine: &Engine, prompt: &[TokenId]) -> Generation {
    let request = GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Tokens(prompt.to_vec()),
        params: SamplingParams {
            max_tokens: Some(CONTEXT - prompt.len() as u32 - 1),
            ignore_eos: true,
            // Bit-identical log-probabilities show more than equal choices.
            logprobs: Some(5),
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request)).unwrap()
}

fn finish(mut generation: Generation) -> (Vec<DeltaToken>, u32, ProposalCounts) {
    let mut tokens = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        tokens.extend(delta.tokens);
        match delta.end {
            None => {}
            Some(End::Finished { cached, proposals, .. }) => {
                return (tokens, cached.tokens, proposals);
            }
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
        }
    }
}

/// The likeliest token behind each position, evaluated without an engine.
fn likeliest(case: &Case, text: &[TokenId]) -> Vec<TokenId> {
    let backend = CpuBackend::open(Some(1), None).unwrap();
    let mut evaluation = testkit::load(&case.file, &backend, CONTEXT, 7).unwrap();
    let mut best = Vec::new();
    let each = evaluation.each(text, |_, logits| {
        let largest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        best.push(largest.unwrap() as TokenId);
    });
    each.unwrap();
    best
}

#[test]
fn every_family_is_served_as_it_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let mut guessed = 0;
    for case in cases(folder.path()) {
        let name = &case.name;
        let plain = load(&case, false, Speculation::Off);
        let warm = load(&case, true, Speculation::Off);
        let guessing = load(&case, true, Speculation::Always);
        // One that repeats itself, so that there is something to guess.
        let repeated: Vec<TokenId> = case.ids[..12].repeat(3);
        for prompt in [&case.ids, &repeated] {
            let (expected, cached, _) = answer(&plain, prompt);
            assert_eq!(cached, 0, "{name}");
            let mut text = prompt.clone();
            text.extend(expected.iter().map(|token| token.id));
            let best = likeliest(&case, &text);
            let said = &text[prompt.len()..];
            assert_eq!(said, &best[prompt.len() - 1..text.len() - 1], "{name}");
            for engine in [&warm, &guessing] {
                assert_eq!(answer(engine, prompt).0, expected, "{name}, cold");
                let (again, cached, proposals) = answer(engine, prompt);
                assert_eq!(again, expected, "{name}, behind a cached prefix");
                assert_eq!(cached, 32, "{name}: a block");
                guessed += proposals.accepted + proposals.rejected;
            }
        }
    }
    assert!(guessed > 0, "no guess was checked");
}

/// A state cannot be taken back with blocks: who gave way reads on from where one was kept.
#[test]
fn carried_states_survive_preemptions() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases(folder.path());
    let case = cases.iter().find(|case| case.name == "qwen35").unwrap();
    let alone = load(case, false, Speculation::Off);
    let texts: Vec<Vec<TokenId>> =
        (0..5).map(|start| case.ids[start..start + 30].to_vec()).collect();
    let expected: Vec<_> = texts.iter().map(|text| answer(&alone, text).0).collect();
    // Five blocks of 32 positions; each answer needs two.
    let kv_bytes = 5 * 32 * engine::inspect(&case.path).unwrap().kv_bytes_per_token;
    for prefix_cache in [false, true] {
        let gate = Gate::default();
        let engine = Engine::load(&EngineOptions {
            threads: Some(2),
            step_tokens_max: Some(11),
            sequences_max: 5,
            prefix_cache,
            kv_cache_bytes: Some(kv_bytes),
            failpoints: Failpoints::default().behind(&gate),
            ..EngineOptions::new(case.path.clone(), "model")
        })
        .unwrap();
        gate.close();
        let running: Vec<_> = texts.iter().map(|text| start(&engine, text)).collect();
        gate.open();
        for (generation, expected) in running.into_iter().zip(&expected) {
            assert_eq!(finish(generation).0, *expected, "prefix cache: {prefix_cache}");
        }
        assert!(engine.status().preemptions_total > 0, "the pool was meant to run out");
    }
}

/// Blocks are nothing without the state at their end: both go to memory or to disk, and come back.
#[test]
fn carried_states_come_back_from_memory_and_disk() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases(folder.path());
    let case = cases.iter().find(|case| case.name == "qwen35").unwrap();
    let text = |seed: u32| (0..44).map(|index| (index * 7 + seed * 13) % 31).collect::<Vec<_>>();
    let expected = answer(&load(case, false, Speculation::Off), &text(1)).0;
    // Five blocks of 32 positions; each answer needs two.
    let kv_bytes = 5 * 32 * engine::inspect(&case.path).unwrap().kv_bytes_per_token;
    for device in ["cpu", "reference"] {
        let store = folder.path().join(device);
        let open = |ram_bytes, disk_path: Option<&Path>| {
            let disk_bytes = if disk_path.is_some() { 1 << 20 } else { 0 };
            let disk_path = disk_path.map(Path::to_owned);
            Engine::load(&EngineOptions {
                device: device.to_owned(),
                threads: Some(2),
                step_tokens_max: Some(11),
                sequences_max: 2,
                kv_cache_bytes: Some(kv_bytes),
                kv_tiers: TierSettings { ram_bytes, disk_bytes, disk_path },
                ..EngineOptions::new(case.path.clone(), "model")
            })
            .unwrap()
        };
        let check = |engine: &Engine, cached: u32, said: &str| {
            let (tokens, found, _) = answer(engine, &text(1));
            let ids = |tokens: &[DeltaToken]| tokens.iter().map(|t| t.id).collect::<Vec<_>>();
            assert_eq!(ids(&tokens), ids(&expected), "{device}: {said}");
            assert!(device != "cpu" || tokens == expected, "{device}: {said}");
            assert_eq!(found, cached, "{device}: {said}");
        };
        let engine = open(1 << 20, None);
        check(&engine, 0, "at first");
        (2..7).for_each(|seed| drop(answer(&engine, &text(seed))));
        check(&engine, 32, "from memory");
        assert!(engine.status().kv_tiers.loaded_blocks_total > 1, "a block and a state");
        // Disk alone, across a restart; then with a byte of each record turned around.
        drop(open(0, Some(&store)));
        let engine = open(0, Some(&store));
        check(&engine, 0, "at first");
        drop(engine);
        let engine = open(0, Some(&store));
        check(&engine, 32, "from disk");
        drop(engine);
        let entries = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
        let records = entries.into_iter().find(|path| path.is_dir()).unwrap();
        for entry in std::fs::read_dir(records).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "block") {
                let mut bytes = std::fs::read(&file).unwrap();
                let last = bytes.len() - 40;
                bytes[last] ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
        }
        check(&open(0, Some(&store)), 0, "damaged");
    }
}
