//! Do priorities, tenants, short prompts and the pace get what they are promised, and is nobody
//! forgotten?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use messages::{
    Limits, Priority, SampledToken, SequenceId, StepIndex, StepPlan, StepResult, TokenEvent,
};
use scheduler::{Pace, Scheduler, SequenceRequest, wait_plans_max};

const LIMITS: Limits = Limits {
    context_tokens_max: 64,
    sequences_max: 4,
    waiting_max: 64,
    aging_plans: 20,
    step_tokens_max: 16,
    proposed_tokens_max: 0,
    block_tokens: 4,
    block_count: 64,
};

fn request(id: u64, prompt: u32, max_tokens: u32) -> SequenceRequest {
    SequenceRequest {
        id: SequenceId(id),
        prompt: (0..prompt).map(|place| 100 * id as u32 + place).collect(),
        max_tokens: Some(max_tokens),
        min_tokens: 0,
        stop_tokens: Vec::new(),
        priority: Priority::Normal,
        tenant: Arc::from(""),
        cache_namespace: Some(Arc::default()),
        restorable: 0..0,
    }
}

fn of(tenant: &str, request: SequenceRequest) -> SequenceRequest {
    SequenceRequest { tenant: Arc::from(tenant), ..request }
}

fn at(priority: Priority, request: SequenceRequest) -> SequenceRequest {
    SequenceRequest { priority, ..request }
}

fn plan_at(scheduler: &mut Scheduler, pace: Pace) -> StepPlan {
    let mut plan = StepPlan::empty(StepIndex(0));
    assert!(scheduler.plan(pace, &mut plan), "there is something to do");
    plan.audit(scheduler.limits().block_tokens);
    scheduler.audit();
    plan
}

fn settle(scheduler: &mut Scheduler, plan: &StepPlan) -> Vec<TokenEvent> {
    let sampled = plan.rows.iter().filter(|row| row.sample_index.is_some());
    let sample =
        |row: &messages::PlanRow| SampledToken { sequence: row.sequence, token: 5, logprob: None };
    let samples = sampled.map(sample).collect();
    let mut events = Vec::new();
    scheduler.settle(&StepResult { step: plan.step, samples }, &mut events);
    scheduler.audit();
    events
}

/// One step, planned and settled.
fn step(scheduler: &mut Scheduler) -> StepPlan {
    let plan = plan_at(scheduler, Pace::FREE);
    settle(scheduler, &plan);
    plan
}

fn length_of(plan: &StepPlan, id: u64) -> u32 {
    plan.rows.iter().filter(|row| row.sequence.0 == id).map(|row| row.length).sum()
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 60, 1)).unwrap();
    step(&mut scheduler);
    scheduler.add(request(2, 5, 1)).unwrap();
    let plan = step(&mut scheduler);
    let short = plan.rows.iter().find(|row| row.sequence.0 == 2).unwrap();
    assert_eq!((short.length, short.sample_index), (5, Some(0)), "read at once");
    assert_eq!(length_of(&plan, 1), 11, "the long one has the rest");
}

#[test]
fn a_long_prompt_moves_beside_any_number_of_short_ones() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 60, 1)).unwrap();
    let mut steps = 0;
    for id in 2.. {
        while scheduler.counts().waiting < 3 {
            scheduler
                .add(request(1000 + id * 7 + scheduler.counts().waiting as u64, 12, 1))
                .unwrap();
        }
        let plan = step(&mut scheduler);
        steps += 1;
        assert!(length_of(&plan, 1) >= 1, "it moves in every step");
        if plan.rows.iter().any(|row| row.sequence.0 == 1 && row.sample_index.is_some()) {
            break;
        }
    }
    assert!(steps <= 20, "60 tokens in {steps} steps of 16");
}

