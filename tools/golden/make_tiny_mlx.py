"""Writes crates/testkit/golden/mlx/: tiny models that MLX-LM quantized and saved, and what MLX
computes with them.

    pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2 numpy==2.4.6
    python tools/golden/make_tiny_mlx.py [NAME...]

<name>/: the folder as MLX-LM saves it. <name>.truth: u32 count of ids, the ids as u32, then the
logits of all positions in f32, then the stream behind each layer, computed in f32 from the very
scales and codes that were saved. Ids are below the width, so that a stream can be looked at as if it
were logits. Settings have the names and the forms that published folders have.
"""

import importlib
import shutil
import struct
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_map_with_path
from mlx_lm.utils import MODEL_REMAPPING, quantize_model, save_config, save_model

OUT = Path(__file__).resolve().parents[2] / "crates/testkit/golden/mlx"
TOKENS = 24
BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, vocab_size=72, max_position_embeddings=64,
            rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
               decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True)
GEMMA = dict(hidden_activation="gelu_pytorch_tanh", num_attention_heads=2, num_key_value_heads=1,
             head_dim=32, rms_norm_eps=1e-6)
GEMMA2 = dict(GEMMA, num_hidden_layers=3, sliding_window=7, query_pre_attn_scalar=24)
GEMMA4 = dict(GEMMA, num_hidden_layers=5, intermediate_size=32, global_head_dim=64,
              layer_types=["sliding_attention", "full_attention", "sliding_attention",
                           "sliding_attention", "full_attention"],
              num_kv_shared_layers=2, use_double_wide_mlp=True, sliding_window=7,
              hidden_size_per_layer_input=32, vocab_size_per_layer_input=72,
              final_logit_softcapping=6.0,
              rope_parameters=dict(
                  sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                  full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25,
                                      rope_theta=1000000.0)))
GROUPED = dict(moe_intermediate_size=32, n_routed_experts=6, num_experts_per_tok=2, n_group=3,
               n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=1.5,
               tie_word_embeddings=False)
LATENT = dict(GROUPED, head_dim=None, num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=32,
              qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32, rms_norm_eps=1e-6,
              moe_layer_freq=1)
NETS = dict(num_hidden_layers=4, full_attention_interval=2, intermediate_size=64,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
            linear_value_head_dim=16, linear_conv_kernel_dim=4, rms_norm_eps=1e-6)
QWEN35 = dict(NETS, layer_types=["linear_attention", "full_attention"] * 2,
              rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                   partial_rotary_factor=0.5, mrope_section=[2, 1, 1]))
SHARED = dict(EXPERTS, shared_expert_intermediate_size=32)


def yarn(**more):
    return dict(type="yarn", factor=4.0, original_max_position_embeddings=16, **more)


def mixed(path, module):
    """More bits where it hurts, the head's width in other groups, one module left as it is."""
    if not hasattr(module, "to_quantized") or path.endswith("layers.0.self_attn.k_proj"):
        return False
    bits = {"down_proj": 6, "v_proj": 8, "up_proj": 3, "o_proj": 5, "gate_proj": 2}
    found = next((n for stem, n in bits.items() if path.endswith(stem)), 4)
    return {"group_size": 64 if path.endswith("lm_head") else 32, "bits": found}


def eight_but_experts(path, _):
    """As GPT-OSS is published: experts stay in the form that they were trained in."""
    return True if ".experts" in path else {"group_size": 64, "bits": 8}


