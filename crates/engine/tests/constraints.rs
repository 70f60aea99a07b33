//! Is a constrained answer what it was asked to be, whatever the model would say, and the same
//! alone, in a batch, with guesses and after being pushed out?

#![allow(clippy::unwrap_used, reason = "tests")]

use engine::{
    End, Engine, EngineOptions, Failpoints, Gate, GenerateRequest, Generation, Prompt, Service,
    Speculation,
};
use messages::{Constraint, FinishReason, Refusal, RefusalKind, SamplingParams};
use serde_json::{Value, json};
use testkit::tiny_model::TinyModel;

/// Random weights: without a constraint, noise. A model that likes blanks has room for them.
fn load(device: &str, change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let model = TinyModel { context: 1024, ..TinyModel::default() };
    std::fs::write(&path, model.to_bytes()).unwrap();
    let mut options = EngineOptions::new(path, "tiny");
    options.device = device.to_owned();
    options.threads = Some(2);
    change(&mut options);
    Engine::load(&options).unwrap()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

fn constraint(index: u32) -> Constraint {
    match index % 4 {
        0 => Constraint::Choice(["positive", "negative", "neutral"].map(str::to_owned).into()),
        1 => Constraint::Regex("[0-9]{3}-[a-f]{2,9}".into()),
        2 => Constraint::Grammar("start: \"(\" number \")\"\nnumber: /[0-9]{1,20}/".into()),
        _ => Constraint::JsonSchema(schema().to_string().into()),
    }
}

fn is_of(index: u32, text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match index % 4 {
        0 => ["positive", "negative", "neutral"].contains(&text),
        1 => text.split_once('-').is_some_and(|(left, right)| {
            left.len() == 3
                && digits(left)
                && (2..=9).contains(&right.len())
                && right.bytes().all(|byte| (b'a'..=b'f').contains(&byte))
        }),
        2 => text
            .strip_prefix('(')
            .and_then(|rest| rest.strip_suffix(')'))
            .is_some_and(|inner| digits(inner) && (1..=20).contains(&inner.len())),
        _ => {
            let value: Value = serde_json::from_str(text).unwrap();
            let name = value["name"].as_str().unwrap();
            let tags = value["tags"].as_array().unwrap();
            value.as_object().unwrap().len() == 3
                && (1..=8).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_lowercase())
                && value["age"].as_u64().unwrap() <= 150
                && tags.len() <= 3
                && tags.iter().all(|tag| tag == "red" || tag == "green")
        }
    }
}

fn request(index: u32) -> GenerateRequest {
    let greedy = SamplingParams { constraint: Some(constraint(index)), ..SamplingParams::greedy() };
    let drawn = SamplingParams { temperature: 1.0, seed: Some(index.into()), ..greedy.clone() };
    let params = match index % 3 {
        0 => greedy,
        1 => drawn,
        _ => SamplingParams { logprobs: Some(2), presence_penalty: 0.5, top_p: 0.9, ..drawn },
    };
    GenerateRequest {
        model: "default".to_owned(),
        prompt: Prompt::Text(format!("{index} red green red green (1) ").repeat(2)),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: messages::CacheNamespace::default(),
        // Each is to be computed.
        sharing: messages::SharingMode::Fresh,
        urgency: engine::Urgency::default(),
    }
}

fn start(engine: &Engine, request: GenerateRequest) -> Result<Generation, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(engine.generate(request))
}

fn finish(mut generation: Generation) -> (String, FinishReason) {
    let mut text = String::new();
    loop {
        let delta = generation.next_blocking().unwrap();
        text.push_str(&delta.text);
        match delta.end {
            Some(End::Finished { reason, .. }) => return (text, reason),
            Some(End::Refused(refusal)) => panic!("{refusal}"),
            Some(End::Failed(fault)) => panic!("{fault}"),
            Some(End::Late(deadline)) => panic!("{}", deadline.text()),
            None => {}
        }
    }
}

