//! How many guesses does each stream's next row check?
//!
//! Those that bring the most tokens a second over all streams of the step, by the proposers' word
//! on their chances and by the measured times of steps. A stream can take guesses only when all its
//! tokens are known; if guesses would pay for a stream whose last token is still on its way, the
//! next step is not planned ahead but waits for it. That costs the time from a step's end to the
//! next one's start, which planning ahead hides.
//!
//! Chances and times are estimates. So that a wrong one costs little, each proposer has an account:
//! it earns a small share of the time that steps take and the time that its right guesses saved,
//! and pays for every check and for every step that waited for one, whether it was made or not. Who
//! has no credit does not guess.

use std::collections::BTreeMap;

use messages::{ProposalCounts, SequenceId, Stream, TokenEvent, TokenId};

use crate::proposer::GUESSES_MAX;
use crate::{Proposer, StepCosts};

/// Time that the device is idle when a step is not planned ahead.
const IDLE_SECONDS: f64 = 100e-6;
/// What a second that guesses are expected to cost must bring: chances and times are estimates.
const CAUTION: f64 = 1.25;
/// What guessing may cost in the long run, when it brings nothing: a hundredth of all time.
const SHARE: f64 = 0.01;
/// What a proposer may owe, and what it can save for bad times, in steps of one token: enough to
/// begin with, since a check that is right pays for the next, and soon used up on a text that
/// cannot be guessed.
const DEBT_STEPS: f64 = 4.0;
const CREDIT_STEPS: f64 = 40.0;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Plan,
    /// Guesses will pay once the step in flight has settled.
    Wait,
}

/// When guesses are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    ItPays,
    /// Whatever it costs.
    Always,
}

/// Guesses for all sequences of one model.
pub struct Speculator {
    proposers: Vec<Box<dyn Proposer>>,
    /// Of each proposer, in seconds; below 0 it owes.
    credits: Vec<f64>,
    guessed: BTreeMap<SequenceId, Guessed>,
    costs: StepCosts,
    when: When,
    /// Who has the next step wait, until there is one.
    waited: Option<usize>,
    /// Streams that stopped guessing because it did not pay.
    switched_off_total: u64,
    chances: Vec<f64>,
    guesses: Vec<TokenId>,
}

/// What is known of the guesses for one sequence.
#[derive(Clone, Copy, Debug, Default)]
struct Guessed {
    /// Whether guessing paid when it was last possible.
    pays: bool,
    /// Who made the guesses offered last, and what a token took then, in seconds.
    last: Option<(usize, f64)>,
}

impl Speculator {
    /// Asks `proposers`; of equals the first.
    pub fn new(proposers: Vec<Box<dyn Proposer>>, when: When) -> Self {
        Self {
            credits: vec![0.0; proposers.len()],
            proposers,
            guessed: BTreeMap::new(),
            costs: StepCosts::default(),
            when,
            waited: None,
            switched_off_total: 0,
            chances: Vec::new(),
            guesses: Vec::new(),
        }
    }

    /// A sequence that wants guesses starts.
    pub fn begin(&mut self, id: SequenceId, prompt: &[TokenId]) {
        self.proposers.iter_mut().for_each(|proposer| proposer.begin(id, prompt));
        self.guessed.insert(id, Guessed::default());
    }

    pub fn end(&mut self, id: SequenceId) {
        if self.guessed.remove(&id).is_some() {
            self.proposers.iter_mut().for_each(|proposer| proposer.end(id));
        }
    }

    /// A token of the answer is certain.
    pub fn observe(&mut self, event: &TokenEvent) {
        let Some(guessed) = self.guessed.get(&event.sequence) else { return };
        if let Some((proposer, token_seconds)) = guessed.last
            && event.proposals != ProposalCounts::default()
        {
            self.proposers[proposer].checked(event.sequence, event.proposals);
            let saved = f64::from(event.proposals.accepted) * token_seconds;
            self.earn(proposer, saved);
        }
        for proposer in &mut self.proposers {
            proposer.observe(event.sequence, event.token);
        }
    }

    /// A step that sampled after each of its `tokens` tokens took so long.
    pub fn note_step(&mut self, tokens: usize, seconds: f64) {
        self.costs.note(tokens, seconds);
        for proposer in 0..self.credits.len() {
            self.earn(proposer, SHARE * seconds);
        }
    }

    fn earn(&mut self, proposer: usize, seconds: f64) {
        let most = CREDIT_STEPS * self.costs.seconds(1);
        self.credits[proposer] = most.min(self.credits[proposer] + seconds);
    }

    /// Streams that had guesses until they did not pay, each time counted.
    pub fn switched_off_total(&self) -> u64 {
        self.switched_off_total
    }

