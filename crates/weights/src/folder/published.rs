//! Which tensors make a weight that GPTQ, AWQ, compressed-tensors, or an FP8 or MXFP4 release
//! quantized, and in which format of ours is it?
//!
//! Names, dtypes and shapes tell; the settings say what they cannot: what means zero, and which
//! rows and columns share a scale. `conversion.rs` does the work when a weight is read.

use ops::quant_format::{MlxAffine, MlxFloat, QuantFormat};

use super::config::Config;
use super::quantized::{Claim, Everything, Found, Quantized};
use crate::conversion::{Bytes8, Integers, Order, ZeroCode, Zeros};
use crate::error::Quoted;
use crate::made_tensor::{Recipe, Stream};
use crate::safetensors::Dtype;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Published {
    Gptq(Groups),
    Awq(Groups),
    /// Bytes under scales; rows and columns that share one, where there is one for a block.
    /// Whole numbers in words, too.
    Scaled([u64; 2]),
    /// Experts of MXFP4, all others plain.
    GptOss,
}

/// How codes of GPTQ and AWQ share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    bits: u8,
    /// `None`: all columns.
    group: Option<u64>,
    /// Half of all codes means zero.
    is_symmetric: bool,
    /// Added to stored zeros.
    added: u8,
}

const BLOCK: [u64; 2] = [128, 128];

impl Published {
    /// # Errors
    /// When the method is not read, or one of its kinds.
    pub(super) fn read(method: &str, all: &Config<'_>) -> Result<Self, String> {
        match method {
            "gptq" => {
                let added = match all.text("checkpoint_format")?.unwrap_or("gptq") {
                    "gptq" => 1,
                    "gptq_v2" => 0,
                    other => return Err(unread(all, "checkpoint_format", other)),
                };
                let bits = all.required("bits", all.integer("bits")?)?;
                let bits = match bits {
                    2 | 3 | 4 | 8 => bits as u8,
                    other => return Err(unread(all, "bits", &other.to_string())),
                };
                let is_symmetric = all.flag("sym")?.unwrap_or(true);
                Ok(Published::Gptq(Groups { bits, group: group(all)?, is_symmetric, added }))
            }
            "awq" => {
                match all.text("version")?.unwrap_or("gemm") {
                    "gemm" | "GEMM" => {}
                    other => return Err(unread(all, "version", other)),
                }
                let key = if all.get("w_bit").is_some() { "w_bit" } else { "bits" };
                match all.integer(key)?.unwrap_or(4) {
                    4 => {}
                    other => return Err(unread(all, key, &other.to_string())),
                }
                let groups = Groups { bits: 4, group: group(all)?, is_symmetric: false, added: 0 };
                Ok(Published::Awq(groups))
            }
            "fp8" => Ok(Published::Scaled(block(all, "weight_block_size")?.unwrap_or(BLOCK))),
            "compressed-tensors" => {
                compressed_format(all)?;
                Ok(Published::Scaled(BLOCK))
            }
            "mxfp4" => Ok(Published::GptOss),
            other => Err(format!(
                "{} is \"{}\": weights quantized so are not read; get the model in bf16 or f16, \
                 quantized by MLX, GPTQ, AWQ, compressed-tensors or to FP8, or as GGUF",
                all.named("quant_method"),
                Quoted(other)
            )),
        }
    }

    pub(super) fn claim(
        self,
        everything: &Everything<'_>,
        found: Found<'_>,
    ) -> Result<Claim, String> {
        match self {
            Published::Gptq(groups) => words(everything, found, groups, Order::Columns),
            Published::Awq(groups) => words(everything, found, groups, Order::EightRows),
            Published::Scaled(block) => scaled(everything, found, block),
            Published::GptOss => gpt_oss(everything, found),
        }
    }
}

fn unread(all: &Config<'_>, key: &str, found: &str) -> String {
    format!(
        "{} is {}: weights quantized so are not read; get the model in bf16 or f16, or as GGUF",
        all.named(key),
        Quoted(found)
    )
}

