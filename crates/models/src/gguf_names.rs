//! What are the tensors of a decoder called? The names of GGUF files, which all formats are read
//! by, once for all families.

use graph::{
    ApartNorms, AttentionBlock, Decoder, FeedForwardBlock, GatedBlock, HeadBlock, LayerBlock,
    Matrix,
};
use graph::{Classifier, Encoder, EncoderGate, EncoderLayer, EncoderMatrix, EncoderOutput};
use graph::{DeltaBlock, DeltaMatrices, MixerBlock};
use graph::{ExpertsBlock, HeadOutput, LatentBlock, NormedHeads};
use graph::{FittedBlock, FittedKeys, PerLayerBlock, PerLayerInputs};
use ops::EmbedBy;
use ops::paged_attention::AttentionShape;

use crate::spec::{
    AttentionInputs, Beside, DecoderSpec, DeltaGates, DeltaSpec, Dense, Embedding,
    EncoderFeedForward, EncoderSpec, ExpertsSpec, FeedForward, HeadNorms, LatentSpec, LayerSpec,
    Mixer, Norms, Output, OwnHeads, OwnKeys, PerLayerSpec, ScoreHead, Sinks, Stored,
};

/// The blocks of a decoder.
pub(crate) fn decoder(spec: &DecoderSpec) -> Decoder {
    let dims = &spec.dims;
    let output = match spec.embedding {
        Embedding::Tied => "token_embd.weight",
        Embedding::Untied => "output.weight",
    };
    Decoder {
        width: dims.width,
        vocabulary: dims.vocabulary,
        epsilon: spec.epsilon,
        embedding: "token_embd.weight".to_owned(),
        embedding_scale: spec.embedding_scale,
        per_layer: spec.per_layer.map(|PerLayerSpec { width, layers }| PerLayerInputs {
            table: "per_layer_token_embd.weight".to_owned(),
            projection: "per_layer_model_proj.weight".to_owned(),
            norm: "per_layer_proj_norm.weight".to_owned(),
            width,
            layers,
        }),
        layers: (0..).zip(&spec.layers).map(|(index, layer)| block(spec, index, layer)).collect(),
        head: HeadBlock {
            norm: "output_norm.weight".to_owned(),
            output: match spec.output {
                Output::Logits => {
                    HeadOutput::Logits { matrix: output.to_owned(), soft_cap: spec.logit_soft_cap }
                }
                Output::Vector(pooling) => HeadOutput::Vector(pooling),
                Output::Score(ScoreHead::Answers(tokens)) => {
                    HeadOutput::Answers { matrix: output.to_owned(), tokens: tokens.into() }
                }
                Output::Score(ScoreHead::Classifier { labels, has_bias, dense }) => {
                    HeadOutput::Scores(classifier(labels, has_bias, dense))
                }
            },
        },
        heads: dims.heads,
        heads_kv: dims.heads_kv,
        head_dim: dims.head_dim,
    }
}

fn block(spec: &DecoderSpec, index: u32, layer: &LayerSpec) -> LayerBlock {
    let names = Names { layer: index };
    let after = |stem| match spec.norms {
        Norms::Before | Norms::BeforeByOtherName => None,
        Norms::BeforeAndAfter | Norms::After => Some(names.weight(stem)),
    };
    let before = match spec.norms {
        Norms::Before | Norms::BeforeAndAfter => Some("ffn_norm"),
        Norms::BeforeByOtherName => Some("post_attention_norm"),
        Norms::After => None,
    };
    LayerBlock {
        mixer: match &layer.mixer {
            Mixer::Attention => MixerBlock::Attention(AttentionBlock {
                norm_after: after("post_attention_norm"),
                ..attention(spec, layer, &names)
            }),
            Mixer::Delta(spec) => MixerBlock::Delta(delta(spec, &names)),
        },
        feed_forward: FeedForwardBlock {
            norm: before.map(|stem| names.weight(stem)),
            gated: gated(spec, layer, &names),
            experts: experts(layer.feed_forward, &names),
            norm_after: after("post_ffw_norm"),
        },
        per_layer: spec.per_layer.map(|_| PerLayerBlock {
            gate: names.weight("inp_gate"),
            projection: names.weight("proj"),
            norm_after: names.weight("post_norm"),
        }),
        scale: spec.scales_layers.then(|| names.weight("layer_output_scale")),
    }
}

