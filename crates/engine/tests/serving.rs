//! Does the engine keep its promises, on a tiny model through the whole path?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{
    BreakerRules, BreakerState, End, Engine, EngineOptions, Failpoints, Gate, GenerateRequest,
    Generation, Prompt, Service, Speculation,
};
use messages::{CacheNamespace, FinishReason, RefusalKind, SamplingParams, SharingMode};
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

fn options(model: &Model) -> EngineOptions {
    EngineOptions {
        threads: Some(2),
        // Some tests count steps, and a tiny model repeats itself.
        speculation: Speculation::Off,
        ..EngineOptions::new(model.path.clone(), "tiny")
    }
}

fn request(prompt: &str, params: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text(prompt.to_owned()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        // What is computed is what is tested; `sharing.rs` has the rest.
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    }
}

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::greedy() }
}

fn start(engine: &Engine, request: GenerateRequest) -> Result<Generation, messages::Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request))
}

#[derive(Debug, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    end: End,
}

fn finish(mut generation: Generation) -> Answer {
    let (mut ids, mut text) = (Vec::new(), String::new());
    loop {
        let delta = generation.next_blocking().expect("an end before the stream ends");
        ids.extend(delta.tokens.iter().map(|token| token.id));
        text.push_str(&delta.text);
        if let Some(mut end) = delta.end {
            // How much was cached depends on company, and nothing else may.
            if let End::Finished { cached, .. } = &mut end {
                *cached = Default::default();
            }
            assert!(generation.next_blocking().is_none(), "nothing follows the end");
            return Answer { ids, text, end };
        }
    }
}

fn answer(engine: &Engine, request: GenerateRequest) -> Answer {
    finish(start(engine, request).unwrap())
}

