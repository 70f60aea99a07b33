//! How is a GGUF v3 file written? For test models and for `quantize`.
//!
//! Keys and tensors are written in the order they were added. What is written can be read back:
//! `build` refuses what `FilePart` would refuse because of the caller's sizes or names.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Write};

use ops::quant_format::QuantFormat;

use super::tensor_type::TensorType;
use super::{ALIGNMENT_DEFAULT, ALIGNMENT_MAX, MAGIC};
use crate::metadata::{Array, StringArray, Value};

/// Collects metadata and tensors; `write` streams them, `to_bytes` makes a vector.
#[derive(Debug)]
pub struct GgufBuilder<'a> {
    alignment: usize,
    keys: Vec<(String, Value)>,
    tensors: Vec<NewTensor<'a>>,
}

#[derive(Debug)]
struct NewTensor<'a> {
    name: String,
    kind: TensorType,
    dims: Vec<u64>,
    /// `None` where they are written behind the head.
    bytes: Option<Cow<'a, [u8]>>,
    byte_count: usize,
}

/// Why a GGUF file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("two keys or two tensors are called {0}")]
    Duplicate(String),
    #[error("tensor {name} of shape {dims:?} as {kind} does not take {given} bytes")]
    TensorBytes { name: String, dims: Vec<u64>, kind: String, given: usize },
    #[error("tensor {0} has no bytes yet: write the head, then each tensor")]
    BytesMissing(String),
    #[error("alignment {0} is not a power of two up to 2 MiB")]
    Alignment(usize),
    #[error("cannot write the file: {0}")]
    Write(#[from] io::Error),
}

