//! Are steps filled, sequences ended, refused, cancelled and preempted as the documents say?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use messages::{
    BlockIndex, CacheNamespace, CachedEnd, FinishReason, Limits, Priority, RefusalKind,
    SampledToken, SequenceId, SlotIndex, StepIndex, StepPlan, StepResult, TokenEvent, TokenSource,
};
use scheduler::{Pace, STEPS_IN_FLIGHT_MAX, Scheduler, SequenceRequest, host_bytes_max};

const LIMITS: Limits = Limits {
    context_tokens_max: 32,
    sequences_max: 4,
    waiting_max: 3,
    aging_plans: 100,
    step_tokens_max: 8,
    proposed_tokens_max: 4,
    block_tokens: 4,
    block_count: 16,
};

fn request(id: u64, prompt: u32, max_tokens: u32) -> SequenceRequest {
    SequenceRequest {
        id: SequenceId(id),
        prompt: (0..prompt).map(|place| 100 * id as u32 + place).collect(),
        max_tokens: Some(max_tokens),
        min_tokens: 0,
        stop_tokens: vec![7],
        cache_namespace: Some(Default::default()),
        restorable: 0..0,
        priority: Priority::Normal,
        tenant: Arc::from(""),
    }
}

fn plan(scheduler: &mut Scheduler) -> StepPlan {
    let mut plan = StepPlan::empty(StepIndex(0));
    assert!(scheduler.plan(Pace::FREE, &mut plan), "there is something to do");
    plan.audit(scheduler.limits().block_tokens);
    scheduler.audit();
    plan
}

/// `(sequence, start, length, sample_index)` of each row.
fn rows(plan: &StepPlan) -> Vec<(u64, u32, u32, Option<u32>)> {
    plan.rows.iter().map(|row| (row.sequence.0, row.start, row.length, row.sample_index)).collect()
}

/// The device says `token` in every row that samples.
fn settle(scheduler: &mut Scheduler, plan: &StepPlan, token: u32) -> Vec<TokenEvent> {
    let sampled = plan.rows.iter().filter(|row| row.sample_index.is_some());
    let samples =
        sampled.map(|row| SampledToken { sequence: row.sequence, token, logprob: None }).collect();
    let mut events = Vec::new();
    scheduler.settle(&StepResult { step: plan.step, samples }, &mut events);
    scheduler.audit();
    events
}

fn available(scheduler: &Scheduler) -> usize {
    let counts = scheduler.counts();
    counts.blocks_free + counts.blocks_cached
}

fn finishes(events: &[TokenEvent]) -> Vec<(u64, Option<FinishReason>)> {
    events.iter().map(|event| (event.sequence.0, event.finish)).collect()
}

#[test]
fn a_prompt_is_read_in_chunks_and_its_last_one_samples() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 11, 2)).unwrap();
    let first = plan(&mut scheduler);
    assert_eq!(rows(&first), [(1, 0, 8, None)]);
    assert_eq!(first.tokens[7], TokenSource::Known(107));
    let admitted: Vec<_> = scheduler.admitted().collect();
    assert_eq!(admitted.len(), 1);
    assert_eq!((admitted[0].slot, admitted[0].prompt.len()), (SlotIndex(0), 11));

    let second = plan(&mut scheduler);
    assert_eq!(rows(&second), [(1, 8, 3, Some(0))]);
    assert_eq!(scheduler.admitted().count(), 0);
    assert!(settle(&mut scheduler, &first, 5).is_empty());

    let third = plan(&mut scheduler);
    assert_eq!(rows(&third), [(1, 11, 1, Some(1))]);
    assert_eq!(third.tokens, [TokenSource::Slot(SlotIndex(0))], "its token is on its way");
    assert_eq!(finishes(&settle(&mut scheduler, &second, 5)), [(1, None)]);
    let nothing_more = !scheduler.plan(Pace::FREE, &mut StepPlan::empty(StepIndex(0)));
    assert!(nothing_more, "max_tokens is known when planning");
    let events = settle(&mut scheduler, &third, 6);
    assert_eq!(finishes(&events), [(1, Some(FinishReason::Length))]);
    assert!(scheduler.is_idle());
    assert_eq!(available(&scheduler), 16);
}

