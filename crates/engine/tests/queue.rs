//! Does a request wait in a queue that is bounded in length and time, and is it told?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use device::Gate;
use engine::{
    End, Engine, EngineOptions, EngineStatus, Failpoints, GenerateRequest, Generation, LiveOptions,
    Prompt, QueueReport, Service, SharingOptions, Speculation,
};
use messages::{CacheNamespace, Refusal, RefusalKind, SamplingParams, SharingMode, SharingOutcome};
use testkit::tiny_model::TinyModel;

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

/// One place, and steps of 20 ms from the start.
fn one_place(model: &Model) -> EngineOptions {
    let plan: Vec<String> = (0..400).map(|step| format!("hang:20@{step}")).collect();
    EngineOptions {
        threads: Some(1),
        sequences_max: 1,
        warm_up: false,
        speculation: Speculation::Off,
        failpoints: Failpoints::parse(&plan.join(",")).unwrap(),
        ..EngineOptions::new(model.path.clone(), "tiny")
    }
}

fn request(prompt: &str, max_tokens: u32, sharing: SharingMode) -> GenerateRequest {
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
        sharing,
        urgency: engine::Urgency::default(),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn admit(engine: &Engine, request: GenerateRequest) -> Generation {
    wait(engine.generate(request)).unwrap()
}

fn started(mut generation: Generation) -> Result<Generation, Refusal> {
    wait(generation.started()).map(|()| generation)
}

/// The number of tokens of a finished answer.
fn finish(mut generation: Generation) -> u32 {
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        match delta.end {
            Some(End::Finished { completion_tokens, .. }) => return completion_tokens,
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
            None => {}
        }
    }
}

