//! Where does each tensor lie, and does it lie inside the file and apart from the others?

use std::ops::Range;

use ops::quant_format::QuantFormat;

use super::cursor::Cursor;
use super::tensor_type::{TensorType, supported_names};
use super::{NAME_BYTES_MAX, tensor_named};
use crate::error::Quoted;
use crate::{Flaw, WeightsError};

const DIMS_MAX: u32 = 4;

/// What a file says about one tensor, checked.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    name: Box<str>,
    /// Fastest first; the first `dim_count` count, the others are 1.
    dims: [u64; DIMS_MAX as usize],
    dim_count: u8,
    kind: TensorType,
    /// `None` for a type that is not supported.
    format: Option<QuantFormat>,
    /// Relative to the data section while reading, then to the start of the file.
    offset: u64,
    /// `None` for a type whose block size is not known.
    bytes: Option<u64>,
    /// Where in the file this description starts, for messages.
    described_at: usize,
}

impl TensorInfo {
    /// A tensor that another kind of file describes, of floats or of blocks; `dims` has the
    /// fastest first. `None` if it is not one to four dimensions above 0 of whole blocks.
    pub(crate) fn described(
        name: &str,
        format: QuantFormat,
        dims: &[u64],
        offset: u64,
    ) -> Option<Self> {
        if !(1..=DIMS_MAX as usize).contains(&dims.len()) || dims.contains(&0) {
            return None;
        }
        let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
        let block = format.block_elements() as u64;
        if !dims[0].is_multiple_of(block) {
            return None;
        }
        let bytes = (elements / block).checked_mul(format.block_bytes() as u64)?;
        let mut all = [1; DIMS_MAX as usize];
        all[..dims.len()].copy_from_slice(dims);
        Some(TensorInfo {
            name: name.into(),
            dims: all,
            dim_count: dims.len() as u8, // At most DIMS_MAX.
            kind: TensorType::from_format(format).unwrap_or(TensorType(u32::MAX)),
            format: Some(format),
            offset,
            bytes: Some(bytes),
            described_at: 0,
        })
    }

    /// Name length, one letter, dimension count, one dimension, type, offset.
    pub(super) const BYTES_MIN: usize = 8 + 1 + 4 + 8 + 4 + 8;

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes of the dimensions, fastest first (GGUF's own order): `[cols, rows, ...]`.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..usize::from(self.dim_count)]
    }

    /// Weights in a row: the fastest dimension.
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// Rows: the product of all other dimensions.
    pub fn rows(&self) -> u64 {
        // Cannot overflow: reading checked the product of all dimensions.
        self.dims[1..].iter().product()
    }

    /// The type as a GGUF file stores it, supported or not; of no meaning in other files.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// The format, or an error that names the tensor and what is supported.
    pub fn format(&self) -> Result<QuantFormat, WeightsError> {
        self.format.ok_or_else(|| WeightsError::TensorFormat {
            name: Quoted(&self.name).to_string(),
            found: self.kind.to_string(),
            supported: supported_names(),
        })
    }

    /// Stored bytes; `None` if the type is not even known.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Where the data starts, from the start of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Ranges were checked against a file in memory, so they fit `usize`.
    pub(crate) fn byte_range(&self) -> Option<Range<usize>> {
        let start = usize::try_from(self.offset).ok()?;
        let length = usize::try_from(self.bytes?).ok()?;
        Some(start..start.checked_add(length)?)
    }

