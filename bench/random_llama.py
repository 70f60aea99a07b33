"""Writes a GGUF of a real Llama shape with random Q4_0 weights, to measure speed with.

`python3 bench/random_llama.py 8b /tmp/8b.gguf`. Standard library only. The same 75 MB of random
blocks are repeated, so that writing is bound by the disk. Scales are of random sign: nibbles minus 8
have a mean of -0.5, which would otherwise add up. The vocabulary is a byte-level tokenizer's 260
tokens, and then words that no text is cut into.
"""

import random
import struct
import sys

# Layers, width, heads, KV heads, head size, feed-forward width, embedding rows, rotary base.
SHAPES = {
    "1b": (16, 2048, 32, 8, 64, 8192, 128256, 500000.0),
    "8b": (32, 4096, 32, 8, 128, 14336, 128256, 500000.0),
    "70b": (80, 8192, 64, 8, 128, 28672, 128256, 500000.0),
}
F32, Q4_0 = 0, 2
BLOCK = 18
ALIGNMENT = 32


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return text(key) + struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    if isinstance(value[0], str):
        items = b"".join(text(item) for item in value)
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + items
    items = struct.pack(f"<{len(value)}i", *value)
    return text(key) + struct.pack("<IIQ", 9, 5, len(value)) + items


def byte_characters():
    """GPT-2's printable stand-ins of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + index) for index in range(256 - len(printable)))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def metadata(shape):
    layers, width, heads, heads_kv, head_dim, inner, vocabulary, base = shape
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters(), "\u0120t"]
    tokens += [f"word{index}" for index in range(len(tokens), vocabulary)]
    return [
        ("general.architecture", "llama"),
        ("general.name", "random"),
        ("llama.block_count", layers),
        ("llama.context_length", 32768),
        ("llama.embedding_length", width),
        ("llama.feed_forward_length", inner),
        ("llama.attention.head_count", heads),
        ("llama.attention.head_count_kv", heads_kv),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", head_dim),
        ("llama.rope.freq_base", base),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.token_type", [3] * 3 + [1] * (vocabulary - 3)),
        ("tokenizer.ggml.merges", ["\u0120 t"]),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.add_bos_token", False),
    ]


def tensors(shape):
    """Name, columns, rows; vectors have one row."""
    layers, width, heads, heads_kv, head_dim, inner, vocabulary, _ = shape
    yield "token_embd.weight", width, vocabulary
    yield "output_norm.weight", width, 1
    yield "output.weight", width, vocabulary
    for layer in range(layers):
        for stem, cols, rows in [
            ("attn_norm", width, 1),
            ("attn_q", width, heads * head_dim),
            ("attn_k", width, heads_kv * head_dim),
            ("attn_v", width, heads_kv * head_dim),
            ("attn_output", heads * head_dim, width),
            ("ffn_norm", width, 1),
            ("ffn_gate", width, inner),
            ("ffn_up", width, inner),
            ("ffn_down", inner, width),
        ]:
            yield f"blk.{layer}.{stem}.weight", cols, rows


def size(cols, rows):
    return 4 * cols if rows == 1 else cols * rows // 32 * BLOCK


def main():
    shape = SHAPES[sys.argv[1]]
    pairs = metadata(shape)
    listed = list(tensors(shape))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs))
    head += b"".join(pair(key, value) for key, value in pairs)
    offset = 0
    for name, cols, rows in listed:
        dims = (cols,) if rows == 1 else (cols, rows)
        head += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", F32 if rows == 1 else Q4_0, offset)
        offset += size(cols, rows) + -size(cols, rows) % ALIGNMENT
    head += b"\0" * (-len(head) % ALIGNMENT)
    blocks = 1 << 22
    source = random.Random(1)
    tile = bytearray(source.randbytes(blocks * BLOCK))
    # 0.004 as an f16 is 0x1c19; the sign stays as it was drawn.
    signs = bytes(0x1C | (byte & 0x80) for byte in tile[1::BLOCK])
    tile[0::BLOCK] = b"\x19" * blocks
    tile[1::BLOCK] = signs
    with open(sys.argv[2], "wb") as file:
        file.write(head)
        for _, cols, rows in listed:
            left = size(cols, rows)
            padding = b"\0" * (-left % ALIGNMENT)
            if rows == 1:
                file.write(struct.pack("<f", 1.0) * cols)
                left = 0
            while left > 0:
                left -= file.write(memoryview(tile)[: min(left, len(tile))])
            file.write(padding)


main()
