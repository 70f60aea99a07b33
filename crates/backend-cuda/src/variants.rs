//! Which kernel images are there? One row each: its name, its file of `kernels/` (or several, one
//! after the other), its definitions.
//!
//! Read by the build script and by the program, so that both mean the same list.

/// Name, file without `.cu` or files with their endings and `+` between them, definitions.
pub(crate) type Variant = (&'static str, &'static str, &'static [&'static str]);

pub(crate) const VARIANTS: &[Variant] = &[
    ("activate", "activate", &[]),
    ("causal_conv", "causal_conv", &[]),
    ("copy_columns", "copy_columns", &[]),
    ("embed-4-32-0", "turns.cuh+embed.cu", &["LINEAR_BITS=4", "LINEAR_GROUP=32", "LINEAR_BIAS=0"]),
    ("embed-4-32-1", "turns.cuh+embed.cu", &["LINEAR_BITS=4", "LINEAR_GROUP=32", "LINEAR_BIAS=1"]),
    ("embed-4-16-1", "turns.cuh+embed.cu", &["LINEAR_BITS=4", "LINEAR_GROUP=16", "LINEAR_BIAS=1"]),
    ("embed-5-32-1", "turns.cuh+embed.cu", &["LINEAR_BITS=5", "LINEAR_GROUP=32", "LINEAR_BIAS=1"]),
    ("embed-5-16-1", "turns.cuh+embed.cu", &["LINEAR_BITS=5", "LINEAR_GROUP=16", "LINEAR_BIAS=1"]),
    ("embed-6-16-0", "turns.cuh+embed.cu", &["LINEAR_BITS=6", "LINEAR_GROUP=16", "LINEAR_BIAS=0"]),
    ("embed-8-32-0", "turns.cuh+embed.cu", &["LINEAR_BITS=8", "LINEAR_GROUP=32", "LINEAR_BIAS=0"]),
    ("embed-8-32-1", "turns.cuh+embed.cu", &["LINEAR_BITS=8", "LINEAR_GROUP=32", "LINEAR_BIAS=1"]),
    ("embed-8-16-0", "turns.cuh+embed.cu", &["LINEAR_BITS=8", "LINEAR_GROUP=16", "LINEAR_BIAS=0"]),
    (
        "embed-16-32-0",
        "turns.cuh+embed.cu",
        &["LINEAR_BITS=16", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    ("embed.received", "turns.cuh+embed.received.cu", &[]),
    (
        "experts-4-32-0",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=4", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    (
        "experts-4-32-1",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=4", "LINEAR_GROUP=32", "LINEAR_BIAS=1"],
    ),
    (
        "experts-4-16-1",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=4", "LINEAR_GROUP=16", "LINEAR_BIAS=1"],
    ),
    (
        "experts-5-32-1",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=5", "LINEAR_GROUP=32", "LINEAR_BIAS=1"],
    ),
    (
        "experts-5-16-1",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=5", "LINEAR_GROUP=16", "LINEAR_BIAS=1"],
    ),
    (
        "experts-6-16-0",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=6", "LINEAR_GROUP=16", "LINEAR_BIAS=0"],
    ),
    (
        "experts-8-32-0",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=8", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    (
        "experts-8-32-1",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=8", "LINEAR_GROUP=32", "LINEAR_BIAS=1"],
    ),
    (
        "experts-8-16-0",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=8", "LINEAR_GROUP=16", "LINEAR_BIAS=0"],
    ),
    (
        "experts-16-32-0",
        "packed.cuh+hopper.cuh+experts.cu+experts_stream.cuh",
        &["LINEAR_BITS=16", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    ("experts.join", "experts.join.cu", &[]),
    ("experts.route", "normed_row.cuh+experts.route.cu", &[]),
    ("gated_delta", "gated_delta", &[]),
    ("gated_norm", "gated_norm", &[]),
    ("head_linear", "head_linear", &[]),
    ("layer_norm", "layer_norm", &[]),
    (
        "linear-4-32-0",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=4", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    (
        "linear-4-32-1",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=4", "LINEAR_GROUP=32", "LINEAR_BIAS=1"],
    ),
    (
        "linear-4-16-1",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=4", "LINEAR_GROUP=16", "LINEAR_BIAS=1"],
    ),
    (
        "linear-5-32-1",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=5", "LINEAR_GROUP=32", "LINEAR_BIAS=1"],
    ),
    (
        "linear-5-16-1",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=5", "LINEAR_GROUP=16", "LINEAR_BIAS=1"],
    ),
    (
        "linear-6-16-0",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=6", "LINEAR_GROUP=16", "LINEAR_BIAS=0"],
    ),
    (
        "linear-8-32-0",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=8", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    (
        "linear-8-32-1",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=8", "LINEAR_GROUP=32", "LINEAR_BIAS=1"],
    ),
    (
        "linear-8-16-0",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=8", "LINEAR_GROUP=16", "LINEAR_BIAS=0"],
    ),
    (
        "linear-16-32-0",
        "packed.cuh+linear.cu+hopper.cuh+normed_row.cuh+linear_stream.cuh+linear_wide.cuh",
        &["LINEAR_BITS=16", "LINEAR_GROUP=32", "LINEAR_BIAS=0"],
    ),
    ("linear.halve", "linear.halve.cu", &[]),
    ("low_rank", "low_rank", &[]),
    ("norm_heads", "norm_heads", &[]),
    ("rms_norm.floats", "rms_norm.floats.cu", &[]),
    (
        "paged_attention-32",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh+paged_attention_team.cuh",
        &["HEAD=32"],
    ),
    (
        "paged_attention-64",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh+paged_attention_team.cuh",
        &["HEAD=64"],
    ),
    (
        "paged_attention-96",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh+paged_attention_team.cuh",
        &["HEAD=96"],
    ),
    (
        "paged_attention-128",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh+paged_attention_team.cuh",
        &["HEAD=128"],
    ),
    (
        "paged_attention-256",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh+paged_attention_team.cuh",
        &["HEAD=256"],
    ),
    (
        "paged_attention-576",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh+paged_attention_team.cuh",
        &["HEAD=576"],
    ),
    (
        "paged_attention-8bit-32",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh",
        &["HEAD=32", "KV_BITS=8"],
    ),
    (
        "paged_attention-8bit-64",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh",
        &["HEAD=64", "KV_BITS=8"],
    ),
    (
        "paged_attention-8bit-96",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh",
        &["HEAD=96", "KV_BITS=8"],
    ),
    (
        "paged_attention-8bit-128",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh",
        &["HEAD=128", "KV_BITS=8"],
    ),
    (
        "paged_attention-8bit-256",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh",
        &["HEAD=256", "KV_BITS=8"],
    ),
    (
        "paged_attention-8bit-576",
        "hopper.cuh+paged_attention.cu+paged_attention_wide.cuh",
        &["HEAD=576", "KV_BITS=8"],
    ),
    ("paged_attention-whole-32", "hopper.cuh+paged_attention.cu", &["HEAD=32", "WHOLE=1"]),
    ("paged_attention-whole-64", "hopper.cuh+paged_attention.cu", &["HEAD=64", "WHOLE=1"]),
    ("paged_attention-whole-96", "hopper.cuh+paged_attention.cu", &["HEAD=96", "WHOLE=1"]),
    ("paged_attention-whole-128", "hopper.cuh+paged_attention.cu", &["HEAD=128", "WHOLE=1"]),
    ("pool_rows", "pool_rows", &[]),
    ("rms_norm", "normed_row.cuh+rms_norm.cu", &[]),
    ("rotary", "rotary", &[]),
    ("rotary-8bit", "rotary", &["KV_BITS=8"]),
    ("rotary.rotate", "rotary.rotate.cu", &[]),
    ("sample_rows", "sample_rows", &[]),
    ("select_rows", "select_rows", &[]),
    ("sigmoid_gate", "sigmoid_gate", &[]),
    ("soft_cap", "soft_cap", &[]),
];