fn classifier(labels: u32, has_bias: bool, dense: Option<Dense>) -> Classifier {
    let named = |name: &str| name.to_owned();
    Classifier {
        dense: dense.map(|dense| (named("cls.weight"), dense.has_bias.then(|| named("cls.bias")))),
        output: named("cls.output.weight"),
        output_bias: has_bias.then(|| named("cls.output.bias")),
        labels,
    }
}

/// The blocks of an encoder.
pub(crate) fn encoder(spec: &DecoderSpec, encoder: &EncoderSpec) -> Encoder {
    let dims = &spec.dims;
    let table = |name: &str, rows: Option<u32>, by| rows.map(|rows| (name.to_owned(), rows, by));
    let from = encoder.positions_from;
    let positions = table("position_embd.weight", encoder.positions, EmbedBy::Position { from });
    let by_text = encoder.separator.map(|separator| EmbedBy::Text { separator });
    let types = table("token_types.weight", encoder.types, by_text.unwrap_or(EmbedBy::First));
    Encoder {
        width: dims.width,
        vocabulary: dims.vocabulary,
        heads: dims.heads,
        head_dim: dims.head_dim,
        inner: dims.feed_forward,
        epsilon: spec.epsilon,
        embedding: "token_embd.weight".to_owned(),
        more: positions.into_iter().chain(types).collect(),
        embedding_norm: "token_embd_norm".to_owned(),
        layers: (0..)
            .zip(&spec.layers)
            .map(|(at, layer)| encoder_layer(spec, encoder, at, layer))
            .collect(),
        output: match spec.output {
            Output::Vector(pooling) => EncoderOutput::Vector(pooling),
            Output::Score(ScoreHead::Classifier { labels, has_bias, dense }) => {
                EncoderOutput::Scores(classifier(labels, has_bias, dense))
            }
            Output::Logits | Output::Score(ScoreHead::Answers(_)) => {
                unreachable!("audited: an encoder has no words")
            }
        },
    }
}

fn encoder_layer(
    spec: &DecoderSpec,
    encoder: &EncoderSpec,
    index: u32,
    layer: &LayerSpec,
) -> EncoderLayer {
    let names = Names { layer: index };
    let matrix = |stem: &str, weight| EncoderMatrix {
        weight,
        bias: encoder.has_biases.then(|| names.bias(stem)),
    };
    let whole = |stem: &str| matrix(stem, names.whole(stem));
    let rows = spec.dims.heads * spec.dims.head_dim;
    let stems = ["attn_q", "attn_k", "attn_v"];
    let fused = |place: u32| EncoderMatrix {
        weight: Matrix::part(names.weight("attn_qkv"), place * rows, 3 * rows),
        bias: None,
    };
    EncoderLayer {
        inputs: if encoder.is_fused { [0, 1, 2].map(fused) } else { stems.map(whole) },
        rotary: layer.rotary.clone(),
        output: whole("attn_output"),
        attention_norm: format!("blk.{index}.attn_output_norm"),
        up: whole("ffn_up"),
        gate: match encoder.feed_forward {
            EncoderFeedForward::Plain(curve) => EncoderGate::Plain(curve),
            EncoderFeedForward::Gated(activation) => {
                EncoderGate::Gated(whole("ffn_gate"), activation)
            }
        },
        down: whole("ffn_down"),
        output_norm: format!("blk.{index}.layer_output_norm"),
    }
}

