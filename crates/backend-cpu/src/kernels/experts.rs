//! Mixtures of experts: each token's rows go to the experts that its scores choose, grouped by
//! expert so that an expert's weights are read once for all tokens that chose it.
//!
//! Phases of the team: choose; count and sort (one member); gather rows by expert; gate and up;
//! down; and each token sums what its experts gave, in the order in which it chose them. Rows of
//! an expert are tiles of their own, and a row's arithmetic is that of `linear` and `rms_norm`, so
//! a token's result depends on its own row only.
//!
//! A decode of one token moves `used / experts` of the weights once. A step of `n` tokens moves all
//! experts that any of them chose, and computes `n * used` rows of three products.

use crate::arch::{Isa, Kernel};
use crate::kernels::linear::{Finish, Linear, LinearInput, WAITING_MAX, near_tokens};
use crate::kernels::rms_norm::{RowPass, one_row};
use crate::memory::LargeBuffer;
use crate::packed::PackedMatrix;
use crate::rows::{QuantizedRows, Rows};
use crate::team::Worker;
use crate::vector::Vector;
use device::{HeapError, HeapPool};
use ops::experts::{Choice, Learned, Routing};
use ops::gated_linear::Activation;
use ops::linear::Sum;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Tokens that are sorted together: with 8 of 128 experts some 32 rows for each, enough that
/// weights are read for many rows, while 4,096 rows of 2,048 floats are 32 MB.
const ROUND_TOKENS: usize = 512;

/// One layer's mixture.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    pub routing: &'a Routing,
    pub learned: Learned<'a>,
    /// `[tokens, experts]`
    pub scores: Rows<'a>,
    /// `[tokens, width]`
    pub input: Rows<'a>,
    /// One an expert, gates and ups: `[inner, width]`.
    pub gate_up: [&'a [PackedMatrix]; 2],
    /// One an expert: `[width, inner]`.
    pub down: &'a [PackedMatrix],
    /// `[experts, inner]` of gate and up, `[experts, width]` of down.
    pub biases: Option<[&'a [f32]; 3]>,
    pub activation: Activation,
    pub scratch: &'a ExpertsScratch,
    /// `[tokens, width]`
    pub output: Rows<'a>,
    pub sum: Sum,
}

/// What sizes the work space: the largest of a model's mixtures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertsSizes {
    pub experts: usize,
    pub used: usize,
    pub width: usize,
    pub inner: usize,
}

impl ExpertsSizes {
    /// Room for both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            experts: self.experts.max(other.experts),
            used: self.used.max(other.used),
            width: self.width.max(other.width),
            inner: self.inner.max(other.inner),
        }
    }

    fn pairs(&self, tokens: usize) -> usize {
        tokens.min(ROUND_TOKENS) * self.used
    }

    /// Bytes of choices, sources, places, lists of experts, rows and inner rows.
    fn parts(&self, tokens: usize) -> [usize; 6] {
        let pairs = self.pairs(tokens);
        [
            pairs * size_of::<Choice>(),
            4 * pairs,
            4 * pairs,
            8 * (self.experts + 1),
            4 * pairs * self.width,
            4 * pairs * self.inner,
        ]
    }
}

/// Work space for the largest step.
pub struct ExpertsScratch {
    sizes: ExpertsSizes,
    pairs: usize,
    /// `[tokens][used]`
    choices: LargeBuffer,
    /// By place, that is sorted by expert: the token.
    sources: LargeBuffer,
    /// `[tokens][used]`: the place.
    places: LargeBuffer,
    /// `[experts + 1]` where an expert's places begin, then which experts have any, and how many.
    lists: LargeBuffer,
    /// `[pairs, width]`: rows on their way in, and on their way out.
    rows: LargeBuffer,
    /// `[pairs, inner]`
    inner: LargeBuffer,
    integers: QuantizedRows,
}