#[test]
fn prompts_keep_to_the_pace_beside_streams_and_only_there() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 4, 40)).unwrap();
    step(&mut scheduler);
    scheduler.add(request(2, 40, 1)).unwrap();
    for (allowed, read) in [(3, 3), (0, 0), (200, 15)] {
        let plan = plan_at(&mut scheduler, Pace { prompt_tokens_max: allowed, ..Pace::FREE });
        assert_eq!((length_of(&plan, 1), length_of(&plan, 2)), (1, read), "{allowed}");
        settle(&mut scheduler, &plan);
    }
    scheduler.cancel(SequenceId(1));
    let plan = plan_at(&mut scheduler, Pace { prompt_tokens_max: 1, ..Pace::FREE });
    assert_eq!(length_of(&plan, 2), 16, "nobody streams");
    settle(&mut scheduler, &plan);
    let plan = plan_at(&mut scheduler, Pace { alone_tokens_max: 2, ..Pace::FREE });
    assert_eq!(length_of(&plan, 2), 2, "nobody streams here, but elsewhere");
}

#[test]
fn the_more_urgent_go_first() {
    let limits = Limits { sequences_max: 1, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    scheduler.add(request(0, 1, 2)).unwrap();
    step(&mut scheduler);
    for (id, priority) in
        [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High), (4, Priority::High)]
    {
        scheduler.add(at(priority, request(id, 2, 1))).unwrap();
    }
    let ahead = [1, 2, 3, 4].map(|id| scheduler.waiting_ahead_of(SequenceId(id)).unwrap());
    assert_eq!(ahead, [3, 2, 0, 1]);
    assert_eq!(scheduler.counts().waiting_by_priority, [1, 1, 2]);
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        let plan = plan_at(&mut scheduler, Pace::FREE);
        order.extend(scheduler.admitted().map(|admission| admission.sequence.0));
        settle(&mut scheduler, &plan);
    }
    // A high one needs no slot of its own kind: 0 gives way, and goes on before 2 and 1.
    assert_eq!(order, [3, 4, 0, 2, 1]);
}

/// With one slot and urgent requests without end, one of low priority is served within the plans
/// by which it ages beyond all of them, and those that the running one still takes.
#[test]
fn low_priority_waits_for_a_number_of_plans_known_beforehand() {
    low_priority_waits(None);
    // Set while it waits, as an engine does that measures how long plans take.
    low_priority_waits(Some(40));
    low_priority_waits(Some(5));
}

fn low_priority_waits(set: Option<u32>) {
    let limits = Limits { sequences_max: 1, ..LIMITS };
    let aging = u64::from(set.unwrap_or(limits.aging_plans));
    let mut scheduler = Scheduler::new(limits);
    scheduler.add(at(Priority::Low, request(1, 2, 1))).unwrap();
    for plans in 0.. {
        while scheduler.counts().waiting < 4 {
            let id = 2 + 10 * plans + scheduler.counts().waiting as u64;
            scheduler.add(at(Priority::High, request(id, 2, 3))).unwrap();
        }
        if plans > 0 {
            step(&mut scheduler);
        }
        set.into_iter().for_each(|plans| scheduler.set_aging(plans));
        if scheduler.waiting_ahead_of(SequenceId(1)).is_none() {
            assert!(plans >= 2 * aging, "priorities mean something: {plans}");
            break;
        }
        assert!(plans <= 3 * aging + 4, "it still waits after {plans} plans");
    }
}

#[test]
fn a_running_prompt_of_low_priority_moves_within_known_plans() {
    let mut scheduler = Scheduler::new(Limits { step_tokens_max: 2, ..LIMITS });
    scheduler.add(at(Priority::Low, request(1, 30, 1))).unwrap();
    step(&mut scheduler);
    let (mut waited, mut most) = (0, 0);
    for id in 2..200 {
        if scheduler.counts().waiting + scheduler.counts().reading < 3 {
            scheduler.add(at(Priority::High, request(id, 40, 1))).unwrap();
        }
        let plan = step(&mut scheduler);
        waited = if length_of(&plan, 1) > 0 { 0 } else { waited + 1 };
        most = most.max(waited);
        if scheduler.counts().finished_total > 0 && length_of(&plan, 1) > 0 {
            break;
        }
    }
    assert!(most > 8, "urgent ones go first: {most}");
    assert!(most <= wait_plans_max(scheduler.limits()), "{most}");
}

