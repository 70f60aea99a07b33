"""How fast is text encoded, next to the `tokenizers` package called directly, and are ids the same?

Run: cargo build --release -p tokenizer --example throughput; pip install gguf==0.19.0
tokenizers==0.23.3; python tools/load/tokenizing.py MODEL.gguf (of SmolLM2)

10 MB of text: this project's documents, and the source files of Python's standard library. Each
has its turns: the package encodes all of it in one call, then the example by one thread that
remembers nothing, by one, and by two.
"""

import pathlib
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "target/release/examples/throughput"
TEXT_BYTES = 10_000_000
ROUNDS = 3


def text():
    files = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md"))
    files += sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("**/*.py"))
    joined = "\n".join(file.read_text(errors="ignore") for file in files)
    return joined.encode()[:TEXT_BYTES].decode(errors="ignore")


def package(model):
    fields = gguf.GGUFReader(model).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def main():
    model, whole = sys.argv[1], text()
    megabytes = len(whole.encode()) / 1e6
    tokenizer, rates = package(model), {}
    with tempfile.TemporaryDirectory() as folder:
        file, ids = pathlib.Path(folder, "text"), pathlib.Path(folder, "ids")
        file.write_text(whole)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            encoded = tokenizer.encode(whole, add_special_tokens=False).ids
            rates.setdefault("tokenizers", []).append(megabytes / (time.perf_counter() - started))
            ids.write_bytes(b"".join(id.to_bytes(4, "little") for id in encoded))
            command = [EXAMPLE, model, file, "2", ids]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            assert "equal to those" in printed, printed
            for name, rate in re.findall(r"^(.*): ([\d.]+) MB/s median", printed, re.M):
                rates.setdefault(name, []).append(float(rate))
    print(f"{megabytes:.1f} MB, {len(encoded)} ids, all equal")
    for name, each in rates.items():
        print(f"{name}: {statistics.median(each):.1f} MB/s {[round(rate, 1) for rate in each]}")


if __name__ == "__main__":
    main()