fn group(all: &Config<'_>) -> Result<Option<u64>, String> {
    let key = if all.get("q_group_size").is_some() { "q_group_size" } else { "group_size" };
    if all.get(key).and_then(serde_json::Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    Ok(Some(u64::from(all.integer(key)?.unwrap_or(128).max(1))))
}

fn block(all: &Config<'_>, key: &str) -> Result<Option<[u64; 2]>, String> {
    let Some(list) = all.list(key)? else { return Ok(None) };
    let sizes: Option<Vec<u64>> = list.iter().map(serde_json::Value::as_u64).collect();
    match sizes.as_deref() {
        Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok(Some([rows, cols])),
        _ => Err(format!("{} must be two whole numbers above 0", all.named(key))),
    }
}

fn compressed_format(all: &Config<'_>) -> Result<(), String> {
    const KNOWN: [&str; 5] =
        ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense"];
    let format = all.text("format")?.unwrap_or("dense");
    if KNOWN.contains(&format) { Ok(()) } else { Err(unread(all, "format", format)) }
}

/// GPTQ and AWQ: `qweight`, `qzeros`, `scales`, and `g_idx` where columns were taken in another
/// order.
fn words(
    everything: &Everything<'_>,
    found: Found<'_>,
    groups: Groups,
    order: Order,
) -> Result<Claim, String> {
    let name = &found.tensor.name;
    if let Some(path) = name.strip_suffix(".qweight") {
        let weight = integers_in_words(everything, path, found, groups, order)?;
        return Ok(Claim::Weights(vec![(format!("{path}.weight"), weight)]));
    }
    let beside = [".qzeros", ".scales", ".g_idx"];
    let is_quantized = |path| everything.get(path, ".qweight").is_some();
    if beside.iter().any(|end| name.strip_suffix(end).is_some_and(is_quantized)) {
        return Ok(Claim::Beside);
    }
    // Their makers' code gives each quantized layer a bias, of zeros where the model has none.
    let is_bias = name.strip_suffix(".bias").is_some_and(is_quantized);
    if is_bias && everything.bytes(found).iter().all(|byte| *byte == 0) {
        return Ok(Claim::Beside);
    }
    Ok(Claim::Plain)
}

fn integers_in_words(
    everything: &Everything<'_>,
    path: &str,
    codes: Found<'_>,
    groups: Groups,
    order: Order,
) -> Result<Quantized, String> {
    let Groups { bits, group, is_symmetric, added } = groups;
    let wide = u64::from(bits);
    let (scales, scale_shape, float) = scales(everything, path, ".scales")?;
    let (&[first, second], &[group_count, rows], Dtype::I32) =
        (&*codes.tensor.shape, scale_shape, codes.tensor.dtype)
    else {
        return Err("is not two-dimensional, of whole numbers, with scales alike".to_owned());
    };
    let (cols, own_rows) = match order {
        Order::Columns => (first.saturating_mul(32) / wide, second),
        _ => (first, second.saturating_mul(8)),
    };
    let group = group.unwrap_or(cols);
    let zeros = everything.get(path, ".qzeros");
    let zero_shape = [group_count, rows.saturating_mul(wide) / 32];
    let fits = own_rows == rows
        && group > 0
        && rows.is_multiple_of(32)
        && cols.is_multiple_of(32)
        && cols.is_multiple_of(group)
        && cols / group == group_count
        && zeros.is_none_or(|z| z.tensor.dtype == Dtype::I32 && z.tensor.shape == zero_shape);
    if !fits {
        return Err(format!(
            "of shape {:?} with scales of {scale_shape:?} is not {bits} bits in groups of {group}",
            codes.tensor.shape
        ));
    }
    let zero = match (zeros.map(|zeros| Zeros { piece: zeros.piece(), added }), is_symmetric) {
        (zeros, true) => ZeroCode::Middle(zeros),
        (Some(zeros), false) => ZeroCode::Stored(zeros),
        (None, false) => return Err("has no qzeros, and its codes are not symmetric".to_owned()),
    };
    let order_of_columns = everything.get(path, ".g_idx");
    let groups_of = column_groups(everything, order_of_columns, cols, group)?;
    let sizes = [rows, cols, group];
    Form { codes, scales, float, zero, order, bits, sizes, groups_of }.put_together()
}

/// The group of each column, if it is not the one of its place.
fn column_groups(
    everything: &Everything<'_>,
    order: Option<Found<'_>>,
    cols: u64,
    group: u64,
) -> Result<Option<Box<[u32]>>, String> {
    let Some(found) = order else { return Ok(None) };
    if found.tensor.dtype != Dtype::I32 || found.tensor.shape != [cols] {
        return Err(format!("has a g_idx of shape {:?} for {cols} columns", found.tensor.shape));
    }
    let (words, _) = everything.bytes(found).as_chunks::<4>();
    let groups: Box<[u32]> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    // -1 for all: never filled in.
    let is_place = |(column, of): (u64, &u32)| u64::from(*of) == column / group;
    if (0..).zip(&groups).all(is_place) || groups.iter().all(|of| *of == u32::MAX) {
        return Ok(None);
    }
    match groups.iter().find(|of| u64::from(**of) >= cols / group) {
        Some(beyond) => Err(format!("has group {beyond} in its g_idx, of {}", cols / group)),
        None => Ok(Some(groups)),
    }
}

/// compressed-tensors and FP8: `weight_packed`, or `weight` in bytes, and `weight_scale`.
fn scaled(everything: &Everything<'_>, found: Found<'_>, block: [u64; 2]) -> Result<Claim, String> {
    let name = &found.tensor.name;
    if let Some(path) = name.strip_suffix(".weight_packed") {
        let weight = integers_in_rows(everything, path, found)?;
        return Ok(Claim::Weights(vec![(format!("{path}.weight"), weight)]));
    }
    let is_bytes = |dtype| matches!(dtype, Dtype::F8E4m3 | Dtype::I8);
    if let Some(path) = name.strip_suffix(".weight")
        && is_bytes(found.tensor.dtype)
    {
        let weight = match found.tensor.dtype {
            Dtype::I8 => signed_bytes(everything, path, found)?,
            _ => float_bytes(everything, path, found, block)?,
        };
        return Ok(Claim::Weights(vec![(name.clone(), weight)]));
    }
    // What scales activations in other engines is of no use here: activations are not in bytes.
    let beside = [
        "weight_scale_inv",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "input_scale",
        "input_zero_point",
        "activation_scale",
    ];
    let is_beside = name.rsplit_once('.').is_some_and(|(path, last)| {
        let is_packed = everything.get(path, ".weight_packed").is_some();
        let plain = everything.get(path, ".weight");
        let is_quantized = is_packed || plain.is_some_and(|w| is_bytes(w.tensor.dtype));
        beside.contains(&last) && is_quantized
    });
    Ok(if is_beside { Claim::Beside } else { Claim::Plain })
}

fn integers_in_rows(
    everything: &Everything<'_>,
    path: &str,
    codes: Found<'_>,
) -> Result<Quantized, String> {
    let shape = everything.get(path, ".weight_shape").ok_or("has no weight_shape")?;
    let (dims, _) = everything.bytes(shape).as_chunks::<8>();
    let (scales, scale_shape, float) = scales(everything, path, ".weight_scale")?;
    let (Dtype::I64, &[rows, cols], &[own_rows, words], &[scale_rows, group_count], Dtype::I32) = (
        shape.tensor.dtype,
        &*dims.iter().map(|dim| u64::from_le_bytes(*dim)).collect::<Vec<_>>(),
        &*codes.tensor.shape,
        scale_shape,
        codes.tensor.dtype,
    ) else {
        return Err("is not two-dimensional, of whole numbers, with scales alike".to_owned());
    };
    let row_bits = words.saturating_mul(32);
    let bits = row_bits.checked_div(cols).and_then(|bits| u8::try_from(bits).ok()).unwrap_or(0);
    let group = cols.checked_div(group_count).unwrap_or(0);
    let zeros = everything.get(path, ".weight_zero_point");
    let zero_shape = [rows.saturating_mul(u64::from(bits)) / 32, group_count];
    let fits = matches!(bits, 1..=6 | 8)
        && row_bits == cols.saturating_mul(u64::from(bits))
        && (own_rows, scale_rows) == (rows, rows)
        && cols.is_multiple_of(32)
        && group.saturating_mul(group_count) == cols
        && zeros.is_none_or(|z| {
            (z.tensor.dtype, &*z.tensor.shape, rows % 32) == (Dtype::I32, &zero_shape, 0)
        });
    if !fits {
        return Err(format!(
            "of {rows} rows and {cols} columns in words {:?} with scales of {scale_shape:?} is no \
             whole number of bits in groups of one size",
            codes.tensor.shape
        ));
    }
    let zeros = zeros.map(|zeros| Zeros { piece: zeros.piece(), added: 0 });
    let zero = zeros.map_or(ZeroCode::Middle(None), ZeroCode::Stored);
    let order_of_columns = everything.get(path, ".weight_g_idx");
    let groups_of = column_groups(everything, order_of_columns, cols, group)?;
    let (order, sizes) = (Order::Rows, [rows, cols, group]);
    Form { codes, scales, float, zero, order, bits, sizes, groups_of }.put_together()
}

fn signed_bytes(
    everything: &Everything<'_>,
    path: &str,
    codes: Found<'_>,
) -> Result<Quantized, String> {
    if everything.get(path, ".weight_zero_point").is_some() {
        return Err("is in bytes with zero points, which are not read".to_owned());
    }
    let (scales, scale_shape, float) = scales(everything, path, ".weight_scale")?;
    let (&[rows, cols], &[scale_rows, group_count]) = (&*codes.tensor.shape, scale_shape) else {
        return Err(format!("in bytes has scales of {scale_shape:?}, which are not read"));
    };
    let group = cols.checked_div(group_count).unwrap_or(0);
    if scale_rows != rows || group * group_count != cols || group == 0 || cols % 32 != 0 {
        let shape = &codes.tensor.shape;
        return Err(format!("of shape {shape:?} does not go with its scales of {scale_shape:?}"));
    }
    let (zero, order, sizes) = (ZeroCode::Middle(None), Order::SignedBytes, [rows, cols, group]);
    Form { codes, scales, float, zero, order, bits: 8, sizes, groups_of: None }.put_together()
}

fn float_bytes(
    everything: &Everything<'_>,
    path: &str,
    codes: Found<'_>,
    [block_rows, block_cols]: [u64; 2],
) -> Result<Quantized, String> {
    let suffix = if everything.get(path, ".weight_scale_inv").is_some() {
        ".weight_scale_inv"
    } else {
        ".weight_scale"
    };
    let (scales, scale_shape, scale_float) = scales(everything, path, suffix)?;
    let &[rows, cols] = &*codes.tensor.shape else {
        return Err(format!("in FP8 has shape {:?}, must be a matrix", codes.tensor.shape));
    };
    if rows == 0 || cols == 0 {
        return Err("in FP8 is empty".to_owned());
    }
    let of_blocks = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
    let block = match *scale_shape {
        [] | [1] | [1, 1] => [rows, cols],
        [count] | [count, 1] if count == rows => [1, cols],
        [down, across] if [down, across] == of_blocks => [block_rows, block_cols],
        _ => {
            return Err(format!(
                "of shape {:?} has scales of {scale_shape:?}: not one, nor one a row, nor one for \
                 {block_rows} rows and {block_cols} columns",
                codes.tensor.shape
            ));
        }
    };
    // Each lies in a file in memory, so it fits.
    let recipe = Recipe::Bytes8(Box::new(Bytes8 {
        codes: codes.piece(),
        scales: scales.piece(),
        scale_float,
        rows: rows as usize,
        cols: cols as usize,
        block: (block[0] as usize, block[1] as usize),
    }));
    Ok(Quantized { format: QuantFormat::Bf16, dims: vec![cols, rows], recipe })
}

/// A weight's scales: where, their shape, their type.
fn scales<'a>(
    everything: &Everything<'a>,
    path: &str,
    suffix: &str,
) -> Result<(Found<'a>, &'a [u64], MlxFloat), String> {
    let found = everything.get(path, suffix).ok_or_else(|| format!("has no {}", &suffix[1..]))?;
    let float = found.tensor.dtype.float();
    let float = float.ok_or_else(|| format!("has scales in {}", found.tensor.dtype.name()))?;
    Ok((found, &found.tensor.shape, float))
}

