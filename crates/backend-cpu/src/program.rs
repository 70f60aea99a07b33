//! How does one step run? Every member of the team walks the same passes.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use device::{
    BlockCopier, BlockForm, BlockLease, Capacity, Fault, HeapPool, MemoryUse, Program,
    Rows as RowKind, SampleOutput, StepInputs, StepOutputs,
};
use ops::experts::Learned;
use ops::linear::Sum;
use ops::low_rank::LowRank;
use ops::sample_rows::{SampleError, Sampled, Scratch, Slot};
use ops::{ActivationId, EmbedBy, HeadColumns, LinearPart, RotaryId, WeightId};

use crate::Isa;
use crate::device::{Buffers, Forms, PARTS_MAX, Pass, PassSegment, Turns, is_added};
use crate::kernels::experts::{Experts, experts};
use crate::kernels::gated_linear::{Gate, gate as gate_rows};
use crate::kernels::linear::{Finish, Linear, LinearInput, linear};
use crate::kernels::paged_attention::{
    AttentionPlan, AttentionRows, PagedAttention, paged_attention,
};
use crate::kernels::rms_norm::{RmsNorm, RowPass, row_pass};
use crate::kernels::rotary::{HeadNorm, RotaryAppend, RotaryTable, rotary_append, rotary_table};
use crate::kernels::soft_cap::soft_cap;
use crate::kv_cache::CacheView;
use crate::memory::LargeBuffer;
use crate::rows::{QuantizedView, Rows};
use crate::states::States;
use crate::step::StepPlaces;
use crate::stored::Stored;
use crate::team::{Team, Worker};
use crate::warming::{CachePages, Warming};

/// First steps wake the team and touch its code; memory is touched without them. They also read all
/// weights twice, which for large models takes as long as the first request itself.
const FIRST_STEPS_WEIGHTS_MAX: u64 = 1 << 30;

type SampleCell = Mutex<Vec<Result<Sampled, SampleError>>>;

/// A model on the processor.
pub(crate) struct CpuProgram {
    /// Before the memory it touches, so that it ends first.
    pub(crate) warming: Option<Warming>,
    pub(crate) isa: Isa,
    pub(crate) team: Team,
    /// Where all buffers of this program are from.
    pub(crate) pool: HeapPool,
    pub(crate) passes: Vec<Pass>,
    pub(crate) stored: Stored,
    pub(crate) buffers: Buffers,
    pub(crate) capacity: Capacity,
    pub(crate) vocabulary: usize,
    pub(crate) places: StepPlaces,
    pub(crate) states: States,
    pub(crate) plan: AttentionPlan,
    /// Each is locked by the one member that samples its row.
    pub(crate) slots: Vec<Mutex<Option<Slot>>>,
    /// One a member.
    pub(crate) scratch: Vec<Mutex<Scratch>>,
    /// One for each row that samples: what was sampled, in order.
    pub(crate) sampled: Vec<SampleCell>,
    /// Of each slot's sequence.
    pub(crate) adapters: Vec<Option<u32>>,
    /// One a member: a row of a table, or what is between the two products of an adapter.
    pub(crate) inner: Vec<Mutex<Vec<f32>>>,
    /// Whether tokens see their whole row, and not what is before them alone.
    pub(crate) sees_whole: bool,
    /// What each text's vector is made of, of a tape that gives vectors.
    pub(crate) gives: Option<Vec<ActivationId>>,
    pub(crate) segments: Vec<PassSegment>,
}

impl Program for CpuProgram {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        inputs.audit(&self.capacity);
        outputs.clear(inputs.step);
        if inputs.segment == 0 {
            self.begin(inputs)?;
        }
        let kept = Mutex::new(&mut outputs.logits);
        let segment = &self.segments[inputs.segment];
        let step = Step { program: self, inputs, segment, kept: &kept };
        step.receive();
        self.team.run(&|worker: &Worker<'_>| step.run(worker));
        if let Some(parts) = &segment.sent {
            step.send(parts, &mut outputs.sent);
        }
        if inputs.segment + 1 < self.segments.len() {
            return Ok(());
        }
        match (&self.gives, &segment.sent) {
            (Some(parts), _) => {
                step.read_vectors(parts, &mut outputs.vectors, &mut outputs.samples);
            }
            (None, Some(_)) => {}
            (None, None) => self.read_samples(inputs, outputs),
        }
        self.states.end(inputs);
        Ok(())
    }

