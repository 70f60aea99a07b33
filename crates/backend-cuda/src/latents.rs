//! How do heads of latent attention come together? Products of each head with a matrix of its own,
//! by the kernels of experts (a head is an expert that all tokens go to), and copies of columns.

use device::{LoadError, Tape, WeightSource};
use ops::{ActivationId, HeadColumns, Op, WeightId};

use crate::arguments::{CopyColumnsArguments, ExpertsArguments, HeadInputsArguments};
use crate::driver::CudaError;
use crate::lowering::{Kept, MatrixKey, Pass, Plan, lacks};
use crate::packing::CHUNK;
use crate::program::Step;

/// Products of heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLinearPass {
    heads: u32,
    pub(crate) input: HeadColumns,
    pub(crate) matrix: MatrixKey,
    output: HeadColumns,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyColumnsPass {
    heads: u32,
    pub(crate) input: HeadColumns,
    output: HeadColumns,
}

/// Buffers that products of heads write for other products to read: kept in f16.
pub(crate) fn read_by_products(tape: &Tape) -> impl Iterator<Item = ActivationId> {
    let is_read = |buffer: ActivationId| {
        tape.ops.iter().any(|op| matches!(op, Op::Linear { input, .. } if *input == buffer))
    };
    tape.ops.iter().filter_map(move |op| match op {
        Op::HeadLinear { output, .. } if is_read(output.buffer) => Some(output.buffer),
        _ => None,
    })
}

impl Plan {
    pub(crate) fn head_linear(
        &mut self,
        tape: &Tape,
        source: &dyn WeightSource,
        (heads, weight): (u32, WeightId),
        input: HeadColumns,
        output: HeadColumns,
    ) -> Result<(), LoadError> {
        self.refuse_gated(&input)?;
        let matrix = self.matrix(tape, source, MatrixKey::plain(weight).stacked(heads))?;
        self.head_inputs = self.head_inputs.max(heads * padded(&input));
        self.passes.push(Pass::HeadLinear(HeadLinearPass { heads, input, matrix, output }));
        Ok(())
    }

    pub(crate) fn copy_columns(
        &mut self,
        heads: u32,
        input: HeadColumns,
        output: HeadColumns,
    ) -> Result<(), LoadError> {
        self.refuse_gated(&input)?;
        if self.kept[output.buffer.0 as usize] != Kept::Float {
            return Err(lacks("columns that are put together to be multiplied"));
        }
        self.passes.push(Pass::CopyColumns(CopyColumnsPass { heads, input, output }));
        Ok(())
    }

    fn refuse_gated(&self, input: &HeadColumns) -> Result<(), LoadError> {
        match self.kept[input.buffer.0 as usize] {
            Kept::GatedHalf => Err(lacks("heads of gated values")),
            Kept::Float | Kept::Half => Ok(()),
        }
    }
}

/// Elements between heads of a product's inputs.
fn padded(columns: &HeadColumns) -> u32 {
    columns.width.next_multiple_of(CHUNK as u32)
}

impl Step<'_> {
    pub(crate) fn head_linear(&self, pass: &HeadLinearPass) -> Result<(), CudaError> {
        let program = self.program;
        let &HeadLinearPass { heads, input, matrix, output } = pass;
        let inputs = HeadInputsArguments {
            tokens: self.token_count(),
            input: program.activation(input.buffer),
            output: program.work.head_inputs,
            row_stride: self.stride(input.buffer),
            head_stride: input.stride,
            first: input.first,
            width: input.width,
            heads,
            padded: padded(&input),
            is_half: u32::from(self.is_half(input.buffer)),
        };
        self.one_each(program.kernels.head_inputs, self.tokens, 256, &inputs)?;
        let is_half = self.is_half(output.buffer);
        let first = output.first as usize * if is_half { 2 } else { 4 };
        let arguments = ExpertsArguments {
            input: program.work.head_inputs,
            output: program.activation(output.buffer).plus(first),
            input_stride: padded(&input),
            output_stride: self.stride(output.buffer),
            head_stride: output.stride,
            is_half: u32::from(is_half),
            ..self.stack(matrix, heads)
        };
        self.by_items(matrix, heads * self.tokens, &arguments)
    }

    pub(crate) fn copy_columns(&self, pass: &CopyColumnsPass) -> Result<(), CudaError> {
        let program = self.program;
        let CopyColumnsPass { heads, input, output } = pass;
        let arguments = CopyColumnsArguments {
            tokens: self.token_count(),
            input: program.activation(input.buffer),
            output: program.activation(output.buffer),
            input_row: self.stride(input.buffer),
            input_head: input.stride,
            input_first: input.first,
            output_row: self.stride(output.buffer),
            output_head: output.stride,
            output_first: output.first,
            heads: *heads,
            width: input.width,
            is_half: u32::from(self.is_half(input.buffer)),
        };
        self.one_each(program.kernels.copy_columns, self.tokens, 256, &arguments)
    }

    fn is_half(&self, buffer: ActivationId) -> bool {
        self.program.plan.kept[buffer.0 as usize] == Kept::Half
    }
}