/// Whole numbers, checked.
struct Form<'a> {
    codes: Found<'a>,
    scales: Found<'a>,
    float: MlxFloat,
    zero: ZeroCode,
    order: Order,
    bits: u8,
    /// Rows, columns, and columns that share a scale.
    sizes: [u64; 3],
    groups_of: Option<Box<[u32]>>,
}

impl Form<'_> {
    /// In the format that holds them exactly.
    fn format(&self) -> Result<QuantFormat, String> {
        let float = match (self.groups_of.is_some(), &self.zero) {
            (true, _) => {
                return Ok(self.float.format());
            }
            (false, ZeroCode::Middle(_)) => self.float,
            (false, ZeroCode::Stored(_)) => MlxFloat::F32,
        };
        let [.., group] = self.sizes;
        let block = [128, 64, 32].into_iter().find(|block| group.is_multiple_of(*block as u64));
        let affine = block.and_then(|block| MlxAffine::new(self.bits, block, float));
        let wrong = || format!("has groups of {group}; read are multiples of 32");
        affine.map(QuantFormat::MlxAffine).ok_or_else(wrong)
    }

    fn put_together(self) -> Result<Quantized, String> {
        let format = self.format()?;
        let [cols, rows] = [self.sizes[1], self.sizes[0]];
        // Each lies in a file in memory, so it fits.
        let sizes = self.sizes.map(|size| size as usize);
        let recipe = Recipe::Integers(Box::new(Integers {
            codes: self.codes.piece(),
            scales: self.scales.piece(),
            scale_float: self.float,
            zero: self.zero,
            order: self.order,
            rows: sizes[0],
            cols: sizes[1],
            bits: self.bits,
            group: sizes[2],
            groups_of: self.groups_of,
            format,
        }));
        Ok(Quantized { format, dims: vec![cols, rows], recipe })
    }
}

