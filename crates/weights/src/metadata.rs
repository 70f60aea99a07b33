//! What does a model file say about itself? Ordered keys with typed values.
//!
//! Arrays are kept as vectors of their element type, so metadata takes about as much memory as it
//! takes bytes in the file. A single string is UTF-8 (the parser refuses others). Elements of a
//! string array are bytes: vocabularies hold pieces of characters, which are not UTF-8 alone.

use std::fmt;

use crate::WeightsError;
use crate::error::Quoted;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Box<str>),
    Array(Box<Array>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Box<[u8]>),
    I8(Box<[i8]>),
    U16(Box<[u16]>),
    I16(Box<[i16]>),
    U32(Box<[u32]>),
    I32(Box<[i32]>),
    F32(Box<[f32]>),
    Bool(Box<[bool]>),
    Strings(StringArray),
    Nested(Box<[Array]>),
    U64(Box<[u64]>),
    I64(Box<[i64]>),
    F64(Box<[f64]>),
}

/// Strings of any bytes, stored end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringArray {
    bytes: Box<[u8]>,
    /// `ends[i]` is where string `i` ends in `bytes`; it starts where the one before ended.
    ends: Box<[usize]>,
}

impl StringArray {
    /// `ends` must be ascending and end at `bytes.len()`.
    pub(crate) fn from_parts(bytes: Vec<u8>, ends: Vec<usize>) -> Self {
        assert!(ends.is_sorted(), "string ends ascend");
        assert_eq!(ends.last().copied().unwrap_or(0), bytes.len(), "strings fill their bytes");
        StringArray { bytes: bytes.into(), ends: ends.into() }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    /// The string at `index`, if there is one and it is UTF-8.
    pub fn get_str(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.get(index)?).ok()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index).expect("invariant: index is in range"))
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for StringArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for string in strings {
            bytes.extend_from_slice(string.as_ref());
            ends.push(bytes.len());
        }
        StringArray::from_parts(bytes, ends)
    }
}

impl Array {
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::Strings(values) => values.len(),
            Array::Nested(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F64(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn element_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::Strings(_) => "string",
            Array::Nested(_) => "array",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }
}

/// For messages: the type, and the value where it is short.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(value) => write!(f, "u8 {value}"),
            Value::I8(value) => write!(f, "i8 {value}"),
            Value::U16(value) => write!(f, "u16 {value}"),
            Value::I16(value) => write!(f, "i16 {value}"),
            Value::U32(value) => write!(f, "u32 {value}"),
            Value::I32(value) => write!(f, "i32 {value}"),
            Value::F32(value) => write!(f, "f32 {value}"),
            Value::Bool(value) => write!(f, "bool {value}"),
            Value::String(value) => write!(f, "string \"{}\"", Quoted(value)),
            Value::Array(array) => write!(f, "array of {} {}", array.len(), array.element_name()),
            Value::U64(value) => write!(f, "u64 {value}"),
            Value::I64(value) => write!(f, "i64 {value}"),
            Value::F64(value) => write!(f, "f64 {value}"),
        }
    }
}

/// Keys and values in file order; each key once.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(Box<str>, Value)>,
    /// Indices of `entries`, sorted by key.
    by_key: Box<[u32]>,
}

impl Metadata {
    /// Fails with a key that two entries have.
    pub(crate) fn from_entries(entries: Vec<(Box<str>, Value)>) -> Result<Self, Box<str>> {
        let count = u32::try_from(entries.len()).expect("invariant: parser limits entries to 1M");
        let mut by_key: Box<[u32]> = (0..count).collect();
        by_key.sort_unstable_by_key(|index| &*entries[*index as usize].0);
        let same_key = |pair: &&[u32]| entries[pair[0] as usize].0 == entries[pair[1] as usize].0;
        if let Some(pair) = by_key.windows(2).find(same_key) {
            return Err(entries[pair[1] as usize].0.clone());
        }
        Ok(Metadata { entries, by_key })
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// In file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        let place = |index: &u32| (*self.entries[*index as usize].0).cmp(key);
        let found = self.by_key.binary_search_by(place).ok()?;
        Some(&self.entries[self.by_key[found] as usize].1)
    }

    /// The value of `key` as a `T`, or an error that names the key, what it holds and what was
    /// expected.
    pub fn required<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, WeightsError> {
        self.optional(key)?.ok_or_else(|| WeightsError::KeyMissing { key: key.to_owned() })
    }

