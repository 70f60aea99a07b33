//! How many tokens of prompts may a step have, so that running streams keep their pace?
//!
//! A step that reads prompts takes longer than one of streams alone, and every stream waits for it.
//! What steps take is measured and kept as a small linear model: a step, rows of streams, tokens of
//! prompts, and the positions that are read for all of them. Each step moves the weights a part of
//! the way to what it took (normalized least mean squares: B. Widrow, M. Hoff, 1960), so the model
//! follows a machine that gets slower or faster: the first two from steps of streams alone, the
//! third from steps with both, and the last from either. Steps of prompts alone tell nothing, for
//! what their long pieces take for a token is less than what short ones do.
//!
//! A row reads all positions before it, however short it is, and each of its tokens attends to
//! them; which share is whose ([`READING_SHARE`]) is not measured, for steps beside streams have
//! chunks that are equally long, which tell what one takes but not for what. What a position takes
//! is the same in streams and prompts: else a prompt would be charged for streams that get longer
//! while it is read, and read ever more slowly.
//!
//! Prompts may then take as long as keeps the step within the target, and within a share of what
//! the streams alone take, which grows with the number of prompts; and in any case so many tokens
//! that a part of the chunk's time is theirs, and a part of the streams' time is the chunk's, so
//! that it is read at last.
//!
//! While a long prompt is read every step has some of it, so a machine that gets slower meanwhile
//! would look like a prompt that gets dearer, of which ever less is read. So where steps have few
//! tokens of prompts every sixteenth has none, and tells what streams take alone.
//!
//! Several models compute in turns, so a step of prompts alone holds the streams of others up: it
//! then has what takes half the target.
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
    /// By how much each prompt may make steps longer than streams alone do, in percent.
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
/// Of what a row of one token takes for a position before it: what it takes to read that, which a
/// second token would not add. Fitted to 3,700 steps of SmolLM2 on two Zen 5 cores, eight streams
/// alone or with a piece of a prompt: 0.61 of 0.87 ms for 1,000 positions.
const READING_SHARE: f64 = 0.7;
/// Before anything is measured.
const TOKENS_FIRST: u32 = 16;
/// What a new step of prompts alone counts.
const ALONE_RATE: f64 = 0.25;
/// So few tokens of prompts in a step may come of a machine that got slower.
const TOKENS_FEW: u32 = 8;
/// Steps beside prompts in a row, before one of streams alone.
const BESIDE_MAX: u32 = 15;

pub(crate) struct Pacing {
    options: PacingOptions,
    costs: Costs,
    in_flight: VecDeque<Shape>,
    /// Steps of streams planned beside prompts since the last of streams alone.
    beside: u32,
    /// Seconds that a token takes in a step of prompts alone, once there was one.
    alone_token: Option<f64>,
}

/// What a step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Shape {
    steps: f64,
    /// Rows of streams, guesses included.
    rows: f64,
    /// Of prompts.
    tokens: f64,
    /// Positions, as one token reads and attends to them.
    reads: f64,
}

impl Pacing {
    pub(crate) fn new(options: PacingOptions) -> Self {
        Self {
            options,
            costs: Costs::default(),
            in_flight: VecDeque::new(),
            beside: 0,
            alone_token: None,
        }
    }

    /// Others hold from the next plan on.
    pub(crate) fn set_options(&mut self, options: PacingOptions) {
        self.options = options;
    }

    /// How fast the next plan may read prompts; `others_stream`: models that share the cores have
    /// running streams.
    pub(crate) fn pace(&self, outlook: &Outlook, others_stream: bool) -> Pace {
        let Some(target) = self.options.itl_target else { return Pace::FREE };
        if outlook.prompts == 0 || outlook.streams == 0 && !others_stream {
            return Pace::FREE;
        }
        let target = if others_stream { target / 2 } else { target };
        if outlook.streams == 0 {
            let tokens = self.alone_token.map(|seconds| target.as_secs_f64() / seconds.max(1e-9));
            let alone_tokens_max = tokens.map_or(TOKENS_FIRST, |tokens| tokens.max(1.0) as u32);
            return Pace { alone_tokens_max, ..Pace::FREE };
        }
        let none = Shape::default();
        let (rows, reads) = (f64::from(outlook.streams), outlook.stream_positions as f64);
        let streams = self.costs.seconds(Shape { steps: 1.0, rows, reads, ..none });
        // More for more prompts, since the last of them waits for all; half as fast as they grow,
        // since streams wait, too.
        let slowdown = f64::from(self.options.slowdown_percent) / 100.0;
        let slowdown = slowdown * f64::from(outlook.prompts).sqrt();
        let beside = target.as_secs_f64() - streams;
        let spare = match self.costs.alone > 0 {
            true => beside.min(streams * slowdown).max(streams * SHARE_MIN),
            false => beside,
        };
        let position = f64::from(outlook.prompt_position_max);
        let chunk = self.costs.seconds(Shape { reads: READING_SHARE * position, ..none });
        let reads = (1.0 - READING_SHARE) * position;
        let token = self.costs.seconds(Shape { tokens: 1.0, reads, ..none });
        let for_tokens = (spare - chunk).max(spare.min(TOKENS_SHARE_MIN * chunk));
        let prompt_tokens_max = match self.costs.beside > 0 && token > 0.0 {
            true => (for_tokens / token).clamp(1.0, 1e9) as u32,
            false => TOKENS_FIRST,
        };
        let is_doubtful = prompt_tokens_max < TOKENS_FEW && self.beside >= BESIDE_MAX;
        let prompt_tokens_max = if is_doubtful { 0 } else { prompt_tokens_max };
        Pace { prompt_tokens_max, ..Pace::FREE }
    }