    fn block_form(&self) -> BlockForm {
        let shape = &self.buffers.cache_shape;
        let (heads, tokens, dim) = (shape.kv_heads, shape.block_tokens, shape.head_dim);
        let layers = self.layers();
        BlockForm {
            // `CacheView` says how a block is laid out; another layout needs another name.
            name: format!("{} tiles[{layers}, {heads}, 2, {tokens}, {dim}]", shape.format.name()),
            bytes: layers * shape.block_bytes(),
        }
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        // SAFETY: no step runs: `&mut self`.
        unsafe { self.pages().read(block, bytes) };
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        // SAFETY: no step runs: `&mut self`.
        unsafe { self.pages().write(block, bytes) };
    }

    fn state_bytes(&self) -> Option<usize> {
        self.states.state_bytes()
    }

    fn read_state(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        self.states.read(place, offset, bytes);
    }

    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        Some(Arc::new(self.pages()))
    }

    fn heap_pools(&self) -> Vec<HeapPool> {
        vec![self.pool.clone()]
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights_bytes: self.stored.bytes,
            kv_bytes: self.buffers.cache.len() as u64 + self.states.bytes(),
            activations_bytes: self.buffers.bytes,
            staging_bytes: 0,
            host_bytes: 0,
        }
    }

    fn warm(&mut self, bytes: u64) {
        let Pages { cache, layers, blocks, page_bytes } = self.pages();
        let pages = CachePages { start: cache.pointer() as usize, layers, blocks, page_bytes };
        self.warming = Warming::start(self.buffers.written(), pages, bytes);
    }

    fn gains_from_first_steps(&self) -> bool {
        self.stored.bytes <= FIRST_STEPS_WEIGHTS_MAX
    }
}

impl CpuProgram {
    /// What a step does before its first pass.
    fn begin(&mut self, inputs: &StepInputs) -> Result<(), Fault> {
        for reset in &inputs.resets {
            let slot = Slot::new(reset.params.clone(), &reset.prompt, &reset.generated);
            *lock(&self.slots[reset.slot as usize]) = Some(slot);
            self.adapters[reset.slot as usize] = reset.adapter;
        }
        self.states.begin(inputs)?;
        let slots = &self.slots;
        let last_token = |slot: u32| lock(&slots[slot as usize]).as_ref().map(|slot| slot.last);
        self.places.fill(inputs, self.capacity.block_tokens, last_token)?;
        let vocabulary = self.vocabulary as u32;
        if let Some(token) = self.places.tokens.iter().find(|&&token| token >= vocabulary) {
            return Err(Fault(format!("token {token} is outside the vocabulary of {vocabulary}")));
        }
        self.stored.settle();
        if let (Some(warming), Some(&last)) = (&self.warming, inputs.blocks.iter().max()) {
            warming.come_to(last as usize + 1);
        }
        let mut plan = std::mem::take(&mut self.plan);
        let rows = self.attention_rows(inputs);
        plan.build(&rows, &self.buffers.attention_shape, &self.buffers.attention);
        self.plan = plan;
        Ok(())
    }

    fn layers(&self) -> usize {
        let block = self.buffers.cache_shape.block_bytes();
        self.buffers.cache.len() / (block * self.capacity.block_count as usize)
    }

    fn pages(&self) -> Pages {
        Pages {
            cache: Arc::clone(&self.buffers.cache),
            layers: self.layers(),
            blocks: self.capacity.block_count as usize,
            page_bytes: self.buffers.cache_shape.block_bytes(),
        }
    }

    fn attention_rows<'a>(&'a self, inputs: &'a StepInputs) -> AttentionRows<'a> {
        AttentionRows {
            sequences: &self.places.sequences,
            positions: if self.sees_whole { &self.places.row_ends } else { &self.places.positions },
            tables: &inputs.blocks,
            table_starts: &self.places.table_starts,
        }
    }

    fn read_samples(&self, inputs: &StepInputs, outputs: &mut StepOutputs) {
        for (row, cell) in inputs.sampled_rows().zip(&self.sampled) {
            let mut sampled = lock(cell);
            assert!(!sampled.is_empty(), "every row that samples was sampled");
            let output = |sampled| SampleOutput { slot: row.slot, sampled };
            outputs.samples.extend(sampled.drain(..).map(output));
        }
    }
}

