"""Writes a GGUF of a real Llama or Qwen 3 shape with random Q4_0 weights, to measure speed with.

`python3 bench/random_llama.py 8b /tmp/8b.gguf`; `30b-a3b` is the mixture of experts. Standard library
only. The same 75 MB of random blocks are repeated, so that writing is bound by the disk. Scales are of random sign: nibbles minus 8
have a mean of -0.5, which would otherwise add up. The vocabulary is a byte-level tokenizer's 260
tokens, and then words that no text is cut into: a word of English is some six tokens. With the path of
another GGUF behind the file's, it is that one's, so that texts are as long as people's
(`pip install gguf` reads it).
"""

import math
import random
import struct
import sys

# Layers, width, heads, KV heads, head size, feed-forward width, embedding rows, rotary base.
SHAPES = {
    "1b": (16, 2048, 32, 8, 64, 8192, 128256, 500000.0),
    "8b": (32, 4096, 32, 8, 128, 14336, 128256, 500000.0),
    "70b": (80, 8192, 64, 8, 128, 28672, 128256, 500000.0),
    "30b-a3b": (48, 2048, 32, 4, 128, 768, 151936, 1000000.0),
}
# Experts, and how many a token goes to: the feed-forward width is then an expert's.
EXPERTS = {"30b-a3b": (128, 8)}
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


def byte_tokenizer(vocabulary):
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_characters(), "\u0120t"]
    tokens += [f"word{index}" for index in range(len(tokens), vocabulary)]
    return [
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.token_type", [3] * 3 + [1] * (vocabulary - 3)),
        ("tokenizer.ggml.merges", ["\u0120 t"]),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.add_bos_token", False),
    ]


def tokenizer_of(path, vocabulary):
    """Another file's, with words that no text is cut into up to the vocabulary's size."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    pairs = {key: field.contents() for key, field in fields.items() if "tokenizer." in key}
    tokens, kinds = pairs["tokenizer.ggml.tokens"], pairs["tokenizer.ggml.token_type"]
    if len(tokens) > vocabulary:
        sys.exit(f"{path} has {len(tokens)} tokens, this shape {vocabulary}: take a smaller one's")
    more = range(len(tokens), vocabulary)
    pairs["tokenizer.ggml.tokens"] = [*tokens, *(f"<unused{index}>" for index in more)]
    pairs["tokenizer.ggml.token_type"] = [*kinds, *(5 for _ in more)]
    return list(pairs.items())


def metadata(shape, experts, tokenizer):
    architecture = "qwen3moe" if experts else "llama"
    layers, width, heads, heads_kv, head_dim, inner, _, base = shape
    return [
        ("general.architecture", architecture),
        ("general.name", "random"),
        (f"{architecture}.block_count", layers),
        (f"{architecture}.context_length", 32768),
        (f"{architecture}.embedding_length", width),
        (f"{architecture}.feed_forward_length", inner),
        (f"{architecture}.attention.head_count", heads),
        (f"{architecture}.attention.head_count_kv", heads_kv),
        (f"{architecture}.attention.key_length", head_dim),
        (f"{architecture}.attention.value_length", head_dim),
        (f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5),
        (f"{architecture}.rope.dimension_count", head_dim),
        (f"{architecture}.rope.freq_base", base),
        *[
            (f"{architecture}.expert_{key}", value)
            for key, value in zip(("count", "used_count", "feed_forward_length"), (*experts, inner))
            if experts
        ],
        *tokenizer,
    ]


def tensors(shape, experts):
    """Name and dims, columns first; vectors have one, stacks of experts three."""
    layers, width, heads, heads_kv, head_dim, inner, vocabulary, _ = shape
    yield "token_embd.weight", (width, vocabulary)
    yield "output_norm.weight", (width,)
    yield "output.weight", (width, vocabulary)
    feed_forward = [
        ("ffn_gate", (width, inner)),
        ("ffn_up", (width, inner)),
        ("ffn_down", (inner, width)),
    ]
    if experts:
        feed_forward = [(f"{stem}_exps", (*dims, experts[0])) for stem, dims in feed_forward]
        feed_forward += [
            ("ffn_gate_inp", (width, experts[0])),
            ("attn_q_norm", (head_dim,)),
            ("attn_k_norm", (head_dim,)),
        ]
    for layer in range(layers):
        for stem, dims in [
            ("attn_norm", (width,)),
            ("attn_q", (width, heads * head_dim)),
            ("attn_k", (width, heads_kv * head_dim)),
            ("attn_v", (width, heads_kv * head_dim)),
            ("attn_output", (heads * head_dim, width)),
            ("ffn_norm", (width,)),
            *feed_forward,
        ]:
            yield f"blk.{layer}.{stem}.weight", dims


def is_float(name, dims):
    return len(dims) == 1 or "ffn_gate_inp" in name


def size(name, dims):
    elements = math.prod(dims)
    return 4 * elements if is_float(name, dims) else elements // 32 * BLOCK


def floats(name, dims, source):
    """Norms of 1, and routers whose scores of a normed stream are about 2 apart."""
    if len(dims) == 1:
        return struct.pack("<f", 1.0) * dims[0]
    values = [source.gauss(0.0, 0.05) for _ in range(math.prod(dims))]
    return struct.pack(f"<{len(values)}f", *values)


def main():
    shape, experts = SHAPES[sys.argv[1]], EXPERTS.get(sys.argv[1], ())
    vocabulary = shape[6]
    is_own = len(sys.argv) <= 3
    tokenizer = byte_tokenizer(vocabulary) if is_own else tokenizer_of(sys.argv[3], vocabulary)
    pairs = metadata(shape, experts, tokenizer)
    listed = list(tensors(shape, experts))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs))
    head += b"".join(pair(key, value) for key, value in pairs)
    offset = 0
    for name, dims in listed:
        head += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", F32 if is_float(name, dims) else Q4_0, offset)
        offset += size(name, dims) + -size(name, dims) % ALIGNMENT
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
        for name, dims in listed:
            left = size(name, dims)
            padding = b"\0" * (-left % ALIGNMENT)
            if is_float(name, dims):
                file.write(floats(name, dims, source))
                left = 0
            while left > 0:
                left -= file.write(memoryview(tile)[: min(left, len(tile))])
            file.write(padding)


main()