/// `<experts>.<matrix>_blocks` and `_scales`; gate and up are one matrix, row by row in turn, and
/// so are their biases.
fn gpt_oss(everything: &Everything<'_>, found: Found<'_>) -> Result<Claim, String> {
    let name = &found.tensor.name;
    let biases = [("gate_up_proj_bias", true), ("down_proj_bias", false)];
    for (end, alternates) in biases {
        let Some(path) = name.strip_suffix(end) else { continue };
        let (&[experts, width], Some(format)) = (&*found.tensor.shape, found.tensor.dtype.format())
        else {
            return Err("is no matrix of floats".to_owned());
        };
        let element = format.block_bytes();
        let stream = || vec![Stream { piece: found.piece(), block_bytes: element }];
        let parts = expert_parts(alternates);
        let weights = parts.iter().map(|&(stem, first)| {
            let recipe = first.map_or(Recipe::Copy(found.piece()), |first| {
                Recipe::EverySecondRow { streams: stream(), row_blocks: 1, first }
            });
            let dims = vec![width / parts.len() as u64, experts];
            (format!("{path}{stem}.bias"), Quantized { format, dims, recipe })
        });
        return check_pairs(width, alternates).map(|()| Claim::Weights(weights.collect()));
    }
    if let Some(path) = name.strip_suffix("_scales")
        && everything.get(path, "_blocks").is_some()
    {
        return Ok(Claim::Beside);
    }
    let Some(path) = name.strip_suffix("_blocks") else { return Ok(Claim::Plain) };
    let scales = everything.get(path, "_scales").ok_or("has no scales beside it")?;
    let (&[experts, rows, groups, 16], &[e, r, g]) = (&*found.tensor.shape, &*scales.tensor.shape)
    else {
        return Err(format!("of shape {:?} is not blocks of 16 bytes", found.tensor.shape));
    };
    let dtypes = (found.tensor.dtype, scales.tensor.dtype);
    if [experts, rows, groups] != [e, r, g] || dtypes != (Dtype::U8, Dtype::U8) {
        return Err(format!("does not go with its scales of {:?}", scales.tensor.shape));
    }
    let (path, alternates) = match path.strip_suffix("gate_up_proj") {
        Some(path) => (path, true),
        None => (path.strip_suffix("down_proj").ok_or("is of no known matrix")?, false),
    };
    check_pairs(rows, alternates)?;
    let parts = expert_parts(alternates);
    let weights = parts.iter().map(|&(stem, first)| {
        let streams = vec![
            Stream { piece: scales.piece(), block_bytes: 1 },
            Stream { piece: found.piece(), block_bytes: 16 },
        ];
        let recipe = match first {
            Some(first) => Recipe::EverySecondRow { streams, row_blocks: groups as usize, first },
            None => Recipe::Blocks { streams, count: scales.tensor.range.len() },
        };
        let dims = vec![groups.saturating_mul(32), rows / parts.len() as u64, experts];
        let weight = Quantized { format: QuantFormat::Mxfp4, dims, recipe };
        (format!("{path}{stem}.weight"), weight)
    });
    Ok(Claim::Weights(weights.collect()))
}

/// The matrices of one tensor of experts, and from which row on each has every second one.
fn expert_parts(alternates: bool) -> &'static [(&'static str, Option<usize>)] {
    if alternates {
        &[("gate_proj", Some(0)), ("up_proj", Some(1))]
    } else {
        &[("down_proj", None)]
    }
}

fn check_pairs(rows: u64, alternates: bool) -> Result<(), String> {
    if alternates && !rows.is_multiple_of(2) {
        return Err(format!("has {rows} rows, which are not gates and ups in turn"));
    }
    Ok(())
}
