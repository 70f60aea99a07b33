//! How does the device run a step? Its table goes over, the launches run, the samples come back.
//!
//! Steps of up to 64 tokens replay launches that were recorded at load, one recording for each
//! number of tokens that takes other kernels; larger steps launch one by one. Every kernel gives a
//! row the same bits whatever else is in the step, so it does not matter which way a row goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{
    BlitSettings, BlockCopier, BlockForm, Capacity, Fault, HeapBlock, HeapPool, LoadError,
    MemoryUse, OwnCopies, Program, Rows as RowKind, SampleOutput, StepInputs, StepOutputs, Tape,
    TokenInput, WeightSource,
};
use half::f16;
use ops::kv_format::KvFormat;
use ops::paged_attention::Window;
use ops::rotary::Pairing;
use ops::{ActivationId, EmbedBy, Target};

use crate::arguments::{
    ADD, AttentionArguments, BY_NOTHING, BY_POSITION, BY_TEXT, BY_TOKEN, EmbedArguments,
    EmbedRotary, LinearArguments, LinearPart, NormArguments, NormFloatsArguments, NormedInput,
    PARTS_MAX, ROTARIES_MAX, RotaryArguments, STORE, SampleArguments, SelectArguments,
    SoftCapArguments,
};
use crate::copies::{Copier, Pages};
use crate::driver::CudaError;
use crate::gpu::{Address, Boxed, Function, Gpu, Graph, Grid, Stream, TensorMap};
use crate::heaps::{self, HeapOptions, Heaps};
use crate::kernels::{
    AttentionKernel, Kernels, LinearChoice, LinearLaunch, LinearSize, TEAM, TOKENS_PADDED,
};
use crate::lowering::{
    AttentionPass, EmbedPass, Kept, Part, PartMode, Pass, PassSegment, Plan, RotaryPass, rows_max,
    with_halves,
};
use crate::memory::{
    self, Layouts, PAGE_TOKENS, RECORDED_TOKENS_MAX, Work, lay_out, layer_bytes, page_bytes,
};
use crate::packing::CHUNK;
use crate::slots::Slots;
use crate::states::States;
use crate::step_inputs::{
    AttentionItems, SAMPLED_WORD, SlotFacts, StepLayout, StepTable, TEAM_TOKENS_MAX, TOKENS_WORD,
    at,
};
use crate::uploads::Uploads;
use crate::weights::{Store, Stored};

pub(crate) struct CudaProgram {
    pub(crate) stream: Stream,
    pub(crate) kernels: Kernels,
    pub(crate) plan: Plan,
    pub(crate) tape: Tape,
    capacity: Capacity,
    memory: MemoryUse,
    pub(crate) stored: Stored,
    pages: Pages,
    copier: Arc<Copier>,
    copied: OwnCopies,
    pub(crate) work: Work,
    layouts: Layouts,
    small_table: StepTable,
    large_table: StepTable,
    /// The step's words on their way, as large as the larger table; behind them rows that another
    /// device computed.
    staging: HeapBlock,
    received_first: usize,
    pub(crate) sampled: HeapBlock,
    pub(crate) slots: Slots,
    pub(crate) states: States,
    /// Of each segment, by the most tokens, the most sampled tokens, and whether teams attend.
    recorded: Vec<BTreeMap<(u32, u32, bool), Graph>>,
    /// Freed after everything above that refers to them.
    heaps: Heaps,
}

/// How a program gets its memory, and its weights to the device.
#[derive(Clone, Debug)]
pub(crate) struct Resources {
    pub(crate) kv_format: KvFormat,
    pub(crate) heaps: HeapOptions,
    pub(crate) copies: BlitSettings,
}

/// Numbers of tokens from which other kernels are launched.
const RECORDED_TOKENS: [u32; 5] = [1, 8, 16, 32, RECORDED_TOKENS_MAX as u32];