impl ExpertsScratch {
    /// Work space for steps of `tokens`, out of a pool.
    ///
    /// # Errors
    /// When the pool has no room.
    pub fn carve(pool: &HeapPool, sizes: ExpertsSizes, tokens: usize) -> Result<Self, HeapError> {
        let carve = |bytes| LargeBuffer::carve(pool, "experts", bytes);
        let pairs = sizes.pairs(tokens);
        let [choices, sources, places, lists, rows, inner] = sizes.parts(tokens);
        Ok(Self {
            sizes,
            pairs,
            choices: carve(choices)?,
            sources: carve(sources)?,
            places: carve(places)?,
            lists: carve(lists)?,
            rows: carve(rows)?,
            inner: carve(inner)?,
            integers: QuantizedRows::carve(pool, pairs, sizes.width.max(sizes.inner))?,
        })
    }

    /// Bytes of a work space made by [`ExpertsScratch::carve`].
    pub fn bytes(sizes: ExpertsSizes, tokens: usize) -> usize {
        let pairs = sizes.pairs(tokens);
        let integers = QuantizedRows::bytes(pairs, sizes.width.max(sizes.inner));
        sizes.parts(tokens).iter().sum::<usize>() + integers
    }

    /// What it takes of a pool.
    pub fn room(sizes: ExpertsSizes, tokens: usize) -> usize {
        let pairs = sizes.pairs(tokens);
        let integers = QuantizedRows::room(pairs, sizes.width.max(sizes.inner));
        sizes.parts(tokens).map(HeapPool::room).iter().sum::<usize>() + integers
    }

    /// The memory it is made of.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = &LargeBuffer> {
        [&self.choices, &self.sources, &self.places, &self.lists, &self.rows, &self.inner]
            .into_iter()
            .chain(self.integers.buffers())
    }
}

/// Computes every token; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the output or
/// the scratch, or writes scores or input meanwhile; the output overlaps neither.
///
/// # Panics
/// If shapes do not match or the scratch is too small.
pub unsafe fn experts(worker: &Worker<'_>, isa: Isa, call: &Experts<'_>) {
    call.check();
    let tokens = call.input.rows();
    for first in (0..tokens).step_by(ROUND_TOKENS) {
        let round = Round { call, first, tokens: ROUND_TOKENS.min(tokens - first) };
        // SAFETY: the caller's promise.
        unsafe { round.run(worker, isa) };
    }
}

impl Experts<'_> {
    fn check(&self) {
        let experts = self.routing.experts as usize;
        let (tokens, width) = (self.input.rows(), self.input.width());
        assert_eq!((self.scores.rows(), self.scores.width()), (tokens, experts), "scores");
        assert_eq!((self.output.rows(), self.output.width()), (tokens, width), "output");
        for (matrices, shape) in [
            (self.gate_up[0], (self.inner(), width)),
            (self.gate_up[1], (self.inner(), width)),
            (self.down, (width, self.inner())),
        ] {
            assert_eq!(matrices.len(), experts, "a matrix for each of {experts} experts");
            let fits = |matrix: &PackedMatrix| (matrix.rows(), matrix.cols()) == shape;
            assert!(matrices.iter().all(fits), "experts of {shape:?}");
        }
        if let Some([gate, up, down]) = self.biases {
            let lengths = (experts * self.inner(), experts * self.inner(), experts * width);
            assert_eq!((gate.len(), up.len(), down.len()), lengths, "a bias for each row");
        }
        let ExpertsSizes { experts: most, used, width: wide, inner } = self.scratch.sizes;
        let fits = experts <= most && width <= wide && self.inner() <= inner;
        assert!(fits && self.routing.used as usize <= used, "scratch for such a mixture");
        let pairs = tokens.min(ROUND_TOKENS) * self.routing.used as usize;
        assert!(pairs <= self.scratch.pairs, "scratch for {pairs} rows");
    }

    fn inner(&self) -> usize {
        self.gate_up[0][0].rows()
    }
}

/// Some tokens of a step.
#[derive(Clone, Copy)]
struct Round<'a> {
    call: &'a Experts<'a>,
    first: usize,
    tokens: usize,
}

