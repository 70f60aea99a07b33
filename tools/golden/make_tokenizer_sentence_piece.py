"""Writes two small SentencePiece BPE vocabularies and what SentencePiece makes of the corpus.

Run: pip install sentencepiece==0.2.3 protobuf; python make_tokenizer_sentence_piece.py
Writes crates/tokenizer/tests/data/sentence_piece.json: one with byte fallback and a space in front
(as Llama 2 and Mistral), one with neither (unknown characters become one unknown token).
"""

import io
import json

import sentencepiece

from make_tokenizer_byte_level import DATA, training_lines, write

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


def kind(model, i):
    for test, number in ((model.IsByte, BYTE), (model.IsUnknown, UNKNOWN), (model.IsControl, CONTROL), (model.IsUnused, UNUSED)):
        if test(i):
            return number
    return 1


def train(corpus, byte_fallback, prefix, user_defined):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([s for s in training_lines(corpus) if s and "\0" not in s]), model_writer=out, model_type="bpe",
        vocab_size=1500, byte_fallback=byte_fallback, add_dummy_prefix=prefix, remove_extra_whitespaces=False,
        normalization_rule_name="identity", user_defined_symbols=user_defined, character_coverage=0.98, split_digits=False,
        allow_whitespace_only_pieces=True, max_sentence_length=20000, minloglevel=2, hard_vocab_limit=False,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def describe(model, corpus, user_defined, options):
    count = model.GetPieceSize()
    tokens = [model.IdToPiece(i) for i in range(count)]
    types = [USER_DEFINED if t in user_defined else kind(model, i) for i, t in enumerate(tokens)]
    ids = [model.EncodeAsIds(s) for s in corpus]
    return options | {
        "tokens": tokens, "token_types": types, "scores": [model.GetScore(i) for i in range(count)],
        "ids": ids, "decoded": [model.DecodeIds(i) for i in ids],
    }


def main():
    corpus = json.loads((DATA / "corpus.json").read_text())
    user_defined = ["<tool_call>", "[INST]"]
    fallback = train(corpus, True, True, user_defined)
    plain = train(corpus, False, False, [])
    write("sentence_piece_fallback.json", describe(fallback, corpus, user_defined, {"add_space_prefix": True}))
    write("sentence_piece_plain.json", describe(plain, corpus, [], {"add_space_prefix": False}))
    for model in (fallback, plain):
        print(model.GetPieceSize(), "pieces, bos", model.bos_id(), "eos", model.eos_id(), "unknown", model.unk_id())


if __name__ == "__main__":
    main()
