//! Which small models must a device run? Every format, ragged shapes, and what families have.
//!
//! Each is a tape of two layers; `device_tensors` has random weights for it, `device_steps` steps.

use device::Tape;
use graph::{
    ApartNorms, AttentionBlock, AttentionInputs, Decoder, ExpertsBlock, FeedForwardBlock,
    GatedBlock, HeadBlock, HeadOutput, LayerBlock, Matrix, MixerBlock, NormedHeads,
};
use ops::experts::{Routing, Scoring};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::quant_format::{MlxAffine, MlxFloat, QuantFormat};
use ops::rotary::{Pairing, Rotary, RotaryScaling};

/// Tokens of every model.
pub const VOCABULARY: u32 = 333;

/// A model of two layers, by its sizes and what is special in it.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub format: QuantFormat,
    /// Of up, value and the second layer, where they differ.
    pub other: QuantFormat,
    pub width: u32,
    pub inner: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub pairing: Pairing,
    pub window: Window,
    pub soft_cap: Option<f32>,
    pub activation: Activation,
    pub extras: &'static [Extra],
}

/// What only some families have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extra {
    Biases,
    HeadNorms,
    Sinks,
    NormsAfter,
    CappedLogits,
    /// The second layer sees 40 positions, turns slower and in half of its heads' dims.
    LayersDiffer,
    /// The second layer knows no positions.
    NoPositions,
    /// Experts instead of the one feed-forward; or beside it.
    Experts(Scoring),
    Shared,
    /// Experts are chosen from two of four groups, with a bias of the choice.
    Groups,
    /// Experts, their router and the feed-forward beside them have norms of their own, the router's
    /// scores are blunted, and each expert's weights are scaled.
    Apart,
}

impl Model {
    pub fn has(&self, extra: Extra) -> bool {
        self.extras.contains(&extra)
    }

    /// How experts are weighed, where there are any.
    pub fn scoring(&self) -> Option<Scoring> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::Experts(scoring) => Some(*scoring),
            _ => None,
        })
    }
}

/// The plainest of them.
pub const PLAIN: Model = Model {
    format: QuantFormat::Q4_0,
    other: QuantFormat::Q4_0,
    width: 256,
    inner: 512,
    heads: 4,
    heads_kv: 2,
    head_dim: 64,
    pairing: Pairing::Adjacent,
    window: Window::Full,
    soft_cap: None,
    activation: Activation::Silu,
    extras: &[],
};

/// All of GGUF, and of MLX each number of bits, group and kind of scale.
fn formats() -> Vec<QuantFormat> {
    let mut formats = QuantFormat::ALL.to_vec();
    let affine = [
        (1, 32, MlxFloat::F16),
        (2, 64, MlxFloat::F32),
        (3, 128, MlxFloat::Bf16),
        (4, 64, MlxFloat::Bf16),
        (5, 128, MlxFloat::F16),
        (6, 64, MlxFloat::F16),
        (8, 64, MlxFloat::Bf16),
    ];
    let affine =
        affine.into_iter().filter_map(|(bits, group, float)| MlxAffine::new(bits, group, float));
    formats.extend(affine.map(QuantFormat::MlxAffine));
    formats.extend([QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4]);
    formats
}

