//! Which guesses go into the next plan, and how long do their checks take?
//!
//! The link between the scheduler, which checks guesses, and the crate `speculation`, which makes
//! them.

use std::collections::VecDeque;
use std::time::Duration;

use messages::{SequenceId, StepPlan, Stream, TokenEvent, TokenId};
use scheduler::Scheduler;
use speculation::{Lookups, Next, Proposer, Speculator, When};

use crate::draft_model::DraftModel;
use crate::{Speculation, SpeculationStatus};

pub(crate) struct Guessing {
    speculator: Speculator,
    /// Whether requests that do not say get guesses.
    by_default: bool,
    streams: Vec<Stream>,
    /// Of each step in flight that only has streams: its tokens.
    in_flight: VecDeque<Option<usize>>,
    checks_total: u64,
}

impl Guessing {
    /// Guesses come from the texts themselves, and from a draft model if there is one.
    pub(crate) fn new(speculation: Speculation, draft: Option<DraftModel>) -> Self {
        let mut proposers: Vec<Box<dyn Proposer>> = vec![Box::new(Lookups::default())];
        proposers.extend(draft.map(|draft| Box::new(draft) as Box<dyn Proposer>));
        let when = if speculation == Speculation::Always { When::Always } else { When::ItPays };
        Self {
            speculator: Speculator::new(proposers, when),
            by_default: speculation != Speculation::Off,
            streams: Vec::new(),
            in_flight: VecDeque::new(),
            checks_total: 0,
        }
    }

    /// A sequence is added; `asked` is what its request says about guesses.
    pub(crate) fn begin(&mut self, id: SequenceId, prompt: &[TokenId], asked: Option<bool>) {
        if asked.unwrap_or(self.by_default) {
            self.speculator.begin(id, prompt);
        }
    }

    pub(crate) fn end(&mut self, id: SequenceId) {
        self.speculator.end(id);
    }

    pub(crate) fn observe(&mut self, event: &TokenEvent) {
        self.speculator.observe(event);
    }

    /// Gives the scheduler guesses for the next plan; false when that plan should wait for the step
    /// in flight.
    pub(crate) fn offer(&mut self, scheduler: &mut Scheduler) -> bool {
        self.streams.clear();
        self.streams.extend(scheduler.streams());
        let propose = |id, guesses: &[TokenId]| scheduler.propose(id, guesses);
        self.speculator.choose(&self.streams, propose) == Next::Plan || self.in_flight.is_empty()
    }

    pub(crate) fn planned(&mut self, plan: &StepPlan) {
        let only_streams = plan
            .rows
            .iter()
            .all(|row| row.sample_index.is_some() && row.length == 1 + row.proposed);
        self.checks_total += plan.rows.iter().filter(|row| row.proposed > 0).count() as u64;
        self.in_flight.push_back(only_streams.then_some(plan.tokens.len()));
    }

    /// The oldest step in flight took so long.
    pub(crate) fn finished(&mut self, duration: Duration) {
        let tokens = self.in_flight.pop_front().expect("invariant: steps complete in order");
        if let Some(tokens) = tokens {
            self.speculator.note_step(tokens, duration.as_secs_f64());
        }
    }

    pub(crate) fn status(&self, scheduler: &Scheduler) -> SpeculationStatus {
        let proposals = scheduler.counts().proposals_total;
        SpeculationStatus {
            checks_total: self.checks_total,
            accepted_tokens_total: u64::from(proposals.accepted),
            rejected_tokens_total: u64::from(proposals.rejected),
            switched_off_total: self.speculator.switched_off_total(),
        }
    }
}