struct Names {
    layer: u32,
}

impl Names {
    fn weight(&self, stem: &str) -> String {
        format!("blk.{}.{stem}.weight", self.layer)
    }

    fn bias(&self, stem: &str) -> String {
        format!("blk.{}.{stem}.bias", self.layer)
    }

    fn scale(&self, stem: &str) -> String {
        format!("blk.{}.{stem}.scale", self.layer)
    }

    fn whole(&self, stem: &str) -> Matrix {
        Matrix::whole(self.weight(stem))
    }
}

fn attention(spec: &DecoderSpec, layer: &LayerSpec, names: &Names) -> AttentionBlock {
    let dims = &spec.dims;
    let stems = ["attn_q", "attn_k", "attn_v"];
    let bias = |at: usize| spec.attention.biases[at].then(|| names.bias(stems[at]));
    let (heads, kv) = (dims.heads * dims.head_dim, dims.heads_kv * dims.head_dim);
    let together = |first| Matrix::part(names.weight("attn_qkv"), first, heads + 2 * kv);
    let biases = [bias(0), bias(1), bias(2)];
    let head_norms = ["attn_q_norm", "attn_k_norm"].map(|stem| names.weight(stem));
    AttentionBlock {
        norm: (spec.norms != Norms::After).then(|| names.weight("attn_norm")),
        inputs: match spec.attention.inputs {
            _ if layer.own_heads.is_some() => fitted(layer.own_heads, names),
            AttentionInputs::Matrices(Stored::Apart) => graph::AttentionInputs::Matrices {
                weights: stems.map(|stem| names.whole(stem)),
                biases,
            },
            AttentionInputs::Matrices(Stored::Together) => graph::AttentionInputs::Matrices {
                weights: [0, heads, heads + kv].map(together),
                biases,
            },
            AttentionInputs::Gated => {
                graph::AttentionInputs::Gated(stems.map(|stem| names.whole(stem)))
            }
            AttentionInputs::Latent(spec) => graph::AttentionInputs::Latent(latent(&spec, names)),
        },
        output: names.whole("attn_output"),
        output_bias: spec.attention.biases[3].then(|| names.bias("attn_output")),
        head_norms: match spec.attention.head_norms {
            HeadNorms::None => None,
            HeadNorms::BeforeRotation => Some(NormedHeads::Each(head_norms)),
            HeadNorms::AcrossHeads => Some(NormedHeads::Across(head_norms)),
        },
        rotary: layer.rotary.clone(),
        growth: spec.attention.growth,
        sinks: match spec.attention.sinks {
            Sinks::None => None,
            Sinks::OnePerHead => Some(names.weight("attn_sinks")),
        },
        shape: AttentionShape {
            heads: dims.heads,
            heads_kv: dims.heads_kv,
            head_dim: dims.head_dim,
            scale: spec.attention.scale,
            window: layer.window,
            soft_cap: spec.attention.soft_cap,
        },
        norm_after: None,
    }
}

fn fitted(own: Option<OwnHeads>, names: &Names) -> graph::AttentionInputs {
    let OwnHeads { head_dim, heads_kv, keys } = own.expect("invariant: the caller saw them");
    let own = |value| FittedKeys::Own {
        key: names.whole("attn_k"),
        key_norm: names.weight("attn_k_norm"),
        value,
    };
    graph::AttentionInputs::Fitted(FittedBlock {
        query: names.whole("attn_q"),
        query_norm: names.weight("attn_q_norm"),
        keys: match keys {
            OwnKeys::Two => own(Some(names.whole("attn_v"))),
            OwnKeys::One => own(None),
            OwnKeys::Of(layer) => FittedKeys::Of(layer),
        },
        head_dim,
        heads_kv,
    })
}