/// Tokens computed for each tenant in `steps` steps; `arrive` keeps its requests coming.
fn shares(
    limits: Limits,
    steps: u32,
    mut arrive: impl FnMut(&mut Scheduler, u64),
) -> BTreeMap<u64, u64> {
    let mut scheduler = Scheduler::new(limits);
    let mut tokens: BTreeMap<u64, u64> = BTreeMap::new();
    for number in 0..steps {
        arrive(&mut scheduler, u64::from(number));
        let plan = step(&mut scheduler);
        for row in &plan.rows {
            // The tenant is in the id.
            *tokens.entry(row.sequence.0 % 10).or_default() += u64::from(row.length);
        }
    }
    tokens
}

fn assert_alike(tokens: &BTreeMap<u64, u64>, bound: u64) {
    let (least, most) = (tokens.values().min().unwrap(), tokens.values().max().unwrap());
    assert!(tokens.len() == 2 && most - least <= bound, "{tokens:?}");
}

#[test]
fn fair_shares() {
    // One tenant has eight short requests waiting at any time, the other one long one.
    let tokens = shares(LIMITS, 200, |scheduler, number| {
        for place in 0..8 - scheduler.counts().waiting.min(8) as u64 {
            let id = 10_000 * number + 10 * place;
            let _ = scheduler.add(of("many", request(id, 6, 1)));
        }
        let here = |id| scheduler.waiting_ahead_of(id).is_some();
        let long = (0..=number).map(|number| SequenceId(10_000 * number + 1)).any(here);
        if !long {
            scheduler.add(of("one", request(10_000 * number + 1, 60, 1))).unwrap();
        }
    });
    assert_alike(&tokens, 2 * 64);
}

#[test]
fn slots_go_to_tenants_in_turn() {
    let limits = Limits { sequences_max: 2, ..LIMITS };
    let tokens = shares(limits, 400, |scheduler, number| {
        for place in 0..2 {
            let id = 100 * number + 10 * place;
            if scheduler.counts().waiting < 40 {
                let _ = scheduler.add(of("many", request(id, 2, 20)));
            }
        }
        if number % 20 == 0 {
            let _ = scheduler.add(of("one", request(100 * number + 1, 2, 20)));
            let _ = scheduler.add(of("one", request(100 * number + 11, 2, 20)));
        }
    });
    assert_alike(&tokens, 2 * 64);
}

#[test]
fn streams_that_do_not_all_fit_share_by_tenant() {
    // Four streams, two rows a step: three streams of one tenant get as much as one of another.
    let limits = Limits { step_tokens_max: 2, context_tokens_max: 512, block_count: 600, ..LIMITS };
    let tokens = shares(limits, 300, |scheduler, number| {
        if number == 0 {
            for id in [10, 20, 30] {
                scheduler.add(of("many", request(id, 1, 500))).unwrap();
            }
            scheduler.add(of("one", request(1, 1, 500))).unwrap();
        }
    });
    assert_alike(&tokens, 8);
}

#[test]
fn an_urgent_request_takes_the_place_of_a_less_urgent_one() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 1..=4 {
        scheduler.add(at(Priority::Low, request(id, 4, 30))).unwrap();
    }
    for _ in 0..3 {
        step(&mut scheduler);
    }
    scheduler.add(at(Priority::High, request(9, 4, 3))).unwrap();
    step(&mut scheduler);
    step(&mut scheduler);
    assert_eq!(scheduler.waiting_ahead_of(SequenceId(9)), None, "it runs");
    assert_eq!(scheduler.counts().preemptions_total, 1, "and one made room for it");
    // One of the same priority waits for a slot.
    scheduler.add(at(Priority::Low, request(10, 4, 3))).unwrap();
    step(&mut scheduler);
    step(&mut scheduler);
    assert_eq!(scheduler.counts().preemptions_total, 1);
    while !scheduler.is_idle() {
        step(&mut scheduler);
    }
    assert_eq!(scheduler.counts().finished_total, 6);
}

