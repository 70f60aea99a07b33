//! How much memory will a program take? The sizes of everything that [`crate::CpuBackend`] makes
//! at load, from the tape and the tensor table alone.

use device::{Capacity, HeapPool, LoadError, MemoryUse, Rows as RowKind, Tape, WeightSource};
use ops::Op;
use ops::kv_format::KvFormat;
use ops::paged_attention::Window;

use crate::device::{attention_shape, mixtures, packed_piece_bytes, ragged_stack, stacked, uses};
use crate::kernels::experts::{ExpertsScratch, ExpertsSizes};
use crate::kernels::paged_attention::{AttentionScratch, AttentionShape};
use crate::kv_cache::CacheShape;
use crate::packed::{BLOCK_ROWS, PackedMatrix};
use crate::rows::QuantizedRows;
use crate::states::States;

/// Bytes of the buffers of a step, sized for the largest one.
pub(crate) struct BufferBytes {
    /// In the order of the tape's table.
    pub(crate) activations: Vec<usize>,
    /// Of each rotation: cosines, and as many again for sines.
    pub(crate) turns: Vec<usize>,
    pub(crate) cache: usize,
    /// Of texts that are pooled over several steps: a row a slot.
    pub(crate) pooled: usize,
    quantized: usize,
    quantized_room: usize,
    attention: usize,
    experts: usize,
    experts_room: usize,
}

/// What sizes the buffers besides the tape and the capacity.
pub(crate) struct BufferNeeds {
    pub(crate) members: usize,
    /// Columns of the widest matrix.
    pub(crate) width_max: usize,
    pub(crate) attention: AttentionShape,
    pub(crate) kv_format: KvFormat,
}

impl BufferBytes {
    pub(crate) fn new(tape: &Tape, capacity: &Capacity, needs: &BufferNeeds) -> Self {
        let tokens = capacity.step_tokens_max as usize;
        let bytes_of = |spec: &device::ActivationSpec| {
            let rows = match spec.rows {
                RowKind::Tokens => tokens,
                RowKind::Sampled => capacity.sampled_tokens_max() as usize,
            };
            4 * rows * spec.width as usize
        };
        let blocks = tape.layers as usize * capacity.block_count as usize;
        let context = capacity.block_count as usize * capacity.block_tokens as usize;
        let experts = experts_sizes(tape);
        Self {
            experts: experts.map_or(0, |sizes| ExpertsScratch::bytes(sizes, tokens)),
            experts_room: experts.map_or(0, |sizes| ExpertsScratch::room(sizes, tokens)),
            activations: tape.activations.iter().map(bytes_of).collect(),
            turns: tape.rotaries.iter().map(|r| 4 * tokens * (r.dims as usize / 2)).collect(),
            pooled: tape.pooled().map_or(0, |(width, _)| 4 * (capacity.slots * width) as usize),
            cache: blocks * cache_shape(tape, capacity, needs.kv_format).block_bytes(),
            quantized: QuantizedRows::bytes(tokens, needs.width_max),
            quantized_room: QuantizedRows::room(tokens, needs.width_max),
            attention: AttentionScratch::bytes(needs.members, &needs.attention, context),
        }
    }

    /// All of them but the cache.
    pub(crate) fn working(&self) -> u64 {
        let activations: usize = self.activations.iter().sum();
        let turns: usize = self.turns.iter().sum();
        (activations + 2 * turns + self.quantized + self.attention + self.experts + self.pooled)
            as u64
    }

    /// What all of them take of a heap pool.
    fn room(&self) -> usize {
        let turns = self.turns.iter().flat_map(|&turns| [turns, turns]);
        let buffers = self.activations.iter().copied().chain([self.cache, self.attention]);
        let buffers = buffers.chain((self.pooled > 0).then_some(self.pooled));
        buffers.chain(turns).map(HeapPool::room).sum::<usize>()
            + self.quantized_room
            + self.experts_room
    }
}

/// What sizes the work space of experts; `None` without any.
pub(crate) fn experts_sizes(tape: &Tape) -> Option<ExpertsSizes> {
    let sizes = mixtures(tape).map(|experts| ExpertsSizes {
        experts: experts.routing.experts as usize,
        used: experts.routing.used as usize,
        width: tape.weight(experts.gate).cols as usize,
        inner: experts.inner as usize,
    });
    sizes.reduce(ExpertsSizes::or)
}

pub(crate) fn cache_shape(tape: &Tape, capacity: &Capacity, format: KvFormat) -> CacheShape {
    CacheShape {
        block_tokens: capacity.block_tokens as usize,
        kv_heads: tape.heads_kv as usize,
        head_dim: tape.head_dim as usize,
        format,
    }
}

/// What work space of attention is made for; of a tape without any, for heads of its size.
pub(crate) fn attention_shape_of(tape: &Tape) -> Result<AttentionShape, LoadError> {
    let found = tape.ops.iter().find_map(|op| match op {
        Op::PagedAttention { shape, .. } => Some(*shape),
        _ => None,
    });
    let none = ops::paged_attention::AttentionShape {
        heads: tape.heads_kv,
        heads_kv: tape.heads_kv,
        head_dim: tape.head_dim,
        scale: 1.0,
        window: Window::Full,
        soft_cap: None,
    };
    attention_shape(&found.unwrap_or(none))
}

/// What a program of this tape will hold.
pub(crate) struct Plan {
    /// See [`device::Backend::memory`].
    pub(crate) memory: MemoryUse,
    /// What its buffers take of a heap pool.
    pub(crate) room: usize,
    /// Bytes of all matrices, and values of all vectors.
    pub(crate) matrices: usize,
    pub(crate) vectors: usize,
}

pub(crate) fn plan(
    tape: &Tape,
    source: &dyn WeightSource,
    capacity: &Capacity,
    members: usize,
    kv_format: KvFormat,
) -> Result<Plan, LoadError> {
    for (id, count) in stacked(tape) {
        if !(tape.weight(id).rows / count).is_multiple_of(BLOCK_ROWS as u32) {
            return Err(ragged_stack(tape, id));
        }
    }
    let (matrix_ids, vector_ids) = uses(tape);
    let (mut matrices, mut vectors, mut width_max) = (0, 0, 0);
    for id in matrix_ids {
        let view = tape.shape(id, source)?;
        matrices += packed_piece_bytes(tape, id, &view)?;
        // Stacks have inputs of their own.
        if stacked(tape).all(|(stack, _)| stack != id) {
            width_max = width_max.max(view.cols);
        }
    }
    for id in vector_ids {
        let view = tape.shape(id, source)?;
        vectors += view.rows * view.cols;
    }
    let attention = attention_shape_of(tape)?;
    let needs = BufferNeeds { members, width_max, attention, kv_format };
    let buffers = BufferBytes::new(tape, capacity, &needs);
    let memory = MemoryUse {
        weights_bytes: (matrices + 4 * vectors) as u64,
        kv_bytes: (buffers.cache + States::parts(tape.state, capacity).iter().sum::<usize>())
            as u64,
        activations_bytes: buffers.working(),
        staging_bytes: (members * PackedMatrix::staging_bytes(width_max)) as u64,
        host_bytes: 0,
    };
    let room = HeapPool::room(matrices) + HeapPool::room(4 * vectors) + buffers.room();
    let room = room + States::room(tape.state, capacity);
    Ok(Plan { memory, room, matrices, vectors })
}
