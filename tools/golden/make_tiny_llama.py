"""Writes crates/testkit/golden/tiny_llama/: tiny llamas as GGUF files, and the logits that
transformers computes with the same weights.

    pip install transformers==5.23.0 torch numpy gguf==0.19.0
    python tools/golden/make_tiny_llama.py

Weights are random and larger than training would leave them, so that attention is uneven and a
wrong rotation shows. Each model is made twice from the same numbers: as a GGUF file, written with
the gguf package as llama.cpp's converter does for the llama architecture (query and key rows and
biases permuted, `llama3` scaling as rope_freqs, LongRoPE as rope_factors, the rest as keys), and as
a LlamaForCausalLM in float32 whose matrices are what gguf.quants.dequantize reads from that file.
The gguf package quantizes no K formats, so blocks of those are random bytes around usual scales.

<name>.gguf; <name>.logits: f32, little-endian, [tokens, vocabulary]; cases.json: names and ids.
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parents[2] / "crates/testkit/golden/tiny_llama"
LONG = [1.0 + 0.9 * i for i in range(8)]
SHORT = [1.0 + 0.1 * i for i in range(8)]
STRETCHED = {"original_max_position_embeddings": 32}

# name, matrix formats, tokens, settings of LlamaConfig that differ from BASE
BASE = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=64, max_position_embeddings=128,
            rms_norm_eps=1e-5, tie_word_embeddings=True, rope_theta=10000.0)
CASES = [
    ("plain_f32", T.F32, 64, dict(tie_word_embeddings=False)),
    # Heads wider than width / heads, biases, all heads with keys of their own.
    ("wide_heads_f16", T.F16, 64, dict(head_dim=32, attention_bias=True, vocab_size=77,
                                       num_key_value_heads=4, rms_norm_eps=1e-6)),
    ("linear_bf16", T.BF16, 64, dict(num_hidden_layers=3, num_key_value_heads=1,
                                     rope=dict(rope_type="linear", factor=4.0))),
    ("llama3_q8_0", T.Q8_0, 64, dict(
        tie_word_embeddings=False, max_position_embeddings=256, rope_theta=500000.0,
        rope=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  **STRETCHED))),
    ("yarn_q8_0", T.Q8_0, 64, dict(rope=dict(rope_type="yarn", factor=4.0, **STRETCHED))),
    ("yarn_betas_q5_1", T.Q5_1, 64, dict(
        attention_bias=True,
        rope=dict(rope_type="yarn", factor=4.0, beta_fast=8.0, beta_slow=0.5, **STRETCHED))),
    ("longrope_short_q4_0", T.Q4_0, 24, dict(
        max_position_embeddings=32,
        rope=dict(rope_type="longrope", long_factor=LONG, short_factor=SHORT, factor=1.0,
                  **STRETCHED))),
    ("longrope_long_q4_1", T.Q4_1, 64, dict(
        rope=dict(rope_type="longrope", long_factor=LONG, short_factor=SHORT, factor=4.0,
                  **STRETCHED))),
    ("plain_q4_k", T.Q4_K, 64, dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1,
                                    num_key_value_heads=1)),
]


def config(settings):
    settings = {**BASE, **settings}
    rope = {"rope_theta": settings.pop("rope_theta"), "rope_type": "default",
            **settings.pop("rope", {})}
    return LlamaConfig(**settings, rope_parameters=rope, attn_implementation="eager")


def random_blocks(rng, kind, rows, cols):
    """Random codes; the f16 scales such that weights have mean about 0 and deviation 1/16."""
    elements, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, cols // elements, size), dtype=np.uint8)

    def put(at, value):
        blocks[..., at:at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    if kind == T.Q4_K:  # scale * 0..63 * 0..15 - minimum * 0..63
        put(0, 0.0003)
        put(2, 0.0003 * 7.5)
    else:  # Q6_K: scale * -128..127 * -32..31
        put(208, 0.00006)
    return blocks.reshape(rows, -1)


def encode(rng, kind, weight):
    """A matrix in a format, and what is read from it."""
    if kind in (T.Q4_K, T.Q6_K):
        stored = random_blocks(rng, kind, *weight.shape)
    elif kind == T.F32:
        return weight, weight
    else:
        stored = quantize(weight, kind)
    return stored, dequantize(stored, kind).astype(np.float32)


def permuted(rows, heads):
    """Rows of query or key (or elements of their biases) for adjacent pairs."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def unpermuted(rows, heads):
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def llama3_divisors(rope, head_dim):
    """As llama.cpp's converter works them out."""
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def write_rope(writer, rope, head_dim):
    kind = rope["rope_type"]
    original = rope.get("original_max_position_embeddings")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(original)
        if "beta_fast" in rope:
            writer.add_float32("llama.rope.scaling.yarn_beta_fast", rope["beta_fast"])
            writer.add_float32("llama.rope.scaling.yarn_beta_slow", rope["beta_slow"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, head_dim))
    elif kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(original)
        factor = math.sqrt(1 + math.log(rope["factor"]) / math.log(original))
        writer.add_rope_scaling_attn_factors(factor)
        for name in ["long", "short"]:
            values = np.array(rope[f"{name}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", values)


def gguf_name(name):
    for old, new in [
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"),
        ("lm_head", "output"), ("model.layers", "blk"), ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"), ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"), ("mlp.", "ffn_"), ("_proj", ""),
    ]:
        name = name.replace(old, new)
    return name


