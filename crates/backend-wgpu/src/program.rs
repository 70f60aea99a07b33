//! How does the device run a step? Its words go over, all passes are launched, logits come back.
//!
//! Commands go to the queue in parts, so that the device computes while later ones are written; or
//! all at once, where they were written while the step before ran: steps of decoding are alike but
//! for their words.
//! Sampling is done in the process (`sampling`): what comes back is a row of logits for each token;
//! or, where every token is its row's largest, those alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{
    BlockCopier, BlockForm, Capacity, Fault, HeapPool, HeapSettings, LoadError, MemoryUse, Program,
    Rows, SampleOutput, StepInputs, StepOutputs, Tape, WeightSource,
};
use ops::sample_rows::Slot;
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferUsages,
    CommandBuffer, CommandEncoder, ComputePipeline, MapMode, SubmissionIndex,
};

use crate::carried::{self, CarriedMemory};
use crate::copies::Copier;
use crate::dispatch::{Bound, Launch, StepLaunches};
use crate::gpu::{Gpu, WgpuError};
use crate::kernels::{Kernel, Pipelines};
use crate::lowering::{PassSegment, Plan};
use crate::memory::{Heaps, Piece};
use crate::sampling::{Sampling, take_floats};
use crate::sizes::{self, Place, given_bytes, layer_bytes, step_words};
use crate::step_words::StepWords;
use crate::storing::StoredWeights;

/// Launches of a step's first submission: few, so that the device begins at once. Each other has
/// twice as many as the one before, for a launch is written in less time than it takes.
const LAUNCHES_FIRST: usize = 16;

pub(crate) struct WgpuProgram {
    gpu: Arc<Gpu>,
    tape: Tape,
    capacity: Capacity,
    plan: Plan,
    memory: MemoryUse,
    kernels: BTreeMap<Kernel, ComputePipeline>,
    groups: BTreeMap<Bound, BindGroup>,
    work: Piece,
    step: Piece,
    _rounded: Option<Piece>,
    words: StepWords,
    carried: CarriedMemory,
    /// Of the last step.
    launches: Vec<Launch>,
    /// Launches that a step may have, and their commands.
    prepared: Option<(Vec<Launch>, CommandBuffer)>,
    /// The step's words on their way, and logits or vectors on theirs.
    upload: Buffer,
    download: Buffer,
    /// The step that had `upload` last.
    last: Option<SubmissionIndex>,
    copier: Arc<Copier>,
    given: Vec<f32>,
    /// The step gives the largest of each row of logits instead of all.
    takes_largest: bool,
    sampling: Sampling,
    _weights: StoredWeights,
    /// Freed after all of their pieces.
    heaps: [Heaps; 4],
}

