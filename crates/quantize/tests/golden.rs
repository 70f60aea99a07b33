//! Are codes and scales those of the formats' makers? Rows and answers are of
//! `tools/golden/make_quantized.py`.

#![allow(clippy::unwrap_used, reason = "tests")]

use ops::quant_format::{MlxAffine, MlxFloat};
use quantize::{FORMATS, QuantFormat, encode_affine_row, encode_row};

struct Row {
    name: String,
    weights: Vec<f32>,
    bytes: Vec<u8>,
}

fn rows(golden: &[u8]) -> Vec<Row> {
    let mut rest = golden.strip_prefix(b"PELTONQ1").unwrap();
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at(count);
        rest = tail;
        head.to_vec()
    };
    let number = |bytes: Vec<u8>| u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
    let count = number(take(4));
    let read = (0..count).map(|_| {
        let name = String::from_utf8(take(16)).unwrap().trim_end().to_owned();
        let (weights, bytes) = (number(take(4)), number(take(4)));
        let weights =
            take(4 * weights).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Row { name, weights, bytes: take(bytes) }
    });
    read.collect()
}

/// Error of what `bytes` decode to.
fn error(format: QuantFormat, bytes: &[u8], weights: &[f32]) -> f64 {
    let mut decoded = vec![0.0; weights.len()];
    format.decode_row(bytes, &mut decoded);
    let pairs = decoded.iter().zip(weights);
    pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// Sums are taken in another order than in ggml's vectors, so a search may end at another scale
/// that is as good by its own weights: no row is 2 % worse, and all together are not.
#[test]
fn blocks_are_those_of_ggml() {
    let rows = rows(include_bytes!("data/gguf.bin"));
    let (mut all, mut kinds) = ([0f64; 2], Vec::new());
    for Row { name, weights, bytes } in &rows {
        let format = *FORMATS.iter().find(|format| format.name() == name).unwrap();
        let mut made = vec![0u8; bytes.len()];
        encode_row(format, weights, &mut made);
        let (own, theirs) = (error(format, &made, weights), error(format, bytes, weights));
        eprintln!("{name}: same {}, {:.5}", made == *bytes, own / theirs);
        assert!(own <= theirs * 1.02, "{name}: {own} where {theirs} is possible");
        all = [all[0] + own * own, all[1] + theirs * theirs];
        if !name.ends_with("_K") {
            assert!(made == *bytes, "{name}: other bytes");
        }
        kinds.push(name.as_str());
    }
    kinds.dedup();
    assert_eq!(kinds, ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]);
    assert!(all[0] <= all[1] * 1.002, "{all:?} together");
}

#[test]
fn affine_rows_are_those_of_mlx() {
    let rows = rows(include_bytes!("data/mlx.bin"));
    for Row { name, weights, bytes } in &rows {
        let parts: Vec<&str> = name.split(' ').collect();
        let float = match parts[2] {
            "s" => MlxFloat::F32,
            "h" => MlxFloat::F16,
            _ => MlxFloat::Bf16,
        };
        let (bits, group) = (parts[0].parse().unwrap(), parts[1].parse().unwrap());
        let affine = MlxAffine::new(bits, group, float).unwrap();
        let [codes, scales, biases] = encode_affine_row(affine, weights);
        assert!([codes, scales, biases].concat() == *bytes, "{name}: other bytes");
    }
    assert_eq!(rows.len(), 60);
}
