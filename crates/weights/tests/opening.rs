//! Do whole files, split sets and things that are no models open or refuse as they should?

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ops::quant_format::QuantFormat;
use weights::{Array, GgufBuilder, StringArray, Value, WeightFile, WeightsError};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Part `index` of `count`, with tensor `t<index>` holding `index`.
fn part(index: u16, count: u16, tensors: i32) -> Vec<u8> {
    let mut builder = GgufBuilder::new();
    builder
        .key("general.name", format!("part {index}"))
        .key("split.no", index)
        .key("split.count", count)
        .key("split.tensors.count", tensors)
        .tensor(&format!("t{index}"), QuantFormat::F32, &[1], floats(&[f32::from(index)]));
    builder.to_bytes().unwrap()
}

#[test]
fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = GgufBuilder::new();
    builder
        .alignment(64)
        .key("name", "tiny")
        .key("tokens", StringArray::from_iter(["a", "", "b c"]))
        .key("whole", Value::I64(-5))
        .tensor("cube", QuantFormat::F32, &[2, 3, 4], floats(&[1.5; 24]))
        .tensor("row", QuantFormat::F16, &[3], vec![0x00, 0x3C, 0x00, 0xC0, 0x01, 0x00]);
    let bytes = builder.to_bytes().unwrap();
    let path = write(folder.path(), "tiny.gguf", &bytes);
    let model = Arc::new(weights::open(&path).unwrap());
    let shared = Arc::clone(&model);
    let in_thread = std::thread::spawn(move || shared.tensor("cube").unwrap().bytes.to_vec());
    assert_eq!(in_thread.join().unwrap(), floats(&[1.5; 24]), "read from another thread");

    assert_eq!(model.metadata().required::<i64>("whole").unwrap(), -5, "key");
    let keys: Vec<&str> = model.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["general.alignment", "name", "tokens", "whole"], "order is kept");
    let cube = model.tensor("cube").unwrap();
    assert_eq!((cube.cols, cube.rows, cube.dims), (2, 12, [2, 3, 4].as_slice()), "shape");
    let mut row = [0.0; 3];
    let view = model.tensor("row").unwrap();
    view.format.decode_row(view.row(0), &mut row);
    assert_eq!(row, [1.0, -2.0, 2f32.powi(-24)], "decoded");
    assert!(model.tensors().all(|info| info.offset().is_multiple_of(64)), "aligned");
    assert_eq!((model.file_bytes(), model.is_split()), (bytes.len() as u64, false), "one file");
    model.check_lengths().unwrap();
}

/// The file is made by `tools/golden/make_gguf_blocks.py` with the `gguf` package's writer.
#[test]
fn a_file_of_another_writer_reads_as_it_was_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/by_gguf_py.gguf");
    let model = weights::open(path).unwrap();
    let strings = |strings: &[&[u8]]| Value::from(StringArray::from_iter(strings));
    let nested = [Array::I32([1, 2].into()), Array::I32([3].into())];
    let expected: Vec<(&str, Value)> = vec![
        ("general.architecture", "llama".into()),
        ("general.alignment", 64u32.into()),
        ("v.u8", Value::U8(200)),
        ("v.i8", Value::I8(-100)),
        ("v.u16", Value::U16(60000)),
        ("v.i16", Value::I16(-30000)),
        ("v.u32", Value::U32(4_000_000_000)),
        ("v.i32", Value::I32(-2_000_000_000)),
        ("v.u64", Value::U64(1 << 63)),
        ("v.i64", Value::I64(-(1 << 62))),
        ("v.f32", Value::F32(0.1)),
        ("v.f64", Value::F64(0.1)),
        ("v.bool", true.into()),
        ("v.string", "grüße 🦙".into()),
        ("a.strings", strings(&[b"", b"x", "日本".as_bytes()])),
        ("a.bytes", strings(&[b"\xff", b"ok"])),
        ("a.i32", vec![1i32, -2, 3].into()),
        ("a.f32", vec![0.5f32, -0.25].into()),
        ("a.bool", Array::Bool([true, false].into()).into()),
        ("a.nested", Array::Nested(nested.into()).into()),
    ];
    let found: Vec<(&str, Value)> =
        model.metadata().iter().map(|(key, value)| (key, value.clone())).collect();
    assert_eq!(found, expected, "metadata");

    let decoded = |name: &str| {
        let view = model.tensor(name).unwrap();
        let mut out = vec![0.0; view.rows * view.cols];
        for (index, out) in out.chunks_exact_mut(view.cols).enumerate() {
            view.format.decode_row(view.row(index), out);
        }
        (view.cols, out)
    };
    assert_eq!(decoded("f32"), (3, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), "f32");
    assert_eq!(decoded("f16"), (2, vec![1.5, -2.0]), "f16");
    let (cols, q8_0) = decoded("q8_0");
    assert_eq!((cols, q8_0[0], q8_0[63]), (32, -127.0, 127.0), "q8_0 keeps its extremes");
}

