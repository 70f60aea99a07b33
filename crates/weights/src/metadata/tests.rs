//! Do typed getters take what fits, refuse what does not, and name the key?

#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Metadata, StringArray, Value};

fn sample() -> Metadata {
    let entries: Vec<(Box<str>, Value)> = vec![
        ("small".into(), Value::U8(7)),
        ("negative".into(), Value::I32(-1)),
        ("big".into(), Value::U64(1 << 32)),
        ("ratio".into(), Value::F32(0.5)),
        ("nan".into(), Value::F32(f32::NAN)),
        ("name".into(), "llama".into()),
        ("tokens".into(), StringArray::from_iter([b"a".as_slice(), b"\xff", b""]).into()),
        ("ids".into(), vec![1i32, -2].into()),
    ];
    Metadata::from_entries(entries).unwrap()
}

#[test]
fn values_are_read_as_what_they_fit() {
    let metadata = sample();
    assert_eq!(metadata.required::<u32>("small").unwrap(), 7, "u8 as u32");
    assert_eq!(metadata.required::<u64>("big").unwrap(), 1 << 32, "u64");
    assert_eq!(metadata.required::<i64>("negative").unwrap(), -1, "i32 as i64");
    assert_eq!(metadata.required::<&str>("name").unwrap(), "llama", "string");
    assert_eq!(metadata.required::<Vec<i64>>("ids").unwrap(), [1, -2], "array");
    assert_eq!(metadata.optional::<f32>("absent").unwrap(), None, "absent");
    let tokens = metadata.required::<&StringArray>("tokens").unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>(), [b"a".as_slice(), b"\xff", b""], "tokens");
    assert_eq!((tokens.get_str(0), tokens.get_str(1)), (Some("a"), None), "utf-8 or not");
    assert_eq!(tokens.get(3), None, "past the end");
}

#[test]
fn refusals_name_key_found_and_expected() {
    let metadata = sample();
    let text = |error: crate::WeightsError| error.to_string();
    assert_eq!(
        text(metadata.required::<u32>("negative").unwrap_err()),
        "metadata key negative holds i32 -1, expected a whole number from 0 to 4294967295"
    );
    assert_eq!(
        text(metadata.optional::<&str>("tokens").unwrap_err()),
        "metadata key tokens holds array of 3 string, expected a string"
    );
    assert!(metadata.required::<u32>("big").is_err(), "2^32 is no u32");
    assert!(metadata.required::<u32>("ratio").is_err(), "a float is no whole number");
    assert!(metadata.required::<f32>("nan").is_err(), "NaN");
    assert!(text(metadata.required::<f32>("absent").unwrap_err()).contains("absent"), "absent");
}

#[test]
fn a_key_given_twice_is_found() {
    let entry = |key: &str| (Box::from(key), Value::U8(0));
    let entries = vec![entry("b"), entry("a"), entry("c"), entry("b")];
    assert_eq!(Metadata::from_entries(entries).unwrap_err(), "b".into(), "the repeated key");
}