#[test]
fn a_prompt_is_read_in_one_step_where_its_tokens_see_all_of_it() {
    let mut scheduler = Scheduler::new(Limits { context_tokens_max: 9, ..LIMITS });
    scheduler.read_whole();
    for (id, tokens) in [(1, 5), (2, 4), (3, 3)] {
        scheduler.add(request(id, tokens, 1)).unwrap();
    }
    // The second would begin in the first step's last three tokens, and may not.
    let first = plan(&mut scheduler);
    assert_eq!(rows(&first), [(1, 0, 5, Some(0))]);
    let second = plan(&mut scheduler);
    assert_eq!(rows(&second), [(2, 0, 4, Some(0)), (3, 0, 3, Some(0))]);
    let length = Some(FinishReason::Length);
    assert_eq!(finishes(&settle(&mut scheduler, &first, 1)), [(1, length)]);
    assert_eq!(finishes(&settle(&mut scheduler, &second, 1)), [(2, length), (3, length)]);
    assert!(scheduler.is_idle());
}

#[test]
fn streams_come_first_and_leave_room_for_a_prompt() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 1..=3 {
        scheduler.add(request(id, 2, 9)).unwrap();
    }
    let first = plan(&mut scheduler);
    assert_eq!(rows(&first), [(1, 0, 2, Some(0)), (2, 0, 2, Some(0)), (3, 0, 2, Some(0))]);
    settle(&mut scheduler, &first, 5);
    scheduler.add(request(4, 20, 9)).unwrap();
    let second = plan(&mut scheduler);
    let streams = [(1, 2, 1, Some(1)), (2, 2, 1, Some(1)), (3, 2, 1, Some(1))];
    assert_eq!(rows(&second)[..3], streams);
    assert_eq!(rows(&second)[3], (4, 0, 5, None));
    assert_eq!(second.tokens[0], TokenSource::Known(5), "settled, so known");
}

#[test]
fn fewer_run_when_fewer_may() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 1..=3 {
        scheduler.add(request(id, 2, 2)).unwrap();
    }
    scheduler.limit_running(1);
    for id in 1..=3 {
        for _ in 0..2 {
            let one = plan(&mut scheduler);
            assert_eq!(one.rows.iter().map(|row| row.sequence.0).collect::<Vec<_>>(), [id]);
            settle(&mut scheduler, &one, 5);
        }
    }
    assert!(scheduler.is_idle());
    scheduler.add(request(4, 2, 9)).unwrap();
    scheduler.add(request(5, 2, 9)).unwrap();
    scheduler.limit_running(2);
    let both = plan(&mut scheduler);
    assert_eq!(both.rows.len(), 2);
    settle(&mut scheduler, &both, 5);
    scheduler.limit_running(1);
    assert_eq!(plan(&mut scheduler).rows.len(), 2, "who runs stays");
}

#[test]
fn streams_take_turns_when_not_all_fit() {
    let limits = Limits { step_tokens_max: 2, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    for id in 1..=3 {
        scheduler.add(request(id, 1, 9)).unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        let plan = plan(&mut scheduler);
        order.extend(plan.rows.iter().map(|row| row.sequence.0));
        settle(&mut scheduler, &plan, 5);
    }
    for id in 1..=3 {
        let turns = order.iter().filter(|&&other| other == id).count();
        assert!(turns >= 4, "{id} had {turns} of 16 rows: {order:?}");
    }
}

#[test]
fn a_stop_token_ends_and_the_row_after_it_is_dropped() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 4, 9)).unwrap();
    let first = plan(&mut scheduler);
    let second = plan(&mut scheduler);
    assert_eq!(rows(&second), [(1, 4, 1, Some(1))]);
    let events = settle(&mut scheduler, &first, 7);
    assert_eq!(finishes(&events), [(1, Some(FinishReason::Stop))]);
    let counts = scheduler.counts();
    assert_eq!((counts.running, counts.blocks_pending), (1, 2), "the second step still uses them");
    assert!(settle(&mut scheduler, &second, 5).is_empty());
    assert!(scheduler.is_idle());
    assert_eq!(available(&scheduler), 16);
}

#[test]
fn a_stop_token_before_min_tokens_is_an_ordinary_token() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(SequenceRequest { min_tokens: 1, ..request(1, 4, 9) }).unwrap();
    let first = plan(&mut scheduler);
    assert_eq!(finishes(&settle(&mut scheduler, &first, 7)), [(1, None)]);
    let second = plan(&mut scheduler);
    let events = settle(&mut scheduler, &second, 7);
    assert_eq!(finishes(&events), [(1, Some(FinishReason::Stop))]);
}