impl WgpuProgram {
    pub(crate) fn load(
        gpu: &Arc<Gpu>,
        pipelines: &Pipelines,
        settings: &HeapSettings,
        plan: Plan,
        tape: Tape,
        source: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Self, LoadError> {
        let refused = |error: WgpuError| LoadError(error.to_string());
        let kernels = pipelines_of(&plan, &tape, pipelines).map_err(refused)?;
        pipelines.keep();
        let memory = sizes::memory_use(&tape, &plan, &capacity);
        let step_bytes = 4 * step_words(&tape, &capacity) as u64;
        let open = |bytes| Heaps::open(gpu, settings, bytes);
        let heaps = [
            open(memory.weights_bytes)?,
            open(memory.kv_bytes)?,
            open(sizes::activations_bytes(&plan))?,
            open(Heaps::room(step_bytes))?,
        ];
        let weights = StoredWeights::load(gpu, &heaps[0], &tape, &plan, source)?;
        let layer = |_| heaps[1].carve("keys and values", layer_bytes(&tape, &capacity));
        let layer = |index| layer(index).map(Arc::new);
        let layers: Vec<_> = (0..tape.layers).map(layer).collect::<Result<_, _>>()?;
        let work = heaps[2].carve("activations", plan.places.bytes())?;
        let step = heaps[3].carve("step", step_bytes)?;
        let rounded_bytes = plan.places.rounded_bytes();
        let rounded = plan.bounds.has_units.then(|| heaps[2].carve("in f16", rounded_bytes));
        let rounded = rounded.transpose()?;
        let carried = CarriedMemory::carve(gpu, &heaps[1], &plan.carried)?;
        let groups = BoundPieces {
            weights: &weights,
            layers: &layers,
            carried: &carried.pieces,
            work: &work,
            step: &step,
            rounded: rounded.as_ref(),
        };
        let groups = groups.groups(gpu, pipelines);
        let given = given_bytes(&plan, &capacity);
        let up = BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC;
        let down = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let program = Self {
            upload: gpu.buffer("step", step_bytes, up),
            download: gpu.buffer("given", given, down),
            last: None,
            copier: Arc::new(Copier::new(gpu, &tape, layers)),
            words: StepWords::new(&tape, &capacity),
            carried,
            launches: Vec::new(),
            prepared: None,
            given: Vec::with_capacity(given as usize / 4),
            takes_largest: false,
            sampling: Sampling::new(capacity.slots as usize, tape.vocabulary as usize),
            gpu: Arc::clone(gpu),
            tape,
            capacity,
            plan,
            memory,
            kernels,
            groups,
            work,
            step,
            _rounded: rounded,
            _weights: weights,
            heaps,
        };
        program.gpu.check().map_err(refused).map(|()| program)
    }

    /// What a step does before it is launched.
    fn begin(&mut self, inputs: &StepInputs) -> Result<(), Fault> {
        for reset in &inputs.resets {
            let slot = Slot::new(reset.params.clone(), &reset.prompt, &reset.generated);
            self.sampling.set(reset.slot, slot);
            self.words.set_adapter(reset.slot, reset.adapter);
        }
        self.words.fill(&self.tape, inputs, self.sampling.slots())?;
        self.carried.bring(inputs);
        Ok(())
    }

    fn is_last(&self, inputs: &StepInputs) -> bool {
        inputs.segment + 1 == self.plan.segments.len()
    }

    /// Begins the step: its words go to the device ahead of everything.
    fn send(&mut self, encoder: &mut CommandEncoder) -> Result<(), WgpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(&self.words.words);
        let count = bytes.len() as u64;
        if count == 0 {
            return Ok(());
        }
        self.gpu.map(&self.upload, count, MapMode::Write, self.last.take())?;
        let view = self.upload.get_mapped_range_mut(..count);
        let sent = view.map(|mut view| view.copy_from_slice(bytes));
        self.upload.unmap();
        sent.map_err(|error| WgpuError(error.to_string()))?;
        encoder.copy_buffer_to_buffer(&self.upload, 0, &self.step.buffer, self.step.offset, count);
        Ok(())
    }

    /// Rows that another device computed, ahead of everything.
    fn bring_received(&mut self, inputs: &StepInputs) {
        let PassSegment { received, received_at, .. } = &self.plan.segments[inputs.segment];
        let parts = inputs.received_parts(&self.tape, received);
        for (place, (_, rows)) in received_at.iter().zip(parts) {
            let (stride, width) = (place.stride as usize, place.width as usize);
            // What the step gives is not there yet.
            let padded = &mut self.given;
            padded.clear();
            for row in rows.chunks_exact(width) {
                padded.extend_from_slice(row);
                padded.extend(std::iter::repeat_n(0.0, stride - width));
            }
            let at = self.work.offset + 4 * u64::from(place.first);
            self.gpu.queue.write_buffer(&self.work.buffer, at, bytemuck::cast_slice(padded));
        }
    }

    /// What a segment of the step gives.
    fn given_places<'a>(&'a self, segment: &'a PassSegment) -> &'a [Place] {
        match &self.plan.places.chosen {
            Some(chosen) if self.takes_largest => std::slice::from_ref(chosen),
            _ => &segment.given,
        }
    }

    /// Rows of each thing that a step gives.
    fn given_rows(&self, segment: &PassSegment) -> u32 {
        match self.given_places(segment).first().map(|given| given.rows) {
            Some(Rows::Tokens) => self.words.tokens,
            Some(Rows::Sampled) | None => self.words.sampled,
        }
    }

    /// Launches all passes; gives the last submission.
    fn launch(&mut self, inputs: &StepInputs) -> Result<SubmissionIndex, WgpuError> {
        let step = StepLaunches { tape: &self.tape, plan: &self.plan, step: &self.words };
        let mut launches = std::mem::take(&mut self.launches);
        launches.clear();
        let mut add = |launch: Launch| launches.push(launch);
        let segment = &self.plan.segments[inputs.segment];
        let (is_first, is_last) = (inputs.segment == 0, self.is_last(inputs));
        if is_first {
            carried::begin(&self.plan.carried, inputs, &mut add);
        }
        let passes = &self.plan.passes[segment.passes.clone()];
        passes.iter().for_each(|pass| step.of(pass, &mut add));
        if self.takes_largest {
            step.largest(segment, &mut add);
        }
        if is_last {
            carried::end(&self.plan.carried, inputs, &mut add);
        }
        let mut encoder = self.gpu.encoder();
        if is_first {
            self.send(&mut encoder)?;
        }
        self.bring_received(inputs);
        let submission = match self.prepared.take() {
            Some((known, commands)) if known == launches => {
                let begin = encoder.finish();
                let mut end = self.gpu.encoder();
                self.bring_back(&mut end, &self.plan.segments[inputs.segment]);
                self.gpu.queue.submit([begin, commands, end.finish()])
            }
            _ => self.submit_in_parts(encoder, &launches, &self.plan.segments[inputs.segment]),
        };
        self.launches = launches;
        self.last = Some(submission.clone());
        Ok(submission)
    }

