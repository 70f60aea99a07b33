//! How many tokens of prompts may a step have, so that running streams keep their pace?
//!
//! A step that reads prompts takes longer than one of streams alone, and every stream waits for it.
//! What steps take is measured and kept as two small linear models: of streams, by rows and the
//! positions that they attend to, from steps without prompts; and of prompts, from what other steps
//! take beyond that: by tokens and the positions before each, and by chunks, since a chunk reads
//! all positions before it, however short it is. Each step moves the weights a part of the way to
//! what it took (normalized least mean squares: B. Widrow, M. Hoff, 1960), so the models follow a
//! machine that gets slower or faster.
//!
//! A prompt may then take as long as keeps the step within the target, and within a share of what
//! the streams alone take; and in any case so many tokens that a part of the chunk's time is
//! theirs, and a part of the streams' time is the chunk's, so that it is read at last.
//!
//! No clock: durations are arguments.

use std::collections::VecDeque;
use std::time::Duration;

use messages::StepPlan;
use scheduler::{Outlook, Pace};

/// What running streams may be asked to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacingOptions {
    /// Time between the tokens of a stream that steps with prompts keep to; `None`: prompts are
    /// read as fast as steps allow.
    pub itl_target: Option<Duration>,
    /// By how much prompts may make steps longer than streams alone do, in percent.
    pub slowdown_percent: u32,
}

impl Default for PacingOptions {
    fn default() -> Self {
        // 100 ms is ten tokens a second, faster than people read. 80 % keeps the slowest of a
        // hundred steps below twice what it is without prompts.
        Self { itl_target: Some(Duration::from_millis(100)), slowdown_percent: 80 }
    }
}

/// What a chunk gets of a step in any case, in parts of the time of its streams.
const SHARE_MIN: f64 = 0.125;
/// What tokens get in any case, in parts of what their chunk takes without any, but for one that
/// takes more than twice what there is.
const TOKENS_SHARE_MIN: f64 = 0.5;
/// Before anything is measured.
const TOKENS_FIRST: u32 = 16;

pub(crate) struct Pacing {
    options: PacingOptions,
    streams: Costs<3>,
    prompts: Costs<4>,
    in_flight: VecDeque<Shape>,
}

/// What a step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Shape {
    /// Rows of streams, guesses included, and the positions before them.
    rows: f64,
    stream_positions: f64,
    /// Tokens of prompts, and the positions that each of them attends to, summed up.
    tokens: f64,
    token_positions: f64,
    /// Rows of prompts, and the positions before them.
    chunks: f64,
    chunk_positions: f64,
}

impl Pacing {
    pub(crate) fn new(options: PacingOptions) -> Self {
        let (streams, prompts) = (Costs::default(), Costs::default());
        Self { options, streams, prompts, in_flight: VecDeque::new() }
    }

    /// Others hold from the next plan on.
    pub(crate) fn set_options(&mut self, options: PacingOptions) {
        self.options = options;
    }

    /// How fast the next plan may read prompts.
    pub(crate) fn pace(&self, outlook: &Outlook) -> Pace {
        let Some(target) = self.options.itl_target else { return Pace::FREE };
        if outlook.streams == 0 || !outlook.has_prompts {
            return Pace::FREE;
        }
        let shape = Shape {
            rows: f64::from(outlook.streams),
            stream_positions: outlook.stream_positions as f64,
            ..Shape::default()
        };
        let streams = self.streams.seconds(shape.of_streams());
        let slowdown = f64::from(self.options.slowdown_percent) / 100.0;
        let beside = target.as_secs_f64() - streams;
        let spare = match self.streams.is_measured() {
            true => beside.min(streams * slowdown).max(streams * SHARE_MIN),
            false => beside,
        };
        let position = f64::from(outlook.prompt_position_max);
        let empty = Shape { chunks: 1.0, chunk_positions: position, ..Shape::default() };
        let one = Shape { tokens: 1.0, token_positions: position, ..Shape::default() };
        let chunk = self.prompts.seconds(empty.of_prompts());
        let token = self.prompts.seconds(one.of_prompts());
        let for_tokens = (spare - chunk).max(spare.min(TOKENS_SHARE_MIN * chunk));
        let prompt_tokens_max = match self.prompts.is_measured() && token > 0.0 {
            true => (for_tokens / token).clamp(1.0, 1e9) as u32,
            false => TOKENS_FIRST,
        };
        Pace { prompt_tokens_max }
    }

    pub(crate) fn planned(&mut self, plan: &StepPlan) {
        let mut shape = Shape::default();
        for row in &plan.rows {
            let (start, length) = (f64::from(row.start), f64::from(row.length));
            if row.sample_index.is_some() && row.length == 1 + row.proposed {
                shape.rows += length;
                shape.stream_positions += start;
            } else {
                shape.tokens += length;
                shape.token_positions += length * (start + length / 2.0);
                shape.chunks += 1.0;
                shape.chunk_positions += start;
            }
        }
        self.in_flight.push_back(shape);
    }