/// What kind of product a phase computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    GateUp,
    Down,
}

impl<'a> Round<'a> {
    /// # Safety
    /// As `experts`.
    unsafe fn run(self, worker: &Worker<'_>, isa: Isa) {
        let call = self.call;
        worker.for_each(self.tokens, |token| {
            // SAFETY: nobody writes scores; a token's choices are this task's.
            unsafe {
                let scores = call.scores.row(self.first + token);
                call.routing.choose(scores, call.learned, self.choices_mut(token));
            }
        });
        // SAFETY: one task; choices are complete since the phase before.
        worker.once(|| unsafe { self.sort() });
        // SAFETY: the lists are complete by now, as are each phase's inputs.
        unsafe {
            self.each_row(worker, isa, Phase::GateUp);
            self.products(worker, isa, Phase::GateUp);
            if self.wants_integers(Phase::Down) {
                self.each_row(worker, isa, Phase::Down);
            }
            self.products(worker, isa, Phase::Down);
        }
        worker.for_each(self.tokens, |token| {
            // SAFETY: products are complete; each output row is one task's.
            unsafe { isa.run(OneToken { round: self, token }) };
        });
    }

    fn used(&self) -> usize {
        self.call.routing.used as usize
    }

    fn pairs(&self) -> usize {
        self.tokens * self.used()
    }

