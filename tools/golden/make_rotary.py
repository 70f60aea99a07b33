"""Writes crates/ops/tests/data/rotary.txt: what transformers (5.23.0, torch 2.15.0) computes for
rotary embeddings.

    pip install transformers==5.23.0 torch
    python tools/golden/make_rotary.py

Lines of words; numbers are the bits of f32 values in hexadecimal:
    frequencies <case> <attention factor> <inverse frequency>...
    turn <case> <position> cos <..> sin <..> input <..> half_split <..> adjacent <..>
Frequencies come from ROPE_INIT_FUNCTIONS, turned heads from modeling_llama's
apply_rotary_pos_emb. Adjacent pairs are the same rotation of a head whose element i is at 2i and
element i + dims / 2 at 2i + 1. The settings of each case stand again in crates/ops/tests/rotary.rs.
"""

import struct
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

OUT = Path(__file__).resolve().parents[2] / "crates/ops/tests/data/rotary.txt"
POSITIONS = [0, 1, 4095, 131071]


def config(head_dim, base, context, **rope):
    rope = {"rope_theta": base, **rope}
    return LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim,
        max_position_embeddings=context, rope_parameters=rope)


def dynamic(length):
    return config(64, 10000.0, 2048, rope_type="dynamic", factor=2.0), length


def longrope(length, **more):
    long = [1.0 + 0.37 * i for i in range(48)]
    short = [1.0 + 0.01 * i for i in range(48)]
    rope = {"rope_type": "longrope", "long_factor": long, "short_factor": short,
            "original_max_position_embeddings": 4096, **more}
    return config(96, 10000.0, 131072, **rope), length


def yarn(head_dim, base, factor, original, **more):
    context = int(factor * original)
    return config(head_dim, base, context, rope_type="yarn", factor=factor,
                  original_max_position_embeddings=original, **more), None


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}

CASES = {
    "default": (config(128, 500000.0, 8192, rope_type="default"), None),
    "default_96": (config(96, 10000.0, 4096, rope_type="default"), None),
    "linear": (config(64, 10000.0, 8192, rope_type="linear", factor=3.0), None),
    "linear_partial": (config(128, 10000.0, 8192, rope_type="linear", factor=1.0,
                              partial_rotary_factor=0.25), None),
    "dynamic_within": dynamic(1000),
    "dynamic_3000": dynamic(3000),
    "dynamic_16384": dynamic(16384),
    "yarn": yarn(128, 1000000.0, 4.0, 32768),
    "yarn_exact_ends": yarn(128, 1000000.0, 4.0, 32768, truncate=False),
    "yarn_given_factor": yarn(128, 1000000.0, 4.0, 32768, attention_factor=1.25),
    "yarn_other_betas": yarn(128, 10000.0, 40.0, 4096, beta_fast=64.0, beta_slow=2.0),
    "yarn_gpt_oss": yarn(64, 150000.0, 32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False),
    "yarn_no_ramp": yarn(64, 10000.0, 8.0, 2048, beta_fast=4.0, beta_slow=4.0, truncate=False),
    "yarn_small": yarn(16, 10000.0, 4.0, 32),
    "llama3_8b": (config(128, 500000.0, 131072, **LLAMA3), None),
    "llama3_1b": (config(64, 500000.0, 131072, **{**LLAMA3, "factor": 32.0}), None),
    "longrope_short": longrope(4096),
    "longrope_long": longrope(4097),
    "longrope_given_factor": longrope(131072, attention_factor=1.5),
    "proportional": (config(512, 1000000.0, 131072, rope_type="proportional",
                            partial_rotary_factor=0.25), None),
}


def bits(values):
    values = [float(v) for v in values]
    return " ".join(f"{struct.unpack('<I', struct.pack('<f', v))[0]:x}" for v in values)


def turn(name, frequencies, factor, generator):
    dims = 2 * len(frequencies)
    lines = []
    for position in POSITIONS:
        # The statements of LlamaRotaryEmbedding.forward, with this case's frequencies.
        angles = torch.tensor([float(position)]) * frequencies
        both = torch.cat((angles, angles))
        cos, sin = both.cos() * factor, both.sin() * factor
        head = torch.randn(dims, generator=generator)
        turned, _ = apply_rotary_pos_emb(
            head.view(1, 1, 1, dims), head.view(1, 1, 1, dims),
            cos.view(1, 1, dims), sin.view(1, 1, dims))
        turned = turned.flatten()
        adjacent = turned.view(2, dims // 2).T.flatten()
        half = dims // 2
        lines.append(f"turn {name} {position} cos {bits(cos[:half])} sin {bits(sin[:half])} "
                     f"input {bits(head)} half_split {bits(turned)} adjacent {bits(adjacent)}")
    return lines


def main():
    generator = torch.Generator().manual_seed(3)
    lines = []
    for name, (settings, length) in CASES.items():
        kind = settings.rope_parameters["rope_type"]
        if kind == "default":
            frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(settings)
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](settings, None, seq_len=length)
        assert frequencies.dtype == torch.float32
        lines.append(f"frequencies {name} {bits([factor])} {bits(frequencies)}")
        if name in ("default_96", "yarn_gpt_oss", "llama3_8b", "linear_partial"):
            lines += turn(name, frequencies, factor, generator)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")
    print(OUT, OUT.stat().st_size, "bytes")


main()