    /// Chooses guesses for the next plan and hands them to `propose`. `streams` are all of the next
    /// step, those without guesses included.
    pub fn choose(
        &mut self,
        streams: &[Stream],
        mut propose: impl FnMut(SequenceId, &[TokenId]),
    ) -> Next {
        let mut next = Next::Plan;
        let mut waits_for = None;
        // Tokens that the step computes, and that it is expected to yield.
        let mut step = (streams.len(), streams.len() as f64);
        for stream in streams {
            if !self.guessed.contains_key(&stream.id) {
                continue;
            }
            let chosen = self.best(stream.id, step);
            self.note_choice(stream.id, chosen.is_some());
            let Some(Chosen { proposer, count, yielded, seconds }) = chosen else { continue };
            if !stream.is_open {
                next = Next::Wait;
                waits_for.get_or_insert(proposer);
                continue;
            }
            self.guesses.clear();
            self.proposers[proposer].guess(stream.id, count, &mut self.guesses);
            propose(stream.id, &self.guesses);
            self.credits[proposer] -= seconds;
            let token_seconds = self.costs.seconds(step.0) / step.1;
            if let Some(guessed) = self.guessed.get_mut(&stream.id) {
                guessed.last = Some((proposer, token_seconds));
            }
            step = (step.0 + count, step.1 + yielded);
        }
        self.pay_for_waiting(waits_for);
        next
    }

    /// A wait is paid for once, however often it is asked about, and by one.
    fn pay_for_waiting(&mut self, waits_for: Option<usize>) {
        if let (Some(proposer), None) = (waits_for, self.waited) {
            self.credits[proposer] -= IDLE_SECONDS;
        }
        self.waited = waits_for;
    }

    /// Counts a sequence that had guesses to make when they stop being worth it.
    fn note_choice(&mut self, id: SequenceId, pays: bool) {
        let had_guesses = !self.chances.is_empty();
        let Some(guessed) = self.guessed.get_mut(&id) else { return };
        if had_guesses {
            self.switched_off_total += u64::from(guessed.pays && !pays);
            guessed.pays = pays;
        }
    }

    /// The guesses that gain the most, if any gain. Leaves all chances that there were in
    /// `self.chances`.
    fn best(&mut self, id: SequenceId, (tokens, expected): (usize, f64)) -> Option<Chosen> {
        let mut best = None;
        let plain = self.costs.seconds(tokens);
        let debt = DEBT_STEPS * self.costs.seconds(1);
        let mut best_rate = match self.when {
            When::ItPays => expected / plain,
            When::Always => 0.0,
        };
        self.chances.clear();
        for (index, proposer) in self.proposers.iter().enumerate() {
            let first = self.chances.len();
            proposer.chances(id, &mut self.chances);
            assert!(self.chances.len() - first <= GUESSES_MAX, "too many guesses at once");
            let entry = proposer.entry_seconds(id);
            let (mut all_right, mut yielded) = (1.0, 0.0);
            for (count, chance) in (1..).zip(&self.chances[first..]) {
                all_right *= chance;
                yielded += all_right;
                let more =
                    (self.costs.seconds(tokens + count) - plain).max(0.0) + proposer.seconds(count);
                let rate = (expected + yielded) / (plain + CAUTION * more + IDLE_SECONDS);
                let seconds = entry + more;
                let needed = seconds + IDLE_SECONDS;
                let is_affordable =
                    self.when == When::Always || needed <= self.credits[index] + debt;
                if rate > best_rate && is_affordable {
                    best_rate = rate;
                    best = Some(Chosen { proposer: index, count, yielded, seconds });
                }
            }
        }
        best
    }
}

struct Chosen {
    proposer: usize,
    count: usize,
    /// Tokens it is expected to bring.
    yielded: f64,
    /// What making and checking the guesses costs.
    seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::{IDLE_SECONDS, Next, Speculator, When};
    use crate::Lookups;
    use messages::{CachedPrompt, ProposalCounts, SequenceId, Stream, TokenEvent};

    const ID: SequenceId = SequenceId(1);

    fn say(speculator: &mut Speculator, token: u32) {
        let proposals = ProposalCounts::default();
        let (sequence, logprob, finish) = (ID, None, None);
        let cached = CachedPrompt::default();
        let event = TokenEvent { sequence, token, logprob, finish, cached, proposals };
        speculator.observe(&event);
    }

    fn choose(speculator: &mut Speculator, others: u64, is_open: bool) -> (Next, Vec<u32>) {
        let mut streams: Vec<Stream> =
            (0..others).map(|id| Stream { id: SequenceId(100 + id), is_open: true }).collect();
        streams.push(Stream { id: ID, is_open });
        let mut guesses = Vec::new();
        let next = speculator.choose(&streams, |id, offered| {
            assert_eq!(id, ID);
            guesses.extend_from_slice(offered);
        });
        (next, guesses)
    }

