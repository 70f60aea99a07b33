//! Do sequences that carry a state start where one was kept, and is it kept where others start?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::Range;
use std::sync::Arc;

use messages::{
    CacheNamespace, Limits, Priority, SampledToken, SequenceId, SlotIndex, StateIndex, StateMove,
    StepIndex, StepPlan, StepResult, TokenId,
};
use scheduler::{Pace, Scheduler, SequenceRequest};

const LIMITS: Limits = Limits {
    context_tokens_max: 64,
    sequences_max: 2,
    waiting_max: 8,
    aging_plans: 100,
    step_tokens_max: 20,
    proposed_tokens_max: 4,
    block_tokens: 4,
    block_count: 32,
};

fn carrying(states: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.keep_states(states);
    scheduler
}

fn add(scheduler: &mut Scheduler, id: u64, prompt: Vec<TokenId>, namespace: Option<&str>) {
    offer(scheduler, id, prompt, (namespace, 0..0));
}

/// The same with blocks, and a state at their end, that are elsewhere.
fn offer(
    scheduler: &mut Scheduler,
    id: u64,
    prompt: Vec<TokenId>,
    (namespace, restorable): (Option<&str>, Range<u32>),
) {
    let of = |tenant: &str| CacheNamespace { tenant: tenant.to_owned(), ..Default::default() };
    let request = SequenceRequest {
        id: SequenceId(id),
        prompt,
        max_tokens: Some(2),
        min_tokens: 0,
        stop_tokens: Vec::new(),
        cache_namespace: namespace.map(|tenant| Arc::new(of(tenant))),
        restorable,
        priority: Priority::Normal,
        tenant: Arc::from(""),
    };
    scheduler.add(request).unwrap();
}

fn plan(scheduler: &mut Scheduler) -> Option<StepPlan> {
    let mut plan = StepPlan::empty(StepIndex(0));
    let planned = scheduler.plan(Pace::FREE, &mut plan);
    plan.audit(LIMITS.block_tokens);
    scheduler.audit();
    planned.then_some(plan)
}

fn settle(scheduler: &mut Scheduler, plan: &StepPlan) {
    let sampled = plan.rows.iter().filter(|row| row.sample_index.is_some());
    let sample = |sequence| SampledToken { sequence, token: 1, logprob: None };
    let samples = sampled.map(|row| sample(row.sequence)).collect();
    scheduler.settle(&StepResult { step: plan.step, samples }, &mut Vec::new());
    scheduler.audit();
}

/// `(start, length)` of each row and the moves of states, until the sequences have ended.
type Story = (Vec<(u32, u32)>, Vec<StateMove>);

fn story(scheduler: &mut Scheduler) -> Story {
    let (mut rows, mut moves) = (Vec::new(), Vec::new());
    while let Some(plan) = plan(scheduler) {
        rows.extend(plan.rows.iter().map(|row| (row.start, row.length)));
        moves.extend_from_slice(&plan.states);
        settle(scheduler, &plan);
    }
    assert!(scheduler.is_idle());
    (rows, moves)
}

fn text(length: u32, seed: u32) -> Vec<TokenId> {
    (0..length).map(|place| seed + place).collect()
}

fn save(state: u32) -> StateMove {
    StateMove::Save { from: SlotIndex(0), to: StateIndex(state) }
}

fn load(state: u32) -> StateMove {
    StateMove::Load { from: StateIndex(state), to: SlotIndex(0) }
}

#[test]
fn a_prompt_is_cut_where_its_state_is_kept() {
    let mut scheduler = carrying(4);
    // 3 of 18 tokens before the last are left behind: 12 is the last border before them.
    add(&mut scheduler, 1, text(18, 100), Some(""));
    assert_eq!(story(&mut scheduler), (vec![(0, 12), (12, 6), (18, 1)], vec![save(0)]));
    // The same again starts there, and so does what goes on.
    add(&mut scheduler, 2, text(18, 100), Some(""));
    assert_eq!(story(&mut scheduler), (vec![(12, 6), (18, 1)], vec![load(0)]));
    add(&mut scheduler, 3, text(40, 100), Some(""));
    let (rows, moves) = story(&mut scheduler);
    // It parts from theirs at 16, and ends before 36.
    assert_eq!(rows, [(12, 4), (16, 20), (36, 4), (40, 1)]);
    assert_eq!(moves, [load(0), save(1), save(2)]);
    // Another tenant finds nothing, and who shares nothing leaves nothing.
    add(&mut scheduler, 4, text(18, 100), Some("ann"));
    assert_eq!(story(&mut scheduler).1, [save(3)]);
    add(&mut scheduler, 5, text(18, 100), None);
    assert_eq!(story(&mut scheduler), (vec![(0, 18), (18, 1)], vec![]));
}