fn delta(spec: &DeltaSpec, names: &Names) -> DeltaBlock {
    let (mixed, gate) = (names.whole("attn_qkv"), names.whole("attn_gate"));
    DeltaBlock {
        norm: names.weight("attn_norm"),
        inputs: match spec.gates {
            DeltaGates::Apart => DeltaMatrices::Apart {
                mixed,
                gate,
                decay: names.whole("ssm_alpha"),
                strength: names.whole("ssm_beta"),
            },
            DeltaGates::Paired => {
                DeltaMatrices::PairedGates { mixed, gate, strength_decay: names.whole("ssm_ba") }
            }
        },
        convolution: names.weight("ssm_conv1d"),
        taps: spec.taps,
        rate: format!("blk.{}.ssm_a", names.layer),
        bias: names.bias("ssm_dt"),
        output_norm: names.weight("ssm_norm"),
        output: names.whole("ssm_out"),
        shape: spec.shape,
    }
}

fn latent(spec: &LatentSpec, names: &Names) -> LatentBlock {
    let down = |rank| (names.weight("attn_q_a"), names.weight("attn_q_a_norm"), rank);
    LatentBlock {
        query_down: spec.query_rank.map(down),
        query: names.weight(if spec.query_rank.is_some() { "attn_q_b" } else { "attn_q" }),
        latent: names.weight("attn_kv_a_mqa"),
        latent_norm: names.weight("attn_kv_a_norm"),
        key_up: names.weight("attn_k_b"),
        value_up: names.weight("attn_v_b"),
        latent_width: spec.latent,
        turning: spec.turning,
        plain: spec.plain,
        value: spec.value,
    }
}

fn gated(spec: &DecoderSpec, layer: &LayerSpec, names: &Names) -> Option<GatedBlock> {
    let feed_forward = layer.feed_forward;
    let (inner, activation, stored, suffix) = match feed_forward {
        FeedForward::Gated { activation, stored } => {
            (layer.inner.unwrap_or(spec.dims.feed_forward), activation, stored, "")
        }
        FeedForward::Experts(experts) => {
            let suffix = if experts.beside == Beside::Apart { "" } else { "_shexp" };
            (experts.shared?, experts.activation, Stored::Apart, suffix)
        }
    };
    let whole = |stem: &str| names.whole(&format!("{stem}{suffix}"));
    let together = |first| Matrix::part(names.weight("ffn_up"), first, 2 * inner);
    let [gate, up] = match stored {
        Stored::Apart => ["ffn_gate", "ffn_up"].map(whole),
        Stored::Together => [0, inner].map(together),
    };
    let share = match feed_forward {
        FeedForward::Experts(ExpertsSpec { beside: Beside::Share, .. }) => {
            Some(names.weight("ffn_gate_inp_shexp"))
        }
        _ => None,
    };
    Some(GatedBlock { gate, up, down: whole("ffn_down"), activation, inner, share })
}

fn experts(feed_forward: FeedForward, names: &Names) -> Option<ExpertsBlock> {
    let FeedForward::Experts(spec) = feed_forward else { return None };
    let stems = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    let [gate, up, down] = stems.map(|stem| names.weight(stem));
    Some(ExpertsBlock {
        router: names.weight("ffn_gate_inp"),
        router_bias: spec.has_biases.then(|| names.bias("ffn_gate_inp")),
        choice_bias: spec.has_choice_bias.then(|| names.bias("exp_probs_b")),
        weight_scales: spec.has_weight_scales.then(|| names.scale("ffn_down_exps")),
        gate,
        up,
        down,
        biases: spec.has_biases.then(|| stems.map(|stem| names.bias(stem))),
        routing: spec.routing,
        activation: spec.activation,
        inner: spec.inner,
        apart: (spec.beside == Beside::Apart).then(|| ApartNorms {
            router: names.scale("ffn_gate_inp"),
            experts: names.weight("pre_ffw_norm_2"),
            experts_after: names.weight("post_ffw_norm_2"),
            gated_after: names.weight("post_ffw_norm_1"),
        }),
    })
}