fn eventually(engine: &Engine, holds: impl Fn(&EngineStatus) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(&engine.status()) {
        assert!(Instant::now() < deadline, "never: {:?}", engine.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn who_waits_is_told_how_long_and_behind_whom() {
    let model = model();
    let engine = Engine::load(&one_place(&model)).unwrap();
    let first = started(admit(&engine, request("first", 10, SharingMode::Off))).unwrap();
    assert_eq!(first.queue.before, 0);
    let second = admit(&engine, request("second", 2, SharingMode::Off));
    let third = admit(&engine, request("third", 2, SharingMode::Off));
    assert_eq!(second.queue, QueueReport::default(), "not known yet");
    assert_eq!(engine.status().queue.length, 2);
    let second = started(second).unwrap();
    // Nine steps of the first one's answer at least.
    assert!(second.queue.waited >= Duration::from_millis(100), "{:?}", second.queue);
    let third = started(third).unwrap();
    assert_eq!((second.queue.before, third.queue.before), (0, 1));
    assert!(third.queue.waited >= second.queue.waited.saturating_sub(Duration::from_millis(50)));
    assert_eq!([first, second, third].map(finish), [10, 2, 2]);
    let queue = engine.status().queue;
    assert_eq!((queue.length, queue.started_total, queue.refused_late_total), (0, 3, 0));
}

#[test]
fn who_has_waited_too_long_is_refused_and_all_who_waited_with_it() {
    let model = model();
    let queue_time_max = Some(Duration::from_millis(200));
    let options = EngineOptions { queue_time_max, ..one_place(&model) };
    let engine = Engine::load(&options).unwrap();
    let first = started(admit(&engine, request("first", 60, SharingMode::Off))).unwrap();
    let same = || request("second", 2, SharingMode::On);
    let (second, joined) = (admit(&engine, same()), admit(&engine, same()));
    assert_eq!(joined.sharing.outcome, SharingOutcome::Joined);
    // It reads without asking whether it has started.
    let mut unaware = admit(&engine, request("third", 2, SharingMode::Off));
    for generation in [second, joined] {
        let refusal = started(generation).err().expect("one answer takes more than a second");
        assert_eq!(refusal.kind, RefusalKind::Busy);
        assert!(refusal.retry_after >= Some(Duration::from_secs(1)), "{refusal:?}");
    }
    let delta = unaware.next_blocking().unwrap();
    let Some(End::Refused(refusal)) = delta.end else { panic!("{:?}", delta.end) };
    assert!(refusal.kind == RefusalKind::Busy && refusal.message.contains("no place"), "{refusal}");
    assert!(unaware.next_blocking().is_none());
    eventually(&engine, |status| status.sequences_waiting == 0 && status.queue.length == 0);
    assert_eq!(engine.status().requests_refused_total, 3);
    assert_eq!(finish(first), 60, "it is not disturbed");
    let after = started(admit(&engine, same())).unwrap();
    assert_eq!(finish(after), 2);
}

fn live(model: &Model, queue_time_max: Option<Duration>) -> LiveOptions {
    LiveOptions {
        waiting_max: 256,
        queue_time_max,
        pacing: EngineOptions::new(model.path.clone(), "tiny").pacing,
        sharing: SharingOptions::default().limits,
        breaker: EngineOptions::new(model.path.clone(), "tiny").breaker,
    }
}

/// A place is not yet an answer: who is being read when its time is over is refused, too, for its
/// status is still open, and all who read along. Who came when nobody else was here is not.
#[test]
fn a_first_token_that_is_late_is_refused_like_a_place() {
    let (model, gate) = (model(), Gate::default());
    let options = EngineOptions {
        threads: Some(1),
        sequences_max: 2,
        warm_up: false,
        speculation: Speculation::Off,
        queue_time_max: Some(Duration::from_secs(3600)),
        failpoints: Failpoints::default().behind(&gate),
        ..EngineOptions::new(model.path.clone(), "tiny")
    };
    let engine = Engine::load(&options).unwrap();
    gate.close();
    // One token, so that there is no second step of it that would take the ring's other place.
    let first = admit(&engine, request("first", 1, SharingMode::Off));
    eventually(&engine, |status| status.sequences_running == 1);
    let same = || request("second", 2, SharingMode::On);
    let late = [admit(&engine, same()), admit(&engine, same())];
    assert_eq!(late[1].sharing.outcome, SharingOutcome::Joined);
    eventually(&engine, |status| status.sequences_running == 2);
    engine.take_up(&live(&model, Some(Duration::from_millis(20))));
    let refusals = late.map(|one| started(one).err());
    let status = engine.status();
    engine.take_up(&live(&model, None));
    gate.open();
    for refusal in refusals {
        let refusal = refusal.expect("no step ended");
        assert_eq!(refusal.kind, RefusalKind::Busy);
        assert!(refusal.message.contains("the answer did not begin within"), "{refusal}");
        assert!(refusal.retry_after >= Some(Duration::from_secs(1)), "{refusal:?}");
    }
    assert_eq!((status.queue.started_total, status.queue.refused_late_total), (1, 2));
    assert_eq!(status.requests_refused_total, 2);
    assert_eq!(finish(started(first).unwrap()), 1);
    assert_eq!(finish(started(admit(&engine, same())).unwrap()), 2);
    assert_eq!(engine.status().queue.started_total, 2);
}

#[test]
fn who_would_wait_too_long_is_refused_at_once() {
    let model = model();
    let engine = Engine::load(&one_place(&model)).unwrap();
    // How fast tokens come is known now: 20 ms each.
    assert_eq!(finish(admit(&engine, request("measured", 10, SharingMode::Off))), 10);
    eventually(&engine, |status| status.sequences_running == 0);
    let running = started(admit(&engine, request("running", 150, SharingMode::Off))).unwrap();
    let waiting = admit(&engine, request("waiting", 150, SharingMode::Off));
    // Ten more tokens at least are before whoever comes next, as they are expected of each.
    engine.take_up(&live(&model, Some(Duration::from_millis(100))));
    let refusal = wait(engine.generate(request("late", 2, SharingMode::Off))).err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Busy);
    assert!(refusal.message.contains("the answer would begin in"), "{refusal}");
    assert!(refusal.retry_after >= Some(Duration::from_secs(1)));
    drop((running, waiting));
    eventually(&engine, |status| status.sequences_running == 0);
    assert_eq!(finish(admit(&engine, request("alone", 2, SharingMode::Off))), 2);
}

/// What needs no sequence of its own needs no place in the queue, however full that is.
#[test]
fn who_shares_an_answer_does_not_count_in_the_queue() {
    let model = model();
    let options = EngineOptions { waiting_max: 1, ..one_place(&model) };
    let engine = Engine::load(&options).unwrap();
    let remembered = || request("remembered", 2, SharingMode::On);
    assert_eq!(finish(admit(&engine, remembered())), 2);
    let same = || request("running", 60, SharingMode::On);
    let running = started(admit(&engine, same())).unwrap();
    eventually(&engine, |status| status.sequences_running == 1);
    let waiting = || request("waiting", 2, SharingMode::On);
    let first = admit(&engine, waiting());
    let refusal = wait(engine.generate(request("third", 2, SharingMode::On))).err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Busy, "the queue is full");
    let outcome = |generation: &Generation| generation.sharing.outcome;
    let replayed = started(admit(&engine, remembered())).unwrap();
    assert_eq!(outcome(&replayed), SharingOutcome::Hit);
    let along: Vec<_> = (0..5).map(|_| started(admit(&engine, same())).unwrap()).collect();
    assert!(along.iter().all(|one| outcome(one) == SharingOutcome::Joined));
    let with_first: Vec<_> = (0..5).map(|_| admit(&engine, waiting())).collect();
    assert!(with_first.iter().all(|one| outcome(one) == SharingOutcome::Joined));
    assert_eq!(engine.status().queue.length, 1);
    assert_eq!(finish(replayed), 2);
    assert!(along.into_iter().all(|one| finish(one) == 60));
    assert!(with_first.into_iter().chain([first]).all(|one| finish(one) == 2));
    assert_eq!(finish(running), 60);
}

#[test]
fn identical_requests_wait_together_and_start_together() {
    let model = model();
    let engine = Engine::load(&one_place(&model)).unwrap();
    let first = started(admit(&engine, request("first", 10, SharingMode::Off))).unwrap();
    let same = || request("second", 6, SharingMode::On);
    let together: Vec<Generation> = (0..5).map(|_| admit(&engine, same())).collect();
    // They need one place, and it is one sequence that waits for it.
    assert_eq!(engine.status().queue.length, 1);
    eventually(&engine, |status| status.sequences_waiting == 1);
    let together: Vec<_> = together.into_iter().map(|one| started(one).unwrap()).collect();
    assert_eq!(engine.status().queue.length, 0);
    // One more comes while it runs, and one after: neither waits.
    let late = started(admit(&engine, same())).unwrap();
    assert!(together.into_iter().all(|one| finish(one) == 6));
    assert_eq!((finish(late), finish(first)), (6, 10));
    let remembered = started(admit(&engine, same())).unwrap();
    assert_eq!(remembered.sharing.outcome, SharingOutcome::Hit);
    assert_eq!(finish(remembered), 6);
}

#[test]
fn who_leaves_the_queue_makes_room_in_it() {
    let model = model();
    let options = EngineOptions { waiting_max: 1, ..one_place(&model) };
    let engine = Engine::load(&options).unwrap();
    let first = started(admit(&engine, request("first", 30, SharingMode::Off))).unwrap();
    eventually(&engine, |status| status.sequences_running == 1);
    let second = admit(&engine, request("second", 2, SharingMode::Off));
    let refusal = wait(engine.generate(request("third", 2, SharingMode::Off))).err().unwrap();
    assert_eq!(refusal.kind, RefusalKind::Busy);
    assert!(refusal.message.contains("1 requests are waiting"), "{refusal}");
    drop(second);
    eventually(&engine, |status| status.queue.length == 0);
    let third = admit(&engine, request("third", 2, SharingMode::Off));
    drop(first);
    assert_eq!(finish(third), 2);
}

#[test]
fn as_many_run_as_memory_holds() {
    let model = model();
    // 288 bytes a token, 9 KiB a block of 32: eight blocks, two answers of 100 tokens.
    let small = EngineOptions {
        threads: Some(1),
        sequences_max: 4,
        context_tokens: Some(128),
        kv_cache_bytes: Some(8 * (9 << 10)),
        speculation: Speculation::Off,
        ..EngineOptions::new(model.path.clone(), "tiny")
    };
    let engine = Engine::load(&small).unwrap();
    assert_eq!(engine.status().kv_blocks_total, 8);
    let wave = |first: usize| {
        let of = |index: usize| request(&format!("prompt {index}"), 100, SharingMode::Off);
        let all: Vec<_> = (first..first + 8).map(|index| admit(&engine, of(index))).collect();
        assert!(all.into_iter().all(|one| finish(one) == 100));
        engine.status().preemptions_total
    };
    assert_eq!(engine.status().queue.running_limit, 4, "nothing is known yet");
    let before = wave(0);
    assert!(before > 0, "more were tried than fit");
    eventually(&engine, |status| status.queue.running_limit == 2);
    assert_eq!(wave(8), before, "no more than fit were tried");
}

/// Who reads late finds all tokens at once, and is told how long they took all the same.
#[test]
fn how_long_an_answer_took_is_not_how_long_it_was_read() {
    let model = model();
    let engine = Engine::load(&one_place(&model)).unwrap();
    let start = Instant::now();
    let mut generation = admit(&engine, request("late", 40, SharingMode::Off));
    eventually(&engine, |status| status.generation_tokens_total >= 1);
    let (begun, seen) = (Instant::now(), Cell::new(Duration::ZERO));
    eventually(&engine, |status| {
        // What is published may be a step behind what was told.
        if status.generation_tokens_total < 35 {
            seen.set(begun.elapsed());
        }
        status.generation_tokens_total == 40
    });
    let lasted = seen.get();
    assert_eq!(generation.decoding(), None, "nothing is read yet");
    while generation.next_blocking().is_some_and(|delta| delta.end.is_none()) {}
    let told = generation.decoding().unwrap();
    assert!(told >= lasted && told <= start.elapsed(), "{told:?}, seen {lasted:?}");
}

/// A test that fails while its gate is closed drops its engine, and must end.
#[test]
fn a_closed_gate_does_not_keep_an_engine_from_ending() {
    let (model, gate) = (model(), Gate::default());
    let failpoints = Failpoints::default().behind(&gate);
    let options = EngineOptions { failpoints, ..one_place(&model) };
    let (ended, end) = std::sync::mpsc::channel();
    let engine = Engine::load(&options).unwrap();
    gate.close();
    let generation = admit(&engine, request("held", 2, SharingMode::Off));
    eventually(&engine, |status| status.sequences_running == 1);
    std::thread::spawn(move || {
        drop((engine, generation));
        ended.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(60)).expect("the engine's threads have ended");
}