#[test]
fn a_state_is_kept_where_texts_part() {
    let mut scheduler = carrying(4);
    let after = |seed| [text(9, 100), text(9, seed)].concat();
    add(&mut scheduler, 1, after(200), Some(""));
    assert_eq!(story(&mut scheduler).1, [save(0)]);
    // The second has the first 8 in common, where no state is; it leaves one there.
    add(&mut scheduler, 2, after(300), Some(""));
    let (rows, moves) = story(&mut scheduler);
    assert_eq!(rows, [(0, 8), (8, 4), (12, 6), (18, 1)]);
    assert_eq!(moves, [save(1), save(2)]);
    add(&mut scheduler, 3, after(400), Some(""));
    let (rows, moves) = story(&mut scheduler);
    assert_eq!((rows[0], moves[0]), ((8, 4), load(1)));
}

#[test]
fn what_was_cancelled_leaves_no_state() {
    let mut scheduler = carrying(1);
    add(&mut scheduler, 1, text(18, 100), Some(""));
    let first = plan(&mut scheduler).unwrap();
    assert_eq!(first.states, [save(0)]);
    scheduler.cancel(SequenceId(1));
    settle(&mut scheduler, &first);
    add(&mut scheduler, 2, text(18, 100), Some(""));
    assert_eq!(story(&mut scheduler), (vec![(0, 12), (12, 6), (18, 1)], vec![save(0)]));
}

/// Rows, and what the first plan copies in: blocks, and whether a state.
fn with_copies(scheduler: &mut Scheduler) -> (Vec<(u32, u32)>, Range<u32>, bool) {
    let first = plan(scheduler).unwrap();
    let admission = scheduler.admitted().next().unwrap();
    let (restored, takes_state) = (admission.restored, admission.takes_state);
    assert!(
        !takes_state || first.states.iter().all(|copy| !matches!(copy, StateMove::Load { .. }))
    );
    let mut rows: Vec<_> = first.rows.iter().map(|row| (row.start, row.length)).collect();
    settle(scheduler, &first);
    rows.extend(story(scheduler).0);
    (rows, restored, takes_state)
}

#[test]
fn states_are_told_when_they_go_and_taken_when_they_come_back() {
    let mut scheduler = carrying(1);
    scheduler.note_evictions();
    add(&mut scheduler, 1, text(18, 100), Some(""));
    assert_eq!(story(&mut scheduler).1, [save(0)]);
    // One place: another's state takes it, and the first is told with its prefix.
    add(&mut scheduler, 2, text(18, 300), Some(""));
    let first = plan(&mut scheduler).unwrap();
    let lost: Vec<_> =
        scheduler.lost_states().map(|lost| (lost.state, lost.tokens.to_vec())).collect();
    assert_eq!(lost, [(StateIndex(0), text(12, 100))]);
    assert_eq!(scheduler.evictions().count(), 0, "its blocks are here");
    settle(&mut scheduler, &first);
    story(&mut scheduler);
    // It comes back alone, for its blocks are here, or with them to who shares nothing with others.
    let again = |scheduler: &mut Scheduler, id, tenant, offered| {
        offer(scheduler, id, text(18, 100), (Some(tenant), offered));
        with_copies(scheduler)
    };
    let rest = vec![(12, 6), (18, 1)];
    assert_eq!(again(&mut scheduler, 3, "", 3..3), (rest.clone(), 3..3, true));
    assert_eq!(again(&mut scheduler, 4, "ann", 0..3), (rest, 0..3, true));
    // What begins behind what is here is nothing; nor is what ends in the last token.
    let all = vec![(0, 12), (12, 6), (18, 1)];
    assert_eq!(again(&mut scheduler, 5, "ben", 1..3), (all.clone(), 0..0, false));
    assert_eq!(again(&mut scheduler, 6, "cid", 0..5), (all, 0..0, false));
}

#[test]
fn without_places_nothing_is_kept_and_nothing_found() {
    let mut scheduler = carrying(0);
    for id in 1..3 {
        add(&mut scheduler, id, text(18, 100), Some(""));
        let (rows, moves) = story(&mut scheduler);
        assert_eq!((rows[0].0, moves), (0, vec![]));
    }
}
