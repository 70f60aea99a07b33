//! Do identical requests share one computation, and is each told exactly what it would be alone?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{
    Delta, DeltaToken, End, Engine, EngineOptions, EngineStatus, Failpoints, GenerateRequest,
    Generation, Prompt, Service, SharingOptions,
};
use messages::{CacheNamespace, SamplingParams, SharingMode, SharingOutcome};
use testkit::tiny_model::TinyModel;

struct Model {
    folder: tempfile::TempDir,
    path: PathBuf,
}

fn model() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::default().to_bytes()).unwrap();
    Model { folder, path }
}

fn options(model: &Model) -> EngineOptions {
    EngineOptions { threads: Some(2), ..EngineOptions::new(model.path.clone(), "tiny") }
}

/// Steps take this long from the start, so that requests meet.
fn slow(model: &Model) -> EngineOptions {
    let plan: Vec<String> = (0..40).map(|step| format!("hang:50@{step}")).collect();
    EngineOptions { failpoints: Failpoints::parse(&plan.join(",")).unwrap(), ..options(model) }
}

fn request(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text(prompt.to_owned()),
        params: SamplingParams {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing: SharingMode::On,
        urgency: engine::Urgency::default(),
    }
}

fn alone(request: &GenerateRequest) -> GenerateRequest {
    GenerateRequest { sharing: SharingMode::Off, ..request.clone() }
}

fn start(engine: &Engine, request: &GenerateRequest) -> Generation {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request.clone())).unwrap()
}

#[derive(Debug, PartialEq)]
struct Answer {
    tokens: Vec<DeltaToken>,
    /// Piece by piece: also the pieces must be the same.
    texts: Vec<String>,
    end: End,
}

fn finish(mut generation: Generation) -> Answer {
    let (mut all, mut texts) = (Vec::new(), Vec::new());
    loop {
        let Delta { text, tokens, end } = generation.next_blocking().expect("an end comes first");
        all.extend(tokens);
        texts.push(text);
        if let Some(mut end) = end {
            // How much was computed for it, and how, is the one difference there may be.
            if let End::Finished { cached, proposals, .. } = &mut end {
                *cached = Default::default();
                *proposals = Default::default();
            }
            assert!(generation.next_blocking().is_none(), "nothing follows the end");
            return Answer { tokens: all, texts, end };
        }
    }
}

/// The outcome and the answer.
fn ask(engine: &Engine, request: &GenerateRequest) -> (SharingOutcome, Answer) {
    let generation = start(engine, request);
    (generation.sharing.outcome, finish(generation))
}