    fn submit_in_parts(
        &self,
        mut encoder: CommandEncoder,
        launches: &[Launch],
        segment: &PassSegment,
    ) -> SubmissionIndex {
        let (mut rest, mut count) = (launches, LAUNCHES_FIRST);
        while rest.len() > count {
            let (part, others) = rest.split_at(count);
            self.encode(&mut encoder, part);
            let full = std::mem::replace(&mut encoder, self.gpu.encoder());
            self.gpu.queue.submit([full.finish()]);
            (rest, count) = (others, 2 * count);
        }
        self.encode(&mut encoder, rest);
        self.bring_back(&mut encoder, segment);
        self.gpu.queue.submit([encoder.finish()])
    }

    /// Writes the commands of another step like this one, while the device computes: where every
    /// row has one token, the next step most likely is.
    fn prepare(&mut self, inputs: &StepInputs) {
        let is_alike = self.words.tokens == self.words.rows && inputs.resets.is_empty();
        // By turns, another segment comes next.
        if is_alike && inputs.states.is_empty() && self.plan.segments.len() == 1 {
            let mut encoder = self.gpu.encoder();
            self.encode(&mut encoder, &self.launches);
            self.prepared = Some((self.launches.clone(), encoder.finish()));
        }
    }

    /// What the step gives, to where the process can read it.
    fn bring_back(&self, encoder: &mut CommandEncoder, segment: &PassSegment) {
        let mut to = 0;
        for given in self.given_places(segment) {
            let bytes = 4 * u64::from(given.stride) * u64::from(self.given_rows(segment));
            let from = self.work.offset + 4 * u64::from(given.first);
            if bytes > 0 {
                encoder.copy_buffer_to_buffer(&self.work.buffer, from, &self.download, to, bytes);
            }
            to += bytes;
        }
    }

    fn encode(&self, encoder: &mut CommandEncoder, launches: &[Launch]) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for launch in launches {
            let [x, y, z] = launch.groups;
            if x == 0 || y == 0 {
                continue;
            }
            pass.set_pipeline(&self.kernels[&launch.kernel]);
            pass.set_bind_group(0, &self.groups[&launch.bound], &[]);
            pass.set_immediates(0, launch.parameters.bytes());
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Waits for the step, and takes what it gives: row by row, the parts of each side by side, or
    /// all rows of a part before those of the next where another device goes on with them.
    fn receive(
        &mut self,
        inputs: &StepInputs,
        submission: SubmissionIndex,
    ) -> Result<(), WgpuError> {
        self.given.clear();
        let segment = &self.plan.segments[inputs.segment];
        let count = self.given_rows(segment) as usize;
        let parts = self.given_places(segment).to_vec();
        let bytes: u64 = parts.iter().map(|part| 4 * u64::from(part.stride)).sum();
        let bytes = bytes * count as u64;
        if bytes == 0 {
            return self.gpu.wait(Some(submission));
        }
        self.gpu.map(&self.download, bytes, MapMode::Read, Some(submission))?;
        let received = self.download.get_mapped_range(..bytes).map(|view| {
            let row = |part: usize, row: usize| {
                let before: usize = parts[..part].iter().map(|part| part.stride as usize).sum();
                let first = 4 * (before * count + row * parts[part].stride as usize);
                &view[first..][..4 * parts[part].width as usize]
            };
            let all = || 0..parts.len();
            if let [part] = parts.as_slice()
                && part.stride == part.width
            {
                take_floats(&view, &mut self.given);
            } else if segment.is_sent {
                let rows = all().flat_map(|part| (0..count).map(move |row| (part, row)));
                rows.for_each(|(part, at)| take_floats(row(part, at), &mut self.given));
            } else {
                let rows = (0..count).flat_map(|row| all().map(move |part| (part, row)));
                rows.for_each(|(part, at)| take_floats(row(part, at), &mut self.given));
            }
        });
        self.download.unmap();
        received.map_err(|error| WgpuError(error.to_string()))
    }

    fn give(&self, width: usize, inputs: &StepInputs, outputs: &mut StepOutputs) {
        for row in inputs.sampled_rows() {
            outputs.vectors.extend_from_slice(&self.given[row.place * width..][..width]);
            outputs.samples.push(SampleOutput::of_vector(row.slot));
        }
    }

    fn sample(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        if self.plan.segments[inputs.segment].is_sent {
            outputs.sent.extend_from_slice(&self.given);
            return Ok(());
        }
        if let Some(width) = self.tape.vector_width() {
            self.give(width as usize, inputs, outputs);
            return Ok(());
        }
        if inputs.keep_logits {
            outputs.logits.extend_from_slice(&self.given);
        }
        if self.takes_largest {
            self.sampling.take_largest(inputs, &self.given, outputs);
            return Ok(());
        }
        self.sampling.sample(inputs, &mut self.given, outputs)
    }
}

/// Every pipeline that steps may launch.
fn pipelines_of(
    plan: &Plan,
    tape: &Tape,
    pipelines: &Pipelines,
) -> Result<BTreeMap<Kernel, ComputePipeline>, WgpuError> {
    let kernels = plan.passes.iter().flat_map(|pass| pass.kernels(tape, plan));
    let kernels = kernels.chain(plan.places.chosen.map(|_| Kernel::Largest));
    kernels.map(|kernel| Ok((kernel, pipelines.get(kernel)?))).collect()
}

/// What is bound by launches.
struct BoundPieces<'a> {
    weights: &'a StoredWeights,
    layers: &'a [Arc<Piece>],
    carried: &'a [Piece],
    work: &'a Piece,
    step: &'a Piece,
    /// The activations in f16, for matrix units.
    rounded: Option<&'a Piece>,
}

