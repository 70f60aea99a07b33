"""Writes crates/ops/src/quant_format/testdata/mlx_blocks.bin: rows that MLX quantized, and what it
decodes them to.

    pip install "mlx[cpu]==0.32.4" numpy==2.4.6
    python tools/golden/make_mlx_blocks.py

Form: `PELTONQ1`, u32 rows; each row a name of 8 characters (bits, group and type of scales (s, h, b), or the
mode), u32 bytes, u32 values, the bytes, the values in f32. The bytes are blocks, one a group: its
scale, its bias, its codes, out of the three tensors that MLX keeps.
"""

import struct
from pathlib import Path

import mlx.core as mx
import numpy as np

OUT = Path(__file__).resolve().parents[2] / "crates/ops/src/quant_format/testdata/mlx_blocks.bin"
COLS = 256


def raw(array):
    """The bytes of an array; MLX has bfloat16, numpy does not."""
    return np.array(array.view(mx.uint8)).tobytes()


def blocks(group, parts):
    count = COLS // group
    cut = [[part[i * len(part) // count:(i + 1) * len(part) // count] for i in range(count)]
           for part in parts]
    return b"".join(b"".join(block) for block in zip(*cut))


def row(name, data, values):
    values = np.array(values.astype(mx.float32)).reshape(-1)
    assert np.isfinite(values).all() and len(values) == COLS and len(name) <= 8
    head = name.ljust(8).encode() + struct.pack("<II", len(data), len(values))
    return head + data + values.astype("<f4").tobytes()


def main():
    mx.random.seed(5)
    rng = np.random.default_rng(5)
    rows = []
    types = [("s", mx.float32), ("h", mx.float16), ("b", mx.bfloat16)]
    for bits in [1, 2, 3, 4, 5, 6, 8]:
        for group in [32, 64, 128]:
            for name, kind in types:
                x = mx.array(rng.standard_normal((1, COLS)).astype(np.float32)).astype(kind)
                codes, scales, biases = mx.quantize(x, group_size=group, bits=bits)
                # In f32, in which nothing is rounded but once an operation.
                wide = [array.astype(mx.float32) for array in (scales, biases)]
                values = mx.dequantize(codes, *wide, group_size=group, bits=bits)
                data = blocks(group, [raw(scales), raw(biases), raw(codes)])
                rows.append(row(f"{bits} {group} {name}", data, values))
    for mode, group, bits in [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)]:
        x = mx.array(rng.standard_normal((1, COLS)).astype(np.float32))
        codes, scales = mx.quantize(x, group_size=group, bits=bits, mode=mode)
        values = mx.dequantize(codes, scales, group_size=group, bits=bits, mode=mode,
                               dtype=mx.float32)
        rows.append(row(mode, blocks(group, [raw(scales), raw(codes)]), values))
    OUT.write_bytes(b"PELTONQ1" + struct.pack("<I", len(rows)) + b"".join(rows))
    print(f"mlx {mx.__version__}: {len(rows)} rows, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