#[test]
fn nobody_makes_room_in_vain() {
    // 12 of 16 blocks are a high one's, 2 a low one's: without both, one that needs 8 cannot run.
    let limits = Limits { block_count: 16, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    scheduler.add(at(Priority::High, request(1, 44, 8))).unwrap();
    scheduler.add(at(Priority::Low, request(2, 4, 4))).unwrap();
    for _ in 0..4 {
        step(&mut scheduler);
    }
    scheduler.add(at(Priority::High, request(3, 30, 1))).unwrap();
    step(&mut scheduler);
    step(&mut scheduler);
    assert_eq!(scheduler.counts().preemptions_total, 0, "it would not help");
    while !scheduler.is_idle() {
        step(&mut scheduler);
    }
    assert_eq!(scheduler.counts().finished_total, 3);
}

#[test]
fn the_last_in_rank_gives_its_blocks() {
    // Three streams grow to 8 blocks each; 14 are there. The oldest is of low priority, the second
    // of a tenant that had more: neither is the youngest.
    let limits = Limits { block_count: 14, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    scheduler.add(of("one", at(Priority::Low, request(1, 8, 24)))).unwrap();
    step(&mut scheduler);
    scheduler.add(of("many", request(2, 8, 24))).unwrap();
    step(&mut scheduler);
    scheduler.add(of("few", request(3, 8, 24))).unwrap();
    let mut gave_way = Vec::new();
    while !scheduler.is_idle() {
        let before = scheduler.counts().preemptions_total;
        let plan = step(&mut scheduler);
        if scheduler.counts().preemptions_total > before {
            let waits = [1, 2, 3].into_iter().filter(|&id| length_of(&plan, id) == 0);
            gave_way.extend(waits);
        }
    }
    assert_eq!(gave_way.first(), Some(&1), "the low one first: {gave_way:?}");
    assert_eq!(scheduler.counts().finished_total, 3);
}

#[test]
fn a_cancellation_takes_effect_at_the_next_plan() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 1..=2 {
        scheduler.add(request(id, 8, 30)).unwrap();
    }
    let first = plan_at(&mut scheduler, Pace::FREE);
    scheduler.cancel(SequenceId(1));
    let second = plan_at(&mut scheduler, Pace::FREE);
    assert_eq!(length_of(&second, 1), 0, "no row after the cancellation");
    assert!(scheduler.counts().blocks_pending > 0, "the step in flight may still write");
    settle(&mut scheduler, &first);
    let counts = scheduler.counts();
    assert_eq!((counts.blocks_pending, counts.running), (0, 1), "then all is free");
    settle(&mut scheduler, &second);
}

#[test]
fn who_joins_a_sequence_can_make_it_more_urgent() {
    let limits = Limits { sequences_max: 1, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    for (id, priority) in [(1, Priority::Normal), (2, Priority::Low)] {
        scheduler.add(at(priority, request(id, 2, 1))).unwrap();
    }
    scheduler.raise(SequenceId(2), Priority::High);
    scheduler.raise(SequenceId(2), Priority::Low);
    assert_eq!(scheduler.waiting_ahead_of(SequenceId(2)), Some(0));
}

#[test]
fn a_preempted_sequence_takes_back_what_was_kept_for_it() {
    let limits = Limits { block_count: 9, sequences_max: 2, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    scheduler.note_evictions();
    scheduler.add(request(1, 12, 20)).unwrap();
    scheduler.add(request(2, 8, 20)).unwrap();
    let (mut kept, mut restored) = (Vec::new(), 0);
    while !scheduler.is_idle() {
        if let Some(returning) = scheduler.returning() {
            let (id, tokens) = (returning.sequence, returning.tokens.to_vec());
            let namespace = Arc::clone(returning.namespace);
            let cached = scheduler.cached_blocks(&namespace, &tokens[..tokens.len() - 1]) as u32;
            let here = |block: &u32| kept.contains(&tokens[..4 * (*block as usize + 1)].to_vec());
            let end = (cached..(tokens.len() as u32 - 1) / 4).take_while(here).last();
            scheduler.offer_blocks(id, cached..end.map_or(cached, |last| last + 1));
        }
        let plan = plan_at(&mut scheduler, Pace::FREE);
        kept.extend(scheduler.evictions().map(|evicted| evicted.tokens.to_vec()));
        restored += scheduler.admitted().map(|admission| admission.restored.len()).sum::<usize>();
        settle(&mut scheduler, &plan);
    }
    assert!(scheduler.counts().preemptions_total > 0, "the pool was meant to run out");
    assert!(restored > 0, "what was evicted of it was meant to come back");
    assert_eq!(scheduler.counts().returned_blocks_total, restored as u64);
}
