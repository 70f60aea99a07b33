//! Do several models share a process as promised? Tiny models through real engines.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::{
    End, EngineOptions, Failpoints, GenerateRequest, Generation, ModelEntry, ModelPlan, ModelState,
    ModelStatus, Prompt, Registry, RegistryOptions, Service,
};
use messages::{CacheNamespace, Refusal, RefusalKind, SamplingParams, SharingMode};
use testkit::tiny_model::TinyModel;
use tokio::runtime::Runtime;

/// A folder of tiny models, each of its own seed.
fn models(names: &[&str]) -> (tempfile::TempDir, Vec<ModelEntry>) {
    let folder = tempfile::tempdir().unwrap();
    let entry = |(index, name): (usize, &&str)| entry(folder.path(), name, 1 + index as u64);
    let entries = names.iter().enumerate().map(entry).collect();
    (folder, entries)
}

fn entry(folder: &Path, name: &str, seed: u64) -> ModelEntry {
    let path = folder.join(format!("{name}.gguf"));
    std::fs::write(&path, TinyModel { seed, ..TinyModel::default() }.to_bytes()).unwrap();
    let options = EngineOptions { threads: Some(2), ..EngineOptions::new(path, name) };
    ModelEntry { options, pinned: false, idle_max: None }
}

fn failing(entry: ModelEntry, plan: &str) -> ModelEntry {
    let failpoints = Failpoints::parse(plan).unwrap();
    ModelEntry { options: EngineOptions { failpoints, ..entry.options }, ..entry }
}