impl CudaProgram {
    pub(crate) fn load(
        gpu: &Arc<Gpu>,
        resources: &Resources,
        tape: Tape,
        source: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Self, LoadError> {
        if capacity.block_tokens as usize != PAGE_TOKENS {
            let text = format!("blocks of {} positions, this device has 32", capacity.block_tokens);
            return Err(LoadError(text));
        }
        let tape = with_halves(&tape);
        let plan = Plan::new(&tape, source, resources.kv_format)?;
        let memory = memory::memory_use(&tape, &plan, &capacity, &resources.copies);
        let refused = |error: CudaError| LoadError(error.to_string());
        let stream = Stream::new(gpu).map_err(refused)?;
        let told = memory::told_bytes(&tape, &plan, &capacity);
        let mut heaps = Heaps::open(gpu, &resources.heaps, heap_bytes(&memory, told))?;
        let kernels = Kernels::load(gpu, &plan).map_err(refused)?;
        let mut layouts = Layouts::new(&capacity);
        layouts.large.has_wide = kernels.paged_attention_wide.is_some();
        layouts.small.teams = kernels.paged_attention_team.map_or(0, |kernel| kernel.blocks / TEAM);
        let mut carve = |bytes| heaps.carve(&stream, "working memory", bytes);
        let work = lay_out(&tape, &plan, &capacity, &layouts, &mut carve)?;
        let mut carve = |bytes| heaps.carve(&stream, "states", bytes);
        let states = States::carve(tape.state, &capacity, &mut carve)?;
        let (pages, blocks) = carve_pages(&heaps, &stream, (&tape, &plan, &capacity))?;
        let uploads = Uploads::start(gpu, &heaps, &resources.copies)?;
        let (tape_read, heaps_used) = (&tape, &mut heaps);
        let store = Store {
            tape: tape_read,
            plan: &plan,
            source,
            stream: &stream,
            heaps: heaps_used,
            uploads,
        };
        let (stored, copied) = store.run()?;
        let mut program = Self {
            received_first: told[0] - memory::received_bytes(&tape, &plan, &capacity),
            staging: heaps.carve_host("step inputs", told[0])?,
            sampled: heaps.carve_host("sampled ids", told[1])?,
            slots: Slots::new(capacity.slots as usize, tape.vocabulary as usize),
            states,
            copier: Arc::new(Copier::new(gpu, pages.clone(), blocks)),
            copied: OwnCopies::of_load(copied),
            pages,
            recorded: Vec::new(),
            small_table: StepTable::new(&layouts.small),
            large_table: StepTable::new(&layouts.large),
            heaps,
            stream,
            kernels,
            plan,
            tape,
            capacity,
            memory,
            stored,
            work,
            layouts,
        };
        program.record_all().map_err(refused)?;
        program.stream.wait().map_err(refused)?;
        Ok(program)
    }

    fn record_all(&mut self) -> Result<(), CudaError> {
        for segment in &self.plan.segments {
            let mut recorded = BTreeMap::new();
            for tokens in RECORDED_TOKENS {
                // What is sent is of all tokens, however many are sampled.
                let least = if segment.sent.is_some() { tokens } else { 1 };
                for sampled in RECORDED_TOKENS.into_iter().filter(|n| (least..=tokens).contains(n))
                {
                    let graph = self.record(segment, tokens, sampled, false)?;
                    recorded.insert((tokens, sampled, false), graph);
                    if tokens as usize <= TEAM_TOKENS_MAX && self.layouts.small.teams > 0 {
                        let graph = self.record(segment, tokens, sampled, true)?;
                        recorded.insert((tokens, sampled, true), graph);
                    }
                }
            }
            self.recorded.push(recorded);
        }
        Ok(())
    }

    fn record(
        &self,
        segment: &PassSegment,
        tokens: u32,
        sampled: u32,
        by_teams: bool,
    ) -> Result<Graph, CudaError> {
        self.stream.capture(|| {
            let step = Step {
                program: self,
                base: self.work.small_step,
                layout: &self.layouts.small,
                tokens,
                step_rows: tokens,
                sampled,
                attention: AttentionItems { items: 1, wide_items: 0, by_teams },
            };
            segment.passes.clone().try_for_each(|index| step.launch(index))
        })
    }

    /// What a step does before its first launch.
    fn begin(&mut self, inputs: &StepInputs, is_small: bool) -> Result<(), Fault> {
        let failed = |error: CudaError| Fault(error.to_string());
        for reset in &inputs.resets {
            self.slots.reset(&self.stream, &self.work, reset).map_err(failed)?;
        }
        for token in &inputs.tokens {
            if let TokenInput::Slot(slot) = *token
                && !self.slots.is_set(slot)
            {
                return Err(Fault(format!("slot {slot} was read before it was set")));
            }
        }
        if let Some(row) = inputs.sampled_rows().find(|row| !self.slots.is_set(row.slot)) {
            return Err(Fault(format!("slot {} was sampled before it was set", row.slot)));
        }
        self.states.begin(&self.stream, inputs)?;
        self.send(inputs, is_small)?;
        self.send_allowed(inputs).map_err(failed)
    }

    /// Fills the step's table and starts its copy.
    fn send(&mut self, inputs: &StepInputs, is_small: bool) -> Result<(), Fault> {
        let (layout, table, base) = if is_small {
            (&self.layouts.small, &mut self.small_table, self.work.small_step)
        } else {
            (&self.layouts.large, &mut self.large_table, self.work.large_step)
        };
        let facts = SlotFacts {
            is_constrained: &|slot| self.slots.is_constrained(slot),
            right: &|index| self.states.right(index),
            adapter: &|slot| self.slots.adapter(slot),
            separator: self.plan.separator,
        };
        let filled = table.fill(layout, &self.plan.attention, inputs, &facts);
        filled.map_err(|entries| {
            Fault(format!("a step with {entries} entries in its block tables is too large"))
        })?;
        for range in table.used.clone() {
            let bytes = 4 * range.start..4 * range.end;
            let staged = &mut self.staging.bytes_mut()[bytes.clone()];
            let places = staged.as_chunks_mut::<4>().0.iter_mut();
            for (place, word) in places.zip(&table.words[range]) {
                *place = word.to_ne_bytes();
            }
            if !staged.is_empty() {
                let to = base.plus(bytes.start);
                self.stream.copy_in(to, staged).map_err(|error| Fault(error.to_string()))?;
                self.copied.count(staged.len());
            }
        }
        Ok(())
    }

    /// The launches of this step, one by one.
    pub(crate) fn step(&self, inputs: &StepInputs, is_small: bool) -> Step<'_> {
        let (base, layout) = if is_small {
            (self.work.small_step, &self.layouts.small)
        } else {
            (self.work.large_step, &self.layouts.large)
        };
        let sampled = inputs.sampled_tokens().count() as u32;
        let table = if is_small { &self.small_table } else { &self.large_table };
        Step {
            program: self,
            base,
            layout,
            tokens: inputs.tokens.len() as u32,
            step_rows: inputs.rows.len() as u32,
            sampled,
            attention: table.attention,
        }
    }

