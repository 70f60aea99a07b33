//! Does a device compute what the reference does, and how fast is it? Small models of random
//! weights in each kind of format, without a file: a report that anybody can make and send.

use std::collections::BTreeMap;
use std::time::Instant;

use backend_reference::ReferenceBackend;
use device::{
    Backend, Capacity, LoadError, Program, RowInput, SlotReset, StepInputs, StepOutputs, Tape,
    TokenInput, WeightSource, WeightSpec, WeightView,
};
use graph::{
    AttentionBlock, AttentionInputs, Decoder, FeedForwardBlock, GatedBlock, HeadBlock, HeadOutput,
    LayerBlock, Matrix, MixerBlock, NormedHeads,
};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::quant_format::QuantFormat;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use ops::sample_rows::SampleParams;

use crate::{EngineError, EngineOptions, backends};

/// What a device said, held against the reference.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// In its own words.
    pub device: String,
    pub checks: Vec<SelfCheck>,
    /// Weights read in a second by steps of one token.
    pub decode_bytes_per_second: f64,
    /// Of a prompt of 256, in a model of so many weights.
    pub prompt_tokens_per_second: f64,
    pub weights: u64,
}

/// One format's model.
#[derive(Clone, Debug)]
pub struct SelfCheck {
    pub format: &'static str,
    /// Of logits, relative to the largest; or why there are none.
    pub difference: Result<f32, String>,
}

impl SelfCheck {
    /// Whether the device may be trusted with the format.
    pub fn is_good(&self) -> bool {
        self.difference.as_ref().is_ok_and(|difference| *difference <= BOUND)
    }
}

/// Keys, values and inputs of products may have 8 bits of mantissa or an integer's 8 bits; a wrong
/// kernel is off by about 1.
const BOUND: f32 = 0.05;

const FORMATS: [QuantFormat; 15] = [
    QuantFormat::F32,
    QuantFormat::F16,
    QuantFormat::Bf16,
    QuantFormat::Q4_0,
    QuantFormat::Q4_1,
    QuantFormat::Q5_0,
    QuantFormat::Q5_1,
    QuantFormat::Q8_0,
    QuantFormat::Q2K,
    QuantFormat::Q3K,
    QuantFormat::Q4K,
    QuantFormat::Q5K,
    QuantFormat::Q6K,
    QuantFormat::Iq4Nl,
    QuantFormat::Iq4Xs,
];

/// Checks all kinds of formats on a device, then measures it; takes seconds.
///
/// # Errors
/// When there is no such device, or it failed on the model that is measured.
pub fn self_test(device: &str) -> Result<SelfTest, EngineError> {
    let options = EngineOptions::new(std::path::PathBuf::new(), "");
    let opened = backends::open(device, &options)?;
    let backend = opened.backend.as_ref();
    let check = |format: QuantFormat| {
        let difference = difference(backend, format);
        SelfCheck { format: format.name(), difference: difference.map_err(|error| error.0) }
    };
    let checks = FORMATS.into_iter().map(check).collect();
    let speeds = speeds(backend).map_err(|error| EngineError::Option(error.0))?;
    let (decode_bytes_per_second, prompt_tokens_per_second, weights) = speeds;
    let device = backend.name().to_owned();
    Ok(SelfTest { device, checks, decode_bytes_per_second, prompt_tokens_per_second, weights })
}

/// Two layers of 256 columns, or four of 1,024 to be measured.
const SMALL: [u32; 4] = [2, 256, 512, 512];
const LARGE: [u32; 4] = [4, 1024, 4096, 8192];

const CAPACITY: Capacity = Capacity {
    step_tokens_max: 256,
    slots: 2,
    proposed_tokens_max: 0,
    block_count: 16,
    block_tokens: 32,
    states: 0,
};

/// The largest difference from the reference, of a prompt's end and the token behind it.
fn difference(backend: &dyn Backend, format: QuantFormat) -> Result<f32, LoadError> {
    let tape = tape(SMALL)?;
    let weights = RandomWeights::new(&tape, format);
    let answer = |backend: &dyn Backend| {
        let mut program = backend.load(tape.clone(), &weights, CAPACITY)?;
        let mut logits = run(program.as_mut(), 0, 70)?;
        logits.extend(run(program.as_mut(), 70, 1)?);
        Ok::<_, LoadError>(logits)
    };
    let (want, got) = (answer(&ReferenceBackend)?, answer(backend)?);
    let largest = want.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = want.iter().zip(&got).map(|(want, got)| (want - got).abs());
    // What is no number is as wrong as can be.
    let worst = worst.fold(0f32, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) });
    Ok(worst / largest)
}