/// Room for `count` tiny models and a half.
fn room_for(entries: &[ModelEntry], count: u64) -> RegistryOptions {
    let bytes = ModelPlan::read(&entries[0].options).unwrap().memory.peak_bytes();
    let memory_budget_bytes = Some(count * bytes + bytes / 2);
    RegistryOptions { memory_budget_bytes, ..RegistryOptions::default() }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn request(model: &str, prompt: &str, max_tokens: u32) -> GenerateRequest {
    let params = SamplingParams {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..SamplingParams::greedy()
    };
    GenerateRequest {
        model: model.to_owned(),
        prompt: Prompt::Text(prompt.to_owned()),
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        // What is computed is what is tested.
        sharing: SharingMode::Off,
        urgency: engine::Urgency::default(),
    }
}

fn start(registry: &Registry, request: GenerateRequest) -> Result<Generation, Refusal> {
    runtime().block_on(registry.generate(request))
}

/// The ids of a whole answer.
fn finish(mut generation: Generation) -> Vec<u32> {
    let mut ids = Vec::new();
    while let Some(delta) = generation.next_blocking() {
        ids.extend(delta.tokens.iter().map(|token| token.id));
        if let Some(End::Failed(fault)) = delta.end {
            panic!("{fault}");
        }
    }
    ids
}

fn answer(registry: &Registry, model: &str, prompt: &str) -> Vec<u32> {
    finish(start(registry, request(model, prompt, 20)).unwrap())
}

fn status(registry: &Registry, name: &str) -> ModelStatus {
    let mut statuses = registry.model_statuses().into_iter();
    statuses.find(|status| status.card.id == name).unwrap()
}

fn until(registry: &Registry, name: &str, state: &ModelState) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(registry, name).state != *state {
        assert!(Instant::now() < deadline, "{name} never: {:?}", status(registry, name));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn requests_for_an_unloaded_model_cause_one_load() {
    let (_folder, entries) = models(&["a", "b"]);
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    assert_eq!(status(&registry, "b").state, ModelState::Unloaded);
    let asked: Vec<_> = (0..8).map(|_| registry.generate(request("b", "x", 5))).collect();
    let runtime = runtime();
    let generations: Vec<Generation> =
        asked.into_iter().map(|asked| runtime.block_on(asked).unwrap()).collect();
    assert_eq!(status(&registry, "b").leases, 8);
    let answers: Vec<Vec<u32>> = generations.into_iter().map(finish).collect();
    assert!(answers.iter().all(|ids| ids.len() == 5 && *ids == answers[0]));
    let after = status(&registry, "b");
    assert_eq!((after.loads_total, after.leases, after.state), (1, 0, ModelState::Ready));
    assert_eq!(status(&registry, "a").loads_total, 0, "nobody asked");
}

#[test]
fn a_heap_without_room_refuses_one_model_and_nothing_else() {
    let (_folder, mut entries) = models(&["a", "b"]);
    entries[1].options.heap_pool.heap_bytes = Some(1 << 16);
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    let expected = answer(&registry, "a", "x");
    let running = start(&registry, request("a", "x", 60)).unwrap();
    let refused = start(&registry, request("b", "x", 5)).err().unwrap();
    assert!(refused.message.contains("heap_pool.heap_size_mb"), "{refused}");
    assert_eq!(finish(running)[..20], expected, "the other goes on");
    assert_eq!(answer(&registry, "a", "x"), expected);
}

#[test]
fn more_requests_than_places_may_not_wait_for_a_load() {
    let (_folder, mut entries) = models(&["a"]);
    (entries[0].options.sequences_max, entries[0].options.waiting_max) = (1, 2);
    let slow = failing(entries.remove(0), "hang:200@0");
    let registry = Registry::start(vec![slow], RegistryOptions::default()).unwrap();
    let asked: Vec<_> = (0..3).map(|_| registry.generate(request("a", "x", 5))).collect();
    let refused = start(&registry, request("a", "x", 5)).err().unwrap();
    assert_eq!(refused.kind, RefusalKind::Busy, "{refused}");
    let runtime = runtime();
    for asked in asked {
        assert_eq!(finish(runtime.block_on(asked).unwrap()).len(), 5);
    }
}

#[test]
fn leased_model_stays() {
    let (_folder, mut entries) = models(&["a", "b", "c"]);
    // Nothing bounds a wait, so nobody waits for requests to end.
    entries.iter_mut().for_each(|entry| entry.options.queue_time_max = None);
    let options = room_for(&entries, 2);
    let budget = options.memory_budget_bytes.unwrap();
    let registry = Registry::start(entries, options).unwrap();
    let first = answer(&registry, "a", "x");
    let held = start(&registry, request("b", "x", 200)).unwrap();
    answer(&registry, "c", "x");
    assert_eq!(status(&registry, "a").state, ModelState::Unloaded, "the idle one");
    assert_eq!(status(&registry, "b").state, ModelState::Ready, "the one with a request");
    assert!(registry.memory().held_bytes <= budget);
    let also_held = start(&registry, request("c", "x", 200)).unwrap();
    let refused = start(&registry, request("a", "x", 5)).err().unwrap();
    assert_eq!(refused.kind, RefusalKind::Unavailable);
    let needed = status(&registry, "a").memory_estimate.peak_bytes();
    for number in [needed, budget] {
        assert!(refused.message.contains(&number.to_string()), "{refused}");
    }
    drop((held, also_held));
    assert_eq!(answer(&registry, "a", "x"), first, "the same model as before");
    let again = status(&registry, "a");
    assert_eq!(again.loads_total, 2);
    assert_eq!(again.engine.requests_total, 2, "counters outlive an engine");
}

#[test]
fn a_model_without_room_waits_until_others_are_done() {
    let (_folder, mut entries) = models(&["a", "b"]);
    entries
        .iter_mut()
        .for_each(|entry| entry.options.queue_time_max = Some(Duration::from_mins(1)));
    let options = room_for(&entries, 1);
    let registry = Registry::start(entries, options).unwrap();
    let held = start(&registry, request("b", "x", 200)).unwrap();
    let asked = registry.generate(request("a", "x", 5));
    let refused = registry.load_blocking("a").unwrap_err();
    assert!(refused.contains("memory_budget_mb"), "an operator is told at once: {refused}");
    drop(held);
    assert_eq!(finish(runtime().block_on(asked).unwrap()).len(), 5);
    assert_eq!(status(&registry, "b").state, ModelState::Unloaded);
}

#[test]
fn a_model_that_can_never_fit_is_refused_with_the_numbers() {
    let (_folder, entries) = models(&["a"]);
    let options = RegistryOptions { memory_budget_bytes: Some(1000), ..RegistryOptions::default() };
    let registry = Registry::start(entries, options).unwrap();
    let refused = registry.load_blocking("a").unwrap_err();
    assert!(
        refused.contains("budget is 1000") && refused.contains("memory_budget_mb"),
        "{refused}"
    );
    assert_eq!(status(&registry, "a").state, ModelState::Unloaded);
}

#[test]
fn a_failed_load_is_remembered_for_a_while_and_disturbs_nobody() {
    let (_folder, mut entries) = models(&["good", "bad"]);
    let bad = failing(entries.pop().unwrap(), "disk@3");
    entries.push(bad);
    let failure_rest = Duration::from_secs(3600);
    let options = RegistryOptions { failure_rest, ..RegistryOptions::default() };
    let registry = Registry::start(entries, options).unwrap();
    let good = answer(&registry, "good", "x");
    let (one, other) = (request("bad", "x", 5), request("bad", "y", 5));
    let waiting = [registry.generate(one), registry.generate(other)];
    for asked in waiting {
        let refused = runtime().block_on(asked).err().unwrap();
        assert!(refused.message.contains("cannot be read"), "{refused}");
        assert!(refused.retry_after.unwrap() <= failure_rest);
    }
    let ModelState::Failed { why } = status(&registry, "bad").state else { panic!("it failed") };
    assert!(why.contains("cannot be read"), "{why}");
    assert_eq!(answer(&registry, "good", "x"), good);
    let at_once = start(&registry, request("bad", "x", 5)).err().unwrap();
    assert!(at_once.retry_after.is_some());
    assert_eq!(status(&registry, "bad").load_failures_total, 1, "not tried again yet");
}

#[test]
fn a_failed_load_is_tried_again_after_its_rest() {
    let (_folder, mut entries) = models(&["bad"]);
    let bad = failing(entries.remove(0), "disk@3");
    let failure_rest = Duration::from_millis(1);
    let options = RegistryOptions { failure_rest, ..RegistryOptions::default() };
    let registry = Registry::start(vec![bad], options).unwrap();
    for tries in 1..4 {
        assert!(start(&registry, request("bad", "x", 5)).is_err());
        assert_eq!(status(&registry, "bad").load_failures_total, tries);
        std::thread::sleep(failure_rest);
    }
}

#[test]
fn idle_models_leave_and_pinned_ones_stay() {
    let (_folder, mut entries) = models(&["a", "b"]);
    for entry in &mut entries {
        entry.idle_max = Some(Duration::from_millis(50));
    }
    entries[0].pinned = true;
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    answer(&registry, "a", "x");
    let held = start(&registry, request("b", "x", 200)).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(status(&registry, "b").state, ModelState::Ready, "it has a request");
    drop(held);
    until(&registry, "b", &ModelState::Unloaded);
    assert_eq!(status(&registry, "a").state, ModelState::Ready, "it is pinned");
}

#[test]
fn blocks_outside_the_device_count_in_the_budget() {
    let (_folder, mut entries) = models(&["a"]);
    entries[0].options.kv_tiers.ram_bytes = 64 << 20;
    let planned = ModelPlan::read(&entries[0].options).unwrap().memory;
    assert!(planned.tiers_bytes().abs_diff(64 << 20) < 1 << 20, "{planned}");
    let within = |bytes: u64| {
        let options =
            RegistryOptions { memory_budget_bytes: Some(bytes), ..RegistryOptions::default() };
        Registry::start(entries.clone(), options).unwrap()
    };
    let refused = within(planned.peak_bytes() - 1).load_blocking("a").unwrap_err();
    assert!(refused.contains("the memory budget is"), "{refused}");
    let registry = within(planned.peak_bytes());
    registry.load_blocking("a").unwrap();
    assert_eq!(registry.memory().held_bytes, planned.resident_bytes());
    let used = status(&registry, "a").memory_used.unwrap();
    assert_eq!(used.tiers_bytes(), planned.tiers_bytes());
}

#[test]
fn orders_load_and_unload() {
    let (_folder, entries) = models(&["a"]);
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    let runtime = runtime();
    let loaded = runtime.block_on(registry.load_model("a")).unwrap();
    assert_eq!(loaded.state, ModelState::Ready);
    assert_eq!(
        loaded.memory_used.unwrap().resident_bytes(),
        loaded.memory_estimate.resident_bytes()
    );
    // A step at least is through, whenever the next request is dropped.
    answer(&registry, "a", "hello");
    let held = start(&registry, request("a", "x", 200)).unwrap();
    let refused = runtime.block_on(registry.unload_model("a")).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Conflict, "it is no matter of rate");
    assert!(refused.message.starts_with("1 request is using `a`"), "{refused}");
    drop(held);
    let unloaded = runtime.block_on(registry.unload_model("default")).unwrap();
    assert_eq!((unloaded.state, unloaded.memory_used), (ModelState::Unloaded, None));
    assert_eq!(registry.memory().held_bytes, 0);
    // Of what it had nothing is told any more, of what it did everything.
    let resources = registry.status().resources;
    let heaps = resources.heap_pool;
    assert_eq!(
        (heaps.heaps, heaps.reserved_bytes, heaps.used_bytes, heaps.free_bytes),
        (0, 0, 0, 0)
    );
    assert!(heaps.carved_total > 0 && heaps.carved_total == heaps.freed_total);
    assert_eq!((resources.command_ring.steps_in_flight, resources.staging.buffers), (0, 0));
    assert!(resources.command_ring.steps_total > 0);
    let unknown = runtime.block_on(registry.load_model("b")).unwrap_err();
    assert_eq!(unknown.kind, RefusalKind::UnknownModel);
}

#[test]
fn models_side_by_side_answer_as_they_do_alone() {
    let (_folder, entries) = models(&["a", "b"]);
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    let names = ["a", "b"];
    let alone: Vec<Vec<u32>> = names.iter().map(|name| answer(&registry, name, "hello")).collect();
    assert_ne!(alone[0], alone[1], "two models");
    std::thread::scope(|scope| {
        for (name, alone) in names.iter().zip(&alone) {
            for _ in 0..3 {
                let registry = &registry;
                scope.spawn(move || {
                    for _ in 0..5 {
                        assert_eq!(answer(registry, name, "hello"), *alone);
                    }
                });
            }
        }
    });
}

#[test]
fn models_that_come_and_go_are_noticed() {
    let (folder, entries) = models(&["a"]);
    let found = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&found);
    let discover = Box::new(move || seen.lock().unwrap().clone());
    let options = RegistryOptions { discover: Some(discover), ..RegistryOptions::default() };
    let registry = Registry::start(entries, options).unwrap();
    assert_eq!(
        start(&registry, request("b", "x", 5)).err().unwrap().kind,
        RefusalKind::UnknownModel
    );
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF").unwrap();
    found.lock().unwrap().extend([
        ModelEntry { options: EngineOptions::new(broken, "broken"), pinned: false, idle_max: None },
        entry(folder.path(), "b", 7),
    ]);
    let names = |registry: &Registry| -> Vec<String> {
        registry.models().into_iter().map(|card| card.id).collect()
    };
    let until_named = |expected: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while names(&registry) != expected {
            assert!(Instant::now() < deadline, "{:?}", names(&registry));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until_named(&["a", "b"]);
    assert_eq!(answer(&registry, "b", "x").len(), 20);
    found.lock().unwrap().clear();
    runtime().block_on(registry.unload_model("b")).unwrap();
    until_named(&["a"]);
}

#[test]
fn a_stop_ends_streams_and_those_who_wait() {
    let (_folder, mut entries) = models(&["a", "b"]);
    let slow = failing(entries.remove(0), "hang:100@8,hang:100@9,hang:100@10,hang:100@11");
    entries.insert(0, slow);
    let registry = Registry::start(entries, RegistryOptions::default()).unwrap();
    let mut running = start(&registry, request("a", "x", 200)).unwrap();
    running.next_blocking().unwrap();
    registry.stop();
    let end = loop {
        if let Some(end) = running.next_blocking().expect("an end").end {
            break end;
        }
    };
    let End::Failed(fault) = end else { panic!("it was cut off") };
    assert!(fault.0.contains("the server is stopping"), "{fault}");
    let late = start(&registry, request("b", "x", 5)).err().unwrap();
    assert_eq!(late.kind, RefusalKind::Unavailable);
    drop(registry);
}

#[test]
fn two_models_of_one_name_are_refused() {
    let (_folder, entries) = models(&["a", "a"]);
    let refused = Registry::start(entries, RegistryOptions::default()).err().unwrap().to_string();
    assert!(refused.contains("`a`"), "{refused}");
}