/// The cache as blocks: one page a layer.
struct Pages {
    cache: Arc<LargeBuffer>,
    layers: usize,
    blocks: usize,
    page_bytes: usize,
}

impl Pages {
    /// Each page of a block, and its place among the block's bytes.
    fn of(&self, block: u32) -> impl Iterator<Item = (*mut u8, Range<usize>)> {
        let block = block as usize;
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        assert_eq!(
            self.layers * self.blocks * self.page_bytes,
            self.cache.len(),
            "the whole cache"
        );
        (0..self.layers).map(move |layer| {
            let start = (layer * self.blocks + block) * self.page_bytes;
            // SAFETY: the assertions above.
            let page = unsafe { self.cache.pointer().add(start) };
            (page, layer * self.page_bytes..(layer + 1) * self.page_bytes)
        })
    }

    /// # Safety
    /// Nobody writes the block.
    unsafe fn read(&self, block: u32, bytes: &mut [u8]) {
        for (page, range) in self.of(block) {
            let to = &mut bytes[range];
            // SAFETY: a page has as many bytes as its range, they are initialized, and `bytes` is
            // no part of the cache.
            unsafe { page.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        }
    }

    /// # Safety
    /// Nobody reads or writes the block.
    unsafe fn write(&self, block: u32, bytes: &[u8]) {
        for (page, range) in self.of(block) {
            let from = &bytes[range];
            // SAFETY: as above.
            unsafe { page.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        }
    }
}

impl BlockCopier for Pages {
    fn read_block(&self, lease: &BlockLease, bytes: &mut [u8]) {
        // SAFETY: the ring leases a block only while no step in flight names it.
        unsafe { self.read(lease.block(), bytes) };
    }

    fn write_block(&self, lease: &BlockLease, bytes: &[u8]) {
        // SAFETY: as above, and one at a time.
        unsafe { self.write(lease.block(), bytes) };
    }
}

/// One step as every member sees it.
pub(crate) struct Step<'a> {
    pub(crate) program: &'a CpuProgram,
    pub(crate) inputs: &'a StepInputs,
    segment: &'a PassSegment,
    /// Where logits are copied to, if they are wanted.
    kept: &'a Mutex<&'a mut Vec<f32>>,
}

impl<'a> Step<'a> {
    fn run(&self, worker: &Worker<'_>) {
        let program = self.program;
        let positions = &program.places.positions;
        // Once a step.
        let turns = if self.inputs.segment == 0 { program.buffers.turns.as_slice() } else { &[] };
        for turns in turns {
            let table = self.table(turns);
            // SAFETY: every member runs this same function with the same step, and only the team
            // touches the program's buffers while `Team::run` lasts: `run` holds `&mut CpuProgram`.
            unsafe { rotary_table(worker, positions, &turns.frequencies, turns.factor, &table) };
        }
        for pass in &program.passes[self.segment.passes.clone()] {
            self.pass(worker, pass);
        }
    }