/// Every format, and shapes that are no multiples of anything.
pub fn models() -> Vec<(String, Model)> {
    let mut models: Vec<(String, Model)> = formats()
        .into_iter()
        .map(|format| (format.name().to_owned(), Model { format, other: format, ..PLAIN }))
        .collect();
    let small = |width, inner, heads, heads_kv, head_dim| Model {
        format: QuantFormat::F32,
        other: QuantFormat::F32,
        width,
        inner,
        heads,
        heads_kv,
        head_dim,
        ..PLAIN
    };
    let mut add = |name: &str, model| models.push((name.to_owned(), model));
    add("ragged", small(97, 53, 3, 1, 22));
    add("tiny heads", Model { pairing: Pairing::HalfSplit, ..small(64, 96, 4, 2, 16) });
    add("heads of 80", Model { activation: Activation::GeluTanh, ..small(160, 224, 2, 2, 80) });
    add("heads of 128", small(256, 96, 8, 2, 128));
    add("heads of 256", small(96, 160, 4, 1, 256));
    add("16 share a key", small(64, 64, 16, 1, 32));
    add("window", Model { window: Window::Sliding(70), ..small(64, 96, 2, 1, 32) });
    add(
        "soft cap",
        Model { soft_cap: Some(3.0), extras: &[Extra::Biases], ..small(64, 96, 2, 2, 32) },
    );
    let extra = |extras, head_dim| Model { extras, ..small(64, 96, 4, 2, head_dim) };
    add("head norms", extra(&[Extra::HeadNorms], 48));
    add("sinks", extra(&[Extra::Sinks, Extra::Biases], 32));
    add("norms behind blocks", extra(&[Extra::NormsAfter, Extra::CappedLogits], 64));
    let window = Window::Sliding(90);
    add("layers that differ", Model { window, ..extra(&[Extra::LayersDiffer], 32) });
    add("windows of some layers", extra(&[Extra::LayersDiffer, Extra::Sinks], 32));
    add("layers without positions", extra(&[Extra::NoPositions, Extra::HeadNorms], 32));
    models.extend(mixtures());
    let mut add = |name: &str, model| models.push((name.to_owned(), model));
    let mixed = Model { other: QuantFormat::Q6K, format: QuantFormat::Q4K, ..PLAIN };
    add("mixed", mixed);
    add("mixed floats", Model { format: QuantFormat::Q4_0, other: QuantFormat::Bf16, ..PLAIN });
    models
}

/// Mixtures of experts, in every form that a stack of them can have.
pub fn mixtures() -> Vec<(String, Model)> {
    const NORMED: Extra = Extra::Experts(Scoring::SoftmaxNormed);
    const PLAINLY: &[Extra] = &[NORMED, Extra::HeadNorms];
    const APART: &[Extra] = &[NORMED, Extra::Shared, Extra::Apart, Extra::NormsAfter];
    let named = |format: QuantFormat| format!("experts in {}", format.name());
    let of = |format| Model { format, other: format, extras: PLAINLY, ..PLAIN };
    let mut models: Vec<(String, Model)> =
        formats().into_iter().map(|format| (named(format), of(format))).collect();
    let small = |extras, inner| Model {
        format: QuantFormat::F32,
        other: QuantFormat::F32,
        width: 96,
        inner,
        heads: 2,
        heads_kv: 1,
        head_dim: 32,
        extras,
        ..PLAIN
    };
    let mut add = |name: &str, model| models.push((name.to_owned(), model));
    add("experts, ragged", small(&[Extra::Experts(Scoring::Softmax)], 37));
    let clamped = &[Extra::Experts(Scoring::SoftmaxOfChosen), Extra::Biases];
    let activation = Activation::ClampedSilu;
    add("experts, biased and clamped", Model { activation, ..small(clamped, 40) });
    let grouped = &[Extra::Experts(Scoring::SigmoidNormed), Extra::Groups, Extra::Shared];
    add("experts in groups, and one of all", small(grouped, 64));
    let aside = &[Extra::Experts(Scoring::Sigmoid), Extra::NormsAfter];
    add("experts that are normed after", small(aside, 64));
    let activation = Activation::GeluTanh;
    add("experts apart, and scaled", Model { activation, ..small(APART, 64) });
    // Widths that are cut into one, two, four and eight sums.
    let wide = |width, inner| Model { width, inner, extras: PLAINLY, ..PLAIN };
    add("experts of two sums", wide(1024, 1024));
    add("experts of four sums and one", wide(2048, 256));
    add("experts of one sum and eight", wide(256, 4096));
    let mixed = Model { other: QuantFormat::Q6K, format: QuantFormat::Q4K, ..of(QuantFormat::F32) };
    add("mixed experts", mixed);
    models
}