    /// As `required`, but a missing key is `None`. A value of the wrong type is still an error.
    pub fn optional<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, WeightsError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(WeightsError::KeyType {
                key: key.to_owned(),
                found: value.to_string(),
                expected: T::EXPECTED,
            }),
        }
    }
}

/// What a metadata value can be read as. Whole numbers of any stored width are taken where they
/// fit, because writers disagree about widths; floats are never taken for whole numbers.
pub trait FromValue<'a>: Sized {
    /// For the error: what would have been accepted.
    const EXPECTED: &'static str;
    fn from_value(value: &'a Value) -> Option<Self>;
}

impl FromValue<'_> for u64 {
    const EXPECTED: &'static str = "a whole number, at least 0";
    fn from_value(value: &Value) -> Option<Self> {
        u64::try_from(whole_number(value)?).ok()
    }
}

impl FromValue<'_> for i64 {
    const EXPECTED: &'static str = "a whole number";
    fn from_value(value: &Value) -> Option<Self> {
        i64::try_from(whole_number(value)?).ok()
    }
}

impl FromValue<'_> for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 4294967295";
    fn from_value(value: &Value) -> Option<Self> {
        u32::try_from(whole_number(value)?).ok()
    }
}

/// NaN and infinities are refused: no key of a model means one.
impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "a finite f32";
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::F32(number) => Some(*number),
            Value::F64(number) => Some(*number as f32),
            _ => None,
        }
        .filter(|number| number.is_finite())
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a bool";
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bool(flag) = value { Some(*flag) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a string";
    fn from_value(value: &'a Value) -> Option<Self> {
        if let Value::String(text) = value { Some(text) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a StringArray {
    const EXPECTED: &'static str = "an array of strings";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(array) => match &**array {
                Array::Strings(strings) => Some(strings),
                _ => None,
            },
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a [f32] {
    const EXPECTED: &'static str = "an array of f32";
    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(array) => match &**array {
                Array::F32(numbers) => Some(numbers),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Any array of whole numbers whose elements all fit.
impl FromValue<'_> for Vec<i64> {
    const EXPECTED: &'static str = "an array of whole numbers";
    fn from_value(value: &Value) -> Option<Self> {
        fn widen<T: Copy + Into<i64>>(values: &[T]) -> Option<Vec<i64>> {
            Some(values.iter().map(|value| (*value).into()).collect())
        }
        let Value::Array(array) = value else { return None };
        match &**array {
            Array::U8(values) => widen(values),
            Array::I8(values) => widen(values),
            Array::U16(values) => widen(values),
            Array::I16(values) => widen(values),
            Array::U32(values) => widen(values),
            Array::I32(values) => widen(values),
            Array::I64(values) => widen(values),
            Array::U64(values) => values.iter().map(|value| i64::try_from(*value).ok()).collect(),
            Array::F32(_)
            | Array::F64(_)
            | Array::Bool(_)
            | Array::Strings(_)
            | Array::Nested(_) => None,
        }
    }
}

fn whole_number(value: &Value) -> Option<i128> {
    match value {
        Value::U8(number) => Some((*number).into()),
        Value::I8(number) => Some((*number).into()),
        Value::U16(number) => Some((*number).into()),
        Value::I16(number) => Some((*number).into()),
        Value::U32(number) => Some((*number).into()),
        Value::I32(number) => Some((*number).into()),
        Value::U64(number) => Some((*number).into()),
        Value::I64(number) => Some((*number).into()),
        Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
    }
}

/// Shorthands for writers: `Value::from(3u32)`, `"text".into()`.
macro_rules! value_from {
    ($($source:ty => $make:expr;)*) => {
        $(impl From<$source> for Value {
            fn from(source: $source) -> Self {
                $make(source)
            }
        })*
    };
}

value_from! {
    u16 => Value::U16;
    u32 => Value::U32;
    i32 => Value::I32;
    u64 => Value::U64;
    f32 => Value::F32;
    bool => Value::Bool;
    &str => |text: &str| Value::String(text.into());
    String => |text: String| Value::String(text.into());
    Array => |array: Array| Value::Array(array.into());
    StringArray => |strings: StringArray| Value::Array(Array::Strings(strings).into());
    Vec<f32> => |numbers: Vec<f32>| Value::Array(Array::F32(numbers.into()).into());
    Vec<i32> => |numbers: Vec<i32>| Value::Array(Array::I32(numbers.into()).into());
    Vec<u32> => |numbers: Vec<u32>| Value::Array(Array::U32(numbers.into()).into());
}

#[cfg(test)]
mod tests;