FOUR = dict(group_size=32, bits=4)
# Name, model type, further settings, type of weights, how they are quantized.
CASES = [
    ("llama_4bit", "llama", {}, mx.float16, FOUR),
    ("qwen3_mixed", "qwen3", dict(tie_word_embeddings=False), mx.bfloat16,
     dict(group_size=32, bits=4, quant_predicate=mixed)),
    ("qwen3_moe_8bit", "qwen3_moe", EXPERTS, mx.bfloat16, dict(group_size=32, bits=8)),
    ("llama_mxfp4", "llama", {}, mx.bfloat16, dict(group_size=32, bits=4, mode="mxfp4")),
    ("llama_mxfp8", "llama", {}, mx.bfloat16, dict(group_size=32, bits=8, mode="mxfp8")),
    ("llama_nvfp4", "llama", {}, mx.bfloat16, dict(group_size=16, bits=4, mode="nvfp4")),
    ("deepseek_v2", "deepseek_v2",
     dict(LATENT, q_lora_rank=None, topk_group=1, topk_method="group_limited_greedy",
          scoring_func="softmax", norm_topk_prob=False,
          rope_scaling=yarn(mscale=1.0, mscale_all_dim=0.707, beta_fast=32, beta_slow=1)),
     mx.bfloat16, FOUR),
    ("deepseek_v3", "deepseek_v3",
     dict(LATENT, q_lora_rank=32, topk_group=2, topk_method="noaux_tc", scoring_func="sigmoid",
          norm_topk_prob=True,
          rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0, beta_fast=32, beta_slow=1)),
     mx.bfloat16, FOUR),
    ("ernie4_5", "ernie4_5", dict(use_bias=False), mx.bfloat16, FOUR),
    ("exaone4", "exaone4",
     dict(num_hidden_layers=4, intermediate_size=64, sliding_window=7,
          sliding_window_pattern="LLLG", layer_types=["sliding_attention"] * 3 + ["full_attention"],
          rope_scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0,
                            high_freq_factor=4.0, original_max_position_embeddings=16)),
     mx.bfloat16, FOUR),
    ("gemma", "gemma", GEMMA, mx.bfloat16, FOUR),
    ("gemma2", "gemma2",
     # MLX knows no windows in Gemma 2 and Phi-3: theirs are longer than the text.
     dict(GEMMA2, sliding_window=32, attn_logit_softcapping=4.0, final_logit_softcapping=6.0),
     mx.bfloat16, FOUR),
    ("gemma3", "gemma3_text",
     dict(GEMMA2, num_hidden_layers=4, sliding_window_pattern=2, rope_local_base_freq=10000.0,
          rope_theta=1000000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
     mx.bfloat16, FOUR),
    ("gemma4", "gemma4_text", GEMMA4, mx.bfloat16, FOUR),
    ("glm4", "glm4", dict(partial_rotary_factor=0.5, attention_bias=True,
                          tie_word_embeddings=False), mx.bfloat16, FOUR),
    ("glm4_moe", "glm4_moe",
     dict(GROUPED, n_group=1, topk_group=1, norm_topk_prob=True, use_qk_norm=True,
          attention_bias=True, partial_rotary_factor=0.5, rope_scaling=None), mx.bfloat16, FOUR),
    ("glm4_moe_lite", "glm4_moe_lite",
     dict(LATENT, q_lora_rank=32, n_group=1, topk_group=1, topk_method="noaux_tc",
          num_experts_per_tok=4,
          scoring_func="sigmoid", norm_topk_prob=True, rope_scaling=None), mx.bfloat16, FOUR),
    # MLX rounds the ramp of GPT-OSS's YaRN, against its authors' code: none here.
    ("gpt_oss_mxfp4", "gpt_oss",
     dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=32, sliding_window=7,
          layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=False,
          rope_scaling=dict(rope_type="default")),
     mx.bfloat16, dict(group_size=32, bits=4, mode="mxfp4", quant_predicate=eight_but_experts)),
    ("minimax_m2", "minimax_m2",
     dict(num_local_experts=6, num_experts_per_tok=3, intermediate_size=32,
          shared_intermediate_size=0, rotary_dim=8, scoring_func="sigmoid", use_qk_norm=True,
          tie_word_embeddings=False), mx.bfloat16, FOUR),
    ("ministral3", "ministral3",
     dict(rope_theta=None,
          rope_parameters=yarn(rope_type="yarn", rope_theta=10000.0, beta_fast=32.0, beta_slow=1.0,
                               mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5)),
     mx.bfloat16, FOUR),
    ("mixtral", "mixtral", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=32,
                                sliding_window=None, tie_word_embeddings=False), mx.bfloat16, FOUR),
    ("olmo2", "olmo2", dict(rope_theta=500000.0, tie_word_embeddings=False), mx.bfloat16, FOUR),
    ("olmo3", "olmo3",
     dict(num_hidden_layers=4, intermediate_size=64, sliding_window=7,
          layer_types=["sliding_attention"] * 3 + ["full_attention"], tie_word_embeddings=False),
     mx.bfloat16, FOUR),
    ("phi3", "phi3",
     dict(original_max_position_embeddings=16, sliding_window=32, tie_word_embeddings=False,
          rope_scaling=dict(type="longrope", short_factor=[1.0] * 8,
                            long_factor=[1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0])),
     mx.bfloat16, FOUR),
    ("qwen2", "qwen2", dict(sliding_window=32, use_sliding_window=False, max_window_layers=2),
     mx.bfloat16, FOUR),
    ("qwen3_5", "qwen3_5", QWEN35, mx.bfloat16, FOUR),
    ("qwen3_5_moe", "qwen3_5_moe",
     dict(QWEN35, num_hidden_layers=2, layer_types=QWEN35["layer_types"][:2], **SHARED),
     mx.bfloat16, FOUR),
    ("qwen3_next", "qwen3_next",
     dict(NETS, num_hidden_layers=2, partial_rotary_factor=0.5, **SHARED), mx.bfloat16, FOUR),
    ("seed_oss", "seed_oss", dict(attention_bias=True, tie_word_embeddings=False), mx.bfloat16,
     FOUR),
    ("smollm3", "smollm3", dict(num_hidden_layers=4, intermediate_size=64, no_rope_layer_interval=4,
                                no_rope_layers=[1, 1, 1, 0]), mx.bfloat16, FOUR),
]