    fn pass(&self, worker: &Worker<'_>, pass: &Pass) {
        let program = self.program;
        match pass {
            Pass::Embed { table, scale, output } => self.embed(worker, *table, *scale, *output),
            Pass::EmbedMore { table, by, output } => self.embed_more(worker, *table, *by, *output),
            Pass::LayerNorm { values, weight, bias, epsilon } => {
                let stored = &program.stored;
                let (weight, bias) = (stored.vector(*weight), stored.vector(*bias));
                self.each_row(worker, *values, |row| {
                    ops::layer_norm::reference(weight, bias, *epsilon, row);
                });
            }
            Pass::Activate { values, curve } => {
                self.each_row(worker, *values, |row| ops::activate::reference(*curve, row));
            }
            Pass::Rows { .. } => self.row_pass(worker, pass),
            Pass::Linear { input, forms, parts } => self.linear(worker, *input, *forms, parts),
            Pass::Gated { input, forms, gate, up, activation, output } => {
                let part = Linear {
                    matrix: program.stored.matrix(*gate),
                    bias: None,
                    output: self.rows(*output),
                    finish: Finish::Gated {
                        up: program.stored.matrix(*up),
                        up_bias: None,
                        activation: *activation,
                    },
                };
                // SAFETY: as in `run`.
                unsafe { linear(worker, program.isa, &self.input(*input, *forms), &[part]) };
            }
            Pass::Experts { .. } => self.experts(worker, pass),
            Pass::Gate { .. } => self.gate(worker, pass),
            Pass::LowRank { input, adapters, output } => {
                self.low_rank(worker, *input, adapters, *output);
            }
            Pass::HeadLinear { .. } => self.head_linear(worker, pass),
            Pass::CopyColumns { heads, input, output } => {
                self.copy_columns(worker, *heads, input, output);
            }
            Pass::RotaryAppend { .. } => self.rotary_append(worker, pass),
            Pass::Attention { layer, query, shape, sinks, output } => {
                let call = PagedAttention {
                    shape: *shape,
                    sinks: sinks.map(|sinks| program.stored.vector(sinks)),
                    query: self.rows(*query),
                    cache: self.cache(*layer),
                    rows: program.attention_rows(self.inputs),
                    plan: &program.plan,
                    scratch: &program.buffers.attention,
                    output: self.rows(*output),
                };
                // SAFETY: as in `run`.
                unsafe { paged_attention(worker, program.isa, &call) };
            }
            Pass::AsItIs(op) => self.row_op(worker, op),
            Pass::SoftCap { values, cap } => {
                // SAFETY: as in `run`.
                unsafe { soft_cap(worker, program.isa, *cap, self.rows(*values)) };
            }
            Pass::Sample { logits } => self.sample(worker, self.rows(*logits)),
            Pass::Pool { .. } => self.pool(worker, pass),
        }
    }

    fn embed(&self, worker: &Worker<'_>, table: WeightId, scale: f32, output: ActivationId) {
        let (matrix, output) = (self.program.stored.matrix(table), self.rows(output));
        let tokens = &self.program.places.tokens;
        worker.for_each(tokens.len(), |token| {
            // SAFETY: each row is written by the one member that claimed it.
            let row = unsafe { output.row_mut(token) };
            matrix.decode_row(tokens[token] as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|value| *value *= scale);
            }
        });
    }

    fn gate(&self, worker: &Worker<'_>, pass: &Pass) {
        let &Pass::Gate { gate, up, activation, output } = pass else { return };
        let [gate, up, output] = [gate, up, output].map(|buffer| self.rows(buffer));
        let call = Gate { activation, gate, up, output };
        // SAFETY: as in `run`; three different buffers.
        unsafe { gate_rows(worker, self.program.isa, &call) };
    }

    fn embed_more(&self, worker: &Worker<'_>, table: WeightId, by: EmbedBy, output: ActivationId) {
        let (matrix, output) = (self.program.stored.matrix(table), self.rows(output));
        let mut more = lock(&self.program.inner[worker.index()]);
        let StepPlaces { positions, sequences, tokens, .. } = &self.program.places;
        worker.for_each(positions.len(), |token| {
            let start = sequences.partition_point(|&row| row < sequences[token]);
            more.resize(output.width(), 0.0);
            matrix.decode_row(by.row(positions[token], &tokens[start..token]), &mut more);
            // SAFETY: each row is written by the one member that claimed it.
            let row = unsafe { output.row_mut(token) };
            row.iter_mut().zip(more.iter()).for_each(|(value, more)| *value += more);
        });
    }

    /// Changes every row in place.
    pub(crate) fn each_row(
        &self,
        worker: &Worker<'_>,
        values: ActivationId,
        change: impl Fn(&mut [f32]),
    ) {
        let rows = self.rows(values);
        worker.for_each(rows.rows(), |row| {
            // SAFETY: each row is of the one member that claimed it.
            change(unsafe { rows.row_mut(row) });
        });
    }

    /// Tokens whose sequences have no adapter are not touched.
    fn low_rank(
        &self,
        worker: &Worker<'_>,
        input: ActivationId,
        adapters: &[Option<LowRank>],
        output: ActivationId,
    ) {
        let (program, inputs) = (self.program, self.inputs);
        let of_row = |row: u32| {
            let adapter = program.adapters[inputs.rows[row as usize].slot as usize]?;
            adapters[adapter as usize]
        };
        if (0..inputs.rows.len() as u32).all(|row| of_row(row).is_none()) {
            return;
        }
        let (input, output) = (self.rows(input), self.rows(output));
        let mut inner = lock(&program.inner[worker.index()]);
        worker.for_each(input.rows(), |token| {
            let low_rank = of_row(program.places.sequences[token]);
            let Some(LowRank { down, up, scale }) = low_rank else { return };
            let (down, up) = (program.stored.vector(down), program.stored.vector(up));
            // SAFETY: different buffers; nobody writes the one, and a row of the other is of the
            // one member that claimed it.
            let (x, y) = unsafe { (input.row(token), output.row_mut(token)) };
            ops::low_rank::reference(down, up, scale, x, &mut inner, y);
        });
    }