/// Bytes of weights a second, tokens a second, weights.
fn speeds(backend: &dyn Backend) -> Result<(f64, f64, u64), LoadError> {
    let tape = tape(LARGE)?;
    let weights = RandomWeights::new(&tape, QuantFormat::Q4_0);
    let count = tape.weights.iter().map(|spec| u64::from(spec.rows) * u64::from(spec.cols)).sum();
    let mut program = backend.load(tape, &weights, CAPACITY)?;
    let bytes = program.memory().weights_bytes;
    let mut median = |start: u32, length: u32, times: usize| {
        let mut seconds = Vec::new();
        for _ in 0..times {
            let begin = Instant::now();
            run(program.as_mut(), start, length)?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok::<_, LoadError>(seconds[times / 2])
    };
    let prompt = median(0, 256, 3)?;
    let token = median(256, 1, 9)?;
    Ok((bytes as f64 / token, 256.0 / prompt, count))
}

/// Logits of the last of some tokens.
fn run(program: &mut dyn Program, start: u32, length: u32) -> Result<Vec<f32>, LoadError> {
    let mut inputs = StepInputs { keep_logits: true, ..StepInputs::default() };
    if start == 0 {
        let params = SampleParams::default();
        let (prompt, generated) = (Vec::new(), Vec::new());
        inputs.resets.push(SlotReset { slot: 0, params, prompt, generated, adapter: None });
    }
    let blocks_count = (start + length).div_ceil(CAPACITY.block_tokens);
    inputs.rows.push(RowInput {
        slot: 0,
        start,
        length,
        blocks_start: 0,
        blocks_count,
        sample_index: Some(0),
        proposed: 0,
    });
    inputs.blocks.extend(0..blocks_count);
    inputs.tokens.extend((start..start + length).map(|at| TokenInput::Known(at * 7 % 500)));
    let mut outputs = StepOutputs::default();
    program.run(&inputs, &mut outputs).map_err(|fault| LoadError(fault.0))?;
    Ok(outputs.logits)
}

fn tape([layers, width, inner, vocabulary]: [u32; 4]) -> Result<Tape, LoadError> {
    let (head_dim, heads, heads_kv) = (64, width / 64, width / 64 / 2);
    let layer = |index: u32| {
        let matrix = |name: &str| Matrix::whole(format!("{index} {name}"));
        LayerBlock {
            mixer: MixerBlock::Attention(AttentionBlock {
                norm: Some(format!("{index} norm")),
                inputs: AttentionInputs::Matrices {
                    weights: ["query", "key", "value"].map(matrix),
                    biases: [const { None }; 3],
                },
                output: matrix("output"),
                output_bias: None,
                head_norms: Some(NormedHeads::Each(
                    ["q norm", "k norm"].map(|name| format!("{index} {name}")),
                )),
                rotary: Some(Rotary {
                    pairing: Pairing::HalfSplit,
                    dims: head_dim,
                    base: 10_000.0,
                    scaling: RotaryScaling::None,
                }),
                growth: None,
                sinks: None,
                norm_after: None,
                shape: AttentionShape {
                    heads,
                    heads_kv,
                    head_dim,
                    scale: 0.125,
                    window: Window::Full,
                    soft_cap: None,
                },
            }),
            feed_forward: FeedForwardBlock {
                norm: Some(format!("{index} norm 2")),
                experts: None,
                gated: Some(GatedBlock {
                    gate: matrix("gate"),
                    up: matrix("up"),
                    down: matrix("down"),
                    activation: Activation::Silu,
                    inner,
                    share: None,
                }),
                norm_after: None,
            },
            per_layer: None,
            scale: None,
        }
    };
    let head = HeadBlock {
        norm: "norm".to_owned(),
        output: HeadOutput::Logits { matrix: "embedding".to_owned(), soft_cap: None },
    };
    graph::lower(&Decoder {
        width,
        vocabulary,
        epsilon: 1e-5,
        embedding: "embedding".to_owned(),
        embedding_scale: 1.0,
        per_layer: None,
        layers: (0..layers).map(layer).collect(),
        head,
        heads_kv,
        head_dim,
        heads,
    })
    .map_err(|error| LoadError(error.to_string()))
}

/// Tensors by name: format, rows, columns, bytes.
struct RandomWeights(BTreeMap<String, (QuantFormat, usize, usize, Vec<u8>)>);

impl RandomWeights {
    fn new(tape: &Tape, format: QuantFormat) -> Self {
        let mut state = 1u64;
        let mut tensor = |spec: &WeightSpec| {
            let (rows, cols) = (spec.rows as usize, spec.cols as usize);
            let format = if rows == 1 { QuantFormat::F32 } else { format };
            let count = rows * cols / format.block_elements() * format.block_bytes();
            let mut bytes = Vec::with_capacity(count + 8);
            while bytes.len() < count {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                bytes.extend((state >> 32).to_le_bytes().into_iter().take(4));
            }
            bytes.truncate(count);
            tame(format, rows, &mut bytes);
            (spec.name.clone(), (format, rows, cols, bytes))
        };
        Self(tape.weights.iter().map(&mut tensor).collect())
    }
}

/// Makes numbers of the size of weights out of any bytes.
fn tame(format: QuantFormat, rows: usize, bytes: &mut [u8]) {
    match format {
        QuantFormat::F32 => {
            for bytes in bytes.as_chunks_mut::<4>().0 {
                let unit = u32::from_le_bytes(*bytes) as f32 / u32::MAX as f32 - 0.5;
                // Norms are about 1.
                let value = if rows == 1 { 1.0 + 0.2 * unit } else { 0.2 * unit };
                *bytes = value.to_le_bytes();
            }
        }
        // Exponents of 2^-8 to 2^-5.
        QuantFormat::F16 => {
            bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|b| b[1] = b[1] & 0x8f | 0x20);
        }
        QuantFormat::Bf16 => {
            bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|b| b[1] = b[1] & 0x80 | 0x3c);
        }
        // Scales are f16 at even places: at most 0.12.
        _ => {
            bytes.iter_mut().for_each(|byte| *byte &= 0x2f);
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                // At most 0.0005.
                large_scales(format).iter().for_each(|&place| block[place] &= 0x0f);
            }
        }
    }
}

