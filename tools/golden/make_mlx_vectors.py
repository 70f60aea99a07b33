"""Writes crates/ops/src/quant_format/testdata/mlx_vectors.bin: what MLX quantized for somebody else, as
a list of cases in JSON, in the form of make_mlx_blocks.py. Standard library only.

    python tools/golden/make_mlx_vectors.py mlx_quantize.json

Each case is a matrix: its mode, bits and group_size, weight_u32, scales_f32 and biases_f32 or
scales_u8, and dequant_f32. Each of its rows becomes one.
"""

import json
import struct
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "crates/ops/src/quant_format/testdata/mlx_vectors.bin"


def packed(kind, values):
    return struct.pack(f"<{len(values)}{kind}", *values)


def row(case, index):
    values = case["dequant_f32"][index]
    kinds = [("scales_f32", "f"), ("biases_f32", "f"), ("scales_u8", "B"), ("weight_u32", "I")]
    parts = [packed(kind, case[key][index]) for key, kind in kinds if key in case]
    count = len(values) // case["group_size"]
    cut = [[part[i * len(part) // count:(i + 1) * len(part) // count] for i in range(count)]
           for part in parts]
    data = b"".join(b"".join(block) for block in zip(*cut))
    is_affine = case["mode"] == "affine"
    name = f"{case['bits']} {case['group_size']} s" if is_affine else case["mode"]
    head = name.ljust(8).encode() + struct.pack("<II", len(data), len(values))
    return head + data + packed("f", values)


def main():
    cases = json.loads(Path(sys.argv[1]).read_text())["cases"]
    rows = [row(case, index) for case in cases for index in range(len(case["dequant_f32"]))]
    OUT.write_bytes(b"PELTONQ1" + struct.pack("<I", len(rows)) + b"".join(rows))
    print(f"{len(cases)} cases, {len(rows)} rows, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