impl Default for GgufBuilder<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> GgufBuilder<'a> {
    pub fn new() -> Self {
        GgufBuilder { alignment: ALIGNMENT_DEFAULT, keys: Vec::new(), tensors: Vec::new() }
    }

    /// Aligns tensors to `bytes` (32 unless set) and writes `general.alignment`.
    pub fn alignment(&mut self, bytes: u32) -> &mut Self {
        self.alignment = bytes as usize;
        self.key("general.alignment", bytes)
    }

    pub fn key(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.keys.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a tensor. `dims` has the fastest first, `[cols, rows, ...]`; `bytes` are the rows in
    /// `format`, end to end.
    ///
    /// # Panics
    /// If GGUF does not have the format.
    pub fn tensor(
        &mut self,
        name: &str,
        format: QuantFormat,
        dims: &[u64],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> &mut Self {
        let kind = TensorType::from_format(format).expect("invariant: a format that GGUF has");
        self.tensor_of_type(name, kind, dims, bytes)
    }

    /// As `tensor`, for any type id, known or not.
    pub fn tensor_of_type(
        &mut self,
        name: &str,
        kind: TensorType,
        dims: &[u64],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> &mut Self {
        let (name, dims, bytes) = (name.to_owned(), dims.to_vec(), bytes.into());
        let byte_count = bytes.len();
        self.tensors.push(NewTensor { name, kind, dims, bytes: Some(bytes), byte_count });
        self
    }

    /// A tensor of `byte_count` bytes that are written behind the head (`write_head`).
    ///
    /// # Panics
    /// If GGUF does not have the format.
    pub fn tensor_later(
        &mut self,
        name: &str,
        format: QuantFormat,
        dims: &[u64],
        byte_count: usize,
    ) -> &mut Self {
        let kind = TensorType::from_format(format).expect("invariant: a format that GGUF has");
        let (name, dims) = (name.to_owned(), dims.to_vec());
        self.tensors.push(NewTensor { name, kind, dims, bytes: None, byte_count });
        self
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, BuildError> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the whole file to `out`, which need not seek.
    pub fn write(&self, out: &mut impl Write) -> Result<(), BuildError> {
        self.write_head(out)?;
        for tensor in &self.tensors {
            let missing = || BuildError::BytesMissing(tensor.name.clone());
            self.write_tensor(out, tensor.bytes.as_deref().ok_or_else(missing)?)?;
        }
        Ok(())
    }

    /// Writes all but the tensors' bytes.
    pub fn write_head(&self, out: &mut impl Write) -> Result<(), BuildError> {
        self.check()?;
        let mut head = Vec::new();
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&3u32.to_le_bytes());
        head.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        head.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        for (name, value) in &self.keys {
            put_string(&mut head, name.as_bytes());
            put_value(&mut head, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut head, tensor.name.as_bytes());
            head.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| head.extend_from_slice(&dim.to_le_bytes()));
            head.extend_from_slice(&tensor.kind.0.to_le_bytes());
            head.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.byte_count.next_multiple_of(self.alignment) as u64;
        }
        self.write_tensor(out, &head)?;
        Ok(())
    }

    /// Writes the bytes of the next tensor, in the order in which they were added.
    pub fn write_tensor(&self, out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        out.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(self.alignment) - bytes.len();
        io::copy(&mut io::Read::take(io::repeat(0), padding as u64), out)?;
        Ok(())
    }

    fn check(&self) -> Result<(), BuildError> {
        if !self.alignment.is_power_of_two() || self.alignment as u64 > ALIGNMENT_MAX {
            return Err(BuildError::Alignment(self.alignment));
        }
        let keys = self.keys.iter().map(|(name, _)| ("key", name));
        let tensors = self.tensors.iter().map(|tensor| ("tensor", &tensor.name));
        let mut seen = BTreeSet::new();
        for name in keys.chain(tensors) {
            if !seen.insert(name) {
                return Err(BuildError::Duplicate(name.1.clone()));
            }
        }
        for tensor in &self.tensors {
            if !tensor.size_is_right() {
                return Err(BuildError::TensorBytes {
                    name: tensor.name.clone(),
                    dims: tensor.dims.clone(),
                    kind: tensor.kind.to_string(),
                    given: tensor.byte_count,
                });
            }
        }
        Ok(())
    }
}

impl NewTensor<'_> {
    fn size_is_right(&self) -> bool {
        if !(1..=4).contains(&self.dims.len()) || self.dims.contains(&0) {
            return false;
        }
        let Some((block_elements, block_bytes)) = self.kind.block() else {
            return self.byte_count > 0;
        };
        let elements = self.dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let expected =
            elements.and_then(|elements| (elements / block_elements).checked_mul(block_bytes));
        self.dims[0].is_multiple_of(block_elements) && expected == Some(self.byte_count as u64)
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |type_id: u32, bytes: &[u8]| {
        out.extend_from_slice(&type_id.to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::U8(value) => put(0, &value.to_le_bytes()),
        Value::I8(value) => put(1, &value.to_le_bytes()),
        Value::U16(value) => put(2, &value.to_le_bytes()),
        Value::I16(value) => put(3, &value.to_le_bytes()),
        Value::U32(value) => put(4, &value.to_le_bytes()),
        Value::I32(value) => put(5, &value.to_le_bytes()),
        Value::F32(value) => put(6, &value.to_le_bytes()),
        Value::Bool(value) => put(7, &[u8::from(*value)]),
        Value::U64(value) => put(10, &value.to_le_bytes()),
        Value::I64(value) => put(11, &value.to_le_bytes()),
        Value::F64(value) => put(12, &value.to_le_bytes()),
        Value::String(text) => {
            put(8, &[]);
            put_string(out, text.as_bytes());
        }
        Value::Array(array) => {
            put(9, &[]);
            put_array(out, array);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn put_all<T: Copy, const N: usize>(
        out: &mut Vec<u8>,
        type_id: u32,
        values: &[T],
        encode: fn(T) -> [u8; N],
    ) {
        put_array_head(out, type_id, values.len());
        values.iter().for_each(|value| out.extend_from_slice(&encode(*value)));
    }
    match array {
        Array::U8(values) => put_all(out, 0, values, u8::to_le_bytes),
        Array::I8(values) => put_all(out, 1, values, i8::to_le_bytes),
        Array::U16(values) => put_all(out, 2, values, u16::to_le_bytes),
        Array::I16(values) => put_all(out, 3, values, i16::to_le_bytes),
        Array::U32(values) => put_all(out, 4, values, u32::to_le_bytes),
        Array::I32(values) => put_all(out, 5, values, i32::to_le_bytes),
        Array::F32(values) => put_all(out, 6, values, f32::to_le_bytes),
        Array::Bool(values) => put_all(out, 7, values, |value| [u8::from(value)]),
        Array::Strings(strings) => put_strings(out, strings),
        Array::Nested(arrays) => {
            put_array_head(out, 9, arrays.len());
            arrays.iter().for_each(|array| put_array(out, array));
        }
        Array::U64(values) => put_all(out, 10, values, u64::to_le_bytes),
        Array::I64(values) => put_all(out, 11, values, i64::to_le_bytes),
        Array::F64(values) => put_all(out, 12, values, f64::to_le_bytes),
    }
}

fn put_strings(out: &mut Vec<u8>, strings: &StringArray) {
    put_array_head(out, 8, strings.len());
    strings.iter().for_each(|string| put_string(out, string));
}

fn put_array_head(out: &mut Vec<u8>, type_id: u32, count: usize) {
    out.extend_from_slice(&type_id.to_le_bytes());
    out.extend_from_slice(&(count as u64).to_le_bytes());
}
