"""Writes a small byte-level vocabulary and what the `tokenizers` package makes of the corpus.

Run: pip install tokenizers==0.23.3; python make_tokenizer_corpus.py; python make_tokenizer_byte_level.py
Writes crates/tokenizer/tests/data/byte_level_*.json: one vocabulary, trained on whole lines so that
its merges reach across every boundary a pre-tokenizer can draw, and the ids of each corpus string
for each pre-tokenizer; and random id sequences with what Python decodes.
The patterns are those published with the models (the tokenizer.json of each family); the ones that
only readers of GGUF files define are given as those readers define them. The engine (Oniguruma,
with real look-ahead) is not ours.
"""

import importlib
import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

DATA = pathlib.Path(__file__).parents[2] / "crates/tokenizer/tests/data"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The letters with case of DeepSeek's first models, as ranges of code points.
CASED = [
    (0x41, 0x5A), (0x61, 0x7A), (0xB5, 0xB5), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x1BA), (0x1BC, 0x1BF), (0x1C4, 0x293), (0x295, 0x2AF),
    (0x370, 0x373), (0x376, 0x377), (0x37B, 0x37D), (0x37F, 0x37F), (0x386, 0x386), (0x388, 0x38A), (0x38C, 0x38C), (0x38E, 0x3A1), (0x3A3, 0x3F5),
    (0x3F7, 0x481), (0x48A, 0x52F), (0x531, 0x556), (0x10A0, 0x10C5), (0x13A0, 0x13F5), (0x13F8, 0x13FD), (0x1C90, 0x1CBA), (0x1CBD, 0x1CBF),
    (0x1D00, 0x1D2B), (0x1D6B, 0x1D77), (0x1D79, 0x1D9A), (0x1E00, 0x1F15), (0x1F18, 0x1F1D), (0x1F20, 0x1F45), (0x1F48, 0x1F4D), (0x1F50, 0x1F57),
    (0x1F59, 0x1F59), (0x1F5B, 0x1F5B), (0x1F5D, 0x1F5D), (0x1F5F, 0x1F7D), (0x1F80, 0x1FB4), (0x1FB6, 0x1FBC), (0x1FBE, 0x1FBE), (0x1FC2, 0x1FC4),
    (0x1FC6, 0x1FCC), (0x1FD0, 0x1FD3), (0x1FD6, 0x1FDB), (0x1FE0, 0x1FEC), (0x1FF2, 0x1FF4), (0x1FF6, 0x1FFC), (0x2102, 0x2102), (0x2107, 0x2107),
    (0x210A, 0x2113), (0x2115, 0x2115), (0x2119, 0x211D), (0x2124, 0x2124), (0x2126, 0x2126), (0x2128, 0x2128), (0x212A, 0x212D), (0x212F, 0x2134),
    (0x2139, 0x2139), (0x213C, 0x213F), (0x2145, 0x2149), (0x214E, 0x214E), (0x2183, 0x2184), (0x2C00, 0x2C7B), (0x2C7E, 0x2CE4), (0x2CEB, 0x2CEE),
    (0x2CF2, 0x2CF3), (0xA640, 0xA66D), (0xA680, 0xA69B), (0xA722, 0xA76F), (0xA771, 0xA787), (0xA78B, 0xA78E), (0xAB70, 0xABBF), (0xFB00, 0xFB06),
    (0xFB13, 0xFB17), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A), (0x10400, 0x1044F), (0x104B0, 0x104D3), (0x104D8, 0x104FB), (0x10C80, 0x10CB2),
    (0x10CC0, 0x10CF2), (0x118A0, 0x118DF), (0x1E900, 0x1E943),
]
CASED_CLASS = "".join(chr(a) + "-" + chr(b) if a != b else chr(a) for a, b in CASED)
EAST_ASIA = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def modern(digits):
    return [CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END]


def cased(suffix, digits):
    return [
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{suffix}|"
        + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + END
    ]