#[test]
fn constrained_answers_are_valid_and_the_same_in_every_way_of_computing_them() {
    const COUNT: u32 = 24;
    let plain = load("reference", |options| options.speculation = Speculation::Off);
    // Another device has other sums: its answers may differ, their form may not.
    for index in 0..COUNT {
        let (text, reason) = finish(start(&plain, request(index)).unwrap());
        assert_eq!(reason, FinishReason::Stop, "{index}: {text}");
        assert!(is_of(index, &text), "{index}: {text}");
    }
    drop(plain);
    let mut alone = Vec::new();
    for (kv_cache_bytes, guesses, at_once) in [
        (None, Speculation::Off, 1),
        (None, Speculation::Off, COUNT),
        (None, Speculation::Always, COUNT),
        // A context of keys and values, and little more.
        (Some(280 << 10), Speculation::Always, COUNT),
    ] {
        let gate = Gate::default();
        let engine = load("cpu", |options| {
            options.kv_cache_bytes = kv_cache_bytes;
            options.speculation = guesses;
            // All at once, or answers would not push one another out.
            options.pacing.itl_target = None;
            options.failpoints = Failpoints::default().behind(&gate);
        });
        let mut answers = Vec::new();
        for first in (0..COUNT).step_by(at_once as usize) {
            gate.close();
            let running: Vec<Generation> = (first..first + at_once)
                .map(|index| start(&engine, request(index)).unwrap())
                .collect();
            gate.open();
            answers.extend(running.into_iter().map(finish));
        }
        for (index, (text, reason)) in (0..).zip(&answers) {
            assert_eq!(*reason, FinishReason::Stop, "{index}: {text}");
            assert!(is_of(index, text), "{index}: {text}");
        }
        let status = engine.status();
        assert_eq!(status.preemptions_total > 0, kv_cache_bytes.is_some());
        let checked = status.speculation.accepted_tokens_total;
        assert_eq!(checked > 0, guesses == Speculation::Always, "{checked} right guesses");
        if alone.is_empty() {
            alone.clone_from(&answers);
        }
        assert_eq!(answers, alone, "{at_once} at once, {guesses:?}, {kv_cache_bytes:?}");
    }
}

/// Where a constrained answer is cut, and beside answers that are free.
#[test]
fn free_answers_beside_constrained_ones_stay_as_they_are() {
    let engine = load("cpu", |_| ());
    let free = |index| {
        let mut request = request(index);
        request.params.constraint = None;
        request.params.max_tokens = Some(20);
        request
    };
    let alone: Vec<_> = (0..4).map(|index| finish(start(&engine, free(index)).unwrap())).collect();
    let beside: Vec<Generation> = (0..4)
        .flat_map(|index| [free(index), request(index)])
        .map(|request| start(&engine, request).unwrap())
        .collect();
    let answers: Vec<_> = beside.into_iter().map(finish).collect();
    assert_eq!(answers.iter().step_by(2).cloned().collect::<Vec<_>>(), alone);
    let mut cut = request(3);
    cut.params.max_tokens = Some(2);
    let (text, reason) = finish(start(&engine, cut).unwrap());
    assert_eq!((text.chars().next(), reason), (Some('{'), FinishReason::Length));
}

#[test]
fn what_a_constraint_cannot_do_is_refused() {
    let engine = load("cpu", |_| ());
    let refusal = |change: &dyn Fn(&mut SamplingParams)| {
        let mut request = request(1);
        change(&mut request.params);
        let Err(refusal) = start(&engine, request) else { panic!("it is not refused") };
        assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal:?}");
        (refusal.field.unwrap(), refusal.message)
    };
    assert_eq!(refusal(&|params| params.ignore_eos = true).0, "ignore_eos");
    assert_eq!(refusal(&|params| params.min_tokens = 1).0, "min_tokens");
    let broken = Constraint::Regex("(".into());
    let (field, text) = refusal(&|params| params.constraint = Some(broken.clone()));
    assert!(field == "structured_outputs" && text.contains("regular expression"), "{text}");
    let broken = Constraint::JsonSchema("{\"type\": 1}".into());
    let (field, text) = refusal(&|params| params.constraint = Some(broken.clone()));
    assert!(field == "response_format" && text.contains("JSON schema"), "{text}");
    // The engine serves the next.
    assert!(is_of(1, &finish(start(&engine, request(1)).unwrap()).0));
}