#[test]
fn an_answer_without_a_limit_ends_with_the_context() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(SequenceRequest { max_tokens: None, ..request(1, 30, 1) }).unwrap();
    let mut events = Vec::new();
    while !scheduler.is_idle() {
        let plan = plan(&mut scheduler);
        events.extend(settle(&mut scheduler, &plan, 5));
    }
    assert_eq!(finishes(&events), [(1, None), (1, Some(FinishReason::Length))]);
}

#[test]
fn what_can_never_run_is_refused_with_both_numbers() {
    let limits = Limits { block_count: 3, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    let mut check = |request, field: &str, words: &[&str]| {
        let refusal = scheduler.add(request).unwrap_err();
        let is_too_long = refusal.message.contains("too long");
        let kind = if is_too_long { RefusalKind::TooLong } else { RefusalKind::Invalid };
        assert_eq!(refusal.kind, kind, "{refusal}");
        assert_eq!(refusal.field.as_deref(), Some(field), "{refusal}");
        assert!(words.iter().all(|word| refusal.message.contains(word)), "{refusal}");
    };
    check(request(1, 0, 1), "prompt", &["empty"]);
    check(request(1, 32, 1), "prompt", &["too long", "32"]);
    check(request(1, 40, 1), "prompt", &["too long", "40", "32"]);
    check(request(1, 12, 1), "prompt", &["13", "12"]);
    check(request(1, 6, 7), "max_tokens", &["13", "12"]);
    check(request(1, 6, 0), "max_tokens", &["at least 1"]);
    assert!(scheduler.is_idle());
    assert!(scheduler.add(request(1, 6, 6)).is_ok());
}

#[test]
fn a_large_request_is_not_overtaken() {
    let limits = Limits { block_count: 8, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    scheduler.add(request(1, 6, 4)).unwrap();
    scheduler.add(request(2, 28, 1)).unwrap();
    scheduler.add(request(3, 1, 1)).unwrap();
    let mut seen = Vec::new();
    while !scheduler.is_idle() {
        let plan = plan(&mut scheduler);
        seen.extend(scheduler.admitted().map(|admission| admission.sequence.0));
        settle(&mut scheduler, &plan, 5);
    }
    assert_eq!(seen, [1, 2, 3]);
}

#[test]
fn a_cancelled_sequence_falls_silent_and_gives_everything_back() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 1..=2 {
        scheduler.add(request(id, 2, 9)).unwrap();
    }
    let first = plan(&mut scheduler);
    scheduler.add(request(3, 2, 9)).unwrap();
    scheduler.cancel(SequenceId(1));
    scheduler.cancel(SequenceId(1));
    scheduler.cancel(SequenceId(3));
    scheduler.cancel(SequenceId(99));
    scheduler.audit();
    assert_eq!(scheduler.counts().cancelled_total, 2);
    let second = plan(&mut scheduler);
    assert_eq!(rows(&second), [(2, 2, 1, Some(1))]);
    assert_eq!(finishes(&settle(&mut scheduler, &first, 5)), [(2, None)]);
    scheduler.cancel(SequenceId(2));
    assert!(settle(&mut scheduler, &second, 5).is_empty());
    assert!(scheduler.is_idle());
    assert_eq!(available(&scheduler), 16);
}

#[test]
fn the_youngest_gives_way_and_goes_on_where_it_was() {
    // Two streams of 8 + 8 tokens start with 3 blocks each and end with 4; 7 are there.
    let limits = Limits { block_count: 7, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    for id in 1..=2 {
        scheduler.add(request(id, 8, 8)).unwrap();
    }
    let mut events = Vec::new();
    let mut again = None;
    let mut next_token = 1000;
    while !scheduler.is_idle() {
        let plan = plan(&mut scheduler);
        for admission in scheduler.admitted().filter(|admission| !admission.generated.is_empty()) {
            assert_eq!(admission.sequence, SequenceId(2));
            assert_eq!(admission.prompt.len(), 8);
            again = Some(admission.generated.to_vec());
        }
        events.extend(settle(&mut scheduler, &plan, next_token));
        next_token += 1;
    }
    assert!(scheduler.counts().preemptions_total > 0);
    for id in 1..=2 {
        let own: Vec<_> = events.iter().filter(|event| event.sequence.0 == id).collect();
        assert_eq!(own.len(), 8);
        assert!(own[..7].iter().all(|event| event.finish.is_none()));
        assert_eq!(own[7].finish, Some(FinishReason::Length));
    }
    let again = again.expect("it was admitted twice");
    let said = events.iter().filter(|event| event.sequence.0 == 2).map(|event| event.token);
    assert!(said.take(again.len()).eq(again), "the device is told what was generated");
}

#[test]
fn a_newcomer_waits_when_streams_would_soon_push_it_out() {
    // The first may still ask for a block, so 3 of the 6 for the second are one too few.
    let limits = Limits { block_count: 6, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    for id in 1..=2 {
        scheduler.add(request(id, 8, 8)).unwrap();
    }
    while !scheduler.is_idle() {
        let plan = plan(&mut scheduler);
        settle(&mut scheduler, &plan, 5);
    }
    assert_eq!(scheduler.counts().preemptions_total, 0);
    assert_eq!(scheduler.counts().finished_total, 2);
}

#[test]
fn queues_bounded() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 0..3 {
        scheduler.add(request(id, 2, 9)).unwrap();
    }
    let refusal = scheduler.add(request(3, 2, 9)).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Busy);
    assert!(refusal.message.contains('3'), "{refusal}");
    let first = plan(&mut scheduler);
    settle(&mut scheduler, &first, 5);
    for id in 3..6 {
        scheduler.add(request(id, 2, 9)).unwrap();
    }
    plan(&mut scheduler);
    let counts = scheduler.counts();
    assert_eq!((counts.running, counts.waiting), (4, 2), "no more run than there are slots");
    // 3 waiting and 4 running, each 32 tokens of 4 bytes at the very least.
    assert!(host_bytes_max(&LIMITS) > 7 * 32 * 4);
}

#[test]
#[should_panic(expected = "depth_bounded")]
fn depth_bounded() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 2, 9)).unwrap();
    for _ in 0..STEPS_IN_FLIGHT_MAX {
        plan(&mut scheduler);
    }
    assert_eq!(scheduler.steps_in_flight(), STEPS_IN_FLIGHT_MAX);
    plan(&mut scheduler);
}

