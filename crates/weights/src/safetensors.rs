//! What is in one safetensors file? A header in JSON and the tensors behind it, end to end.
//!
//! Layout: u64 length of the header, the header, the data. The header maps each tensor's name to
//! its dtype, shape (slowest dimension first) and place in the data.
//!
//! Invariants of a file that was read: tensors cover its data from end to end, each as long as its
//! dtype and shape say.
//!
//! Source: the format's description in the README of the safetensors project.

use std::ops::Range;

use ops::quant_format::{MlxFloat, QuantFormat};
use serde_json::{Map, Value as Json};

use crate::Flaw;
use crate::error::Quoted;

/// A hundred bytes a tensor are usual; the format's own limit is 100 MB, which would take ten times
/// as much memory here.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// More dimensions than any weight has.
const DIMS_MAX: usize = 8;
const LENGTH_BYTES: usize = 8;

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    U32,
    U8,
    I64,
    I32,
    I8,
    F8E4m3,
    /// Known to the format and of no use here: its name, bits an element.
    Other(&'static str, u64),
}

/// Name, bits an element.
const OTHERS: &[(&str, u64)] = &[
    ("F64", 64),
    ("U64", 64),
    ("I16", 16),
    ("U16", 16),
    ("BOOL", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F4", 4),
    ("C64", 64),
];

impl Dtype {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            "U32" => Dtype::U32,
            "U8" => Dtype::U8,
            "I64" => Dtype::I64,
            "I32" => Dtype::I32,
            "I8" => Dtype::I8,
            "F8_E4M3" => Dtype::F8E4m3,
            _ => {
                let &(name, bits) = OTHERS.iter().find(|(known, _)| *known == name)?;
                Dtype::Other(name, bits)
            }
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::U32 => "U32",
            Dtype::U8 => "U8",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I8 => "I8",
            Dtype::F8E4m3 => "F8_E4M3",
            Dtype::Other(name, _) => name,
        }
    }

    fn bits(self) -> u64 {
        match self {
            Dtype::I64 => 64,
            Dtype::F32 | Dtype::U32 | Dtype::I32 => 32,
            Dtype::F16 | Dtype::Bf16 => 16,
            Dtype::U8 | Dtype::I8 | Dtype::F8E4m3 => 8,
            Dtype::Other(_, bits) => bits,
        }
    }

    /// The kind of scales that these are.
    pub(crate) fn float(self) -> Option<MlxFloat> {
        match self {
            Dtype::F32 => Some(MlxFloat::F32),
            Dtype::F16 => Some(MlxFloat::F16),
            Dtype::Bf16 => Some(MlxFloat::Bf16),
            _ => None,
        }
    }

    /// The format of a tensor of plain floats.
    pub(crate) fn format(self) -> Option<QuantFormat> {
        match self {
            Dtype::F32 => Some(QuantFormat::F32),
            Dtype::F16 => Some(QuantFormat::F16),
            Dtype::Bf16 => Some(QuantFormat::Bf16),
            Dtype::U32
            | Dtype::U8
            | Dtype::I64
            | Dtype::I32
            | Dtype::I8
            | Dtype::F8E4m3
            | Dtype::Other(..) => None,
        }
    }
}

/// One tensor as the header describes it, checked.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// Slowest dimension first.
    pub(crate) shape: Vec<u64>,
    /// From the start of the file.
    pub(crate) range: Range<usize>,
}

/// Is this the beginning of a safetensors file?
pub(crate) fn is_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk().map(|length| u64::from_le_bytes(*length));
    length.is_some_and(|length| length <= HEADER_BYTES_MAX) && head.get(LENGTH_BYTES) == Some(&b'{')
}