    pub(crate) fn planned(&mut self, plan: &StepPlan) {
        let mut shape = Shape { steps: 1.0, ..Shape::default() };
        for row in &plan.rows {
            let (start, length) = (f64::from(row.start), f64::from(row.length));
            let attended = length * (start + length / 2.0);
            shape.reads += READING_SHARE * start + (1.0 - READING_SHARE) * attended;
            if row.sample_index.is_some() && row.length == 1 + row.proposed {
                shape.rows += length;
            } else {
                shape.tokens += length;
            }
        }
        if shape.rows > 0.0 {
            self.beside = if shape.tokens > 0.0 { self.beside + 1 } else { 0 };
        }
        self.in_flight.push_back(shape);
    }

    /// The oldest step in flight took so long, in which nothing else went on.
    pub(crate) fn finished(&mut self, duration: Duration) {
        let shape = self.in_flight.pop_front().expect("invariant: steps complete in order");
        let (seconds, expected) = (duration.as_secs_f64(), self.costs.seconds(shape));
        let Shape { rows, tokens, reads, .. } = shape;
        tracing::trace!(rows, tokens, reads, seconds, expected, "step");
        if rows > 0.0 {
            self.costs.learn(shape, seconds);
        } else if tokens > 0.0 {
            let token = self.alone_token.get_or_insert(seconds / tokens);
            *token += ALONE_RATE * (seconds / tokens - *token);
        }
    }
}

impl Shape {
    /// Scaled so that what each stands for takes about as long on the machines known so far; but
    /// tokens of prompts count more, so that what is not expected of a step with some is put down
    /// to them first.
    fn causes(self) -> [f64; 4] {
        [self.steps, self.rows / 8.0, self.tokens / 2.0, self.reads / 4096.0]
    }
}

/// The last ten or so steps count.
const RATE_MIN: f64 = 0.1;
/// From so many steps on, one that is far off the others is taken for a disturbance.
const TRUSTED_STEPS: u32 = 8;
/// Of what was expected: by so much one step can be off and still count fully.
const SURPRISE_MAX: f64 = 0.5;

/// Seconds as a sum of causes, each with its weight.
#[derive(Default)]
struct Costs {
    weights: [f64; 4],
    /// Steps learned from, of streams alone and of streams beside prompts.
    alone: u32,
    beside: u32,
}

impl Costs {
    fn seconds(&self, shape: Shape) -> f64 {
        self.weights.iter().zip(shape.causes()).map(|(weight, cause)| weight * cause).sum()
    }

    fn learn(&mut self, shape: Shape, seconds: f64) {
        let [step, rows, tokens, reads] = shape.causes();
        let (learned, causes) = match shape.tokens > 0.0 {
            true => (&mut self.beside, [0.0, 0.0, tokens, reads]),
            false => (&mut self.alone, [step, rows, 0.0, reads]),
        };
        *learned = learned.saturating_add(1);
        let (rate, is_trusted) =
            (RATE_MIN.max(1.0 / f64::from(*learned)), *learned > TRUSTED_STEPS);
        let expected = self.seconds(shape);
        let mut error = seconds - expected;
        if is_trusted {
            let most = SURPRISE_MAX * expected;
            error = error.clamp(-most, most);
        }
        let length: f64 = causes.iter().map(|cause| cause * cause).sum();
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
        /// Of reading one position before a row.
        chunk_position: f64,
        noise: u64,
    }

