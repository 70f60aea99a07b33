"""Writes tokenizer.json files of all kinds, and what the `tokenizers` package makes of the corpus.

Run: pip install tokenizers==0.23.3; python make_tokenizer_json.py
Writes crates/tokenizer/tests/data/tokenizer_json_*.json. Byte-level cases share the vocabulary of
byte_level_vocabulary.json; those of characters share one that is trained here. A case is a
tokenizer.json as the package writes it, less vocabulary and merges, with the ids of each string
that differs from the first case, without what the post-processor adds, and of `a` with it.
The patterns are those published with the models.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from make_tokenizer_byte_level import DATA, GPT2, PATTERNS, training_lines, write

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
OWN = r" ?\p{L}{1,7}| ?[^\s\p{L}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
               "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"]
EDGES = [AddedToken("[INST]", lstrip=True), AddedToken("<tool_call>", rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False)]


def splits(patterns, behavior="isolated", invert=False):
    parts = [pre_tokenizers.Split(Regex(p), behavior, invert) for p in patterns]
    return pre_tokenizers.Sequence(parts + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def template(tokenizer, single):
    names = [t for t in SPECIAL if t in single]
    return processors.TemplateProcessing(single=single, special_tokens=[(t, tokenizer.token_to_id(t)) for t in names])


def byte_level(vocab, merges, splitter, normalizer=None, single=None, added=(), special=SPECIAL, **more):
    made = Tokenizer(models.BPE(dict(vocab), merges, **more))
    made.pre_tokenizer = splitter
    if normalizer:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    made.add_tokens(list(added))
    byte = processors.ByteLevel(trim_offsets=False)
    made.post_processor = processors.Sequence([byte, template(made, single)]) if single else byte
    return made


def byte_level_cases(vocab, merges):
    def case(splitter, **more):
        return byte_level(vocab, merges, splitter, **more)

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    yield "gpt-2", case(gpt2)
    yield "smollm", case(digits)
    yield "llama-3", case(splits(PATTERNS["llama-bpe"][0]), single="<s> $A", ignore_merges=True)
    yield "qwen-2", case(splits(PATTERNS["qwen2"][0]), normalizer=normalizers.NFC())
    yield "qwen-3.5", case(splits(PATTERNS["qwen35"][0]), normalizer=normalizers.NFC())
    yield "gpt-oss", case(splits(PATTERNS["gpt-4o"][0], "removed", True))
    yield "tekken", case(splits(PATTERNS["tekken"][0]), single="<s> $A", ignore_merges=True)
    yield "deepseek-v3", case(splits(DEEPSEEK_V3), single="<s> $A")
    yield "deepseek-coder", case(splits(PATTERNS["deepseek-coder"][0]), single="<s> $A </s>")
    yield "gpt-4", case(splits([GPT4]))
    yield "own", case(splits([OWN]))
    yield "two-in-front", case(splits([GPT2]), single="<|im_start|> <s> $A")
    yield "edges", case(pre_tokenizers.ByteLevel(add_prefix_space=True), added=EDGES)
    yield "lower", case(digits, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("ab", "AB")]))


def characters(vocab, merges, normalizer, splitter, single="<s> $A", added=(), special=SPECIAL[3:], unk="<unk>", **more):
    made = Tokenizer(models.BPE(dict(vocab), merges, unk_token=unk, **more))
    if normalizer:
        made.normalizer = normalizer
    if splitter:
        made.pre_tokenizer = splitter
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strips = not (isinstance(splitter, pre_tokenizers.Split) or getattr(splitter, "prepend_scheme", "") == "never")
    made.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if strips else []))
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ["<unk>", *special]])
    made.add_tokens(list(added))
    if single:
        made.post_processor = template(made, single)
    return made


def character_cases(vocab, merges):
    def case(normalizer, splitter, **more):
        return characters(vocab, merges, normalizer, splitter, **more)

    def metaspace(scheme, split):
        return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)

    replace = normalizers.Replace(" ", "▁")
    llama = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    phi = [AddedToken(t, rstrip=True, normalized=False) for t in ("<tool_call>", "[INST]")]
    yield "llama-2", case(llama, None, byte_fallback=True, fuse_unk=True)
    yield "mistral", case(None, metaspace("first", False), byte_fallback=True, fuse_unk=True)
    yield "gemma", case(replace, pre_tokenizers.Split(" ", "merged_with_previous"), byte_fallback=True, fuse_unk=True)
    yield "phi-3", case(llama, None, byte_fallback=True, added=phi)
    yield "always-split", case(None, metaspace("always", True), single=None)
    yield "never", case(None, metaspace("never", True), byte_fallback=True, fuse_unk=True)
    yield "unknown-fused", case(llama, None, fuse_unk=True)
    yield "unknown-each", case(llama, None, fuse_unk=False)
    yield "whole", case(None, metaspace("always", False), byte_fallback=True, ignore_merges=True)


def train_characters(corpus):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    lines = [line for line in training_lines(corpus) if not any(s in line for s in ("tool_call", "[INST]", "<s>", "<unk>"))]
    # Runs of spaces, which the pre-tokenizer would take apart.
    trainer = trainers.BpeTrainer(vocab_size=1400, special_tokens=names, show_progress=False, max_token_length=16, limit_alphabet=300)
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab, merges = dict(model["vocab"]), [tuple(m) for m in model["merges"]]
    for length in (2, 4):
        vocab["▁" * length] = len(vocab)
        merges.append(("▁" * (length // 2),) * 2)
    return vocab, merges


def described(cases, corpus):
    base, out = None, {}
    for name, made in cases:
        ids = [made.encode(s, add_special_tokens=False).ids for s in corpus]
        text = [made.decode(i, skip_special_tokens=True) for i in ids]
        base = base or ids
        document = json.loads(made.to_str())
        document["model"] |= {"vocab": {}, "merges": []}
        out[name] = {
            "tokenizer": document,
            "framed": made.encode("a").ids,
            "differences": {i: g for i, (g, b) in enumerate(zip(ids, base)) if g != b},
            # Where decoding does not give the text back.
            "decoded": {i: t for i, (t, s) in enumerate(zip(text, corpus)) if t != s},
        }
        print(name, len(out[name]["differences"]), "differ,", len(out[name]["decoded"]), "decode to another text")
    return {"base": base, **out}


def main():
    corpus = json.loads((DATA / "corpus.json").read_text())
    shared = json.loads((DATA / "byte_level_vocabulary.json").read_text())
    vocab = {t: i for i, t in enumerate(shared["tokens"])}
    merges = [tuple(m.split(" ")) for m in shared["merges"]]
    write("tokenizer_json_byte_level.json", described(byte_level_cases(vocab, merges), corpus))
    vocab, merges = train_characters(corpus)
    tokens = sorted(vocab, key=vocab.get)
    write("tokenizer_json_characters.json", {"tokens": tokens, "merges": merges, **described(character_cases(vocab, merges), corpus)})


if __name__ == "__main__":
    main()
