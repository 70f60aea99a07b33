//! One step of a tape, op by op.

use device::{
    BlockForm, Capacity, Fault, LoadError, MemoryUse, Program, Rows, SampleOutput, Segment,
    StepInputs, StepOutputs, Tape, TokenInput, WeightSource,
};
use ops::experts::{Choice, Learned, Weights};
use ops::gated_delta::Gates;
use ops::linear::Sum;
use ops::low_rank::LowRank;
use ops::paged_attention::{PageShape, Window};
use ops::pool_rows::Pooling;
use ops::rotary::{QueryGrowth, Rotary};
use ops::sample_rows::{Scratch, Slot};
use ops::{
    ActivationId, EmbedBy, HeadColumns, HeadNorms, LinearPart, Op, RotaryId, Target, WeightId,
};

use crate::states::{States, Turn};

pub(crate) struct ReferenceProgram {
    tape: Tape,
    segments: Vec<Segment>,
    capacity: Capacity,
    /// Each `[rows, cols]`, in the order of the tape's table.
    weights: Vec<Vec<f32>>,
    activations: Vec<Vec<f32>>,
    /// One vector a layer, see [`PageShape`].
    pages: Vec<Vec<f32>>,
    page_shape: PageShape,
    slots: Vec<Option<Slot>>,
    /// Of each rotation of the tape.
    inverse_frequencies: Vec<Vec<f32>>,
    /// Of each slot's sequence.
    adapters: Vec<Option<u32>>,
    /// What each slot keeps of the text that it pools; none where the tape does not.
    kept: Vec<Vec<f32>>,
    states: States,
}

/// Where the step's tokens are: worked out once, used by several ops.
struct Places {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// The row each token belongs to.
    rows: Vec<usize>,
    sampled: Vec<u32>,
}