/// Waits for what another thread brings about; a test that fails here fails by its assertion.
fn eventually(engine: &Engine, holds: impl Fn(&engine::EngineStatus) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(&engine.status()) {
        assert!(Instant::now() < deadline, "never: {:?}", engine.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn answers_do_not_depend_on_company() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let params = |index: u32| match index % 3 {
        0 => greedy(20 + index % 7),
        1 => SamplingParams { temperature: 0.9, seed: Some(7), ..greedy(24) },
        _ => SamplingParams { temperature: 1.0, seed: Some(8), presence_penalty: 0.5, ..greedy(9) },
    };
    let of = |index: u32| {
        request(&format!("prompt number {index} {}", "x".repeat(index as usize)), params(index))
    };
    let alone: Vec<Answer> = (0..32).map(|index| answer(&engine, of(index))).collect();
    let together: Vec<Generation> =
        (0..32).map(|index| start(&engine, of(index)).unwrap()).collect();
    for (index, (generation, alone)) in together.into_iter().zip(alone).enumerate() {
        assert_eq!(finish(generation), alone, "request {index}");
    }
    eventually(&engine, |status| status.kv_blocks_used == 0 && status.sequences_running == 0);
}

#[test]
fn the_cpu_and_reference_devices_agree() {
    let model = model();
    let cpu = Engine::load(&options(&model)).unwrap();
    let reference = EngineOptions { device: "reference".to_owned(), ..options(&model) };
    let reference = Engine::load(&reference).unwrap();
    for prompt in ["a", "hello there", "0123456789 0123456789 0123456789 0123456789"] {
        let of = || request(prompt, greedy(40));
        assert_eq!(answer(&cpu, of()), answer(&reference, of()), "{prompt}");
    }
}

#[test]
fn a_load_is_counted_to_its_end() {
    let model = model();
    let progress = std::sync::Arc::new(engine::LoadProgress::default());
    let options =
        EngineOptions { load_progress: Some(std::sync::Arc::clone(&progress)), ..options(&model) };
    Engine::load(&options).unwrap();
    assert!(progress.total_bytes() > 0);
    assert_eq!(progress.done_bytes(), progress.total_bytes());
}

#[test]
fn preempted_answers_are_the_same_answers() {
    let model = model();
    let roomy = Engine::load(&options(&model)).unwrap();
    // 2 layers, keys and values of 2 heads of 16: 256 bytes a token, 8 KiB a block, 8 a context.
    let tight = EngineOptions {
        context_tokens: Some(256),
        kv_cache_bytes: Some(7 << 13),
        ..options(&model)
    };
    let refused = Engine::load(&tight);
    assert!(refused.is_err_and(|error| error.to_string().contains("kv_cache_mb")));
    let tight = EngineOptions { context_tokens: Some(192), ..tight };
    let tight = Engine::load(&tight).unwrap();
    let of = |index: usize| request(&"abcdefgh"[index % 8..].repeat(3), greedy(150));
    let wanted: Vec<Answer> = (0..6).map(|index| answer(&roomy, of(index))).collect();
    let generations: Vec<Generation> =
        (0..6).map(|index| start(&tight, of(index)).unwrap()).collect();
    for (generation, wanted) in generations.into_iter().zip(wanted) {
        assert_eq!(finish(generation), wanted);
    }
    assert!(tight.status().preemptions_total > 0, "the pool was meant to run out");
}

#[test]
fn a_stream_that_is_dropped_frees_its_sequence() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let mut generation = start(&engine, request("go on", greedy(240))).unwrap();
    assert!(generation.next_blocking().is_some());
    drop(generation);
    eventually(&engine, |status| status.sequences_running == 0 && status.kv_blocks_used == 0);
    assert_eq!(engine.status().requests_cancelled_total, 1);
}

#[test]
fn stop_texts_and_tokens_end_answers() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let whole = answer(&engine, request("tell me", greedy(60)));
    let characters: Vec<char> = whole.text.chars().collect();
    let stop: String = characters[10..13].iter().collect();
    let before = &whole.text[..whole.text.find(&stop).unwrap()];
    let mut asked = request("tell me", greedy(60));
    asked.stop = vec![stop.clone()];
    let cut = answer(&engine, asked.clone());
    assert_eq!(cut.text, before);
    let End::Finished { reason, stop: named, completion_tokens, .. } = cut.end else { panic!() };
    assert_eq!((reason, named.as_ref()), (FinishReason::Stop, Some(&stop)));
    assert_eq!(completion_tokens as usize, cut.ids.len());
    asked.include_stop = true;
    assert_eq!(answer(&engine, asked).text, format!("{before}{stop}"));

    let token = whole.ids[5];
    let first = whole.ids.iter().position(|&id| id == token).unwrap();
    let params = SamplingParams { stop_token_ids: vec![token], ..greedy(60) };
    let cut = answer(&engine, request("tell me", params.clone()));
    assert_eq!(cut.ids, whole.ids[..=first], "the stop token is counted, not shown");
    let later = SamplingParams { min_tokens: 30, ..params };
    let longer = answer(&engine, request("tell me", later));
    assert!(
        longer.ids.len() > 30 && !longer.ids[..30].contains(&token),
        "banned before min_tokens"
    );
    eventually(&engine, |status| status.kv_blocks_used == 0);
}

#[test]
fn log_probabilities_come_with_tokens() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let params = SamplingParams { logprobs: Some(3), ..greedy(4) };
    let mut generation = start(&engine, request("x", params)).unwrap();
    let token = generation.next_blocking().unwrap().tokens.remove(0);
    let logprob = token.logprob.unwrap();
    assert_eq!(logprob.chosen.id, token.id);
    assert_eq!(logprob.top[0], logprob.chosen, "greedy takes the likeliest");
    assert!(logprob.top.len() == 3 && logprob.top[0].logprob >= logprob.top[1].logprob);
    assert!(logprob.chosen.logprob < 0.0);
}

