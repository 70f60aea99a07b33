//! Does the limiter keep its word in front of the scheduler and its pacing? A machine of measured
//! speeds, with a clock of its own, and several times the requests that it can serve.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use messages::{
    Limits, PlanRow, Priority, SampledToken, SequenceId, StepIndex, StepPlan, StepResult,
};
use scheduler::{Scheduler, SequenceRequest};

use super::*;
use crate::pacing::{Pacing, PacingOptions};
use crate::step_watch::StepWatch;

const LIMITS: Limits = Limits {
    context_tokens_max: 2048,
    sequences_max: 16,
    waiting_max: 2000,
    aging_plans: 1000,
    step_tokens_max: 256,
    proposed_tokens_max: 0,
    block_tokens: 32,
    block_count: 4000,
};

const QUEUE_TIME: Duration = Duration::from_secs(5);

struct Requests {
    /// A second.
    rate: f64,
    prompt_tokens: (u64, u64),
    answer_tokens: (u64, u64),
}

#[derive(Default)]
struct Seen {
    finished: u64,
    refused: u64,
    refused_late: u64,
    first_tokens: Vec<f64>,
}

impl Seen {
    fn first_token(&self, share: f64) -> f64 {
        let mut sorted = self.first_tokens.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * share) as usize]
    }
}

/// Draws that a seed repeats.
struct Draw(u64);

impl Draw {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % count
    }

    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.below(most - least + 1)
    }
}

/// As SmolLM2 on two cores: 2 ms a step, 0.6 ms a stream, 0.5 ms a token of a prompt.
fn step_seconds(plan: &StepPlan, draw: &mut Draw) -> f64 {
    let seconds: f64 = plan
        .rows
        .iter()
        .map(|row| match row.sample_index {
            Some(index) if index > 0 => 0.0006,
            _ => 0.0005 * f64::from(row.length) + 1.5e-6 * f64::from(row.start),
        })
        .sum();
    (0.002 + seconds) * (0.8 + 0.4 * draw.below(1000) as f64 / 1000.0)
}

struct World<'a> {
    requests: &'a Requests,
    limiter: Limiter,
    scheduler: Scheduler,
    pacing: Pacing,
    watch: StepWatch,
    draw: Draw,
    seen: Seen,
    now: f64,
    next_arrival: f64,
    next_id: u64,
    tenant: Arc<str>,
    here: BTreeMap<SequenceId, Here>,
    /// In the order in which they came.
    waiting: VecDeque<SequenceId>,
    plan: StepPlan,
    epoch: std::time::Instant,
}

#[derive(Clone, Copy)]
struct Here {
    arrived: f64,
    arrival: Arrival,
    answer_tokens_max: u32,
}

/// What becomes of what comes within `end` seconds.
fn serve(requests: &Requests, end: f64) -> Seen {
    let rules = LimiterRules {
        running_max: LIMITS.sequences_max,
        waiting_max: 1000,
        block_count: LIMITS.block_count,
        token_target: Some(Duration::from_millis(100)),
        queue_time_max: Some(QUEUE_TIME),
    };
    let mut world = World {
        requests,
        limiter: Limiter::new(rules),
        scheduler: Scheduler::new(LIMITS),
        pacing: Pacing::new(PacingOptions::default()),
        watch: StepWatch::default(),
        draw: Draw(7),
        seen: Seen::default(),
        now: 0.0,
        next_arrival: 0.0,
        next_id: 0,
        tenant: Arc::from(""),
        here: BTreeMap::new(),
        waiting: VecDeque::new(),
        plan: StepPlan::empty(StepIndex(0)),
        epoch: std::time::Instant::now(),
    };
    while world.now < end {
        while world.next_arrival <= world.now {
            world.arrive();
        }
        world.refuse_overdue();
        world.step();
    }
    world.seen
}

