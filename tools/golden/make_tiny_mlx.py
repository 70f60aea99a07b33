"""Writes crates/testkit/golden/mlx/: tiny models that MLX-LM quantized and saved, and what MLX
computes with them.

    pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2 numpy==2.4.6
    python tools/golden/make_tiny_mlx.py

<name>/: the folder as MLX-LM saves it. <name>.truth: u32 count of ids, the ids as u32, then the
logits of all positions in f32, computed in f32 from the very scales and codes that were saved.
"""

import importlib
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.utils import quantize_model, save_config, save_model

OUT = Path(__file__).resolve().parents[2] / "crates/testkit/golden/mlx"
TOKENS = 24
BASE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, vocab_size=72, max_position_embeddings=64,
            rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
               decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True)


def mixed(path, module):
    """More bits where it hurts, the head's width in other groups, one module left as it is."""
    if not hasattr(module, "to_quantized") or path.endswith("layers.0.self_attn.k_proj"):
        return False
    bits = {"down_proj": 6, "v_proj": 8, "up_proj": 3, "o_proj": 5, "gate_proj": 2}
    found = next((n for stem, n in bits.items() if path.endswith(stem)), 4)
    return {"group_size": 64 if path.endswith("lm_head") else 32, "bits": found}


# Name, model type, further settings, type of weights, how they are quantized.
CASES = [
    ("llama_4bit", "llama", {}, mx.float16, dict(group_size=32, bits=4)),
    ("qwen3_mixed", "qwen3", dict(tie_word_embeddings=False), mx.bfloat16,
     dict(group_size=32, bits=4, quant_predicate=mixed)),
    ("qwen3_moe_8bit", "qwen3_moe", EXPERTS, mx.bfloat16, dict(group_size=32, bits=8)),
    ("llama_mxfp4", "llama", {}, mx.bfloat16, dict(group_size=32, bits=4, mode="mxfp4")),
    ("llama_mxfp8", "llama", {}, mx.bfloat16, dict(group_size=32, bits=8, mode="mxfp8")),
    ("llama_nvfp4", "llama", {}, mx.bfloat16, dict(group_size=16, bits=4, mode="nvfp4")),
]


def randomized(model, rng, kind):
    def values(array):
        shape = array.shape
        scale = 1.0 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5
        drawn = scale * rng.standard_normal(shape)
        return mx.array((1 + 0.2 * drawn if len(shape) == 1 else drawn).astype(np.float32))

    model.update(tree_map(lambda array: values(array).astype(kind), model.parameters()))


def in_f32(array):
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def make(name, kind, settings, dtype, how):
    rng = np.random.default_rng(7)
    config = {**BASE, **settings, "model_type": kind}
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    model = module.Model(module.ModelArgs.from_dict(config))
    randomized(model, rng, dtype)
    model, config = quantize_model(model, config, **how)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    model.update(tree_map(in_f32, model.parameters()))
    ids = rng.integers(0, config["vocab_size"], TOKENS).tolist()
    logits = np.array(model(mx.array([ids]))[0])
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    truth = struct.pack(f"<I{TOKENS}I", TOKENS, *ids) + logits.astype("<f4").tobytes()
    (OUT / f"{name}.truth").write_bytes(truth)
    kinds = len(set(logits.argmax(axis=1).tolist()))
    assert kinds >= 8, f"{name}: {kinds} different words"
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {sizes} bytes, logits to {np.abs(logits).max():.2f}, {kinds} words")


def main():
    print(f"mlx {mx.__version__}")
    OUT.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        make(*case)


if __name__ == "__main__":
    main()
