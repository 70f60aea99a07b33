//! How do adapters add to products? By two small products behind each, for the tokens whose
//! sequence has one; a table on the device tells the matrices of each adapter.

use device::{LoadError, Tape};
use ops::low_rank::LowRank;
use ops::{ActivationId, Op};

use crate::arguments::LowRankArguments;
use crate::driver::CudaError;
use crate::lowering::{Kept, Pass, Plan, lacks};
use crate::program::Step;
use crate::row_passes::RowPass;
use crate::step_inputs::at;
use crate::weights::Stored;

/// What all adapters add to one product.
#[derive(Clone, Debug)]
pub(crate) struct LowRankPass {
    input: ActivationId,
    output: ActivationId,
    pub(crate) adapters: Vec<Option<LowRank>>,
    /// Its place among the tables.
    table: usize,
}

/// Largest rank of any adapter.
pub(crate) fn rank_max(tape: &Tape) -> u32 {
    let adapters = tape.ops.iter().flat_map(|op| match op {
        Op::AddLowRank { adapters, .. } => adapters.as_slice(),
        _ => &[],
    });
    adapters.flatten().map(|part| tape.weight(part.down).rows).max().unwrap_or(0)
}

impl Plan {
    pub(crate) fn add_low_rank(
        &mut self,
        tape: &Tape,
        input: ActivationId,
        adapters: &[Option<LowRank>],
        output: ActivationId,
    ) -> Result<(), LoadError> {
        if self.kept[output.0 as usize] != Kept::Float {
            return Err(lacks("adapters of heads of latent attention"));
        }
        for part in adapters.iter().flatten() {
            self.vector(tape, part.down);
            self.vector(tape, part.up);
        }
        let pass = LowRankPass { input, output, adapters: adapters.to_vec(), table: self.tables };
        self.tables += 1;
        self.passes.push(Pass::Row(RowPass::LowRank(pass)));
        Ok(())
    }

    /// Of all that adapters add to.
    pub(crate) fn low_ranks(&self) -> impl Iterator<Item = &LowRankPass> {
        self.passes.iter().filter_map(|pass| match pass {
            Pass::Row(RowPass::LowRank(pass)) => Some(pass),
            _ => None,
        })
    }
}

/// Bytes of `LowRankPart` of `kernels/low_rank.cu`.
pub(crate) const PART_BYTES: usize = 24;

impl LowRankPass {
    pub(crate) fn reads(&self, id: ActivationId) -> bool {
        [self.input, self.output].contains(&id)
    }

    /// The adapters' matrices, as the kernel finds them.
    pub(crate) fn table(&self, tape: &Tape, stored: &Stored) -> Vec<u8> {
        let mut bytes = Vec::new();
        for adapter in &self.adapters {
            let (down, up, rank, scale) = match adapter {
                None => (0, 0, 0, 0.0),
                Some(LowRank { down, up, scale }) => {
                    (stored.vectors[down].0, stored.vectors[up].0, tape.weight(*down).rows, *scale)
                }
            };
            bytes.extend(down.to_le_bytes());
            bytes.extend(up.to_le_bytes());
            bytes.extend(rank.to_le_bytes());
            bytes.extend(scale.to_le_bytes());
        }
        bytes
    }
}

impl Step<'_> {
    pub(crate) fn low_rank(&self, pass: &LowRankPass) -> Result<(), CudaError> {
        let program = self.program;
        let &LowRankPass { input, output, table, .. } = pass;
        let kept = program.plan.kept[input.0 as usize];
        let rank_max = program.plan.rank_max;
        let arguments = LowRankArguments {
            tokens: self.count(input),
            adapters: at(self.base, self.layout.adapters),
            parts: program.stored.tables[table],
            input: program.activation(input),
            inner: program.work.low_rank,
            output: program.activation(output),
            input_stride: self.stride(input),
            width: self.width(input),
            output_stride: self.stride(output),
            output_width: self.width(output),
            rank_max,
            is_half: u32::from(kept != Kept::Float),
            input_scale: if kept == Kept::GatedHalf { 16.0 } else { 1.0 },
        };
        let rows = self.rows(input).max(1);
        self.launch_extra("low_rank_down", [rows, rank_max.div_ceil(8)], 256, &arguments)?;
        let across = self.width(output).div_ceil(256);
        self.launch_extra("low_rank_up", [rows, across], 256, &arguments)
    }
}