def randomized(model, rng, kind, is_gemma):
    def values(path, array):
        shape = array.shape
        drawn = rng.standard_normal(shape)
        if path.endswith("A_log"):
            # Some heads forget soon and some late; it is never rounded.
            return mx.array(rng.uniform(-3.0, 1.0, shape).astype(np.float32))
        if path.endswith(("bias", "sinks")) or (is_gemma and len(shape) == 1):
            drawn = 0.2 * drawn
        elif len(shape) == 1:
            drawn = 1 + 0.2 * drawn
        elif "conv1d" in path:
            drawn = 0.5 * drawn
        else:
            drawn = 1.5 / shape[-1] ** 0.5 * drawn
        if "embed_tokens" in path and is_gemma:
            # Near 1 once they are multiplied, so that layers count.
            drawn = drawn / 4
        return mx.array(drawn.astype(np.float32)).astype(kind)

    model.update(tree_map_with_path(values, model.parameters()))


def in_f32(array):
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def streams_of(layers):
    """What each layer gives, once it is called; and how to have layers as they were."""
    streams, kinds = [], {type(layer): type(layer).__call__ for layer in layers}

    def watched(own):
        def call(self, *given, **named):
            out = own(self, *given, **named)
            streams.append(np.array((out[0] if isinstance(out, tuple) else out)[0]))
            return out
        return call

    for kind, own in kinds.items():
        kind.__call__ = watched(own)
    return streams, lambda: [setattr(kind, "__call__", own) for kind, own in kinds.items()]


def make(name, kind, settings, dtype, how):
    rng = np.random.default_rng(7)
    config = {**BASE, **settings, "model_type": kind}
    config = {key: value for key, value in config.items()
              if value is not None or key in ("sliding_window", "q_lora_rank", "rope_scaling")}
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    model = module.Model(module.ModelArgs.from_dict(config))
    if kind == "gemma3_text":
        # Its head is dropped where files are read that have none.
        model.sanitize({})
    randomized(model, rng, dtype, kind in ("gemma", "gemma2", "gemma3_text"))
    model, config = quantize_model(model, config, **how)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    model.update(tree_map(in_f32, model.parameters()))
    ids = rng.integers(0, config["hidden_size"], TOKENS).tolist()
    gelu = nn.gelu
    if kind == "gemma":
        # MLX has the exact function here, its authors' code the approximation that the others have.
        nn.gelu = nn.gelu_approx
    streams, done = streams_of(model.layers)
    logits = np.array(model(mx.array([ids]))[0])
    done()
    nn.gelu = gelu
    assert len(streams) == config["num_hidden_layers"]
    parts = [logits, *streams]
    assert all(part.dtype == np.float32 and np.isfinite(part).all() for part in parts)
    truth = struct.pack(f"<I{TOKENS}I", TOKENS, *ids) + b"".join(
        part.astype("<f4").tobytes() for part in parts)
    (OUT / f"{name}.truth").write_bytes(truth)
    kinds = len(set(logits.argmax(axis=1).tolist()))
    assert kinds >= 8, f"{name}: {kinds} different words"
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {sizes} bytes, logits to {np.abs(logits).max():.2f}, {kinds} words")


def main(asked):
    print(f"mlx {mx.__version__}")
    OUT.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not asked or case[0] in asked:
            make(*case)


if __name__ == "__main__":
    main(sys.argv[1:])