    fn launch(
        &self,
        inputs: &StepInputs,
        outputs: &mut StepOutputs,
        is_small: bool,
    ) -> Result<(), CudaError> {
        let tokens = inputs.tokens.len() as u32;
        let sampled = inputs.sampled_tokens().count() as u32;
        if is_small && !inputs.keep_logits {
            let by_teams = self.small_table.attention.by_teams;
            let found =
                self.recorded[inputs.segment].iter().find(|((most, most_sampled, teams), _)| {
                    tokens <= *most && sampled <= *most_sampled && *teams == by_teams
                });
            let (_, graph) = found.expect("invariant: recorded for every small step");
            // SAFETY: the graph was recorded over this program's heaps, which live as long as it.
            return unsafe { self.stream.replay(graph) };
        }
        let step = self.step(inputs, is_small);
        for index in self.plan.segments[inputs.segment].passes.clone() {
            let pass = &self.plan.passes[index];
            if let (Pass::Sample { logits }, true) = (pass, inputs.keep_logits) {
                let count = sampled as usize * self.tape.vocabulary as usize;
                let mut bytes = vec![0; 4 * count];
                self.stream.copy_out(&mut bytes, self.activation(*logits))?;
                let floats =
                    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
                outputs.logits.extend(floats);
            }
            step.launch(index)?;
        }
        Ok(())
    }

    /// Starts the copy of rows that another device computed.
    fn bring_received(&mut self, inputs: &StepInputs) -> Result<(), CudaError> {
        let mut first = self.received_first;
        let received = &self.plan.segments[inputs.segment].received;
        for (id, rows) in inputs.received_parts(&self.tape, received) {
            let row_bytes = memory::row_bytes(&self.tape, &self.plan, id);
            let width = self.tape.activation(id).width as usize;
            let bytes = row_bytes * inputs.tokens.len();
            let staged = &mut self.staging.bytes_mut()[first..][..bytes];
            let halves = self.plan.kept[id.0 as usize] != Kept::Float;
            for (place, row) in staged.chunks_exact_mut(row_bytes).zip(rows.chunks_exact(width)) {
                if halves {
                    // Zeros up to whole chunks.
                    place.fill(0);
                    let places = place.as_chunks_mut::<2>().0.iter_mut().zip(row);
                    places.for_each(|(place, &value)| *place = f16::from_f32(value).to_ne_bytes());
                } else {
                    let places = place.as_chunks_mut::<4>().0.iter_mut().zip(row);
                    places.for_each(|(place, value)| *place = value.to_ne_bytes());
                }
            }
            if bytes > 0 {
                self.stream.copy_in(self.work.activations[id.0 as usize], staged)?;
                self.copied.count(bytes);
            }
            first += bytes;
        }
        Ok(())
    }

    /// Hands out the rows that another device goes on with.
    fn send_rows(
        &mut self,
        inputs: &StepInputs,
        outputs: &mut StepOutputs,
    ) -> Result<(), CudaError> {
        let sent = self.plan.segments[inputs.segment].sent.iter().flatten();
        let mut first = 0;
        for &id in sent.clone() {
            let row_bytes = memory::row_bytes(&self.tape, &self.plan, id);
            let bytes = &mut self.sampled.bytes_mut()[first..][..row_bytes * inputs.tokens.len()];
            if !bytes.is_empty() {
                self.stream.begin_copy_out(bytes, self.work.activations[id.0 as usize])?;
                self.copied.count(bytes.len());
            }
            first += bytes.len();
        }
        // Of a step without tokens there is nothing to wait for but its states.
        self.stream.wait()?;
        let mut rest = self.sampled.bytes();
        for &id in sent {
            let row_bytes = memory::row_bytes(&self.tape, &self.plan, id);
            let width = self.tape.activation(id).width as usize;
            let own;
            (own, rest) = rest.split_at(row_bytes * inputs.tokens.len());
            for row in own.chunks_exact(row_bytes) {
                if self.plan.kept[id.0 as usize] == Kept::Float {
                    let words = row.as_chunks::<4>().0[..width].iter();
                    outputs.sent.extend(words.map(|&bytes| f32::from_ne_bytes(bytes)));
                } else {
                    let halves = row.as_chunks::<2>().0[..width].iter();
                    outputs.sent.extend(halves.map(|&bytes| f16::from_ne_bytes(bytes).to_f32()));
                }
            }
        }
        Ok(())
    }