    /// The oldest step in flight took so long, in which nothing else went on.
    pub(crate) fn finished(&mut self, duration: Duration) {
        let shape = self.in_flight.pop_front().expect("invariant: steps complete in order");
        let seconds = duration.as_secs_f64();
        if shape.tokens == 0.0 {
            self.streams.learn(shape.of_streams(), seconds);
            return;
        }
        let rest = seconds - self.streams.seconds(shape.of_streams());
        self.prompts.learn(shape.of_prompts(), rest.max(0.0));
    }
}

impl Shape {
    /// Scaled so that what each stands for takes about as long on the machines known so far.
    fn of_streams(&self) -> [f64; 3] {
        [1.0, self.rows / 4.0, self.stream_positions / 4096.0]
    }

    /// So that what a long chunk takes is put down to its tokens, and what a short one takes to its
    /// being one.
    fn of_prompts(&self) -> [f64; 4] {
        let (chunks, before) = (self.chunks, self.chunk_positions / 1024.0);
        [chunks, before, self.tokens / 16.0, self.token_positions / 65536.0]
    }
}

/// The last ten or so steps count.
const RATE_MIN: f64 = 0.1;
/// From so many steps on, one that is far off the others is taken for a disturbance.
const TRUSTED_STEPS: u32 = 8;
/// Of what was expected: by so much one step can be off and still count fully.
const SURPRISE_MAX: f64 = 0.5;

/// Seconds as a sum of causes, each with its weight.
struct Costs<const N: usize> {
    weights: [f64; N],
    learned: u32,
}

impl<const N: usize> Default for Costs<N> {
    fn default() -> Self {
        Self { weights: [0.0; N], learned: 0 }
    }
}

impl<const N: usize> Costs<N> {
    fn is_measured(&self) -> bool {
        self.learned > 0
    }

    fn seconds(&self, causes: [f64; N]) -> f64 {
        self.weights.iter().zip(causes).map(|(weight, cause)| weight * cause).sum()
    }