    pub(super) fn read(cursor: &mut Cursor<'_>, index: usize) -> Result<Self, Flaw> {
        let described_at = cursor.offset();
        let name = cursor.text(NAME_BYTES_MAX, format_args!("the name of tensor {index}"))?;
        if name.is_empty() {
            let problem = format!("the name of tensor {index} is empty");
            return Err(Flaw::new(described_at, problem));
        }
        let start = cursor.offset();
        let what = format_args!("the description of tensor {}", Quoted(name));
        let flaw =
            |problem: &str| Err(Flaw::new(start, format!("{} {problem}", tensor_named(name))));
        let dim_count = cursor.u32(what)?;
        if !(1..=DIMS_MAX).contains(&dim_count) {
            return flaw(&format!("has {dim_count} dimensions, must be 1 to {DIMS_MAX}"));
        }
        let mut dims = [1; DIMS_MAX as usize];
        let mut elements = 1u64;
        for dim in &mut dims[..dim_count as usize] {
            *dim = cursor.u64(what)?;
            if *dim == 0 {
                return flaw("has a dimension of 0");
            }
            let Some(product) = elements.checked_mul(*dim) else {
                return flaw("has dimensions whose product overflows 64 bits");
            };
            elements = product;
        }
        let kind = TensorType(cursor.u32(what)?);
        let offset = cursor.u64(what)?;
        let bytes = match stored_bytes(kind, dims[0], elements) {
            Ok(bytes) => bytes,
            Err(problem) => return flaw(&problem),
        };
        let dim_count = dim_count as u8; // At most DIMS_MAX.
        let name = name.into();
        let format = kind.format();
        Ok(TensorInfo { name, dims, dim_count, kind, format, offset, bytes, described_at })
    }
}

fn stored_bytes(kind: TensorType, cols: u64, elements: u64) -> Result<Option<u64>, String> {
    let Some((block_elements, block_bytes)) = kind.block() else { return Ok(None) };
    if !cols.is_multiple_of(block_elements) {
        return Err(format!("has rows of {cols}, not a multiple of {kind}'s {block_elements}"));
    }
    match (elements / block_elements).checked_mul(block_bytes) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err("has a size in bytes that overflows 64 bits".to_owned()),
    }
}

pub(super) fn check_names_unique(tensors: &[TensorInfo]) -> Result<(), Flaw> {
    let mut by_name: Vec<&TensorInfo> = tensors.iter().collect();
    by_name.sort_unstable_by_key(|tensor| (&*tensor.name, tensor.described_at));
    match by_name.windows(2).find(|pair| pair[0].name == pair[1].name) {
        None => Ok(()),
        Some(pair) => {
            let problem = format!("{} is described twice", tensor_named(&pair[1].name));
            Err(Flaw::new(pair[1].described_at, problem))
        }
    }
}

/// Turns offsets from the data section into offsets from the start of the file, and checks that
/// each is aligned and each range lies inside the file and apart from the others.
pub(super) fn place_in_file(
    tensors: &mut [TensorInfo],
    infos_end: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<(), Flaw> {
    let data_start = infos_end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX) as u64;
    for tensor in tensors.iter_mut() {
        let flaw = |problem: String| {
            let problem = format!("{} {problem}", tensor_named(&tensor.name));
            Err(Flaw::new(tensor.described_at, problem))
        };
        if !tensor.offset.is_multiple_of(alignment as u64) {
            return flaw(format!(
                "starts {} bytes into the data, not a multiple of the alignment {alignment}",
                tensor.offset
            ));
        }
        // A tensor of unknown type has at least one byte.
        let placed = data_start.checked_add(tensor.offset);
        let end = placed.and_then(|start| start.checked_add(tensor.bytes.unwrap_or(1)));
        match (placed, end) {
            (Some(start), Some(end)) if end <= file_bytes as u64 => tensor.offset = start,
            (_, Some(end)) => {
                return flaw(format!(
                    "ends at byte {end} but the file has {file_bytes}: \
                    is the download incomplete?"
                ));
            }
            (_, None) => return flaw("ends beyond 64 bits".to_owned()),
        }
    }
    check_apart(tensors)
}

fn check_apart(tensors: &[TensorInfo]) -> Result<(), Flaw> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| (tensor.offset, tensor.described_at));
    for pair in by_offset.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let first_end = first.offset + first.bytes.unwrap_or(1);
        if second.offset < first_end {
            let problem = format!(
                "{} starts at byte {}, inside {}, which ends at byte {first_end}",
                tensor_named(&second.name),
                second.offset,
                tensor_named(&first.name),
            );
            return Err(Flaw::new(second.described_at, problem));
        }
    }
    Ok(())
}