    /// Hands out the vectors of texts that end.
    fn give(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), CudaError> {
        let places = inputs.sampled_rows().map(|row| row.place + 1).max().unwrap_or(0);
        let widths: Vec<usize> =
            self.plan.given.iter().map(|&id| self.tape.activation(id).width as usize).collect();
        let mut first = 0;
        for (&id, width) in self.plan.given.iter().zip(&widths) {
            let from = self.work.activations[id.0 as usize];
            let bytes = &mut self.sampled.bytes_mut()[4 * first..][..4 * places * width];
            self.stream.begin_copy_out(bytes, from)?;
            self.copied.count(bytes.len());
            first += places * width;
        }
        self.stream.wait()?;
        let words = self.sampled.bytes().as_chunks::<4>().0;
        for row in inputs.sampled_rows() {
            let mut first = 0;
            for width in &widths {
                let own = &words[first + row.place * width..][..*width];
                outputs.vectors.extend(own.iter().map(|&bytes| f32::from_le_bytes(bytes)));
                first += places * width;
            }
            outputs.samples.push(SampleOutput::of_vector(row.slot));
        }
        Ok(())
    }

    pub(crate) fn activation(&self, id: ActivationId) -> Address {
        self.work.activations[id.0 as usize]
    }

    /// Seconds of each pass of a step like the last one of its size, recorded alone and replayed
    /// again and again: without the time that launching takes.
    pub(crate) fn profile(
        &self,
        tokens: u32,
        repeats: u32,
    ) -> Result<Vec<(String, f64)>, CudaError> {
        let (base, layout, attention, sampled) = match tokens as usize <= RECORDED_TOKENS_MAX {
            true => (self.work.small_step, &self.layouts.small, self.small_table.attention, tokens),
            false => (self.work.large_step, &self.layouts.large, self.large_table.attention, 1),
        };
        let step_rows = if layout.has_wide { sampled } else { tokens };
        let step = Step { program: self, base, layout, tokens, step_rows, sampled, attention };
        let mut times: BTreeMap<String, f64> = BTreeMap::new();
        for (index, pass) in self.plan.passes.iter().enumerate() {
            let graph =
                self.stream.capture(|| (0..repeats).try_for_each(|_| step.launch(index)))?;
            // SAFETY: the graph was recorded over this program's heaps, which live as long as it.
            let replay = || unsafe { self.stream.replay(&graph) };
            replay()?;
            let milliseconds = self.stream.time(replay)?;
            *times.entry(step.describe(pass)).or_insert(0.0) +=
                f64::from(milliseconds) / 1e3 / f64::from(repeats);
        }
        Ok(times.into_iter().collect())
    }
}

impl Program for CudaProgram {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        inputs.audit(&self.capacity);
        outputs.clear(inputs.step);
        let failed = |error: CudaError| Fault(error.to_string());
        self.stream.gpu.enter().map_err(failed)?;
        let is_small = inputs.tokens.len() <= RECORDED_TOKENS_MAX;
        if inputs.segment == 0 {
            self.begin(inputs, is_small)?;
        }
        self.bring_received(inputs).map_err(failed)?;
        self.launch(inputs, outputs, is_small).map_err(failed)?;
        if inputs.segment + 1 < self.plan.segments.len() {
            return self.send_rows(inputs, outputs).map_err(failed);
        }
        self.states.end(&self.stream, inputs).map_err(failed)?;
        self.follow_grammars(inputs, is_small).map_err(failed)?;
        if !self.plan.given.is_empty() {
            return self.give(inputs, outputs).map_err(failed);
        }
        if self.plan.segments[inputs.segment].sent.is_some() {
            return self.send_rows(inputs, outputs).map_err(failed);
        }
        let sampled = (&mut self.sampled, &self.copied);
        self.slots.read(&self.stream, &self.work, sampled, inputs, outputs)
    }

    fn block_form(&self) -> BlockForm {
        let (heads, tiles) = (self.plan.heads_kv, self.plan.head_padded / 8);
        let layers = self.tape.layers;
        // Keys, then values, by 8 positions and 8 dims: `kernels/paged_attention.cu`.
        let sizes = match self.plan.kv_format {
            KvFormat::Int8 => format!("4, {tiles}, 8, 8; {tiles}, 4, 8, 8; 2, 32"),
            _ => format!("2, 4, {tiles}, 8, 8"),
        };
        BlockForm {
            name: format!("cuda {}[{layers}, {heads}, {sizes}]", self.plan.kv_format.name()),
            bytes: layers as usize * page_bytes(&self.plan),
        }
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        let copied = self.pages.read(&self.stream, block, bytes);
        // The step that asked for it ends with this as its fault.
        copied.unwrap_or_else(|error| panic!("a block could not be read: {error}"));
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        let copied = self.pages.write(&self.stream, block, bytes);
        copied.unwrap_or_else(|error| panic!("a block could not be written: {error}"));
    }

    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        Some(Arc::clone(&self.copier) as Arc<dyn BlockCopier>)
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }

    fn heap_pools(&self) -> Vec<HeapPool> {
        vec![self.heaps.device.clone(), self.heaps.host.clone()]
    }

    fn own_copies(&self) -> OwnCopies {
        self.copied.clone()
    }
}

