//! How is a metadata value read, with every count checked against the bytes that are left?

use super::cursor::Cursor;
use crate::Flaw;
use crate::error::Quoted;
use crate::metadata::{Array, StringArray, Value};

/// Arrays in arrays in arrays: no known writer nests at all; the limit bounds recursion.
const NESTING_MAX: usize = 4;
/// A single string may be long (chat templates, licences); it is still bounded by the file.
const STRING_BYTES_MAX: usize = usize::MAX;

/// Bytes of a value at the least, to bound counts of key-value pairs.
pub(super) const VALUE_BYTES_MIN: usize = 1;

pub(super) fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Flaw> {
    let start = cursor.offset();
    let type_id = cursor.u32(format_args!("the type of key {}", Quoted(key)))?;
    let what = format_args!("the value of key {}", Quoted(key));
    Ok(match type_id {
        0 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(what)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        7 => {
            let place = cursor.offset();
            let [byte] = cursor.array(what)?;
            Value::Bool(read_bool(byte, place, key)?)
        }
        8 => Value::String(cursor.text(STRING_BYTES_MAX, what)?.into()),
        9 => Value::Array(Box::new(read_array(cursor, key, 1)?)),
        10 => Value::U64(u64::from_le_bytes(cursor.array(what)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        _ => return Err(unknown_type(start, type_id, key)),
    })
}

fn read_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Flaw> {
    let start = cursor.offset();
    if depth > NESTING_MAX {
        let problem =
            format!("key {} nests arrays deeper than the limit {NESTING_MAX}", Quoted(key));
        return Err(Flaw::new(start, problem));
    }
    let element = cursor.u32(format_args!("the element type of key {}", Quoted(key)))?;
    Ok(match element {
        0 => Array::U8(read_numbers(cursor, key, u8::from_le_bytes)?),
        1 => Array::I8(read_numbers(cursor, key, i8::from_le_bytes)?),
        2 => Array::U16(read_numbers(cursor, key, u16::from_le_bytes)?),
        3 => Array::I16(read_numbers(cursor, key, i16::from_le_bytes)?),
        4 => Array::U32(read_numbers(cursor, key, u32::from_le_bytes)?),
        5 => Array::I32(read_numbers(cursor, key, i32::from_le_bytes)?),
        6 => Array::F32(read_numbers(cursor, key, f32::from_le_bytes)?),
        7 => Array::Bool(read_bools(cursor, key)?),
        8 => Array::Strings(read_strings(cursor, key)?),
        9 => Array::Nested(read_nested(cursor, key, depth)?),
        10 => Array::U64(read_numbers(cursor, key, u64::from_le_bytes)?),
        11 => Array::I64(read_numbers(cursor, key, i64::from_le_bytes)?),
        12 => Array::F64(read_numbers(cursor, key, f64::from_le_bytes)?),
        _ => return Err(unknown_type(start, element, key)),
    })
}

fn read_count(cursor: &mut Cursor<'_>, key: &str, bytes_min: usize) -> Result<usize, Flaw> {
    cursor.count(bytes_min, format_args!("the element count of key {}", Quoted(key)))
}

fn read_numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    key: &str,
    decode: fn([u8; N]) -> T,
) -> Result<Box<[T]>, Flaw> {
    let count = read_count(cursor, key, N)?;
    // The count was checked against the bytes left, so the product cannot overflow.
    let raw = cursor.take(count * N, format_args!("the elements of key {}", Quoted(key)))?;
    Ok(raw.as_chunks().0.iter().map(|chunk| decode(*chunk)).collect())
}

fn read_bools(cursor: &mut Cursor<'_>, key: &str) -> Result<Box<[bool]>, Flaw> {
    let count = read_count(cursor, key, 1)?;
    let start = cursor.offset();
    let raw = cursor.take(count, format_args!("the elements of key {}", Quoted(key)))?;
    let mut bools = Vec::with_capacity(count);
    for (index, byte) in raw.iter().enumerate() {
        bools.push(read_bool(*byte, start + index, key)?);
    }
    Ok(bools.into())
}

/// Walks the strings twice: first to check and measure, then to copy into exact allocations.
fn read_strings(cursor: &mut Cursor<'_>, key: &str) -> Result<StringArray, Flaw> {
    const LENGTH_BYTES: usize = 8;
    let count = read_count(cursor, key, LENGTH_BYTES)?;
    let start = cursor.offset();
    for index in 0..count {
        cursor.string(format_args!("string {index} of key {}", Quoted(key)))?;
    }
    let text_bytes = cursor.offset() - start - count * LENGTH_BYTES;
    let mut second = cursor.rewound(start);
    let (mut bytes, mut ends) = (Vec::with_capacity(text_bytes), Vec::with_capacity(count));
    for index in 0..count {
        bytes.extend_from_slice(second.string(format_args!("string {index}"))?);
        ends.push(bytes.len());
    }
    Ok(StringArray::from_parts(bytes, ends))
}

/// An inner array takes at least its element type and count. The vector grows as arrays are read
/// and is not reserved up front, since each level could claim all bytes left again.
fn read_nested(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Box<[Array]>, Flaw> {
    const ARRAY_BYTES_MIN: usize = 4 + 8;
    let count = read_count(cursor, key, ARRAY_BYTES_MIN)?;
    let mut arrays = Vec::new();
    for _ in 0..count {
        arrays.push(read_array(cursor, key, depth + 1)?);
    }
    Ok(arrays.into())
}

fn read_bool(byte: u8, place: usize, key: &str) -> Result<bool, Flaw> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => {
            let problem = format!("key {} has a bool of {byte}, must be 0 or 1", Quoted(key));
            Err(Flaw::new(place, problem))
        }
    }
}

fn unknown_type(offset: usize, type_id: u32, key: &str) -> Flaw {
    Flaw::new(offset, format!("key {} has value type {type_id}, not one of 0 to 12", Quoted(key)))
}
