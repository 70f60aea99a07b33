//! How does a sequence carry what it needs from token to token? A piece of memory for each op that
//! does, with a state for every slot and place; `kernels/carried.wgsli` says how it lies.

use std::collections::BTreeMap;
use std::sync::Arc;

use device::{BlockCopy, Capacity, LoadError, StateCopy, StepInputs};
use ops::Op;
use ops::gated_delta::HeadSharing;
use wgpu::{Buffer, BufferUsages, MapMode};

use crate::dispatch::{Bound, Launch, Parameters};
use crate::gpu::Gpu;
use crate::kernels::Kernel;
use crate::lowering::{Lowering, Pass};
use crate::memory::{Heaps, Piece};
use crate::row_passes::at;
use crate::sizes::Bounds;

/// Words of a row of the step, see `kernels/carried.wgsli`.
pub(crate) const CARRIED_WORDS: usize = 5;

/// Keys of a head that `kernels/gated_delta.wgsl` has room for.
const KEYS_MAX: u32 = 512;
/// Elements of a head's matrix that a workgroup keeps: 8 KiB of them.
const KEPT_ELEMENTS: u32 = 2048;

/// What one op keeps of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CarriedRoom {
    pub(crate) elements: u32,
    /// Of a guess.
    pub(crate) guess_elements: u32,
    slots: u32,
    places: u32,
    guesses: u32,
}

impl CarriedRoom {
    fn new(elements: u32, guess_elements: u32, capacity: &Capacity) -> Self {
        let (slots, places) = (capacity.slots, capacity.states);
        let guesses = capacity.proposed_tokens_max;
        Self { elements, guess_elements, slots, places, guesses }
    }

    fn states(&self) -> u64 {
        u64::from(self.slots + self.places) * u64::from(self.elements)
    }

    pub(crate) fn bytes(&self) -> u64 {
        let kept = u64::from(self.slots) * u64::from(self.guesses) * u64::from(self.guess_elements);
        4 * (self.states() + kept)
    }

    /// As kernels have them: where guesses begin, and how far states, slots and guesses are apart.
    fn words(&self) -> [u32; 4] {
        let slot_guesses = self.guesses * self.guess_elements;
        [self.states() as u32, self.elements, slot_guesses, self.guess_elements]
    }
}

/// A launch for each row of the step.
#[derive(Clone, Debug)]
pub(crate) struct CarriedPass {
    pub(crate) kernel: Kernel,
    pub(crate) room: usize,
    /// What the kernel is told ahead of where the step's rows are.
    pub(crate) parameters: Parameters,
    /// Workgroups of a row.
    pub(crate) across: [u32; 2],
}

impl CarriedPass {
    /// Of a step with so many rows, which are listed at `list`.
    pub(crate) fn launch(&self, rows: u32, list: u32) -> Launch {
        let mut parameters = self.parameters.clone();
        parameters.extend(&[list]);
        let [y, z] = self.across;
        let bound = Bound::Carried(self.room);
        Launch { kernel: self.kernel, bound, parameters, groups: [rows, y, z] }
    }
}