# Name in the file -> patterns in order, and whether pieces that are tokens skip the merges.
PATTERNS = {
    "gpt-2": ([GPT2], False),
    "smollm": ([r"\p{N}", GPT2], False),
    "default": ([r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], False),
    "falcon": ([r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"], False),
    "llama-bpe": (modern(r"\p{N}{1,3}"), True),
    "dbrx": (modern(r"\p{N}{1,3}"), False),
    "qwen2": (modern(r"\p{N}"), False),
    "qwen35": ([CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + END], False),
    "tekken": (cased("", r"\p{N}"), True),
    "gpt-4o": (cased(CONTRACTIONS + "?", r"\p{N}{1,3}"), False),
    "seed-coder": ([CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}" + "\r\n" + r"]+|" + END], False),
    "bailingmoe": ([r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"], False),
    "exaone-moe": ([CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"], False),
    "deepseek-llm": (["[\r\n]", rf"\s?[{CASED_CLASS}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", EAST_ASIA, r"\p{N}+"], False),
    "deepseek-coder": (["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIA, r"\p{N}"], False),
    "deepseek-v3": ([r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                     "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"], False),
    "viking": ([" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+", r"\p{N}"], False),
    "kimi-k2": ([r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+" + CONTRACTIONS
                 + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*" + CONTRACTIONS
                 + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END], False),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
USER_DEFINED = ["<tool_call>", "</tool_call>"]


def splitter(patterns):
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def training_lines(corpus):
    """The corpus and the words of Python's own documentation."""
    lines = list(corpus) * 3
    for name in sorted(sys.stdlib_module_names)[:90]:
        if name in {"antigravity", "this", "idlelib"} or name.startswith("_"):
            continue
        try:
            lines += (importlib.import_module(name).__doc__ or "").splitlines()
        except ImportError:  # A module of another platform.
            continue
    return lines


def byte_of_characters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def random_sequences(tokens, ordinary, count):
    chance = random.Random(7)
    spelled = byte_of_characters()
    singles = [i for i in ordinary if len(tokens[i]) == 1]
    sequences = []
    for number in range(count):
        pool = singles if number % 2 else ordinary
        ids = [chance.choice(pool) for _ in range(chance.randint(1, 24))]
        data = b"".join(bytes(spelled[c] for c in tokens[i]) for i in ids)
        sequences.append([ids, data.decode("utf-8", "replace")])
    return sequences


def main():
    corpus = json.loads((DATA / "corpus.json").read_text())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter([r"[^\n]{1,40}\n*"])
    trained.train_from_iterator(
        # A trained token must not be one of the user-defined ones.
        [line for line in training_lines(corpus) if "tool_call" not in line],
        trainers.BpeTrainer(vocab_size=2400, special_tokens=SPECIAL, show_progress=False, max_token_length=16,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(m) for m in model["merges"]]
    types = [3 if t in SPECIAL else 1 for t in tokens] + [4] * len(USER_DEFINED)
    golden = {}
    for name, (patterns, whole) in PATTERNS.items():
        tokenizer = Tokenizer(models.BPE(dict(model["vocab"]), merges, ignore_merges=whole))
        tokenizer.pre_tokenizer = splitter(patterns)
        golden[name] = [tokenizer.encode(s).ids for s in corpus]
    parsed = Tokenizer(models.BPE(dict(model["vocab"]), merges))
    parsed.pre_tokenizer = splitter(PATTERNS["qwen2"][0])
    parsed.decoder = decoders.ByteLevel()
    parsed.add_special_tokens(SPECIAL)
    parsed.add_tokens(USER_DEFINED)
    # Only the strings whose ids differ once special tokens count.
    parsed_ids = {i: ids for i, s in enumerate(corpus) if (ids := parsed.encode(s).ids) != golden["qwen2"][i]}
    # Most pre-tokenizers agree on most strings: only differences from the first one are kept.
    base = golden["gpt-2"]
    differences = {n: {i: g for i, (g, b) in enumerate(zip(ids, base)) if g != b} for n, ids in golden.items() if n != "gpt-2"}
    ordinary = [i for i, t in enumerate(tokens) if t not in SPECIAL]
    write("byte_level_vocabulary.json", {"tokens": tokens + USER_DEFINED, "token_types": types, "merges": [" ".join(m) for m in merges]})
    write("byte_level_ids.json", {
        "base": base, "differences": differences, "parsed_qwen2": parsed_ids,
        "decoded": random_sequences(tokens, ordinary, 120),
    })
    print(len(tokens), "tokens,", {n: len(d) for n, d in differences.items()})


def write(name, value):
    # One entry of a list of lists a line.
    def lines(part):
        entries = [json.dumps(entry, separators=(",", ":")) for entry in part] if isinstance(part, list) else []
        nested = any(isinstance(entry, list) for entry in part) if entries else False
        return "[" + ",\n".join(entries) + "]" if nested else json.dumps(part, separators=(",", ":"))

    text = "{" + ",\n".join(f"{json.dumps(key)}:{lines(part)}" for key, part in value.items()) + "}\n"
    (DATA / name).write_text(text)


if __name__ == "__main__":
    main()