    fn learn(&mut self, causes: [f64; N], seconds: f64) {
        let length: f64 = causes.iter().map(|cause| cause * cause).sum();
        if length == 0.0 {
            return;
        }
        let expected = self.seconds(causes);
        let mut error = seconds - expected;
        if self.learned >= TRUSTED_STEPS {
            let most = SURPRISE_MAX * expected;
            error = error.clamp(-most, most);
        }
        self.learned = self.learned.saturating_add(1);
        let rate = RATE_MIN.max(1.0 / f64::from(self.learned));
        for (weight, cause) in self.weights.iter_mut().zip(causes) {
            *weight = (*weight + rate * error * cause / length).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use messages::{PlanRow, SequenceId, SlotIndex, StepIndex};

    use super::*;

    /// A machine whose steps take what the weights say, give or take a tenth.
    struct Machine {
        step: f64,
        row: f64,
        token: f64,
        token_position: f64,
        /// Of reading one position before a chunk.
        chunk_position: f64,
        noise: u64,
    }

    impl Machine {
        fn seconds(&mut self, plan: &StepPlan) -> f64 {
            self.noise = self.noise.wrapping_mul(6364136223846793005).wrapping_add(1);
            let noise = 0.9 + 0.2 * ((self.noise >> 33) % 1000) as f64 / 1000.0;
            let mut seconds = self.step;
            for row in &plan.rows {
                let length = f64::from(row.length);
                if row.sample_index.is_some() {
                    seconds += self.row;
                } else {
                    let positions = f64::from(row.start) + length / 2.0;
                    seconds += length * (self.token + positions * self.token_position);
                    seconds += f64::from(row.start) * self.chunk_position;
                }
            }
            seconds * noise
        }
    }

    fn row(sequence: u64, start: u32, length: u32, samples: bool) -> PlanRow {
        PlanRow {
            sequence: SequenceId(sequence),
            slot: SlotIndex(sequence as u32),
            start,
            length,
            sample_index: samples.then_some(0),
            proposed: 0,
        }
    }

    fn step(rows: Vec<PlanRow>) -> StepPlan {
        StepPlan { rows, ..StepPlan::empty(StepIndex(0)) }
    }

    /// Runs one step of `streams` and, where there is a prompt, a chunk of it at its pace.
    fn run(
        pacing: &mut Pacing,
        machine: &mut Machine,
        streams: u32,
        prompt: Option<&mut u32>,
    ) -> f64 {
        let outlook = Outlook {
            streams,
            stream_positions: u64::from(streams) * 200,
            has_prompts: prompt.is_some(),
            prompt_position_max: prompt.as_ref().map_or(0, |position| **position),
        };
        let pace = pacing.pace(&outlook);
        let mut rows: Vec<_> =
            (0..streams).map(|index| row(u64::from(index), 200, 1, true)).collect();
        if let Some(position) = prompt {
            let length = pace.prompt_tokens_max.min(256);
            rows.push(row(99, *position, length, false));
            *position += length;
        }
        let plan = step(rows);
        pacing.planned(&plan);
        let seconds = machine.seconds(&plan);
        pacing.finished(Duration::from_secs_f64(seconds));
        seconds
    }

    /// The share of steps beside a long prompt that take longer than `most` seconds, and how much
    /// of the prompt was read in 300 of them.
    fn beside_a_prompt(options: PacingOptions, mut machine: Machine, most: f64) -> (f64, u32) {
        let mut pacing = Pacing::new(options);
        let mut alone = 0;
        while alone < 2000 {
            run(&mut pacing, &mut machine, 0, Some(&mut alone));
        }
        for streams in [1, 2, 4, 8].into_iter().flat_map(|streams| [streams; 40]) {
            run(&mut pacing, &mut machine, streams, None);
        }
        let mut position = 0;
        let steps: Vec<f64> =
            (0..300).map(|_| run(&mut pacing, &mut machine, 8, Some(&mut position))).collect();
        let late = steps.iter().filter(|&&seconds| seconds > most).count();
        (late as f64 / steps.len() as f64, position)
    }

    fn small() -> Machine {
        Machine {
            step: 2.0e-3,
            row: 0.6e-3,
            token: 0.5e-3,
            token_position: 0.1e-6,
            chunk_position: 1.5e-6,
            noise: 1,
        }
    }

    #[test]
    fn steps_with_prompts_stay_below_twice_those_without() {
        let streams = 2.0e-3 + 8.0 * 0.6e-3;
        let (late, read) = beside_a_prompt(PacingOptions::default(), small(), 2.0 * streams);
        assert!(late <= 0.01, "{late} of the steps are late");
        assert!(read > 300 * 6, "{read} tokens were read in 300 steps");
    }

    #[test]
    fn steps_with_prompts_keep_to_the_target() {
        let machine = Machine {
            step: 30e-3,
            row: 5e-3,
            token: 4e-3,
            token_position: 1e-6,
            chunk_position: 0.0,
            noise: 2,
        };
        let (late, read) = beside_a_prompt(PacingOptions::default(), machine, 0.115);
        assert!(late <= 0.02, "{late} of the steps are late");
        assert!(read >= 300 * 5, "{read} tokens were read in 300 steps");
    }

    #[test]
    fn a_prompt_is_read_even_where_streams_alone_are_late() {
        let (token_position, chunk_position) = (0.0, 0.0);
        let machine =
            Machine { step: 0.3, row: 0.05, token: 0.01, token_position, chunk_position, noise: 3 };
        let (_, read) = beside_a_prompt(PacingOptions::default(), machine, 0.1);
        assert!(read >= 300 * 5, "{read} tokens were read in 300 steps");
    }

    #[test]
    fn without_streams_or_a_target_nothing_is_held_back() {
        let outlook = Outlook { has_prompts: true, ..Outlook::default() };
        assert_eq!(Pacing::new(PacingOptions::default()).pace(&outlook), Pace::FREE);
        let options = PacingOptions { itl_target: None, ..PacingOptions::default() };
        let beside = Outlook { streams: 8, ..outlook };
        assert_eq!(Pacing::new(options).pace(&beside), Pace::FREE);
        let mut paced = Pacing::new(PacingOptions::default());
        assert_eq!(paced.pace(&beside).prompt_tokens_max, TOKENS_FIRST);
        paced.set_options(options);
        assert_eq!(paced.pace(&beside), Pace::FREE, "other options hold at once");
    }

    #[test]
    fn it_follows_a_machine_that_gets_slower() {
        let mut pacing = Pacing::new(PacingOptions::default());
        let mut machine = small();
        let mut position = 0;
        for streams in [0, 8].into_iter().flat_map(|streams| [streams; 30]) {
            let prompt = (streams == 0).then_some(&mut position);
            run(&mut pacing, &mut machine, streams, prompt);
        }
        let mut throttled = Machine {
            step: 6e-3,
            row: 1.8e-3,
            token: 1.5e-3,
            token_position: 0.3e-6,
            chunk_position: 4.5e-6,
            noise: 4,
        };
        position = 0;
        for _ in 0..100 {
            run(&mut pacing, &mut throttled, 8, None);
            run(&mut pacing, &mut throttled, 8, Some(&mut position));
        }
        let alone = 6e-3 + 8.0 * 1.8e-3;
        let beside = run(&mut pacing, &mut throttled, 8, Some(&mut position));
        assert!(beside > 1.3 * alone && beside < 2.0 * alone, "{beside} beside {alone}");
    }
}