#[test]
#[should_panic(expected = "steps settle in order")]
fn a_step_cannot_settle_before_an_older_one() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(request(1, 2, 9)).unwrap();
    plan(&mut scheduler);
    let second = plan(&mut scheduler);
    settle(&mut scheduler, &second, 5);
}

#[test]
fn plan_pure() {
    let mut scheduler = Scheduler::new(Limits { block_count: 8, ..LIMITS });
    for id in 0..3 {
        scheduler.add(request(id, 3 + id as u32, 9)).unwrap();
    }
    // A copy at each moment, fed the same calls, plans the same bytes.
    let mut copy = scheduler.clone();
    for round in 0..20 {
        let mut ours = StepPlan::empty(StepIndex(0));
        let mut theirs = StepPlan::empty(StepIndex(9));
        assert_eq!(scheduler.plan(Pace::FREE, &mut ours), copy.plan(Pace::FREE, &mut theirs));
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "round {round}");
        if ours.is_empty() {
            break;
        }
        assert_eq!(settle(&mut scheduler, &ours, round), settle(&mut copy, &theirs, round));
        copy = scheduler.clone();
    }
}

/// Runs what is here to its end; every step says `token`.
fn run(scheduler: &mut Scheduler, token: u32) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    while !scheduler.is_idle() {
        let plan = plan(scheduler);
        events.extend(settle(scheduler, &plan, token));
    }
    events
}

/// The same prompt for every id.
fn same(id: u64, prompt: u32, max_tokens: u32) -> SequenceRequest {
    SequenceRequest { id: SequenceId(id), ..request(1, prompt, max_tokens) }
}

