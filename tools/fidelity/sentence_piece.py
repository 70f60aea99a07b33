"""Does llama.cpp cut texts as SentencePiece does, by a GGUF file that `pelton quantize` makes of a
folder whose tokenizer was made of SentencePiece's?

    pip install sentencepiece==0.2.3 tokenizers==0.23.3 transformers==5.24.0 torch==2.15.0
    python sentence_piece.py PELTON LLAMA_TOKENIZE WORK

Two vocabularies are trained (tools/golden/make_tokenizer_sentence_piece.py), one as Llama 2 and
Mistral have them (a space in front), one as Gemma has them (none), both with bytes for what they
lack. Each becomes a folder: `tokenizer.json` as transformers converts it, with merges of the scores,
and a tiny Llama. Of that `pelton quantize` makes a GGUF file, whose scores come back from the merges.
All texts of crates/tokenizer/tests/data/corpus.json that llama.cpp's program can be given are cut by
SentencePiece, by the tokenizers package and by llama.cpp; a line a vocabulary says how many are cut
alike.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from make_tokenizer_byte_level import DATA  # noqa: E402
from make_tokenizer_sentence_piece import train  # noqa: E402

ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def converted(pieces, has_prefix):
    """`tokenizer.json` with a merge for each way to make a piece of two others, best score first,
    as transformers converts a vocabulary."""
    scores = {pieces.IdToPiece(i): pieces.GetScore(i) for i in range(pieces.GetPieceSize())}
    ids = {piece: i for i, piece in enumerate(scores)}
    merges = []
    for piece, score in scores.items():
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        made = [(left, right) for left, right in cuts if left in ids and right in ids]
        made.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(left, right, score) for left, right in made]
    merges.sort(key=lambda merge: -merge[2])
    tokenizer = Tokenizer(models.BPE(ids, [merge[:2] for merge in merges], unk_token="<unk>",
                                     fuse_unk=True, byte_fallback=True))
    front = [normalizers.Prepend("\u2581")] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        parts + ([decoders.Strip(content=" ", left=1)] if has_prefix else []))
    tokenizer.add_special_tokens(list(ROLES.values()))
    return tokenizer


def folder(place, tokenizer, rows):
    cfg = LlamaConfig(vocab_size=rows, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                      num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(1)
    LlamaForCausalLM(cfg).half().save_pretrained(place)
    tokenizer.save(str(place / "tokenizer.json"))
    config = {**ROLES, "add_bos_token": True, "add_eos_token": False,
              "tokenizer_class": "LlamaTokenizer"}
    (place / "tokenizer_config.json").write_text(json.dumps(config))


def main(pelton, llama_tokenize, work):
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    corpus = json.loads((DATA / "corpus.json").read_text())
    print("| vocabulary | texts | tokenizers | llama.cpp |")
    print("|---|---|---|---|")
    for name, has_prefix in [("as Llama 2's", True), ("as Gemma's", False)]:
        pieces = train(corpus, True, has_prefix, [])
        tokenizer = converted(pieces, has_prefix)
        place, file = work / f"prefix-{has_prefix}", work / f"prefix-{has_prefix}.gguf"
        folder(place, tokenizer, pieces.GetPieceSize())
        subprocess.run([pelton, "quantize", place, file, "--gguf", "F16", "--force"], check=True,
                       capture_output=True)
        count, same, theirs = 0, 0, 0
        for text in corpus:
            # What ends a text for a program in C, and what no file of UTF-8 has.
            if not text or "\0" in text:
                continue
            (work / "text.txt").write_bytes(text.encode())
            run = subprocess.run([llama_tokenize, "-m", file, "-f", work / "text.txt", "--ids",
                                  "--no-bos", "--no-parse-special", "--no-escape",
                                  "--log-disable"], check=True,
                                 capture_output=True, text=True)
            expected = pieces.EncodeAsIds(text)
            found = json.loads(run.stdout.strip().splitlines()[-1])
            count += 1
            same += tokenizer.encode(text, add_special_tokens=False).ids == expected
            theirs += found == expected
            if found != expected:
                print(repr(text[:80]), expected[:12], found[:12], file=sys.stderr)
        print(f"| {name} | {count} | {same} | {theirs} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