    /// # Safety
    /// Nobody else touches the token's choices.
    #[allow(clippy::mut_from_ref, reason = "members share the scratch; see the contract")]
    unsafe fn choices_mut(&self, token: usize) -> &'a mut [Choice] {
        let start = self.call.scratch.choices.pointer().cast::<Choice>();
        // SAFETY: `check` saw room for all pairs, zeroed at first, which is a choice.
        unsafe { std::slice::from_raw_parts_mut(start.add(token * self.used()), self.used()) }
    }

    /// # Safety
    /// Nobody writes choices.
    unsafe fn choices(&self) -> &'a [Choice] {
        let start = self.call.scratch.choices.pointer().cast::<Choice>();
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(start, self.pairs()) }
    }

    /// # Safety
    /// Nobody else touches the list.
    #[allow(clippy::mut_from_ref, reason = "members share the scratch; see the contract")]
    unsafe fn list_mut(buffer: &'a LargeBuffer, length: usize) -> &'a mut [u32] {
        assert!(4 * length <= buffer.len(), "a list of {length}");
        // SAFETY: inside the buffer, which starts zeroed.
        unsafe { std::slice::from_raw_parts_mut(buffer.pointer().cast(), length) }
    }

    /// # Safety
    /// Nobody writes the list.
    unsafe fn list(buffer: &'a LargeBuffer, length: usize) -> &'a [u32] {
        assert!(4 * length <= buffer.len(), "a list of {length}");
        // SAFETY: inside the buffer, which starts zeroed.
        unsafe { std::slice::from_raw_parts(buffer.pointer().cast(), length) }
    }

    /// Gives each pair its place among its expert's rows, in the order of tokens.
    ///
    /// # Safety
    /// Choices are complete, and nobody else touches the lists.
    unsafe fn sort(&self) {
        let (scratch, experts) = (self.call.scratch, self.call.down.len());
        // SAFETY: the caller's promise; the lists are different buffers.
        let (choices, sources, places, lists) = unsafe {
            (
                self.choices(),
                Self::list_mut(&scratch.sources, self.pairs()),
                Self::list_mut(&scratch.places, self.pairs()),
                Self::list_mut(&scratch.lists, 2 * experts + 1),
            )
        };
        let (starts, active) = lists.split_at_mut(experts + 1);
        starts.fill(0);
        for choice in choices {
            starts[choice.expert as usize + 1] += 1;
        }
        let mut count = 0;
        for expert in 0..experts {
            if starts[expert + 1] > 0 {
                active[count] = expert as u32;
                count += 1;
            }
            starts[expert + 1] += starts[expert];
        }
        self.active_count().store(count as u32, Ordering::Release);
        // Where the next row of each goes; afterwards that is where the next expert's begin.
        for (pair, choice) in choices.iter().enumerate() {
            let next = &mut starts[choice.expert as usize];
            places[pair] = *next;
            sources[*next as usize] = (self.first + pair / self.used()) as u32;
            *next += 1;
        }
        starts.copy_within(0..experts, 1);
        starts[0] = 0;
    }

    /// How many experts have rows. Read between phases, where a member that is late may meet the
    /// writer of a later layer's: it then sees that its own phase is over.
    fn active_count(&self) -> &'a AtomicU32 {
        let (buffer, at) = (&self.call.scratch.lists, 2 * self.call.down.len() + 1);
        assert!(4 * (at + 1) <= buffer.len(), "a count behind the lists");
        // SAFETY: inside the buffer, aligned, behind all lists, and only used as an atomic.
        unsafe { AtomicU32::from_ptr(buffer.pointer().cast::<u32>().add(at)) }
    }

    /// The places of an expert's rows.
    ///
    /// # Safety
    /// Nobody writes the lists.
    unsafe fn range(&self, expert: usize) -> Range<usize> {
        // SAFETY: the caller's promise.
        let starts = unsafe { Self::list(&self.call.scratch.lists, self.call.down.len() + 1) };
        starts[expert] as usize..starts[expert + 1] as usize
    }

    fn wants_integers(&self, phase: Phase) -> bool {
        self.matrices(phase).iter().any(|all| all[0].wants_quantized())
    }

    fn wants_floats(&self, phase: Phase) -> bool {
        self.matrices(phase).iter().any(|all| !all[0].wants_quantized())
    }

    fn matrices(&self, phase: Phase) -> &'a [&'a [PackedMatrix]] {
        match phase {
            Phase::GateUp => &self.call.gate_up,
            Phase::Down => std::slice::from_ref(&self.call.down),
        }
    }

    fn rows(buffer: &'a LargeBuffer, rows: usize, width: usize) -> Rows<'a> {
        assert!(4 * rows * width <= buffer.len(), "{rows} rows of {width}");
        // SAFETY: inside the buffer, which starts zeroed; phases settle who writes.
        unsafe { Rows::from_raw(buffer.pointer().cast(), rows, width, width) }
    }

    fn wide_rows(&self) -> Rows<'a> {
        Self::rows(&self.call.scratch.rows, self.pairs(), self.call.input.width())
    }

    fn inner_rows(&self) -> Rows<'a> {
        Self::rows(&self.call.scratch.inner, self.pairs(), self.call.inner())
    }

    /// Brings every pair's row into the forms that the phase's products read.
    ///
    /// # Safety
    /// The lists and the rows read are complete.
    unsafe fn each_row(&self, worker: &Worker<'_>, isa: Isa, phase: Phase) {
        let scratch = self.call.scratch;
        let integers = self.wants_integers(phase);
        let floats = phase == Phase::GateUp && self.wants_floats(phase);
        worker.for_each(self.pairs(), |pair| {
            // SAFETY: the caller's promise.
            let (sources, places, range) = unsafe {
                let sources = Self::list(&scratch.sources, self.pairs());
                let range = self.range(self.choices()[pair].expert as usize);
                (sources, Self::list(&scratch.places, self.pairs()), range)
            };
            let row = places[pair] as usize - range.start;
            let (input, picks) = match phase {
                Phase::GateUp => (self.call.input, Some(&sources[range.clone()])),
                Phase::Down => (self.inner_rows().range(range.start, range.len()), None),
            };
            let view = || scratch.integers.view_behind(range.start, range.len(), input.width());
            let pass = RowPass {
                input,
                picks,
                norm: None,
                output: floats.then(|| self.wide_rows().range(range.start, range.len())),
                sum: Sum::Store,
                quantized: integers.then(view),
            };
            // SAFETY: a pair's row is one task's.
            unsafe { one_row(isa, &pass, row) };
        });
    }

    /// The products of a phase, of all experts that have rows.
    ///
    /// # Safety
    /// The lists and the phase's inputs are complete.
    unsafe fn products(&self, worker: &Worker<'_>, isa: Isa, phase: Phase) {
        let experts = self.call.down.len();
        let count = self.active_count().load(Ordering::Acquire) as usize;
        let blocks = self.matrices(phase)[0][0].blocks();
        // 4 tasks a member even out what other programs take away.
        let step = (count * blocks / (4 * worker.members())).clamp(1, 16.min(blocks));
        let tasks = blocks.div_ceil(step);
        worker.for_each_near(count * tasks, |task| {
            // SAFETY: the caller's promise.
            let lists = unsafe { Self::list(&self.call.scratch.lists, 2 * experts + 1) };
            let expert = lists[experts + 1..][task / tasks] as usize;
            let start = task % tasks * step;
            let blocks = start..blocks.min(start + step);
            // SAFETY: an expert's blocks of rows are one task's.
            unsafe { self.product(isa, phase, expert, blocks) };
        });
    }

    /// # Safety
    /// As `products`; these blocks are the caller's.
    unsafe fn product(&self, isa: Isa, phase: Phase, expert: usize, blocks: Range<usize>) {
        let call = self.call;
        // SAFETY: the caller's promise.
        let range = unsafe { self.range(expert) };
        let bias = |index: usize, rows: usize| {
            call.biases.map(|biases| &biases[index][expert * rows..(expert + 1) * rows])
        };
        let (inner, width) = (call.inner(), call.input.width());
        let cut = |rows: Rows<'a>| rows.range(range.start, range.len());
        let (linear, input) = match phase {
            Phase::GateUp => {
                let (up, up_bias) = (&call.gate_up[1][expert], bias(1, inner));
                let finish = Finish::Gated { up, up_bias, activation: call.activation };
                let (matrix, bias) = (&call.gate_up[0][expert], bias(0, inner));
                (Linear { matrix, bias, output: cut(self.inner_rows()), finish }, self.wide_rows())
            }
            Phase::Down => {
                let (matrix, bias) = (&call.down[expert], bias(2, width));
                let (output, finish) = (cut(self.wide_rows()), Finish::Store);
                (Linear { matrix, bias, output, finish }, self.inner_rows())
            }
        };
        let cols = linear.matrix.cols();
        let view = || call.scratch.integers.view_behind(range.start, range.len(), cols);
        let input = LinearInput {
            quantized: self.wants_integers(phase).then(view),
            rows: self.wants_floats(phase).then(|| cut(input)),
        };
        linear.check(&input, range.len());
        let near = near_tokens(isa, linear.matrix, range.len()).min(WAITING_MAX);
        for first in (0..range.len()).step_by(near) {
            let tokens = first..range.len().min(first + near);
            // SAFETY: the caller's promise.
            unsafe { linear.run(isa, &input, tokens, blocks.clone()) };
        }
    }
}

/// A token's sum over its experts.
struct OneToken<'a> {
    round: Round<'a>,
    token: usize,
}

impl Kernel for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { round, token } = self;
        let pairs = token * round.used()..(token + 1) * round.used();
        // SAFETY: the lists are complete, and so are the rows; the output row is this task's.
        unsafe {
            let places = Round::list(&round.call.scratch.places, round.pairs());
            let (rows, choices) = (round.wide_rows(), round.choices());
            let output = round.call.output.row_mut(round.first + token);
            if round.call.sum == Sum::Store {
                output.fill(0.0);
            }
            // Summed apart from what the output holds, as the reference does.
            for (at, output) in output.iter_mut().enumerate() {
                let mut total = 0.0;
                for pair in pairs.clone() {
                    let row = rows.pointer(places[pair] as usize);
                    total += choices[pair].weight * *row.add(at);
                }
                *output += total;
            }
        }
    }
}