impl ReferenceProgram {
    pub(crate) fn load(
        tape: Tape,
        source: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Self, LoadError> {
        let weights = (0..tape.weights.len() as u32)
            .map(|index| decode(&tape, WeightId(index), source))
            .collect::<Result<_, _>>()?;
        let page_shape = tape.page_shape(capacity.block_tokens);
        let layer_elements = page_shape.block_elements() * capacity.block_count as usize;
        Ok(Self {
            weights,
            // At their largest from the start, so that a step takes no memory.
            activations: activation_sizes(&tape, &capacity).map(Vec::with_capacity).collect(),
            pages: (0..tape.layers).map(|_| vec![0.0; layer_elements]).collect(),
            page_shape,
            slots: (0..capacity.slots).map(|_| None).collect(),
            adapters: vec![None; capacity.slots as usize],
            kept: tape.pooled().map_or_else(Vec::new, |(width, _)| {
                vec![vec![0.0; width as usize]; capacity.slots as usize]
            }),
            states: States::new(tape.state, &capacity),
            inverse_frequencies: tape.rotaries.iter().map(Rotary::inverse_frequencies).collect(),
            segments: tape.segments(),
            tape,
            capacity,
        })
    }

    /// What `load` would keep; see [`device::Backend::memory`].
    pub(crate) fn planned_memory(
        tape: &Tape,
        source: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError> {
        let mut weights = 0;
        for index in 0..tape.weights.len() as u32 {
            let view = tape.shape(WeightId(index), source)?;
            weights += view.rows * view.cols;
        }
        let page_shape = tape.page_shape(capacity.block_tokens);
        let layer_elements = page_shape.block_elements() * capacity.block_count as usize;
        let activations: usize = activation_sizes(tape, capacity).sum();
        let states: usize = States::elements(tape.state, capacity).iter().sum();
        Ok(MemoryUse {
            weights_bytes: 4 * weights as u64,
            kv_bytes: 4 * (tape.layers as usize * layer_elements + states) as u64,
            activations_bytes: 4 * activations as u64,
            staging_bytes: 0,
            host_bytes: 0,
        })
    }

    /// A block's page of each layer.
    fn pages_of(&mut self, block: u32) -> impl Iterator<Item = &mut [f32]> {
        let elements = self.page_shape.block_elements();
        let start = block as usize * elements;
        self.pages.iter_mut().map(move |layer| &mut layer[start..start + elements])
    }

    /// What a step does before its first op.
    fn begin(&mut self, inputs: &StepInputs) -> Result<(), Fault> {
        for reset in &inputs.resets {
            let slot = Slot::new(reset.params.clone(), &reset.prompt, &reset.generated);
            self.slots[reset.slot as usize] = Some(slot);
            self.adapters[reset.slot as usize] = reset.adapter;
        }
        self.states.begin(inputs)?;
        let sampled = inputs.sampled_tokens().count();
        for (spec, buffer) in self.tape.activations.iter().zip(&mut self.activations) {
            let rows = match spec.rows {
                Rows::Tokens => inputs.tokens.len(),
                Rows::Sampled => sampled,
            };
            buffer.clear();
            buffer.resize(rows * spec.width as usize, 0.0);
        }
        Ok(())
    }

    fn places(&self, inputs: &StepInputs) -> Result<Places, Fault> {
        let known = |token: &TokenInput| match *token {
            TokenInput::Known(token) => Ok(token),
            TokenInput::Slot(slot) => self.slots[slot as usize]
                .as_ref()
                .map(|slot| slot.last)
                .ok_or_else(|| Fault(format!("slot {slot} was read before it was set"))),
        };
        let mut places = Places {
            tokens: inputs.tokens.iter().map(known).collect::<Result<_, _>>()?,
            positions: Vec::with_capacity(inputs.tokens.len()),
            rows: Vec::with_capacity(inputs.tokens.len()),
            sampled: inputs.sampled_tokens().collect(),
        };
        for (index, row) in inputs.rows.iter().enumerate() {
            places.positions.extend(row.start..row.start + row.length);
            places.rows.extend(std::iter::repeat_n(index, row.length as usize));
        }
        Ok(places)
    }

    fn run_op(&mut self, op: &Op, inputs: &StepInputs, places: &Places) {
        match op {
            Op::Embed { table, scale, output } => {
                let mut out = self.take(*output);
                let table = &self.weights[table.0 as usize];
                let width = self.tape.activation(*output).width as usize;
                ops::embed::reference(table, width, &places.tokens, *scale, &mut out);
                self.put(*output, out);
            }
            Op::EmbedMore { table, by, output } => self.embed_more(*table, *by, *output, places),
            Op::LayerNorm { values, .. }
            | Op::Activate { values, .. }
            | Op::SoftCap { values, .. }
            | Op::GatedNorm { values, .. }
            | Op::NormHeads { values, .. }
            | Op::Blend { values, .. }
            | Op::Scale { values, .. }
            | Op::SigmoidGate { values, .. } => self.in_place(*values, op),
            Op::Rotate { values, rotary, .. } => self.rotate(*values, *rotary, places),
            Op::CausalConv { .. } => self.causal_conv(op, inputs),
            Op::GatedDelta { .. } => self.gated_delta(op, inputs),
            Op::RmsNorm { input, weight, epsilon, target } => {
                let mut out = self.take(target.buffer());
                let weight = &self.weights[weight.0 as usize];
                let sum = sum_of(*target);
                ops::rms_norm::reference(self.get(*input), weight, *epsilon, sum, &mut out);
                self.put(target.buffer(), out);
            }
            Op::Linear { input, parts } => {
                parts.iter().for_each(|part| self.linear(*input, part));
            }
            Op::GatedLinear { .. } => self.gated_linear(op),
            Op::Gate { gate, up, activation, output } => {
                let mut out = self.take(*output);
                out.copy_from_slice(self.get(*gate));
                ops::gated_linear::reference(*activation, &mut out, self.get(*up));
                self.put(*output, out);
            }
            Op::AddLowRank { input, adapters, output } => {
                self.add_low_rank(*input, adapters, *output, inputs, places);
            }
            Op::Experts { .. } => self.experts(op),
            Op::HeadLinear { .. } | Op::CopyColumns { .. } => self.by_heads(op),
            Op::RotaryAppend { layer, head_norms, rotary, growth, query, key, value } => {
                if let Some(HeadNorms { query: for_query, key: for_key, epsilon }) = *head_norms {
                    self.norm_heads(*query, for_query, epsilon);
                    self.norm_heads(*key, for_key, epsilon);
                }
                if let Some(rotary) = *rotary {
                    self.rotate(*query, rotary, places);
                    self.rotate(*key, rotary, places);
                }
                growth.iter().for_each(|growth| self.grow(*query, *growth, places));
                self.append(*layer, *key, *value, inputs, places);
            }
            Op::PagedAttention { .. } => self.attend(op, inputs, places),
            Op::SelectRows { input, output } => {
                let mut out = self.take(*output);
                let width = self.tape.activation(*input).width as usize;
                ops::select_rows::reference(self.get(*input), width, &places.sampled, &mut out);
                self.put(*output, out);
            }
            Op::PoolRows { input, pooling, output } => {
                self.pool(*input, *pooling, *output, inputs);
            }
            // What changes slots and outputs; `run` does it last.
            Op::SampleRows { .. } | Op::GiveRows { .. } | Op::SendRows { .. } => {}
            Op::ReceiveRows { parts } => self.receive(parts, inputs),
        }
    }

    fn receive(&mut self, parts: &[ActivationId], inputs: &StepInputs) {
        for (part, rows) in inputs.received_parts(&self.tape, parts) {
            self.activations[part.0 as usize].copy_from_slice(rows);
        }
    }

    fn linear(&mut self, input: ActivationId, part: &LinearPart) {
        let buffer = part.target.buffer();
        let mut out = self.take(buffer);
        let weight = &self.weights[part.weight.0 as usize];
        let bias = part.bias.map(|bias| self.weights[bias.0 as usize].as_slice());
        let inputs = self.tape.activation(input).width as usize;
        let sum = sum_of(part.target);
        ops::linear::reference(self.get(input), weight, bias, inputs, sum, &mut out);
        self.put(buffer, out);
    }

    fn gated_linear(&mut self, op: &Op) {
        let &Op::GatedLinear { input, gate, up, activation, output } = op else { return };
        let store = |weight| LinearPart { weight, bias: None, target: Target::Store(output) };
        self.linear(input, &store(up));
        let up = self.get(output).to_vec();
        self.linear(input, &store(gate));
        let mut out = self.take(output);
        ops::gated_linear::reference(activation, &mut out, &up);
        self.put(output, out);
    }

    fn embed_more(&mut self, table: WeightId, by: EmbedBy, output: ActivationId, places: &Places) {
        let mut out = self.take(output);
        let width = self.tape.activation(output).width as usize;
        let table = &self.weights[table.0 as usize];
        for (token, row) in out.chunks_exact_mut(width).enumerate() {
            let position = places.positions[token];
            let start = places.rows.partition_point(|&row| row < places.rows[token]);
            let before = &places.tokens[start..token];
            let more = &table[by.row(position, before) * width..][..width];
            row.iter_mut().zip(more).for_each(|(value, more)| *value += more);
        }
        self.put(output, out);
    }

    fn in_place(&mut self, buffer: ActivationId, op: &Op) {
        let mut values = self.take(buffer);
        let get = |id: WeightId| self.weights[id.0 as usize].as_slice();
        match op {
            Op::LayerNorm { weight, bias, epsilon, .. } => {
                ops::layer_norm::reference(get(*weight), get(*bias), *epsilon, &mut values);
            }
            Op::Activate { curve, .. } => ops::activate::reference(*curve, &mut values),
            Op::SoftCap { cap, .. } => ops::soft_cap::reference(*cap, &mut values),
            Op::GatedNorm { weight, epsilon, gate, .. } => {
                ops::gated_norm::reference(get(*weight), *epsilon, self.get(*gate), &mut values);
            }
            Op::NormHeads { width, weight, epsilon, .. } => {
                let width = *width as usize;
                ops::norm_heads::reference(width, weight.map(get), *epsilon, &mut values);
            }
            Op::Blend { other, scale, .. } => {
                ops::blend::reference(*scale, self.get(*other), &mut values);
            }
            Op::Scale { by, .. } => ops::blend::scale(get(*by), &mut values),
            Op::SigmoidGate { gate, .. } => {
                ops::sigmoid_gate::reference(self.get(*gate), &mut values);
            }
            _ => {}
        }
        self.put(buffer, values);
    }

    fn causal_conv(&mut self, op: &Op, inputs: &StepInputs) {
        let &Op::CausalConv { values: buffer, weight, taps, carried } = op else { return };
        let mut values = self.take(buffer);
        let width = self.tape.activation(buffer).width as usize;
        let mut states = std::mem::take(&mut self.states);
        let weight = &self.weights[weight.0 as usize];
        let raw = values.clone();
        let row = |token: usize| token * width..(token + 1) * width;
        for own in states.rows(inputs) {
            let elements = (taps as usize - 1) * width;
            let inputs_of = |token| raw[row(token)].to_vec();
            states.walk(&own, carried, elements, inputs_of, |tail, turn| match turn {
                Turn::Replay { kept } => ops::causal_conv::skip(tail, kept),
                Turn::Token(token) => {
                    ops::causal_conv::reference(weight, tail, &mut values[row(token)]);
                }
            });
        }
        self.states = states;
        self.put(buffer, values);
    }

    fn gated_delta(&mut self, op: &Op, inputs: &StepInputs) {
        let &Op::GatedDelta { shape, inputs: from, rate, bias, carried, output } = op else {
            return;
        };
        let mut out = self.take(output);
        let mut states = std::mem::take(&mut self.states);
        let [rate, bias] = [rate, bias].map(|id| self.weights[id.0 as usize].as_slice());
        let (width, heads) = (shape.mixed_width() as usize, shape.heads as usize);
        let [mixed, decay, strength] =
            [from.mixed, from.decay, from.strength].map(|id| self.get(id));
        let inputs_of = |token: usize| {
            let gates = token * heads..(token + 1) * heads;
            let mixed = &mixed[token * width..(token + 1) * width];
            [mixed, &decay[gates.clone()], &strength[gates]].concat()
        };
        let elements = (shape.key_dim * shape.value_dim) as usize;
        let value_dim = shape.value_dim as usize;
        let mut unread = vec![0.0; value_dim];
        for row in states.rows(inputs) {
            states.walk(&row, carried, elements * heads, inputs_of, |state, turn| {
                let (token, values) = match turn {
                    Turn::Replay { kept } => (None, kept.to_vec()),
                    Turn::Token(token) => (Some(token), inputs_of(token)),
                };
                for (head, state) in state.chunks_exact_mut(elements).enumerate() {
                    let (decay, strength) = (values[width + head], values[width + heads + head]);
                    let gates = Gates::of(rate[head], bias[head], decay, strength);
                    let parts = shape.parts(head as u32).map(|part| &values[part]);
                    let place = |token| (token * heads + head) * value_dim;
                    let output = match token {
                        None => unread.as_mut_slice(),
                        Some(token) => &mut out[place(token)..place(token) + value_dim],
                    };
                    ops::gated_delta::reference(gates, state, parts, output);
                }
            });
        }
        self.states = states;
        self.put(output, out);
    }

    fn add_low_rank(
        &mut self,
        input: ActivationId,
        adapters: &[Option<LowRank>],
        output: ActivationId,
        inputs: &StepInputs,
        places: &Places,
    ) {
        let (mut out, mut inner) = (self.take(output), Vec::new());
        let width = |id: ActivationId| self.tape.activation(id).width as usize;
        let rows = self.get(input).chunks_exact(width(input));
        let rows = rows.zip(out.chunks_exact_mut(width(output)));
        for ((x, y), &row) in rows.zip(&places.rows) {
            let adapter = self.adapters[inputs.rows[row].slot as usize];
            let low_rank = adapter.and_then(|adapter| adapters[adapter as usize]);
            let Some(LowRank { down, up, scale }) = low_rank else { continue };
            let get = |id: WeightId| self.weights[id.0 as usize].as_slice();
            ops::low_rank::reference(get(down), get(up), scale, x, &mut inner, y);
        }
        self.put(output, out);
    }

    fn by_heads(&mut self, op: &Op) {
        let (Op::HeadLinear { heads, input, output, .. }
        | Op::CopyColumns { heads, input, output }) = op
        else {
            return;
        };
        let mut out = self.take(output.buffer);
        for (x, y) in self.row_pairs(input, output, &mut out) {
            match op {
                Op::HeadLinear { weight, .. } => {
                    let weight = &self.weights[weight.0 as usize];
                    ops::head_linear::reference(*heads, input, weight, output, x, y);
                }
                _ => ops::copy_columns::reference(*heads, input, output, x, y),
            }
        }
        self.put(output.buffer, out);
    }

    fn row_pairs<'a>(
        &'a self,
        input: &HeadColumns,
        output: &HeadColumns,
        out: &'a mut [f32],
    ) -> impl Iterator<Item = (&'a [f32], &'a mut [f32])> {
        let width = |id: ActivationId| self.tape.activation(id).width as usize;
        let rows = self.get(input.buffer).chunks_exact(width(input.buffer));
        rows.zip(out.chunks_exact_mut(width(output.buffer)))
    }

    fn experts(&mut self, op: &Op) {
        let &Op::Experts { input, scores, ref experts, target } = op else { return };
        let mut out = self.take(target.buffer());
        let width = self.tape.activation(input).width as usize;
        let get = |id: WeightId| self.weights[id.0 as usize].as_slice();
        let weights = Weights {
            gate: get(experts.gate),
            up: get(experts.up),
            down: get(experts.down),
            biases: experts.biases.map(|biases| biases.map(get)),
        };
        let learned = Learned {
            choice_bias: experts.choice_bias.map(get),
            weight_scales: experts.weight_scales.map(get),
        };
        let mut chosen = vec![Choice::default(); experts.routing.used as usize];
        let scores = self.get(scores).chunks_exact(experts.routing.experts as usize);
        let rows = self.get(input).chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, y), scores) in rows.zip(scores) {
            experts.routing.choose(scores, learned, &mut chosen);
            ops::experts::reference(experts, &weights, x, &chosen, sum_of(target), y);
        }
        self.put(target.buffer(), out);
    }

    fn norm_heads(&mut self, buffer: ActivationId, weight: WeightId, epsilon: f32) {
        let heads = self.get(buffer).to_vec();
        let mut normed = self.take(buffer);
        let weight = &self.weights[weight.0 as usize];
        ops::rms_norm::reference(&heads, weight, epsilon, Sum::Store, &mut normed);
        self.put(buffer, normed);
    }

    fn rotate(&mut self, buffer: ActivationId, rotary: RotaryId, places: &Places) {
        let mut heads = self.take(buffer);
        let width = self.tape.activation(buffer).width as usize;
        let frequencies = &self.inverse_frequencies[usize::from(rotary.0)];
        let rotary = self.tape.rotary(rotary);
        let mut turns = vec![(0.0, 0.0); frequencies.len()];
        for (row, &position) in heads.chunks_exact_mut(width).zip(&places.positions) {
            let factor = rotary.attention_factor();
            ops::rotary::cos_sin(frequencies, factor, position, &mut turns);
            for head in row.chunks_exact_mut(self.tape.head_dim as usize) {
                ops::rotary::reference(rotary.pairing, &turns, head);
            }
        }
        self.put(buffer, heads);
    }

    fn grow(&mut self, query: ActivationId, growth: QueryGrowth, places: &Places) {
        let mut queries = self.take(query);
        let width = self.tape.activation(query).width as usize;
        for (row, &position) in queries.chunks_exact_mut(width).zip(&places.positions) {
            row.iter_mut().for_each(|value| *value *= growth.at(position));
        }
        self.put(query, queries);
    }

    fn append(
        &mut self,
        layer: u32,
        key: ActivationId,
        value: ActivationId,
        inputs: &StepInputs,
        places: &Places,
    ) {
        let dim = self.tape.head_dim as usize;
        let width = self.tape.activation(key).width as usize;
        let mut pages = std::mem::take(&mut self.pages[layer as usize]);
        for (token, (&position, &row)) in places.positions.iter().zip(&places.rows).enumerate() {
            let blocks = table(inputs, row);
            for head in 0..self.page_shape.heads_kv {
                let from = token * width + head * dim;
                let to = self.page_shape.key(blocks, position, head);
                pages[to..to + dim].copy_from_slice(&self.get(key)[from..from + dim]);
                let to = self.page_shape.value(blocks, position, head);
                pages[to..to + dim].copy_from_slice(&self.get(value)[from..from + dim]);
            }
        }
        self.pages[layer as usize] = pages;
    }

    fn attend(&mut self, op: &Op, inputs: &StepInputs, places: &Places) {
        let &Op::PagedAttention { layer, query, ref shape, sinks, output } = op else { return };
        let mut out = self.take(output);
        let sinks = sinks.map(|sinks| self.weights[sinks.0 as usize].as_slice());
        let width = self.tape.activation(query).width as usize;
        let queries = self.get(query).chunks_exact(width);
        for (token, (query, out)) in queries.zip(out.chunks_exact_mut(width)).enumerate() {
            ops::paged_attention::reference(
                shape,
                sinks,
                &self.pages[layer as usize],
                &self.page_shape,
                table(inputs, places.rows[token]),
                last_seen(shape.window, inputs, places, token),
                query,
                out,
            );
        }
        self.put(output, out);
    }

    fn pool(
        &mut self,
        input: ActivationId,
        pooling: Pooling,
        output: ActivationId,
        inputs: &StepInputs,
    ) {
        let (mut out, mut kept) = (self.take(output), std::mem::take(&mut self.kept));
        let width = self.tape.activation(input).width as usize;
        let (mut rows, mut ends) = (self.get(input), out.chunks_exact_mut(width));
        for row in &inputs.rows {
            let (own, others) = rows.split_at(row.length as usize * width);
            rows = others;
            let kept = &mut kept[row.slot as usize];
            ops::pool_rows::keep(pooling, row.start, own, kept);
            if row.sample_index.is_some() {
                let end = ends.next().expect("invariant: a place for each text that ends");
                ops::pool_rows::finish(pooling, row.start + row.length, kept, end);
            }
        }
        self.kept = kept;
        self.put(output, out);
    }

    fn give(&self, parts: &[ActivationId], inputs: &StepInputs, outputs: &mut StepOutputs) {
        for row in inputs.sampled_rows() {
            for &part in parts {
                let width = self.tape.activation(part).width as usize;
                outputs.vectors.extend(&self.get(part)[row.place * width..][..width]);
            }
            outputs.samples.push(SampleOutput::of_vector(row.slot));
        }
    }

    fn sample(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        if let Some(Op::GiveRows { parts }) = self.tape.ops.last() {
            self.give(parts, inputs, outputs);
            return Ok(());
        }
        let Some(Op::SampleRows { logits: buffer }) = self.tape.ops.last() else { return Ok(()) };
        let buffer = *buffer;
        let mut logits = self.take(buffer);
        if inputs.keep_logits {
            outputs.logits.extend_from_slice(&logits);
        }
        let vocabulary = self.tape.vocabulary as usize;
        let mut scratch = Scratch::default();
        for row in inputs.sampled_rows() {
            let slot = row.slot;
            let state = self.slots[slot as usize]
                .as_mut()
                .ok_or_else(|| Fault(format!("slot {slot} was sampled before it was set")))?;
            let logits = logits.chunks_exact_mut(vocabulary).skip(row.place);
            for (count, logits) in logits.take(1 + row.proposals.len()).enumerate() {
                let index = row.sample_index + count as u32;
                let sampled = ops::sample_rows::reference(state, index, logits, &mut scratch);
                let token = sampled.as_ref().ok().map(|sampled| sampled.token);
                outputs.samples.push(SampleOutput { slot, sampled });
                let Some(token) = token else { break };
                state.observe(token);
                if !row.goes_on(count, token) {
                    break;
                }
            }
        }
        self.put(buffer, logits);
        Ok(())
    }

    fn get(&self, id: ActivationId) -> &[f32] {
        &self.activations[id.0 as usize]
    }

    /// Takes a buffer out, so that an op can read others while it writes this one.
    fn take(&mut self, id: ActivationId) -> Vec<f32> {
        std::mem::take(&mut self.activations[id.0 as usize])
    }

    fn put(&mut self, id: ActivationId, buffer: Vec<f32>) {
        self.activations[id.0 as usize] = buffer;
    }
}