/// What is carved of the device's pool, and of the process's.
fn heap_bytes(memory: &MemoryUse, told: [usize; 2]) -> [u64; 2] {
    let told: usize = told.into_iter().map(HeapPool::room).sum();
    let on_device = memory.weights_bytes + memory.kv_bytes + memory.activations_bytes;
    [on_device, told as u64]
}

/// A buffer of keys and values for each layer.
fn carve_pages(
    heaps: &Heaps,
    stream: &Stream,
    (tape, plan, capacity): (&Tape, &Plan, &Capacity),
) -> Result<(Pages, Vec<Arc<HeapBlock>>), LoadError> {
    let bytes = layer_bytes(plan, capacity);
    let carve = |_| heaps.carve_shared(stream, "keys and values", bytes);
    let blocks = (0..tape.layers).map(carve).collect::<Result<Vec<_>, _>>()?;
    let layers = blocks.iter().map(|block| heaps::address(block)).collect();
    Ok((Pages { layers, page_bytes: page_bytes(plan) }, blocks))
}

/// One step's launches, for at most so many tokens.
pub(crate) struct Step<'a> {
    pub(crate) program: &'a CudaProgram,
    pub(crate) base: Address,
    pub(crate) layout: &'a StepLayout,
    /// At most, as the next two.
    pub(crate) tokens: u32,
    pub(crate) step_rows: u32,
    sampled: u32,
    attention: AttentionItems,
}