/// Two layers of it.
///
/// # Panics
/// Never: the shapes belong together.
pub fn tape(model: &Model) -> Tape {
    let named = |name: &str| name.to_owned();
    let has = |extra| model.has(extra);
    let layer = |index: u32| LayerBlock {
        mixer: MixerBlock::Attention(AttentionBlock {
            norm: Some(format!("{index}.norm")),
            inputs: AttentionInputs::Matrices {
                weights: ["query", "key", "value.other"]
                    .map(|name| Matrix::whole(format!("{index}.{name}"))),
                biases: ["q", "k", "v"]
                    .map(|name| has(Extra::Biases).then(|| format!("{index}.bias {name}"))),
            },
            output: Matrix::whole(format!("{index}.output")),
            output_bias: has(Extra::Biases).then(|| format!("{index}.bias o")),
            head_norms: has(Extra::HeadNorms)
                .then(|| ["query", "key"].map(|name| format!("{index}.head norm {name}")))
                .map(NormedHeads::Each),
            rotary: rotary(model, index),
            growth: None,
            sinks: has(Extra::Sinks).then(|| format!("{index}.sinks")),
            norm_after: has(Extra::NormsAfter).then(|| format!("{index}.norm after")),
            shape: AttentionShape {
                heads: model.heads,
                heads_kv: model.heads_kv,
                head_dim: model.head_dim,
                scale: 1.0 / (model.head_dim as f32).sqrt(),
                window: match (index, has(Extra::LayersDiffer)) {
                    (1, true) => Window::Sliding(40),
                    _ => model.window,
                },
                soft_cap: model.soft_cap,
            },
        }),
        feed_forward: FeedForwardBlock {
            norm: Some(format!("{index}.norm 2")),
            experts: model.scoring().map(|scoring| experts(model, scoring, index)),
            gated: (model.scoring().is_none() || has(Extra::Shared)).then(|| GatedBlock {
                gate: Matrix::whole(format!("{index}.gate")),
                up: Matrix::whole(format!("{index}.up.other")),
                down: Matrix::whole(format!("{index}.down")),
                activation: model.activation,
                inner: model.inner,
                share: None,
            }),
            norm_after: has(Extra::NormsAfter).then(|| format!("{index}.norm after 2")),
        },
        per_layer: None,
        scale: None,
    };
    graph::lower(&Decoder {
        width: model.width,
        vocabulary: VOCABULARY,
        epsilon: 1e-5,
        embedding: named("embedding"),
        embedding_scale: 1.0,
        layers: vec![layer(0), layer(1)],
        per_layer: None,
        head: HeadBlock {
            norm: named("head norm"),
            output: HeadOutput::Logits {
                matrix: named("embedding"),
                soft_cap: has(Extra::CappedLogits).then_some(2.0),
            },
        },
        heads_kv: model.heads_kv,
        head_dim: model.head_dim,
        heads: model.heads,
    })
    .expect("invariant: the shapes belong together")
}

fn experts(model: &Model, scoring: Scoring, layer: u32) -> ExpertsBlock {
    let (groups, groups_used) = if model.has(Extra::Groups) { (4, 2) } else { (1, 1) };
    let of = |name: &str| format!("{layer}.experts {name}");
    ExpertsBlock {
        router: of("router"),
        router_bias: model.has(Extra::Biases).then(|| of("router bias")),
        choice_bias: model.has(Extra::Groups).then(|| of("choice bias")),
        weight_scales: model.has(Extra::Apart).then(|| of("scales")),
        apart: model.has(Extra::Apart).then(|| ApartNorms {
            router: of("router norm"),
            experts: of("norm"),
            experts_after: of("norm after"),
            gated_after: format!("{layer}.gated norm after"),
        }),
        gate: of("gate"),
        up: of("up.other"),
        down: of("down.other"),
        biases: model.has(Extra::Biases).then(|| ["gate bias", "up bias", "down bias"].map(of)),
        routing: Routing {
            experts: 12,
            used: 3,
            scoring,
            groups,
            groups_used,
            scale: 1.5,
            sharpness: if model.has(Extra::Apart) { 0.25 } else { 1.0 },
        },
        activation: model.activation,
        inner: model.inner,
    }
}

fn rotary(model: &Model, layer: u32) -> Option<Rotary> {
    let plain = Rotary {
        pairing: model.pairing,
        dims: model.head_dim / 2 * 2,
        base: 10_000.0,
        scaling: RotaryScaling::None,
    };
    match layer {
        1 if model.has(Extra::NoPositions) => None,
        1 if model.has(Extra::LayersDiffer) => Some(Rotary {
            dims: model.head_dim / 4 * 2,
            scaling: RotaryScaling::Linear { factor: 4.0 },
            ..plain
        }),
        _ => Some(plain),
    }
}
