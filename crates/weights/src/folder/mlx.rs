//! How did MLX quantize the weights of a folder? As `config.json` says, for each module, and as the
//! shapes confirm.
//!
//! A module is quantized if there is `<path>.scales`; its `<path>.weight` then holds codes as a
//! stream of bits in words of 32, and `<path>.biases` what codes of 0 mean, in the affine mode.
//! Some converters leave out which modules got other bits; the shapes tell.
//!
//! Source: `mlx/ops.cpp` of MLX, `mlx_lm/utils.py` and `mlx_lm/convert.py` of MLX-LM.

use ops::quant_format::{MlxAffine, QuantFormat};
use serde_json::Value as Json;

use super::config::{Config, shown};
use super::quantized::{Claim, Everything, Found, Quantized};
use crate::error::Quoted;
use crate::made_tensor::{Piece, Recipe, Stream};
use crate::safetensors::{Dtype, RawTensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

/// How a module is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    mode: Mode,
    bits: u32,
    group: u32,
}

/// What the settings say of all modules.
pub(super) struct Quantization<'a> {
    all: Config<'a>,
    default: Scheme,
}

impl<'a> Quantization<'a> {
    pub(super) fn read(all: Config<'a>) -> Result<Self, String> {
        Ok(Self { all, default: Scheme::read(&all)? })
    }

    /// What is said of one module; `None`: that it is not quantized.
    fn of(&self, path: &str) -> Result<Option<Scheme>, String> {
        match self.all.get(path) {
            None | Some(Json::Bool(true)) => Ok(Some(self.default)),
            Some(Json::Bool(false)) => Ok(None),
            Some(Json::Object(object)) => Scheme::read(&Config::new(object)).map(Some),
            Some(other) => {
                Err(format!("{} is {}, expected an object", self.all.named(path), shown(other)))
            }
        }
    }
}

impl Scheme {
    fn read(config: &Config<'_>) -> Result<Self, String> {
        // A module's own settings without a mode are affine, whatever the mode of all.
        let (mode, bits, group) = match config.text("mode")?.unwrap_or("affine") {
            "affine" => (Mode::Affine, 4, 64),
            "mxfp4" => (Mode::Mxfp4, 4, 32),
            "mxfp8" => (Mode::Mxfp8, 8, 32),
            "nvfp4" => (Mode::Nvfp4, 4, 16),
            other => {
                let named = config.named("mode");
                return Err(format!(
                    "{named} is \"{}\", supported: affine, mxfp4, mxfp8, nvfp4",
                    Quoted(other)
                ));
            }
        };
        let bits = config.integer("bits")?.unwrap_or(bits);
        let group = config.integer("group_size")?.unwrap_or(group);
        Ok(Self { mode, bits, group })
    }
}

impl Quantization<'_> {
    /// Codes are told by the scales beside them.
    pub(super) fn claim(
        &self,
        everything: &Everything<'_>,
        found: Found<'_>,
    ) -> Result<Claim, String> {
        let name = &found.tensor.name;
        let path = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
        if path.is_some_and(|path| everything.get(path, ".scales").is_some()) {
            return Ok(Claim::Beside);
        }
        let quantized = self.quantized(everything, found)?;
        Ok(quantized.map_or(Claim::Plain, |weight| Claim::Weights(vec![(name.clone(), weight)])))
    }

    /// `None` if the weight is not a quantized one.
    fn quantized(
        &self,
        everything: &Everything<'_>,
        Found { part, tensor: weight }: Found<'_>,
    ) -> Result<Option<Quantized>, String> {
        let Some(path) = weight.name.strip_suffix(".weight") else { return Ok(None) };
        let Some(Found { part: scales_part, tensor: scales }) = everything.get(path, ".scales")
        else {
            return Ok(None);
        };
        let Some(scheme) = self.of(path)? else {
            return Err("has scales, which the settings say it does not".to_owned());
        };
        let of_rows = |tensor: &RawTensor| tensor.shape.split_last().map(|(c, r)| (*c, r.to_vec()));
        let (Some((words, rows)), Some((groups, scale_rows))) = (of_rows(weight), of_rows(scales))
        else {
            return Err("is quantized and has no rows".to_owned());
        };
        if rows != scale_rows || weight.dtype != Dtype::U32 {
            return Err(format!(
                "of {} {:?} does not go with its scales of {:?}",
                weight.dtype.name(),
                weight.shape,
                scales.shape
            ));
        }
        let form = Form::of(scheme, words, groups, scales.dtype)?;
        let stream = |part, tensor: &RawTensor, block_bytes| Stream {
            piece: Piece { part, range: tensor.range.clone() },
            block_bytes,
        };
        let mut streams = vec![stream(scales_part, scales, form.scale_bytes)];
        match (scheme.mode, everything.get(path, ".biases")) {
            (Mode::Affine, Some(Found { part, tensor: biases }))
                if (biases.dtype, &biases.shape) == (scales.dtype, &scales.shape) =>
            {
                streams.push(stream(part, biases, form.scale_bytes));
            }
            (Mode::Affine, _) => return Err("has no biases like its scales".to_owned()),
            (_, None) => {}
            (_, Some(_)) => return Err("has biases, which its mode does not have".to_owned()),
        }
        streams.push(stream(part, weight, form.code_bytes));
        let mut dims: Vec<u64> = rows.iter().rev().copied().collect();
        dims.insert(0, groups.saturating_mul(form.format.block_elements() as u64));
        // The scales lie in a file, so there are no more of them than memory has bytes.
        let count = scales.range.len() / form.scale_bytes;
        Ok(Some(Quantized { format: form.format, dims, recipe: Recipe::Blocks { streams, count } }))
    }
}

/// Bytes of a block's parts.
struct Form {
    format: QuantFormat,
    scale_bytes: usize,
    code_bytes: usize,
}

impl Form {
    /// By what the settings say, if the shapes agree; else by the bits that the shapes tell.
    fn of(scheme: Scheme, words: u64, groups: u64, scales: Dtype) -> Result<Self, String> {
        let Scheme { mode, bits, group } = scheme;
        let row_bits = words.saturating_mul(32);
        let row_codes = groups.saturating_mul(u64::from(group));
        let told = if row_codes > 0 && row_bits.is_multiple_of(row_codes) {
            row_bits / row_codes
        } else {
            0
        };
        let wrong = || {
            format!(
                "has rows of {words} words and {groups} scales of {}, which are not {bits} bits in \
                 groups of {group} ({mode:?}), nor other bits in such groups",
                scales.name()
            )
        };
        let float = scales.float();
        let told = u8::try_from(told).map_err(|_| wrong())?;
        let (format, scale_bytes) = match (mode, float) {
            (Mode::Affine, Some(float)) => {
                let affine = MlxAffine::new(told, group as usize, float).ok_or_else(wrong)?;
                (QuantFormat::MlxAffine(affine), float.bytes())
            }
            (Mode::Mxfp4, None) if (told, group) == (4, 32) => (QuantFormat::Mxfp4, 1),
            (Mode::Mxfp8, None) if (told, group) == (8, 32) => (QuantFormat::Mxfp8, 1),
            (Mode::Nvfp4, None) if (told, group) == (4, 16) => (QuantFormat::Nvfp4, 1),
            _ => return Err(wrong()),
        };
        if mode != Mode::Affine && scales != Dtype::U8 {
            return Err(wrong());
        }
        Ok(Self { format, scale_bytes, code_bytes: group as usize * usize::from(told) / 8 })
    }
}