#[test]
fn a_sequence_starts_behind_its_cached_prefix() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(same(1, 11, 3)).unwrap();
    assert_eq!(run(&mut scheduler, 5).last().unwrap().cached.tokens, 0);
    // 11 of the prompt and 2 of the answer were computed: 3 blocks of 4.
    assert_eq!(scheduler.counts().blocks_cached, 3);

    scheduler.add(same(2, 11, 3)).unwrap();
    let first = plan(&mut scheduler);
    assert_eq!(rows(&first), [(2, 8, 3, Some(0))]);
    assert_eq!(settle(&mut scheduler, &first, 5)[0].cached.tokens, 8);
    run(&mut scheduler, 5);
    // A prompt of whole blocks leaves its last token to compute, and so its last block.
    scheduler.add(same(3, 8, 1)).unwrap();
    assert_eq!(rows(&plan(&mut scheduler)), [(3, 4, 4, Some(0))]);
    let counts = scheduler.counts();
    assert_eq!(counts.prefix_queried_tokens_total, 11 + 11 + 8);
    assert_eq!(counts.prefix_hit_tokens_total, 8 + 4);
}

#[test]
fn a_follow_up_finds_the_answer_too() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(same(1, 11, 3)).unwrap();
    run(&mut scheduler, 5);
    let mut prompt = same(1, 11, 3).prompt;
    prompt.extend([5, 5, 5, 6]);
    scheduler.add(SequenceRequest { prompt, ..same(2, 1, 1) }).unwrap();
    assert_eq!(rows(&plan(&mut scheduler)), [(2, 12, 3, Some(0))]);
}

#[test]
fn a_sequence_meets_the_one_before_it_while_both_run() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(same(1, 20, 1)).unwrap();
    scheduler.add(same(2, 20, 1)).unwrap();
    let (mut computed, mut events) = (0, Vec::new());
    let mut before = plan(&mut scheduler);
    while !scheduler.is_idle() {
        let mut next = StepPlan::empty(StepIndex(0));
        scheduler.plan(Pace::FREE, &mut next);
        let settled = std::mem::replace(&mut before, next);
        computed += settled.tokens.len();
        if !settled.is_empty() {
            events.extend(settle(&mut scheduler, &settled, 5));
        }
    }
    let cached: u32 = events.iter().map(|event| event.cached.tokens).sum();
    assert!(cached >= 8, "the second skips what the first has read: {cached}");
    assert_eq!(computed + cached as usize, 40);
    assert_eq!(scheduler.counts().blocks_cached, 5, "one of each block is kept");
}

#[test]
fn what_is_apart_shares_nothing() {
    let mut scheduler = Scheduler::new(LIMITS);
    let salted = CacheNamespace { salt: "x".to_owned(), ..CacheNamespace::default() };
    for (id, namespace) in [(1, Some(salted.into())), (2, None), (3, Some(Arc::default()))] {
        scheduler.add(SequenceRequest { cache_namespace: namespace, ..same(id, 11, 1) }).unwrap();
        let events = run(&mut scheduler, 5);
        assert_eq!(events[0].cached.tokens, 0, "{id}");
    }
    assert_eq!(scheduler.counts().blocks_cached, 2 + 2, "without a namespace nothing stays");
}