/// A sparse file of 1.2 GB that takes a few KB on disk. Readers have cut such counts at 2^31.
#[test]
fn a_tensor_of_more_than_two_to_the_31_weights_reads_to_its_end() {
    const COLS: u64 = 1024;
    const ROWS: u64 = (1 << 21) + 1;
    let row_bytes = QuantFormat::Q4_0.row_bytes(COLS as usize).unwrap();
    // The description is made with one row, then that dimension is replaced.
    let mut builder = GgufBuilder::new();
    builder.tensor("big", QuantFormat::Q4_0, &[COLS, 1], vec![0; row_bytes]);
    let mut head = builder.to_bytes().unwrap();
    let rows_at = 24 + 8 + "big".len() + 4 + 8;
    head[rows_at..rows_at + 8].copy_from_slice(&ROWS.to_le_bytes());
    let data_start = head.len() - row_bytes.next_multiple_of(32);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "big.gguf", &head);
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let last_block = data_start as u64 + ROWS * row_bytes as u64 - 18;
    file.seek(SeekFrom::Start(last_block)).unwrap();
    file.write_all(&[[0x00, 0x3C].as_slice(), &[0x99; 16]].concat()).unwrap();

    let model = weights::open(&path).unwrap();
    let view = model.tensor("big").unwrap();
    assert!((view.rows * view.cols) as u64 > 1 << 31, "more than 2^31");
    let mut out = vec![7.0; view.cols];
    view.format.decode_row(view.row(view.rows - 1), &mut out);
    assert_eq!((out[0], out[991], out[992], out[1023]), (0.0, 0.0, 1.0, 1.0), "the last row");
    file.set_len(last_block).unwrap();
    let text = weights::open(&path).unwrap_err().to_string();
    assert!(text.contains("tensor big ends at byte"), "{text}");
}

#[test]
fn a_split_set_opens_from_any_part() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..3)
        .map(|n| {
            let name = format!("m-{:05}-of-00003.gguf", n + 1);
            write(folder.path(), &name, &part(n, 3, 3))
        })
        .collect();
    for path in &paths {
        let model = weights::open(path).unwrap();
        assert!(model.is_split(), "three parts");
        let names: Vec<&str> = model.tensors().map(weights::TensorInfo::name).collect();
        assert_eq!(names, ["t0", "t1", "t2"], "parts in order");
        assert_eq!(model.tensor("t2").unwrap().bytes, floats(&[2.0]), "from the last part");
        let name = model.metadata().required::<&str>("general.name").unwrap();
        assert_eq!(name, "part 0", "metadata is the first part's");
    }
    std::fs::remove_file(&paths[1]).unwrap();
    let text = weights::open(&paths[0]).unwrap_err().to_string();
    assert!(text.contains("part 2 of 3") && text.contains("m-00002-of-00003.gguf"), "{text}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let refusal = |first: Vec<u8>, second: Vec<u8>| {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "m-00001-of-00002.gguf", &first);
        write(folder.path(), "m-00002-of-00002.gguf", &second);
        weights::open(path).unwrap_err().to_string()
    };
    let text = refusal(part(0, 2, 2), part(0, 2, 2));
    assert!(text.contains("says it is part 1 of 2, its name says 2 of 2"), "{text}");
    let text = refusal(part(0, 2, 7), part(1, 2, 7));
    assert!(text.contains("have 2 tensors, split.tensors.count says 7"), "{text}");
    let text = refusal(part(0, 2, 2), GgufBuilder::new().to_bytes().unwrap());
    assert!(text.contains("whole model"), "{text}");
    let text = refusal(part(5, 2, 2), part(1, 2, 2));
    assert!(text.contains("split.no is 5"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "renamed.gguf", &part(0, 2, 2));
    let text = weights::open(path).unwrap_err().to_string();
    assert!(text.contains("must end in -00001-of-00002.gguf"), "{text}");
}

#[test]
fn other_things_are_refused_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &str); 5] = [
        ("m.zip", b"PK\x03\x04rest", "a zip archive"),
        ("m.gz", b"\x1f\x8b\x08rest", "a gzip archive"),
        ("m.pt", b"\x80\x02}rest", "a Python pickle"),
        ("m.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":{}}", "a safetensors file"),
        ("empty.gguf", b"", "an empty file"),
    ];
    for (name, bytes, expected) in cases {
        let text = weights::open(write(folder.path(), name, bytes)).unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains("GGUF file (.gguf)"), "{name}: {text}");
    }
    let text = weights::open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("is a folder"), "{text}");
    let text = weights::open(folder.path().join("absent.gguf")).unwrap_err().to_string();
    assert!(text.contains("cannot open") && text.contains("absent.gguf"), "{text}");
}

#[test]
fn a_file_that_shrinks_while_loading_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "m.gguf", &part(0, 1, 1));
    let model = weights::open(&path).unwrap();
    model.check_lengths().unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(40).unwrap();
    let error = model.check_lengths().unwrap_err();
    assert!(matches!(error, WeightsError::Changed { now_bytes: 40, .. }), "{error}");
}

#[test]
fn the_builder_refuses_what_could_not_be_read_back() {
    let mut wrong_size = GgufBuilder::new();
    wrong_size.tensor("t", QuantFormat::Q4_0, &[32, 2], vec![0; 18]);
    let text = wrong_size.to_bytes().unwrap_err().to_string();
    assert_eq!(text, "tensor t of shape [32, 2] as Q4_0 does not take 18 bytes");
    let mut twice = GgufBuilder::new();
    twice.key("a", 1u32).key("a", 2u32);
    assert!(twice.to_bytes().unwrap_err().to_string().contains("called a"), "duplicate");
    let mut model = GgufBuilder::new();
    model.alignment(48);
    assert!(model.to_bytes().unwrap_err().to_string().contains("48"), "alignment");
    let not_a_model = WeightFile::from_bytes("x", b"GGU".to_vec()).unwrap_err();
    assert!(matches!(not_a_model, WeightsError::Damaged { .. }), "{not_a_model}");
}
