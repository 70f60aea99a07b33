"""Writes what the `tokenizers` package makes of the corpus with SmolLM2's vocabulary.

Run: pip install gguf==0.19.0 tokenizers==0.23.3; python make_tokenizer_smollm2.py MODEL.gguf
The vocabulary and merges come from the model file; the pre-tokenizer is the published one (single
digits, then GPT-2's words). Writes crates/tokenizer/tests/data/smollm2_ids.json.
"""

import json
import pathlib
import random
import sys

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers

from make_tokenizer_byte_level import DATA, byte_of_characters, write


def main():
    fields = gguf.GGUFReader(sys.argv[1]).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    corpus = json.loads((DATA / "corpus.json").read_text())

    def build():
        tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        return tokenizer

    plain, parsed = build(), build()
    parsed.add_special_tokens([t for t, kind in zip(tokens, types) if kind == 3])
    as_text = [plain.encode(s).ids for s in corpus]
    as_parsed = {i: ids for i, s in enumerate(corpus) if (ids := parsed.encode(s).ids) != as_text[i]}
    spelled, chance, decoded = byte_of_characters(), random.Random(11), []
    for number in range(120):
        # Every second sequence is of tokens that are parts of characters.
        pool = [i for i, t in enumerate(tokens) if types[i] == 1 and (number % 2 == 0 or len(t) <= 2 and ord(t[0]) > 0x7E)]
        ids = [chance.choice(pool) for _ in range(chance.randint(1, 20))]
        data = b"".join(bytes(spelled[c] for c in tokens[i]) for i in ids)
        decoded.append([ids, data.decode("utf-8", "replace")])
    write("smollm2_ids.json", {"as_text": as_text, "parsed": as_parsed, "decoded": decoded})
    missing = sorted(b for c, b in spelled.items() if c not in set(tokens))
    print(len(corpus), "strings,", len(as_parsed), "parsed differently, bytes without a token:", [hex(b) for b in missing])


if __name__ == "__main__":
    main()