/// Where in a block the upper bytes are of scales that multiply large numbers: codes of eight bits,
/// or codes and their own scales. Weights beyond 1 make activations that f16 does not hold.
fn large_scales(format: QuantFormat) -> &'static [usize] {
    match format {
        QuantFormat::Q8_0 | QuantFormat::Iq4Nl | QuantFormat::Iq4Xs => &[1],
        QuantFormat::Q4K | QuantFormat::Q5K => &[1, 3],
        QuantFormat::Q3K => &[109],
        QuantFormat::Q6K => &[209],
        _ => &[],
    }
}

impl WeightSource for RandomWeights {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        let found = self.0.get(name).ok_or_else(|| LoadError(format!("no tensor {name}")))?;
        let &(format, rows, cols, ref bytes) = found;
        Ok(WeightView { format, rows, cols, bytes })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_processor_and_an_adapter_pass() {
        for device in ["cpu", "wgpu"] {
            let tested = match self_test(device) {
                Ok(tested) => tested,
                Err(error) => {
                    eprintln!("skipped: {error}");
                    continue;
                }
            };
            let bad: Vec<_> = tested.checks.iter().filter(|check| !check.is_good()).collect();
            assert!(bad.is_empty(), "{device}: {bad:?}");
            assert!(tested.decode_bytes_per_second > 0.0);
        }
    }

    /// A device that says something else is found out.
    #[test]
    fn a_wrong_answer_is_no_good() {
        let check = |difference| SelfCheck { format: "Q4_0", difference };
        assert!(check(Ok(1e-3)).is_good());
        assert!(!check(Ok(0.5)).is_good() && !check(Ok(f32::INFINITY)).is_good());
        assert!(!check(Err("it has no kernel".to_owned())).is_good());
    }
}