#[test]
fn bad_requests_are_refused_with_both_numbers() {
    let model = model();
    let engine = Engine::load(&options(&model)).unwrap();
    let refusal = |request| start(&engine, request).err().expect("a refusal");
    let long = refusal(request(&"x".repeat(300), greedy(1)));
    assert_eq!(long.kind, RefusalKind::TooLong);
    assert!(long.message.contains("300") && long.message.contains("256"), "{long}");
    let sum = refusal(request(&"x".repeat(200), greedy(100)));
    assert_eq!(sum.kind, RefusalKind::TooLong);
    assert!(sum.message.contains("exceed context limit: 200 + 100 > 256"), "{sum}");
    assert!(sum.message.contains("300") && sum.field.as_deref() == Some("max_tokens"), "{sum}");
    let hot = refusal(request("x", SamplingParams { temperature: f32::NAN, ..greedy(1) }));
    assert_eq!(hot.field.as_deref(), Some("temperature"));
    let mut elsewhere = request("x", greedy(1));
    elsewhere.model = "gpt".to_owned();
    let elsewhere = refusal(elsewhere);
    assert_eq!(elsewhere.kind, RefusalKind::UnknownModel);
    assert!(elsewhere.message.contains("tiny"), "{elsewhere}");
    let mut tokens = request("", greedy(1));
    tokens.prompt = Prompt::Tokens(vec![5, 999]);
    assert!(refusal(tokens).message.contains("999"));
    assert_eq!(engine.status().requests_refused_total, 5);
}

#[test]
fn more_requests_than_places_are_busy() {
    let model = model();
    let few = EngineOptions { sequences_max: 1, waiting_max: 2, ..options(&model) };
    let engine = Engine::load(&few).unwrap();
    let held: Vec<Generation> =
        (0..3).map(|_| start(&engine, request("x", greedy(200))).unwrap()).collect();
    let refused = start(&engine, request("x", greedy(1))).err().unwrap();
    assert_eq!(refused.kind, RefusalKind::Busy);
    drop(held);
    eventually(&engine, |status| status.queue.length == 0);
    assert_eq!(answer(&engine, request("x", greedy(2))).ids.len(), 2, "places are given back");
}

#[test]
fn what_can_be_refused_without_encoding_is() {
    let model = model();
    let gate = Gate::default();
    gate.close();
    let few = EngineOptions {
        sequences_max: 1,
        waiting_max: 1,
        failpoints: Failpoints::default().behind(&gate),
        ..options(&model)
    };
    let engine = Engine::load(&few).unwrap();
    let refused = |prompt: &str| start(&engine, request(prompt, greedy(1))).err().unwrap();
    let (long, before) = ("x".repeat(100_000), engine.status().encoded.texts);
    let too_long = refused(&long);
    assert_eq!(too_long.kind, RefusalKind::TooLong);
    assert!(too_long.message.contains("maximum context length is 256"), "{too_long}");
    assert_eq!(engine.status().encoded.texts, before);
    let _running = start(&engine, request("x", greedy(9))).unwrap();
    eventually(&engine, |status| status.sequences_running == 1);
    let _waiting = start(&engine, request("x", greedy(9))).unwrap();
    assert_eq!(refused(&long).kind, RefusalKind::Busy, "the queue is full");
    assert_eq!(engine.status().encoded.texts, before + 2);
}

#[test]
fn a_failed_step_ends_its_streams_and_nothing_else() {
    let model = model();
    let failing =
        EngineOptions { failpoints: Failpoints::parse("fault@10").unwrap(), ..options(&model) };
    let engine = Engine::load(&failing).unwrap();
    let broken = answer(&engine, request("x", greedy(100)));
    let End::Failed(fault) = broken.end else { panic!("the step was to fail") };
    assert!(fault.0.contains("planned failure"), "{fault}");
    assert!(!broken.ids.is_empty() && broken.ids.len() < 12);
    let whole = answer(&engine, request("x", greedy(100)));
    assert_eq!(whole.ids[..broken.ids.len()], broken.ids, "the next request is served rightly");
    assert_eq!(whole.ids.len(), 100);
    assert_eq!(engine.status().trouble, None, "a good step ends the trouble");
    eventually(&engine, |status| status.kv_blocks_used == 0);
}