    /// One head after another, each as a linear of its own.
    fn head_linear(&self, worker: &Worker<'_>, pass: &Pass) {
        let &Pass::HeadLinear { heads, input, weight, output } = pass else { return };
        let (isa, stack) = (self.program.isa, self.program.stored.stack(weight));
        let columns = |columns: &HeadColumns, head| {
            let range = columns.range(head);
            self.rows(columns.buffer).columns(range.start, range.len())
        };
        for (head, matrix) in (0..heads).zip(stack) {
            let (input, output) = (columns(&input, head), columns(&output, head));
            let integers = matrix.wants_quantized();
            let quantized = integers.then(|| self.integers(input.rows(), input.width()));
            if integers {
                let (picks, norm, output, sum) = (None, None, None, Sum::Store);
                let pass = RowPass { input, picks, norm, output, sum, quantized };
                // SAFETY: as in `run`.
                unsafe { row_pass(worker, isa, &pass) };
            }
            let part = Linear { matrix, bias: None, output, finish: Finish::Store };
            let input = LinearInput { quantized, rows: (!integers).then_some(input) };
            // SAFETY: as in `run`; input and output are different buffers.
            unsafe { linear(worker, isa, &input, &[part]) };
        }
    }

    fn copy_columns(
        &self,
        worker: &Worker<'_>,
        heads: u32,
        input: &HeadColumns,
        output: &HeadColumns,
    ) {
        let (from, to) = (self.rows(input.buffer), self.rows(output.buffer));
        worker.for_each(from.rows(), |row| {
            // SAFETY: different buffers; nobody writes the one, and a row of the other is one
            // task's.
            let (x, y) = unsafe { (from.row(row), to.row_mut(row)) };
            ops::copy_columns::reference(heads, input, output, x, y);
        });
    }

    fn experts(&self, worker: &Worker<'_>, pass: &Pass) {
        let &Pass::Experts { input, scores, experts: ref mixture, output, sum } = pass else {
            return;
        };
        let program = self.program;
        let stored = &program.stored;
        let scratch = program.buffers.experts.as_ref();
        let call = Experts {
            routing: &mixture.routing,
            learned: Learned {
                choice_bias: mixture.choice_bias.map(|bias| stored.vector(bias)),
                weight_scales: mixture.weight_scales.map(|scales| stored.vector(scales)),
            },
            scores: self.rows(scores),
            input: self.rows(input),
            gate_up: [stored.stack(mixture.gate), stored.stack(mixture.up)],
            down: stored.stack(mixture.down),
            biases: mixture.biases.map(|biases| biases.map(|bias| stored.vector(bias))),
            activation: mixture.activation,
            scratch: scratch.expect("invariant: made for every tape with experts"),
            output: self.rows(output),
            sum,
        };
        // SAFETY: as in `run`.
        unsafe { experts(worker, program.isa, &call) };
    }

    fn rotary_append(&self, worker: &Worker<'_>, pass: &Pass) {
        let &Pass::RotaryAppend { layer, head_norms, rotary, growth, query, key, value } = pass
        else {
            return;
        };
        let program = self.program;
        let turns = |id: RotaryId| self.table(&program.buffers.turns[usize::from(id.0)]);
        let call = RotaryAppend {
            query: self.rows(query),
            key: self.rows(key),
            value: self.rows(value),
            table: rotary.map(turns),
            growth: growth.map(|growth| (growth, program.places.positions.as_slice())),
            head_norm: head_norms.map(|norms| HeadNorm {
                query: program.stored.vector(norms.query),
                key: program.stored.vector(norms.key),
                epsilon: norms.epsilon,
            }),
            slots: &program.places.cache_slots,
            cache: self.cache(layer),
        };
        // SAFETY: as in `run`; the planner gives every token a cache slot of its own.
        unsafe { rotary_append(worker, program.isa, &call) };
    }