impl Lowering<'_> {
    pub(crate) fn causal_conv(&mut self, op: &Op) -> Result<Pass, LoadError> {
        let &Op::CausalConv { values, weight, taps, .. } = op else {
            unreachable!("invariant: asked of such an op only")
        };
        let values = self.place(values);
        let (room, words) = self.carried_room((taps - 1) * values.width, values.width)?;
        let [first, stride] = at(values);
        let mut parameters = Parameters::new(&[first, stride, values.width]);
        parameters.extend(&[self.vector(weight)?.0]);
        parameters.extend(&words);
        let across = [values.width.div_ceil(64), 1];
        let kernel = Kernel::CausalConv(taps);
        Ok(Pass::Carried(CarriedPass { kernel, room, parameters, across }))
    }

    /// What reads and corrects, and behind it what keeps guesses.
    pub(crate) fn gated_delta(&mut self, op: &Op) -> Result<(), LoadError> {
        let &Op::GatedDelta { shape, inputs, rate, bias, output, .. } = op else {
            unreachable!("invariant: asked of such an op only")
        };
        if shape.key_dim > KEYS_MAX {
            let text = format!("keys of {} elements: the wgpu device has 512", shape.key_dim);
            return Err(LoadError(text));
        }
        let mixed_width = shape.mixed_width();
        let guess_elements = mixed_width + 2 * shape.heads;
        let (room, words) = self.carried_room(shape.state_elements(), guess_elements)?;
        let [mixed, decay, strength] =
            [inputs.mixed, inputs.decay, inputs.strength].map(|id| at(self.place(id)));
        let mut parameters = Parameters::new(&[mixed, decay, strength].concat());
        parameters.extend(&[self.vector(rate)?.0, self.vector(bias)?.0]);
        parameters.extend(&at(self.place(output)));
        let is_grouped = u32::from(shape.sharing == HeadSharing::Grouped);
        parameters.extend(&[shape.heads, shape.heads_key, shape.value_dim, is_grouped]);
        parameters.extend(&words);
        let columns = delta_columns(shape.key_dim);
        let across = [shape.heads, shape.value_dim.div_ceil(columns)];
        let kernel = Kernel::GatedDelta(shape.key_dim);
        let read = CarriedPass { kernel, room, parameters, across };
        let [guesses, _, slot_guesses, guess_stride] = words;
        let mut parameters = Parameters::new(&mixed);
        parameters.extend(&[mixed_width]);
        parameters.extend(&[decay, strength].concat());
        parameters.extend(&[shape.heads, guesses, slot_guesses, guess_stride]);
        let across = [self.capacity.proposed_tokens_max, 1];
        let keep = CarriedPass { kernel: Kernel::GatedDeltaKeep, room, parameters, across };
        self.plan.passes.extend([read, keep].map(Pass::Carried));
        Ok(())
    }

    /// Room for another op, and the words by which kernels find their way in it.
    fn carried_room(
        &mut self,
        elements: u32,
        guess_elements: u32,
    ) -> Result<(usize, [u32; 4]), LoadError> {
        let room = CarriedRoom::new(elements, guess_elements, self.capacity);
        self.plan.bounds.check_carried(&room)?;
        self.plan.carried.push(room);
        Ok((self.plan.carried.len() - 1, room.words()))
    }
}

impl Bounds {
    fn check_carried(&self, room: &CarriedRoom) -> Result<(), LoadError> {
        let (bytes, most) = (room.bytes(), self.binding_bytes);
        if bytes <= most {
            return Ok(());
        }
        Err(LoadError(format!(
            "what sequences carry through a layer is {bytes} bytes and this device binds {most}: \
             let fewer sequences run at once (limits.sequences_max)"
        )))
    }
}

/// Columns of a head's matrix that one workgroup of `kernels/gated_delta.wgsl` has.
pub(crate) fn delta_columns(key_dim: u32) -> u32 {
    let fits = |columns: &u32| columns * key_dim <= KEPT_ELEMENTS;
    [32, 16, 8, 4].into_iter().find(fits).unwrap_or(4)
}

/// Bytes that go to the process at once.
const OUT_BYTES: u64 = 1 << 18;

pub(crate) fn rooms_bytes(rooms: &[CarriedRoom]) -> u64 {
    let rooms: u64 = rooms.iter().map(|room| Heaps::room(room.bytes())).sum();
    if rooms > 0 { rooms + OUT_BYTES } else { 0 }
}

/// Memory of all ops, in the order of the tape.
pub(crate) struct CarriedMemory {
    gpu: Arc<Gpu>,
    rooms: Vec<CarriedRoom>,
    pub(crate) pieces: Vec<Piece>,
    /// On the way to the process.
    out: Option<Buffer>,
}

impl CarriedMemory {
    pub(crate) fn carve(
        gpu: &Arc<Gpu>,
        heaps: &Heaps,
        rooms: &[CarriedRoom],
    ) -> Result<Self, LoadError> {
        let carve = |room: &CarriedRoom| heaps.carve("carried states", room.bytes());
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        Ok(Self {
            gpu: Arc::clone(gpu),
            rooms: rooms.to_vec(),
            pieces: rooms.iter().map(carve).collect::<Result<_, _>>()?,
            out: (!rooms.is_empty()).then(|| gpu.buffer("carried states", OUT_BYTES, usage)),
        })
    }

    /// Of a state, all ops' one behind the other; `None` where sequences carry nothing.
    pub(crate) fn state_bytes(&self) -> Option<usize> {
        let elements: usize = self.rooms.iter().map(|room| room.elements as usize).sum();
        (!self.rooms.is_empty()).then_some(4 * elements)
    }

