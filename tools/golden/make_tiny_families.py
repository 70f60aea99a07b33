"""Writes crates/testkit/golden/families/: a tiny model of each family as a GGUF file, and what
transformers computes with the same weights.

    pip install transformers==5.24.0 torch==2.15.0 numpy==2.4.6 gguf==0.19.0 \
        safetensors==0.8.0
    python tools/golden/make_tiny_families.py [FAMILY...]

Each file of tools/golden/families/ describes the cases of one family. Weights are random and larger
than training would leave them, so that attention is uneven and a wrong rotation shows. Each model
is made twice from the same numbers: as a GGUF file whose tensors have the names that the gguf
package maps, stored as llama.cpp's converter stores them; and in the vendor's own code in float32,
whose weights are what is read from that file.

<name>.gguf; its key `golden.ids` holds the prompt, of ids below the width (so that a stream of
activations can be looked at as if it were logits).
<name>/: the vendor's model as it saves itself, `config.json` and safetensors of the same weights
(matrices in f16, which are exact), for families whose folders are read.
<name>.truth: f32, little-endian: logits [tokens, vocabulary], then the stream behind each layer
[layers, tokens, width].
"""

import importlib
import math
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "crates/testkit/golden/families"
TOKENS = 40


def permuted(rows, heads):
    """Rows of query or key (or elements of their biases) for adjacent pairs."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def unpermuted(rows, heads):
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def random_values(case, rng, name, shape):
    """Vectors on a coarse grid, so that adding 1 to a norm is exact."""
    if len(shape) == 1 or name.endswith("bias"):
        values = np.round(256 * 0.2 * rng.standard_normal(shape)) / 256
        return (values if name.endswith("bias") else 1 + values).astype(np.float32)
    deviation = case.embeddings if "token_embd" in name else 1.5 / math.sqrt(shape[-1])
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


class Case:
    """How one tiny model is made. What a family does in its own way, it says in a subclass."""

    name: str
    architecture: gguf.MODEL_ARCH
    config: type
    model: type
    settings: dict
    # Of matrices; None: as the family stores them.
    kind = T.F16
    # Whether query and key rows are permuted for adjacent pairs.
    permutes = False
    # What norms are stored as, less what the vendor's code holds: 1 where it computes with 1 + w.
    norm_offset = 0.0
    # Whether sizes of heads are among the keys of the family.
    own_heads = False
    # How large embeddings are.
    embeddings = 1.0

    BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, vocab_size=72, max_position_embeddings=64,
                tie_word_embeddings=True)

    def keys(self, writer, cfg):
        """Keys of this family beside those all have: how fast positions turn, to begin with."""
        writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])

    def stored_name(self, names, name):
        layer = name.split(".")[2] if ".layers." in name else ""
        # All experts' in one parameter, which files keep apart by kind.
        for part, stem in [("gate_up_proj", "ffn_gate_up_exps"), ("down_proj", "ffn_down_exps")]:
            if f"experts.{part}" in name and "shared" not in name:
                return f"blk.{layer}.{stem}.{'bias' if name.endswith('bias') else 'weight'}"
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found, name
        return found

    def tensors(self, model):
        """(stored name, shape, how to set the vendor's parameter from stored values)."""
        names = gguf.get_tensor_name_map(self.architecture, model.config.num_hidden_layers)
        for name, parameter in model.named_parameters():
            stored = self.stored_name(names, name)
            yield stored, tuple(parameter.shape), parameter.copy_

    def kind_of(self, name):
        return self.kind

    def values(self, rng, name, shape):
        """What is stored, before it is rounded."""
        return random_values(self, rng, name, shape)

    def offset_of(self, name):
        """What a vector is stored as, less what the vendor's code holds."""
        return self.norm_offset if "norm" in name else 0.0

    # Whether a folder is written, too; bytes of a shard at most.
    folder = True
    shard_bytes = "1GB"


def stacked_experts(tensors):
    """Experts' gate and up apart, which the vendor's code keeps one below the other."""
    for name, shape, put in tensors:
        if "ffn_gate_up_exps" not in name:
            yield name, shape, put
            continue
        gate, up = put.__self__.chunk(2, dim=1)
        yield name.replace("gate_up", "gate"), tuple(gate.shape), gate.copy_
        yield name.replace("gate_up", "up"), tuple(up.shape), up.copy_


def general_keys(case, writer, cfg):
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    if not case.own_heads:
        writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    if not case.own_heads and getattr(cfg, "head_dim", None):
        writer.add_key_length(cfg.head_dim)
        writer.add_value_length(cfg.head_dim)


def add_tensor(case, cfg, writer, rng, name, shape, put):
    heads = {"attn_q": cfg.num_attention_heads}
    if case.permutes:
        heads["attn_k"] = cfg.num_key_value_heads
    heads = next((n for stem, n in heads.items() if f".{stem}." in name), None)
    values = case.values(rng, name, shape)
    if "conv1d" in name or len(shape) == 1 or "ffn_gate_inp" in name or name.endswith("bias"):
        stored, kind, read = values, T.F32, values - np.float32(case.offset_of(name))
    else:
        kind = case.kind_of(name)
        stored = quantize(values, kind)
        read = dequantize(stored, kind).astype(np.float32)
    if case.permutes and heads:
        read = unpermuted(read, heads)
    put(torch.from_numpy(np.ascontiguousarray(read)))
    raw = None if kind in (T.F32, T.F16) else kind
    writer.add_tensor(name, np.ascontiguousarray(stored), raw_dtype=raw)


def answers(case, model, ids):
    """Logits, and the stream behind each layer."""
    streams = []

    def keep(_module, _inputs, output):
        stream = output[0] if isinstance(output, tuple) else output
        streams.append(stream[0].numpy().copy())

    for layer in model.model.layers:
        layer.register_forward_hook(keep)
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    return logits, streams


def save_folder(case, model):
    """What the vendor's code writes, with those matrices in f16 that are exact in it."""
    folder = OUT / case.name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=case.shard_bytes)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, values in tensors.items():
            half = values.half()
            is_exact = values.dim() > 1 and torch.equal(half.float(), values.float())
            tensors[name] = half if is_exact else values
        save_file(tensors, path, metadata={"format": "pt"})