/// Steps behind a failed one were planned before it failed: they go on for whoever was not in it.
#[test]
fn a_failed_step_ends_nobody_in_the_steps_behind_it() {
    let model = model();
    let whole = Engine::load(&options(&model)).unwrap();
    let gate = Gate::default();
    gate.close();
    let failing = EngineOptions {
        failpoints: Failpoints::parse("fault@2").unwrap().behind(&gate),
        sequences_max: 2,
        ..options(&model)
    };
    let engine = Engine::load(&failing).unwrap();
    // Two steps of the first are in flight while the others come. When the first of them is over,
    // step 2 is planned for the second alone, for there are two slots; when the other is, step 3
    // for both.
    let first = start(&engine, request("x", greedy(2))).unwrap();
    eventually(&engine, |status| status.resources.command_ring.steps_in_flight == 2);
    let of_second = || request("the second", greedy(50));
    let of_third = || request("the third", greedy(20));
    let second = start(&engine, of_second()).unwrap();
    let third = start(&engine, of_third()).unwrap();
    gate.open();
    assert_eq!(finish(first).ids.len(), 2);
    let End::Failed(fault) = finish(second).end else { panic!("its step was to fail") };
    assert!(fault.0.contains("planned failure of step 2"), "{fault}");
    assert_eq!(finish(third), answer(&whole, of_third()));
    assert_eq!(engine.status().trouble, None);
    assert_eq!(answer(&engine, of_second()), answer(&whole, of_second()));
    eventually(&engine, |status| status.kv_blocks_used == 0);
}

#[test]
fn a_failed_step_leaves_waiting_requests_alone() {
    let model = model();
    let plan = Failpoints::parse("fault@10").unwrap();
    let one = EngineOptions { failpoints: plan, sequences_max: 1, ..options(&model) };
    let engine = Engine::load(&one).unwrap();
    let running = start(&engine, request("x", greedy(100))).unwrap();
    let waiting = start(&engine, request("y", greedy(30))).unwrap();
    assert!(matches!(finish(running).end, End::Failed(_)));
    assert_eq!(finish(waiting).ids.len(), 30);
}

#[test]
fn repeated_faults_open_the_breaker_until_a_trial_succeeds() {
    let model = model();
    let plan: Vec<String> = (0..12).map(|step| format!("fault@{step}")).collect();
    let pause = Duration::from_millis(300);
    let rules = BreakerRules { faults_max: 3, pause, ..BreakerRules::default() };
    let failing = EngineOptions {
        failpoints: Failpoints::parse(&plan.join(",")).unwrap(),
        breaker: rules,
        ..options(&model)
    };
    let engine = Engine::load(&failing).unwrap();
    let (mut refused, mut failed) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    let whole = loop {
        assert!(Instant::now() < deadline, "{:?}", engine.status());
        match start(&engine, request("x", greedy(5))) {
            Err(refusal) => {
                refused += 1;
                assert_eq!(refusal.kind, RefusalKind::Unavailable);
                let rest = refusal.retry_after.unwrap();
                assert!(rest <= pause && refusal.message.contains("repeatedly"), "{refusal:?}");
                let trouble = engine.status().trouble.unwrap();
                assert!(trouble.contains("the device failed repeatedly"), "{trouble}");
                std::thread::sleep(rest);
            }
            Ok(generation) => match finish(generation) {
                Answer { end: End::Failed(_), .. } => failed += 1,
                whole => break whole,
            },
        }
    };
    assert_eq!(whole.ids.len(), 5);
    assert!(refused >= 1 && failed >= 3, "{refused} refused, {failed} failed");
    let status = engine.status();
    assert_eq!((status.breaker, &status.trouble), (BreakerState::Closed, &None));
    assert!(status.breaker_opened_total >= 2, "a failed trial opens it again: {status:?}");
}