    /// A step of n tokens takes `1 + slope (n - 1)` hundredths of a second.
    fn speculator(slope: f64) -> Speculator {
        let mut speculator = Speculator::new(vec![Box::new(Lookups::default())], When::ItPays);
        for tokens in 1..=128 {
            speculator.note_step(tokens, 0.01 * (1.0 + slope * (tokens - 1) as f64));
        }
        let prompt: Vec<u32> = (0..100).collect();
        speculator.begin(ID, &prompt);
        speculator
    }

    #[test]
    fn a_copy_is_guessed_as_far_as_it_pays() {
        let mut cheap = speculator(0.05);
        assert_eq!(choose(&mut cheap, 0, true), (Next::Plan, vec![]));
        (20..40).for_each(|token| say(&mut cheap, token));
        let (next, guesses) = choose(&mut cheap, 0, true);
        assert_eq!((next, guesses), (Next::Plan, (40..56).collect()));
        let mut dear = speculator(0.6);
        (20..40).for_each(|token| say(&mut dear, token));
        let (_, guesses) = choose(&mut dear, 0, true);
        assert!((1..8).contains(&guesses.len()), "{guesses:?}");
        let mut vain = speculator(1.0);
        (20..40).for_each(|token| say(&mut vain, token));
        assert_eq!(choose(&mut vain, 0, true), (Next::Plan, vec![]));
    }

    #[test]
    fn a_large_batch_guesses_less() {
        let counts = [0, 7, 100].map(|others| {
            let mut speculator = speculator(0.3);
            (20..24).for_each(|token| say(&mut speculator, token));
            choose(&mut speculator, others, true).1.len()
        });
        assert!(counts[0] > 0 && counts[0] >= counts[1] && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn guesses_that_were_wrong_are_switched_off_and_on_again() {
        let mut speculator = speculator(0.3);
        (20..24).for_each(|token| say(&mut speculator, token));
        assert!(!choose(&mut speculator, 0, true).1.is_empty());
        // Each pair is one of the prompt, and what follows it is always new.
        let mut state = 1u32;
        for round in 0..60 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pair = 25 + 10 * ((state >> 16) % 7);
            say(&mut speculator, pair);
            say(&mut speculator, pair + 1);
            let wrong = choose(&mut speculator, 0, true).1;
            assert!(round < 30 || wrong.is_empty(), "{round}: {wrong:?}");
            say(&mut speculator, 1000 + round);
        }
        assert!(speculator.switched_off_total() >= 1);
        (0..20).for_each(|token| say(&mut speculator, token));
        assert!(
            !choose(&mut speculator, 0, true).1.is_empty(),
            "without a guess having been tried"
        );
    }

    #[test]
    fn who_has_no_credit_does_not_guess() {
        let mut speculator = speculator(0.05);
        (20..40).for_each(|token| say(&mut speculator, token));
        // Nothing comes back of what checks cost, and no steps are paid.
        let offers = (0..1000).take_while(|_| !choose(&mut speculator, 0, true).1.is_empty());
        let offered = offers.count();
        assert!((5..500).contains(&offered), "{offered}");
        (0..100).for_each(|_| speculator.note_step(1, 0.01));
        assert!(!choose(&mut speculator, 0, true).1.is_empty(), "a share of the time pays again");
    }

    #[test]
    fn waiting_is_paid_for_once_a_step() {
        let mut speculator = speculator(0.05);
        (20..40).for_each(|token| say(&mut speculator, token));
        let credit = |speculator: &Speculator| speculator.credits[0];
        let before = credit(&speculator);
        for _ in 0..10 {
            assert_eq!(choose(&mut speculator, 0, false), (Next::Wait, vec![]));
        }
        assert!((before - credit(&speculator) - IDLE_SECONDS).abs() < 1e-9, "asked ten times");
        // What came made it pointless to guess: the wait is lost all the same.
        say(&mut speculator, 1000);
        say(&mut speculator, 1001);
        assert_eq!(choose(&mut speculator, 0, true), (Next::Plan, vec![]));
        assert!(credit(&speculator) < before);
    }

    #[test]
    fn a_stream_whose_token_is_on_its_way_is_waited_for() {
        let mut speculator = speculator(0.05);
        (20..40).for_each(|token| say(&mut speculator, token));
        assert_eq!(choose(&mut speculator, 0, false), (Next::Wait, vec![]));
        speculator.end(ID);
        assert_eq!(choose(&mut speculator, 0, false), (Next::Plan, vec![]));
    }
}