@torch.no_grad()
def make(case, seed):
    rng = np.random.default_rng(seed)
    cfg = case.config(**{**case.BASE, **case.settings}, attn_implementation="eager",
                      pad_token_id=None)
    model = case.model(cfg).float().eval()
    path = OUT / f"{case.name}.gguf"
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[case.architecture])
    general_keys(case, writer, cfg)
    case.keys(writer, cfg)
    ids = rng.integers(0, cfg.hidden_size, TOKENS).tolist()
    writer.add_array("golden.ids", ids)
    for name, shape, put in case.tensors(model):
        add_tensor(case, cfg, writer, rng, name, shape, put)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    logits, streams = answers(case, model, ids)
    truth = b"".join(part.astype("<f4").tobytes() for part in [logits, *streams])
    path.with_suffix(".truth").write_bytes(truth)
    if case.folder:
        save_folder(case, model)
    sizes = path.stat().st_size, len(truth)
    assert sum(sizes) <= 192 * 1024, f"{case.name}: {sizes} bytes"
    # Which words are likely changes from place to place, or the case would prove little.
    kinds = len(set(logits.argmax(axis=1).tolist()))
    assert kinds >= 8, f"{case.name}: {kinds} different words"
    print(f"{case.name}: {sizes[0]} + {sizes[1]} bytes, logits to {np.abs(logits).max():.2f}, "
          f"deviation {logits.std():.2f}, {kinds} words")


def main(asked):
    sys.path.insert(0, str(HERE))
    sys.modules["make_tiny_families"] = sys.modules["__main__"]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    OUT.mkdir(parents=True, exist_ok=True)
    for path in sorted((HERE / "families").glob("*.py")):
        if asked and path.stem not in asked:
            continue
        for seed, case in enumerate(importlib.import_module(f"families.{path.stem}").CASES):
            make(case(), seed)


if __name__ == "__main__":
    main(sys.argv[1:])