impl Program for ReferenceProgram {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        inputs.audit(&self.capacity);
        outputs.clear(inputs.step);
        if inputs.segment == 0 {
            self.begin(inputs)?;
        }
        let places = self.places(inputs)?;
        let Segment { ops: range, sent, .. } = self.segments[inputs.segment].clone();
        let ops = std::mem::take(&mut self.tape.ops);
        ops[range].iter().for_each(|op| self.run_op(op, inputs, &places));
        self.tape.ops = ops;
        for part in sent.into_iter().flatten() {
            outputs.sent.extend_from_slice(self.get(part));
        }
        if inputs.segment + 1 < self.segments.len() {
            return Ok(());
        }
        self.states.end(inputs);
        self.sample(inputs, outputs)
    }

    fn block_form(&self) -> BlockForm {
        let PageShape { heads_kv, block_tokens, head_dim } = self.page_shape;
        let layers = self.pages.len();
        BlockForm {
            name: format!("f32[{layers}, {heads_kv}, 2, {block_tokens}, {head_dim}]"),
            bytes: 4 * layers * self.page_shape.block_elements(),
        }
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.block_form().bytes, "a block of another form");
        let elements = self.pages_of(block).flatten();
        for (place, element) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(elements) {
            *place = element.to_le_bytes();
        }
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.block_form().bytes, "a block of another form");
        let elements = self.pages_of(block).flatten();
        for (element, place) in elements.zip(bytes.as_chunks::<4>().0) {
            *element = f32::from_le_bytes(*place);
        }
    }

    fn state_bytes(&self) -> Option<usize> {
        self.states.state_bytes()
    }

    fn read_state(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        self.states.read(place, offset, bytes);
    }

    fn memory(&self) -> MemoryUse {
        let bytes = |buffers: &[Vec<f32>]| buffers.iter().map(|b| 4 * b.capacity() as u64).sum();
        MemoryUse {
            weights_bytes: bytes(&self.weights),
            kv_bytes: bytes(&self.pages) + self.states.bytes(),
            activations_bytes: bytes(&self.activations),
            staging_bytes: 0,
            host_bytes: 0,
        }
    }
}