impl World<'_> {
    fn arrive(&mut self) {
        self.next_id += 1;
        let (id, priority, arrived) =
            (SequenceId(self.next_id), Priority::Normal, self.next_arrival);
        // As far apart as a Poisson process has it, by the inverse of its distribution.
        let even = self.draw.below(1 << 30) as f64 / f64::from(1 << 30);
        self.next_arrival -= (1.0 - even).ln() / self.requests.rate;
        let unread_tokens = self.draw.between(self.requests.prompt_tokens) as u32;
        let answer_tokens_max = self.draw.between(self.requests.answer_tokens) as u32;
        let own = Work { unread_tokens, answer_tokens: 0, answer_tokens_max };
        let ahead = self.scheduler.work_ahead_of(priority, &self.tenant);
        let running = self.scheduler.work_running();
        let Ok(arrival) = self.limiter.arrive(&own, Duration::ZERO, running, ahead) else {
            self.seen.refused += 1;
            return;
        };
        let request = SequenceRequest {
            id,
            prompt: (0..unread_tokens).map(|_| 5 + self.draw.below(1000) as u32).collect(),
            max_tokens: Some(answer_tokens_max),
            min_tokens: 0,
            stop_tokens: Vec::new(),
            priority,
            tenant: Arc::clone(&self.tenant),
            cache_namespace: None,
            restorable: 0..0,
        };
        self.scheduler.add(request).expect("invariant: it fits");
        self.here.insert(id, Here { arrived, arrival, answer_tokens_max });
        self.waiting.push_back(id);
    }

    fn waited(&self, id: SequenceId) -> Duration {
        Duration::from_secs_f64(self.now - self.here[&id].arrived)
    }

    fn refuse_overdue(&mut self) {
        while let Some(&id) = self.waiting.front()
            && self.waited(id) > QUEUE_TIME
        {
            self.limiter.note_first_token(&self.here[&id].arrival, self.waited(id));
            self.seen.refused_late += 1;
            self.scheduler.cancel(id);
            self.limiter.leave_queue();
            self.here.remove(&id);
            self.waiting.pop_front();
        }
    }

    fn step(&mut self) {
        self.limiter.note_running(self.scheduler.running_count() as u32);
        self.scheduler.limit_running(self.limiter.limit());
        let pace = self.pacing.pace(&self.scheduler.outlook(), false);
        if !self.scheduler.plan(pace, &mut self.plan) {
            self.now = self.now.max(self.next_arrival);
            return;
        }
        for admission in self.scheduler.admitted() {
            self.waiting.retain(|&id| id != admission.sequence);
            self.limiter.leave_queue();
        }
        self.pacing.planned(&self.plan);
        self.watch.planned(&self.plan, self.scheduler.has_unread());
        let seconds = step_seconds(&self.plan, &mut self.draw);
        self.now += seconds;
        let sampling = self.plan.rows.iter().filter(|row| row.sample_index.is_some());
        let sample = |sequence| SampledToken { sequence, token: 3, logprob: None };
        let samples: Vec<_> = sampling.map(|row| sample(row.sequence)).collect();
        let duration = Duration::from_secs_f64(seconds);
        self.pacing.finished(duration);
        let at = self.epoch + Duration::from_secs_f64(self.now);
        let (step, tokens) = self.watch.finished(duration, at, samples.len());
        self.limiter.note_step(&step);
        self.limiter.note_tokens(step.streams, tokens, step.elapsed_seconds);
        self.settle(&StepResult { step: self.plan.step, samples });
    }

    fn settle(&mut self, result: &StepResult) {
        let mut events = Vec::new();
        self.scheduler.settle(result, &mut events);
        for event in events {
            let id = event.sequence;
            let Here { arrived, arrival, answer_tokens_max } = self.here[&id];
            let is_first = |row: &PlanRow| row.sequence == id && row.sample_index == Some(0);
            if self.plan.rows.iter().any(is_first) {
                self.seen.first_tokens.push(self.now - arrived);
                self.limiter.note_first_token(&arrival, self.waited(id));
            }
            if event.finish.is_some() {
                self.seen.finished += 1;
                self.limiter.note_end(answer_tokens_max, answer_tokens_max, 4);
                self.here.remove(&id);
            }
        }
    }
}

fn check(name: &str, requests: Requests) {
    let alone = Requests { rate: 1e3, ..requests };
    let capacity = serve(&alone, 60.0).finished as f64 / 60.0;
    let seen = serve(&Requests { rate: 4.0 * capacity, ..requests }, 300.0);
    let served = seen.finished as f64 / 300.0;
    let [half, most, all] = [0.5, 0.99, 1.0].map(|share| seen.first_token(share));
    let Seen { refused, refused_late, .. } = seen;
    let line = format!(
        "{name}: {served:.1} of {capacity:.1} a second, first tokens after {half:.2}, {most:.2} \
         and {all:.2} s, {refused} refused at once, {refused_late} late"
    );
    assert!(served > 0.9 * capacity, "{line}");
    assert!(most <= QUEUE_TIME.as_secs_f64(), "{line}");
    assert!((refused_late as f64) < 0.01 * refused as f64, "{line}");
}

#[test]
fn first_tokens_of_who_is_let_in_come_within_the_queues_time() {
    check("chats", Requests { rate: 0.0, prompt_tokens: (40, 110), answer_tokens: (32, 96) });
    check("documents", Requests { rate: 0.0, prompt_tokens: (300, 900), answer_tokens: (10, 40) });
    check("essays", Requests { rate: 0.0, prompt_tokens: (10, 20), answer_tokens: (100, 900) });
}

#[test]
fn nobody_is_refused_at_half_of_what_can_be_served() {
    let requests = Requests { rate: 6.0, prompt_tokens: (40, 110), answer_tokens: (32, 96) };
    let seen = serve(&requests, 300.0);
    assert_eq!((seen.refused, seen.refused_late), (0, 0));
    assert!(seen.first_token(0.99) < 1.0, "{}", seen.first_token(0.99));
}