#[test]
fn what_needs_no_device_is_not_the_breakers_trial() {
    let model = model();
    let (pause, window) = (Duration::from_millis(50), Duration::from_secs(3600));
    let failing = EngineOptions {
        failpoints: Failpoints::parse("fault@1,fault@2,fault@3").unwrap(),
        breaker: BreakerRules { faults_max: 3, pause, window },
        ..options(&model)
    };
    let engine = Engine::load(&failing).unwrap();
    let known = || GenerateRequest { sharing: SharingMode::On, ..request("known", greedy(1)) };
    let remembered = answer(&engine, known());
    for _ in 0..3 {
        assert!(matches!(answer(&engine, request("x", greedy(1))).end, End::Failed(_)));
    }
    eventually(&engine, |status| status.breaker == BreakerState::HalfOpen);
    let long = start(&engine, request(&"x".repeat(300), greedy(1))).err().unwrap();
    assert_eq!(long.kind, RefusalKind::TooLong, "{long}");
    assert_eq!(answer(&engine, known()), remembered);
    assert_eq!(engine.status().breaker, BreakerState::HalfOpen, "nobody has tried the device");
    assert_eq!(answer(&engine, request("x", greedy(5))).ids.len(), 5, "the trial");
    let status = engine.status();
    assert_eq!((status.breaker, status.breaker_opened_total), (BreakerState::Closed, 1));
    eventually(&engine, |status| status.sharing.hits_total == 1);
}

#[test]
fn a_row_that_cannot_be_sampled_ends_its_stream_alone() {
    let model = model();
    let plan = Failpoints::parse("nan@20").unwrap();
    let failing = EngineOptions { failpoints: plan, ..options(&model) };
    let engine = Engine::load(&failing).unwrap();
    let whole = Engine::load(&options(&model)).unwrap();
    let of = |index: usize| request(&"abcd"[..=index], greedy(100));
    let generations: Vec<Generation> =
        (0..4).map(|index| start(&engine, of(index)).unwrap()).collect();
    let answers: Vec<Answer> = generations.into_iter().map(finish).collect();
    let failed = |answer: &&Answer| matches!(answer.end, End::Failed(_));
    assert_eq!(answers.iter().filter(failed).count(), 1, "one stream, not four");
    for (index, answer) in answers.iter().enumerate().filter(|(_, answer)| !failed(answer)) {
        assert_eq!(*answer, self::answer(&whole, of(index)), "stream {index}");
    }
    assert_eq!(engine.status().trouble, None);
    eventually(&engine, |status| status.kv_blocks_used == 0);
}

#[test]
fn stopping_ends_running_streams() {
    let model = model();
    let slow =
        EngineOptions { failpoints: Failpoints::parse("hang:200@3").unwrap(), ..options(&model) };
    let engine = Engine::load(&slow).unwrap();
    let generation = start(&engine, request("x", greedy(240))).unwrap();
    drop(engine);
    assert!(matches!(finish(generation).end, End::Failed(_)));
}

#[test]
fn an_unreadable_tensor_is_named_at_load() {
    let model = model();
    for read in [0, 7, 19] {
        let plan = Failpoints::parse(&format!("disk@{read}")).unwrap();
        let failing = EngineOptions { failpoints: plan, ..options(&model) };
        let error = Engine::load(&failing).err().expect("a tensor was not readable").to_string();
        assert!(error.contains("weight cannot be read"), "{error}");
    }
}

#[test]
fn a_clock_that_jumps_changes_no_answer() {
    let model = model();
    let usual = Engine::load(&options(&model)).unwrap();
    let plan = Failpoints::parse("clock:-40000000").unwrap();
    let jumped = Engine::load(&EngineOptions { failpoints: plan, ..options(&model) }).unwrap();
    let (usual_time, jumped_time) = (usual.models()[0].created, jumped.models()[0].created);
    assert!((39_999_990..40_000_010).contains(&(usual_time - jumped_time)));
    let of = || request("what time is it", greedy(20));
    assert_eq!(answer(&jumped, of()), answer(&usual, of()));
    assert_eq!(jumped.status().trouble, None);
}