fn eventually(engine: &Engine, holds: impl Fn(&EngineStatus) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(&engine.status()) {
        assert!(Instant::now() < deadline, "never: {:?}", engine.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn readers_of_one_sequence_are_told_what_each_would_be_alone() {
    let model = model();
    let engine = Engine::load(&slow(&model)).unwrap();
    let long = request("tell me", 30);
    let mut first = start(&engine, &long);
    let mut beginning = vec![first.next_blocking().unwrap(), first.next_blocking().unwrap()];
    let mut short = request("tell me", 4);
    short.stop = vec!["never said".to_owned()];
    let late = start(&engine, &long);
    let shorter = start(&engine, &short);
    assert_eq!(late.sharing.outcome, SharingOutcome::Joined);
    assert!(late.sharing.why.contains("ahead"), "{}", late.sharing.why);
    let (late, shorter) = (finish(late), finish(shorter));
    while let Some(delta) = first.next_blocking() {
        beginning.push(delta);
    }
    // Counts are published a moment after the token they count.
    eventually(&engine, |status| status.sequences_running == 0);
    let told = engine.status();
    assert_eq!((told.generation_tokens_total, told.prompt_tokens_total), (30, 7), "once");
    assert_eq!((told.sharing.joins_total, told.sharing.misses_total), (2, 1));
    assert_eq!(told.sharing.tokens_shared_total, 34);
    let (_, expected) = ask(&engine, &alone(&long));
    assert_eq!(late, expected);
    assert_eq!(shorter, ask(&engine, &alone(&short)).1);
    let texts: Vec<String> = beginning.into_iter().map(|delta| delta.text).collect();
    assert_eq!(texts, expected.texts);
    for request in [&long, &short] {
        assert_eq!(ask(&engine, request), (SharingOutcome::Hit, ask(&engine, &alone(request)).1));
    }
    let longer = request("tell me", 31);
    let generation = start(&engine, &longer);
    assert_eq!(generation.sharing.why, "30 tokens are remembered, 31 are asked for");
    assert_eq!(finish(generation), ask(&engine, &alone(&longer)).1);
}

#[test]
fn a_sequence_ends_with_its_last_reader_and_not_before() {
    let model = model();
    let engine = Engine::load(&slow(&model)).unwrap();
    let long = request("go on", 200);
    let first = start(&engine, &long);
    let mut second = start(&engine, &long);
    assert_eq!(second.sharing.outcome, SharingOutcome::Joined);
    second.next_blocking().unwrap();
    drop(first);
    for _ in 0..3 {
        assert!(second.next_blocking().unwrap().end.is_none(), "the other reader reads on");
    }
    assert_eq!(engine.status().requests_cancelled_total, 0);
    drop(second);
    eventually(&engine, |status| status.sequences_running == 0 && status.kv_blocks_used == 0);
    assert_eq!(engine.status().requests_cancelled_total, 1);
    let generation = start(&engine, &request("go on", 2));
    assert_eq!(
        generation.sharing.outcome,
        SharingOutcome::Miss,
        "what broke off is not remembered"
    );
}

#[test]
fn a_slow_reader_harms_nobody() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let long = request("slowly", 200);
    let slow = start(&engine, &long);
    let others: Vec<Generation> = (0..20).map(|_| start(&engine, &long)).collect();
    let expected = ask(&engine, &alone(&long)).1;
    for other in others {
        assert_eq!(finish(other), expected);
    }
    assert_eq!(finish(slow), expected, "and is told everything in the end");
    assert_eq!(engine.status().prompt_tokens_total, 2 * 6);
}

#[test]
fn stop_texts_end_one_reader_and_are_remembered() {
    let model = model();
    let engine = Engine::load(&slow(&model)).unwrap();
    let plain = request("tell me", 24);
    let (_, whole) = ask(&engine, &alone(&plain));
    let text = whole.texts.concat();
    let letters: Vec<char> = text.chars().collect();
    let mut stopping = plain.clone();
    stopping.stop = vec![letters[8..11].iter().collect()];
    let first = start(&engine, &stopping);
    let second = start(&engine, &plain);
    let cut = finish(first);
    assert_eq!(cut, ask(&engine, &alone(&stopping)).1);
    assert!(matches!(cut.end, End::Finished { stop: Some(_), .. }), "{:?}", cut.end);
    assert_eq!(finish(second), whole);
    // Without a longer answer in memory, the cut one serves the same stop text.
    let mut fresh = stopping.clone();
    fresh.prompt = Prompt::Text("tell me more".to_owned());
    let again = |engine: &Engine| ask(engine, &fresh);
    let (before, expected) = again(&engine);
    assert_eq!(before, SharingOutcome::Miss);
    if matches!(&expected.end, End::Finished { stop: Some(_), .. }) {
        eventually(&engine, |status| status.sharing.replay_entries == 2);
    }
    assert_eq!(again(&engine), (SharingOutcome::Hit, expected));
}

#[test]
fn faults_are_told_to_all_and_remembered_by_none() {
    let model = model();
    let plan = "hang:300@2,fault@10";
    let failing = EngineOptions { failpoints: Failpoints::parse(plan).unwrap(), ..options(&model) };
    let engine = Engine::load(&failing).unwrap();
    let long = request("x", 100);
    let readers: Vec<Generation> = (0..5).map(|_| start(&engine, &long)).collect();
    for reader in readers {
        assert!(matches!(finish(reader).end, End::Failed(_)));
    }
    assert_eq!(engine.status().sharing.replay_entries, 0);
    let (outcome, answer) = ask(&engine, &long);
    assert_eq!((outcome, answer.tokens.len()), (SharingOutcome::Miss, 100));
    eventually(&engine, |status| status.kv_blocks_used == 0);
}

#[test]
fn what_may_not_be_shared_is_not() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let base = request("a secret", 8);
    let (_, expected) = ask(&engine, &base);
    type Change = fn(&mut GenerateRequest);
    let changes: &[(Change, &str)] = &[
        (|request| request.namespace.tenant = "other".to_owned(), "no identical request"),
        (|request| request.namespace.salt = "other".to_owned(), "no identical request"),
        (|request| request.sharing = SharingMode::Off, "the request asks for no sharing"),
        (|request| request.sharing = SharingMode::Fresh, "the request asks to be computed anew"),
        (
            |request| request.params.temperature = 0.7,
            "not repeatable: temperature 0.7 without a seed",
        ),
        (
            |request| (request.params.temperature, request.params.seed) = (0.7, Some(1)),
            "no identical request",
        ),
        (|request| request.params.logprobs = Some(2), "no identical request"),
    ];
    for (change, why) in changes {
        let mut changed = base.clone();
        change(&mut changed);
        let generation = start(&engine, &changed);
        assert_eq!(generation.sharing.outcome, SharingOutcome::Miss, "{why}");
        assert!(generation.sharing.why.starts_with(why), "{}", generation.sharing.why);
        let answer = finish(generation);
        assert_eq!(answer.tokens.len(), 8);
        if changed.sharing != SharingMode::On {
            assert_eq!(answer, expected);
        }
    }
    // Each is counted once: with the first, five found nothing, and three wanted to share nothing.
    eventually(&engine, |status| {
        (status.sharing.misses_total, status.sharing.unshared_total) == (5, 3)
    });
    let mut seeded = base.clone();
    (seeded.params.temperature, seeded.params.seed) = (0.7, Some(1));
    assert_eq!(ask(&engine, &seeded), (SharingOutcome::Hit, ask(&engine, &alone(&seeded)).1));
    assert_eq!(ask(&engine, &base), (SharingOutcome::Hit, expected));
    let off = Engine::load(&EngineOptions { sharing: None, ..options(&model) }).unwrap();
    for _ in 0..2 {
        let generation = start(&off, &base);
        assert_eq!(generation.sharing.why, "sharing is off on this server");
        finish(generation);
    }
}

#[test]
fn the_reader_after_the_last_allowed_computes_its_own() {
    let model = model();
    let mut few = slow(&model);
    let mut sharing = SharingOptions::default();
    sharing.limits.subscribers_max = 2;
    few.sharing = Some(sharing);
    let engine = Engine::load(&few).unwrap();
    let long = request("crowd", 20);
    let readers: Vec<Generation> = (0..5).map(|_| start(&engine, &long)).collect();
    let outcomes: Vec<SharingOutcome> =
        readers.iter().map(|reader| reader.sharing.outcome).collect();
    let (miss, joined) = (SharingOutcome::Miss, SharingOutcome::Joined);
    assert_eq!(outcomes, [miss, joined, miss, joined, miss]);
    let expected = ask(&engine, &alone(&long)).1;
    assert!(readers.into_iter().all(|reader| finish(reader) == expected));
}

#[test]
fn answers_outlast_a_restart_unless_their_file_is_wrong() {
    let model = model();
    let folder = model.folder.path().join("answers");
    let sharing = SharingOptions { folder: Some(folder.clone()), ..SharingOptions::default() };
    let kept = EngineOptions { sharing: Some(sharing), ..options(&model) };
    let mut asked = request("remember", 12);
    asked.params.logprobs = Some(2);
    let first = Engine::load(&kept).unwrap();
    let (_, expected) = ask(&first, &asked);
    drop(first);
    let second = Engine::load(&kept).unwrap();
    assert_eq!(ask(&second, &asked), (SharingOutcome::Hit, expected));
    assert_eq!(second.status().steps_total, 0, "nothing was computed");
    drop(second);
    let file = folder.join("tiny.answers");
    let bytes = std::fs::read(&file).unwrap();
    let outcome = |options: &EngineOptions| ask(&Engine::load(options).unwrap(), &asked).0;
    for at in [0, 9, 50, bytes.len() - 40, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(outcome(&kept), SharingOutcome::Miss, "damaged at {at}");
    }
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(outcome(&kept), SharingOutcome::Hit);
    let reference = EngineOptions { device: "reference".to_owned(), ..kept.clone() };
    assert_eq!(outcome(&reference), SharingOutcome::Miss, "another device's answers");
    let other = TinyModel { seed: 2, ..TinyModel::default() };
    std::fs::write(&model.path, other.to_bytes()).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(outcome(&kept), SharingOutcome::Miss, "another model's answers");
    let blocked = SharingOptions { folder: Some(model.path.clone()), ..SharingOptions::default() };
    let error = Engine::load(&EngineOptions { sharing: Some(blocked), ..kept }).err().unwrap();
    assert!(error.to_string().contains("sharing.folder"), "{error}");
}
