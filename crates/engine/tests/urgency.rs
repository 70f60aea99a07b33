//! Are deadlines kept, and do they harm nobody else?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{
    Deadline, End, Engine, EngineOptions, Failpoints, GenerateRequest, Generation, Prompt, Service,
    Speculation, Urgency,
};
use messages::{
    CacheNamespace, Priority, Refusal, RefusalKind, SamplingParams, SharingMode, SharingOutcome,
};
use testkit::tiny_model::TinyModel;

/// A tiny model's file; gone when dropped.
struct Model {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn model() -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::default().to_bytes()).unwrap();
    Model { _folder: folder, path }
}

/// An engine whose step 6 takes a second.
fn hanging(model: &Model) -> Engine {
    let options = EngineOptions {
        threads: Some(1),
        speculation: Speculation::Off,
        warm_up: false,
        failpoints: Failpoints::parse("hang:1000@6").unwrap(),
        ..EngineOptions::new(model.path.clone(), "tiny")
    };
    Engine::load(&options).unwrap()
}

fn request(sharing: SharingMode, timeout: Option<Duration>) -> GenerateRequest {
    let deadline = timeout.and_then(|timeout| Deadline::after(Instant::now(), timeout));
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text("once".to_owned()),
        params: SamplingParams {
            max_tokens: Some(40),
            ignore_eos: true,
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing,
        urgency: Urgency { priority: Priority::High, deadline },
    }
}

fn start(engine: &Engine, request: GenerateRequest) -> Result<Generation, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request))
}

/// Tokens told, and the end.
fn finish(mut generation: Generation) -> (Vec<u32>, End) {
    let mut ids = Vec::new();
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        ids.extend(delta.tokens.iter().map(|token| token.id));
        if let Some(end) = delta.end {
            assert!(generation.next_blocking().is_none(), "nothing follows the end");
            return (ids, end);
        }
    }
}

/// Waits for what another thread brings about.
fn eventually(engine: &Engine, holds: impl Fn(&engine::EngineStatus) -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !holds(&engine.status()) {
        assert!(Instant::now() < patience, "never: {:?}", engine.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_late_answer_ends_at_its_deadline_and_gives_everything_back() {
    let model = model();
    let engine = hanging(&model);
    let started = Instant::now();
    let late = request(SharingMode::Off, Some(Duration::from_millis(300)));
    let (told, end) = finish(start(&engine, late).unwrap());
    let End::Late(deadline) = end else { panic!("it was late: {end:?}") };
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "the step that hangs is not waited for"
    );
    assert!(deadline.text().contains("300 ms"), "{}", deadline.text());
    assert!(!told.is_empty() && told.len() < 40, "{} tokens", told.len());
    eventually(&engine, |status| status.sequences_running == 0 && status.kv_blocks_used == 0);
    let status = engine.status();
    assert_eq!((status.requests_late_total, status.requests_cancelled_total), (1, 1));
    // The next one is served as if nothing had been.
    let (told, end) = finish(start(&engine, request(SharingMode::Off, None)).unwrap());
    assert!(matches!(end, End::Finished { .. }) && told.len() == 40, "{end:?}");
}

#[test]
fn a_request_that_is_late_already_is_refused() {
    let model = model();
    let engine = hanging(&model);
    let deadline = Some(Deadline { at: Instant::now(), after: Duration::from_millis(7) });
    let urgency = Urgency { deadline, ..Urgency::default() };
    let late = GenerateRequest { urgency, ..request(SharingMode::Off, None) };
    let refusal = start(&engine, late).err().expect("it is late");
    assert_eq!(refusal.kind, RefusalKind::Late);
    assert!(refusal.message.contains("7 ms"), "{refusal}");
}

#[test]
fn a_deadline_is_of_one_reader_and_not_of_the_others() {
    let model = model();
    let engine = hanging(&model);
    let hurried =
        start(&engine, request(SharingMode::On, Some(Duration::from_millis(300)))).unwrap();
    eventually(&engine, |status| status.steps_total >= 1);
    let patient = start(&engine, request(SharingMode::On, None)).unwrap();
    assert_eq!(patient.sharing.outcome, SharingOutcome::Joined);
    let (_, end) = finish(hurried);
    assert!(matches!(end, End::Late(_)), "{end:?}");
    let (told, end) = finish(patient);
    assert!(matches!(end, End::Finished { .. }) && told.len() == 40, "{end:?}");
    assert_eq!(engine.status().requests_cancelled_total, 0);
}