    impl Machine {
        fn seconds(&mut self, plan: &StepPlan) -> f64 {
            self.noise = self.noise.wrapping_mul(6364136223846793005).wrapping_add(1);
            let noise = 0.9 + 0.2 * ((self.noise >> 33) % 1000) as f64 / 1000.0;
            let mut seconds = self.step;
            for row in &plan.rows {
                let (start, length) = (f64::from(row.start), f64::from(row.length));
                let token = if row.sample_index.is_some() { self.row } else { self.token };
                let positions = start + length / 2.0;
                seconds += length * (token + positions * self.token_position);
                seconds += start * self.chunk_position;
            }
            seconds * noise
        }

        /// What eight streams take that have got so far.
        fn alone(&self, at: u32) -> f64 {
            let position = self.token_position + self.chunk_position;
            self.step + 8.0 * (self.row + f64::from(at) * position)
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

    /// How far streams have got where that does not matter.
    const AT: u32 = 200;

    /// Runs one step of `streams` and, where there is a prompt, a chunk of it at its pace.
    fn run(
        pacing: &mut Pacing,
        machine: &mut Machine,
        streams: u32,
        prompt: Option<&mut u32>,
    ) -> f64 {
        run_at(AT, pacing, machine, streams, prompt)
    }

    fn run_at(
        at: u32,
        pacing: &mut Pacing,
        machine: &mut Machine,
        streams: u32,
        prompt: Option<&mut u32>,
    ) -> f64 {
        let outlook = Outlook {
            streams,
            stream_positions: u64::from(streams * at),
            prompts: u32::from(prompt.is_some()),
            prompt_position_max: prompt.as_ref().map_or(0, |position| **position),
        };
        let pace = pacing.pace(&outlook, false);
        let mut rows: Vec<_> =
            (0..streams).map(|index| row(u64::from(index), at, 1, true)).collect();
        let length = pace.prompt_tokens_max.min(256);
        if let Some(position) = prompt
            && length > 0
        {
            rows.push(row(99, *position, length, false));
            *position += length;
        }
        let plan = step(rows);
        pacing.planned(&plan);
        let seconds = machine.seconds(&plan);
        pacing.finished(Duration::from_secs_f64(seconds));
        seconds
    }

    /// Pacing that has seen prompts alone, and streams alone.
    fn experienced(options: PacingOptions, machine: &mut Machine) -> Pacing {
        let mut pacing = Pacing::new(options);
        let mut alone = 0;
        while alone < 2000 {
            run(&mut pacing, machine, 0, Some(&mut alone));
        }
        for streams in [1, 2, 4, 8].into_iter().flat_map(|streams| [streams; 40]) {
            run(&mut pacing, machine, streams, None);
        }
        pacing
    }

    /// The share of steps beside a long prompt that take longer than `most` seconds, and how much
    /// of the prompt was read in 300 of them.
    fn beside_a_prompt(options: PacingOptions, machine: Machine, most: f64) -> (f64, u32) {
        behind(0, options, machine, most)
    }

    /// The same where so much of the prompt is read already.
    fn behind(start: u32, options: PacingOptions, mut machine: Machine, most: f64) -> (f64, u32) {
        let mut pacing = experienced(options, &mut machine);
        let mut position = start;
        // What the first pieces take is not known yet.
        for _ in 0..if start > 0 { 20 } else { 0 } {
            run(&mut pacing, &mut machine, 8, Some(&mut position));
        }
        let begun = position;
        let steps: Vec<f64> =
            (0..300).map(|_| run(&mut pacing, &mut machine, 8, Some(&mut position))).collect();
        let late = steps.iter().filter(|&&seconds| seconds > most).count();
        (late as f64 / steps.len() as f64, position - begun)
    }

    fn small() -> Machine {
        Machine {
            step: 2.5e-3,
            row: 0.38e-3,
            token: 0.31e-3,
            token_position: 0.26e-6,
            chunk_position: 0.61e-6,
            noise: 1,
        }
    }

    #[test]
    fn steps_with_prompts_stay_below_twice_those_without() {
        let streams = small().alone(AT);
        let (late, read) = beside_a_prompt(PacingOptions::default(), small(), 2.0 * streams);
        assert!(late <= 0.05, "{late} of the steps are late");
        assert!(read > 300 * 6, "{read} tokens were read in 300 steps");
    }

    #[test]
    fn short_pieces_far_behind_are_told_from_what_reading_takes() {
        // Reading takes what was thought, and nothing.
        for chunk_position in [0.61e-6, 0.0] {
            let machine = Machine { chunk_position, ..small() };
            let most = 2.0 * machine.alone(AT);
            let (late, read) = behind(4000, PacingOptions::default(), machine, most);
            assert!(late <= 0.05, "{late} of the steps are late at {chunk_position}");
            assert!(read >= 500, "{read} tokens were read in 300 steps at {chunk_position}");
        }
    }

    /// Streams grow while a prompt is read, and take longer for that: if it were put down to the
    /// prompt, less and less of it would be read in each step.
    #[test]
    fn streams_that_get_longer_do_not_hold_a_prompt_up() {
        let mut machine = small();
        let mut pacing = experienced(PacingOptions::default(), &mut machine);
        let (mut position, mut steps, mut late) = (0, 0, 0);
        while position < 4000 {
            let at = 200 + steps;
            let seconds = run_at(at, &mut pacing, &mut machine, 8, Some(&mut position));
            late += u32::from(seconds > 2.0 * machine.alone(at));
            steps += 1;
        }
        assert!(steps < 1000, "4000 tokens took {steps} steps");
        assert!(late * 50 <= steps, "{late} of {steps} steps are late");
    }

    /// Another program takes a core when the prompt has just begun.
    #[test]
    fn a_machine_that_gets_slower_does_not_hold_a_prompt_up() {
        let mut machine = small();
        let mut pacing = experienced(PacingOptions::default(), &mut machine);
        let (mut position, mut steps) = (0, 0);
        for _ in 0..20 {
            run(&mut pacing, &mut machine, 8, Some(&mut position));
        }
        let (step, row, token) = (5.0 * machine.step, 5.0 * machine.row, 5.0 * machine.token);
        machine = Machine { step, row, token, ..machine };
        while position < 4000 {
            run(&mut pacing, &mut machine, 8, Some(&mut position));
            steps += 1;
        }
        assert!(steps < 1000, "4000 tokens took {steps} steps");
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
    fn many_prompts_are_read_faster_up_to_the_target() {
        let mut machine = small();
        let mut pacing = experienced(PacingOptions::default(), &mut machine);
        let mut position = 0;
        for _ in 0..40 {
            run(&mut pacing, &mut machine, 8, Some(&mut position));
        }
        let outlook = |prompts| Outlook {
            streams: 8,
            stream_positions: u64::from(8 * AT),
            prompts,
            prompt_position_max: 0,
        };
        let tokens = |prompts| pacing.pace(&outlook(prompts), false).prompt_tokens_max;
        let [one, four, many] = [1, 4, 1000].map(tokens);
        assert!((2 * one..=2 * one + 2).contains(&four), "{one}, {four}");
        let spare = 0.1 - (machine.step + 8.0 * machine.row);
        let most = (spare / machine.token) as u32;
        assert!(many > four && many <= most + most / 5, "{many} of {most}");
    }

    #[test]
    fn without_streams_or_a_target_nothing_is_held_back() {
        let outlook = Outlook { prompts: 1, ..Outlook::default() };
        assert_eq!(Pacing::new(PacingOptions::default()).pace(&outlook, false), Pace::FREE);
        let options = PacingOptions { itl_target: None, ..PacingOptions::default() };
        let beside = Outlook { streams: 8, ..outlook };
        assert_eq!(Pacing::new(options).pace(&beside, false), Pace::FREE);
        let mut paced = Pacing::new(PacingOptions::default());
        assert_eq!(paced.pace(&beside, false).prompt_tokens_max, TOKENS_FIRST);
        paced.set_options(options);
        assert_eq!(paced.pace(&beside, false), Pace::FREE, "other options hold at once");
    }

    /// Their tokens wait for whole steps of this one.
    #[test]
    fn steps_of_prompts_alone_are_short_while_others_stream() {
        let mut machine = small();
        let mut pacing = Pacing::new(PacingOptions::default());
        let outlook = Outlook { prompts: 1, ..Outlook::default() };
        let (mut position, mut late) = (0, 0);
        for _ in 0..100 {
            let length = pacing.pace(&outlook, true).alone_tokens_max.min(512);
            let plan = step(vec![row(1, position, length, false)]);
            position += length;
            pacing.planned(&plan);
            let seconds = machine.seconds(&plan);
            late += u32::from(seconds > 0.065);
            pacing.finished(Duration::from_secs_f64(seconds));
        }
        assert!(late <= 2, "{late} of 100 steps are late");
        assert!(position > 100 * 40, "{position} tokens were read in 100 steps");
        assert_eq!(pacing.pace(&outlook, false), Pace::FREE, "nobody waits for them");
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
        let alone = throttled.alone(AT);
        let beside = run(&mut pacing, &mut throttled, 8, Some(&mut position));
        assert!(beside > 1.3 * alone && beside < 2.0 * alone, "{beside} beside {alone}");
    }
}
