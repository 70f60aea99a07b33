"""Writes crates/quantize/tests/data/: rows of weights, and what the quantizers of GGUF's and MLX's
makers make of them.

    pip install numpy gguf==0.19.0
    python tools/golden/make_quantized.py gguf PATH_OF_llama-quantize
    pip install "mlx[cpu]==0.32.4"
    python tools/golden/make_quantized.py mlx

gguf.bin: types that gguf-py makes are made by it, K-quants by llama.cpp's program. mlx.bin: mx.quantize.
Each file: b"PELTONQ1", u32 count of rows, then a row each: name padded with spaces to 16 bytes, u32
count of weights, u32 count of bytes, the weights in f32, the bytes. Of MLX these are the codes, then
the scales, then the biases.
"""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[2] / "crates/quantize/tests/data"


def rows(rng, cols):
    """Kinds of rows that come in models, and what a quantizer may stumble over."""
    plain = rng.standard_normal(cols) * 0.05
    heavy = rng.standard_t(3, cols) * 0.02
    shifted = rng.standard_normal(cols) * 0.01 + 0.3
    outlier = plain.copy()
    outlier[::97] *= 30
    some = plain.copy()
    some[64:192] = 0
    rising = np.linspace(-1, 1, cols)
    return np.stack([plain, heavy, shifted, outlier, some, rising]).astype(np.float32)


def write(name, parts):
    OUT.mkdir(parents=True, exist_ok=True)
    out = [b"PELTONQ1", struct.pack("<I", len(parts))]
    for kind, weights, data in parts:
        out.append(kind.encode().ljust(16))
        out.append(struct.pack("<II", weights.size, len(data)))
        out += [weights.astype("<f4").tobytes(), data]
    (OUT / name).write_bytes(b"".join(out))
    print(f"{name}: {len(parts)} rows, {(OUT / name).stat().st_size} bytes")


def by_program(program, weights, kind):
    """Through a file of one layer, whose other tensors are too small to matter."""
    from gguf import GGUFReader, GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder) / "plain.gguf", Path(folder) / "made.gguf"
        writer = GGUFWriter(plain, "llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(weights.shape[1])
        writer.add_feed_forward_length(64)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tensor("blk.0.attn_q.weight", weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        subprocess.run([program, "--pure", plain, made, kind, "1"], check=True,
                       capture_output=True)
        tensor = GGUFReader(made).tensors[0]
        assert tensor.tensor_type.name == kind, tensor.tensor_type
        return np.array(tensor.data).reshape(weights.shape[0], -1)


def of_gguf(program):
    from gguf.constants import GGMLQuantizationType as T
    from gguf.quants import quantize

    weights = rows(np.random.default_rng(5), 256)
    parts = []
    for kind in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]:
        made = quantize(weights, T[kind])
        parts += [(kind, row, bytes_.tobytes()) for row, bytes_ in zip(weights, made)]
    for kind in ["Q4_K", "Q5_K", "Q6_K"]:
        made = by_program(program, weights, kind)
        parts += [(kind, row, bytes_.tobytes()) for row, bytes_ in zip(weights, made)]
    write("gguf.bin", parts)


def of_mlx():
    import mlx.core as mx

    weights = rows(np.random.default_rng(6), 256)
    kinds = {"s": mx.float32, "h": mx.float16, "b": mx.bfloat16}
    parts = []
    for bits, group, kind in [(1, 32, "h"), (1, 64, "b"), (2, 64, "h"), (3, 32, "b"), (4, 32, "s"), (4, 64, "h"),
                              (5, 128, "b"), (6, 64, "h"), (8, 64, "b"), (8, 32, "h")]:
        rounded = mx.array(weights).astype(kinds[kind])
        made = mx.quantize(rounded, group_size=group, bits=bits)
        for at in range(len(weights)):
            data = b"".join(bytes(memoryview(part[at].view(mx.uint8))) for part in made)
            row = np.array(rounded[at].astype(mx.float32))
            parts.append((f"{bits} {group} {kind}", row, data))
    write("mlx.bin", parts)


if __name__ == "__main__":
    if sys.argv[1] == "gguf":
        of_gguf(sys.argv[2])
    else:
        of_mlx()
