//! Which functions does a model need? One of each kernel, and one set a weight form.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::driver::CudaError;
use crate::gpu::{Function, Gpu, Module};
use crate::images::image;
use crate::packing::Form;

/// A kernel for few tokens.
#[derive(Clone, Copy)]
struct Few {
    name: &'static str,
    tokens_max: u32,
    /// 16-row tiles a block.
    tiles: u32,
    /// KB of inputs that each of 8 warps keeps in shared memory: 1 KB for 8 tokens of one chunk.
    input_kb: u32,
    /// Chunks of weights that each keeps there.
    chunks: u32,
}

const FEW: [Few; 5] = [
    Few { name: "linear_1x1", tokens_max: 8, tiles: 1, input_kb: 2 * 3, chunks: 0 },
    Few { name: "linear_2x1", tokens_max: 8, tiles: 2, input_kb: 2 * 3, chunks: 0 },
    Few { name: "linear_2x2", tokens_max: 16, tiles: 2, input_kb: 2 * 3, chunks: 2 * 3 },
    Few { name: "linear_4x4", tokens_max: 32, tiles: 4, input_kb: 4 * 3, chunks: 4 * 3 },
    Few { name: "linear_4x8", tokens_max: 64, tiles: 4, input_kb: 8 * 2, chunks: 4 * 2 },
];

impl Few {
    fn shared_bytes(&self, form: Form) -> u32 {
        8 * (self.input_kb * 1024 + self.chunks * form.chunk_bytes() as u32)
    }
}

/// The same of the kernel for many.
pub(crate) const WIDE_TOKENS: u32 = 64;
const WIDE_TILES: u32 = 8;

/// Shared memory of `linear_wide`: stages of 8 KB of inputs and 8 chunks of weights, 32 KB of
/// totals, and 1 KB to align the stages.
fn wide_shared_bytes(form: Form) -> u32 {
    let stages = if form.bits == 16 { 2 } else { 4 };
    stages * (8 * 1024 + 8 * form.chunk_bytes() as u32) + 33 * 1024
}
/// With as many blocks as an H100 has multiprocessors, or nearly, `linear_wide` is the faster one
/// from this many tokens (78 us against 108 for 28,672 x 4,096 and 64 tokens); with few blocks it
/// is the slower (134 against 70 for 4,096 x 14,336).
const WIDE_BLOCKS_MIN: u32 = 100;
const WIDE_TOKENS_MIN: u32 = 33;

/// What is to be multiplied.
#[derive(Clone, Copy)]
pub(crate) struct LinearSize {
    /// At most.
    pub(crate) tokens: u32,
    /// 16-row tiles of all parts.
    pub(crate) tiles: u32,
    /// Tiles come in pairs.
    pub(crate) is_gated: bool,
}

/// How a linear is launched for so many tokens.
#[derive(Clone, Copy)]
pub(crate) struct LinearChoice {
    pub(crate) function: Function,
    /// 16-row tiles a block.
    pub(crate) tiles: u32,
    pub(crate) is_wide: bool,
    pub(crate) shared_bytes: u32,
}

struct LinearSet {
    few: [Function; FEW.len()],
    wide: Function,
}

pub(crate) struct Kernels {
    linears: BTreeMap<Form, LinearSet>,
    pub(crate) embed: Function,
    pub(crate) rms_norm: Function,
    pub(crate) rotary_append: Function,
    pub(crate) paged_attention: Function,
    pub(crate) select_rows: Function,
    pub(crate) sample_rows: Function,
    shared_bytes_max: u32,
}

impl Kernels {
    pub(crate) fn load(
        gpu: &Arc<Gpu>,
        table: Form,
        linears: &[Form],
        head_padded: u32,
    ) -> Result<Self, CudaError> {
        let module = |name: &str| Module::load(gpu, &image(name, gpu.capability)?);
        let one = |name: &str, function: &str| module(name)?.function(function, 0);
        let mut sets = BTreeMap::new();
        for &form in linears {
            let module = module(&format!("linear-{}", form.name()))?;
            let mut few = Vec::new();
            for kernel in FEW {
                // One that needs more than this device has is never chosen.
                let shared_bytes = kernel.shared_bytes(form).min(gpu.shared_bytes_max);
                few.push(module.function(kernel.name, shared_bytes)?);
            }
            let few = few.try_into().unwrap_or_else(|_| unreachable!("invariant: one each"));
            let wide = module.function("linear_wide", wide_shared_bytes(form))?;
            sets.insert(form, LinearSet { few, wide });
        }
        Ok(Self {
            linears: sets,
            embed: one(&format!("embed-{}", table.name()), "embed")?,
            rms_norm: one("rms_norm", "rms_norm")?,
            rotary_append: one("rotary", "rotary_append")?,
            paged_attention: one(&format!("paged_attention-{head_padded}"), "paged_attention")?,
            select_rows: one("select_rows", "select_rows")?,
            sample_rows: one("sample_rows", "sample_rows")?,
            shared_bytes_max: gpu.shared_bytes_max,
        })
    }

    /// The kernel for a size; all give the same bits.
    pub(crate) fn linear(&self, form: Form, size: LinearSize) -> LinearChoice {
        let set = self.linears.get(&form).expect("invariant: loaded for every form of the model");
        let LinearSize { tokens, tiles, is_gated } = size;
        let is_wide = tokens >= WIDE_TOKENS_MIN && tiles >= WIDE_BLOCKS_MIN * WIDE_TILES;
        let fits = |(_, few): &(usize, Few)| {
            !is_wide
                && tokens <= few.tokens_max
                && (!is_gated || few.tiles.is_multiple_of(2))
                && few.shared_bytes(form) <= self.shared_bytes_max
        };
        match FEW.into_iter().enumerate().find(fits) {
            Some((index, few)) => LinearChoice {
                function: set.few[index],
                tiles: few.tiles,
                is_wide: false,
                shared_bytes: few.shared_bytes(form),
            },
            None => LinearChoice {
                function: set.wide,
                tiles: WIDE_TILES,
                is_wide: true,
                shared_bytes: wide_shared_bytes(form),
            },
        }
    }
}
