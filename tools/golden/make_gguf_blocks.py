"""Writes crates/ops/src/quant_format/testdata/gguf_blocks.bin: random blocks of every supported
GGUF format and the weights that the `gguf` package (0.19.0, quants.dequantize) reads from them.

    pip install numpy gguf==0.19.0
    python tools/golden/make_gguf_blocks.py

File: b"PELTONQ1", u32 row count, then a row a format: name padded with spaces to 8 bytes,
u32 byte count, u32 weight count, the bytes, the weights as f32. All little-endian.

Codes and small integer scales are uniformly random bytes. The floating-point fields are finite
f16 (or f32, bf16) values of either sign that cycle through: any bit pattern, subnormal, zero of
either sign, the largest magnitude, and sizes usual in models.

Also writes crates/ops/src/quant_format/iq_grids.bin, the grids of IQ1 to IQ3: a point is 16 bits,
8 indices of levels in 2 bits or 4 in 4 bits, the first in the lowest.

Also writes crates/weights/tests/data/by_gguf_py.gguf with the package's GGUFWriter: every type of
value and three tensors, which crates/weights/tests/opening.rs knows by heart.
"""

import struct
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

CRATES = Path(__file__).resolve().parents[2] / "crates"
OUT = CRATES / "ops/src/quant_format/testdata/gguf_blocks.bin"
GRIDS_OUT = CRATES / "ops/src/quant_format/iq_grids.bin"
FILE_OUT = CRATES / "weights/tests/data/by_gguf_py.gguf"

# Byte offsets of the f16 fields of a block.
HALF_FIELDS = {
    T.F32: [], T.F16: [0], T.BF16: [],
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.IQ1_S: [0], T.IQ1_M: [], T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0],
    T.IQ3_XXS: [0], T.IQ3_S: [0], T.TQ1_0: [52], T.TQ2_0: [64], T.MXFP4: [], T.NVFP4: [],
}

# Grids of IQ1 to IQ3 in the order of GRIDS_OUT, and the bits of an index of levels.
GRIDS = [(quants.IQ2_XXS, 2), (quants.IQ2_XS, 2), (quants.IQ2_S, 2), (quants.IQ3_XXS, 4),
         (quants.IQ3_S, 4), (quants.IQ1_S, 2)]


def half_bits(rng, kind):
    sign = int(rng.integers(2)) << 15
    match kind % 5:
        case 0:
            return sign | int(rng.integers(0x7C00))  # any finite
        case 1:
            return sign | int(rng.integers(1, 0x400))  # subnormal
        case 2:
            return sign  # zero
        case 3:
            return sign | 0x7BFF  # 65504
        case _:
            return sign | int(np.float16(rng.uniform(0.001, 0.1)).view(np.uint16))


def random_row(rng, kind, blocks):
    elements, size = GGML_QUANT_SIZES[kind]
    if kind in (T.F32, T.BF16):
        bits = rng.integers(0, 1 << 32, size=blocks, dtype=np.uint32)
        # Clears the top exponent bit where all exponent bits are set: finite, any other value.
        bits = np.where((bits >> 23) & 0xFF == 0xFF, bits & 0xBFFFFFFF, bits).astype(np.uint32)
        bits[: blocks // 4] &= 0x807FFFFF  # subnormals and zeros
        return bits.tobytes() if kind == T.F32 else (bits >> 16).astype(np.uint16).tobytes()
    row = rng.integers(0, 256, size=(blocks, size), dtype=np.uint8)
    for index in range(blocks):
        for place, offset in enumerate(HALF_FIELDS[kind]):
            # 5 kinds and 3 steps a field: pairs of fields meet in different combinations.
            bits = half_bits(rng, index + 3 * place * (index // 5 + 1))
            row[index, offset : offset + 2] = np.frombuffer(struct.pack("<H", bits), np.uint8)
        if kind == T.MXFP4:
            row[index, 0] = min(row[index, 0], 250)  # 12 times 2^122
        if kind == T.IQ1_M:
            # The f16 lies in the top nibbles of four words, its lowest bits first.
            bits = half_bits(rng, index)
            for word in range(4):
                row[index, 49 + 2 * word] &= 0x0F
                row[index, 49 + 2 * word] |= (bits >> (4 * word) & 15) << 4
    return row.tobytes()


def write_grids():
    parts = []
    for kind, bits in GRIDS:
        kind.init_grid()
        levels = {value: index for index, value in enumerate(kind.grid_map)}
        for point in kind.grid.reshape(kind.grid_shape):
            word = sum(levels[int(value)] << (bits * i) for i, value in enumerate(point))
            parts.append(struct.pack("<H", word))
    GRIDS_OUT.write_bytes(b"".join(parts))
    print(f"{GRIDS_OUT.name}: {GRIDS_OUT.stat().st_size} bytes")


def write_file():
    FILE_OUT.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(FILE_OUT, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("v.u8", 200)
    writer.add_int8("v.i8", -100)
    writer.add_uint16("v.u16", 60000)
    writer.add_int16("v.i16", -30000)
    writer.add_uint32("v.u32", 4000000000)
    writer.add_int32("v.i32", -2000000000)
    writer.add_uint64("v.u64", 1 << 63)
    writer.add_int64("v.i64", -(1 << 62))
    writer.add_float32("v.f32", 0.1)
    writer.add_float64("v.f64", 0.1)
    writer.add_bool("v.bool", True)
    writer.add_string("v.string", "grüße 🦙")
    writer.add_array("a.strings", ["", "x", "日本"])
    writer.add_array("a.bytes", [b"\xff", b"ok"])
    writer.add_array("a.i32", [1, -2, 3])
    writer.add_array("a.f32", [0.5, -0.25])
    writer.add_array("a.bool", [True, False])
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.add_tensor("f32", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("f16", np.array([1.5, -2.0], dtype=np.float16))
    q8_0 = quantize(np.linspace(-127, 127, 64, dtype=np.float32).reshape(2, 32), T.Q8_0)
    writer.add_tensor("q8_0", q8_0, raw_dtype=T.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{FILE_OUT.name}: {FILE_OUT.stat().st_size} bytes")


def main():
    rng = np.random.default_rng(20260101)
    parts = [b"PELTONQ1", struct.pack("<I", len(HALF_FIELDS))]
    for kind in HALF_FIELDS:
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = {1: 256, 32: 20, 64: 16, 256: 10}[elements]
        raw = random_row(rng, kind, blocks)
        assert len(raw) == blocks * size
        weights = dequantize(np.frombuffer(raw, np.uint8).reshape(1, -1), kind).reshape(-1)
        weights = weights.astype("<f4")
        assert weights.size == blocks * elements and np.isfinite(weights).all(), kind
        parts.append(kind.name.encode().ljust(8))
        parts.append(struct.pack("<II", len(raw), weights.size))
        parts.append(raw)
        parts.append(weights.tobytes())
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(b"".join(parts))
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
    write_grids()
    write_file()