/// Elements of each activation in the largest step.
fn activation_sizes<'a>(
    tape: &'a Tape,
    capacity: &'a Capacity,
) -> impl Iterator<Item = usize> + 'a {
    tape.activations.iter().map(|spec| {
        let rows = match spec.rows {
            Rows::Tokens => capacity.step_tokens_max,
            Rows::Sampled => capacity.sampled_tokens_max(),
        };
        rows as usize * spec.width as usize
    })
}

/// The last position that a token sees.
fn last_seen(window: Window, inputs: &StepInputs, places: &Places, token: usize) -> u32 {
    let row = &inputs.rows[places.rows[token]];
    match window {
        Window::Full | Window::Sliding(_) => places.positions[token],
        Window::Whole => row.start + row.length - 1,
    }
}

fn sum_of(target: Target) -> Sum {
    match target {
        Target::Store(_) => Sum::Store,
        Target::AddTo(_) => Sum::Add,
    }
}

fn table(inputs: &StepInputs, row: usize) -> &[u32] {
    let row = &inputs.rows[row];
    &inputs.blocks[row.blocks_start as usize..][..row.blocks_count as usize]
}

fn decode(tape: &Tape, id: WeightId, source: &dyn WeightSource) -> Result<Vec<f32>, LoadError> {
    let view = tape.stored(id, source)?;
    let mut values = vec![0.0; view.rows * view.cols];
    let row_bytes = view.bytes.len() / view.rows;
    let rows = view.bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(view.cols));
    rows.for_each(|(bytes, row)| view.format.decode_row(bytes, row));
    Ok(values)
}