impl Step<'_> {
    fn launch(&self, index: usize) -> Result<(), CudaError> {
        match &self.program.plan.passes[index] {
            Pass::Norm { .. } if self.products_norm(index) || self.choice_norms(index) => Ok(()),
            Pass::Embed(pass) => self.embed(pass),
            Pass::Norm { input, weight, epsilon, output } => {
                let arguments = NormArguments {
                    input: self.program.activation(*input),
                    weight: self.program.stored.vectors[weight],
                    output: self.program.activation(*output),
                    rows: self.count(*input),
                    width: self.program.tape.activation(*input).width,
                    output_stride: self.program.plan.stride(&self.program.tape, *output) as u32,
                    epsilon: *epsilon,
                };
                self.one_each(self.program.kernels.rms_norm, self.rows(*input), 512, &arguments)
            }
            Pass::NormFloats { input, weight, epsilon, target } => {
                let arguments = NormFloatsArguments {
                    input: self.program.activation(*input),
                    weight: self.program.stored.vectors[weight],
                    output: self.program.activation(target.buffer()),
                    rows: self.count(*input),
                    width: self.program.tape.activation(*input).width,
                    epsilon: *epsilon,
                    adds: u32::from(matches!(target, Target::AddTo(_))),
                };
                self.one_each(self.program.kernels.norm_floats, self.rows(*input), 512, &arguments)
            }
            Pass::Linear { input, parts, .. } => self.linear(*input, index, parts),
            Pass::RotaryAppend(pass) => self.rotary_append(pass),
            Pass::Attention(pass) => self.attention(pass),
            Pass::SoftCap { values, cap } => self.soft_cap(*values, *cap),
            Pass::Route(pass) => self.route(index, pass),
            Pass::ExpertsGate(pass) => self.experts_gate(pass),
            Pass::ExpertsDown(pass) => self.experts_down(pass),
            Pass::HeadLinear(pass) => self.head_linear(pass),
            Pass::CopyColumns(pass) => self.copy_columns(pass),
            Pass::Row(pass) => self.row_pass(pass),
            Pass::Select { input, output } => {
                let arguments = SelectArguments {
                    header: self.base,
                    picks: at(self.base, self.layout.picks),
                    input: self.program.activation(*input),
                    output: self.program.activation(*output),
                    width: self.program.tape.activation(*input).width,
                };
                self.one_each(self.program.kernels.select_rows, self.sampled, 256, &arguments)
            }
            Pass::Sample { logits } => self.sample(*logits),
            Pass::Send(_) => Ok(()),
        }
    }

    /// A block of threads for each of `count`.
    pub(crate) fn one_each<A: Copy>(
        &self,
        function: Function,
        count: u32,
        threads: u32,
        arguments: &A,
    ) -> Result<(), CudaError> {
        let grid = Grid { blocks: [count.max(1), 1], threads, shared_bytes: 0 };
        self.spread(function, grid, arguments)
    }

    /// Blocks of threads as the kernel's own file says.
    pub(crate) fn spread<A: Copy>(
        &self,
        function: Function,
        grid: Grid,
        arguments: &A,
    ) -> Result<(), CudaError> {
        // SAFETY: every argument struct is laid out as its kernel's, and holds addresses of this
        // program's heaps, which `lay_out` made large enough for the largest step.
        unsafe { self.program.stream.launch(function, grid, arguments) }
    }

    /// Elements of an activation's row.
    pub(crate) fn width(&self, id: ActivationId) -> u32 {
        self.program.tape.activation(id).width
    }

    /// Elements between rows of an activation.
    pub(crate) fn stride(&self, id: ActivationId) -> u32 {
        self.program.plan.stride(&self.program.tape, id) as u32
    }

    /// Rows of an activation in this step, at most.
    pub(crate) fn rows(&self, id: ActivationId) -> u32 {
        match self.program.tape.activation(id).rows {
            RowKind::Tokens => self.tokens,
            RowKind::Sampled => self.sampled,
        }
    }

    /// Where the exact number stands.
    pub(crate) fn count(&self, id: ActivationId) -> Address {
        match self.program.tape.activation(id).rows {
            RowKind::Tokens => self.token_count(),
            RowKind::Sampled => at(self.base, SAMPLED_WORD),
        }
    }

    pub(crate) fn token_count(&self) -> Address {
        at(self.base, TOKENS_WORD)
    }

    fn embed(&self, pass: &EmbedPass) -> Result<(), CudaError> {
        let program = self.program;
        let &EmbedPass { matrix, scale, by, output } = pass;
        let shape = &program.plan.matrices[&matrix];
        let (by, from) = match by {
            None => (BY_TOKEN, 0),
            Some(EmbedBy::Position { from }) => (BY_POSITION, from),
            Some(EmbedBy::First) => (BY_NOTHING, 0),
            Some(EmbedBy::Text { .. }) => (BY_TEXT, 0),
        };
        let arguments = EmbedArguments {
            header: self.base,
            sources: at(self.base, self.layout.sources),
            slots_last: program.work.slots_last,
            tokens: program.work.tokens,
            weights: program.stored.matrices[&matrix],
            output: program.activation(output),
            tiles: shape.tiles,
            chunks: shape.chunks,
            width: self.width(output),
            vocabulary: shape.rows,
            scale,
            // Once a step.
            rotaries: if by == BY_TOKEN { program.tape.rotaries.len() as u32 } else { 0 },
            rows: at(self.base, self.layout.rows),
            token_rows: at(self.base, self.layout.token_rows),
            rotary: self.rotaries(),
            texts: at(self.base, self.layout.texts),
            by,
            from,
            adds: u32::from(by != BY_TOKEN),
        };
        self.one_each(program.kernels.embed(shape.form), self.tokens, 256, &arguments)
    }

    /// What embedding makes the tables of turns from.
    pub(crate) fn rotaries(&self) -> [EmbedRotary; ROTARIES_MAX] {
        let program = self.program;
        let mut list = [EmbedRotary::NONE; ROTARIES_MAX];
        for (index, (place, rotary)) in list.iter_mut().zip(&program.tape.rotaries).enumerate() {
            *place = EmbedRotary {
                frequencies: program.stored.frequencies[index],
                turns: program.work.turns[index],
                pairs: rotary.dims / 2,
                factor: rotary.attention_factor(),
            };
        }
        list
    }

    /// The kernel of a product.
    fn choice(&self, input: ActivationId, parts: &[Part]) -> LinearChoice {
        let matrix = |part: &Part| &self.program.plan.matrices[&part.matrix];
        let size = LinearSize {
            tokens: self.rows(input),
            tiles: parts.iter().map(|part| matrix(part).tiles).sum(),
            chunks: matrix(&parts[0]).chunks,
        };
        self.program.kernels.linear(matrix(&parts[0]).form, size)
    }

    /// Whether all products behind a norm do it themselves, so that it need not be launched.
    fn products_norm(&self, norm: usize) -> bool {
        let plan = &self.program.plan;
        let products = plan.passes.iter().zip(&plan.norms).filter(|(_, own)| **own == Some(norm));
        let mut norm_themselves = products.map(|(pass, _)| match pass {
            Pass::Linear { input, parts, .. } => {
                matches!(self.choice(*input, parts).launch, LinearLaunch::Stream { .. })
            }
            _ => false,
        });
        norm_themselves.next().is_some_and(|first| first && norm_themselves.all(|one| one))
    }

    /// The rows that the product of this index norms itself.
    fn normed(&self, index: usize) -> NormedInput {
        let norm = self.program.plan.norms[index].filter(|&norm| self.products_norm(norm));
        norm.map_or(NormedInput::NONE, |norm| self.normed_input(norm))
    }

    /// What the norm of this index reads.
    pub(crate) fn normed_input(&self, norm: usize) -> NormedInput {
        let program = self.program;
        match program.plan.passes[norm] {
            Pass::Norm { input, weight, epsilon, .. } => NormedInput {
                rows: program.activation(input),
                weight: program.stored.vectors[&weight],
                width: program.tape.activation(input).width,
                epsilon,
            },
            _ => unreachable!("invariant: a norm's index"),
        }
    }

    fn linear(&self, input: ActivationId, index: usize, parts: &[Part]) -> Result<(), CudaError> {
        let program = self.program;
        let rows = self.rows(input);
        let choice = self.choice(input, parts);
        let tiles = parts.iter().map(|part| program.plan.matrices[&part.matrix].tiles);
        let mut arguments = LinearArguments {
            map: self.tensor_map(input, choice)?,
            input: program.activation(input),
            tokens: self.count(input),
            input_stride: program.plan.stride(&program.tape, input) as u32,
            chunks: 0,
            parts: parts.len() as u32,
            input_scale: match program.plan.kept[input.0 as usize] {
                Kept::GatedHalf => 16.0,
                Kept::Float | Kept::Half => 1.0,
            },
            part: [LinearPart::NONE; PARTS_MAX],
            normed: self.normed(index),
        };
        for (place, part) in arguments.part.iter_mut().zip(parts) {
            let shape = &program.plan.matrices[&part.matrix];
            arguments.chunks = shape.chunks;
            *place = LinearPart {
                weights: program.stored.matrices[&part.matrix],
                bias: part.bias.map_or(Address::NONE, |bias| program.stored.vectors[&bias]),
                output: program.activation(part.output),
                rows: shape.rows,
                tiles: shape.tiles,
                output_stride: program.plan.stride(&program.tape, part.output) as u32,
                mode: match part.mode {
                    PartMode::Store => STORE,
                    PartMode::Add => ADD,
                    PartMode::Gate(code) => code,
                },
            };
        }
        let blocks = choice.launch.blocks(rows, tiles);
        let grid = Grid { blocks, threads: choice.threads, shared_bytes: choice.shared_bytes };
        // Inputs have whole tiles of rows and chunks.
        self.spread(choice.function, grid, &arguments)
    }

    /// What the copy engine must know of a product's inputs.
    fn tensor_map(
        &self,
        input: ActivationId,
        choice: LinearChoice,
    ) -> Result<TensorMap, CudaError> {
        let program = self.program;
        let Some(box_rows) = choice.launch.box_tokens() else { return Ok(TensorMap::NONE) };
        let rows = rows_max(program.tape.activation(input).rows, &program.capacity);
        program.stream.gpu.tensor_map(Boxed {
            base: program.activation(input),
            stride: program.plan.stride(&program.tape, input),
            rows: rows.next_multiple_of(TOKENS_PADDED as usize),
            box_rows,
            box_columns: CHUNK as u32,
        })
    }

    fn rotary_append(&self, pass: &RotaryPass) -> Result<(), CudaError> {
        let program = self.program;
        let &RotaryPass { layer, head_norms, rotary, growth, query, key, value, is_query_alone } =
            pass;
        let heads_kv = if is_query_alone { 0 } else { program.plan.heads_kv };
        let norm = |weight| program.stored.vectors[&weight];
        // Nothing turns where a layer knows no positions.
        let turns = rotary.map_or(Address::NONE, |id| program.work.turns[usize::from(id.0)]);
        let rotary = rotary.map(|id| program.tape.rotary(id));
        let arguments = RotaryArguments {
            header: self.base,
            rows: at(self.base, self.layout.rows),
            token_rows: at(self.base, self.layout.token_rows),
            blocks: at(self.base, self.layout.blocks),
            query: program.activation(query),
            key: program.activation(key),
            value: program.activation(value),
            query_output: program.work.query_halves,
            pages: program.pages.layers[layer as usize],
            turns,
            query_norm: head_norms.map_or(Address::NONE, |norms| norm(norms.query)),
            key_norm: head_norms.map_or(Address::NONE, |norms| norm(norms.key)),
            heads: program.plan.heads,
            heads_kv,
            head_dim: program.tape.head_dim,
            head_padded: program.plan.head_padded,
            dims: rotary.map_or(0, |rotary| rotary.dims),
            half_split: u32::from(
                rotary.is_some_and(|rotary| rotary.pairing == Pairing::HalfSplit),
            ),
            epsilon: head_norms.map_or(0.0, |norms| norms.epsilon),
            growth: growth.map_or(0.0, |growth| growth.factor),
            growth_every: growth.map_or(1, |growth| growth.every),
        };
        // A warp a head, of queries, keys and values.
        let heads = program.plan.heads + 2 * heads_kv;
        let blocks = [self.tokens.max(1), heads.div_ceil(8)];
        let grid = Grid { blocks, threads: 256, shared_bytes: 0 };
        self.spread(program.kernels.rotary_append, grid, &arguments)
    }

    fn attention(&self, pass: &AttentionPass) -> Result<(), CudaError> {
        let &AttentionPass { layer, ref shape, sinks, output } = pass;
        let program = self.program;
        let groups = program.plan.attention.heads_kv;
        let arguments = AttentionArguments {
            header: self.base,
            rows: at(self.base, self.layout.rows),
            blocks: at(self.base, self.layout.blocks),
            tiles: at(self.base, self.layout.tiles),
            items: at(self.base, self.layout.items),
            wide_items: at(self.base, self.layout.wide_items),
            query: program.work.query_halves,
            pages: program.pages.layers[layer as usize],
            partials: program.work.partials,
            counters: program.work.counters,
            output: program.activation(output),
            sinks: sinks.map_or(Address::NONE, |sinks| program.stored.vectors[&sinks]),
            heads: shape.heads,
            heads_kv: groups,
            heads_stored: shape.heads_kv,
            head_dim: shape.head_dim,
            output_stride: program.plan.stride(&program.tape, output) as u32,
            window: match shape.window {
                // An encoder's kernel is made for it.
                Window::Full | Window::Whole => 0,
                Window::Sliding(tokens) => tokens,
            },
            scale: shape.scale,
            soft_cap: shape.soft_cap.unwrap_or(0.0),
        };
        // Blocks of threads take the items in turn.
        let launch = |kernel: AttentionKernel| {
            let AttentionKernel { function, threads, shared_bytes, blocks } = kernel;
            let grid = Grid { blocks: [blocks, 1], threads, shared_bytes };
            self.spread(function, grid, &arguments)
        };
        if self.attention.items > 0 {
            let team = program.kernels.paged_attention_team.filter(|_| self.attention.by_teams);
            launch(team.unwrap_or(program.kernels.paged_attention))?;
        }
        match program.kernels.paged_attention_wide {
            Some(wide) if self.attention.wide_items > 0 => launch(wide),
            _ => Ok(()),
        }
    }

    fn soft_cap(&self, values: ActivationId, cap: f32) -> Result<(), CudaError> {
        let width = self.program.tape.activation(values).width;
        let arguments = SoftCapArguments {
            values: self.program.activation(values),
            rows: self.count(values),
            width,
            cap,
        };
        // A block takes 2,048 values.
        let blocks = [self.rows(values).max(1), width.div_ceil(2048)];
        let grid = Grid { blocks, threads: 256, shared_bytes: 0 };
        self.spread(self.program.kernels.soft_cap, grid, &arguments)
    }

    fn sample(&self, logits: ActivationId) -> Result<(), CudaError> {
        let rows = at(self.base, self.layout.sampled_rows);
        self.sample_rows(logits, [self.base, rows], self.sampled)
    }

    /// Samples from the rows of a list, which has a header of its own.
    pub(crate) fn sample_rows(
        &self,
        logits: ActivationId,
        [header, rows]: [Address; 2],
        count: u32,
    ) -> Result<(), CudaError> {
        let work = &self.program.work;
        let arguments = SampleArguments {
            header,
            rows,
            sources: at(self.base, self.layout.sources),
            params: work.slot_params,
            marks: work.marks,
            bias: work.bias,
            slots_last: work.slots_last,
            logits: self.program.activation(logits),
            tokens: work.sampled.tokens(),
            logprobs: work.sampled.logprobs(),
            top_ids: work.sampled.top_ids(),
            top_logprobs: work.sampled.top_logprobs(),
            allowed: work.allowed,
            vocabulary: self.program.tape.vocabulary,
            allowed_words: self.program.tape.vocabulary.div_ceil(32),
        };
        self.one_each(self.program.kernels.sample_rows, count, 1024, &arguments)
    }

    /// A pass's kind and sizes, in profiles.
    fn describe(&self, pass: &Pass) -> String {
        match pass {
            Pass::Embed(_) => "embed".to_owned(),
            Pass::Norm { .. } => "rms_norm".to_owned(),
            Pass::Linear { parts, form, .. } => {
                let rows: u32 = parts
                    .iter()
                    .map(|part| 16 * self.program.plan.matrices[&part.matrix].tiles)
                    .sum();
                let chunks = self.program.plan.matrices[&parts[0].matrix].chunks;
                format!("linear {rows} x {} {}", 64 * chunks, form.name())
            }
            Pass::NormFloats { .. } => "rms_norm_floats".to_owned(),
            Pass::RotaryAppend(_) => "rotary_append".to_owned(),
            Pass::SoftCap { .. } => "soft_cap".to_owned(),
            Pass::Attention(_) => "paged_attention".to_owned(),
            Pass::Route(_) => "route".to_owned(),
            Pass::ExpertsGate(_) => "experts_gate".to_owned(),
            Pass::ExpertsDown(_) => "experts_down".to_owned(),
            Pass::HeadLinear(_) => "head_linear".to_owned(),
            Pass::CopyColumns(_) => "copy_columns".to_owned(),
            Pass::Row(pass) => pass.functions()[0].1.to_owned(),
            Pass::Select { .. } => "select_rows".to_owned(),
            Pass::Sample { .. } => "sample_rows".to_owned(),
            Pass::Send(_) => "send_rows".to_owned(),
        }
    }
}