    fn row_pass(&self, worker: &Worker<'_>, pass: &Pass) {
        let Pass::Rows { input, norm, output, sum, quantize, pick_sampled } = pass else { return };
        let program = self.program;
        let input = self.rows(*input);
        let picks = pick_sampled.then_some(program.places.sampled.as_slice());
        let rows = picks.map_or(input.rows(), <[u32]>::len);
        let norm = norm
            .map(|(weight, epsilon)| RmsNorm { weight: program.stored.vector(weight), epsilon });
        let output = output.map(|output| self.rows(output));
        let quantized = quantize.then(|| self.integers(rows, input.width()));
        let pass = RowPass { input, picks, norm, output, sum: *sum, quantized };
        // SAFETY: as in `run`: the same call on every member, buffers are the team's.
        unsafe { row_pass(worker, program.isa, &pass) };
    }

    fn linear(&self, worker: &Worker<'_>, input: ActivationId, forms: Forms, parts: &[LinearPart]) {
        let stored = &self.program.stored;
        let of = |part: &LinearPart| Linear {
            matrix: stored.matrix(part.weight),
            bias: part.bias.map(|bias| stored.vector(bias)),
            output: self.rows(part.target.buffer()),
            finish: if is_added(part.target) { Finish::Add } else { Finish::Store },
        };
        // A fixed array instead of a vector: the step path does not allocate.
        let linears: [Linear<'_>; PARTS_MAX] =
            std::array::from_fn(|index| of(parts.get(index).unwrap_or(&parts[0])));
        let input = self.input(input, forms);
        // SAFETY: as in `run`.
        unsafe { linear(worker, self.program.isa, &input, &linears[..parts.len()]) };
    }

    fn sample(&self, worker: &Worker<'_>, logits: Rows<'a>) {
        let program = self.program;
        if self.inputs.keep_logits {
            worker.once(|| {
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                for row in 0..logits.rows() {
                    // SAFETY: nobody writes logits before the next phase.
                    kept.extend_from_slice(unsafe { logits.row(row) });
                }
            });
        }
        let mut scratch = lock(&program.scratch[worker.index()]);
        worker.for_each(self.inputs.sampled_rows().count(), |index| {
            let row = self.inputs.sampled_rows().nth(index).expect("invariant: they were counted");
            let mut slot = lock(&program.slots[row.slot as usize]);
            let slot = slot.as_mut().expect("invariant: a slot is set before it is sampled");
            let mut samples = lock(&program.sampled[index]);
            samples.clear();
            // One after another: what a token does to the slot counts for the next.
            for count in 0..1 + row.proposals.len() {
                // SAFETY: the rows of logits of one sequence are this member's by its claim.
                let logits = unsafe { logits.row_mut(row.place + count) };
                let index = row.sample_index + count as u32;
                let sampled = ops::sample_rows::reference(slot, index, logits, &mut scratch);
                let token = sampled.as_ref().ok().map(|sampled| sampled.token);
                samples.push(sampled);
                let Some(token) = token else { break };
                slot.observe(token);
                if !row.goes_on(count, token) {
                    break;
                }
            }
        });
    }

    fn pool(&self, worker: &Worker<'_>, pass: &Pass) {
        let &Pass::Pool { input, pooling, output } = pass else { return };
        let (input, output, rows) = (self.rows(input), self.rows(output), &self.inputs.rows);
        let kept = self.program.buffers.pooled.as_ref();
        let kept = kept.expect("invariant: made for every tape that pools");
        let width = input.width();
        let slots = self.program.capacity.slots as usize;
        assert!(4 * slots * width <= kept.len(), "a row a slot");
        worker.for_each(rows.len(), |index| {
            let (before, row) = (&rows[..index], &rows[index]);
            let first = before.iter().map(|row| row.length as usize).sum::<usize>();
            // SAFETY: inside the buffer by the assertion above, for a step's slots are audited; a
            // slot has one row in a step and so one member; the memory is zeroed before its use.
            let kept = unsafe {
                let start = kept.pointer().cast::<f32>().add(row.slot as usize * width);
                std::slice::from_raw_parts_mut(start, width)
            };
            for token in 0..row.length {
                // SAFETY: nobody writes what is pooled beside this pass.
                let values = unsafe { input.row(first + token as usize) };
                ops::pool_rows::keep(pooling, row.start + token, values, kept);
            }
            if row.sample_index.is_some() {
                let place = before.iter().filter(|row| row.sample_index.is_some()).count();
                // SAFETY: each place is of one row, and so of one member.
                let output = unsafe { output.row_mut(place) };
                ops::pool_rows::finish(pooling, row.start + row.length, kept, output);
            }
        });
    }

    /// What another program sent, before the team begins.
    fn receive(&self) {
        let mut rest = self.inputs.received.as_slice();
        for &part in &self.segment.received {
            let rows = self.rows(part);
            let own;
            (own, rest) = rest.split_at(rows.rows() * rows.width());
            for (row, values) in own.chunks_exact(rows.width()).enumerate() {
                // SAFETY: the team is at rest.
                unsafe { rows.row_mut(row) }.copy_from_slice(values);
            }
        }
        assert!(rest.is_empty(), "rows that another program sent");
    }

    /// What another program goes on with, of a step that is over.
    fn send(&self, parts: &[ActivationId], sent: &mut Vec<f32>) {
        for &part in parts {
            let rows = self.rows(part);
            for row in 0..rows.rows() {
                // SAFETY: the team has come to rest.
                sent.extend_from_slice(unsafe { rows.row(row) });
            }
        }
    }

    /// The vectors of a step that is over.
    fn read_vectors(
        &self,
        parts: &[ActivationId],
        vectors: &mut Vec<f32>,
        samples: &mut Vec<SampleOutput>,
    ) {
        for row in self.inputs.sampled_rows() {
            for &part in parts {
                // SAFETY: the team has come to rest.
                vectors.extend_from_slice(unsafe { self.rows(part).row(row.place) });
            }
            samples.push(SampleOutput::of_vector(row.slot));
        }
    }

    /// The step's rows of an activation.
    pub(crate) fn rows(&self, id: ActivationId) -> Rows<'a> {
        let buffer = self.program.buffers.activation(id);
        let rows = match buffer.rows {
            RowKind::Tokens => self.program.places.tokens.len(),
            RowKind::Sampled => self.program.places.sampled.len(),
        };
        assert!(4 * rows * buffer.width <= buffer.memory.len(), "rows of {rows} tokens fit");
        let start = buffer.memory.pointer().cast::<f32>();
        // SAFETY: the assertion above; the memory is zeroed, so every f32 in it is initialized, and
        // it lives as long as the program.
        unsafe { Rows::from_raw(start, rows, buffer.width, buffer.width) }
    }