    /// Calls `each(piece, its offset of the bytes, the range of them)` for what each op has of
    /// `bytes` bytes from `offset` on of a state.
    fn parts(
        &self,
        state: u32,
        offset: usize,
        bytes: usize,
        each: &mut dyn FnMut(&Piece, u64, std::ops::Range<usize>),
    ) {
        let mut begin = 0;
        for (room, piece) in self.rooms.iter().zip(&self.pieces) {
            let own = 4 * room.elements as usize;
            let (from, to) = (begin.max(offset), (begin + own).min(offset + bytes));
            if from < to {
                let at = piece.offset + state as u64 * own as u64 + (from - begin) as u64;
                each(piece, at, from - offset..to - offset);
            }
            begin += own;
        }
    }

    /// What a place keeps, from a byte on; zeros behind its end.
    pub(crate) fn read(&self, place: u32, offset: usize, bytes: &mut [u8]) {
        bytes.fill(0);
        let (Some(out), Some(room)) = (&self.out, self.rooms.first()) else { return };
        for (index, bytes) in bytes.chunks_mut(OUT_BYTES as usize).enumerate() {
            let offset = offset + index * OUT_BYTES as usize;
            let mut encoder = self.gpu.encoder();
            let mut count = 0;
            self.parts(room.slots + place, offset, bytes.len(), &mut |piece, at, range| {
                let (to, length) = (range.start as u64, range.len() as u64);
                encoder.copy_buffer_to_buffer(&piece.buffer, at, out, to, length);
                count = range.end;
            });
            if count == 0 {
                return;
            }
            let submission = self.gpu.queue.submit([encoder.finish()]);
            let mapped = self.gpu.map(out, count as u64, MapMode::Read, Some(submission));
            match mapped.map(|()| out.get_mapped_range(..count as u64)) {
                Ok(Ok(view)) => bytes[..count].copy_from_slice(&view),
                // Nobody may use these bytes: the next step fails.
                _ => self.gpu.give_up("a state could not be read back".to_owned()),
            }
            out.unmap();
        }
    }

    /// Ahead of a step's commands, what it brings.
    pub(crate) fn bring(&self, inputs: &StepInputs) {
        for copy in &inputs.copies {
            let BlockCopy::StateIn { slot, offset, bytes, .. } = copy else { continue };
            let bytes = bytes.as_ref();
            self.parts(*slot, *offset, bytes.len(), &mut |piece, at, range| {
                self.gpu.queue.write_buffer(&piece.buffer, at, &bytes[range]);
            });
        }
    }
}

/// A state set to zeros, or copied, in every op's memory.
fn copy(rooms: &[CarriedRoom], from: Option<u32>, to: u32, launch: &mut dyn FnMut(Launch)) {
    for (index, room) in rooms.iter().enumerate() {
        let each = room.elements;
        let words = [from.unwrap_or(0) * each, to * each, each, u32::from(from.is_none())];
        launch(Launch {
            kernel: Kernel::CarriedCopy,
            bound: Bound::Carried(index),
            parameters: Parameters::new(&words),
            groups: [each.div_ceil(256), 1, 1],
        });
    }
}

/// Ahead of a step's passes: slots are set to zeros, or to a state that was kept, but for those to
/// which one was brought.
pub(crate) fn begin(rooms: &[CarriedRoom], inputs: &StepInputs, launch: &mut dyn FnMut(Launch)) {
    let Some(first) = rooms.first() else { return };
    let mut from: BTreeMap<u32, Option<u32>> =
        inputs.resets.iter().map(|reset| (reset.slot, None)).collect();
    for copy in &inputs.copies {
        if let BlockCopy::StateIn { slot, .. } = copy {
            from.remove(slot);
        }
    }
    for state in &inputs.states {
        if let StateCopy::Load { place, slot } = *state {
            from.insert(slot, Some(first.slots + place));
        }
    }
    from.into_iter().for_each(|(slot, from)| copy(rooms, from, slot, launch));
}

/// Behind them.
pub(crate) fn end(rooms: &[CarriedRoom], inputs: &StepInputs, launch: &mut dyn FnMut(Launch)) {
    let Some(first) = rooms.first() else { return };
    for state in &inputs.states {
        if let StateCopy::Save { slot, place } = *state {
            copy(rooms, Some(slot), first.slots + place, launch);
        }
    }
}