#[test]
fn a_sequence_tells_why_no_more_of_its_prompt_was_cached() {
    let limits = Limits { block_count: 5, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    let mut ask = |id: u64, prompt: Vec<u32>, namespace: Option<&str>| {
        let named = |salt: &str| CacheNamespace { salt: salt.to_owned(), ..Default::default() };
        let cache_namespace = namespace.map(|salt| Arc::new(named(salt)));
        let request = SequenceRequest { prompt, cache_namespace, ..request(id, 1, 1) };
        scheduler.add(request).unwrap();
        let cached = run(&mut scheduler, 5)[0].cached;
        (cached.tokens, cached.end)
    };
    let text: Vec<u32> = (0..9).collect();
    assert_eq!(ask(1, text.clone(), Some("")), (0, CachedEnd::New));
    assert_eq!(ask(2, text.clone(), Some("")), (8, CachedEnd::Whole));
    assert_eq!(ask(3, text.clone(), None), (0, CachedEnd::Off));
    assert_eq!(ask(4, vec![0, 1, 2], Some("")), (0, CachedEnd::Short));
    let other = [&text[..6], &[9, 9, 9]].concat();
    assert_eq!(ask(5, other, Some("")), (4, CachedEnd::Differs { at: 6 }));
    let longer: Vec<u32> = (0..14).collect();
    assert_eq!(ask(6, longer, Some("")), (8, CachedEnd::Ends));
    // Others' texts are as if they were not there, and push out what was cached.
    assert_eq!(ask(7, (0..17).collect(), Some("x")), (0, CachedEnd::New));
    assert_eq!(ask(8, text, Some("")), (0, CachedEnd::Evicted));
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    let limits = Limits { block_count: 7, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    for id in 1..=2 {
        scheduler.add(request(id, 8, 8)).unwrap();
    }
    let (mut token, mut starts) = (1000, Vec::new());
    while !scheduler.is_idle() {
        let plan = plan(&mut scheduler);
        let again: Vec<_> = scheduler
            .admitted()
            .filter(|admission| !admission.generated.is_empty())
            .map(|admission| admission.sequence)
            .collect();
        let row = |id| plan.rows.iter().find(|row| row.sequence == id).unwrap().start;
        starts.extend(again.into_iter().map(row));
        settle(&mut scheduler, &plan, token);
        token += 1;
    }
    assert!(scheduler.counts().preemptions_total > 0, "the pool was meant to run out");
    assert!(starts.iter().any(|&start| start > 0), "computed again from {starts:?}");
}

#[test]
fn restored_blocks_count_as_computed_and_are_found_by_others() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.note_evictions();
    scheduler.add(SequenceRequest { restorable: 0..9, ..same(1, 16, 1) }).unwrap();
    let first = plan(&mut scheduler);
    assert_eq!(rows(&first), [(1, 12, 4, Some(0))], "the last token is always computed");
    let admission = scheduler.admitted().next().unwrap();
    assert_eq!((admission.restored, admission.blocks.len()), (0..3, 5));
    scheduler.add(same(2, 16, 1)).unwrap();
    let second = plan(&mut scheduler);
    assert_eq!(rows(&second), [(2, 0, 8, None)], "nothing is found before the step settles");
    let events = settle(&mut scheduler, &first, 5);
    assert_eq!(events[0].cached.tokens, 12);
    let third = plan(&mut scheduler);
    assert_eq!(rows(&third), [(2, 12, 4, Some(0))]);
    settle(&mut scheduler, &second, 5);
    settle(&mut scheduler, &third, 5);
    // What lies behind a gap cannot be used.
    scheduler.add(SequenceRequest { restorable: 2..4, ..request(3, 16, 1) }).unwrap();
    assert_eq!(rows(&plan(&mut scheduler)), [(3, 0, 8, None)]);
    assert_eq!(scheduler.evictions().count(), 0);
}

#[test]
fn an_evicted_prefix_is_told_with_its_tokens() {
    let limits = Limits { block_count: 4, step_tokens_max: 16, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    scheduler.note_evictions();
    scheduler.add(request(1, 9, 1)).unwrap();
    run(&mut scheduler, 5);
    scheduler.add(request(2, 11, 1)).unwrap();
    let plan = plan(&mut scheduler);
    let told: Vec<(BlockIndex, Vec<u32>)> =
        scheduler.evictions().map(|evicted| (evicted.block, evicted.tokens.to_vec())).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1, (100..108).collect::<Vec<u32>>(), "the end of the prefix goes first");
    assert!(plan.blocks.contains(&told[0].0), "the step that is told of it may overwrite it");
}

/// The device says `tokens` in the only row, one after another.
fn settle_row(scheduler: &mut Scheduler, plan: &StepPlan, tokens: &[u32]) -> Vec<TokenEvent> {
    let sequence = plan.rows[0].sequence;
    let sample = |&token: &u32| SampledToken { sequence, token, logprob: None };
    let mut events = Vec::new();
    let samples = tokens.iter().map(sample).collect();
    scheduler.settle(&StepResult { step: plan.step, samples }, &mut events);
    scheduler.audit();
    events
}

/// A stream of a prompt of 4 tokens whose first generated token is known to be 5.
fn stream(limits: Limits, max_tokens: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(limits);
    scheduler.add(request(1, 4, max_tokens)).unwrap();
    let first = plan(&mut scheduler);
    settle_row(&mut scheduler, &first, &[5]);
    scheduler
}

#[test]
fn guesses_are_checked_in_one_row_and_the_wrong_ones_written_over() {
    let mut scheduler = stream(LIMITS, 20);
    assert_eq!(scheduler.streams().map(|stream| stream.is_open).collect::<Vec<_>>(), [true]);
    scheduler.propose(SequenceId(1), &[6, 8, 9]);
    let check = plan(&mut scheduler);
    assert_eq!(rows(&check), [(1, 4, 4, Some(1))]);
    assert_eq!(check.rows[0].proposed, 3);
    assert_eq!(check.tokens, [5, 6, 8, 9].map(TokenSource::Known));
    // Until it settles nobody knows how far the sequence is.
    assert!(!scheduler.plan(Pace::FREE, &mut StepPlan::empty(StepIndex(0))));
    assert_eq!(scheduler.streams().map(|stream| stream.is_open).collect::<Vec<_>>(), [false]);
    let events = settle_row(&mut scheduler, &check, &[6, 10]);
    let told: Vec<_> = events.iter().map(|event| event.token).collect();
    assert_eq!(told, [6, 10]);
    let counts: Vec<_> = events.iter().map(|event| event.proposals).collect();
    assert_eq!((counts[0].accepted, counts[0].rejected), (1, 0));
    assert_eq!((counts[1].accepted, counts[1].rejected), (0, 2));
    // The cache holds 0..=5; position 6 held a wrong guess.
    let next = plan(&mut scheduler);
    assert_eq!(rows(&next), [(1, 6, 1, Some(3))]);
    assert_eq!(next.tokens, [TokenSource::Known(10)]);
    let ahead = plan(&mut scheduler);
    assert_eq!(ahead.tokens, [TokenSource::Slot(SlotIndex(0))], "old guesses are forgotten");
}

#[test]
fn a_guess_can_end_the_answer() {
    let mut scheduler = stream(LIMITS, 20);
    scheduler.propose(SequenceId(1), &[6, 7, 8]);
    let check = plan(&mut scheduler);
    // 7 is the stop token: what the device says after it is nobody's.
    let events = settle_row(&mut scheduler, &check, &[6, 7, 8, 9]);
    assert_eq!(finishes(&events), [(1, None), (1, Some(FinishReason::Stop))]);
    assert_eq!((events[1].proposals.accepted, events[1].proposals.rejected), (1, 1));
    assert!(scheduler.is_idle());
    assert_eq!(available(&scheduler), 16);
}

#[test]
fn guesses_never_go_beyond_what_may_be_generated() {
    let mut scheduler = stream(LIMITS, 4);
    scheduler.propose(SequenceId(1), &[1, 2, 3, 4]);
    let check = plan(&mut scheduler);
    assert_eq!(
        rows(&check),
        [(1, 4, 3, Some(1))],
        "3 tokens are to come, the last one not a guess"
    );
    let events = settle_row(&mut scheduler, &check, &[1, 2, 3]);
    assert_eq!(events[2].finish, Some(FinishReason::Length));
    assert!(scheduler.is_idle());
}

#[test]
fn guesses_take_only_spare_blocks() {
    // Two streams fill a block each; a third block is free, one too few for guesses to take it.
    let limits = Limits { block_count: 5, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    for id in 1..=2 {
        scheduler.add(request(id, 6, 6)).unwrap();
        let step = plan(&mut scheduler);
        settle(&mut scheduler, &step, 5);
    }
    assert_eq!(available(&scheduler), 1);
    scheduler.propose(SequenceId(1), &[1, 2, 3]);
    let check = plan(&mut scheduler);
    // Its own token fills its last block; a guess would need another.
    assert_eq!(check.rows.iter().map(|row| row.proposed).sum::<u32>(), 0);
    assert_eq!(available(&scheduler), 1);
}

#[test]
fn a_cancelled_check_leaves_nothing_behind() {
    let mut scheduler = stream(LIMITS, 20);
    scheduler.propose(SequenceId(1), &[6, 8]);
    let check = plan(&mut scheduler);
    scheduler.cancel(SequenceId(1));
    assert!(settle_row(&mut scheduler, &check, &[6, 8, 9]).is_empty());
    assert!(scheduler.is_idle());
    assert_eq!(available(&scheduler), 16);
}

#[test]
#[should_panic(expected = "speculation_exact")]
fn a_wrong_guess_is_never_kept() {
    let mut scheduler = stream(LIMITS, 20);
    scheduler.propose(SequenceId(1), &[6, 8]);
    let check = plan(&mut scheduler);
    settle_row(&mut scheduler, &check, &[9, 8]);
}