    /// The step's table of one rotation.
    pub(crate) fn table(&self, turns: &'a Turns) -> RotaryTable<'a> {
        let rows = self.program.places.tokens.len();
        let width = turns.frequencies.len();
        assert!(4 * rows * width <= turns.cosines.len(), "turns of {rows} tokens fit");
        // SAFETY: as in `rows`.
        let of = |buffer: &'a LargeBuffer| unsafe {
            Rows::from_raw(buffer.pointer().cast(), rows, width, width)
        };
        RotaryTable { cos: of(&turns.cosines), sin: of(&turns.sines), style: turns.style }
    }

    fn integers(&self, rows: usize, width: usize) -> QuantizedView<'a> {
        self.program.buffers.quantized.view(rows, width)
    }

    fn input(&self, id: ActivationId, forms: Forms) -> LinearInput<'a> {
        let rows = self.rows(id);
        LinearInput {
            quantized: forms.integers.then(|| self.integers(rows.rows(), rows.width())),
            rows: forms.floats.then_some(rows),
        }
    }

    fn cache(&self, layer: u32) -> CacheView<'a> {
        let buffers = &self.program.buffers;
        let blocks = self.program.capacity.block_count as usize;
        let layer_bytes = blocks * buffers.cache_shape.block_bytes();
        let start = layer as usize * layer_bytes;
        assert!(start + layer_bytes <= buffers.cache.len(), "layer {layer} is cached");
        // SAFETY: the assertion above; the cache starts zeroed and the kernels keep it finite.
        unsafe {
            let start = buffers.cache.pointer().add(start);
            CacheView::from_raw(start, blocks, buffers.cache_shape)
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic while it was held ends the step with a fault; the next step resets what it needs.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