def format_of(name, kind):
    # Files called Q4_K_M keep values and the head's table in six bits.
    six = kind == T.Q4_K and ("attn_v" in name or "token_embd" in name)
    return T.Q6_K if six else kind


def write_model(name, kind, settings, rng):
    cfg = config(settings)
    model = LlamaForCausalLM(cfg).float().eval()
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_vocab_size(cfg.vocab_size)
    if cfg.head_dim * cfg.num_attention_heads != cfg.hidden_size:
        writer.add_key_length(cfg.head_dim)
        writer.add_value_length(cfg.head_dim)
    write_rope(writer, cfg.rope_parameters, cfg.head_dim)
    with torch.no_grad():
        for hf_name, parameter in model.named_parameters():
            stored_name, shape = gguf_name(hf_name), tuple(parameter.shape)
            heads = {"attn_q": cfg.num_attention_heads, "attn_k": cfg.num_key_value_heads}
            heads = next((n for stem, n in heads.items() if f".{stem}." in stored_name), None)
            if len(shape) == 1:
                near = 0.5 * rng.standard_normal(shape)
                near = near if stored_name.endswith("bias") else 1 + 0.4 * near
                read = near.astype(np.float32)
                stored, stored_kind = permuted(read, heads) if heads else read, T.F32
            else:
                deviation = 1.0 if "token_embd" in stored_name else 1.5 / math.sqrt(shape[1])
                weight = (deviation * rng.standard_normal(shape)).astype(np.float32)
                weight = permuted(weight, heads) if heads else weight
                stored_kind = format_of(stored_name, kind)
                stored, read = encode(rng, stored_kind, weight)
                read = unpermuted(read, heads) if heads else read
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(read)))
            raw = None if stored_kind in (T.F32, T.F16) else stored_kind
            writer.add_tensor(stored_name, np.ascontiguousarray(stored), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return cfg, model


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    cases = []
    for seed, (name, kind, tokens, settings) in enumerate(CASES):
        rng = np.random.default_rng(seed)
        cfg, model = write_model(name, kind, settings, rng)
        ids = rng.integers(0, cfg.vocab_size, tokens).tolist()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
        assert logits.dtype == np.float32 and np.isfinite(logits).all()
        (OUT / f"{name}.logits").write_bytes(logits.astype("<f4").tobytes())
        cases.append({"name": name, "ids": ids})
        size = (OUT / f"{name}.gguf").stat().st_size
        assert size <= 256 * 1024, f"{name}: {size} bytes"
        print(f"{name}: {size} bytes, logits to {np.abs(logits).max():.2f}, "
              f"deviation {logits.std():.2f}")
    (OUT / "cases.json").write_text(json.dumps(cases) + "\n")


main()