impl BoundPieces<'_> {
    /// Each group once; see `kernels/prelude.wgsli`.
    fn groups(&self, gpu: &Gpu, pipelines: &Pipelines) -> BTreeMap<Bound, BindGroup> {
        let vectors = &self.weights.vectors;
        // Of a part of a model whose layers keep none, what is never looked at.
        let first = self.layers.first().map_or(self.work, |layer| layer);
        let make = |matrix: &Piece, layer: &Piece| {
            let pieces = [matrix, matrix, vectors, self.step, self.work, self.work, layer, layer];
            let rounded = self.rounded.into_iter().flat_map(|piece| [piece; 3]);
            let pieces = pieces.into_iter().chain(rounded);
            let entries: Vec<_> = (0..)
                .zip(pieces.map(|piece| BindingResource::Buffer(piece.binding())))
                .map(|(binding, resource)| BindGroupEntry { binding, resource })
                .collect();
            gpu.device.create_bind_group(&BindGroupDescriptor {
                label: None,
                layout: &pipelines.bindings,
                entries: &entries,
            })
        };
        let matrices = self.weights.matrices.iter();
        let matrices = matrices
            .map(|(&(index, piece), matrix)| (Bound::Matrix(index, piece), make(matrix, first)));
        let layers = (0..).zip(self.layers);
        let layers = layers.map(|(index, layer)| (Bound::Layer(index), make(vectors, layer)));
        let carried = self.carried.iter().enumerate();
        let carried = carried.map(|(index, piece)| (Bound::Carried(index), make(vectors, piece)));
        matrices.chain(layers).chain(carried).chain([(Bound::Work, make(vectors, first))]).collect()
    }
}

impl Program for WgpuProgram {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        inputs.audit(&self.capacity);
        outputs.clear(inputs.step);
        if inputs.segment == 0 {
            self.begin(inputs)?;
        }
        self.takes_largest = self.plan.places.chosen.is_some()
            && self.is_last(inputs)
            && self.sampling.takes_largest(inputs);
        let failed = |error: WgpuError| Fault(error.to_string());
        let submission = self.launch(inputs).map_err(failed)?;
        self.prepare(inputs);
        self.receive(inputs, submission).map_err(failed)?;
        self.sample(inputs, outputs)
    }

    fn block_form(&self) -> BlockForm {
        Copier::form(&self.tape)
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        self.copier.read(block, bytes);
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        self.copier.write(block, bytes);
    }

    fn state_bytes(&self) -> Option<usize> {
        self.carried.state_bytes()
    }

    fn read_state(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        self.carried.read(place, offset, bytes);
    }

    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        Some(Arc::clone(&self.copier) as _)
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }

    fn heap_pools(&self) -> Vec<HeapPool> {
        self.heaps.iter().map(|heaps| heaps.pool.clone()).collect()
    }
}