/// The tensors of a file, in the order of their places, and where the data begins.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Vec<RawTensor>, usize), Flaw> {
    let flaw = |problem: String| Flaw::new(0, problem);
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    let length = length.ok_or_else(|| flaw("it ends within the header's length".to_owned()))?;
    if length > HEADER_BYTES_MAX {
        return Err(flaw(format!(
            "its header would have {length} bytes, more than the limit {HEADER_BYTES_MAX}"
        )));
    }
    let data_start = LENGTH_BYTES + usize::try_from(length).unwrap_or(usize::MAX);
    let header = bytes.get(LENGTH_BYTES..data_start).ok_or_else(|| {
        let there = bytes.len();
        flaw(format!(
            "its header ends at byte {data_start} but the file has {there}: is the \
                      download incomplete?"
        ))
    })?;
    let flaw = |problem: String| Flaw::new(LENGTH_BYTES, problem);
    let header: Map<String, Json> = serde_json::from_slice(header)
        .map_err(|error| flaw(format!("its header is not what it must be: {error}")))?;
    let place = |(name, entry)| RawTensor::read(name, entry, data_start, bytes.len());
    let entries = entries(&header).map_err(flaw)?;
    let tensors: Result<Vec<_>, String> = entries.into_iter().map(place).collect();
    let mut tensors = tensors.map_err(flaw)?;
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    check_cover(&tensors, data_start, bytes.len())?;
    Ok((tensors, data_start))
}

struct Entry<'a> {
    dtype: &'a str,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// What a header says of each tensor. A name that is there twice counts once, by its last place,
/// and leaves a hole where the other is.
fn entries(header: &Map<String, Json>) -> Result<Vec<(&str, Entry<'_>)>, String> {
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__");
    tensors.map(|(name, entry)| Ok((name.as_str(), Entry::read(name, entry)?))).collect()
}

impl<'a> Entry<'a> {
    fn read(name: &str, json: &'a Json) -> Result<Self, String> {
        let wrong = |key: &str| format!("tensor {} has no {key} as it must be", Quoted(name));
        let numbers = |key: &str| -> Option<Vec<u64>> {
            json.get(key)?.as_array()?.iter().map(Json::as_u64).collect()
        };
        let dtype = json.get("dtype").and_then(Json::as_str).ok_or_else(|| wrong("dtype"))?;
        let shape = numbers("shape").ok_or_else(|| wrong("shape"))?;
        let offsets = numbers("data_offsets").and_then(|offsets| offsets.try_into().ok());
        let data_offsets = offsets.ok_or_else(|| wrong("data_offsets"))?;
        Ok(Self { dtype, shape, data_offsets })
    }
}

impl RawTensor {
    fn read(
        name: &str,
        entry: Entry<'_>,
        data_start: usize,
        file_bytes: usize,
    ) -> Result<Self, String> {
        let Entry { dtype, shape, data_offsets: [start, end] } = entry;
        let flaw = |problem: String| Err(format!("tensor {} {problem}", Quoted(name)));
        if name.is_empty() {
            return flaw("has no name".to_owned());
        }
        let Some(dtype) = Dtype::of(dtype) else {
            return flaw(format!("has dtype {}, which is not known", Quoted(dtype)));
        };
        if shape.len() > DIMS_MAX {
            return flaw(format!("has {} dimensions, at most {DIMS_MAX} are read", shape.len()));
        }
        let elements = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bits()));
        let Some(bytes) = bits.map(|bits| bits.div_ceil(8)) else {
            return flaw(format!("has a shape {shape:?} whose size overflows 64 bits"));
        };
        if end.checked_sub(start) != Some(bytes) {
            let name = dtype.name();
            return flaw(format!(
                "takes bytes {start} to {end} where {shape:?} of {name} takes {bytes}"
            ));
        }
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let range = range.and_then(|(start, end)| {
            Some(data_start.checked_add(start)?..data_start.checked_add(end)?)
        });
        match range {
            Some(range) if range.end <= file_bytes => {
                Ok(Self { name: name.to_owned(), dtype, shape, range })
            }
            _ => flaw(format!(
                "ends {end} bytes into the data but the file has {}: is the download incomplete?",
                file_bytes - data_start
            )),
        }
    }
}

/// The format has no holes: in the order of their places, each begins where the one before ends.
fn check_cover(tensors: &[RawTensor], data_start: usize, file_bytes: usize) -> Result<(), Flaw> {
    let mut end = data_start;
    for RawTensor { name, range, .. } in tensors {
        if range.start != end {
            let place = if range.start < end { "inside" } else { "apart from" };
            let problem = format!("tensor {} starts {place} the one before it", Quoted(name));
            return Err(Flaw::new(range.start, problem));
        }
        end = range.end;
    }
    if end == file_bytes {
        return Ok(());
    }
    Err(Flaw::new(end, format!("its {} last bytes belong to no tensor", file_bytes - end)))
}
