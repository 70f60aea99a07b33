//! Do the decoders agree with the `gguf` Python package, and the two forms with each other?

#![allow(clippy::unwrap_used, reason = "tests")]

use super::{MlxAffine, MlxFloat, QuantFormat, Zero};

/// Made by `tools/golden/make_gguf_blocks.py`; the format is described there.
const GOLDEN: &[u8] = include_bytes!("testdata/gguf_blocks.bin");
/// Made by `tools/golden/make_mlx_blocks.py`, in the same form.
const GOLDEN_MLX: &[u8] = include_bytes!("testdata/mlx_blocks.bin");
/// What MLX made for the design's vectors: `tools/golden/make_mlx_vectors.py`.
const VECTORS_MLX: &[u8] = include_bytes!("testdata/mlx_vectors.bin");

struct GoldenRow {
    name: String,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn golden_rows() -> Vec<GoldenRow> {
    read_rows(GOLDEN)
}

fn read_rows(golden: &[u8]) -> Vec<GoldenRow> {
    let mut rest = golden.strip_prefix(b"PELTONQ1").unwrap();
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at(count);
        rest = tail;
        head.to_vec()
    };
    let rows = u32::from_le_bytes(take(4).try_into().unwrap());
    let parsed = (0..rows)
        .map(|_| {
            let name = String::from_utf8(take(8)).unwrap().trim_end().to_owned();
            let byte_count = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            let value_count = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            let bytes = take(byte_count);
            let values = take(value_count * 4)
                .chunks_exact(4)
                .map(|raw| f32::from_le_bytes(raw.try_into().unwrap()))
                .collect();
            GoldenRow { name, bytes, values }
        })
        .collect();
    assert!(rest.is_empty(), "golden file has {} bytes left over", rest.len());
    parsed
}

#[track_caller]
fn assert_bits_equal(name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}: count");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            got.to_bits() == expected.to_bits(),
            "{name}: weight {index} is {got:e}, expected {expected:e}"
        );
    }
}

#[test]
fn decode_row_is_bit_equal_to_gguf_py() {
    let rows = golden_rows();
    for format in QuantFormat::ALL {
        let row = rows.iter().find(|row| row.name == format.name()).unwrap();
        assert!(row.values.iter().all(|value| value.is_finite()), "{format}: golden is finite");
        assert_eq!(format.row_bytes(row.values.len()), Some(row.bytes.len()), "{format}: bytes");
        let mut decoded = vec![f32::NAN; row.values.len()];
        format.decode_row(&row.bytes, &mut decoded);
        assert_bits_equal(format.name(), &decoded, &row.values);
    }
    assert_eq!(rows.len(), QuantFormat::ALL.len(), "one golden row a format");
}

/// `mxfp4`, or bits, group and type of scales: `4 64 h`.
fn mlx_format(name: &str) -> QuantFormat {
    let parts: Vec<&str> = name.split(' ').collect();
    let [bits, group, float] = parts[..] else {
        let known = [QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4];
        return known.into_iter().find(|known| known.name().ends_with(name)).unwrap();
    };
    let float = match float {
        "s" => MlxFloat::F32,
        "h" => MlxFloat::F16,
        "b" => MlxFloat::Bf16,
        other => panic!("{other}"),
    };
    let group = group.parse().unwrap();
    QuantFormat::MlxAffine(MlxAffine::new(bits.parse().unwrap(), group, float).unwrap())
}

#[test]
fn decode_row_is_bit_equal_to_mlx() {
    let rows = read_rows(GOLDEN_MLX);
    let vectors = read_rows(VECTORS_MLX);
    assert_eq!(vectors.len(), 48, "two rows of each of 24 cases");
    for row in rows.iter().chain(&vectors) {
        let format = mlx_format(&row.name);
        assert_eq!(format.row_bytes(row.values.len()), Some(row.bytes.len()), "{}", row.name);
        let mut decoded = vec![f32::NAN; row.values.len()];
        format.decode_row(&row.bytes, &mut decoded);
        assert_bits_equal(&row.name, &decoded, &row.values);
    }
    let mut seen: Vec<QuantFormat> = rows.iter().map(|row| mlx_format(&row.name)).collect();
    let mut all = QuantFormat::of_mlx();
    seen.sort_unstable();
    all.sort_unstable();
    assert_eq!(seen, all, "one golden row a format");
}

#[test]
fn affine_parts_give_exactly_the_same_weights() {
    let of_gguf = golden_rows().into_iter().map(|row| {
        let format = QuantFormat::ALL.iter().find(|format| format.name() == row.name);
        (*format.unwrap(), row)
    });
    let of_mlx = read_rows(GOLDEN_MLX).into_iter().map(|row| (mlx_format(&row.name), row));
    for (format, row) in of_gguf.chain(of_mlx) {
        let Some(shape) = format.affine() else { continue };
        let groups = row.values.len() / shape.group;
        let mut codes = vec![0xEE; row.values.len()];
        let (mut scales, mut biases) = (vec![f32::NAN; groups], vec![f32::NAN; groups]);
        format.decode_affine_row(&row.bytes, &mut codes, &mut scales, &mut biases);
        let weights: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(index, code)| {
                let (scale, bias) = (scales[index / shape.group], biases[index / shape.group]);
                match shape.zero {
                    Zero::PerGroup => scale * f32::from(*code) + bias,
                    Zero::Point(point) => scale * (f32::from(*code) - f32::from(point)),
                }
            })
            .collect();
        assert_bits_equal(format.name(), &weights, &row.values);
        let largest = u32::from(codes.iter().copied().max().unwrap_or(0));
        assert!(largest < 1 << shape.bits, "{format}: code {largest}");
        // The golden rows reach into the upper half of the codes that the bits allow.
        let needed = shape.bits.min(6) - 1;
        let may_be_less = shape.bits == 4 || matches!(format, QuantFormat::MlxAffine(_));
        assert!(largest >= 1 << needed || may_be_less, "{format}: code {largest} of all");
        if matches!(shape.zero, Zero::Point(_)) {
            assert!(biases.iter().all(|bias| *bias == 0.0), "{format}: biases of a fixed point");
        }
        if shape.scale_is_f16 {
            let is_half = |value: &f32| half::f16::from_f32(*value).to_f32() == *value;
            assert!(scales.iter().chain(&biases).all(is_half), "{format}: scales are f16");
        }
    }
}

#[test]
fn no_byte_content_panics() {
    // Every repeated byte, so scales become infinities, NaNs and subnormals too.
    for format in QuantFormat::ALL.iter().copied().chain(QuantFormat::of_mlx()) {
        let mut out = vec![0.0; format.block_elements() * 3];
        for byte in 0..=255u8 {
            let bytes = vec![byte; format.block_bytes() * 3];
            format.decode_row(&bytes, &mut out);
        }
    }
}

#[test]
fn row_bytes_refuses_part_blocks_and_overflow() {
    assert_eq!(QuantFormat::Q4_1.row_bytes(576), Some(360), "576 / 32 * 20");
    assert_eq!(QuantFormat::Q4_1.row_bytes(31), None, "part of a block");
    assert_eq!(QuantFormat::Q6K.row_bytes(128), None, "half a block");
    assert_eq!(QuantFormat::Q6K.row_bytes(0), Some(0), "an empty row");
    assert_eq!(QuantFormat::F32.row_bytes(usize::MAX), None, "overflow");
}
